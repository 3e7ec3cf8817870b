"""A hundred calls at once into a Redis that accepts and never answers: ours, and the same with others."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer, find_valkey
from magnus_cache.testing import Proxy
from tests.chaos.world import OP_TIMEOUT

__all__ = ["compare", "ours"]

CALLS = 100

Get = Callable[[str], Awaitable[Any]]


def compare() -> dict[str, float]:
    """Return how many seconds a hundred concurrent calls take in all, by cache; of the others, those installed."""
    with EmbeddedServer(find_valkey()) as server:
        times = {f"magnus_cache, op_timeout {OP_TIMEOUT:g} s": ours(server)}
        for name, made in (("cashews", _cashews), ("aiocache", _aiocache)):
            if find_spec(name) is not None:
                with Proxy(server.port) as proxy:
                    times[f"{name}, as it comes"] = asyncio.run(made(proxy))
    return times


def ours(server: EmbeddedServer) -> float:
    """Return the seconds that a hundred concurrent calls of ours take."""

    async def run(proxy: Proxy) -> float:
        async with AsyncCacheManager(redis_url=proxy.url, op_timeout=OP_TIMEOUT) as cache:
            return await _timed(proxy, lambda key: cache.get("t", key))

    with Proxy(server.port) as proxy:
        return asyncio.run(run(proxy))


async def _timed(proxy: Proxy, get: Get) -> float:
    await get("first")
    proxy.black_hole()
    began = time.monotonic()
    await asyncio.gather(*(get(f"k{number}") for number in range(CALLS)), return_exceptions=True)
    return time.monotonic() - began


async def _cashews(proxy: Proxy) -> float:
    from cashews import Cache

    cache = Cache()
    cache.setup(proxy.url)
    try:
        return await _timed(proxy, cache.get)
    finally:
        await cache.close()


async def _aiocache(proxy: Proxy) -> float:
    from aiocache import RedisCache

    async with RedisCache(endpoint="127.0.0.1", port=proxy.port) as cache:
        return await _timed(proxy, cache.get)
