"""Which classes an annotation names, and those in their fields.

An annotation may be text, or have text in it, and what that names may not exist yet. So text is evaluated name by name:
an unknown one stands for nothing, is reported, and does not hide the others.
"""

import builtins
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, ForwardRef, Literal, NamedTuple, TypeVar, get_args, get_origin

__all__ = ["Scope", "classes_in", "fields_of", "result_of"]

_MOST: Final = 10_000
"""Parts of one annotation that are looked at."""

_SELF: Final = ("Self",)
_TYPING: Final = ("typing", "typing_extensions")

_NO_NAMES: Final[Mapping[str, Any]] = types.MappingProxyType({})


class Scope(NamedTuple):
    """Where the names in an annotation are looked up.

    :ivar globals: the module's, as they are now and will be.
    :ivar locals: those around the function or class, as they were.
    :ivar owner: the class that `Self` means, as the path of a name; empty outside a class.
    """

    globals: Mapping[str, Any]
    locals: Mapping[str, Any] = _NO_NAMES
    owner: str = ""

    def has(self, name: str) -> bool:
        """Return whether a name is known."""
        return name in self.locals or name in self.globals or hasattr(builtins, name)


class _Unknown:
    """The placeholder for an unknown name while text is evaluated."""

    def __init__(self, *others: Any) -> None:
        self.others = others

    def __getattr__(self, name: str) -> "_Unknown":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, item: Any) -> "_Unknown":
        return _Unknown(item)

    def __or__(self, other: Any) -> "_Unknown":
        return _Unknown(self, other)

    __ror__ = __or__

    def __call__(self, *_: Any, **__: Any) -> "_Unknown":
        # typing accepts only callables as types.
        return self


class _Names(dict[str, Any]):
    """The names of a scope, for `eval`; notes those that it lacks."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.known: set[str] = set()
        self.unknown: set[str] = set()

    def __missing__(self, name: str) -> Any:
        self.known.add(name)
        for names in (self._scope.locals, self._scope.globals):
            if name in names:
                return names[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        self.known.discard(name)
        self.unknown.add(name)
        return _Unknown()


def _evaluated(text: str, scope: Scope, unknown: set[str]) -> Any:
    names = _Names(scope)
    try:
        found = eval(text, {"__builtins__": {}}, names)  # the program's own text, as typing.get_type_hints does
    except AttributeError:
        # A module that is still being imported may get it.
        found, names.unknown = None, names.unknown | names.known
    except Exception:  # noqa: BLE001  # whatever the text is, it names no class then
        found = None
    unknown |= names.unknown
    return found


def classes_in(hint: Any, scope: Scope) -> tuple[list[type[Any]], frozenset[str]]:
    """Return the classes that an annotation names, and the names in it that are not known yet.

    Looks into generics, unions, aliases, `Annotated`, the bounds of type variables, and the members of `Literal`.
    """
    found: dict[type[Any], None] = {}
    unknown: set[str] = set()
    pending: list[Any] = [hint]
    # Kept, so that no other object gets the identity of one.
    seen: dict[int, Any] = {}
    while pending and len(seen) < _MOST:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, str):
            pending.append(_evaluated(item, scope, unknown))
        elif isinstance(item, ForwardRef):
            pending.append(_evaluated(item.__forward_arg__, scope, unknown))
        elif isinstance(item, _Unknown | list | tuple):
            pending.extend(item.others if isinstance(item, _Unknown) else item)
        elif get_origin(item) is not None:
            pending.extend(_parts(item))
        elif isinstance(item, type):
            found[item] = None
        elif _is_self(item):
            if scope.owner:
                pending.append(scope.owner)
        else:
            pending.extend(_stands_for(item, unknown))
    return list(found), frozenset(unknown)


def _is_self(item: Any) -> bool:
    return getattr(item, "_name", None) in _SELF and getattr(item, "__module__", None) in _TYPING


def _parts(item: Any) -> Iterator[Any]:
    """Yield the parts of a generic."""
    origin, arguments = get_origin(item), get_args(item)
    if origin is Literal:
        yield from {type(member) for member in arguments if isinstance(member, Enum)}
    elif hasattr(item, "__metadata__"):
        # Annotated: the other arguments are not types.
        yield arguments[0]
    elif origin is not type:
        # Such as a dataclass with parameters.
        yield origin
        yield from arguments


def _stands_for(item: Any, unknown: set[str]) -> Iterator[Any]:
    """Yield the types that an alias, a new type or a type variable refers to."""
    if isinstance(item, TypeVar):
        yield from (item.__bound__, *item.__constraints__, getattr(item, "__default__", None))
    elif (base := getattr(item, "__supertype__", None)) is not None:
        yield base
    elif hasattr(type(item), "__value__"):
        try:
            yield item.__value__
        except NameError as error:
            unknown.add(str(error.name))


# -- functions --------------------------------------------------------------------------------------------------


def _annotations(item: Any) -> Mapping[str, Any]:
    """Return a function's or a class's own annotations as they were written."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(item, format=annotationlib.Format.FORWARDREF)
    # Not inherited ones.
    found: Mapping[str, Any] = vars(item).get("__annotations__", _NO_NAMES) if isinstance(item, type) else (
        getattr(item, "__annotations__", _NO_NAMES)
    )  # fmt: skip
    return found


