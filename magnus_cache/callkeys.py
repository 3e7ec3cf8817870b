"""The key of a call: what `cached` stores a function's result under.

Without more said, it is the function's module and qualified name with the canonical text of its arguments, bound
to the parameters and with defaults filled in. So ``f()``, ``f(5)`` and ``f(a=5)`` are one key where 5 is the
default. What a nested function closes over is not part of it: make it an argument.

With `key_func` or a template, the key is exactly what these say: nothing is added for the function, nor for the
instance of a method.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from datetime import date
from typing import Any, Final, TypeAlias
from uuid import UUID

from magnus_cache.canonical import UnsupportedError, canonical, encode, escape, module_name
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.instances import Owner
from magnus_cache.keys import LONGEST_TEXT, KeyText, key_text, shorten
from magnus_cache.places import place_of
from magnus_cache.templates import Template

__all__ = ["CallKeys", "plain_strings"]

_Args: TypeAlias = tuple[Any, ...]
_Kwargs: TypeAlias = Mapping[str, Any]
_Fast: TypeAlias = Callable[[_Args], Hashable]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FIRST: Final = frozenset({"self", "cls"})
_FIRST_IN_CLASS: Final = _FIRST | {"mcs", "mcls", "metacls"}

# Types whose values are equal exactly if their canonical texts are, provided that the types are the same too.
# Neither float (0.0 equals -0.0) nor Decimal (1.0 equals 1.00) nor datetime (one instant in two zones).
_EXACT: Final = frozenset({str, int, bool, bytes, type(None), date, UUID})


class CallKeys:
    """The keys of one function's calls.

    :ivar name: the function's module and qualified name.
    :ivar in_class: whether it is defined in a class body.
    :ivar fast: takes the positional arguments of a call without keyword arguments and returns something hashable
        that is equal for two such calls only if their keys are; or None where that takes more than a glance.
        A mapping from it to what was found before saves the work of `key`.
    """

    __slots__ = ("_call", "_make", "fast", "in_class", "name")

    fast: _Fast

    def __init__(self, call: "_Call", make: Callable[[_Args, _Kwargs], KeyText], fast: _Fast) -> None:
        self._call = call
        self._make = make
        self.fast = fast
        self.name = call.name
        self.in_class = call.in_class

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        key_func: Callable[..., Any] | None = None,
        key: str | None = None,
        exclude: Iterable[str] = (),
    ) -> "CallKeys":
        """Return the keys of a function's calls.

        :param function: the function itself; of a classmethod or staticmethod, what is within.
        :param key_func: is called with the function's arguments and returns the key. Of a method, it gets `self`
            only if it has a parameter for it.
        :param key: a template of the key such as ``"{ticker}:{expiration}"``, see `Template`.
        :param exclude: parameters that are not part of the key, such as ``("db", "session")``. Of no meaning with
            `key_func`.
        :raises CacheTypeError: for an argument of the wrong type.
        :raises CacheArgumentError: for both `key` and `key_func`; for unknown parameters; and for a template that
            names no parameter where the function has some.
        """
        if key is not None and key_func is not None:
            raise CacheArgumentError("key", "give key= or key_func=, not both")
        call = _Call(function)
        excluded = call.check_exclude(exclude)
        if key_func is not None:
            return cls(call, _ByFunction(call, key_func).key, _never)
        if key is not None:
            template = _ByTemplate(call, key, excluded)
            unused = frozenset(call.parameters) - template.template.fields
            return cls(call, template.key, _never if template.template.attributes else _fast(call, unused, None))
        by_arguments = _ByArguments(call, excluded)
        return cls(call, by_arguments.key, _fast(call, excluded, by_arguments.owner))

    def key(self, args: _Args, kwargs: _Kwargs) -> KeyText:
        """Return the key of a call.

        :raises TypeError: the one that calling the function with these arguments raises.
        :raises CacheTypeError: for an argument that cannot be part of a key; and for a result of `key_func`, or
            a field of a template, that cannot be one.
        :raises CacheArgumentError: for an empty key, or a field of a template that is not there.
        """
        return self._make(args, kwargs)

    text = key

    @property
    def parameters(self) -> list[str]:
        """The names of the function's parameters."""
        return list(self._call.parameters)

    @property
    def first(self) -> tuple[int, str] | None:
        """The place and name of the first positional parameter beside the instance; None if there is none."""
        for place, parameter in enumerate(self._call.parameters.values()):
            if parameter.kind in _POSITIONAL and parameter.name != self._call.instance:
                return place, parameter.name
        return None

    def bind(self, args: _Args, kwargs: _Kwargs) -> dict[str, Any]:
        """Return the arguments of a call by parameter, defaults filled in.

        :raises TypeError: the one that calling the function with these arguments raises.
        """
        return self._call.bind(args, kwargs)

    def fast_call(self, args: _Args, kwargs: _Kwargs) -> Hashable:
        """Do what `fast` does for a call with keyword arguments, in some more time."""
        first = self.fast(args)
        if first is None:
            return None
        for value in kwargs.values():
            if type(value) is not str:
                break
        else:
            return first, *kwargs.items()
        values = tuple(kwargs.values())
        types = tuple(map(type, values))
        return (first, tuple(kwargs), values, types) if _EXACT.issuperset(types) else None

    def memorable(self, key: KeyText) -> bool:
        """Return whether to remember a call by its arguments: not if they are so long that they would fill memory."""
        return len(key) <= LONGEST_TEXT and "~#" not in key


