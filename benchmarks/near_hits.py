"""A get that the client answers from its own memory, which Redis keeps fresh: the near caches of the libraries."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Any, Final

import msgpack
import redis
from redis.cache import CacheConfig

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.redis_peers import PACKED, Get, glide_client
from benchmarks.tables import OURS, Table
from benchmarks.thread_peers import BlockingGet
from magnus_cache import AsyncCacheManager, CacheManager, Namespace

__all__ = ["near_hits"]

_NEAR: Final = Namespace("near", ttl=3600)
_KEYS: Final = [f"{PREFIX}:near:{number}" for number in range(1000)]
_SHORTER: Final = 4


def near_hits(plan: Plan) -> Table:
    """Return microseconds for a get of a dict that the client holds and Redis keeps fresh."""
    table = Table("near", "A get from the client's own memory, kept fresh by Redis", "us", less_is_better=True)
    table.note("Of a small dict, which the caller owns. All but ours decode it each time.")
    asyncio.run(_measure_async(plan, table))
    _measure_blocking(plan, table)
    return table


async def _measure_async(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        contenders: dict[str, Get] = {OURS: await stack.enter_async_context(_ours(plan))}
        with if_installed(table, "cashews"):
            contenders["cashews, client-side"] = await stack.enter_async_context(_cashews(plan))
        with if_installed(table, "valkey-glide"):
            contenders["valkey-glide, client cache"] = await stack.enter_async_context(_glide(plan))
        counts = {}
        for name, get in contenders.items():
            for key in _KEYS:
                checked(await get(key), SMALL_DICT, name)
            counts[name] = max(1, round(plan.turn / _SHORTER / await _seconds(get, 100)))
        settle()
        for name in plan.turns(contenders, "async"):
            await _seconds(contenders[name], 3)
            table.add("async", name, await _seconds(contenders[name], counts[name]) * 1e6)


async def _seconds(get: Get, count: int) -> float:
    keys = list(islice(cycle(_KEYS), count))
    start = time.perf_counter()
    for key in keys:
        await get(key)
    return (time.perf_counter() - start) / count


def _measure_blocking(plan: Plan, table: Table) -> None:
    with ExitStack() as stack:
        contenders: dict[str, BlockingGet] = {OURS: stack.enter_context(_ours_blocking(plan))}
        try:
            contenders["redis-py, client-side cache"] = stack.enter_context(_redis_py(plan))
        except redis.ConnectionError as error:
            table.note(f"redis-py's client-side cache is left out, as it says: {error}")
        counts = {}
        for name, get in contenders.items():
            for key in _KEYS:
                checked(get(key), SMALL_DICT, name)
            counts[name] = max(1, round(plan.turn / _SHORTER / _blocking_seconds(get, 100)))
        settle()
        for name in plan.turns(contenders, "blocking"):
            _blocking_seconds(contenders[name], 3)
            table.add("blocking", name, _blocking_seconds(contenders[name], counts[name]) * 1e6)


def _blocking_seconds(get: BlockingGet, count: int) -> float:
    keys = list(islice(cycle(_KEYS), count))
    start = time.perf_counter()
    for key in keys:
        get(key)
    return (time.perf_counter() - start) / count


# -- the contenders -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[Get]:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        await manager.set_many(_NEAR, dict.fromkeys(_KEYS, SMALL_DICT))
        yield partial(manager.get, _NEAR)


@contextmanager
def _ours_blocking(plan: Plan) -> Iterator[BlockingGet]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        manager.set_many(_NEAR, dict.fromkeys(_KEYS, SMALL_DICT))
        yield partial(manager.get, _NEAR)


@asynccontextmanager
async def _cashews(plan: Plan) -> AsyncIterator[Get]:
    import cashews

    cache = cashews.Cache()
    cache.setup(plan.url, client_side=True, client_side_prefix=f"{PREFIX}-cashews-near:")
    try:
        await cache.set_many(dict.fromkeys(_KEYS, SMALL_DICT), expire=3600)
        yield cache.get
    finally:
        await cache.close()


@asynccontextmanager
async def _glide(plan: Plan) -> AsyncIterator[Get]:
    import glide

    near = glide.ClientSideCache.create(max_cache_kb=64 * 1024, entry_ttl_ms=3_600_000, server_assisted=True)
    async with glide_client(plan, client_side_cache=near) as client:
        for key in _KEYS:
            await client.set(key, PACKED)

        async def get(key: str) -> Any:
            return msgpack.unpackb(await client.get(key))

        yield get


@contextmanager
def _redis_py(plan: Plan) -> Iterator[BlockingGet]:
    with redis.Redis.from_url(plan.url, protocol=3, cache_config=CacheConfig()) as client:
        client.mset(dict.fromkeys(_KEYS, PACKED))
        yield lambda key: msgpack.unpackb(client.get(key))
