"""Comparing values with what came back of them."""

from collections import OrderedDict, defaultdict, deque
from typing import Any

from magnus_cache._engine.codec import named_tuples, rows

__all__ = ["alike", "forget_what_was_made"]


def forget_what_was_made() -> None:
    """Forget how much was made of names from the wire just now, by the test before."""
    for cache in (named_tuples._classes, rows._sqlite_cursors, rows._sqlalchemy_parents):
        cache._used = 0


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types throughout; named tuples, of the same name and fields."""
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        named = (type(one).__name__, one._fields) == (type(other).__name__, getattr(other, "_fields", None))
        return named and alike(tuple(one), tuple(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, defaultdict) and one.default_factory is not other.default_factory:
        return False
    if isinstance(one, deque) and one.maxlen != other.maxlen:
        return False
    if isinstance(one, OrderedDict) and list(one) != list(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(alike, one, other)) and all(map(alike, one.values(), other.values()))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)
