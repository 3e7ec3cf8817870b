"""A miss (look, load, store) and a set, beside GET and SET of redis-py, on the clock and in CPU time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import msgpack

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, settle
from benchmarks.redis_peers import connected
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, Namespace

__all__ = ["L1_OFF", "misses"]

L1_OFF: Final = f"{OURS}, L1 off"

_PEER: Final = "redis.asyncio GET, SET"
_CONCURRENCY: Final = (1, 100)
_TTL: Final = 60

Access = Callable[[str], Awaitable[Any]]


def misses(plan: Plan) -> Table:
    """Return the microseconds of a miss, with a loader that costs nothing, and of a set, by concurrent tasks."""
    table = Table("miss", "A miss (look, load, store) and a set, by concurrent tasks", "us", less_is_better=True)
    table.note("A miss takes three exchanges: the look, the lease that has the fleet load once, and the store.")
    table.note(f"{_PEER}: a miss is GET and SET, without a lease; a set is SET.")
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX) as manager, connected(plan) as client:
        near, far = Namespace("missed", ttl=_TTL), Namespace("missed-far", ttl=_TTL, l1=False)

        async def load() -> dict[str, object]:
            return SMALL_DICT

        async def by_hand(key: str) -> Any:
            raw = await client.get(key)
            if raw is not None:
                return msgpack.unpackb(raw)
            value = await load()
            await client.set(key, msgpack.packb(value), ex=_TTL)
            return value

        async def set_by_hand(key: str) -> Any:
            return await client.set(key, msgpack.packb(SMALL_DICT), ex=_TTL)

        kinds: dict[str, dict[str, Access]] = {
            "miss": {
                OURS: lambda key: manager.get_or_set(near, key, load),
                L1_OFF: lambda key: manager.get_or_set(far, key, load),
                _PEER: by_hand,
            },
            "set": {
                OURS: lambda key: manager.set(near, key, SMALL_DICT),
                L1_OFF: lambda key: manager.set(far, key, SMALL_DICT),
                _PEER: set_by_hand,
            },
        }
        # From the clock: no key of an earlier run is met.
        fresh = count(time.time_ns())
        for kind, contenders in kinds.items():
            for concurrency in _CONCURRENCY:
                await _compare(plan, table, f"{kind}, {concurrency}", contenders, concurrency, fresh)


async def _compare(
    plan: Plan, table: Table, column: str, contenders: dict[str, Access], concurrency: int, fresh: "count[int]"
) -> None:
    counts = {}
    for name, access in contenders.items():
        await _seconds(access, fresh, concurrency, 2)  # opens connections
        clock, _ = await _seconds(access, fresh, concurrency, 4)
        counts[name] = max(1, round(plan.turn / clock))
    settle()
    for name in plan.turns(contenders, f"{column} tasks"):
        clock, cpu = await _seconds(contenders[name], fresh, concurrency, counts[name])
        table.add(column, name, clock / concurrency * 1e6)
        table.add(f"{column}, CPU", name, cpu / concurrency * 1e6)


async def _seconds(access: Access, fresh: "count[int]", concurrency: int, each: int) -> tuple[float, float]:
    """Return the seconds, on the clock and of CPU time, from one access to the next of each of `concurrency` tasks."""

    async def task() -> None:
        for _ in range(each):
            await access(f"{PREFIX}:missed:{next(fresh)}")

    start, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(task() for _ in range(concurrency)))
    return (time.perf_counter() - start) / each, (time.process_time() - used) / each
