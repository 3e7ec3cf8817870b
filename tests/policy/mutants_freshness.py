"""The guards that `test_freshness` sees missing."""

import math
from typing import Any, Final

from magnus_cache import freshness
from magnus_cache._engine.loading import stale as refreshes
from magnus_cache._engine.memory import entry as entries
from magnus_cache._engine.store import reads
from tests.support.guards import guard, put

HERE: Final = "tests/policy/test_freshness.py"


@guard(HERE, "tests/loading/test_policies.py")
def without_an_end_of_grace() -> None:
    original = freshness.classify

    def standing(now: float, due: float, fresh_until: float, end: float) -> Any:
        return original(now, due, fresh_until, max(end, now + 1))

    put(freshness, "classify", standing)
    put(refreshes, "classify", standing)
    put(entries.Entry, "end", property(lambda self: math.inf))
    put(
        reads,
        "pack_windows",
        lambda fresh, stale, *, negative=False: entries.pack_windows(fresh, 1e6, negative=negative),
    )


@guard(HERE, "tests/loading/test_policies.py")
def without_refreshing_early() -> None:
    for module in (freshness, reads):
        put(module, "early_by", lambda *_: 0.0)


@guard(HERE)
def without_a_bound_on_jitter() -> None:
    put(freshness, "lifetime", lambda ttl, jitter, random: ttl * (1 + jitter * random()))


@guard(HERE)
def without_a_least_draw() -> None:
    put(freshness, "_LEAST", 0.0)
