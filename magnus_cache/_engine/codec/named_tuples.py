"""Named tuples of classes that are not registered: they come back as named tuples of the same name and fields.

Libraries make such classes as they go, some a new one for each call, so there is nothing to register. What comes back
is of a class that this module makes of the name and the fields, one for both. A class with methods or defaults of its
own is refused: its tuples would come back without them.
"""

import keyword
from collections import namedtuple
from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.codec.class_cache import ClassCache
from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.markers import expect, kind_of, marker, type_name
from magnus_cache.errors import CacheDecodeError

__all__ = ["NAMED_TUPLE_KIND", "encode_named_tuple", "is_rebuilt", "restore_named_tuple"]

NAMED_TUPLE_KIND: Final = b"N"
_NAMED_TUPLE: Final = marker(NAMED_TUPLE_KIND)

_LONGEST: Final = 255
"""Characters of the name of a class or field."""

_MOST_FIELDS: Final = 1_664
"""Fields: as many as a row of PostgreSQL has at most."""

_KEPT: Final = 512
"""Classes that are kept, of five kilobytes each."""

_new: Final[Callable[..., Any]] = getattr(tuple, "__new__")  # noqa: B009 - its own type is only half known

_Key = tuple[str, str]
"""The name of a class, and its fields with a space between them."""


def _good(name: str) -> bool:
    return len(name) <= _LONGEST and name.isidentifier() and not keyword.iskeyword(name)


def _make(key: _Key) -> Any:
    name, text = key
    fields = text.split(" ") if text else []
    # Whether this raises ValueError, the function checks itself, also for names that begin with an underscore.
    if not _good(name) or len(fields) > _MOST_FIELDS or not all(map(_good, fields)) or len({*fields}) < len(fields):
        raise CacheDecodeError("malformed", "the payload names a class or fields that a named tuple cannot have")
    # A field that a query did not name is called _0, _1 ... by `rename`, and in no other way.
    cls: Any = namedtuple(name, fields, rename=True)  # type: ignore[misc]  # noqa: PYI024  # known at run time only
    if cls._fields != tuple(fields):
        raise CacheDecodeError("malformed", "the payload names fields that a named tuple cannot have")
    cls.__module__ = __name__
    setattr(cls, "__reduce__", _reduce)  # noqa: B010 - type checkers take it for a method of `type`
    return cls


def _reduce(self: Any) -> tuple[Any, ...]:
    # pickle finds no class of that name in a module.
    return _rebuilt, (type(self).__name__, " ".join(self._fields), tuple(self))


def _rebuilt(name: str, fields: str, values: tuple[Any, ...]) -> Any:
    return _new(_classes.own((name, fields)), values)


_classes: Final[ClassCache[_Key, Any]] = ClassCache(_make, lambda key: key[1].count(" ") + 1, _KEPT)

_PLAIN: Final = frozenset(vars(_make(("Plain", "")))) | {
    "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__classcell__", "__dict__",
    "__firstlineno__", "__orig_bases__", "__parameters__", "__slotnames__", "__static_attributes__",
    "__type_params__", "__weakref__",
}  # fmt: skip
"""Attributes of a named tuple's class that do not change the behaviour of its tuples. `copy` and `pickle` add one."""


def is_rebuilt(cls: type[Any]) -> bool:
    """Return whether a class is one that this module made."""
    return cls.__module__ == __name__ and tuple in cls.__bases__


def encode_named_tuple(value: Any, cls: type[Any]) -> list[Any] | None:
    """Return a named tuple as a marked list, or None for other values and for those that would not decode as equal."""
    fields: Any = getattr(cls, "_fields", None)
    if kind_of(fields) is not tuple or cls.__bases__ != (tuple,) or not vars(cls).keys() <= _PLAIN | {*fields}:
        return None
    if getattr(cls, "_field_defaults", None) or len(fields) != len(value):
        return None
    key = (cls.__name__, " ".join(fields))
    try:
        # Made now, so that the tuple can be read here whatever else is being read.
        _classes.own(key)
    except CacheDecodeError:
        return None
    return [*key, *preserve_bytearrays(list(value)), _NAMED_TUPLE]


def restore_named_tuple(items: list[Any]) -> Any:
    """Return the named tuple that the items of a marked list describe.

    :raises CacheDecodeError: if its name or fields cannot be any, or if there are too many different ones.
    """
    name, fields, *values = items
    cls = _classes.from_wire((expect(name, str), expect(fields, str)))
    if len(values) != len(cls._fields):
        raise CacheDecodeError("malformed", f"the payload has another number of values than {type_name(cls)} has")
    return _new(cls, values)
