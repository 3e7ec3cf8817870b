"""Copies of values that cannot be stored: each caller that waited for the same load gets its own.

A value that can be stored is copied by encoding it once and decoding it for each caller. One that cannot be stored is
copied as `copy.deepcopy` does, but only as far as it is data: built-in containers, dataclasses, models, named tuples
and plain objects of these. Other objects (a client, a lock, a generator) cannot be copied sensibly; each stays one
object, within containers that are copied.
"""

import copy
import dataclasses
from collections import deque
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Final
from uuid import UUID

from magnus_cache._engine.codec.markers import kind_of

__all__ = ["MOST_PARTS", "Copier"]

MOST_PARTS: Final = 100_000
"""Parts of a value that is copied, and of all its copies together: a few tenths of a second in a worker thread."""

_ATOMS: Final = (
    type(None), bool, int, float, complex, str, bytes, range, Enum, Decimal, Fraction, date, time, timedelta, tzinfo,
    UUID, PurePath, type,
)  # fmt: skip
_CONTAINERS: Final = (list, tuple, set, frozenset, deque)
_STRANGERS: Final = (FunctionType, ModuleType)
_NO_FIELDS: Final = frozenset({"__dict__", "__weakref__"})
_OPAQUE: Final = object()


class Copier:
    """Copies one value.

    :ivar parts: how many parts it has that were looked at, at most one more than `MOST_PARTS`.
    :ivar whole: whether each copy is the caller's own in all its parts.
    """

    __slots__ = ("_shared", "_value", "parts", "whole")

    def __init__(self, value: Any) -> None:
        self._value = value
        self._shared: dict[int, Any] = {}
        self.parts = 0
        try:
            self._look()
        # Looking asks the value's own classes, which may do anything.
        except Exception:  # noqa: BLE001  # as said
            self.parts = MOST_PARTS + 1
        self.whole = not self._shared

    def copies(self, count: int) -> list[Any] | None:
        """Return so many copies; None if the value has too many parts, or copying fails."""
        if self.parts * count > MOST_PARTS or id(self._value) in self._shared:
            return None
        try:
            return [copy.deepcopy(self._value, dict(self._shared)) for _ in range(count)]
        except Exception:  # noqa: BLE001  # whatever the value's classes raise, or a RecursionError
            return None

    def _look(self) -> None:
        """Find the objects that must not be copied: `deepcopy` treats them as copied already."""
        pending: list[tuple[Any, Any]] = [(self._value, None)]
        seen: set[int] = set()
        while pending and self.parts <= MOST_PARTS:
            part, owner = pending.pop()
            if isinstance(part, _ATOMS) or (id(part) in seen and id(part) not in self._shared):
                continue
            seen.add(id(part))
            self.parts += 1
            inner = _inner(part)
            if inner is _OPAQUE:
                # An object of a class of its own is copied in full or not at all.
                stays = part if owner is None else owner
                self._shared[id(stays)] = stays
                continue
            within = part if owner is None and _plain_object(part) else owner
            pending.extend((each, within) for each in inner)


def _inner(part: Any) -> Any:
    """Return the parts of a data object; `_OPAQUE` for anything else."""
    if isinstance(part, dict):
        return [*part, *part.values(), *_attributes(part)]
    if isinstance(part, _CONTAINERS):
        return [*part, *_attributes(part)]
    if isinstance(part, bytearray):
        return ()
    kind = kind_of(part)
    if kind.__module__.partition(".")[0] in ("numpy", "pandas"):
        # They count by their bytes: copying them is fast.
        size = getattr(part, "nbytes", 0)
        return () if type(size) is not int or size <= MOST_PARTS * 100 else _OPAQUE
    if dataclasses.is_dataclass(part) or isinstance(part, SimpleNamespace) or _is_model(kind):
        return _attributes(part)
    return _attributes(part) if _plain_object(part) else _OPAQUE


def _is_model(kind: type) -> bool:
    return any(hasattr(kind, name) for name in ("__pydantic_fields__", "__attrs_attrs__", "__struct_fields__"))


def _plain_object(part: Any) -> bool:
    """Return whether this is an object of a class written in Python that does not define how it is copied."""
    kind: Any = kind_of(part)
    if isinstance(part, (*_STRANGERS, *_CONTAINERS, dict)) or dataclasses.is_dataclass(part) or _is_model(kind):
        return False
    return (
        isinstance(getattr(part, "__dict__", None), dict)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__deepcopy__")
        and all(base is object or base.__flags__ & _WRITTEN_IN_PYTHON for base in kind.__mro__)
    )


_WRITTEN_IN_PYTHON: Final = 1 << 9
"""CPython's flag of classes that were made by a class statement."""


def _attributes(part: Any) -> list[Any]:
    """Return an object's attributes, in its dictionary and in its slots."""
    found = list(getattr(part, "__dict__", {}).values())
    for base in kind_of(part).__mro__:
        slots = base.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [getattr(part, name) for name in names if name not in _NO_FIELDS and hasattr(part, name)]
    return found
