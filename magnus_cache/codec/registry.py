"""The classes that may be cached beside the built-in types, by class and by the name they have on the wire."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, overload

from magnus_cache.codec.builtin import ENCODERS
from magnus_cache.codec.marks import expect, kind_of, mark, type_name
from magnus_cache.codec.shapes import Shape, shape_of
from magnus_cache.codec.traps import exact
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheEncodeError, CacheTypeError
from magnus_cache.sections import section

__all__ = ["Registration", "encode_registered", "register_type", "registration", "restore_registered"]

T = TypeVar("T")

_REGISTERED: Final = mark(b"R")
_NATIVE: Final = frozenset(
    {*ENCODERS, type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict, object, type}
)


class Registration(NamedTuple):
    """One class that may be cached."""

    name: str
    cls: type
    shape: Shape


# Read without a lock: an entry is immutable and replaced as a whole.
_by_class: Final[dict[type, Registration]] = {}
_by_name: Final[dict[str, Registration]] = {}


@overload
def register_type(
    cls: type[T],
    *,
    name: str | None = None,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
) -> type[T]: ...
@overload
def register_type(
    cls: None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Callable[[type[T]], type[T]]: ...
def register_type(
    cls: type[Any] | None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Any:
    """Allow the instances of a class in the cache, and return the class; also a decorator, bare or with arguments.

    Enum, NamedTuple, dataclass and pydantic classes need no functions: their fields are stored and restored by name,
    without running `__init__` or validators. Exactly this class is registered, not its subclasses. Register at import,
    in every process that reads the values.

    :param name: the name on the wire, ``"module.qualname"`` by default. Keep the old one when you move a class; choose
        a new one when old values must no longer be read. A class can be registered again: the last name is written,
        the earlier ones still read.
    :param encode: turns an instance into something the cache can store.
    :param decode: turns that back into an instance; whatever it raises makes the stored value a miss.
    :raises CacheArgumentError: if the functions are missing or only one is given, if the class is one of the built-in
        types, or if another class has the name.
    :raises CacheTypeError: if `cls` is no class or `name` no string.
    """
    if cls is None:

        def register(later: type[Any]) -> type[Any]:
            return register_type(later, name=name, encode=encode, decode=decode)

        return register
    given: Any = cls
    if not isinstance(given, type):
        raise CacheTypeError("cls", f"register_type takes a class, not {kind_of(cls).__name__}")
    if cls in _NATIVE:
        raise CacheArgumentError("cls", f"{cls.__name__} needs no registration, and can have none")
    label: Any = name
    if name is not None and (not isinstance(label, str) or not name):
        raise CacheTypeError("name", "the name on the wire is a string of at least one character")
    _add(Registration(name or type_name(cls), cls, _shape(cls, encode, decode)))
    return cls


def _shape(cls: type, encode: Callable[[Any], Any] | None, decode: Callable[[Any], Any] | None) -> Shape:
    if encode is not None and decode is not None:
        return Shape(encode, decode)
    if (encode is None) is not (decode is None):
        raise CacheArgumentError("encode" if encode is None else "decode", "give both encode= and decode=, or neither")
    shape = shape_of(cls)
    if shape is None:
        raise CacheArgumentError(
            "cls",
            f"{type_name(cls)} is no Enum, NamedTuple, dataclass or pydantic model, so register_type needs "
            "encode= (instance to something the cache can store) and decode= (the way back)",
        )
    return shape


def _add(new: Registration) -> None:
    with section():
        old = _by_name.get(new.name)
        if old is not None and old.cls is not new.cls:
            # A reloaded module makes its classes anew; the instances of the old ones are then strangers.
            if type_name(old.cls) != type_name(new.cls):
                raise CacheArgumentError(
                    "name", f"{new.name!r} already stands for {type_name(old.cls)}; give {type_name(new.cls)} a name="
                )
            # A main module that is imported as well has each class twice, and both are in use.
            if old.cls.__module__ == new.cls.__module__:
                _by_class.pop(old.cls, None)
        _by_name[new.name] = new
        _by_class[new.cls] = new


def registration(cls: type) -> Registration | None:
    """Return what is known about exactly this class."""
    return _by_class.get(cls)


def encode_registered(entry: Registration, value: Any) -> list[Any]:
    """Return an instance of a registered class as a marked list.

    :raises CacheEncodeError: if its encode function raises.
    """
    try:
        state = exact(entry.shape.encode(value))
    except (CacheEncodeError, RecursionError):
        raise
    except Exception as error:
        name = type_name(entry.cls)
        raise CacheEncodeError(name, f"encoding an instance of {name} raised {type(error).__name__}") from error
    return [entry.name, state, _REGISTERED]


def restore_registered(items: list[Any]) -> Any:
    """Return the instance that the items of a marked list describe.

    :raises CacheDecodeError: ``"unknown_type"`` if no class has the name.
    """
    name, state = items
    entry = _by_name.get(expect(name, str))
    if entry is None:
        raise CacheDecodeError("unknown_type", f"no class is registered as {name[:100]!r} in this process")
    return entry.shape.decode(state)
