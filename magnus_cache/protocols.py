"""What the decorators return, as type checkers see it: for whoever annotates what takes or returns a cached function.

A function stays what it was, with its parameters and its result; what is added to it is here. Type checkers do not see
through a classmethod, nor through a staticmethod that is reached through an instance: both work, and both have to be
told so, or to call a cached function of their module.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, overload

__all__ = [
    "AsyncCached", "AsyncCachedMany", "BatchDecorator", "CacheInfo", "Cached", "CachedMany", "Decorator",
]  # fmt: skip

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")


class CacheInfo(NamedTuple):
    """What a decorated function's cache did so far, in this process."""

    hits: int
    misses: int
    loads: int
    namespace: str
    ttl: float | None
    """Seconds, or None where it is computed from the value."""


class Cached(Protocol[P, R_co]):
    """A cached function: call it as before, or ask for more."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself, without the cache."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the function's value for these arguments, from the cache if it is there."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the value for these arguments everywhere; return whether there was one."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function now, store its value and return it."""
        ...

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the key that these arguments have in the namespace."""
        ...

    def cache_info(self) -> CacheInfo:
        """Return the figures of this function."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> "Cached[P, R_co]": ...
    @overload
    def __get__(self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type) -> "Cached[Q, R]": ...


class AsyncCached(Protocol[P, R_co]):
    """A cached coroutine function: call it as before, or ask for more."""

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The coroutine function itself, without the cache."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Return the function's value for these arguments, from the cache if it is there."""
        ...

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the value for these arguments everywhere; return whether there was one."""
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function now, store its value and return it."""
        ...

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the key that these arguments have in the namespace."""
        ...

    def cache_info(self) -> CacheInfo:
        """Return the figures of this function."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> "AsyncCached[P, R_co]": ...
    @overload
    def __get__(self: "AsyncCached[Concatenate[S, Q], R]", instance: S, owner: type) -> "AsyncCached[Q, R]": ...


class Decorator(Protocol):
    """What `cached` returns: takes a function of either kind and returns one of the same kind."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]: ...


class CachedMany(Cached[P, R_co], Protocol[P, R_co]):
    """A cached function of many keys; see `CacheManager.cached_many`."""

    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        """Return the key that one of many has in the namespace: called with it in place of the keys."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedMany[P, R_co]": ...
    @overload
    def __get__(self: "CachedMany[Concatenate[S, Q], R]", instance: S, owner: type) -> "CachedMany[Q, R]": ...


class AsyncCachedMany(AsyncCached[P, R_co], Protocol[P, R_co]):
    """A cached coroutine function of many keys; see `AsyncCacheManager.cached_many`."""

    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        """Return the key that one of many has in the namespace: called with it in place of the keys."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> "AsyncCachedMany[P, R_co]": ...
    @overload
    def __get__(self: "AsyncCachedMany[Concatenate[S, Q], R]", instance: S, owner: type) -> "AsyncCachedMany[Q, R]": ...


class BatchDecorator(Protocol):
    """What `cached_many` returns: takes a function of either kind and returns one of the same kind."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCachedMany[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedMany[P, R]: ...
