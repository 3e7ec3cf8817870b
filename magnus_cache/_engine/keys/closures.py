"""The part of keys that distinguishes functions of one name: mainly the variables they close over.

Immutable plain values (text, numbers, dates, tuples of them), enumeration members, frozen dataclasses and functions
count by value, so that other processes find the stored results. A function that has taken over the name of another, as
decorators do, also counts by the name that it was defined with. Any other object (a list, a client, a session) counts
by identity: no results are mixed up, and none are shared with other processes; a log line says how to share them. A
function that can be imported by its name, perhaps behind another decorator, counts by that name alone, without its
variables.
"""

import dis
import enum
import functools
import inspect
import logging
import re
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final
from uuid import UUID

from magnus_cache._engine.keys.canonical import UnsupportedError, canonical, class_name, encode, escape
from magnus_cache._engine.keys.identity import tokens
from magnus_cache._engine.keys.instances import constructed_without_arguments, content, is_value_class
from magnus_cache._engine.keys.lambdas import code_digest
from magnus_cache._engine.keys.partials import bound_to, prefilled
from magnus_cache._engine.keys.signatures import is_transparent
from magnus_cache._engine.runtime.log import logger
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheTypeError

__all__ = ["Closure", "closure_of"]

_SCALARS: Final = frozenset(
    {str, int, bool, bytes, float, type(None), Decimal, UUID, date, datetime, time, timedelta}
)  # fmt: skip
_WITHIN: Final = ("__wrapped__", "func", "fn", "callback")
"""Attributes under which the objects that decorators return keep the decorated function."""

_BUILT_IN: Final[dict[type, str]] = {
    functools.partial: "func",
    MethodType: "__func__",
    staticmethod: "__func__",
    classmethod: "__func__",
    property: "fget",
}
"""The same for Python's own types."""

_DEEPEST: Final = 50
_MOST_NAMES: Final = 1024
_EMPTY: Final = object()
_OWN: Final = object()

_warned: Final[set[str]] = set()


def closure_of(function: Any, name: str) -> "Closure | None":
    """Return the part that distinguishes a function from others of its name; None if the name is enough.

    :param name: the function's name, for messages.
    """
    while is_transparent(function) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if isinstance(function, FunctionType):
        return Closure(function, name, _inputs(function)) if _cells(function) or _is_renamed(function) else None
    # An object, perhaps made by a decorator, that has the name of the wrapped function.
    named = hasattr(function, "__wrapped__") and hasattr(function, "__qualname__")
    return Closure(function, name, {type(function).__qualname__: CellType(function)}) if named else None


def _cells(function: FunctionType) -> dict[str, CellType]:
    # `__class__` is what `super()` uses: the method's class, which the instance already identifies.
    names = function.__code__.co_freevars
    cells = dict(zip(names, function.__closure__ or (), strict=True))
    cells.pop("__class__", None)
    return cells


def _is_renamed(function: Any) -> bool:
    return (
        isinstance(function, FunctionType) and function.__code__.co_qualname != function.__qualname__
    )  # as by `functools.wraps`


