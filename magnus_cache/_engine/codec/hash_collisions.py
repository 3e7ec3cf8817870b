"""Sets and dicts whose members may have been chosen to collide.

Python randomizes the hashes of text, bytes and dates. Those of numbers, and of tuples and other things made of them,
are the same everywhere, so they can be chosen: a few thousand that share a hash keep the loop busy for seconds, a few
hundred thousand for hours. Members that share a hash are counted, which takes a time in proportion to their number.
Different hashes can be chosen, too, to meet in a table of known size: so the table is filled step by step, and
given up when it takes a hundred times the processor time that it should.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import thread_time
from typing import Any, Final, TypeVar

from magnus_cache._engine.codec.markers import kind_of
from magnus_cache.errors import CacheDecodeError

__all__ = [
    "FLOODING_BYTES", "FLOODING_KEYS", "check_hashes", "checked_dict", "checked_frozenset", "checked_set",
    "checked_update",
]  # fmt: skip

T = TypeVar("T")
D = TypeVar("D", bound=dict[Any, Any])

FLOODING_BYTES: Final = 8_192
"""Payloads below this hold the loop for 5 ms at most, whatever they contain."""

FLOODING_KEYS: Final = 1_500
"""Numbers of up to 64 bits that hold the loop for 5 ms at most, whichever they are: hardly any share a hash."""

_FEW: Final = 16
"""Members that may share a hash. Some do by nature: -1 and -2, and the tuples of them."""

_RANDOMIZED: Final = frozenset({str, bytes})

_STEP: Final = 128
_SLOW: Final = 5e-6
"""Seconds of processor time for one member that are too many; a hash that is there takes 50 ns."""

_SLOW_STEPS: Final = 4
"""Slow steps in a row that mean a flood. A single one may be the garbage collector's."""

_HASHING: Final = 8
"""Times that computing the members' hashes took, which are allowed in addition: classes of a program may be slow."""


def check_hashes(members: Sequence[Any]) -> float:
    """Check that not too many members share a hash; return the seconds of processor time that one may take to add.

    Infinitely many for text and bytes.

    :raises CacheDecodeError: with the reason ``"too_costly"``.
    """
    if len(members) <= _FEW or set(map(kind_of, members)) <= _RANDOMIZED:
        return math.inf
    began = thread_time()
    hashes = list(map(hash, members))
    allowed = _SLOW + (thread_time() - began) / len(hashes) * _HASHING
    distinct: set[int] = set()
    _fill(distinct.update, hashes, _SLOW)
    if len(distinct) < len(hashes) - _FEW and max(Counter(hashes).values()) > _FEW:
        raise _refusal()
    return allowed


def checked_set(items: list[Any]) -> set[Any]:
    """Return a set.

    :raises CacheDecodeError: with the reason ``"too_costly"``, if its members were chosen to collide.
    """
    if len(items) <= _FEW:
        return set(items)
    whole: set[Any] = set()
    _fill(whole.update, items, check_hashes(items))
    return whole


def checked_frozenset(items: list[Any]) -> frozenset[Any]:
    """Return a frozenset; else as `checked_set`."""
    return frozenset(checked_set(items))


def checked_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict of keys and values.

    :raises CacheDecodeError: with the reason ``"too_costly"``, if its keys were chosen to collide.
    """
    if len(pairs) <= _FEW:
        return dict(pairs)
    return checked_update({}, pairs)


def checked_update(whole: D, pairs: list[tuple[Any, Any]]) -> D:
    """Return a dict, of whatever kind, with keys and values added.

    :raises CacheDecodeError: with the reason ``"too_costly"``, if the keys were chosen to collide.
    """
    _fill(whole.update, pairs, check_hashes([key for key, _ in pairs]))
    return whole


def _fill(add: Callable[[Iterable[T]], object], items: list[T], allowed: float) -> None:
    """Add items step by step, as long as each step takes a time in proportion to its size."""
    if allowed == math.inf:
        add(items)
        return
    slow = 0
    for place in range(0, len(items), _STEP):
        step = items[place : place + _STEP]
        began = thread_time()
        add(step)
        slow = slow + 1 if thread_time() - began > allowed * len(step) else 0
        if slow == _SLOW_STEPS:
            raise _refusal()


def _refusal() -> CacheDecodeError:
    return CacheDecodeError("too_costly", "the members of a set, or the keys of a dict, were chosen to collide")
