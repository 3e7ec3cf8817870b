"""What `cost=` costs: ``python -m benchmarks.ledger``.

CPU time of hits in memory and of loads, without Redis: in turns without a cost, with a number and with a function of
the value. Then the wall time of loads with Redis, in turns without and with a `spend_limit` of their namespace.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from magnus_cache import CacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer

_ROUNDS: Final = 41
_HITS: Final = 20_000
_LOADS: Final = 300

_COSTS: Final[dict[str, Any]] = {"none": None, "number": 0.25, "function": len}


def _spent(call: Callable[[], None]) -> int:
    began = time.process_time_ns()
    call()
    return time.process_time_ns() - began


def _hits(function: Callable[[str], object]) -> Callable[[], None]:
    def call() -> None:
        for _ in range(_HITS):
            function("k")

    return call


def _hits_of_get_or_set(cache: CacheManager, cost: Any) -> Callable[[], None]:
    def call() -> None:
        for _ in range(_HITS // 10):
            cache.get_or_set("t", "k", str, cost=cost)

    return call


def _loads(cache: CacheManager, cost: Any) -> Callable[[], None]:
    def call() -> None:
        for number in range(_LOADS):
            cache.get_or_set("loads", number, str, cost=cost)
        cache.clear("loads")

    return call


def _limited() -> None:
    spaces = [Namespace("free"), Namespace("limited", spend_limit="1000000/day")]
    with EmbeddedServer() as server, CacheManager(redis_url=server.url) as cache:
        for cost in (0.001, len):
            ratios = list[float]()
            for turn in range(_ROUNDS):
                took = list[float]()
                for space in spaces:
                    began = time.perf_counter()
                    for number in range(_LOADS // 10):
                        cache.get_or_set(space, f"{turn}:{number}:{cost}", str, cost=cost)
                    took.append(time.perf_counter() - began)
                ratios.append(took[1] / took[0])
            kind = "a number" if isinstance(cost, float) else "a function"
            print(f"a load with a spend_limit, cost is {kind}: {statistics.median(ratios):.2f} times of that without")


def main() -> None:
    with CacheManager(redis_enabled=False) as cache:

        def function(cost: Any) -> Callable[[str], object]:
            def value(key: str) -> str:
                return key

            return cache.cached("f", cost=cost, version=str(cost))(value)

        kinds: dict[str, dict[str, Callable[[], None]]] = {
            "a hit of a cached function": {name: _hits(function(cost)) for name, cost in _COSTS.items()},
            "a hit of get_or_set": {name: _hits_of_get_or_set(cache, cost) for name, cost in _COSTS.items()},
            "a load": {name: _loads(cache, cost) for name, cost in _COSTS.items()},
        }
        for what, calls in kinds.items():
            took: dict[str, list[int]] = {name: [] for name in calls}
            for _ in range(_ROUNDS):
                for name, call in calls.items():
                    took[name].append(_spent(call))
            for name in ("number", "function"):
                ratios = [one / other for one, other in zip(took[name], took["none"], strict=True)]
                print(f"{what}, cost is a {name}: {statistics.median(ratios):.3f} times of that without")
    _limited()


if __name__ == "__main__":
    main()
