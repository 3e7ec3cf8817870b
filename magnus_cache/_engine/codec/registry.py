"""The classes that may be cached beside the built-in types, by class and by the name they have on the wire.

Classes get here by `register_type`, and because an annotation names them: that of a cached function's result, or of a
field of a class that is here. A name in an annotation may not exist yet. It waits, and is looked up again when a class
is asked for that is not here.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar, overload
from weakref import WeakKeyDictionary, WeakSet

from magnus_cache._engine.codec.adapters import Adapter, adapter_for
from magnus_cache._engine.codec.builtin import ENCODERS
from magnus_cache._engine.codec.exact import preserve_bytearrays
from magnus_cache._engine.codec.hints import Scope, classes_in, fields_of, result_of
from magnus_cache._engine.codec.markers import expect, kind_of, marker, type_name
from magnus_cache._engine.runtime.critical import section
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheEncodeError, CacheTypeError

__all__ = [
    "Registration", "encode_registered", "family_registration", "late_registration", "on_replaced", "register_hint",
    "register_result", "register_type", "registration", "replaced", "restore_registered",
]  # fmt: skip

T = TypeVar("T")

_REGISTERED: Final = marker(b"R")
_NATIVE: Final = frozenset(
    {*ENCODERS, type(None), bool, int, float, str, bytes, bytearray, memoryview, list, dict, object, type}
)


class Registration(NamedTuple):
    """One class that may be cached."""

    name: str
    cls: type
    shape: Adapter
    own: bool = False
    """Whether the program's own functions encode instances."""


# Read without a lock: an entry is immutable and replaced as a whole.
_by_class: Final[dict[type, Registration]] = {}
_by_name: Final[dict[str, Registration]] = {}

_families: Final[dict[type, Registration]] = {}
"""Registrations that also serve subclasses."""

_in_families: Final[WeakKeyDictionary[type, Registration | None]] = WeakKeyDictionary()
"""What `_families` has for a class that was asked for: walking its bases takes a while."""

_latest: Final[dict[str, Registration]] = {}
"""By the name of the class, whatever its name on the wire is."""

_replaced: Final[WeakKeyDictionary[type, str]] = WeakKeyDictionary()
"""The names on the wire of classes that a reload has replaced."""

_on_replaced: Final[WeakSet[Any]] = WeakSet()

_known: Final[set[Any]] = set()
"""Annotations whose classes have been registered: single calls come with the same ones again and again."""

_MOST_KNOWN: Final = 256
_MOST_WAITING: Final = 1_000


class _Waiting(NamedTuple):
    """An annotation with names that do not exist yet."""

    hint: Any
    scope: Scope
    unknown: frozenset[str]


_waiting: Final[dict[Any, _Waiting]] = {}


@overload
def register_type(
    cls: type[T],
    *,
    name: str | None = None,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
    subclasses: bool = False,
) -> type[T]: ...
@overload
def register_type(
    cls: None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    subclasses: bool = False,
) -> Callable[[type[T]], type[T]]: ...
def register_type(
    cls: type[Any] | None = None,
    *,
    name: str | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    subclasses: bool = False,
) -> Any:
    """Allow instances of a class in the cache, and return the class. Also a decorator, with or without arguments.

    Enum, NamedTuple, dataclass and pydantic classes need no functions. Their fields are stored and restored by name,
    without running `__init__` or validators, and the classes in the annotations of their fields are registered too.
    Subclasses are not registered unless `subclasses` says so. Register at import, in every process that reads the
    values.

    :param name: the name on the wire, ``"module.qualname"`` by default. Keep the old one when you move a class; choose
        a new one when old values must no longer be read. A class can be registered again: the last name is written,
        the earlier ones still read.
    :param encode: turns an instance into something the cache can store.
    :param decode: turns that back into an instance. If it raises, the stored value counts as a miss.
    :param subclasses: whether the two functions also serve instances of subclasses that have no registration of their
        own. What `encode` returns must then tell the class, if `decode` is to know it.
    :raises CacheArgumentError: if the functions are missing or only one is given, if the class is one of the built-in
        types, or if another class has the name.
    :raises CacheTypeError: if `cls` is not a class or `name` not a string.
    """
    if cls is None:

        def register(later: type[Any]) -> type[Any]:
            return _registered(later, name, (encode, decode), _locals(1), subclasses=subclasses)

        return register
    return _registered(cls, name, (encode, decode), _locals(1), subclasses=subclasses)


