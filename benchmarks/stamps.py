"""What stamps cost: a hit with a stamp beside a plain one, and a plain `get` beside one that knows no stamps.

Interleaved rounds of one process, so the ratios hold on a busy machine::

    python -m benchmarks.stamps
"""

import inspect
import textwrap
import time
from collections.abc import Callable
from typing import Any, Final

from magnus_cache import CacheManager
from magnus_cache._engine.api import blocking
from magnus_cache._engine.api.blocking import BlockingCache

_ROUNDS: Final = 200
_CALLS: Final = 200
_TEST: Final = "if stamped:"


def main() -> None:
    """Print the nanoseconds of each kind of hit, and the ratios."""
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached("t", ttl="1h")
        def price(ticker: str) -> float:
            return float(len(ticker))

        price("AAPL")
        cache.set("t", "k", 1.0)
        plain = _without_stamps(cache)
        found = measured({
            "f(...)": lambda: price("AAPL"),
            "f.stamped(...)": lambda: price.stamped("AAPL"),
            "get, as it is": lambda: cache.get("t", "k"),
            "get, without stamps": lambda: plain("t", "k"),
            "get(stamped=True)": lambda: cache.get("t", "k", stamped=True),
        })  # fmt: skip
    for kind, nanos in found.items():
        print(f"{kind:24} {nanos:8.0f} ns")
    print(f"get / get without stamps {found['get, as it is'] / found['get, without stamps']:.3f}")
    print(f"f.stamped / f            {found['f.stamped(...)'] / found['f(...)']:.1f}")


def measured(calls: dict[str, Callable[[], object]], count: int = _CALLS) -> dict[str, float]:
    """Return the nanoseconds of this thread for each call: the best of interleaved rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            began = time.thread_time_ns()
            for _ in range(count):
                call()
            rounds[name].append((time.thread_time_ns() - began) / count)
    return {name: min(nanos) for name, nanos in rounds.items()}


def _without_stamps(cache: CacheManager) -> Callable[..., Any]:
    """Return `get` of a manager without its look whether a stamp is wanted."""
    text = textwrap.dedent(inspect.getsource(BlockingCache.get))
    assert text.count(_TEST) == 1
    scope: dict[str, Any] = {}
    lines = text.split("\n")
    place = next(number for number, line in enumerate(lines) if _TEST in line)
    exec("\n".join([*lines[:place], *lines[place + 2 :]]), vars(blocking), scope)  # a text of this package
    return scope["get"].__get__(cache)  # type: ignore[no-any-return]  # a bound method


if __name__ == "__main__":
    main()
