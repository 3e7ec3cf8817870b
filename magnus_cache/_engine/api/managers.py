"""The two managers of a cache, `CacheManager` and `AsyncCacheManager`, and the process-wide one of each kind."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from magnus_cache._engine.api.asynchronous import AsyncCache
from magnus_cache._engine.api.blocking import BlockingCache
from magnus_cache._engine.api.process_managers import ProcessFace, delegate_to
from magnus_cache._engine.api.process_wide import PROCESS
from magnus_cache._engine.coordination.health import Health, unhealthy
from magnus_cache._engine.runtime.closing import Ending
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = [
    "AsyncCacheManager",
    "CacheManager",
    "cache_clear",
    "cache_delete",
    "cache_get",
    "cache_set",
    "configure",
    "get_async_cache_manager",
    "get_cache_manager",
]


class CacheManager(BlockingCache):
    """A cache for blocking code: an LRU in this process, with Redis behind it.

    Create one from settings or keywords (``CacheManager(redis_url="redis://127.0.0.1:6379/0")``) or from the
    environment (``CacheManager()``), or use the process-wide one (`get_cache_manager`). Nothing is
    connected, and no thread is started, before the first call. It is safe to use from any number of threads.

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

    def __reduce__(self) -> Any:
        # As its settings, which include the password: the other process makes its own connection.
        return _restored, (type(self), self._state.settings)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self


class AsyncCacheManager(AsyncCache):
    """A cache for async code: an LRU in this process, with Redis behind it.

    Create one like a `CacheManager`, and await its operations. It works on any event loop, and on several at a time.
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

    def __reduce__(self) -> Any:
        # As its settings, which include the password: the other process makes its own connection.
        return _restored, (type(self), self._state.settings)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self


def _restored(kind: "type[CacheManager | AsyncCacheManager]", settings: "CacheSettings") -> Any:
    return kind(settings)


def _blocking() -> BlockingCache:
    return PROCESS.blocking


def _awaited() -> AsyncCache:
    return PROCESS.awaited


@delegate_to(_blocking, BlockingCache)
class _ProcessManager(ProcessFace, CacheManager):
    """The manager of the process-wide cache for blocking code."""

    _name = "CacheManager"

    def __init__(self) -> None:
        # Unlike its base class, it has no cache of its own.
        pass

    def get(self, namespace: str, key: Any, default: Any = None, *, stamped: bool = False) -> Any:
        """See `CacheManager.get`."""
        # Not delegated as the other operations are, which would make a hit in memory several times slower.
        if stamped:
            return PROCESS.blocking.get(namespace, key, default, stamped=True)
        now = PROCESS.now
        return (PROCESS.open() if now is None else now).get(namespace, key, default)

    @property
    def redis_available(self) -> bool:
        """See `CacheManager.redis_available`."""
        return PROCESS.blocking.redis_available

    @property
    def aio(self) -> "AsyncCacheManager":
        """The process-wide cache for async code."""
        return _ProcessAsyncManager()

    def ping(self) -> Health:
        """See `CacheManager.ping`."""
        try:
            return PROCESS.blocking.ping()
        except CacheError as error:
            return unhealthy(error)

    def clear(self, namespace_or_pattern: str) -> int:
        """See `CacheManager.clear`."""
        return PROCESS.blocking.clear(PROCESS.own_name(namespace_or_pattern))

    def close(self) -> Ending:
        """Disconnect, and stop everything that the process-wide cache started. Idempotent; the next use reopens it.

        In a coroutine, `await` the result: the connection of the running event loop ends at the loop's next turn.
        """
        return PROCESS.close()

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> Any:
        return get_cache_manager, ()


@delegate_to(_awaited, AsyncCache)
class _ProcessAsyncManager(ProcessFace, AsyncCacheManager):
    """The manager of the process-wide cache for async code."""

    _name = "AsyncCacheManager"

    def __init__(self) -> None:
        # Unlike its base class, it has no cache of its own.
        pass

    def get(  # pyright: ignore[reportIncompatibleMethodOverride]  # what it returns is that method's coroutine
        self, namespace: str, key: Any, default: Any = None, *, stamped: bool = False
    ) -> Coroutine[Any, Any, Any]:
        """See `AsyncCacheManager.get`."""
        # Returns the coroutine of `get` itself: one around it would make a hit slower.
        if stamped:
            return PROCESS.awaited.get(namespace, key, default, stamped=True)
        now = PROCESS.now
        return (PROCESS.open() if now is None else now).get_awaited(namespace, key, default)

    @property
    def redis_available(self) -> bool:
        """See `AsyncCacheManager.redis_available`."""
        return PROCESS.awaited.redis_available

    @property
    def sync(self) -> CacheManager:
        """The process-wide cache for blocking code."""
        return _ProcessManager()

    async def ping(self) -> Health:
        """See `AsyncCacheManager.ping`."""
        try:
            return await PROCESS.awaited.ping()
        except CacheError as error:
            return unhealthy(error)

    async def clear(self, namespace_or_pattern: str) -> int:
        """See `AsyncCacheManager.clear`."""
        return await PROCESS.awaited.clear(PROCESS.own_name(namespace_or_pattern))

    async def close(self) -> None:
        """Disconnect, and stop everything that the process-wide cache started; the same as `aclose`."""
        await self.aclose()

    def __reduce__(self) -> Any:
        return get_async_cache_manager, ()


def get_cache_manager() -> CacheManager:
    """Return the process-wide cache for blocking code.

    Its first use creates it, from the settings of `configure`, the environment and `.env`. After it was closed, the
    next use creates another one. Managers and decorated functions that existed before use it too.

    :raises CacheSettingsError: for a wrong setting, naming its environment variable.
    """
    PROCESS.check()
    face = PROCESS.face
    if face is None:
        made = _ProcessManager()
        with section():
            face = PROCESS.face = PROCESS.face or made
    return cast("CacheManager", face)


def get_async_cache_manager() -> AsyncCacheManager:
    """Return the process-wide cache for async code: the same cache that `get_cache_manager` returns.

    :raises CacheSettingsError: for a wrong setting, naming its environment variable.
    """
    return get_cache_manager().aio


def configure(**settings: "Unpack[SettingsOptions]") -> None:
    """Set up the process-wide cache before its first use. Decorating a function is not a use.

    Settings that are not named here come from the environment and `.env`. A second call adds to the first. The settings
    also apply to the cache that is created after this one was closed.

    :raises CacheSettingsError: for a wrong setting; and once the cache is in use, until it is closed.
    """
    PROCESS.configure(settings)


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
    """Remove a namespace, or the values that match a glob, from the process-wide cache; return how many Redis removed.

    :raises CacheArgumentError: as `CacheManager.clear` does.
    """
    return get_cache_manager().clear(namespace_or_pattern)
