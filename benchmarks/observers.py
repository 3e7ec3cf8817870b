"""What observers and the flight recorder cost: ``python -m benchmarks.observers``.

Each row compares a call of one cache with the same call of another one in the same process, in rounds that take turns,
by the CPU time of the process; a ratio is the median of the rounds' ratios. Redis runs on its own, and its time does
not count. The first rows compare a cache that someone observes with one that no one observes; the last ones compare a
cache with the flight recorder with one without (`recorder_keys=0`).
"""

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from magnus_cache import AsyncCacheManager, CacheEvent, Hit, LoadEnded, LoadStarted, Namespace
from magnus_cache.embedded import EmbeddedServer

__all__ = ["HITS", "Turn", "gets", "hits", "measure", "text"]

HITS: Final = 20_000
_EXCHANGES: Final = 400
_FAR: Final = Namespace("far", l1=False)

Turn = Callable[[], Awaitable[object]]


def _ignore(_: CacheEvent) -> None:
    pass


def hits(cache: AsyncCacheManager) -> Turn:
    """Return a turn of hits of a cached function."""

    @cache.cached("near", key="{key}")
    async def load(key: str) -> str:
        return key

    async def turn() -> None:
        for _ in range(HITS):
            await load("k")

    return turn


def gets(cache: AsyncCacheManager) -> Turn:
    """Return a turn of `get` of a value in memory."""

    async def turn() -> None:
        for _ in range(HITS):
            await cache.get("near", "k")

    return turn


def _reads(cache: AsyncCacheManager) -> Turn:
    async def turn() -> None:
        for _ in range(_EXCHANGES // 100):
            await asyncio.gather(*(cache.get(_FAR, f"k{number}") for number in range(100)))

    return turn


def _misses(cache: AsyncCacheManager) -> Turn:
    count = iter(range(10**9))

    async def load() -> str:
        return "v"

    async def turn() -> None:
        for _ in range(_EXCHANGES // 100):
            await asyncio.gather(*(cache.get_or_set("missed", next(count), load) for _ in range(100)))

    return turn


def _sets(cache: AsyncCacheManager) -> Turn:
    async def turn() -> None:
        for _ in range(_EXCHANGES // 100):
            await asyncio.gather(*(cache.set("written", f"k{number}", "v") for number in range(100)))

    return turn


def _single_sets(cache: AsyncCacheManager) -> Turn:
    async def turn() -> None:
        for number in range(_EXCHANGES):
            await cache.set("written", f"k{number}", "v")

    return turn


def _many(cache: AsyncCacheManager) -> Turn:
    values = {f"k{number}": "v" for number in range(2_000)}

    async def turn() -> None:
        await cache.set_many("many", values)

    return turn


def _deletes(cache: AsyncCacheManager) -> Turn:
    async def turn() -> None:
        for number in range(_EXCHANGES):
            await cache.delete("written", f"k{number}")

    return turn


_Kinds = tuple[type[CacheEvent], ...]
_OBSERVED: Final[dict[str, tuple[Callable[[AsyncCacheManager], Turn], _Kinds]]] = {
    "hit of a function, loads observed": (hits, (LoadStarted, LoadEnded)),
    "hit of a function, hits observed": (hits, (Hit,)),
    "`get` in memory, hits observed": (gets, (Hit,)),
    "100 reads through Redis, all observed": (_reads, ()),
    "100 misses, loads observed": (_misses, (LoadStarted, LoadEnded)),
    "100 misses, all observed": (_misses, ()),
}
_RECORDED: Final[dict[str, Callable[[AsyncCacheManager], Turn]]] = {
    "hit of a function": hits,
    "100 misses": _misses,
    "`set`": _single_sets,
    "100 `set` at a time": _sets,
    "`set_many` of 2,000": _many,
    "`delete`": _deletes,
}


async def _ratio(one: Turn, other: Turn, rounds: int) -> float:
    """Return the CPU time of one turn in that of another: the median of the ratios of rounds."""
    ratios: list[float] = []
    for number in range(rounds + 1):
        took: dict[Turn, int] = {}
        for turn in (one, other) if number % 2 else (other, one):
            began = time.process_time_ns()
            await turn()
            took[turn] = time.process_time_ns() - began
        ratios.append(took[one] / took[other])
    # The first round fills the caches of both.
    return statistics.median(ratios[1:])


async def _measured(url: str, rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, (kind, kinds) in _OBSERVED.items():
        one, other = AsyncCacheManager(redis_url=url, prefix="one"), AsyncCacheManager(redis_url=url, prefix="two")
        async with one, other:
            for cache in (one, other):
                await cache.set("near", "k", "k")
                await cache.set_many(_FAR, {f"k{number}": "v" for number in range(100)})
            one.observe(_ignore, *kinds)
            found[name] = await _ratio(kind(one), kind(other), rounds)
    for name, of in _RECORDED.items():
        one = AsyncCacheManager(redis_url=url, prefix="one", stats_interval=0)
        other = AsyncCacheManager(redis_url=url, prefix="two", stats_interval=0, recorder_keys=0)
        async with one, other:
            found[f"{name}, recorded"] = await _ratio(of(one), of(other), rounds)
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Return the ratios by row."""
    gc.collect()
    gc.freeze()
    with EmbeddedServer() as server:
        return {"rounds": rounds, "ratios": asyncio.run(_measured(server.url, rounds))}


def text(found: dict[str, Any]) -> str:
    """Return a table of the ratios."""
    lines = ["| Call | With / without |", "|---|---|"]
    lines += (f"| {name} | {ratio:.2f} |" for name, ratio in found["ratios"].items())
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(text(found))


if __name__ == "__main__":
    main()
