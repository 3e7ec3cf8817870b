"""Comparing values with what came back of them, and damaging them on the way."""

from collections import OrderedDict, defaultdict, deque
from typing import Any

from hypothesis import strategies as st

from magnus_cache._engine.codec import decode, named_tuples, rows
from magnus_cache.errors import CacheDecodeError

__all__ = ["alike", "damaged", "decode_or_refuse", "forget_what_was_made"]


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


def damaged(payload: bytes, data: st.DataObject) -> bytes:
    """Return a payload with some of its bytes replaced."""
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def decode_or_refuse(payload: bytes) -> None:
    """Decode any bytes; the only error they may raise is that of the codec."""
    try:
        decode(payload)
    except CacheDecodeError:
        pass
