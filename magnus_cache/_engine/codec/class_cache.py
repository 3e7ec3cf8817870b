"""A cache of objects made from names on the wire, such as the classes of named tuples.

Another program may have chosen the names on the wire, and a class takes forty microseconds and five kilobytes. So the
latest ones are kept, a bounded number of them, and only so many are made in a tenth of a second. A program of this
process makes as many as it likes: what it encodes is not counted.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache.errors import CacheDecodeError

__all__ = ["ClassCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_PERIOD: Final = 0.1
"""Seconds."""

_NAMES: Final = 1_000
"""Names from the wire that may be turned into something in one period: that takes 5 ms."""

_OVERHEAD: Final = 8
"""How many more names a single class takes as much time as."""


class ClassCache(Generic[K, V]):
    """The latest things that were made from names.

    :param make: makes one; may raise.
    :param names: how many names a key has.
    :param most: how many are kept.
    """

    def __init__(self, make: Callable[[K], V], names: Callable[[K], int], most: int, clock: Clock = monotonic) -> None:
        self._make = make
        self._names = names
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._began = float("-inf")
        self._used = 0

    def __len__(self) -> int:
        return len(self._kept)

    def own(self, key: K) -> V:
        """Return the object of a key that this process has chosen."""
        found = self._kept.get(key)
        return self._made(key) if found is None else found

    def from_wire(self, key: K) -> V:
        """Return the object of a key from a payload.

        :raises CacheDecodeError: with the reason ``"too_costly"``, if too many were made just now.
        """
        found = self._kept.get(key)
        if found is not None:
            return found
        now = self._clock()
        if now - self._began >= _PERIOD:
            self._began, self._used = now, 0
        if self._used >= _NAMES:
            raise CacheDecodeError("too_costly", "the payload has too many named tuples or rows of different kinds")
        self._used += self._names(key) + _OVERHEAD
        return self._made(key)

    def _made(self, key: K) -> V:
        # Without a lock: two threads that make the same one at once both have a good one, and the later one stays.
        made = self._kept[key] = self._make(key)
        while len(self._kept) > self._most:
            try:
                self._kept.popitem(last=False)
            except KeyError:
                break
        return made
