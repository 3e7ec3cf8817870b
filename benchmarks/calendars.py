"""What calendars cost: ``python -m benchmarks.calendars``.

How long `set` and a load take with a plain TTL and with calendars, in one process and by turns, and how long each
calendar takes to look up an end. Without the extra ``markets``, the exchange is left out.
"""

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

from magnus_cache import CacheManager, CalendarTtl, market, until

__all__ = ["main"]

_ROUNDS: Final = 15
_CALLS: Final = 2_000
_LOOKUPS: Final = 100_000


def main() -> None:
    """Print the figures."""
    ttls: dict[str, Any] = {"plain": "5m", "until": until("16:05", tz="America/New_York", days="mon-fri")}
    if find_spec("exchange_calendars") is not None:
        ttls["market"] = market("XNYS", open="15s", closed="until open")
    with CacheManager(redis_enabled=False) as cache:
        for operation, call in (("set", _set), ("load", _load)):
            figures = _by_turns({name: call(cache, ttl) for name, ttl in ttls.items()})
            for name, seconds in figures.items():
                ratio = seconds / figures["plain"]
                print(f"{operation:5} {name:8} {1e6 * seconds:8.2f} µs a call, {ratio:5.2f} times plain")
    now = time.time_ns() // 1_000
    for name, ttl in ttls.items():
        if isinstance(ttl, CalendarTtl):
            began = time.perf_counter()
            for _ in range(_LOOKUPS):
                ttl.end(now, now)
            print(f"look-up {name:6} {1e6 * (time.perf_counter() - began) / _LOOKUPS:8.2f} µs")


def _set(cache: CacheManager, ttl: Any) -> Callable[[int], object]:
    return lambda number: cache.set("bench", number % 100, number, ttl)


def _load(cache: CacheManager, ttl: Any) -> Callable[[int], object]:
    def load(number: int) -> object:
        cache.delete("bench", number % 100)
        return cache.get_or_set("bench", number % 100, lambda: number, ttl)

    return load


def _by_turns(calls: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Return the median of the rounds for each call, in seconds a call; the rounds take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call(0)
        found[name].clear()
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for number in range(_CALLS // _ROUNDS):
                call(number)
            found[name].append((time.perf_counter() - began) / (_CALLS // _ROUNDS))
    return {name: statistics.median(each) for name, each in found.items()}


if __name__ == "__main__":
    main()
