"""The key of a call, under which `cached` stores a function's result.

By default, it is the function's module and qualified name with the canonical text of its arguments, bound to the
parameters and with defaults filled in. So ``f()``, ``f(5)`` and ``f(a=5)`` have one key if 5 is the default. The
instance of a method, the arguments that a partial fills in, and the variables of a nested function are part of it.

With `key_func` or a template, the key is exactly their text: neither the function nor the instance of a method is
added.

A `version` is part of the key in any case.
"""

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, TypeAlias

from magnus_cache._engine.keys.arguments import Args, Call, Kwargs
from magnus_cache._engine.keys.call_shapes import EXACT, CallShape, shape_by_arguments, shape_of
from magnus_cache._engine.keys.canonical import UnsupportedError, canonical, encode, escape
from magnus_cache._engine.keys.instances import InstanceKey
from magnus_cache._engine.keys.key_functions import KeyFunction
from magnus_cache._engine.keys.names import LONGEST_TEXT, KeyText, key_text, shorten
from magnus_cache._engine.keys.signatures import POSITIONAL
from magnus_cache._engine.keys.templates import Template
from magnus_cache._engine.keys.versions import Version, version_suffix
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["CallKeyBuilder", "plain_strings"]

_MemoKey: TypeAlias = Callable[[Args], Hashable]


