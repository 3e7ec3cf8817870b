"""An LRU table for so many entries that one `OrderedDict` would stall its caller.

CPython rebuilds a hash table as a whole, when it grows and every so often when entries come and go. Measured for an
`OrderedDict`: 1 ms with 16 thousand entries, 8 ms with 100 thousand, 300 ms with a million.
"""

from collections import OrderedDict
from typing import Final, Generic, TypeVar

__all__ = ["Stripes", "Table", "make_table"]

V = TypeVar("V")

_ONE: Final = 16_384
"""Entries for which one `OrderedDict` does."""

_STRIPE: Final = 8_192
"""Entries in each of many at most, give or take the unevenness of hashing; less, as the processor's caches miss."""


class Stripes(Generic[V]):
    """Many small `OrderedDict`s with the interface of one, as far as a cache needs it.

    A name's hash chooses its stripe. Recency is exact within a stripe, and eviction goes round the stripes; with
    thousands of entries in each, what goes is within a few percent of what one long list would give up.
    `get` and `move_to_end` need no lock, as with `OrderedDict`; the caller serializes the rest.
    """

    __slots__ = ("_count", "_mask", "_newest", "_next", "_stripes")

    def __init__(self, count: int) -> None:
        """Make `count` stripes, a power of two."""
        self._stripes = tuple(OrderedDict[bytes, V]() for _ in range(count))
        self._mask = count - 1
        self._newest = self._stripes[0]
        self._count = self._next = 0

    def __len__(self) -> int:
        return self._count

    def __setitem__(self, name: bytes, value: V) -> None:
        self._newest = stripe = self._stripes[hash(name) & self._mask]
        self._count += name not in stripe
        stripe[name] = value

    def __delitem__(self, name: bytes) -> None:
        del self._stripes[hash(name) & self._mask][name]
        self._count -= 1

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
        item = self._stripe_to_take_from().popitem(last=last)
        self._count -= 1
        return item

    def _stripe_to_take_from(self) -> OrderedDict[bytes, V]:
        for least in (2, 1):
            for _ in self._stripes:
                self._next = self._next + 1 & self._mask
                stripe = self._stripes[self._next]
                # The only item of the newest one's stripe is the very item that room is made for.
                if len(stripe) >= least and (least > 1 or stripe is not self._newest):
                    return stripe
        return self._newest

    def clear(self) -> None:
        """Remove everything."""
        for stripe in self._stripes:
            stripe.clear()
        self._count = 0


Table = OrderedDict[bytes, V] | Stripes[V]


def make_table(entries: int) -> Table[V]:
    """Return the table for a number of entries: with exact recency up to 16 thousand, in stripes above."""
    if entries <= _ONE:
        return OrderedDict()
    count = 1
    while count * _STRIPE < entries:
        count *= 2
    return Stripes(count)