class _Call:
    """A function's signature, and how its arguments are told apart."""

    __slots__ = ("function", "in_class", "instance", "name", "owner", "parameters", "signature")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.signature = _signature(function)
        self.parameters = self.signature.parameters
        qualname = getattr(function, "__qualname__", "")
        module: str = getattr(function, "__module__", None) or ""
        outer = qualname.rpartition(".")[0]
        self.owner = (module, outer)
        self.in_class = bool(outer) and not outer.endswith("<locals>")
        self.name = f"{module_name(module)}.{qualname}{place_of(function)}" if qualname else ""
        first = next(iter(self.parameters.values()), None)
        names = _FIRST_IN_CLASS if self.in_class else _FIRST
        self.instance = first.name if first is not None and first.kind in _POSITIONAL and first.name in names else None

    def bind(self, args: _Args, kwargs: _Kwargs) -> dict[str, Any]:
        """Return the arguments by parameter, defaults filled in.

        :raises TypeError: the one that calling the function raises.
        """
        bound = self.check(args, kwargs)
        bound.apply_defaults()
        return bound.arguments

    def check(self, args: _Args, kwargs: _Kwargs) -> inspect.BoundArguments:
        """Return the arguments given.

        :raises TypeError: the one that calling the function raises.
        """
        try:
            return self.signature.bind(*args, **kwargs)
        except TypeError as error:
            problem = str(error)
        if hasattr(self.function, "__wrapped__"):
            # Another decorator may hand arguments in, so that its own signature is the one to go by.
            return inspect.signature(self.function, follow_wrapped=False).bind(*args, **kwargs)
        if inspect.isfunction(self.function) and not hasattr(self.function, "__signature__"):
            # Raises before it reaches the body, and in the interpreter's own words.
            self.function(*args, **kwargs)
        raise TypeError(f"{self.name or type(self.function).__name__}() {problem}")

    def check_exclude(self, exclude: Iterable[str]) -> frozenset[str]:
        """Return the names to leave out.

        :raises CacheTypeError: for what is no collection of names.
        :raises CacheArgumentError: for a name that is no parameter.
        """
        if isinstance(exclude, str):
            exclude = (exclude,)
        if not isinstance(exclude, Iterable):
            raise CacheTypeError("exclude", f"give the names of parameters, not {type(exclude).__name__}")
        names = list(exclude)
        for name in names:
            if name not in self.parameters:
                there = ", ".join(self.parameters) or "none"
                raise CacheArgumentError("exclude", f"{name!r} is no parameter of the function; there are: {there}")
        return frozenset(names)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions written in C do not tell.
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return inspect.Signature([inspect.Parameter(f"arguments{kind.value}", kind) for kind in kinds])


# -- the three ways to a key ----------------------------------------------------------------------------------


class _ByArguments:
    __slots__ = ("_call", "_excluded", "_head", "owner")

    def __init__(self, call: _Call, excluded: frozenset[str]) -> None:
        if not call.name:
            kind = type(call.function).__name__
            raise CacheTypeError("function", f"a {kind} has no qualified name; give key= or key_func=, or use def")
        self._call = call
        self._excluded = excluded
        self._head = escape(call.name)
        instance = call.instance if call.instance not in excluded else None
        self.owner = None if instance is None else Owner(call.name, call.owner, instance)

    def key(self, args: _Args, kwargs: _Kwargs) -> KeyText:
        parts = []
        for name, value in self._call.bind(args, kwargs).items():
            if name in self._excluded:
                continue
            if self.owner is not None and name == self._call.instance:
                if part := self.owner.part(value):
                    parts.append(part)
            else:
                parts.append(f"{name}={self._one(name, value)}")
        return KeyText(shorten(f"{self._head}~({','.join(parts)})"))

    def _one(self, name: str, value: Any) -> str:
        try:
            return encode(value)
        except UnsupportedError:
            parameter = self._call.parameters.get(name)
            # A default such as `MISSING = object()` has no text of its own and needs none.
            if parameter is not None and value is parameter.default:
                return "~default"
        return canonical(value, name)


