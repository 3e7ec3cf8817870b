"""The types of cached functions, for annotations of functions that take or return them.

A cached function keeps its parameters and its result. These types describe the operations that the cache adds. One type
is for plain and coroutine functions: a coroutine function returns a coroutine, and so do its operations. With a type
for each kind, checkers would have to choose one for a generic function, ``(x: T) -> T``, and would choose wrongly.

To a type checker, a cached method is an object and not a method. mypy accepts it for a protocol or an abstract method;
pyright does not. Neither lets a plain method override it, because a plain method has no `invalidate`. Use `as_method`
in these places. Checkers see a classmethod as one, and a staticmethod if it is reached through its class.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from magnus_cache._engine.policy.calendars import CalendarTtl

if TYPE_CHECKING:
    from magnus_cache._engine.store.explanation import Explanation
    from magnus_cache._engine.store.stamps import Stamped

__all__ = [
    "AsyncCached", "AsyncCachedMany", "BatchDecorator", "CacheInfo", "Cached", "CachedMany", "CachedManyOfClass",
    "CachedOfClass", "Decorator", "as_method",
]  # fmt: skip

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")


class CacheInfo(NamedTuple):
    """The counts of a cached function in this process so far."""

    hits: int
    """Calls that the cache answered."""
    misses: int
    """Calls that found no value."""
    loads: int
    """Calls of the function itself."""
    namespace: str
    """Where its values are."""
    ttl: float | CalendarTtl | None
    """Seconds, a calendar, or None if the TTL is computed from the value."""


class Cached(Protocol[P, R_co]):  # type: ignore[misc]  # the overloads do not make use of it
    """A cached function: call it as before, or use its operations. Those of a coroutine function are awaited.

    - ``invalidate(...)`` removes the value for these arguments everywhere and returns whether there was one.
    - ``refresh(...)`` calls the function now, stores its value and returns it.
    - ``contains(...)`` returns whether there is a value for these arguments; it loads nothing.
    - ``explain(...)`` returns what the cache knows about that value; see `CacheManager.explain`.
    - ``stamped(...)`` returns what a call returns as a `Stamped`, with when its load began and how old it is.
    - ``clear()`` removes all values that this function has stored, everywhere, in one exchange with Redis. For a
      method, it removes those of all instances. Functions with the same name, such as those of a factory, are cleared
      together.
      Values that `set` or `warm_cache` stored under the function's keys stay; remove them with `delete`.

    Each raises what the operation of that name of `CacheManager` raises.
    """

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself, without the cache."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the function's value for these arguments, from the cache if it is there."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function now, store its value and return it."""
        ...

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return the key that these arguments have in the namespace."""
        ...

    def cache_info(self) -> CacheInfo:
        """Return the counts of this function in this process."""
        ...

    @overload
    def invalidate(  # type: ignore[overload-overlap]  # the first that fits is meant
        self: "Cached[P, Coroutine[Any, Any, object]]", *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...

    @overload
    def contains(  # type: ignore[overload-overlap]  # the first that fits is meant
        self: "Cached[P, Coroutine[Any, Any, object]]", *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def contains(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...

    @overload
    def explain(  # type: ignore[overload-overlap]  # the first that fits is meant
        self: "Cached[P, Coroutine[Any, Any, object]]", *args: P.args, **kwargs: P.kwargs
    ) -> "Coroutine[Any, Any, Explanation]": ...
    @overload
    def explain(self, *args: P.args, **kwargs: P.kwargs) -> "Explanation": ...

    @overload
    def stamped(  # type: ignore[overload-overlap]  # the first that fits is meant
        self: "Cached[P, Coroutine[Any, Any, R]]", *args: P.args, **kwargs: P.kwargs
    ) -> "Coroutine[Any, Any, Stamped[R]]": ...
    @overload
    def stamped(self, *args: P.args, **kwargs: P.kwargs) -> "Stamped[R_co]": ...

    @overload
    def clear(  # type: ignore[overload-overlap]  # the first that fits is meant
        self: "Cached[P, Coroutine[Any, Any, object]]",
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def clear(self) -> None: ...

    # mypy uses the first of these for all access through a class: it does not look at the first parameter.
    @overload
    def __get__(
        self: "Cached[Concatenate[type[S], Q], R]", instance: None, owner: type[S]
    ) -> "CachedOfClass[Q, R]": ...
    @overload
    def __get__(self, instance: None, owner: type) -> "Cached[P, R_co]": ...
    @overload
    def __get__(self: "Cached[Concatenate[type[S], Q], R]", instance: S, owner: type[S]) -> "Cached[Q, R]": ...
    @overload
    def __get__(self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type) -> "Cached[Q, R]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> "Cached[P, R_co]": ...


class CachedOfClass(Cached[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # as `Cached`
    """A cached classmethod reached through its class. For mypy, any cached method, with or without first argument."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, owner: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


