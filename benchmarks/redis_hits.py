"""Hits in Redis from coroutines: a real exchange for every get, decoding included.

Every contender reads the same small dict under a thousand names of its own. The clients with a pool get one of fifty
connections that callers wait for: measured, the best of what they offer, and none of them fails at concurrency 1000.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

import aiocache
import cashews
import msgpack
import redis.asyncio
from aiocache.serializers import JsonSerializer

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.raw import RawClient
from benchmarks.tables import OURS, Table, rotations
from magnus_cache import AsyncCacheManager, Namespace

__all__ = ["CONNECTIONS", "NO_L1", "async_redis_hits", "connected"]

Get = Callable[[str], Awaitable[Any]]

NO_L1: Final = Namespace("exchange", ttl=3600, l1=False)
"""The namespace of ours in which every get goes to Redis."""

CONNECTIONS: Final = 50
"""Connections in each pool."""

_CONCURRENCY: Final = (1, 10, 100, 1000)
_KEYS: Final = [f"{PREFIX}:quote:{number}" for number in range(1000)]
_PACKED: Final[bytes] = msgpack.packb(SMALL_DICT)


def async_redis_hits(plan: Plan) -> Table:
    """Return thousands of gets a second, by number of concurrent tasks."""
    table = Table("l2-async", "L2 hits by concurrent tasks", "k/s", less_is_better=False)
    table.notes.append(
        "'raw' hands out bytes, all others decode; the budget for the share of raw is about 'raw + msgpack'."
    )
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        contenders = {
            OURS: await stack.enter_async_context(_ours(plan)),
            "aiocache": await stack.enter_async_context(_aiocache(plan)),
            "cashews": await stack.enter_async_context(_cashews(plan)),
            "redis.asyncio": await stack.enter_async_context(_redis_py(plan)),
            "raw + msgpack": await stack.enter_async_context(_raw(plan, msgpack.unpackb)),
            "raw": await stack.enter_async_context(_raw(plan, bytes)),
        }
        try:
            contenders["valkey-glide"] = await stack.enter_async_context(_glide(plan))
        except ImportError:
            table.notes.append("valkey-glide is not installed: left out.")
        for name, get in contenders.items():
            for key in _KEYS:
                checked(await get(key), _PACKED if name == "raw" else SMALL_DICT, name)
        for concurrency in _CONCURRENCY:
            await _compare(plan, table, contenders, concurrency)


async def _compare(plan: Plan, table: Table, contenders: dict[str, Get], concurrency: int) -> None:
    counts = {name: await _calibrated(get, concurrency, plan.turn) for name, get in contenders.items()}
    settle()
    for name in rotations(list(contenders), plan.rounds):
        table.add(str(concurrency), name, await _rate(contenders[name], concurrency, counts[name]) / 1000)


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
    start = task * len(_KEYS) // concurrency
    return [_KEYS[number % len(_KEYS)] for number in range(start, start + each)]


async def _reader(get: Get, keys: list[str]) -> None:
    for key in keys:
        await get(key)


# -- the contenders -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[Get]:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        await manager.set_many(NO_L1, dict.fromkeys(_KEYS, SMALL_DICT))
        yield partial(manager.get, NO_L1)


@asynccontextmanager
async def _aiocache(plan: Plan) -> AsyncIterator[Get]:
    # Its MsgPackSerializer cannot read its own bytes back from Redis.
    cache = aiocache.RedisCache(
        endpoint=plan.host, port=plan.port, serializer=JsonSerializer(), namespace=f"{PREFIX}-aiocache",
        connection_pool_class=redis.asyncio.BlockingConnectionPool, pool_max_size=CONNECTIONS,
    )  # fmt: skip
    try:
        await cache.multi_set([(key, SMALL_DICT) for key in _KEYS], ttl=3600)
        yield cache.get
    finally:
        # Its own `close` calls what redis-py has deprecated, and leaves the pool open.
        await cache.client.connection_pool.disconnect()


@asynccontextmanager
async def _cashews(plan: Plan) -> AsyncIterator[Get]:
    cache = cashews.Cache()
    cache.setup(plan.url, client_side=False, max_connections=CONNECTIONS)
    try:
        await cache.set_many({f"{PREFIX}-cashews:{key}": SMALL_DICT for key in _KEYS}, expire=3600)
        yield lambda key: cache.get(f"{PREFIX}-cashews:{key}")
    finally:
        await cache.close()


@asynccontextmanager
async def connected(plan: Plan) -> AsyncIterator["redis.asyncio.Redis"]:
    """Yield a plain client of redis-py."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(plan.url, max_connections=CONNECTIONS)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        yield client


@asynccontextmanager
async def _redis_py(plan: Plan) -> AsyncIterator[Get]:
    async with connected(plan) as client:
        await client.mset(dict.fromkeys(_KEYS, _PACKED))

        async def get(key: str) -> Any:
            return msgpack.unpackb(await client.get(key))

        yield get


@asynccontextmanager
async def _raw(plan: Plan, decode: Callable[[Any], Any]) -> AsyncIterator[Get]:
    """Read what `_redis_py` has written."""
    async with await RawClient.connect(plan.host, plan.port) as client:
        if decode is bytes:
            yield client.get
            return

        async def get(key: str) -> Any:
            return decode(await client.get(key))

        yield get


@asynccontextmanager
async def _glide(plan: Plan) -> AsyncIterator[Get]:
    """Read what `_redis_py` has written.

    :raises ImportError: where it is not installed: it has no wheels for some platforms.
    """
    import glide

    config = glide.GlideClientConfiguration([glide.NodeAddress(plan.host, plan.port)], request_timeout=5000)
    client = await glide.GlideClient.create(config)
    try:

        async def get(key: str) -> Any:
            return msgpack.unpackb(await client.get(key))

        yield get
    finally:
        await client.close()
