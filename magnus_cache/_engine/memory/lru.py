"""An LRU table for so many entries that one `OrderedDict` would stall its caller.

CPython rebuilds a whole hash table when it grows, and now and then as entries are added and removed. Measured for an
`OrderedDict`: 1 ms with 16 thousand entries, 8 ms with 100 thousand, 300 ms with a million.
"""

from collections import OrderedDict
from typing import Final, Generic, TypeVar

__all__ = ["One", "ShardedLRU", "Table", "make_lru"]

V = TypeVar("V")

_ONE: Final = 16_384
"""Entries up to which one `OrderedDict` is enough."""

_STRIPE: Final = 8_192
"""Most entries in each of many shards, give or take the unevenness of hashing; smaller, because of the misses of
the processor's caches."""


class One(OrderedDict[bytes, V]):
    """One `OrderedDict`, with the methods that `LocalCache` needs of a table.

    Each check is followed by its action without a call in between: a signal handler, which may remove entries, runs
    only where something is called.
    """

    count = 0
    """For `ShardedLRU` only; the caller maintains it, because it stores without a call."""

    def part(self, name: bytes) -> "One[V]":
        """Return the dictionary to store a name in, immediately."""
        return self

    def take(self, name: bytes, value: V) -> bool:
        """Remove a name if it has this very value; return whether it had."""
        if name in self and self[name] is value:
            del self[name]
            return True
        return False

    def all(self) -> list[V]:
        """Return all values."""
        return list(self.values())

    def oldest(self) -> tuple[bytes, V] | None:
        """Return the least recently used item, or None if the table is empty."""
        for name in self:
            return name, self[name]
        return None


class ShardedLRU(Generic[V]):
    """Many small `OrderedDict`s with the interface of `One`.

    A name's hash selects its shard. Recency is exact within a shard, and eviction visits the shards in turn. With
    thousands of entries in each, it evicts within a few percent what one long list would evict.
    `get` and `move_to_end` need no lock, as with `OrderedDict`; the caller serializes the rest.
    """

    __slots__ = ("_mask", "_newest", "_next", "_stripes", "count")

    def __init__(self, count: int) -> None:
        """Make `count` shards, a power of two."""
        self._stripes = tuple(One[V]() for _ in range(count))
        self._mask = count - 1
        self._newest = self._stripes[0]
        self.count = self._next = 0

    def __len__(self) -> int:
        return self.count

    def part(self, name: bytes) -> One[V]:
        """Return the dictionary to store a name in, immediately; the caller maintains `count`."""
        self._newest = stripe = self._stripes[hash(name) & self._mask]
        return stripe

    def take(self, name: bytes, value: V) -> bool:
        """Remove a name if it has this very value; return whether it had."""
        stripe = self._stripes[hash(name) & self._mask]
        if name in stripe and stripe[name] is value:
            del stripe[name]
            self.count -= 1
            return True
        return False

    def get(self, name: bytes) -> V | None:
        """Return the value of a name, or None."""
        return self._stripes[hash(name) & self._mask].get(name)

    def move_to_end(self, name: bytes) -> None:
        """Make a name the most recently used one of its shard.

        :raises KeyError: if the name is missing.
        """
        self._stripes[hash(name) & self._mask].move_to_end(name)

    def oldest(self) -> tuple[bytes, V] | None:
        """Return the least recently used item of the next shard, or None if the table is empty."""
        for least in (2, 1):
            for _ in self._stripes:
                self._next = self._next + 1 & self._mask
                stripe = self._stripes[self._next]
                # The only item of the newest name's shard is the item that needs the room.
                if len(stripe) >= least and (least > 1 or stripe is not self._newest):
                    return stripe.oldest()
        return self._newest.oldest()

    def all(self) -> list[V]:
        """Return all values."""
        return [value for stripe in self._stripes for value in stripe.all()]

    def clear(self) -> None:
        """Remove everything."""
        for stripe in self._stripes:
            stripe.clear()
        self.count = 0


Table = One[V] | ShardedLRU[V]


def make_lru(entries: int) -> Table[V]:
    """Return the table for a number of entries: with exact recency up to 16 thousand, in shards above."""
    if entries <= _ONE:
        return One()
    count = 1
    while count * _STRIPE < entries:
        count *= 2
    return ShardedLRU(count)
