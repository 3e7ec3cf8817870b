"""The first get: of a process, which imports all that it needs, and of a further client of the same process."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import redis.asyncio

from benchmarks.plan import PREFIX, Plan, settle
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager

__all__ = ["CLIENT", "CPU", "GET", "IMPORT", "PROCESS", "first_get"]

PROCESS: Final = "process"
"""All that a process does until its first get has returned."""

IMPORT: Final = "import, make"
"""Of that, until the client is made: what is imported late, and the settings, are a part of it."""

GET: Final = "connect, get"
"""The rest."""

CLIENT: Final = "next client"
"""The same in a process that has made such a client before."""

CPU: Final = "{}, CPU"
"""The columns of CPU time."""

_PEER: Final = "redis.asyncio"
_AGAIN: Final = 10
"""First gets of a further client in a round: each takes a millisecond or two."""

_PROGRAM: Final = """
import time
moments = [(time.perf_counter(), time.process_time())]
def moment():
    moments.append((time.perf_counter(), time.process_time()))
import asyncio
{imported}
async def main():
    client = {client}
    moment()
    await client.get({key})
    moment()
    await client.aclose()
asyncio.run(main())
import json
print(json.dumps(moments))
"""

_Taken = tuple[float, float]
"""Seconds on the clock, and of CPU time."""


def first_get(plan: Plan) -> Table:
    """Return the milliseconds until the first get has returned: it connects meanwhile."""
    table = Table("first-get", "The first get of a process, and of a further client", "ms", less_is_better=True)
    table.note(f"{PROCESS}: all of a new process but the start of Python, so {IMPORT}, and {GET}.")
    table.note(f"{CLIENT}: made and asked in a process that has made such a client before.")
    programs = _programs(plan)
    for program in programs.values():
        _run(program)  # writes the byte code, and lets the server be known to the fleet
    for name in plan.turns(programs, "processes"):
        made, got = _run(programs[name])
        _add(table, IMPORT, name, made)
        _add(table, GET, name, got)
        _add(table, PROCESS, name, (made[0] + got[0], made[1] + got[1]))
    asyncio.run(_measure_next_clients(plan, table))
    return table


def _add(table: Table, column: str, contender: str, taken: _Taken) -> None:
    table.add(column, contender, taken[0] * 1000)
    table.add(CPU.format(column), contender, taken[1] * 1000)


def _programs(plan: Plan) -> dict[str, str]:
    return {
        OURS: _PROGRAM.format(
            imported="from magnus_cache import AsyncCacheManager",
            client=f"AsyncCacheManager(redis_url={plan.url!r}, prefix={PREFIX!r})",
            key="'first', 'key'",
        ),
        _PEER: _PROGRAM.format(
            imported="import redis.asyncio", client=f"redis.asyncio.Redis.from_url({plan.url!r})", key="'first'"
        ),
    }


def _run(program: str) -> tuple[_Taken, _Taken]:
    """Run a program in a new process; return what it took to make the client, and to connect and get."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=root)
    start, made, got = json.loads(done.stdout)
    return (made[0] - start[0], made[1] - start[1]), (got[0] - made[0], got[1] - made[1])


async def _measure_next_clients(plan: Plan, table: Table) -> None:
    contenders: dict[str, Callable[[], Awaitable[_Taken]]] = {
        OURS: lambda: _first(lambda: AsyncCacheManager(redis_url=plan.url, prefix=PREFIX), "first", "key"),
        _PEER: lambda: _first(lambda: redis.asyncio.Redis.from_url(plan.url), "first"),
    }
    for first in contenders.values():
        await first()
    settle()
    for name in plan.turns(contenders, CLIENT):
        taken = [await contenders[name]() for _ in range(_AGAIN)]
        clock, cpu = (statistics.median(each) for each in zip(*taken, strict=True))
        _add(table, CLIENT, name, (clock, cpu))


async def _first(make: Callable[[], Any], *key: str) -> _Taken:
    began, used = time.perf_counter(), time.process_time()
    async with make() as client:
        await client.get(*key)
        return time.perf_counter() - began, time.process_time() - used