class Closure:
    """The variables that one function closes over.

    :ivar names: their names.
    :ivar importable: whether the function can be importable by its name, once its module is complete.
    """

    __slots__ = ("_cells", "_function", "_last", "_name", "importable")

    def __init__(self, function: Any, name: str, cells: "dict[str, CellType | None]") -> None:
        self._function = function
        self._name = name
        self._cells = cells
        # The text, with the variables and the objects for which it is valid.
        self._last: tuple[tuple[tuple[CellType, Any], ...], str] | None = None
        self.importable = not _is_local(function)

    @property
    def names(self) -> frozenset[str]:
        """The names of the variables."""
        return frozenset(self._cells)

    def without(self, names: frozenset[str]) -> "Closure | None":
        """Return this closure without some variables; None if nothing is left that counts."""
        self._cells = {name: cell for name, cell in self._cells.items() if name not in names}
        return self if self._cells or _is_renamed(self._function) else None

    def text(self) -> str:
        """Return the text for the present values of the variables; empty if they do not count.

        :raises CacheTypeError: if a ``__cache_key__`` returns a value that cannot be part of a key.
        """
        if (last := self._last) is not None:
            try:
                for cell, value in last[0]:
                    if cell.cell_contents is not value:
                        break
                else:
                    return last[1]
            except ValueError:
                pass  # it was deleted
        if self.importable and _is_reachable(self._function):
            self._last = (), ""
            return ""
        return self._described()

    def _described(self) -> str:
        function, parts = self._function, list[str]()
        describing = _Describing(function, self._name)
        contents = {name: describing.contents(cell) for name, cell in self._cells.items()}
        if _is_renamed(function):
            module = module_name(function.__globals__.get("__name__"))
            parts.append(f"~code:{escape(f'{module}.{function.__code__.co_qualname}')}")
        for name, value in contents.items():
            # A variable that holds the function itself, or its decorated form, for recursion does not count.
            if value is function or not _leads_to(value, function):
                parts.append(f"{escape(name)}={describing.variable(name, value)}")
        whole = f"~closure({','.join(parts)})" if parts else ""
        if describing.opaque is not None:
            self._warn_once(*describing.opaque)
        if describing.lasts:
            self._last = tuple(describing.read), whole
        return whole

    def _warn_once(self, variable: str, kind: str) -> None:
        if self._name in _warned:
            return
        if len(_warned) >= _MOST_NAMES:
            _warned.clear()
        _warned.add(self._name)
        logger.warning(
            "%s is not the only function of that name. It differs from the others by %r (%s), which cannot be part of "
            "a key, so it caches for that one object, and nothing is shared with other processes or "
            "restarts. To share, make it an argument, leave it out with exclude=(%r,) if the results do not depend on "
            'it, or name the key with key="..." or key_func=',
            self._name,
            variable,
            kind,
            variable,
        )


class _Describing:
    """One description of the variables that a function closes over.

    :ivar read: the variables that were read, those of local functions included, and their values.
    :ivar lasts: whether the text stays valid as long as these variables hold the same objects.
    :ivar opaque: the first variable that counts by identity only, and its description.
    """

    def __init__(self, function: Any, name: str) -> None:
        self.read: list[tuple[CellType, Any]] = []
        self.lasts = True
        self.opaque: tuple[str, str] | None = None
        self._home = function
        self._name = name
        self._variable = ""
        self._seen: list[Any] = [function]

    def variable(self, name: str, value: Any) -> str:
        self._variable = name
        return self._value(value)

    def contents(self, cell: CellType | None) -> Any:
        """Return the value of a variable."""
        if cell is None:
            return _OWN
        try:
            value = cell.cell_contents
        except ValueError:
            self.lasts = False
            return _EMPTY  # not assigned yet
        self.read.append((cell, value))
        return value

    def _value(self, value: Any) -> str:
        cls: type[Any] = type(value)
        if value is _EMPTY:
            return "~unset"
        if value is _OWN:
            return self._itself(value)
        if isinstance(value, type):
            return self._itself(value) if "<locals>" in value.__qualname__ else encode(value)
        if cls in _SCALARS or isinstance(value, enum.Enum | PurePath):
            return self._encoded(value)
        if cls is tuple or cls is frozenset:
            items = list(map(self._value, value))
            return f"~({','.join(items)})" if cls is tuple else f"~f({','.join(sorted(items))})"
        if isinstance(value, ModuleType):
            return f"~module:{escape(module_name(value.__name__))}"
        if isinstance(value, logging.Logger):
            return f"~logger:{escape(value.name)}"
        if isinstance(value, re.Pattern):
            return f"~re({encode(value.pattern)},~{value.flags})"
        if callable(getattr(cls, "__cache_key__", None)):
            self.lasts = False
            return canonical(value, self._variable)
        if is_value_class(cls):
            # It is immutable, but a list in one of its fields is not; without a `__dict__`, fields are unknown.
            parts = value if isinstance(value, tuple) else getattr(value, "__dict__", {"": ...}).values()
            self.lasts = self.lasts and _SCALARS.issuperset(map(type, parts))
            try:
                return content(value)
            except UnsupportedError:
                return self._itself(value)
        return self._callable(value)

    def _encoded(self, value: Any) -> str:
        try:
            return encode(value)
        except UnsupportedError:
            return self._itself(value)

    def _callable(self, value: Any) -> str:
        """Return the text of a function, or of any other object."""
        within = prefilled(value)
        function = _unwrapped(within.function)
        if not isinstance(function, FunctionType):
            thing = bound_to(function)
            if thing is None and not inspect.isbuiltin(function):
                return self._itself(value)
            text = escape(f"{module_name(function.__module__)}.{function.__qualname__}")
            if thing is not None:
                text = f"{text}({self._instance(thing)})"
        else:
            text = self._function(function)
        parts = list(map(self._value, within.args[within.bound :]))
        if within.bound:
            parts.insert(0, self._instance(within.args[0]))
        parts += [f"{escape(name)}={self._value(item)}" for name, item in sorted(within.kwargs.items())]
        return f"~function:{text}({','.join(parts)})" if parts else f"~function:{text}"

    def _instance(self, value: Any) -> str:
        """Return the text of the object that a method is bound to, with the rules for `self` in `instances`."""
        cls: type[Any] = type(value)
        if not callable(getattr(cls, "__cache_key__", None)) and constructed_without_arguments(cls):
            return f"~self:{class_name(cls)}"
        return self._value(value)

    def _function(self, function: FunctionType) -> str:
        if function in self._seen:
            return f"~again:{self._seen.index(function)}"
        name = escape(f"{module_name(function.__module__)}.{function.__qualname__}")
        cells = _cells(function)
        if not _is_local(function) and (not (cells or _is_renamed(function)) or _is_reachable(function)):
            return name
        self._seen.append(function)
        parts = [f"~default={self._value(value)}" for value in function.__defaults__ or ()]
        for parameter, value in (function.__kwdefaults__ or {}).items():
            parts.append(f"~{escape(parameter)}={self._value(value)}")
        for variable, cell in _inputs(function).items():
            parts.append(f"{escape(variable)}={self._value(self.contents(cell))}")
        return f"{name}@{code_digest(function.__code__)}({','.join(parts)})"

    def _itself(self, value: Any) -> str:
        if self.opaque is None:
            kind = "which it assigns itself" if value is _OWN else f"a {type(value).__name__}"
            self.opaque = self._variable, kind
        for thing in (self._home if value is _OWN else value, self._home):
            try:
                return f"~itself:{tokens.of(thing)}"
            except TypeError:
                continue  # A list or dict cannot have a token; the function that closes over it can.
        raise CacheTypeError(
            "function",
            f"{self._name} is a {type(self._home).__qualname__}, which has nothing to distinguish it from others; give "
            "key= or key_func=",
        )


