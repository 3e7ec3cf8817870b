"""The dashboard of a fleet: `panel` draws it into a Streamlit page; ``magnus-cache dashboard`` serves it as a page.

`watch` has the figures, `texts` and `rows` make of them what people read, `charts` draws, `page` and `tools` lay all of
it out. Only these two import Streamlit, from the extra ``dashboard``, and only once something is drawn.
"""

import importlib.util
from typing import TYPE_CHECKING

from magnus_cache import AsyncCacheManager, CacheManager, get_cache_manager

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["panel"]


def panel(cache: CacheManager | AsyncCacheManager | None = None, *, every: float = 2.0) -> None:
    """Draw the figures of a cache's fleet at this place of a Streamlit page, and keep them up to date.

    Keep the cache between the runs of the page: the process-wide one, or one from ``st.cache_resource``.

    :param cache: a cache of the fleet; the process-wide one by default.
    :param every: seconds between two looks at Redis while the page is open.
    :raises ImportError: if Streamlit is not installed; the message names the extra.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ImportError('the dashboard needs an extra: pip install "magnus-cache[dashboard]"', name="streamlit")
    from magnus_cache.dashboard.page import draw

    show: Callable[..., None] = draw
    show((get_cache_manager() if cache is None else cache).sync, every)
