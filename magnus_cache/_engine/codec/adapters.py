"""How Enum, NamedTuple, dataclass and pydantic classes are taken apart and put together without functions of theirs.

Instances are restored field by field, without `__init__`, `__post_init__` or validators: those ran when the value was
made, need not be repeatable, and would turn a read of the cache into a run of the program. Fields travel by name. One
that the stored value lacks gets the class's default; one that the class no longer has, or a missing one without
default, makes the stored value unreadable, which is a miss. A change of a field's *type* is not noticed: give the
class a new `name` with `register_type` then.
"""

import dataclasses
import enum
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec.markers import expect, kind_of, type_name
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheEncodeError

__all__ = ["Adapter", "Default", "adapter_for"]

_REQUIRED: Final[Any] = object()
_PLAIN: Final = frozenset({str, int, float, bool})
_MAPPED: Final = "_sa_class_manager"
"""SQLAlchemy's attribute on a mapped class."""

_new: Final[Callable[..., Any]] = getattr(tuple, "__new__")  # noqa: B009 - its own type is only half known

Default = Callable[[], Any]
"""Returns a field's default, or `_REQUIRED`."""


class Adapter(NamedTuple):
    """How the instances of one class travel."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    immutable: bool = False
    """Whether an instance is immutable if its items are: Enum members and named tuples."""


def adapter_for(cls: Any) -> Adapter | None:
    """Return the shape of a class that needs no functions, or None for any other class.

    :raises CacheArgumentError: for a dataclass with state outside its fields, and for a class that SQLAlchemy maps.
    """
    bases: tuple[Any, ...] = cls.__mro__
    if _MAPPED in vars(cls):
        # Its instances belong to a session, which no field tells of; put together without it, they raise at every look.
        problem = f"SQLAlchemy maps {type_name(cls)}: return rows or plain objects, or give encode= and decode="
        raise CacheArgumentError("cls", problem)
    if enum.Flag in bases:
        return _flag(cls)
    if enum.Enum in bases:
        return _enum(cls)
    if tuple in bases and isinstance(getattr(cls, "_fields", None), tuple):
        return _named_tuple(cls)
    if hasattr(cls, "__dataclass_fields__"):
        return _dataclass(cls)
    # Without its module no model can exist; importing it here would cost all other programs the time.
    pydantic = sys.modules.get("pydantic.main")
    if pydantic is not None and pydantic.BaseModel in bases:
        return _model(cls)
    return None


def _enum(cls: type[enum.Enum]) -> Adapter:
    members = cls.__members__

    def encode(value: enum.Enum) -> str:
        if members.get(value.name) is not value:
            raise CacheEncodeError(type_name(cls), f"this member of {type_name(cls)} cannot be found by its name")
        return value.name

    return Adapter(encode, members.__getitem__, immutable=True)


def _flag(cls: type[enum.Flag]) -> Adapter:
    # A combination of flags has no name of its own.
    def encode(value: enum.Flag) -> Any:
        return value.value

    def decode(bits: Any) -> Any:
        # A boundary of EJECT answers unknown bits with a plain int.
        return expect(cls(expect(bits, int)), cls)

    return Adapter(encode, decode, immutable=True)


def _named_tuple(cls: type[Any]) -> Adapter:
    names: tuple[str, ...] = cls._fields
    defaults = {name: _constant(value) for name, value in cls._field_defaults.items()}

    def encode(value: Any) -> dict[str, Any]:
        if getattr(value, "__dict__", None):
            raise CacheEncodeError(
                type_name(cls),
                f"this {type_name(cls)} has attributes beside its fields; register_type it with encode= and decode=",
            )
        return dict(zip(names, value, strict=True))

    def decode(state: Any) -> Any:
        return _new(cls, _complete(cls, state, names, defaults).values())

    return Adapter(encode, decode, immutable=True)


def _dataclass(cls: type[Any]) -> Adapter:
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields)
    defaults = {field.name: _field_default(field) for field in fields}
    _check_layout(cls, names)
    lazy = _cached_properties(cls)

    def encode(value: Any) -> Any:
        try:
            state = {name: getattr(value, name) for name in names}
        except AttributeError as error:
            raise CacheEncodeError(type_name(cls), f"a field of this {type_name(cls)} is not set") from error
        others = {
            name: item
            for name, item in getattr(value, "__dict__", {}).items()
            if name not in state and name not in lazy
        }
        return [state, others] if others else state

    def decode(state: Any) -> Any:
        others: dict[str, Any] = {}
        if kind_of(state) is list:
            state, others = state
        value = object.__new__(cls)
        for name, item in _complete(cls, state, names, defaults).items():
            object.__setattr__(value, name, item)
        if others:
            value.__dict__.update(expect(others, dict))
        return value

    return Adapter(encode, decode)


def _check_layout(cls: type, names: Iterable[str]) -> None:
    known = {*names, "__dict__", "__weakref__"}
    for base in cls.__mro__[:-1]:
        slots = base.__dict__.get("__slots__", ())
        strays = {slots} - known if isinstance(slots, str) else set(slots) - known
        if strays or base.__module__ == "builtins":
            what = f"slots that are no fields ({', '.join(sorted(strays))})" if strays else f"base {base.__name__}"
            raise CacheArgumentError("cls", f"the dataclass {type_name(cls)} has {what}; give encode= and decode=")


def _cached_properties(cls: type) -> frozenset[str]:
    return frozenset(
        name for base in cls.__mro__ for name, item in vars(base).items() if isinstance(item, cached_property)
    )


def _model(cls: type[Any]) -> Adapter:
    """Adapter a pydantic model (version 2) by the four parts of its state, as its own pickling does."""
    names = tuple(cls.model_fields)
    defaults = {name: _model_default(field) for name, field in cls.model_fields.items()}
    private = tuple(cls.__private_attributes__)
    private_defaults = {name: attribute.get_default for name, attribute in cls.__private_attributes__.items()}

    def encode(value: Any) -> list[Any]:
        state = value.__dict__
        if not all(name in state for name in names):
            raise CacheEncodeError(type_name(cls), f"a field of this {type_name(cls)} is not set")
        parts = [
            {name: state[name] for name in names},
            value.__pydantic_fields_set__,
            value.__pydantic_extra__,
            value.__pydantic_private__,
        ]
        if len(state) > len(names):
            # An attribute that a library has added, such as the number of a request.
            others = {name: item for name, item in state.items() if name not in names and kind_of(item) in _PLAIN}
            if others and not others.keys() <= (lazy := _cached_properties(cls)):
                parts.append({name: item for name, item in others.items() if name not in lazy})
        return parts

    def decode(parts: Any) -> Any:
        state, fields_set, extra, hidden, *more = parts
        allowed = {*names, *(extra or ())}
        if (extra is None) is (cls.model_config.get("extra") == "allow") or not expect(fields_set, set) <= allowed:
            raise CacheDecodeError("malformed", f"the stored {type_name(cls)} does not fit the class as it is now")
        if private:
            hidden = _complete(cls, hidden or {}, private, private_defaults, partial=True)
        value: Any = object.__new__(cls)
        fields = _complete(cls, state, names, defaults)
        for others in more:
            for name in expect(others, dict).keys() - {*names}:
                fields[expect(name, str)] = others[name]
        value.__setstate__(
            {
                "__dict__": fields,
                "__pydantic_fields_set__": fields_set,
                "__pydantic_extra__": extra,
                "__pydantic_private__": hidden,
            }
        )
        return value

    return Adapter(encode, decode)


def _complete(
    cls: type, state: Any, names: tuple[str, ...], defaults: Mapping[str, Default], *, partial: bool = False
) -> dict[str, Any]:
    """Return the fields in the class's order, missing ones by their defaults (or left out if `partial`)."""
    if kind_of(state) is dict and tuple(state) == names:
        whole: dict[str, Any] = state
        return whole
    complete: dict[str, Any] = {}
    for name in names:
        item = state[name] if name in expect(state, dict) else _missing(defaults, name)
        if item is not _REQUIRED:
            complete[name] = item
        elif not partial:
            raise CacheDecodeError("malformed", f"the stored {type_name(cls)} lacks a field that the class now has")
    if not set(state) <= set(names):
        raise CacheDecodeError("malformed", f"the stored {type_name(cls)} has a field that the class lacks")
    return complete


def _missing(defaults: Mapping[str, Default], name: str) -> Any:
    default = defaults.get(name)
    item = _REQUIRED if default is None else default()
    return _REQUIRED if kind_of(item).__name__ == "PydanticUndefinedType" else item


def _constant(value: Any) -> Default:
    return lambda: value


def _field_default(field: dataclasses.Field[Any]) -> Default:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return _constant(_REQUIRED if field.default is dataclasses.MISSING else field.default)


def _model_default(field: Any) -> Default:
    if field.is_required():
        return _constant(_REQUIRED)
    return lambda: field.get_default(call_default_factory=True)