def _inputs(function: FunctionType) -> dict[str, CellType | None]:
    """Return the variables that a function closes over; None for those that it assigns itself, such as counters."""
    own = _assigned(function.__code__)
    return {name: None if name in own else cell for name, cell in _cells(function).items()}


def _is_local(function: Any) -> bool:
    return "<" in function.__qualname__  # as in `outer.<locals>.inner`, or `<lambda>`


def _is_reachable(function: Any) -> bool:
    """Return whether a function can be imported by its name, perhaps within other decorators."""
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = inspect.getattr_static(found, part, None)
    return _leads_to(found, function)


def _leads_to(value: Any, function: Any) -> bool:
    """Return whether a value is a function or a decorated form of it."""
    for _ in range(_DEEPEST):
        if value is function:
            return True
        value = _within(value)
    return False


def _within(value: Any) -> Any:
    for kind, name in _BUILT_IN.items():
        if isinstance(value, kind):
            return getattr(value, name)
    # Statically: the object's own `__getattr__` may do anything.
    found = (inspect.getattr_static(value, name, None) for name in _WITHIN)
    return next(filter(callable, found), None)


def _unwrapped(function: Any) -> Any:
    """Return the function inside our own wrappers, and inside others that only add a cache."""
    for _ in range(_DEEPEST):
        if not hasattr(function, "cache_info") or not hasattr(function, "__wrapped__"):
            break
        function = function.__wrapped__
    return function


def _assigned(code: CodeType) -> frozenset[str]:
    """Return which variables of an enclosing function a piece of code assigns to, including its nested code."""
    free = frozenset(code.co_freevars)
    if not free:
        return free
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF")}
    for part in code.co_consts:
        if isinstance(part, CodeType):
            names |= _assigned(part)
    return free & names
