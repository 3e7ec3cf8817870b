"""`lifespan`: a cache that lives as long as its application."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, overload

from magnus_cache import AsyncCacheManager, CacheManager, get_async_cache_manager
from magnus_cache.errors import CacheTypeError
from magnus_cache.integrations.fastapi.asking import STATE, AnyCache

__all__ = ["Lifespan", "lifespan"]

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What applications take as ``lifespan=``."""


@overload
def lifespan(app: AnyCache | None = None, /, *, inner: Lifespan | None = None) -> Lifespan: ...
@overload
def lifespan(app: Any, /) -> AbstractAsyncContextManager[dict[str, Any]]: ...
def lifespan(app: Any = None, /, *, inner: Lifespan | None = None) -> Any:
    """Open a cache when an application starts, and close it when the application stops.

    ``FastAPI(lifespan=lifespan)`` does so with the process-wide cache, ``FastAPI(lifespan=lifespan(manager))`` with one
    of your own, which the cached endpoints of the application then use, too. An application starts also while Redis is
    away.

    :param app: a `CacheManager` or `AsyncCacheManager`; None for the process-wide one. The framework gives the
        application.
    :param inner: the lifespan that the application has besides; the cache is open as long as it runs.
    :raises CacheTypeError: for anything but a manager or an application.
    """
    if app is None or isinstance(app, CacheManager | AsyncCacheManager):
        return _of(app, inner)
    if not callable(app):
        raise CacheTypeError("lifespan", f"give a CacheManager or AsyncCacheManager, not {type(app).__name__}")
    return _of(None, inner)(app)


def _of(manager: AnyCache | None, inner: Lifespan | None) -> Lifespan:
    @asynccontextmanager
    async def live(app: Any) -> AsyncGenerator[dict[str, Any]]:
        cache = get_async_cache_manager() if manager is None else manager.aio
        async with cache:
            # It logs what it found, and never raises: requests are served while Redis is away.
            await cache.ping()
            if inner is None:
                yield {STATE: cache}
            else:
                async with inner(app) as state:
                    yield {**(state or {}), STATE: cache}

    return live
