"""The script that Streamlit runs for ``magnus-cache dashboard``, for each visitor."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from magnus_cache import CacheManager, CacheSettingsError
from magnus_cache.dashboard import panel

__all__ = ["main"]

_SECONDS = 1.0
"""For one exchange with Redis."""

_ICON = str(Path(__file__).with_name("icon.svg"))
"""A file: Streamlit would fetch its own icons and emoji from another host."""

_STYLE = """<style>
.stMainBlockContainer { padding-top: 2.5rem; padding-bottom: 3rem; }
.stAppHeader { background: transparent; }
</style>"""


def main(arguments: Sequence[str]) -> None:
    """Draw the page.

    :param arguments: where Redis is, if the settings do not say it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--prefix")
    options = parser.parse_args(arguments)
    st.set_page_config("magnus_cache", page_icon=_ICON, layout="wide")
    st.html(_STYLE)
    try:
        cache = _cache(options.url, options.prefix)
    except CacheSettingsError as error:
        st.error(str(error))
        return
    st.subheader(f"Cache :blue[{cache._state.keyspace.prefix}]", anchor=False)
    panel(cache)


def _close(cache: CacheManager) -> None:
    cache.close()


@st.cache_resource(show_spinner=False, on_release=_close)
def _cache(url: str | None, prefix: str | None) -> CacheManager:
    """Return the cache through which all visitors look. It is no process of the fleet."""
    settings: dict[str, Any] = {"op_timeout": _SECONDS, "stats_interval": 0}
    settings |= {name: value for name, value in (("redis_url", url), ("prefix", prefix)) if value is not None}
    return CacheManager(**settings)


if __name__ == "__main__":
    main(sys.argv[1:])
