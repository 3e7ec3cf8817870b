"""How long a small read takes that is begun right behind a large one, by the size of the large value.

Both values are of one namespace. Ours reads them through two of the connections that it keeps for large values,
redis-py through two connections of a pool. So the small read waits for the server and for the event loop alone.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple

import msgpack

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.redis_peers import PACKED, connected
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, Namespace

__all__ = ["SIZES", "head_of_line"]

SIZES: Final = {"64 KB": 1 << 16, "1 MB": 1 << 20, "16 MB": 1 << 24}
"""The large values, by the column that shows them."""

_FAR: Final = Namespace("head-of-line", ttl=3600, l1=False, max_value_bytes=1 << 25)
_LEAST: Final = 3
"""Small reads of a turn at least, however long the large ones take."""


class _Reads(NamedTuple):
    """How one contender reads.

    :ivar small: reads the small value.
    :ivar large: reads the large value of a size.
    """

    small: Callable[[], Awaitable[Any]]
    large: Callable[[str], Awaitable[Any]]


def head_of_line(plan: Plan) -> Table:
    """Return the microseconds of a small read behind a large one, by the size of the large value."""
    table = Table("head-of-line", "A small read right behind a large one", "us", less_is_better=True)
    table.note("The large values are bytes that nothing compresses; garbage collection is off.")
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        contenders = {
            OURS: await stack.enter_async_context(_ours(plan)),
            "redis.asyncio": await stack.enter_async_context(_redis_py(plan)),
        }
        for name, reads in contenders.items():
            checked(await reads.small(), SMALL_DICT, name)
            for column, size in SIZES.items():
                # Its size is known from now on, and so is the connection that it comes through.
                checked(len(await reads.large(column)), size, name)
        settle()
        gc.disable()
        try:
            for column in SIZES:
                for name in plan.turns(contenders, f"behind {column}"):
                    table.add(column, name, await _behind(contenders[name], column, plan.turn))
        finally:
            gc.enable()


async def _behind(reads: _Reads, column: str, seconds: float) -> float:
    """Return the microseconds of the small read, as the median of a turn."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < _LEAST or time.perf_counter() < end:
        large = asyncio.ensure_future(reads.large(column))
        # It has sent its request when it first waits.
        await asyncio.sleep(0)
        begun = time.perf_counter()
        await reads.small()
        took.append((time.perf_counter() - begun) * 1e6)
        await large
    return statistics.median(took)


def _bytes(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[_Reads]:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        await manager.set(_FAR, "small", SMALL_DICT)
        for column, size in SIZES.items():
            await manager.set(_FAR, column, _bytes(size))
        try:
            yield _Reads(lambda: manager.get(_FAR, "small"), lambda column: manager.get(_FAR, column))
        finally:
            await manager.clear(_FAR)


@asynccontextmanager
async def _redis_py(plan: Plan) -> AsyncIterator[_Reads]:
    name = f"{PREFIX}:head-of-line"
    async with connected(plan) as client:
        await client.set(name, PACKED)
        for column, size in SIZES.items():
            await client.set(f"{name}:{column}", _bytes(size))

        async def small() -> Any:
            return msgpack.unpackb(await client.get(name))

        async def large(column: str) -> Any:
            return await client.get(f"{name}:{column}")

        try:
            yield _Reads(small, large)
        finally:
            await client.unlink(name, *(f"{name}:{column}" for column in SIZES))
