"""The two faces of a cache, `CacheManager` and `AsyncCacheManager`, and the process-wide one of each."""

from typing import Any

from magnus_cache.core import AsyncOperations
from magnus_cache.sections import section
from magnus_cache.sync import BlockingOperations

__all__ = [
    "AsyncCacheManager",
    "CacheManager",
    "cache_clear",
    "cache_delete",
    "cache_get",
    "cache_set",
    "get_async_cache_manager",
    "get_cache_manager",
]


class CacheManager(BlockingOperations):
    """A cache for blocking code: an LRU in this process, Redis behind it, and neither ever in the way.

    Make one from settings or keywords (``CacheManager(redis_url="redis://127.0.0.1:6379/0")``), from the
    environment (``CacheManager()``), or take the process-wide one (`get_cache_manager`). Nothing is connected and
    no thread is started before the first call. Safe to use from any number of threads.

    No method raises because Redis is away. `aio` is the same cache for async code.

    :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
    """

    @property
    def aio(self) -> "AsyncCacheManager":
        """This same cache for async code."""
        return AsyncCacheManager._over(self._engine)

    @property
    def sync(self) -> "CacheManager":
        """This cache for blocking code: itself."""
        return self


class AsyncCacheManager(AsyncOperations):
    """A cache for async code: an LRU in this process, Redis behind it, and neither ever in the way.

    Made as `CacheManager` is; its operations are awaited. It works on any event loop, and on several at a time.
    `sync` is the same cache for blocking code.

    :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
    """

    @property
    def aio(self) -> "AsyncCacheManager":
        """This cache for async code: itself."""
        return self

    @property
    def sync(self) -> CacheManager:
        """This same cache for blocking code."""
        return CacheManager._over(self._engine)


_manager: CacheManager | None = None


def get_cache_manager() -> CacheManager:
    """Return the process-wide cache for blocking code, made at the first call from the environment and `.env`.

    After it was closed, the next call makes a new one.

    :raises CacheSettingsError: for a wrong setting, naming its environment variable.
    """
    global _manager
    manager = _manager
    if manager is None or manager._state.closed:
        # Made before it is known to be wanted: that imports modules and reads files, which is no step for a section.
        # The one that comes too late was not used, and has nothing to end.
        made = CacheManager()
        with section():
            if _manager is None or _manager._state.closed:
                _manager = made
            manager = _manager
    return manager


def get_async_cache_manager() -> AsyncCacheManager:
    """Return the process-wide cache for async code: another face of what `get_cache_manager` returns.

    :raises CacheSettingsError: for a wrong setting, naming its environment variable.
    """
    return get_cache_manager().aio


def cache_get(namespace: str, key: Any, default: Any = None) -> Any:
    """Return a value from the process-wide cache, or `default`.

    :raises CacheArgumentError: as `CacheManager.get` does.
    """
    return get_cache_manager().get(namespace, key, default)


def cache_set(namespace: str, key: Any, value: Any, ttl: Any = None) -> bool:
    """Store a value in the process-wide cache; return whether it is stored.

    :raises CacheArgumentError: as `CacheManager.set` does.
    :raises CacheEncodeError: naming the type that cannot be stored.
    """
    return get_cache_manager().set(namespace, key, value, ttl)


def cache_delete(namespace: str, key: Any) -> bool:
    """Remove a value from the process-wide cache; return whether there was one.

    :raises CacheArgumentError: as `CacheManager.delete` does.
    """
    return get_cache_manager().delete(namespace, key)


def cache_clear(namespace_or_pattern: str) -> int:
    """Remove a namespace, or what matches a glob, from the process-wide cache; return how many values Redis removed.

    :raises CacheArgumentError: as `CacheManager.clear` does.
    """
    return get_cache_manager().clear(namespace_or_pattern)