def _undecorated(function: Any) -> Any:
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isfunction(function):
            inner = getattr(function, "__wrapped__", None)
            if inner is None or not callable(inner):
                return function
            function = inner
        elif not isinstance(function, type) and inspect.isfunction(call := getattr(type(function), "__call__", None)):  # noqa: B004
            function = call
        else:
            return function


def result_of(function: Callable[..., Any], around: Mapping[str, Any] = _NO_NAMES) -> tuple[Any, Scope]:
    """Return a function's return annotation, or None, and where its names are looked up.

    :param around: the local names where the function is decorated.
    """
    plain = _undecorated(function)
    names = getattr(plain, "__globals__", _NO_NAMES)
    try:
        hint = _annotations(plain).get("return")
    except Exception:  # noqa: BLE001  # whatever evaluating it raised
        return None, Scope(names)
    local = {} if around is names else dict(around)
    code = getattr(plain, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), getattr(plain, "__closure__", None) or (), strict=False):
        try:
            local[name] = cell.cell_contents
        except ValueError:
            pass  # not set yet
    local |= {parameter.__name__: parameter for parameter in getattr(plain, "__type_params__", ())}
    owner = getattr(plain, "__qualname__", "").rpartition(".")[0].rpartition("<locals>")[2].lstrip(".")
    return hint, Scope(names, local, owner)


# -- classes ----------------------------------------------------------------------------------------------------


def _module_names(cls: type[Any]) -> Mapping[str, Any]:
    module = sys.modules.get(cls.__module__)
    return _NO_NAMES if module is None else vars(module)


def fields_of(cls: type[Any], around: Mapping[str, Any] = _NO_NAMES) -> Iterator[tuple[Any, Scope]]:
    """Yield the annotations of a class's fields, and where their names are looked up.

    :param around: the local names around the class.
    """
    fields = _field_names(cls)
    models: Any = getattr(cls, "__pydantic_fields__", None)
    if isinstance(models, dict):
        # Evaluated already, and of a generic model with its types filled in, too.
        yield [field.annotation for field in models.values()], Scope(_module_names(cls), around, cls.__name__)
        fields -= models.keys()
    for base in cls.__mro__[:-1]:
        try:
            found = _annotations(base)
        except Exception:  # noqa: BLE001  # whatever evaluating them raised
            continue
        hints = [hint for name, hint in found.items() if name in fields]
        if hints:
            local = {**around, base.__name__: base, cls.__name__: cls}
            local |= {parameter.__name__: parameter for parameter in getattr(base, "__type_params__", ())}
            yield hints, Scope(_module_names(base), local, cls.__name__)


def _field_names(cls: type[Any]) -> set[str]:
    """Return the names of a class's fields, those of a pydantic model that are private included."""
    if hasattr(cls, "__required_keys__"):
        # A TypedDict, of whichever library.
        return {*_annotations(cls)}
    names: set[str] = set()
    for attribute in ("_fields", "__dataclass_fields__", "__pydantic_fields__", "__private_attributes__"):
        value: Any = getattr(cls, attribute, ())
        if isinstance(value, tuple | dict):
            names |= {*map(str, value)}
    return names
