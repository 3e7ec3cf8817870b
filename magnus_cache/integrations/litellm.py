"""LiteLLM: a cache for its completions and embeddings, in place of its own Redis cache.

``litellm.cache = litellm_cache(cache)`` does it. LiteLLM makes the keys from model, messages, tools and parameters; it
looks up, calls the model itself, and stores. So callers that ask the same at the same time all call the model. It
stores streams when they have ended, and replays them as streams.

:raises ImportError: if the library is not installed.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from magnus_cache import AsyncCacheManager, CacheManager, CacheTypeError
from magnus_cache.integrations.llm.usage import LLMUsage, Meter
from magnus_cache.integrations.models import library

__all__ = ["MagnusCache", "litellm_cache"]

_Base: Any = library("litellm.caching.base_cache", extra="litellm").BaseCache


class MagnusCache(_Base):  # type: ignore[misc]  # the types of the library are not checked
    """The `BaseCache` of LiteLLM on a cache of this package. Thread-safe.

    While Redis is away, it works from this process's memory, and makes no request wait.

    :param cache: the cache for the replies, of either kind.
    :param namespace: where they are. `flush_cache` removes all of it.
    :param ttl: seconds that a reply lives if LiteLLM names no other; None for the namespace's.
    :param prices: an `LLMPrice` for each model, to count what calls cost and what hits save.
    :raises CacheTypeError: for something else than a cache.
    :raises CacheArgumentError: for prices that cannot be used.
    """

    def __init__(
        self, cache: CacheManager | AsyncCacheManager, namespace: str = "litellm", *, ttl: float | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(cache, CacheManager | AsyncCacheManager):
            raise CacheTypeError("cache", f"give a CacheManager or AsyncCacheManager, not {type(cache).__name__}")
        super().__init__()
        self.default_ttl = ttl
        self._aio, self._sync = cache.aio, cache.sync
        self._namespace = namespace
        self._priced = prices is not None
        self._meter = Meter(prices, partial(cache.count_cost, namespace))

    # -- values ---------------------------------------------------------------------------------------------

    def get_cache(self, key: Any, **kwargs: Any) -> Any:
        """Return the value of a key, or None."""
        return self._found(self._sync.get(self._namespace, key))

    async def async_get_cache(self, key: Any, **kwargs: Any) -> Any:
        """Return the value of a key, or None."""
        return self._found(await self._aio.get(self._namespace, key))

    def batch_get_cache(self, keys: Sequence[Any], **kwargs: Any) -> list[Any]:
        """Return the values of some keys, and None for a key without one."""
        found = self._sync.get_many(self._namespace, keys)
        return [self._found(found.get(key)) for key in keys]

    async def async_batch_get_cache(self, keys: Sequence[Any], **kwargs: Any) -> list[Any]:
        """Return the values of some keys, and None for a key without one."""
        found = await self._aio.get_many(self._namespace, keys)
        return [self._found(found.get(key)) for key in keys]

    def set_cache(self, key: Any, value: Any, **kwargs: Any) -> None:
        """Store a value.

        :raises CacheEncodeError: for a value that cannot be stored, naming its type. LiteLLM logs it.
        """
        self._count(value, paid=True)
        self._sync.set(self._namespace, key, value, self._life(kwargs))

    async def async_set_cache(self, key: Any, value: Any, **kwargs: Any) -> None:
        """Store a value.

        :raises CacheEncodeError: for a value that cannot be stored, naming its type. LiteLLM logs it.
        """
        self._count(value, paid=True)
        await self._aio.set(self._namespace, key, value, self._life(kwargs))

    async def batch_cache_write(self, key: Any, value: Any, **kwargs: Any) -> None:
        """Store a value; at once, as the cache sends writes together by itself."""
        await self.async_set_cache(key, value, **kwargs)

    async def async_set_cache_pipeline(self, cache_list: Sequence[tuple[Any, Any]], **kwargs: Any) -> None:
        """Store some values in one exchange with Redis.

        :raises CacheEncodeError: for a value that cannot be stored, naming its type. LiteLLM logs it.
        """
        for _, value in cache_list:
            self._count(value, paid=True)
        await self._aio.set_many(self._namespace, dict(cache_list), self._life(kwargs))

    # -- numbers --------------------------------------------------------------------------------------------

    def increment_cache(self, key: Any, value: float, **kwargs: Any) -> float:
        """Add a number to a counter and return the new one; no call of another process is lost.

        :raises CacheUnavailableError: if Redis does not answer or refuses.
        """
        return self._sync.update(self._namespace, key, partial(_add, value), default=0, ttl=kwargs.get("ttl"))

    async def async_increment(self, key: Any, value: float, **kwargs: Any) -> float:
        """Add a number to a counter and return the new one; no call of another process is lost.

        :raises CacheUnavailableError: if Redis does not answer or refuses.
        """

        async def add(old: float) -> float:
            return old + value

        return await self._aio.update(self._namespace, key, add, default=0, ttl=kwargs.get("ttl"))

    # -- the rest -------------------------------------------------------------------------------------------

    def delete_cache(self, key: Any) -> None:
        """Remove a value, in every process."""
        self._sync.delete(self._namespace, key)

    async def async_delete_cache(self, key: Any) -> None:
        """Remove a value, in every process."""
        await self._aio.delete(self._namespace, key)

    async def delete_cache_keys(self, keys: Sequence[Any]) -> None:
        """Remove some values, in every process."""
        await self._aio.delete_many(self._namespace, keys)

    def flush_cache(self) -> None:
        """Remove all values of the namespace, in every process.

        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        self._sync.clear(self._namespace)

    async def async_get_ttl(self, key: Any) -> int | None:
        """Return the seconds a value has left to live, or None if there is none."""
        left = await self._aio.ttl(self._namespace, key)
        return None if left is None else int(left)

    async def ping(self) -> bool:
        """Return whether Redis answers."""
        return (await self._aio.ping()).ok

    async def test_connection(self) -> dict[str, Any]:
        """Return whether Redis answers, in LiteLLM's form: its ``status`` and a ``message``."""
        health = await self._aio.ping()
        return {"status": "success" if health.ok else "failed", "message": health.reason or "Redis answers"}

    async def disconnect(self) -> None:
        """Do nothing: the program that has made the cache closes it."""

    def usage(self) -> dict[str, LLMUsage]:
        """Return what this process has used through this object, by model; see `LLMCache.usage`."""
        return self._meter.usage()

    def _life(self, options: Mapping[str, Any]) -> float | None:
        """Return the seconds that a value lives, or None for those of the namespace."""
        ttl = options.get("ttl")
        try:
            return self.default_ttl if ttl is None else float(ttl)
        except (TypeError, ValueError):
            return self.default_ttl

    def _found(self, value: Any) -> Any:
        if value is not None:
            self._count(value, paid=False)
        return value

    def _count(self, value: Any, *, paid: bool) -> None:
        """Count a reply, which LiteLLM stores as JSON text with a time."""
        if not self._priced or not isinstance(value, Mapping) or "response" not in value:
            return
        reply = value["response"]
        if isinstance(reply, str):
            try:
                reply = json.loads(reply)
            except ValueError:
                return
        self._meter.count(reply, None, paid=paid)


def _add(value: float, old: float) -> float:
    return old + value


def litellm_cache(
    cache: CacheManager | AsyncCacheManager, namespace: str = "litellm", *, ttl: float | None = None,
    prices: Mapping[str, Any] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Return a ``litellm.Cache`` whose values are in a cache of this package: assign it to ``litellm.cache``.

    :param ttl: seconds that a reply lives if a call names no other; None for the namespace's.
    :param prices: an `LLMPrice` for each model, to count what calls cost and what hits save.
    :param options: further ones of ``litellm.Cache``, such as ``mode=`` and ``supported_call_types=``. Its present
        version leaves requests of more than four messages alone; ``max_messages=None`` lifts that.
    :raises CacheTypeError: for something else than a cache.
    :raises CacheArgumentError: for prices that cannot be used.
    """
    backend = MagnusCache(cache, namespace, ttl=ttl, prices=prices)
    made = library("litellm.caching.caching", extra="litellm").Cache(type="local", **options)
    made.cache = backend
    return made
