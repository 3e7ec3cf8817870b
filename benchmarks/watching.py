"""What a consumer of `changes` costs those who write: ``python -m benchmarks.watching``.

Each row compares a call of a cache with the same call of another one in the same process, in rounds that take turns, by
the CPU time of the process and of Redis; a ratio is the median of the rounds' ratios. The first cache has one consumer,
which takes all that it is told in a thread of the same process; the second one has none. The last rows are the same
with two caches that have none: the noise. Redis' CPU time says nothing about hits in memory.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Final

import redis

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer

__all__ = ["measure", "text"]

Row = tuple[float, float]

_SETS: Final = 400
_KINDS: Final = ("`set`", "100 `set` at a time", "hit in memory of another namespace")


async def _turn(cache: AsyncCacheManager, kind: str) -> None:
    if kind == _KINDS[0]:
        for number in range(_SETS):
            await cache.set("watched", f"k{number}", "v")
    elif kind == _KINDS[1]:
        for _ in range(_SETS // 100):
            await asyncio.gather(*(cache.set("watched", f"k{number}", "v") for number in range(100)))
    else:
        for _ in range(10 * _SETS):
            await cache.get("other", "k")


def _clocks(raw: redis.Redis) -> tuple[float, float]:
    """Return the CPU seconds of this process and of Redis."""
    told = raw.info("cpu")
    return time.process_time(), float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


async def _ratios(caches: tuple[AsyncCacheManager, AsyncCacheManager], kind: str, raw: redis.Redis, rounds: int) -> Row:
    """Return the CPU times of one turn in those of another: the medians of the ratios of rounds."""
    found: list[Row] = []
    for number in range(rounds + 1):
        took: dict[AsyncCacheManager, Row] = {}
        for cache in caches if number % 2 else caches[::-1]:
            before = _clocks(raw)
            await _turn(cache, kind)
            after = _clocks(raw)
            took[cache] = after[0] - before[0], max(after[1] - before[1], 1e-6)
        one, other = (took[cache] for cache in caches)
        found.append((one[0] / other[0], one[1] / other[1]))
    # The first round connects both.
    processes, servers = zip(*found[1:], strict=True)
    return statistics.median(processes), statistics.median(servers)


async def _measured(server: EmbeddedServer, rounds: int) -> dict[str, Row]:
    found: dict[str, Row] = {}
    raw, url = redis.Redis(port=server.port), server.url
    for consumers in (1, 0):
        one, other = AsyncCacheManager(redis_url=url, prefix="one"), AsyncCacheManager(redis_url=url, prefix="two")
        async with one, other:
            for cache in (one, other):
                await cache.set("other", "k", "v")
            changes = one.sync.changes("watched")
            thread = threading.Thread(target=lambda it=changes: [None for _ in it])
            with changes if consumers else contextlib.nullcontext():
                if consumers:
                    thread.start()
                for kind in _KINDS:
                    found[f"{kind}, {consumers} consumer{'' if consumers else 's'}"] = await _ratios(
                        (one, other), kind, raw, rounds
                    )
            if consumers:
                thread.join()
    raw.close()
    return found


def measure(rounds: int = 15) -> dict[str, Row]:
    """Return the ratios of the CPU times of the process and of Redis for each row."""
    with EmbeddedServer() as server:
        return asyncio.run(_measured(server, rounds))


def text(found: dict[str, Row]) -> str:
    """Return the rows for people."""
    rows = [f"{name:<55}{process:8.2f}{server:8.2f}" for name, (process, server) in found.items()]
    return "\n".join([f"{'CPU time, in that of a cache without a consumer':<55}{'here':>8}{'Redis':>8}", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text(found))


if __name__ == "__main__":
    main()
