"""Estimates how much memory decoded values take, from a sample of their parts.

An encoded value takes its bytes. A decoded one takes several times as many: a tuple of tuples of `Decimal` eight times.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from sys import getsizeof
from typing import Any, Final

from magnus_cache._engine.memory.entry import MOST_BYTES, CodecBytes, Entry
from magnus_cache._engine.memory.records import is_plain
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.runtime.critical import section

__all__ = ["footprint", "has_room", "keep_decoded", "keep_made", "object_size", "payload_kept"]

_NODES: Final = 256
"""Parts sampled in total. A value is estimated once, at its first hit or when it is written."""

_SAMPLES: Final = 16
"""Parts sampled of one container."""

_ALIGNMENT: Final = 16
_OBJECT: Final = 64
_HEAD: Final = getsizeof("")
_PLAIN: Final = frozenset({str, bytes, int, float, complex, range})
_SINGLE: Final = frozenset({str, bytes, int, float, complex, Decimal, date, datetime, time, timedelta})
"""Types of parts that have no parts themselves."""
_kind_of: Final[Callable[[Any], type[Any]]] = type
_SHARED: Final = frozenset({type(None), bool})
_TEXTS: Final = (str, bytes)
_SMALL_INTS: Final = range(-5, 257)
"""Integers that CPython shares."""

_SLACK: Final = 64
"""Bytes of growth below which no new entry is made."""


def footprint(value: Any, encoded: int) -> int:
    """Return about how many bytes a value takes, to within a factor of two for built-in types.

    :param encoded: bytes of the encoded value; values of other types count as at least that.
    """
    kind = type(value)
    if kind in _PLAIN:
        # The overhead of a single object is counted with the entry.
        return max(encoded, getsizeof(value) - _HEAD)
    # As the only part of something.
    size = _parts([value], 1, _NODES + 1, set())
    return max(size, encoded if kind is not bool and value is not None else 0)


def object_size(value: Any) -> int:
    """Return about how many bytes an object takes, as far as it can be asked, for the bound on the memory.

    What a library allocates outside of Python counts where the object tells: by ``nbytes``, ``estimated_size()`` or
    ``__sizeof__``.
    """
    size = 0
    for ask in (
        lambda: footprint(value, 0),
        lambda: getsizeof(value),
        lambda: value.nbytes,
        lambda: value.estimated_size(),
    ):
        try:
            told = ask()
        # The object's own methods may do anything; then they tell nothing.
        except Exception:  # noqa: BLE001  # as said
            continue
        if type(told) is int:
            size = max(size, told)
    return min(size, MOST_BYTES)


def has_room(memory: LocalCache, size: int) -> bool:
    """Return whether a value of that size may be kept decoded. A larger one is kept encoded, if at all."""
    return size <= memory.max_bytes // 2


def payload_kept(memory: LocalCache, value: Any, payload: bytes) -> bytes | None:
    """Return the payload of a decoded value if it is to be kept beside the value.

    A large cache packs its entries. Under its lock it cannot encode a value again that needs code of its class.
    """
    return payload if memory.tiered and not is_plain(value) else None


def keep_decoded(memory: LocalCache, name: bytes, entry: Entry, value: Any, *, shared: bool) -> None:
    """Replace an entry's encoded value by the decoded one if there is room, and count its new size.

    :param shared: whether the value is mutable, so that only callers whose namespace shares it may get it.
    """
    payload = entry.payload
    if payload is None:
        return
    encoded = payload_kept(memory, value, payload)
    size = entry.size - (len(payload) if encoded is None else 0) + footprint(value, len(payload))
    small = size <= entry.size + _SLACK
    if small and not shared:
        with section():
            # Value first: a reader that sees no payload must see the value.
            entry.value = value
            entry.encoded = encoded
            entry.payload = None
    elif small or has_room(memory, size):
        # Never in place for a shared value: callers that do not share it may remember the entry.
        decoded = entry.decoded(value, size, shared=shared)
        decoded.encoded = encoded
        memory.replace(name, entry, decoded)


def keep_made(memory: LocalCache, name: bytes, entry: Entry, value: Any, payload: CodecBytes) -> None:
    """Replace an entry's encoded value by what the codec of a namespace has made of it, if there is room for both.

    Never in place: to callers without that codec, it is not the value of the payload.
    """
    size = entry.size - entry.length + len(payload) + object_size(value)
    if has_room(memory, size):
        decoded = entry.decoded(value, size, shared=True)
        decoded.encoded = payload
        memory.replace(name, entry, decoded)


def _estimate(value: Any, nodes: int, seen: set[int]) -> int:
    """Estimate a value that is none of `_SINGLE`."""
    if isinstance(value, Enum | type) or id(value) in seen:
        return 0
    # All rows share the objects of their keys.
    seen.add(id(value))
    if isinstance(value, dict):
        pairs = list(islice(value.items(), _SAMPLES // 2))
        return _own(value) + _parts([part for pair in pairs for part in pair], 2 * len(value), nodes, seen)
    if isinstance(value, deque):
        return _own(value) + _parts(list(islice(value, _SAMPLES)), len(value), nodes, seen)
    if isinstance(value, list | tuple):
        return _own(value) + _parts(_spread(value), len(value), nodes, seen)
    if isinstance(value, set | frozenset):
        return _own(value) + _parts(list(islice(value, _SAMPLES)), len(value), nodes, seen)
    module = type(value).__module__
    if module == "builtins" or module in ("decimal", "datetime"):
        return _own(value)
    return _of_object(value, nodes, seen)


def _of_object(value: Any, nodes: int, seen: set[int]) -> int:
    """Estimate an object of a class: its attributes, and the bytes of an array."""
    array = type(value).__module__.partition(".")[0] in ("numpy", "pandas")
    size = getattr(value, "nbytes", 0) if array else 0
    state = getattr(value, "__dict__", None)
    parts = list(state.values()) if type(state) is dict else []
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        names: Iterable[str] = (slots,) if isinstance(slots, str) else slots
        parts += [getattr(value, name, None) for name in names if name not in ("__dict__", "__weakref__")]
    own = _OBJECT + 8 * len(parts) + (size if type(size) is int else 0)
    return own + _parts(parts[:_SAMPLES], len(parts), nodes, seen)


def _own(value: Any) -> int:
    return (getsizeof(value) + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _spread(value: Sequence[Any]) -> list[Any]:
    """Return a sample of items at unequal distances, because columns repeat at equal ones."""
    count = len(value)
    if count <= _SAMPLES:
        return list(value)
    step = count // _SAMPLES
    return [value[(place * step + place * place) % count] for place in range(_SAMPLES)]


def _parts(sample: list[Any], count: int, nodes: int, seen: set[int]) -> int:
    """Estimate all parts of a container from a sample."""
    if not sample:
        return 0
    if nodes <= 1:
        return count * _OBJECT
    each, total = max(1, (nodes - 1) // len(sample)), 0
    for part in sample:
        kind = _kind_of(part)
        if kind in _SHARED:
            continue
        if kind not in _SINGLE:
            total += _estimate(part, each, seen)
        elif not ((kind is int and part in _SMALL_INTS) or (kind in _TEXTS and len(part) < 2) or id(part) in seen):
            # Without a call: most parts are such.
            seen.add(id(part))
            total += (getsizeof(part) + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
    return total * count // len(sample)
