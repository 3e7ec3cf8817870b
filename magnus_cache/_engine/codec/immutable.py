"""Which values may be handed to several callers at once."""

from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from magnus_cache._engine.codec.markers import kind_of
from magnus_cache._engine.codec.named_tuples import is_rebuilt
from magnus_cache._engine.codec.registry import registration
from magnus_cache._engine.codec.stdlib import IMMUTABLE

__all__ = ["ATOMS", "is_immutable"]

ATOMS: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range}
    | {Decimal, date, time, datetime, timedelta, timezone, ZoneInfo, UUID}
    | IMMUTABLE
)
"""The types whose instances are immutable and have no parts."""
_MUTABLE: Final = frozenset({list, dict, set, bytearray})


def is_immutable(value: object) -> bool:
    """Return whether a value is immutable all the way down, so that no caller can spoil it for another.

    True for exact built-in scalars, Enum members, and tuples, frozensets and named tuples of such, if these come back
    as they are; False for everything else, frozen dataclasses included (their fields can be changed through
    `object.__setattr__`).
    """
    kind = kind_of(value)
    if kind in ATOMS:
        return True
    if kind in _MUTABLE:
        return False
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        kind = kind_of(item)
        if kind in ATOMS or isinstance(item, Enum):
            continue
        if kind is not tuple and kind is not frozenset and not _named_tuple(item):
            return False
        kinds = set(map(kind_of, item))
        if not _MUTABLE.isdisjoint(kinds):
            return False
        if not kinds <= ATOMS:
            pending.extend(item)
    return True


def _named_tuple(value: Any) -> bool:
    kind = kind_of(value)
    if is_rebuilt(kind):
        return not getattr(value, "__dict__", None)
    entry = registration(kind)
    return (
        entry is not None
        and tuple in entry.cls.__mro__
        and entry.shape.immutable
        and not getattr(value, "__dict__", None)
    )