AsyncCached: TypeAlias = Cached[P, Coroutine[Any, Any, R]]
"""A cached coroutine function: await it as before, or use its operations."""


class Decorator(Protocol):
    """What `cached` returns: takes a function of either kind and returns one of the same kind."""

    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]:
        """Return the cached function."""
        ...


class CachedMany(Cached[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # as `Cached`
    """A cached function of many keys; see `CacheManager.cached_many`.

    `cache_key`, `contains` and `explain` take one key in place of the keys; `stamped` takes many, and returns a
    mapping of them to `Stamped` values.
    """

    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        """Return the key that one of many has in the namespace."""
        ...

    @overload
    def contains(
        self: "Cached[P, Coroutine[Any, Any, object]]", *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def contains(self, *args: Any, **kwargs: Any) -> bool: ...

    @overload
    def explain(
        self: "Cached[P, Coroutine[Any, Any, object]]", *args: Any, **kwargs: Any
    ) -> "Coroutine[Any, Any, Explanation]": ...
    @overload
    def explain(self, *args: Any, **kwargs: Any) -> "Explanation": ...

    @overload  # type: ignore[override]  # a mapping of stamped values, not a stamped mapping
    def stamped(
        self: "Cached[P, Coroutine[Any, Any, Mapping[K, V]]]", *args: P.args, **kwargs: P.kwargs
    ) -> "Coroutine[Any, Any, dict[K, Stamped[V]]]": ...
    @overload
    def stamped(  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        self: "Cached[P, Mapping[K, V]]", *args: P.args, **kwargs: P.kwargs
    ) -> "dict[K, Stamped[V]]": ...

    @overload  # type: ignore[override]  # each returns more than that of `Cached`
    def __get__(
        self: "CachedMany[Concatenate[type[S], Q], R]", instance: None, owner: type[S]
    ) -> "CachedManyOfClass[Q, R]": ...
    @overload
    def __get__(self, instance: None, owner: type) -> "CachedMany[P, R_co]": ...
    @overload
    def __get__(self: "CachedMany[Concatenate[type[S], Q], R]", instance: S, owner: type[S]) -> "CachedMany[Q, R]": ...
    @overload
    def __get__(self: "CachedMany[Concatenate[S, Q], R]", instance: S, owner: type) -> "CachedMany[Q, R]": ...
    @overload
    def __get__(  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        self, instance: object, owner: type
    ) -> "CachedMany[P, R_co]": ...


class CachedManyOfClass(CachedMany[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # as `Cached`
    """A cached classmethod of many keys, reached through its class; see `CachedOfClass`."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, owner: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


AsyncCachedMany: TypeAlias = CachedMany[P, Coroutine[Any, Any, R]]
"""A cached coroutine function of many keys; see `AsyncCacheManager.cached_many`."""


class BatchDecorator(Protocol):
    """What `cached_many` returns: takes a function of either kind and returns one of the same kind."""

    def __call__(self, function: Callable[P, R], /) -> CachedMany[P, R]:
        """Return the cached function."""
        ...


def as_method(function: Callable[P, R], /) -> Callable[P, R]:
    """Return the same cached function, but let type checkers see a plain one. Write it above `cached`.

    A cached method then fits a protocol, overrides a method and can be overridden. The operations of the cache still
    work, but type checkers do not see them.
    """
    return function
