"""A Redis Cluster: what a key costs at the client, and what callers notice when a primary is killed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any, Final

from benchmarks.cluster_peers import RAW, ClusterCalls, cluster_contenders
from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.tables import Table
from magnus_cache.testing import EmbeddedCluster

__all__ = ["GETS", "cluster_calls"]

GETS: Final = (1, 10, 100, 1000)
"""How many tasks get values at a time."""

_KEYS: Final = 1_000
_EACH: Final = {1: 300, 10: 60, 100: 12, 1000: 2}
"""Gets of each task in one turn."""

_LONG_TURN: Final = 0.05
"""Plans with shorter turns are in a hurry: each failover takes some seconds."""

_TIMEOUT: Final = 1.0
"""Seconds after which the nodes of the failover agree that a primary is gone."""

_PATIENCE: Final = 30.0
_STEADY: Final = 1.0
"""Seconds without an error after which a shard counts as well again."""


def cluster_calls(plan: Plan) -> tuple[Table, Table]:
    """Return the microseconds of CPU time for each key, and what became of callers when a primary was killed."""
    cost = Table("cluster", "A cluster of three primaries: CPU time a key", "us", less_is_better=True)
    cost.note(
        "Of this process, the servers' not counted. 'raw' has a connection to each node and decodes what it reads."
    )
    cost.note("get_many and its like: 1,000 keys in one call, or in one pipeline where there is no such call.")
    with EmbeddedCluster(3, 0) as cluster:
        asyncio.run(_measure(plan, cluster, cost))
    failover = Table("cluster-failover", "A primary is killed: calls that raise", "", less_is_better=True)
    failover.note(f"cluster-node-timeout: {_TIMEOUT:g} s. The gap is the longest time between two calls that worked.")
    failover.note("A call that works has written a value and read it. Ours raise no error: they miss meanwhile.")
    asyncio.run(_fail_over(plan, failover))
    return cost, failover


async def _measure(plan: Plan, cluster: EmbeddedCluster, table: Table) -> None:
    async with AsyncExitStack() as stack:
        contenders = await cluster_contenders(cluster, table, stack)
        keys = [f"key:{number}" for number in range(_KEYS)]
        for name, calls in contenders.items():
            if name != RAW:
                await _each(calls.set, keys)
            for key in keys[:50]:
                checked(await calls.get(key), SMALL_DICT, name)
            await _gets(calls, keys, max(GETS), 1)
        settle()
        fresh = count(time.time_ns())
        for name in plan.turns(contenders):
            calls = contenders[name]
            for tasks in GETS:
                table.add(f"get, {tasks}", name, await _gets(calls, keys, tasks, _EACH[tasks]))
            number = next(fresh)
            await _many(table, name, calls, keys, [f"many:{number}:{key}" for key in range(_KEYS)])


async def _each(call: Callable[[str], Awaitable[Any]], keys: list[str]) -> None:
    for start in range(0, len(keys), 50):
        await asyncio.gather(*map(call, keys[start : start + 50]))


async def _gets(calls: ClusterCalls, keys: list[str], tasks: int, each: int) -> float:
    """Return microseconds of CPU time a get, while so many tasks make `each` of them."""

    async def reader(start: int) -> None:
        for number in range(start, start + each):
            await calls.get(keys[number % len(keys)])

    readers = [reader(task * len(keys) // tasks) for task in range(tasks)]
    began = time.process_time_ns()
    await asyncio.gather(*readers)
    return (time.process_time_ns() - began) / (tasks * each) / 1000


async def _many(table: Table, name: str, calls: ClusterCalls, keys: list[str], fresh: list[str]) -> None:
    columns = {"get_many": calls.get_many, "set_many": calls.set_many, "delete_many": calls.delete_many}
    for column, call in columns.items():
        some = keys if column == "get_many" else fresh
        if call is None:
            if column == "set_many" and name != RAW:
                # So that it has something to delete.
                await _each(calls.set, some)
            continue
        began = time.process_time_ns()
        found = await call(some)
        table.add(column, name, (time.process_time_ns() - began) / len(some) / 1000)
        if column == "get_many":
            checked(found, len(some), name)


# -- failover ---------------------------------------------------------------------------------------------------


async def _fail_over(plan: Plan, table: Table) -> None:
    with EmbeddedCluster(3, 3, node_timeout=_TIMEOUT) as cluster:
        async with AsyncExitStack() as stack:
            names = list(await cluster_contenders(cluster, table, stack, raw=False))
        if plan.turn < _LONG_TURN:
            table.note("A run in a hurry: the first two alone.")
            del names[2:]
        for name in names:
            plan.progress(f"failover: {name}")
            # Each has a client of its own: one that has been through a failover may be better prepared.
            async with AsyncExitStack() as stack:
                calls = (await cluster_contenders(cluster, table, stack, raw=False))[name]
                errors, gap = await _killed(cluster, calls)
            table.add("errors", name, errors)
            table.add("gap, ms", name, gap * 1000)
            await asyncio.to_thread(cluster.restore)


async def _killed(cluster: EmbeddedCluster, calls: ClusterCalls) -> tuple[int, float]:
    """Kill the primary of some keys while all are read and written; return the failed calls, and the longest gap."""
    keys = [f"failover:{number}" for number in range(100)]
    await _each(calls.set, keys)
    primary = cluster.owner(f"{PREFIX}:{keys[0]}")
    killing = asyncio.create_task(asyncio.to_thread(cluster.kill, primary))
    began = time.monotonic()
    last, gap, errors, failed_at = dict.fromkeys(keys, began), 0.0, 0, began
    while (now := time.monotonic()) < began + _PATIENCE:
        for one in keys[:: len(keys) // 20]:
            try:
                async with asyncio.timeout(10):
                    await calls.set(one)
                    works = await calls.get(one) == SMALL_DICT
            except Exception:  # whatever it raises, its caller has to deal with it
                errors += 1
                works = False
            now = time.monotonic()
            if works:
                gap, last[one] = max(gap, now - last[one]), now
            else:
                failed_at = now
        if now > max(failed_at, began + 2 * _TIMEOUT) + _STEADY:
            break
        await asyncio.sleep(0.005)
    await killing
    return errors, gap
