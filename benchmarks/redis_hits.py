"""Hits in Redis from coroutines: a real exchange for every get, decoding included."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.contenders import DEFAULT_LOOP, loops
from benchmarks.plan import SMALL_DICT, Plan, checked, settle
from benchmarks.redis_peers import KEYS, PACKED, Get, contenders
from benchmarks.tables import Table

__all__ = ["CONCURRENCY", "async_redis_hits"]

CONCURRENCY: Final = (1, 10, 100, 1000)

_FEW: Final = (1, 100)
_LONG_TURN: Final = 0.1
"""Plans with shorter turns are in a hurry: other loops than asyncio's own are measured at `_FEW` only."""

_CHECKED: Final = 100
"""Keys whose values are checked before anything is measured."""


def async_redis_hits(plan: Plan) -> Table:
    """Return thousands of gets a second, by number of concurrent tasks, on each event loop."""
    table = Table("l2-async", "L2 hits by concurrent tasks", "k/s", less_is_better=False)
    table.note("'raw' hands out bytes, all others decode; the budget for the share of raw is about 'raw + msgpack'.")
    for loop, factory in loops(table).items():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_measure(plan, table, loop))
    return table


async def _measure(plan: Plan, table: Table, loop: str) -> None:
    async with AsyncExitStack() as stack:
        taking_part = await contenders(plan, table, stack)
        for name, get in taking_part.items():
            for key in KEYS[:_CHECKED]:
                checked(await get(key), PACKED if name == "raw" else SMALL_DICT, name)
        for concurrency in CONCURRENCY if loop == DEFAULT_LOOP or plan.turn >= _LONG_TURN else _FEW:
            column = str(concurrency) if loop == DEFAULT_LOOP else f"{concurrency}, {loop}"
            await _compare(plan, table, taking_part, concurrency, column)


async def _compare(plan: Plan, table: Table, contenders: dict[str, Get], concurrency: int, column: str) -> None:
    counts = {name: await _calibrated(get, concurrency, plan.turn) for name, get in contenders.items()}
    settle()
    for name in plan.turns(contenders, f"{column} tasks"):
        table.add(column, name, await _rate(contenders[name], concurrency, counts[name]) / 1000)


async def _calibrated(get: Get, concurrency: int, turn: float) -> int:
    """Return how many gets of each task fill a turn. The first look only opens connections."""
    each = 2
    for share in (0.0, 0.25, 1.0):
        each = max(2, round(await _rate(get, concurrency, each) * turn * share / concurrency))
    return each


async def _rate(get: Get, concurrency: int, each: int) -> float:
    """Return gets a second while `concurrency` tasks make `each` of them, one after the other."""
    tasks = [_reader(get, _share(task, concurrency, each)) for task in range(concurrency)]
    start = time.perf_counter()
    await asyncio.gather(*tasks)
    return concurrency * each / (time.perf_counter() - start)


def _share(task: int, concurrency: int, each: int) -> list[str]:
    """Return the keys of one task; each begins elsewhere, so that they do not read the same value at a time."""
    start = task * len(KEYS) // concurrency
    return [KEYS[number % len(KEYS)] for number in range(start, start + each)]


async def _reader(get: Get, keys: list[str]) -> None:
    for key in keys:
        await get(key)
