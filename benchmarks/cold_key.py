"""A stampede: eight processes with a hundred tasks each ask for one key that nobody has, at the same moment.

What counts is how often the loader ran. `benchmarks.peer` is what runs in each process.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

import redis.asyncio

from benchmarks.peer import Peer, peer
from benchmarks.plan import PREFIX, Plan
from benchmarks.redis_peers import connected
from benchmarks.stampede import CONTENDERS, LOADS
from benchmarks.tables import Table

__all__ = ["cold_key"]

_PROCESSES: Final = 8
_TASKS: Final = 100
_AHEAD: Final = 0.1
"""Seconds until all begin: by then each process knows when."""


def cold_key(plan: Plan) -> Table:
    """Return how often a cold key is loaded when many ask for it at once."""
    title = f"Loads of one cold key for {_PROCESSES} processes x {_TASKS} tasks"
    table = Table("cold-key", title, "loads", less_is_better=True)
    table.note("The load takes 50 ms. aiocache: its `cached_stampede`; by hand: GET, load, SET.")
    table.note("cashews is left out: the waiters of its `locked` poll and take the lock in turn, which takes minutes.")
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(plan))
        processes = [await stack.enter_async_context(peer("stampede", plan.host, plan.port)) for _ in range(_PROCESSES)]
        offered = (await processes[0].ask("contenders")).split(",")
        for name in CONTENDERS:
            if name not in offered:
                table.note(f"{name} is not installed on this Python: left out.")
        # One takes a third of a second; more rounds than a few would show nothing new.
        for name in plan.turns(offered, "", min(plan.rounds, 5)):
            loads, failed = await _loads(client, processes, name)
            table.add("loads", name, loads)
            if failed:
                table.note(f"{name} raised an error of its own for some of the callers.")


async def _loads(client: "redis.asyncio.Redis", processes: list[Peer], name: str) -> tuple[int, int]:
    """Return how often the key was loaded, and how many callers got an error."""
    # A key that no other round has met.
    key = f"{PREFIX}:{time.time_ns()}"
    at = time.monotonic() + _AHEAD
    answers = await asyncio.gather(
        *(process.ask("storm", CONTENDERS.index(name), key, _TASKS, at) for process in processes)
    )
    return int(await client.get(f"{LOADS}:{key}") or 0), sum(map(int, answers))
