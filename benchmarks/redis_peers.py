"""The contenders of hits in Redis: clients and caches, as their documentation says to use them best.

Each reads the same small dict under a thousand names of its own, and decodes it. The clients with a pool get one of
fifty connections that callers wait for: measured, the best of what they offer, and none of them fails at concurrency
1000.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

import msgpack
import redis.asyncio

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, SMALL_DICT, Plan
from benchmarks.raw import RawClient
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, Namespace

__all__ = [
    "CONNECTIONS", "KEYS", "NO_L1", "PACKED", "Get", "aiocache_client", "cashews_client", "connected", "contenders",
    "django_cache", "glide_client",
]  # fmt: skip

Get = Callable[[str], Awaitable[Any]]

NO_L1: Final = Namespace("exchange", ttl=3600, l1=False)
"""The namespace of ours in which every get goes to Redis."""

CONNECTIONS: Final = 50
"""Connections in each pool."""

KEYS: Final = [f"{PREFIX}:quote:{number}" for number in range(1000)]
PACKED: Final[bytes] = msgpack.packb(SMALL_DICT)


async def contenders(plan: Plan, table: Table, stack: AsyncExitStack, *, raw: bool = True) -> dict[str, Get]:
    """Return how each contender gets a value, by name; they live as long as the stack.

    :param raw: whether the bare protocol takes part, which is no cache but a ceiling.
    """
    found: dict[str, Get] = {}
    offered: Mapping[str, Callable[[Plan], AbstractAsyncContextManager[Get]]] = {
        OURS: _ours,
        "aiocache": _aiocache,
        "cashews": _cashews,
        "django-cachex": _django_cachex,
        "redis.asyncio": _redis_py,
        "valkey-glide": _glide,
    }
    for name, offer in offered.items():
        with if_installed(table, name):
            found[name] = await stack.enter_async_context(offer(plan))
    if raw:
        found["raw + msgpack"] = await stack.enter_async_context(_raw(plan, msgpack.unpackb))
        found["raw"] = await stack.enter_async_context(_raw(plan, bytes))
    return found


@asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[Get]:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        await manager.set_many(NO_L1, dict.fromkeys(KEYS, SMALL_DICT))
        yield partial(manager.get, NO_L1)


@asynccontextmanager
async def aiocache_client(plan: Plan) -> AsyncIterator[Any]:
    """Yield a cache of aiocache in Redis.

    :raises ImportError: where it is not installed.
    """
    import aiocache
    from aiocache.serializers import JsonSerializer

    # Its MsgPackSerializer cannot read its own bytes back from Redis.
    cache = aiocache.RedisCache(
        endpoint=plan.host, port=plan.port, serializer=JsonSerializer(), namespace=f"{PREFIX}-aiocache",
        connection_pool_class=redis.asyncio.BlockingConnectionPool, pool_max_size=CONNECTIONS,
    )  # fmt: skip
    try:
        yield cache
    finally:
        # Its own `close` calls what redis-py has deprecated, and leaves the pool open.
        await cache.client.connection_pool.disconnect()


@asynccontextmanager
async def _aiocache(plan: Plan) -> AsyncIterator[Get]:
    async with aiocache_client(plan) as cache:
        await cache.multi_set([(key, SMALL_DICT) for key in KEYS], ttl=3600)
        yield cache.get


@asynccontextmanager
async def cashews_client(plan: Plan) -> AsyncIterator[Any]:
    """Yield a cache of cashews in Redis, without its memory.

    :raises ImportError: where it is not installed.
    """
    import cashews

    cache = cashews.Cache()
    cache.setup(plan.url, client_side=False, max_connections=CONNECTIONS)
    try:
        yield cache
    finally:
        await cache.close()


@asynccontextmanager
async def _cashews(plan: Plan) -> AsyncIterator[Get]:
    async with cashews_client(plan) as cache:
        await cache.set_many({f"{PREFIX}-cashews:{key}": SMALL_DICT for key in KEYS}, expire=3600)
        yield lambda key: cache.get(f"{PREFIX}-cashews:{key}")


@asynccontextmanager
async def _django_cachex(plan: Plan) -> AsyncIterator[Get]:
    cache = django_cache(plan)
    await cache.aset_many(dict.fromkeys(KEYS, SMALL_DICT), timeout=3600)
    yield cache.aget


def django_cache(plan: Plan) -> Any:
    """Return Django's cache with the backend of django-cachex.

    :raises ImportError: where it is not installed: it needs a newer Python than this project does.
    """
    import django_cachex.cache
    from django.conf import settings
    from django.core.cache import CacheHandler

    backend = {
        "BACKEND": f"{django_cachex.cache.RedisCache.__module__}.RedisCache",
        "LOCATION": plan.url,
        "KEY_PREFIX": f"{PREFIX}-django",
        "OPTIONS": {
            "pool_class": "redis.BlockingConnectionPool",
            "async_pool_class": "redis.asyncio.BlockingConnectionPool",
            "max_connections": CONNECTIONS,
        },
    }
    if not settings.configured:
        settings.configure(CACHES={"default": backend})
    return CacheHandler({"default": backend})["default"]


@asynccontextmanager
async def connected(plan: Plan) -> AsyncIterator["redis.asyncio.Redis"]:
    """Yield a plain client of redis-py."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(plan.url, max_connections=CONNECTIONS)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        yield client


@asynccontextmanager
async def _redis_py(plan: Plan) -> AsyncIterator[Get]:
    async with connected(plan) as client:
        await client.mset(dict.fromkeys(KEYS, PACKED))

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
    """Read what `_redis_py` has written."""
    async with glide_client(plan) as client:

        async def get(key: str) -> Any:
            return msgpack.unpackb(await client.get(key))

        yield get


@asynccontextmanager
async def glide_client(plan: Plan, **options: Any) -> AsyncIterator[Any]:
    """Yield a client of valkey-glide.

    :param options: of its configuration.
    :raises ImportError: where it is not installed: it has no wheels for some platforms.
    """
    import glide

    # What its client limits by default to 1000 is raised, so that nothing fails at concurrency 1000.
    config = glide.GlideClientConfiguration(
        [glide.NodeAddress(plan.host, plan.port)], request_timeout=5000, inflight_requests_limit=2000, **options
    )
    client = await glide.GlideClient.create(config)
    try:
        yield client
    finally:
        await client.close()
        # Its answers may still be on their way from its own thread.
        await asyncio.sleep(0)