class _ByFunction:
    __slots__ = ("_call", "_drop", "_key_func")

    def __init__(self, call: _Call, key_func: Callable[..., Any]) -> None:
        if not callable(key_func):
            raise CacheTypeError("key_func", f"a function of the arguments is needed, not {type(key_func).__name__}")
        if inspect.iscoroutinefunction(key_func):
            raise CacheTypeError("key_func", "a coroutine function cannot make keys; use def")
        self._call = call
        self._key_func = key_func
        self._drop = call.instance is not None and not _takes_instance(key_func, call)

    def key(self, args: _Args, kwargs: _Kwargs) -> KeyText:
        result = self._result(args, kwargs)
        try:
            return KeyText(key_text(result, "key_func"))
        except CacheArgumentError as error:
            if inspect.iscoroutine(result):
                result.close()
            kind, problem = type(error), f"it returned a {type(result).__qualname__}: {error.problem}"
        raise kind("key_func", problem)

    def _result(self, args: _Args, kwargs: _Kwargs) -> Any:
        try:
            return self._key_func(*args[self._drop :], **kwargs)
        except TypeError:
            # Of key_func, of the call, or just of key_func's parameters having other names than the function's.
            bound = self._call.check(args, kwargs)
            given = bound.args[self._drop :]
            if not kwargs or not _binds(self._key_func, given, bound.kwargs):
                raise
            if _binds(self._key_func, args[self._drop :], kwargs):
                raise
        return self._key_func(*given, **bound.kwargs)


class _ByTemplate:
    __slots__ = ("_call", "template")

    def __init__(self, call: _Call, text: str, excluded: frozenset[str]) -> None:
        self._call = call
        self.template = Template(text, list(call.parameters))
        left_out = excluded if call.instance is None else excluded | {call.instance}
        named = [name for name in call.parameters if name not in left_out]
        if named and not self.template.fields:
            raise CacheArgumentError(
                "key",
                f"the template {text!r} names no parameter, so all calls would share one value; write "
                f"{{{named[0]}}}, or exclude={tuple(named)!r} if that is meant",
            )

    def key(self, args: _Args, kwargs: _Kwargs) -> KeyText:
        return KeyText(key_text(self.template.fill(self._call.bind(args, kwargs)), "key"))


def _takes_instance(key_func: Callable[..., Any], call: _Call) -> bool:
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
    positional = [p for p in call.parameters.values() if p.kind in _POSITIONAL]
    by_name = {p.name: None for p in call.parameters.values() if p.kind is p.KEYWORD_ONLY}
    required = [p for p in positional if p.default is p.empty]
    for given in (positional, required):
        for skipped in (0, 1):
            if _binds(key_func, tuple(given[skipped:]), by_name):
                return skipped == 0
    return False


def _binds(function: Callable[..., Any], args: _Args, kwargs: _Kwargs) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


# -- the fast path: no binding, no text ------------------------------------------------------------------------


def _never(_: _Args) -> None:
    return None


def plain_strings(args: _Args) -> Hashable:
    """Do what `CallKeys.fast` does for a function of which every parameter counts."""
    for arg in args:
        if type(arg) is not str:
            break
    else:
        return args
    return _of_types(args)


def _of_types(args: _Args) -> Hashable:
    if len(args) == 1:
        kind = type(args[0])
        return (args[0], kind) if kind in _EXACT else None
    types = tuple(map(type, args))
    return (args, types) if _EXACT.issuperset(types) else None


def _fast(call: _Call, dropped: Collection[str], owner: Owner | None) -> _Fast:
    """Return the function for `CallKeys.fast`.

    Two calls without keyword arguments fill the same parameters if they have the same number of arguments; so
    equal arguments are equal keys, whatever is dropped. What is dropped by its place is so in every call.
    """
    if dropped:
        return _fast_without(call, dropped, owner)
    if owner is None:
        return plain_strings
    part = owner.part

    def of_method(args: _Args) -> Hashable:
        rest = args[1:]
        for arg in rest:
            if type(arg) is not str:
                break
        else:
            return (part(args[0]), *rest) if args else None
        short = _of_types(rest)
        return None if short is None else (part(args[0]), short)

    return of_method


def _fast_without(call: _Call, dropped: Collection[str], owner: Owner | None) -> _Fast:
    kept: list[int] = []
    rest: int | None = None
    for place, parameter in enumerate(call.parameters.values()):
        if parameter.kind in _POSITIONAL and parameter.name not in dropped:
            kept.append(place)
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name not in dropped:
            rest = place
    least = sum(p.kind in _POSITIONAL and p.default is p.empty for p in call.parameters.values())
    most = sum(p.kind in _POSITIONAL for p in call.parameters.values())
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in call.parameters.values())
    only = kept[0] if len(kept) == 1 and rest is None and owner is None else most

    def without(args: _Args) -> Hashable:
        count = len(args)
        if only < count == most:
            kind = type(args[only])
            return (args[only], kind) if kind in _EXACT else None
        # Too few or too many would drop what makes the call an error.
        if count < least or (count > most and not open_ended):
            return None
        given = [args[place] for place in kept if place < count]
        first = None
        if owner is not None:
            first = owner.part(given.pop(0))
        if rest is not None:
            given += args[rest:]
        short = plain_strings(tuple(given))
        return None if short is None else (first, count if rest is not None else 0, short)

    return without
