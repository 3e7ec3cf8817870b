"""What a clear leaves behind: floors under the generation of an entry, so that clearing a million entries is O(1).

Every clear opens a new generation. An entry carries the generation in which it was last known to be good; whoever
meets an older one asks the floors once whether a clear since then covered its name.
"""

import re
import sys
from typing import Final, NamedTuple

__all__ = ["Floor", "Floors", "Scope", "covers"]

Scope = bytes | re.Pattern[bytes]
"""What a clear covers: the names with a prefix, or those that a pattern matches in full."""

_MOST: Final = 64
"""Floors kept; past this, one under everything replaces them all: too many misses, never a stale value."""


def covers(scope: Scope, name: bytes) -> bool:
    """Return whether a name is within a clear's scope."""
    return name.startswith(scope) if isinstance(scope, bytes) else scope.fullmatch(name) is not None


class Floor(NamedTuple):
    """One clear. Entries within its scope and of an older generation are gone.

    :ivar done: the collector's step count at which it has met every entry that was there at the time.
    """

    scope: Scope
    generation: int
    done: int = sys.maxsize


class Floors:
    """The clears whose entries may still be in memory, oldest first; at most 64.

    `cleared` needs no lock, as the tuple is replaced and never changed; the caller serializes the rest.
    """

    __slots__ = ("_floors",)

    def __init__(self) -> None:
        self._floors: tuple[Floor, ...] = ()

    def __len__(self) -> int:
        return len(self._floors)

    def add(self, floor: Floor) -> Floor:
        """Lay a floor, and return it as it lies; older ones within its scope are no longer needed."""
        while True:
            before, new = self._floors, floor
            kept = tuple(old for old in before if not _within(old.scope, floor.scope))
            if len(kept) >= _MOST:
                kept, new = (), floor._replace(scope=b"")
            after = (*kept, new)
            # Else a signal handler has laid one meanwhile. No call between the look and the store.
            if self._floors is before:
                self._floors = after
                return new

    def end(self, floor: Floor, done: int) -> None:
        """Note at which step count the collector is done with a floor that was laid."""
        while True:
            before = self._floors
            after = tuple(old._replace(done=done) if old is floor else old for old in before)
            if self._floors is before:
                self._floors = after
                return

    def cleared(self, name: bytes, generation: int) -> bool:
        """Return whether a clear later than a generation covered a name."""
        for floor in reversed(self._floors):
            if floor.generation <= generation:
                return False
            if covers(floor.scope, name):
                return True
        return False

    def prune(self, steps: int) -> None:
        """Remove the floors that the collector is done with, given its step count."""
        floors = self._floors
        if floors and floors[0].done <= steps:
            left = tuple(floor for floor in floors if floor.done > steps)
            if self._floors is floors:
                self._floors = left

    def reset(self) -> None:
        """Forget all clears."""
        self._floors = ()


def _within(inner: Scope, outer: Scope) -> bool:
    if isinstance(outer, bytes):
        return not outer or (isinstance(inner, bytes) and inner.startswith(outer))
    return inner == outer
