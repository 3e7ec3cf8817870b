"""Functions with some of their arguments filled in: bound methods, `functools.partial`, `functools.partialmethod`."""

import functools
import inspect
from collections.abc import Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from magnus_cache.errors import CacheTypeError

__all__ = ["Prefilled", "bound_to", "method_of", "prefilled"]

_PLACEHOLDER: Final[object] = getattr(functools, "Placeholder", object())
"""Python 3.14's placeholder in a partial for an argument of the caller."""

_FILLED: Final = "_magnus_cache_filled"


class Prefilled(NamedTuple):
    """The function called in the end, and the arguments it gets beside the caller's.

    :ivar function: the function within.
    :ivar args: the positional arguments that it is given.
    :ivar kwargs: the keyword arguments that it is given, unless the caller gives them.
    :ivar bound: whether the first of `args` is the object that a method is bound to.
    :ivar after: how many of the caller's arguments come before `args`.
    """

    function: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    bound: bool = False
    after: int = 0

    def full(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return all positional arguments of a call, given the caller's."""
        if not self.args:
            return args
        first, rest = args[: self.after], args[self.after :]
        if _PLACEHOLDER not in map(_same, self.args):
            return first + self.args + rest
        left = iter(rest)
        # The function itself raises for missing ones.
        filled = tuple(next(left, arg) if arg is _PLACEHOLDER else arg for arg in self.args)
        return (*first, *filled, *left)

    def keywords(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return all keyword arguments of a call, given the caller's."""
        return {**self.kwargs, **kwargs} if self.kwargs else kwargs


def _same(value: object) -> object:
    # Compared by identity: comparing an array does not return a bool.
    return value if value is _PLACEHOLDER else None


def prefilled(function: Any) -> Prefilled:
    """Return the function within partials and bound methods."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    bound = False
    if (made := getattr(function, _FILLED, None)) is not None:
        within: functools.partialmethod[Any] = made
        return Prefilled(within.func, within.args, within.keywords, after=1)
    while True:
        if isinstance(function, functools.partial):
            args = Prefilled(None, function.args).full(args)
            kwargs = {**function.keywords, **kwargs}
            bound, function = False, function.func
        elif isinstance(function, MethodType):
            args, bound, function = (function.__self__, *args), True, function.__func__
        else:
            return Prefilled(function, args, kwargs, bound)


def bound_to(function: object) -> object | None:
    """Return the object that a method which was not written in Python is bound to; None for other functions."""
    thing: object = None if isinstance(function, FunctionType) else getattr(function, "__self__", None)
    # For a plain function written in C, `__self__` is its module.
    return None if isinstance(thing, ModuleType) else thing


def method_of(partial: "functools.partialmethod[Any]") -> Any:
    """Return the function, classmethod or staticmethod that a `partialmethod` in a class body stands for.

    :raises CacheTypeError: if it wraps something else, such as a property.
    """
    within: Any = partial.func
    if isinstance(within, staticmethod):
        return staticmethod(functools.partial(within.__func__, *partial.args, **partial.keywords))
    if isinstance(within, classmethod):
        return classmethod(method_of(functools.partialmethod(within.__func__, *partial.args, **partial.keywords)))
    if not inspect.isfunction(within):
        kind = type(within).__name__
        raise CacheTypeError("function", f"a partialmethod of a {kind} cannot be cached; write a method that calls it")
    method = _async_method(partial) if inspect.iscoroutinefunction(within) else _method(partial)
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(method, name, getattr(within, name))
    setattr(method, _FILLED, partial)
    # `inspect` fills in the positional arguments after `self`; `self` itself stays a parameter.
    filled = inspect.signature(functools.partial(within, None, *partial.args, **partial.keywords))
    first = next(iter(inspect.signature(within).parameters.values()))
    kept = [parameter for parameter in filled.parameters.values() if parameter.name != first.name]
    method.__signature__ = filled.replace(parameters=[first.replace(kind=first.POSITIONAL_ONLY), *kept])
    return method


def _method(partial: "functools.partialmethod[Any]") -> Any:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return partial.func(self, *partial.args, *args, **{**partial.keywords, **kwargs})

    return method


def _async_method(partial: "functools.partialmethod[Any]") -> Any:
    async def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await partial.func(self, *partial.args, *args, **{**partial.keywords, **kwargs})

    return method
