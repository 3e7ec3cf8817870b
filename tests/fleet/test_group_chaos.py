"""Each fault of clusters and Sentinel sets once, for a moment, under load; `nox -s chaos` does the same for longer."""

import re

import pytest

from magnus_cache import CacheManager
from tests.chaos.group_faults import GROUP_FAULTS
from tests.chaos.trail import Trail
from tests.support.inside import state_of
from tests.support.unnoticed import asyncio_is_quiet, strike_unnoticed

__all__ = ["asyncio_is_quiet"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", GROUP_FAULTS)
def test_callers_notice_nothing(name: str) -> None:
    """Invariants 1, 7, 10 and 11 at once."""
    strike_unnoticed(name)


def test_a_stale_read_would_explain_itself(url: str) -> None:
    """Who stored a value, what it was judged by, and who has invalidated it."""
    trail, name = Trail(), b"magnus:t:key"
    with trail.watching(), CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as other:
        for number, cache in enumerate((one, other)):
            trail.name(number, state_of(cache))
        one.get_or_set("t", "key", lambda: ["key", 7], tags=["tag"])
        assert other.get("t", "key") == ["key", 7]
        one.delete("t", "key")
        other.invalidate_tags("tag")
        one.get_or_set("u", "another", lambda: ["another", 8])
    told = "\n".join(trail.of(name, [b"magnus!tag:tag"]))
    for note in ("cache 0 .*load begins with a lease", "cache 0 .*stored 7: epoch", "cache 0 .*invalidated here"):
        assert re.search(note, told), told
    assert re.search(r"cache 1 .*judged 7: epoch \d+, lowest valid \d+, .* served", told), told
    assert re.search(r"cache 1 .*invalidated here: all of magnus!tag:tag", told), told
    assert "8" not in told.partition("stored ")[2].partition(":")[0]
    with CacheManager(redis_url=url) as unwatched:
        unwatched.get_or_set("t", "key", lambda: ["key", 9])
    assert "\n".join(trail.of(name, [b"magnus!tag:tag"])) == told
