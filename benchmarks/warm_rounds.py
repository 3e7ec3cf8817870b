"""What a round of `keep_warm` costs, and calls of the cache beside a job: ``python -m benchmarks.warm_rounds``.

A round looks at all keys, and loads none: each value is fresh. It is compared with `get_many` of the same keys, by the
CPU time of this process; a ratio is the median of the rounds' ratios. Redis runs on its own, and its time does not
count. The last row compares hits in memory in a process with a job of as many keys with hits in one without.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer

__all__ = ["measure"]

_HITS: Final = 20_000

Turn = Callable[[], Awaitable[object]]


async def _compared(one: Turn, other: Turn, rounds: int) -> tuple[float, float]:
    """Return the CPU seconds of a turn of the first, and its ratio to the second."""
    taken: list[float] = []
    ratios: list[float] = []
    for _ in range(rounds):
        spent = []
        for turn in (one, other):
            began = time.process_time()
            await turn()
            spent.append(time.process_time() - began)
        taken.append(spent[0])
        ratios.append(spent[0] / spent[1])
    return statistics.median(taken), statistics.median(ratios)


async def measure(keys: int = 1_000, rounds: int = 20) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds and the ratio of each row."""
    found: dict[str, tuple[float, float]] = {}
    with EmbeddedServer() as server:
        async with AsyncCacheManager(redis_url=server.url) as cache, AsyncCacheManager(redis_url=server.url) as far:

            @cache.cached("near", ttl=3_600, key="{number}")
            async def load(number: int) -> dict[str, Any]:
                return {"number": number, "price": 190.5}

            names = [str(number) for number in range(keys)]
            async with cache.keep_warm(load, range(keys), every=1_800, concurrency=64) as job:
                while job.figures.refreshed < keys:
                    await asyncio.sleep(0.01)
                # The work of a round, without its pauses.
                work: Any = job._runner._rounds._round
                found["round, in memory"] = await _compared(work, lambda: cache.get_many("near", names), rounds)

                async def forgotten_round() -> None:
                    cache._engine.state.memory.reset()
                    await work()

                async def forgotten_reads() -> None:
                    far._engine.state.memory.reset()
                    await far.get_many("near", names)

                found["round, from Redis"] = await _compared(forgotten_round, forgotten_reads, rounds)

                @far.cached("near", ttl=3_600, key="{number}")
                async def hit(number: int) -> dict[str, Any]:
                    return {"number": number}

                def hits(function: Any) -> Turn:
                    async def turn() -> None:
                        for _ in range(_HITS):
                            await function(1)

                    return turn

                await hit(1)
                await load(1)
                found[f"{_HITS:,} hits beside a job"] = await _compared(hits(load), hits(hit), rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(f"{options.keys:,} keys | CPU, ms | ratio")
    for name, (taken, ratio) in asyncio.run(measure(options.keys, options.rounds)).items():
        print(f"{name} | {taken * 1000:.2f} | {ratio:.2f}")


if __name__ == "__main__":
    main()
