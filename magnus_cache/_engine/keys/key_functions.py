"""Keys by a function of the arguments: how `key_func` is called, and which results are valid."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from magnus_cache._engine.keys.arguments import Args, Call, Kwargs
from magnus_cache._engine.keys.call_shapes import CallShape, shape_of
from magnus_cache._engine.keys.names import KeyText, key_text
from magnus_cache._engine.keys.signatures import POSITIONAL
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["KeyFunction"]

_EMPTY: Final = {str: "~''", bytes: "~b:", tuple: "~()"}
"""The texts of empty keys. For `get` and `set` they are mistakes; here they come from arguments, which may be empty."""


class _Plan(NamedTuple):
    """How `key_func` is called for a number of positional arguments, with none by keyword.

    :ivar start: index of the first argument that it gets.
    :ivar end: index after the last argument that it gets.
    :ivar more: further positional arguments.
    :ivar named: keyword arguments.
    :ivar places: by name, the indexes of arguments that it gets by keyword instead.
    """

    start: int
    end: int
    more: Args
    named: Kwargs
    places: Mapping[str, int]


_AS_GIVEN: Final = _Plan(0, -1, (), {}, {})
"""Compared by identity: the caller is responsible for the arguments, and for problems with them."""


class KeyFunction:
    """Calls `key_func` with a call's arguments and the defaults of those left out, as far as it takes them.

    If it accepts all of them, it gets them as the function does. If its parameters have names of the function's
    parameters, it gets them by name. Otherwise it gets them as the caller gave them.

    :param call: the function whose results are kept.
    :param key_func: the given function.
    :raises CacheTypeError: if it is not a plain function.
    """

    __slots__ = ("_call", "_drop", "_key_func", "_leading", "_names", "_plans", "_rest", "_whole")

    def __init__(self, call: Call, key_func: Callable[..., Any]) -> None:
        if not callable(key_func):
            raise CacheTypeError("key_func", f"a function of the arguments is needed, not {type(key_func).__name__}")
        if inspect.iscoroutinefunction(key_func):
            raise CacheTypeError("key_func", "a coroutine function cannot make keys; use def")
        self._call = call
        self._key_func = key_func
        self._drop = call.instance is not None and not _takes_instance(key_func, call)
        self._plans: dict[int, _Plan] = {}
        # Numbers of arguments that are passed on unchanged, as in most calls.
        self._whole: set[int] = set()
        self._names, self._leading, self._rest = _by_name(key_func, call)

    def key(self, args: Args, kwargs: Kwargs) -> KeyText:
        """Return the key of a call.

        :raises TypeError: the one that calling the function with these arguments raises.
        :raises CacheTypeError: if the result of `key_func` cannot be a key.
        """
        if not kwargs and len(args) in self._whole:
            result = self._key_func(*args)
        elif kwargs:
            result = self._with_keywords(args, kwargs)
        else:
            result = self._planned(args)
        return self.text(result)

    @property
    def shape(self) -> CallShape | None:
        """The shape of calls in which `key_func` gets all arguments as the function does; None if it gets others."""
        shape = shape_of(self._call, self._call.parameters)
        if shape is None:
            return None
        placed = shape.names[self._drop : shape.positional]
        named = dict.fromkeys(shape.names[shape.positional :])
        if not _binds(self._key_func, placed, named):
            return None
        return shape._replace(key_func=self._key_func, keyed=shape.keyed[self._drop :])

    def text(self, result: Any) -> KeyText:
        """Return the key that a result of `key_func` stands for.

        :raises CacheTypeError: if it cannot be a key.
        """
        try:
            return KeyText(key_text(result, "key_func"))
        except CacheArgumentError as error:
            if isinstance(result, str | bytes | tuple) and not result:
                return KeyText(next(text for kind, text in _EMPTY.items() if isinstance(result, kind)))
            if inspect.iscoroutine(result):
                result.close()
            kind, problem = type(error), f"it returned a {type(result).__qualname__}: {error.problem}"
        raise kind("key_func", problem)

    def _planned(self, args: Args) -> Any:
        plan = self._plans.get(len(args))
        if plan is None:
            plan = self._plans[len(args)] = self._plan(len(args))
            if plan == _Plan(0, len(args), (), {}, {}):
                self._whole.add(len(args))
        if plan is _AS_GIVEN:
            return self._as_given(args, {})
        if plan.places:
            return self._key_func(**{name: args[place] for name, place in plan.places.items()}, **plan.named)
        return self._key_func(*args[plan.start : plan.end], *plan.more, **plan.named)

    def _plan(self, count: int) -> _Plan:
        if self._call.guessed:
            # It is unknown which parameters the caller fills, and which get their defaults.
            return _AS_GIVEN
        parameters, positional = self._call.parameters, self._call.positional
        left = [parameters[name] for name in positional[count:]]
        named = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        missing = any(default is inspect.Parameter.empty for default in (*(p.default for p in left), *named.values()))
        if missing or (count > len(positional) and not self._has(inspect.Parameter.VAR_POSITIONAL)):
            return _AS_GIVEN
        start, more = int(self._drop), tuple(p.default for p in left)
        if _binds(self._key_func, (None,) * (count - start) + more, named):
            return _Plan(start, count, more, named, {})
        if self._names is None:
            return _AS_GIVEN
        wanted = [name for name in positional[:count] if self._wants(name)]
        left_out = {p.name: p.default for p in left} | named
        others = {name: default for name, default in left_out.items() if self._wants(name)}
        if wanted == positional[start : start + len(wanted)] == self._leading[: len(wanted)]:
            return _Plan(start, start + len(wanted), (), others, {})
        return _Plan(0, 0, (), others, {name: positional.index(name) for name in wanted})

    def _has(self, *kinds: Any) -> bool:
        return any(parameter.kind in kinds for parameter in self._call.parameters.values())

    def _wants(self, name: str) -> bool:
        names = self._names or ()
        return name in names or (self._rest and not (self._drop and name == self._call.instance))

    def _with_keywords(self, args: Args, kwargs: Kwargs) -> Any:
        if self._call.guessed:
            return self._as_given(args, kwargs)
        bound = self._call.check(args, kwargs)
        bound.apply_defaults()
        if _binds(self._key_func, bound.args[self._drop :], bound.kwargs):
            return self._key_func(*bound.args[self._drop :], **bound.kwargs)
        if self._names is not None and not self._has(inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return self._key_func(**{name: value for name, value in bound.arguments.items() if self._wants(name)})
        return self._as_given(args, kwargs)

    def _as_given(self, args: Args, kwargs: Kwargs) -> Any:
        try:
            return self._key_func(*args[self._drop :], **kwargs)
        except TypeError:
            # Raised by key_func, by the call, or because key_func's parameters have other names than the function's.
            bound = self._call.check(args, kwargs)
            given = bound.args[self._drop :]
            if not kwargs or not _binds(self._key_func, given, bound.kwargs):
                raise
            if _binds(self._key_func, args[self._drop :], kwargs):
                raise
        return self._key_func(*given, **bound.kwargs)


def _by_name(key_func: Callable[..., Any], call: Call) -> tuple[frozenset[str] | None, list[str], bool]:
    """Return the names of `key_func`'s parameters if all are parameters of the function, else None.

    Also returns the positional ones in order, and whether it accepts further keyword arguments.
    """
    try:
        parameters = inspect.signature(key_func).parameters.values()
    except (TypeError, ValueError):
        return None, [], False
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    fits = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name in call.parameters for p in named)
    if not fits or not named:
        return None, [], False
    return frozenset(p.name for p in named), [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD], rest


def _takes_instance(key_func: Callable[..., Any], call: Call) -> bool:
    """Return whether a method's `key_func` wants `self`: by its parameters' names, or else by their number."""
    try:
        names = list(inspect.signature(key_func).parameters)
    except (TypeError, ValueError):
        return False
    others = [name for name in call.parameters if name != call.instance]
    if names and names[0] == call.instance:
        return True
    if names and others and names[0] == others[0]:
        return False
    positional = [p for p in call.parameters.values() if p.kind in POSITIONAL]
    by_name = {p.name: None for p in call.parameters.values() if p.kind is p.KEYWORD_ONLY}
    required = [p for p in positional if p.default is p.empty]
    for given in (positional, required):
        for skipped in (0, 1):
            if _binds(key_func, tuple(given[skipped:]), by_name):
                return skipped == 0
    return False


def _binds(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True