def _registered(
    cls: type[Any], name: str | None, functions: tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None],
    around: Mapping[str, Any], *, subclasses: bool,
) -> type[Any]:  # fmt: skip
    given: Any = cls
    if not isinstance(given, type):
        raise CacheTypeError("cls", f"register_type takes a class, not {kind_of(cls).__name__}")
    if cls in _NATIVE:
        raise CacheArgumentError("cls", f"{cls.__name__} needs no registration, and can have none")
    label: Any = name
    if name is not None and (not isinstance(label, str) or not name):
        raise CacheTypeError("name", "the name on the wire is a string of at least one character")
    encode, decode = functions
    if subclasses and encode is None:
        raise CacheArgumentError("subclasses", "give encode= and decode=, which then serve the subclasses too")
    entry = Registration(name or type_name(cls), cls, _shape(cls, encode, decode), encode is not None)
    _add(entry)
    with section():
        # Instances of subclasses may have been looked up before.
        _families.pop(cls, None)
        if subclasses:
            _families[cls] = entry
        _in_families.clear()
    if encode is None:
        _register_all([*fields_of(cls, around)])
    return cls


def _shape(cls: type, encode: Callable[[Any], Any] | None, decode: Callable[[Any], Any] | None) -> Adapter:
    if encode is not None and decode is not None:
        return Adapter(encode, decode)
    if (encode is None) is not (decode is None):
        raise CacheArgumentError("encode" if encode is None else "decode", "give both encode= and decode=, or neither")
    shape = adapter_for(cls)
    if shape is None:
        raise CacheArgumentError(
            "cls",
            f"{type_name(cls)} is not an Enum, NamedTuple, dataclass or pydantic model, so register_type needs "
            "encode= (instance to something the cache can store) and decode= (the way back)",
        )
    return shape


def _locals(depth: int) -> Mapping[str, Any]:
    """Return the local names where a caller of this package stands: a class may be local to a function."""
    return sys._getframe(depth + 1).f_locals


def _add(new: Registration) -> None:
    watchers: list[Any] = []
    with section():
        old = _by_name.get(new.name)
        if old is not None and old.cls is not new.cls:
            # A reloaded module defines its classes again; instances of the old ones then belong to unknown classes.
            if type_name(old.cls) != type_name(new.cls):
                raise CacheArgumentError(
                    "name", f"{new.name!r} already stands for {type_name(old.cls)}; give {type_name(new.cls)} a name="
                )
            # A main module that is imported as well has each class twice, and both are in use.
            if old.cls.__module__ == new.cls.__module__:
                _by_class.pop(old.cls, None)
                _known.clear()
                _replaced[old.cls] = new.name
                watchers = list(_on_replaced)
        _by_name[new.name] = _latest[type_name(new.cls)] = new
        _by_class[new.cls] = new
        _replaced.pop(new.cls, None)
    for watcher in watchers:
        watcher.types_replaced()


def on_replaced(watcher: Any) -> None:
    """Have an object's method `types_replaced` called each time a class is registered in place of an older one."""
    _on_replaced.add(watcher)


# -- by annotation ----------------------------------------------------------------------------------------------


def register_result(function: Callable[..., Any], returns: Any, around: Mapping[str, Any]) -> None:
    """Register the classes that a function's results are of, as far as annotations tell.

    :param returns: the annotation to go by; None for the function's own.
    :param around: the local names where the function is decorated.
    :raises CacheTypeError: naming `returns`, if it is not an annotation.
    """
    hint, scope = result_of(function, around)
    if returns is not None:
        hint = _checked(returns)
    _register_all([(hint, scope)])


def register_hint(returns: Any, loader: Callable[..., Any]) -> None:
    """Register the classes that an annotation names.

    :param loader: the function around which names are looked up, if the annotation is text.
    :raises CacheTypeError: naming `returns`, if it is not an annotation.
    """
    with suppress(TypeError):  # for unhashable annotations
        if returns in _by_class or returns in _known:
            return
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known.add(_checked(returns))
    _register_all([(_checked(returns), result_of(loader)[1])])


def _checked(returns: Any) -> Any:
    if isinstance(returns, bool | int | float | bytes | list | dict | set):
        problem = f"a class or an annotation such as list[Quote] is needed, not {kind_of(returns).__name__}"
        raise CacheTypeError("returns", problem)
    return returns