class CallKeyBuilder:
    """The keys of one function's calls.

    :ivar name: the function's module and qualified name.
    :ivar module: the module's name.
    :ivar in_class: whether it is defined in a class body.
    :ivar by_name: whether the function's name is part of its keys.
    :ivar memo_key: takes the positional arguments of a call without keyword arguments and returns a hashable object.
        It is equal for two such calls only if their keys are equal; None if that takes too long to find out. A mapping
        from it to earlier results saves the work of `key`.
    :ivar shape: where a call has the arguments that its key is made of; None if only binding the call can tell.
    """

    __slots__ = (
        "_call",
        "_key_function",
        "_make",
        "_suffix",
        "by_name",
        "in_class",
        "memo_key",
        "module",
        "name",
        "shape",
    )

    memo_key: _MemoKey
    _key_function: KeyFunction

    def __init__(
        self, call: Call, make: Callable[[Args, Kwargs], KeyText], memo_key: _MemoKey, suffix: str = ""
    ) -> None:
        self._call = call
        self._make = make
        self._suffix = suffix
        self.by_name = False
        self.memo_key = memo_key
        self.shape: CallShape | None = None
        self.name = call.name
        self.module = module_name(call.owner[0])
        self.in_class = call.in_class

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        key_func: Callable[..., Any] | None = None,
        key: str | None = None,
        exclude: Iterable[str] = (),
        version: Version | None = None,
    ) -> "CallKeyBuilder":
        """Return the keys of a function's calls.

        :param function: the function itself; of a classmethod or staticmethod, the wrapped one.
        :param key_func: is called with the function's arguments and returns the key. Of a method, it gets `self`
            only if it has a parameter for it.
        :param key: a template of the key such as ``"{ticker}:{expiration}"``, see `Template`.
        :param exclude: parameters, or variables that the function closes over, that are not part of the key, such as
            ``("db", "session")``. It has no effect with `key_func`.
        :param version: a number or text that is part of the key.
        :raises CacheTypeError: for an argument of the wrong type.
        :raises CacheArgumentError: for both `key` and `key_func`; for unknown parameters; and for a template that
            names no parameter where the function has some.
        """
        if key is not None and key_func is not None:
            raise CacheArgumentError("key", "give key= or key_func=, not both")
        # `key_func` gets the caller's arguments, without those that a partial fills in.
        call, suffix = Call(function, whole=key_func is None), version_suffix(version)
        excluded = call.check_exclude(exclude)
        if key_func is not None:
            made = KeyFunction(call, key_func)
            keys = cls(call, made.key, _never, suffix)
            keys._key_function, keys.shape = made, made.shape
            return keys
        if key is not None:
            template = _ByTemplate(call, key, excluded)
            unused = frozenset(call.parameters) - template.template.fields
            memo_key = _never if template.template.attributes else _memo_key(call, unused, None)
            keys = cls(call, template.key, memo_key, suffix)
            keys.shape = None if template.template.attributes else shape_of(call, template.template.fields)
            return keys
        by_arguments = _ByArguments(call, excluded)
        keys = cls(call, by_arguments.key, _told_apart(call, _memo_key(call, excluded, by_arguments.owner)), suffix)
        keys.by_name = True
        keys.shape = shape_by_arguments(call, excluded, by_arguments.owner)
        return keys

    def key(self, args: Args, kwargs: Kwargs) -> KeyText:
        """Return the key of a call.

        :raises TypeError: the one that calling the function with these arguments raises.
        :raises CacheTypeError: for an argument that cannot be part of a key; and for a result of `key_func`, or
            a field of a template, that cannot be one.
        :raises CacheArgumentError: for an empty key, or a field of a template that is not there.
        """
        key = self._make(args, kwargs)
        return KeyText(key + self._suffix) if self._suffix else key

    def key_of(self, made: Any) -> KeyText:
        """Return the key of a call whose `key_func` has returned this; raises what `key` would."""
        key = self._key_function.text(made)
        return KeyText(key + self._suffix) if self._suffix else key

    @property
    def name_and_version(self) -> str:
        """The name and version of the function, as they are in its keys."""
        return self.name + self._suffix

    @property
    def parameters(self) -> list[str]:
        """The names of the function's parameters."""
        return list(self._call.parameters)

    @property
    def first_parameter(self) -> tuple[int, str] | None:
        """The place and name of the first positional parameter after the instance; None without one."""
        filled = self._call.filled
        count = len(filled.args)
        for place, parameter in enumerate(self._call.parameters.values()):
            free = not filled.after <= place < filled.after + count and parameter.name not in filled.kwargs
            if parameter.kind in POSITIONAL and parameter.name != self._call.instance and free:
                return place - (count if place >= filled.after else 0), parameter.name
        return None

    def bind(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        """Return the arguments of a call by parameter, defaults filled in.

        :raises TypeError: the one that calling the function with these arguments raises.
        """
        return self._call.bind(args, kwargs)

    def memo_key_of_call(self, args: Args, kwargs: Kwargs) -> Hashable:
        """Return the `memo_key` of a call with keyword arguments; takes a little longer."""
        first = self.memo_key(args)
        if first is None:
            return None
        for value in kwargs.values():
            if type(value) is not str:
                break
        else:
            return first, *kwargs.items()
        values = tuple(kwargs.values())
        types = tuple(map(type, values))
        return (first, tuple(kwargs), values, types) if EXACT.issuperset(types) else None

    def memorable(self, key: KeyText) -> bool:
        """Return whether to remember a call by its arguments; very long ones would take too much memory."""
        return self.bare and len(key) <= LONGEST_TEXT and "~#" not in key

    @property
    def bare(self) -> bool:
        """Whether calls differ by what `memo_key` and `shape` cover alone; not if the function's name is not enough."""
        closure = self._call.closure
        return closure is None or not self.by_name or not closure.importable or not closure.text()


# -- keys by arguments, and by template -------------------------------------------------------------------------


class _ByArguments:
    __slots__ = ("_bound", "_call", "_excluded", "_head", "owner")

    def __init__(self, call: Call, excluded: frozenset[str]) -> None:
        if not call.name:
            kind = type(call.function).__name__
            raise CacheTypeError("function", f"a {kind} has no qualified name; give key= or key_func=, or use def")
        self._call = call
        self._excluded = excluded
        self._head = escape(call.name)
        instance = call.instance if call.instance not in excluded else None
        self.owner = None if instance is None else InstanceKey(call.name, call.owner, instance)
        # The object that a method written in C is bound to.
        self._bound = None if call.thing is None else InstanceKey(call.name, ("", ""), "function")

    def key(self, args: Args, kwargs: Kwargs) -> KeyText:
        parts = self._guessed(args, kwargs) if self._call.guessed else self._parts(self._call.bind(args, kwargs))
        if self._call.closure is not None and (closure := self._call.closure.text()):
            parts.insert(0, closure)
        if self._bound is not None:
            parts.insert(0, self._bound.part(self._call.thing))
        text = f"{self._head}~({','.join(parts)})"
        # As `shorten` does it, without a call for each key.
        return KeyText(text if len(text) <= LONGEST_TEXT and text.isascii() else shorten(text))

    def _parts(self, arguments: Kwargs) -> list[str]:
        parts = []
        for name, value in arguments.items():
            if name in self._excluded:
                continue
            if self.owner is not None and name == self._call.instance:
                if part := self.owner.part(value):
                    parts.append(part)
            else:
                parts.append(f"{name}={self._one(name, value)}")
        return parts

    def _guessed(self, args: Args, kwargs: Kwargs) -> list[str]:
        """Return the parts of a call whose arguments may fill other parameters than the signature says.

        A decorator may add a session in first place: then the caller's first argument is not the session. So a
        positional argument counts even if its parameter is excluded, unless it cannot be part of a key, as a session
        cannot. An argument that equals a default differs from one that was left out.
        """
        call = self._call
        if not call.fits(args, kwargs):
            return self._as_given(args, kwargs)
        bound = call.check(args, kwargs)
        placed = frozenset(call.positional[: len(call.filled.full(args))])
        bound.apply_defaults()
        parts: list[str] = []
        for name, value in bound.arguments.items():
            parameter = call.parameters[name]
            if name == call.instance or (name not in placed and parameter.kind is not parameter.VAR_POSITIONAL):
                parts += self._parts({name: value})
            elif name in self._excluded:
                try:
                    parts.append(f"{name}=={encode(value)}")
                except UnsupportedError:
                    continue
            else:
                text = self._one(name, value)
                equal = parameter.default is not parameter.empty and text == self._one(name, parameter.default)
                parts.append(f"{name}=={text}" if equal else f"{name}={text}")
        return parts

    def _as_given(self, args: Args, kwargs: Kwargs) -> list[str]:
        """Return the parts of a call that fits only the decorator's own signature: its arguments as given."""
        call = self._call
        call.check(args, kwargs)
        given, parts = list(call.filled.full(args)), list[str]()
        if given and call.instance is not None:
            parts += self._parts({call.instance: given.pop(0)})
        named = {name: v for name, v in call.filled.keywords(kwargs).items() if name not in self._excluded}
        return [*parts, f"~given({','.join(canonical(value) for value in given)})", f"~named({_named(named)})"]

    def _one(self, name: str, value: Any) -> str:
        try:
            return encode(value)
        except UnsupportedError:
            parameter = self._call.parameters.get(name)
            # A default such as `MISSING = object()` has no text; it counts as the default.
            if parameter is not None and value is parameter.default:
                return "~default"
        return canonical(value, name)


def _named(arguments: Kwargs) -> str:
    return ",".join(f"{escape(name)}={canonical(value, name)}" for name, value in sorted(arguments.items()))


class _ByTemplate:
    __slots__ = ("_call", "template")

    def __init__(self, call: Call, text: str, excluded: frozenset[str]) -> None:
        self._call = call
        self.template = Template(text, list(call.parameters))
        left_out = excluded if call.instance is None else excluded | {call.instance}
        named = [name for name in call.parameters if name not in left_out]
        if named and not self.template.fields:
            raise CacheArgumentError(
                "key",
                f"the template {text!r} names no parameter, so all calls would share one value; write "
                f"{{{named[0]}}}, or exclude={tuple(named)!r} if you want that",
            )

    def key(self, args: Args, kwargs: Kwargs) -> KeyText:
        if self._call.guessed:
            self._check_places(args, kwargs)
        text = self.template.fill(self._call.bind(args, kwargs))
        # Empty fields are valid here; only `get` and `set` treat an empty key as a mistake.
        return KeyText(key_text(text, "key") if text else "~''")

    def _check_places(self, args: Args, kwargs: Kwargs) -> None:
        """Refuse a call whose positional arguments may belong to other parameters, because a decorator adds some.

        :raises CacheArgumentError: if the call leaves a field of the template to its default, but has a positional
            plain value that fills no field: it may be the value of that field.
        """
        call, fields = self._call, self.template.fields
        given, unplaced = call.given(args, kwargs)
        placed = call.positional[: len(call.filled.full(args))]
        others = [given[name] for name in placed if name in given and name not in fields and name != call.instance]
        if (left_out := fields - given.keys()) and (unplaced or any(type(value) in EXACT for value in others)):
            raise CacheArgumentError(
                "key",
                f"a decorator of {call.name} may add arguments of its own, so it is unknown which of the caller's is "
                f"{min(left_out)!r}; pass it by name, give key_func=, or put `cached` below the decorator",
            )


# -- the fast path: no binding, no text ------------------------------------------------------------------------


def _never(_: Args) -> None:
    return None


def plain_strings(args: Args) -> Hashable:
    """Return a call's `memo_key` for a function with no ignored parameters."""
    for arg in args:
        if type(arg) is not str:
            break
    else:
        return args
    return _of_types(args)


def _of_types(args: Args) -> Hashable:
    if len(args) == 1:
        kind = type(args[0])
        return (args[0], kind) if kind in EXACT else None
    types = tuple(map(type, args))
    return (args, types) if EXACT.issuperset(types) else None


def _memo_key(call: Call, dropped: Collection[str], owner: InstanceKey | None) -> _MemoKey:
    """Return the function for `CallKeyBuilder.memo_key`.

    Two calls without keyword arguments fill the same parameters if they have the same number of arguments. So equal
    arguments have equal keys, and an excluded parameter is at the same place in every call.
    """
    filled = call.filled
    if filled.args or filled.kwargs:
        # Each call has the same filled-in arguments, but a mutable one may change between calls.
        if not EXACT.issuperset(map(type, filled.kwargs.values())):
            return _never
        full, within = filled.full, _by_place(call, dropped, owner)
        return lambda args: within(full(args))
    return _by_place(call, dropped, owner)


def _told_apart(call: Call, memo_key: _MemoKey) -> _MemoKey:
    """Return a function for `CallKeyBuilder.memo_key` that also covers parts of the keys other than arguments."""
    closure, thing = call.closure, call.thing
    if thing is not None:
        return _never
    if closure is None or closure.importable:
        return memo_key

    def of_closure(args: Args) -> Hashable:
        short = memo_key(args)
        return None if short is None else (closure.text(), short)

    return of_closure


def _by_place(call: Call, dropped: Collection[str], owner: InstanceKey | None) -> _MemoKey:
    if dropped and not call.guessed:
        return _fast_without(call, dropped, owner)
    if owner is None:
        return plain_strings
    part = owner.part

    def of_method(args: Args) -> Hashable:
        rest = args[1:]
        for arg in rest:
            if type(arg) is not str:
                break
        else:
            return (part(args[0]), *rest) if args else None
        short = _of_types(rest)
        return None if short is None else (part(args[0]), short)

    return of_method


def _fast_without(call: Call, dropped: Collection[str], owner: InstanceKey | None) -> _MemoKey:
    kept: list[int] = []
    rest: int | None = None
    for place, parameter in enumerate(call.parameters.values()):
        if parameter.kind in POSITIONAL and parameter.name not in dropped:
            kept.append(place)
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name not in dropped:
            rest = place
    least = sum(p.kind in POSITIONAL and p.default is p.empty for p in call.parameters.values())
    most = sum(p.kind in POSITIONAL for p in call.parameters.values())
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in call.parameters.values())
    only = kept[0] if len(kept) == 1 and rest is None and owner is None else most

    def without(args: Args) -> Hashable:
        count = len(args)
        if only < count == most:
            kind = type(args[only])
            return (args[only], kind) if kind in EXACT else None
        # Too few or too many would hide the error of the call.
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
