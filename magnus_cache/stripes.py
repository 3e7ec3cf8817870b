"""An LRU table for so many entries that one `OrderedDict` would stall its caller.

CPython rebuilds a hash table as a whole, when it grows and every so often when entries come and go. Measured for an
`OrderedDict`: 2 ms with 32 thousand entries, 8 ms with 100 thousand, 300 ms with a million.
"""

from collections import OrderedDict
from typing import Final, Generic, TypeVar

__all__ = ["STRIPE", "Stripes", "Table", "make_table"]

V = TypeVar("V")

STRIPE: Final = 32_768
"""Entries in one `OrderedDict` at most, give or take the unevenness of hashing."""


class Stripes(Generic[V]):
    """Many small `OrderedDict`s with the interface of one, as far as a cache needs it.

    A name's hash chooses its stripe. Recency is exact within a stripe, and eviction goes round the stripes; with
    thousands of entries in each, what goes is within a few percent of what one long list would give up.
    Each method that `OrderedDict` makes atomic under the GIL is atomic here, `popitem` excepted.
    """

    __slots__ = ("_mask", "_next", "_stripes")

    def __init__(self, count: int) -> None:
        """Make `count` stripes, a power of two."""
        self._stripes = tuple(OrderedDict[bytes, V]() for _ in range(count))
        self._mask = count - 1
        self._next = 0

    def __len__(self) -> int:
        return sum(map(len, self._stripes))

    def __setitem__(self, name: bytes, value: V) -> None:
        self._stripes[hash(name) & self._mask][name] = value

    def __delitem__(self, name: bytes) -> None:
        del self._stripes[hash(name) & self._mask][name]

    def get(self, name: bytes) -> V | None:
        """Return the value of a name, or None."""
        return self._stripes[hash(name) & self._mask].get(name)

    def move_to_end(self, name: bytes) -> None:
        """Make a name the most recently used one of its stripe.

        :raises KeyError: if it is not there.
        """
        self._stripes[hash(name) & self._mask].move_to_end(name)

    def popitem(self, last: bool = True) -> tuple[bytes, V]:
        """Remove the least (or with `last`, the most) recently used item of the next stripe.

        :raises KeyError: if there is no item at all.
        """
        stripes = self._stripes
        for turn in range(self._next, self._next + len(stripes)):
            # A stripe's only item may well be the one that was just put there.
            if len(stripe := stripes[turn & self._mask]) > 1:
                self._next = turn + 1 & self._mask
                return stripe.popitem(last=last)
        return max(stripes, key=len).popitem(last=last)

    def clear(self) -> None:
        """Remove everything."""
        for stripe in self._stripes:
            stripe.clear()


Table = OrderedDict[bytes, V] | Stripes[V]


def make_table(entries: int) -> Table[V]:
    """Return the table for a number of entries: with exact recency up to `STRIPE`, in stripes above."""
    count = 1
    while count * STRIPE < entries:
        count *= 2
    return OrderedDict() if count == 1 else Stripes(count)
