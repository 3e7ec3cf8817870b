"""How long a get takes when gets arrive at a steady rate, however many still wait: the whole distribution.

A closed loop, in which the next get waits for the last one, hides the gets that a stall delays. Here a burst arrives
every few milliseconds, as a web page asks for several values at a time. A burst that begins late because the loop was
busy is measured from when it was due.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.plan import SMALL_DICT, Plan, checked, settle
from benchmarks.redis_peers import KEYS, Get, contenders
from benchmarks.tables import Table

__all__ = ["latencies"]

_BURST: Final = 20
_INTERVAL: Final = 0.01
_LONGER: Final = 3
"""A turn is so many times that of others: a 99.9th percentile needs thousands of gets."""

_SHORTEST: Final = 0.5
"""Seconds of a turn at least."""

_COLUMNS: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
_POINTS: Final = (0.0, *(float(percent) for percent in range(1, 100)), 99.5, 99.9, 99.95, 99.99)


def latencies(plan: Plan) -> Table:
    """Return percentiles of the microseconds that a get takes."""
    rate = round(_BURST / _INTERVAL)
    title = f"Latency of an L2 hit at {rate:,} gets a second, {_BURST} at a time"
    table = Table("latency", title, "us", less_is_better=True)
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        taking_part = await contenders(plan, table, stack, raw=False)
        for name, get in taking_part.items():
            for key in KEYS[:100]:
                checked(await get(key), SMALL_DICT, name)
            await _open_loop(get, 0.2 * plan.turn)
        settle()
        seconds = max(_SHORTEST, _LONGER * plan.turn) if plan.turn >= _INTERVAL else plan.turn
        everything: dict[str, list[float]] = {name: [] for name in taking_part}
        for name in plan.turns(taking_part):
            found = await _open_loop(taking_part[name], seconds)
            everything[name] += found
            for column, percent in _COLUMNS.items():
                if _tells(found, percent) or column == "p50":
                    table.add(column, name, _percentile(sorted(found), percent))
        for name, found in everything.items():
            ordered = sorted(found)
            points = [point for point in _POINTS if _tells(ordered, point)]
            table.distributions[name] = [(point, _percentile(ordered, point)) for point in points]


async def _open_loop(get: Get, seconds: float) -> list[float]:
    """Return the microseconds that each get took while bursts arrived on time."""
    found: list[float] = []

    async def one(key: str, due: float) -> None:
        await get(key)
        found.append((time.perf_counter() - due) * 1e6)

    tasks: list[asyncio.Task[None]] = []
    start = time.perf_counter()
    for burst in range(max(1, round(seconds / _INTERVAL))):
        due = start + burst * _INTERVAL
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        # A timer is never exact. Lateness beyond that comes from a busy loop, and counts.
        begun = due if now - due > _INTERVAL / 2 else now
        first = burst * _BURST
        tasks += [asyncio.create_task(one(KEYS[(first + n) % len(KEYS)], begun)) for n in range(_BURST)]
    await asyncio.gather(*tasks)
    return found


def _tells(found: list[float], percent: float) -> bool:
    """Return whether there are enough values for a percentile: at least two lie above it."""
    return (1 - percent / 100) * len(found) >= 2


def _percentile(ordered: list[float], percent: float) -> float:
    """Return the value below which so many percent of sorted values are."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
