"""What `cached` returns: an object that looks like the function it stands for, and like a method where that would.

Frameworks ask a function for its name, its signature, its module's globals and its class, and a method for `__self__`
and `__func__`; they compare methods, refer to them weakly and pickle both by name. Only Python's own types pass all of
that, but a method of that type could not have an `invalidate` of its own that knows its instance. So these say of
themselves what the originals would say, `__class__` included, as the proxies of `wrapt` do. They are partials: called
at C speed, and frameworks that look for a coroutine function look through partials.
"""

import copy
import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

__all__ = ["BoundCached", "CachedClassMethod", "CachedFunction", "Described"]

if TYPE_CHECKING:
    _Partial = functools.partial[Any]
    _ClassMethod = classmethod[Any, Any, Any]
else:
    _Partial, _ClassMethod = functools.partial, classmethod


class Described(Protocol):
    """Tells people where the values of a function live."""

    def describe(self) -> str:
        """Return the name of the function, and of its namespace and cache."""
        ...

    def place(self) -> Any:
        """Return the `FunctionCache` of the function in the cache that it goes to now."""
        ...


class CachedFunction(_Partial):
    """A cached function. Its attributes are those of the original, and what a cache adds: see `protocols.Cached`.

    :param wrapper: looks into the cache and calls the original; its attributes are taken over.
    :param original: the function itself.
    :param described: names it, with its namespace and cache.
    """

    # All of it in the instance's dictionary: `functools.wraps` takes it over from there, as from a function.
    _cached: "CachedFunction"
    invalidate: Callable[..., Any]
    refresh: Callable[..., Any]
    cache_key: Callable[..., Any]
    contains: Callable[..., Any]
    explain: Callable[..., Any]
    stamped: Callable[..., Any]
    __wrapped__: Callable[..., Any]
    _described: Described

    def __new__(cls, wrapper: Callable[..., Any], original: Callable[..., Any], described: Described) -> Self:
        self = super().__new__(cls, wrapper)
        functools.update_wrapper(self, wrapper)
        self.__wrapped__ = original
        self._described = described
        # A bound method finds it here.
        self._cached = wrapper._cached = self  # type: ignore[attr-defined]  # it is a function
        return self

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundCached(self.func, instance)

    @property  # type: ignore[misc]  # it can be set on others
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        return types.FunctionType

    def __repr__(self) -> str:
        return f"<cached function {self._described.describe()}>"

    def __getattr__(self, name: str) -> Any:
        # Such as `__code__`, `__defaults__` and `__globals__`.
        if name == "__wrapped__":
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> Any:
        # By its name, as a function: `pickle` checks that this very object is found there.
        return getattr(self, "__qualname__", None) or repr(self)

    def __copy__(self) -> "CachedFunction":
        return self

    def __deepcopy__(self, memo: Any) -> "CachedFunction":
        return self


class BoundCached(_Partial):
    """A cached method of one instance, or of a class. It is equal to another of the same method and instance."""

    __slots__ = ()

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        return self.func._cached  # type: ignore[attr-defined]  # a wrapper has it

    @property
    def __wrapped__(self) -> Any:
        return types.MethodType(self.__func__.__wrapped__, self.args[0])

    @property  # type: ignore[misc]  # it can be set on others
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        return types.MethodType

    def __getattr__(self, name: str) -> Any:
        # Such as `__name__`, `__annotations__` and `cache_info`.
        return getattr(self.__func__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a method has no attribute {name!r} to set; set it on the function in the class")

    def __eq__(self, other: object) -> bool:
        if type(other) is not BoundCached:
            return NotImplemented
        return self.args[0] is other.args[0] and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.args[0]), id(self.__func__)))

    def __repr__(self) -> str:
        function = self.__func__
        owner = self.args[0]
        of = repr(owner) if isinstance(owner, type) else object.__repr__(owner)
        return f"<bound cached method {function._described.describe()}, of {of}>"

    def __reduce__(self) -> Any:
        return getattr, (self.args[0], self.__func__.__name__)

    def __copy__(self) -> "BoundCached":
        return self

    def __deepcopy__(self, memo: Any) -> "BoundCached":
        return type(self)(self.func, copy.deepcopy(self.args[0], memo))

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.invalidate`."""
        return self.__func__.invalidate(self.args[0], *args, **kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.refresh`."""
        return self.__func__.refresh(self.args[0], *args, **kwargs)

    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.cache_key`."""
        return self.__func__.cache_key(self.args[0], *args, **kwargs)

    def contains(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.contains`."""
        return self.__func__.contains(self.args[0], *args, **kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.explain`."""
        return self.__func__.explain(self.args[0], *args, **kwargs)

    def stamped(self, *args: Any, **kwargs: Any) -> Any:
        """See `Cached.stamped`."""
        return self.__func__.stamped(self.args[0], *args, **kwargs)


def _of_function(name: str) -> Any:
    return property(lambda self: getattr(self.__func__, name))


# What the class itself has, and so is not asked of `__getattr__`. Not in its body, where these are about the class.
for _name in ("__doc__", "__module__"):
    setattr(BoundCached, _name, _of_function(_name))


class CachedClassMethod(_ClassMethod):
    """A cached classmethod: bound to the class when it is looked up, and yet with all that a cache adds."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        function: Any = self.__func__
        return BoundCached(function.func, owner if owner is not None else type(instance))
