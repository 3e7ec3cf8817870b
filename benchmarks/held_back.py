"""What a budget costs: ``python -m benchmarks.held_back``.

CPU time of hits in memory, and wall time of misses and sets with a Redis, in turns: in a namespace without a budget,
and in one whose budget is never used up.
"""

import statistics
import time
from collections.abc import Callable
from typing import Final

from magnus_cache import CacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer

_ROUNDS: Final = 41
_HITS: Final = 20_000
_LOADS: Final = 100

_PLAIN: Final = Namespace("plain")
_LIMITED: Final = Namespace("limited", budget="10000/s")


def _ratio(round_of: Callable[[Namespace, int], float]) -> float:
    """Return how many times as long a round takes with a budget: the median of neighbours."""
    return statistics.median(round_of(_LIMITED, turn) / round_of(_PLAIN, turn) for turn in range(_ROUNDS))


def main() -> None:
    """Print how many times as long each operation takes with a budget."""
    with EmbeddedServer() as server, CacheManager(redis_url=server.url) as cache:
        functions = {space: cache.cached(space)(lambda key: key) for space in (_PLAIN, _LIMITED)}

        def hits(space: Namespace, _: int) -> float:
            function = functions[space]
            function("k")
            began = time.process_time()
            for _ in range(_HITS):
                function("k")
            return time.process_time() - began

        def misses(space: Namespace, turn: int) -> float:
            began = time.perf_counter()
            for number in range(_LOADS):
                cache.get_or_set(space, f"{turn}:{number}", str)
            return time.perf_counter() - began

        def sets(space: Namespace, turn: int) -> float:
            began = time.perf_counter()
            for number in range(_LOADS):
                cache.set(space, f"{turn}:{number}", "x")
            return time.perf_counter() - began

        for name, round_of in (("a hit in memory", hits), ("a set", sets), ("a miss", misses)):
            print(f"{name} with a budget: {_ratio(round_of):.2f} times of that without")


if __name__ == "__main__":
    main()