def _register_all(hints: list[tuple[Any, Scope]]) -> None:
    """Register the types that annotations name, and those of their fields."""
    seen: set[type] = set()
    while hints:
        hint, scope = hints.pop()
        classes, unknown = classes_in(hint, scope)
        if unknown:
            # Without all that happens to stand around a function.
            local = {name: scope.locals[name] for name in scope.locals if name in unknown or name == scope.owner}
            kept = scope._replace(locals={**{c.__name__: c for c in classes}, **local})
            _wait(_Waiting(hint, kept, unknown))
        for cls in classes:
            if cls not in seen:
                seen.add(cls)
                if _register_quietly(cls):
                    hints.extend(fields_of(cls, scope.locals))


def _wait(item: _Waiting) -> None:
    # The same function may be decorated many times, and the same class be a field of many others.
    _waiting[id(item.scope.globals), item.scope.owner, item.unknown, repr(item.hint)] = item
    while len(_waiting) > _MOST_WAITING:
        with suppress(StopIteration, KeyError, RuntimeError):
            _waiting.pop(next(iter(_waiting)))


def _register_quietly(cls: type) -> bool:
    """Register a class if it needs no functions; return whether its fields may name others."""
    entry = _by_class.get(cls)
    if entry is not None or cls in _NATIVE:
        return entry is not None and not entry.own
    try:
        shape = adapter_for(cls)
    except CacheArgumentError:
        return False
    if shape is None:
        # A TypedDict's values are dicts.
        return hasattr(cls, "__required_keys__")
    old = _by_name.get(type_name(cls))
    if old is not None and _is_current(old.cls) and not _is_current(cls):
        # An annotation from before a reload.
        return False
    with suppress(CacheArgumentError):
        _add(Registration(type_name(cls), cls, shape))
    return True


def _is_current(cls: type) -> bool:
    """Return whether a class is the one that its module has under its name."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found is cls


def _look_again() -> bool:
    """Register what annotations name that were waiting for a name which exists by now; return whether there are any."""
    ready = [key for key, item in list(_waiting.items()) if any(map(item.scope.has, item.unknown))]
    items = [item for key in ready if (item := _waiting.pop(key, None)) is not None]
    _register_all([(item.hint, item.scope) for item in items])
    return bool(ready)


# -- looking up -------------------------------------------------------------------------------------------------


def registration(cls: type) -> Registration | None:
    """Return the registration of exactly this class."""
    return _by_class.get(cls)


def family_registration(cls: type) -> Registration | None:
    """Return the registration of the nearest base class that also serves its subclasses, or None."""
    try:
        return _in_families[cls]
    except KeyError:
        pass
    if not _families:
        return None
    with section():
        entry = next((_families[base] for base in cls.__mro__ if base in _families), None)
        _in_families[cls] = entry
    return entry


def late_registration(cls: type) -> Registration | None:
    """Return the registration of a class that `registration` does not have, once all possible ones are made.

    A class that its module has in place of a registered one, as after a reload, takes its place here too.
    """
    entry = _by_class.get(cls) if _look_again() else None
    if entry is not None:
        return entry
    old = _latest.get(type_name(cls))
    if old is None or old.cls is cls or not _is_current(cls):
        return None
    try:
        shape = old.shape if old.own else adapter_for(cls)
    except CacheArgumentError:
        return None
    if shape is None:
        return None
    _add(Registration(old.name, cls, shape, old.own))
    if not old.own:
        _register_all([*fields_of(cls)])
    return _by_class.get(cls)


def replaced(cls: type) -> Registration | None:
    """Return how the instances of a class travelled that another one has replaced since, or None for any other."""
    name = _replaced.get(cls)
    new = None if name is None else _by_name.get(name)
    if name is None or new is None:
        return None
    try:
        shape = new.shape if new.own else adapter_for(cls)
    except CacheArgumentError:
        return None
    return None if shape is None else Registration(name, cls, shape, new.own)


def encode_registered(entry: Registration, value: Any) -> list[Any]:
    """Return an instance of a registered class as a marked list.

    :raises CacheEncodeError: if its encode function raises.
    """
    try:
        state = preserve_bytearrays(entry.shape.encode(value))
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
    if entry is None and _waiting and _look_again():
        entry = _by_name.get(name)
    if entry is None:
        raise CacheDecodeError("unknown_type", f"no class is registered as {name[:100]!r} in this process")
    return entry.shape.decode(state)
