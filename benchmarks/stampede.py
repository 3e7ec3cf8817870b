"""What each process of `benchmarks.cold_key` does: ask for one key from many tasks, through one of the contenders."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import msgpack
import redis.asyncio

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked
from benchmarks.redis_peers import CONNECTIONS, connected
from benchmarks.tables import OURS
from magnus_cache import AsyncCacheManager

__all__ = ["CONTENDERS", "LOADS", "Stampede"]

LOADS: Final = f"{PREFIX}-loads"
"""What the name of the counter of a key's loads begins with."""

CONTENDERS: Final = (OURS, "aiocache", "by hand")

_TTL: Final = 600
_SECONDS: Final = 0.05
"""What a load takes."""

Get = Callable[[str], Awaitable[Any]]


class Stampede:
    """The contenders of one process."""

    def __init__(self, host: str, port: int) -> None:
        self._plan = Plan(rounds=1, turn=0.0, entries=0, cleared=0, host=host, port=port)
        self._gets: dict[str, Get] = {}
        self._client: redis.asyncio.Redis

    @property
    def contenders(self) -> list[str]:
        """Those that are installed."""
        return list(self._gets)

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect."""
        self._client = await stack.enter_async_context(connected(self._plan))
        await self._client.ping()
        manager = await stack.enter_async_context(AsyncCacheManager(redis_url=self._plan.url, prefix=PREFIX))
        await manager.get("stampede", "connects")

        async def ours(key: str) -> Any:
            return await manager.get_or_set("stampede", key, lambda: self._load(key), ttl=_TTL)

        self._gets = {OURS: ours, "by hand": self._by_hand}
        try:
            self._gets["aiocache"] = self._aiocache(stack)
        except ImportError:
            return

    async def storm(self, name: str, key: str, tasks: int, at: float) -> int:
        """Ask from so many tasks, from a moment of `time.monotonic` on; return how many got an error instead.

        :raises Exception: what ours raised: no caller of it may fail.
        """
        get = self._gets[name]
        await asyncio.sleep(at - time.monotonic())
        failed = 0
        for value in await asyncio.gather(*(get(key) for _ in range(tasks)), return_exceptions=True):
            if not isinstance(value, BaseException):
                checked(value, SMALL_DICT, name)
            elif name == OURS:
                raise value
            else:
                failed += 1
        return failed

    async def _load(self, key: str) -> dict[str, object]:
        await self._client.incr(f"{LOADS}:{key}")
        await asyncio.sleep(_SECONDS)
        return SMALL_DICT

    # -- the contenders ---------------------------------------------------------------------------------------

    async def _by_hand(self, key: str) -> Any:
        raw = await self._client.get(key)
        if raw is not None:
            return msgpack.unpackb(raw)
        value = await self._load(key)
        await self._client.set(key, msgpack.packb(value), ex=_TTL)
        return value

    def _aiocache(self, stack: AsyncExitStack) -> Get:
        import aiocache
        from aiocache.serializers import JsonSerializer

        decorate = aiocache.cached_stampede(
            lease=2, ttl=_TTL, cache=aiocache.RedisCache, endpoint=self._plan.host, port=self._plan.port,
            serializer=JsonSerializer(), namespace=f"{PREFIX}-aiocache", key_builder=lambda _, key: key,
            connection_pool_class=redis.asyncio.BlockingConnectionPool, pool_max_size=CONNECTIONS,
        )  # fmt: skip

        async def load(key: str) -> dict[str, object]:
            return await self._load(key)

        quote: Any = decorate(load)
        stack.push_async_callback(quote.cache.client.connection_pool.disconnect)
        get: Get = quote
        return get
