"""The shape of a function's calls, if it is plain: where the arguments are that its keys are made of.

A function is plain if its calls fill its parameters as the interpreter says: no decorator, partial or bound method in
between, and neither ``*args`` nor ``**kwargs``. A wrapper with the same parameters then has every argument in a local
variable, defaults filled in, and can find a value by them without binding the call and without making its key.
"""

import enum
import inspect
from collections.abc import Callable, Collection, Iterable
from datetime import date
from typing import Any, Final, NamedTuple
from uuid import UUID

from magnus_cache._engine.keys.arguments import Call
from magnus_cache._engine.keys.instances import InstanceKey

__all__ = ["EXACT", "CallShape", "exact_types", "shape_by_arguments", "shape_of"]

EXACT: Final = frozenset({str, int, bool, bytes, type(None), date, UUID})
"""Types whose values are equal exactly if their canonical texts are, provided that the types are the same too.

Neither float (0.0 equals -0.0) nor Decimal (1.0 equals 1.00) nor datetime (one instant in two zones).
"""

_MOST: Final = 20
"""Parameters of a plain function: a wrapper for more would be long, and such functions are slow anyway."""

_LONGEST: Final = 512
"""Bytes, or characters, of a single value that is worth remembering."""

_VARIADIC: Final = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


class CallShape(NamedTuple):
    """The parameters of a plain function.

    :ivar names: of all parameters, in the order of the function's code: the keyword-only ones are last.
    :ivar positional_only: how many of them come by place only.
    :ivar keyword_only: how many of them come by name only.
    :ivar keyed: the places of those whose values tell the keys of calls apart; the instance is not among them.
    :ivar owner: what tells instances apart, for a method; the instance is the first parameter.
    :ivar closure: returns the text for the variables that the function closes over, if that is part of its keys.
    :ivar key_func: returns the key; then `keyed` has the places of what it is called with.
    :ivar enums: whether members of an Enum tell keys apart as they tell each other apart.
    """

    names: tuple[str, ...]
    positional_only: int
    keyword_only: int
    keyed: tuple[int, ...]
    owner: InstanceKey | None = None
    closure: Callable[[], str] | None = None
    key_func: Callable[..., Any] | None = None
    enums: bool = False

    @property
    def positional(self) -> int:
        """How many parameters may come by place."""
        return len(self.names) - self.keyword_only

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the values that tell keys apart, of a call with all arguments: those by place, then the others."""
        count = self.positional
        return [args[place] if place < count else kwargs[self.names[place]] for place in self.keyed]


def shape_of(call: Call, keyed: Collection[str]) -> CallShape | None:
    """Return the shape of a plain function's calls; None for any other function.

    :param keyed: the names of the parameters whose values tell keys apart.
    """
    function, filled = call.function, call.filled
    if (
        not call.plain  # a partial may fill in nothing
        or call.guessed
        or call.thing is not None
        or "__signature__" in vars(function)
    ):
        return None
    if filled.args or filled.kwargs or filled.bound or filled.after:
        return None
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    # By its own parameters, and not by those of what it wraps; a name with a dot is the interpreter's own.
    if code.co_flags & _VARIADIC or list(names) != list(call.parameters) or len(names) > _MOST:
        return None
    if not all(name.isidentifier() for name in names):
        return None
    places = tuple(place for place, name in enumerate(names) if name in keyed)
    return CallShape(names, code.co_posonlyargcount, code.co_kwonlyargcount, places)


def shape_by_arguments(call: Call, excluded: frozenset[str], owner: InstanceKey | None) -> CallShape | None:
    """Return the shape of calls whose keys are made of their arguments; None if only binding them can tell.

    :param excluded: the names of parameters that are not part of keys.
    :param owner: what makes the instance's part of keys; None for functions, and where it is excluded.
    """
    dropped = excluded if owner is None else excluded | {call.instance}
    shape, closure = shape_of(call, call.parameters.keys() - dropped), call.closure
    if shape is None:
        return None
    if closure is None or closure.importable:
        return shape._replace(owner=owner, enums=True)
    # What it closes over may change from call to call, and so may an instance: that both do is left to binding.
    return None if owner is not None else shape._replace(closure=closure.text, enums=True)


def exact_types(values: Iterable[Any], *, enums: bool) -> tuple[type, ...] | None:
    """Return the types of some values if, for values of these types, to be equal is to make equal keys; else None.

    A float that is not zero is such a value: 0.0 and -0.0 are equal and make two keys. As zeros are never remembered,
    none of them is taken for the other. Nor are values remembered that would fill memory.

    :param enums: whether members of an Enum count too.
    """
    types: list[type] = []
    for value in values:
        kind: type = type(value)
        if kind not in EXACT and not (kind is float and value != 0.0) and not (enums and _is_member(value)):
            return None
        if kind in (str, bytes) and len(value) > _LONGEST:
            return None
        if kind is int and value.bit_length() > 8 * _LONGEST:
            return None
        types.append(kind)
    return tuple(types)


def _is_member(value: object) -> bool:
    """Return whether it is a member of an Enum that compares its members as `enum` does."""
    kind = type(value)
    return (
        isinstance(value, enum.Enum)
        and kind.__eq__ in (object.__eq__, int.__eq__, str.__eq__)
        and kind.__hash__ in (enum.Enum.__hash__, int.__hash__, str.__hash__)
        and not hasattr(kind, "__cache_key__")
    )
