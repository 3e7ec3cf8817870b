"""The times in the header of a stored value: when its load began, and when it ends.

When the load, or the `set`, began is the header's fresh-until less its life, see `as_of`. A life is a number of single
precision, so `lived` chooses an end for which the difference is exact. That shortens a TTL by less than a ten-millionth
of the life, and whole TTLs of up to half a year by nothing.

Earlier versions wrote the life from when the value was stored. The layout is the same, and each version reads the other
one's values: of an older one, the load seems to begin when it ended.
"""

import struct
from typing import Final

from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import LONGEST

__all__ = ["LONGEST_LIFE", "as_of", "lived"]

_SINGLE: Final = struct.Struct(">f")

LONGEST_LIFE: Final = 2 * LONGEST
"""Seconds. The life of a value that lives for ever is a century, and a little more if it took long to load."""


def as_of(fresh_until: int, life: float) -> int:
    """Return when the load or write of a value began, in microseconds of Redis' clock; 0 if its header does not say.

    :param fresh_until: microseconds, and `life` seconds, as its header has them.
    """
    # Written out in `store/portions`.
    return max(0, fresh_until - int(life * MICROSECONDS)) if 0 < life < LONGEST_LIFE else 0


def lived(began: int, fresh_until: int) -> tuple[int, float]:
    """Return the end and the life of a value for its header, from which `as_of` returns exactly when it began.

    The end is at most a ten-millionth of the life before `fresh_until`.

    :param began: when the load or write of the value began, in microseconds of Redis' clock.
    :param fresh_until: likewise.
    """
    exact = _SINGLE.pack((fresh_until - began) / MICROSECONDS)
    life: float = _SINGLE.unpack(exact)[0]
    if began + int(life * MICROSECONDS) > fresh_until:
        # The number of single precision before this one: a TTL is never longer than it was to be.
        life = _SINGLE.unpack((int.from_bytes(exact, "big") - 1).to_bytes(4, "big"))[0]
    return began + int(life * MICROSECONDS), life
