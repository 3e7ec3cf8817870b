"""What a recording of accesses costs, and how fast it is replayed: ``python -m benchmarks.recordings``.

The first rows compare a cache that is recorded with one that is not, in rounds of one process that take turns, by the
CPU time of the process; the writer's thread is in it. A ratio is the median of the rounds' ratios. The row without a
recording compares a cache that was recorded before with one that never was. The last rows replay an access log of the
given length, once for each candidate.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.observers import HITS, Turn, gets, hits
from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.simulation import Candidate, simulate

__all__ = ["measure", "text"]

_MISSES: Final = 400
_KEYS: Final = 20_000


def _misses(cache: AsyncCacheManager) -> Turn:
    count = iter(range(10**9))

    async def load() -> str:
        return "v"

    async def turn() -> None:
        for _ in range(_MISSES // 100):
            await asyncio.gather(*(cache.get_or_set("missed", next(count), load) for _ in range(100)))

    return turn


_ROWS: Final[dict[str, Callable[[AsyncCacheManager], Turn]]] = {
    "hit of a function": hits, "`get` in memory": gets, "100 misses": _misses,
}  # fmt: skip


async def _ratio(one: Turn, other: Turn, rounds: int) -> tuple[float, float]:
    """Return the CPU time of one turn in that of another, and the microseconds that a turn takes longer."""
    ratios, more = list[float](), list[float]()
    for number in range(rounds + 1):
        took: dict[Turn, int] = {}
        for turn in (one, other) if number % 2 else (other, one):
            began = time.process_time_ns()
            await turn()
            took[turn] = time.process_time_ns() - began
        ratios.append(took[one] / took[other])
        more.append((took[one] - took[other]) / 1_000)
    # The first round fills the caches of both.
    return statistics.median(ratios[1:]), statistics.median(more[1:])


async def _costs(url: str, rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for recorded in (False, True):
        for name, make in _ROWS.items():
            one, other = AsyncCacheManager(redis_url=url, prefix="one"), AsyncCacheManager(redis_url=url, prefix="two")
            async with one, other:
                for cache in (one, other):
                    await cache.set("near", "k", "k")
                with tempfile.TemporaryDirectory() as folder:
                    async with one.record_accesses(folder) as recording:
                        if not recorded:
                            await recording.aclose()
                        ratio, more = await _ratio(make(one), make(other), rounds)
            each = more / (_MISSES if make is _misses else HITS)
            found[f"{name}, {'recorded' if recorded else 'recorded before'}"] = {"ratio": ratio, "microseconds": each}
    return found


async def _record(folder: Path, accesses: int) -> int:
    """Record accesses of a skewed distribution; return the bytes of the files."""
    rnd = random.Random(1)
    async with AsyncCacheManager(redis_enabled=False, l1_max_entries=5_000) as cache, cache.record_accesses(folder):

        @cache.cached("t", ttl=3_600, key="{key}")
        async def load(key: int) -> str:
            return str(key)

        for number in range(accesses):
            await load(int(rnd.paretovariate(0.6)) % _KEYS)
            if number % 20_000 == 0:
                # The writer takes its turn, as it does in a program that waits now and then.
                await asyncio.sleep(0.3)
    return sum(file.stat().st_size for file in folder.iterdir())


def _replays(accesses: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        size = asyncio.run(_record(Path(folder), accesses))
        found: dict[str, Any] = {"accesses": accesses, "bytes": size, "seconds": {}}
        began = time.process_time()
        result = simulate(folder)
        found["seconds"]["read, merge, and replay as recorded"] = time.process_time() - began
        found["agrees"] = result.agrees
        for policy in ("car", "tinylfu", "optimum"):
            began = time.process_time()
            simulate(folder, [Candidate(l1_max_entries=2_000, policy=policy)])
            took = time.process_time() - began - found["seconds"]["read, merge, and replay as recorded"]
            found["seconds"][f"one more candidate, {policy}"] = took
    return found


def measure(rounds: int, accesses: int) -> dict[str, Any]:
    """Return the costs by row, and the seconds of replays."""
    gc.collect()
    gc.freeze()
    with EmbeddedServer() as server:
        costs = asyncio.run(_costs(server.url, rounds))
    return {"rounds": rounds, "costs": costs, "replays": _replays(accesses)}


def text(found: dict[str, Any]) -> str:
    """Return tables of the figures."""
    lines = ["| Call | With / without | Microseconds more |", "|---|---|---|"]
    lines += (f"| {name} | {row['ratio']:.2f} | {row['microseconds']:.2f} |" for name, row in found["costs"].items())
    replays = found["replays"]
    lines += ["", f"| {replays['accesses']:,} accesses, {replays['bytes']:,} bytes | Seconds |", "|---|---|"]
    lines += (f"| {name} | {seconds:.1f} |" for name, seconds in replays["seconds"].items())
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--accesses", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = measure(options.rounds, options.accesses)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(text(found))


if __name__ == "__main__":
    main()
