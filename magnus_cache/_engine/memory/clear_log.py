"""What a clear leaves behind: floors under the generation of an entry, so that clearing a million entries is O(1).

Every clear opens a new generation. An entry carries the generation in which it was last known to be good; whoever
meets an older one asks the floors once whether a clear since then covered its name.
"""

import re
import sys
from typing import Final, NamedTuple, Protocol

__all__ = ["Clear", "ClearLog", "NamePattern", "Scope", "covers"]


class NamePattern(Protocol):
    """Tells which names a clear covers; a `re.Pattern` of bytes does. Two that are equal cover the same names."""

    def fullmatch(self, name: bytes, /) -> object | None:
        """Return anything for a name that is covered, and None for another."""


Scope = bytes | NamePattern
"""What a clear covers: the names with a prefix, or those that a pattern matches in full."""

_MOST: Final = 64
"""ClearLog kept of other scopes than namespaces; past this, one under everything replaces them all: too many misses,
never a stale value."""

_MOST_NAMESPACES: Final = 1_024
"""ClearLog kept of namespaces; past this, likewise."""


_READING: Final = 8
"""Comparisons that a pattern counts for which reads the key out of each name: some microseconds."""


def covers(scope: Scope, name: bytes) -> bool:
    """Return whether a name is within a clear's scope."""
    return name.startswith(scope) if isinstance(scope, bytes) else scope.fullmatch(name) is not None


class Clear(NamedTuple):
    """One clear. Entries within its scope and of an older generation are gone.

    :ivar done: the collector's step count at which it has met every entry that was there at the time.
    """

    scope: Scope
    generation: int
    done: int = sys.maxsize


class ClearLog:
    """The clears whose entries may still be in memory: those of namespaces by name, others oldest first.

    Asking costs one look-up for all clears of namespaces together, and one comparison for each other clear.
    `cleared` needs no lock, as what it looks at is replaced and never changed; the caller serializes the rest.
    """

    __slots__ = ("_floors", "_namespaces", "_next_done")

    def __init__(self) -> None:
        self._floors: tuple[Clear, ...] = ()
        self._namespaces: dict[bytes, Clear] = {}
        self._next_done = sys.maxsize

    def __len__(self) -> int:
        return len(self._floors) + len(self._namespaces)

    @property
    def comparisons(self) -> int:
        """How many comparisons `cleared` may take, beyond its one look-up, each counted by what it takes."""
        return sum(_cost(floor.scope) for floor in self._floors)

    def bounded(self, steps: int) -> int:
        """Return how many steps the collector may go: fewer than given, where each takes many comparisons."""
        return max(1, steps * 4 // (4 + self.comparisons))

    def add(self, floor: Clear) -> Clear:
        """Lay a floor, and return it as it lies; older ones within its scope are no longer needed."""
        scope = floor.scope
        # Else a signal handler has laid one meanwhile, each time. No call between the look and the store.
        while isinstance(scope, bytes) and _namespace_of(scope) == scope:
            before_it = self._namespaces
            after_it: dict[bytes, Clear] = {**before_it, scope: floor}
            if len(after_it) > _MOST_NAMESPACES:
                floor = floor._replace(scope=b"")
                break
            if self._namespaces is before_it:
                self._namespaces = after_it
                return floor
        while True:
            before, new = self._floors, floor
            kept = tuple(old for old in before if not _within(old.scope, floor.scope))
            if len(kept) >= _MOST:
                kept, new = (), floor._replace(scope=b"")
            after = (*kept, new)
            if self._floors is before:
                self._floors = after
                return new

    def end(self, floor: Clear, done: int) -> None:
        """Note at which step count the collector is done with a floor that was laid."""
        while True:
            spaces = self._namespaces
            ended = {scope: old._replace(done=done) if old is floor else old for scope, old in spaces.items()}
            if self._namespaces is spaces:
                self._namespaces = ended
                self._next_done = 0
                break
        while True:
            before = self._floors
            after = tuple(old._replace(done=done) if old is floor else old for old in before)
            if self._floors is before:
                self._floors = after
                return

    def cleared(self, name: bytes, generation: int) -> bool:
        """Return whether a clear later than a generation covered a name."""
        if self._namespaces:
            whole = self._namespaces.get(_namespace_of(name))
            if whole is not None and whole.generation > generation:
                return True
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
        if self._next_done <= steps:
            spaces = self._namespaces
            under = {scope: floor for scope, floor in spaces.items() if floor.done > steps}
            first = min((floor.done for floor in under.values()), default=sys.maxsize)
            if self._namespaces is spaces:
                self._namespaces = under
                self._next_done = first

    def reset(self) -> None:
        """Forget all clears."""
        self._floors, self._namespaces, self._next_done = (), {}, sys.maxsize


def _namespace_of(name: bytes) -> bytes:
    """Return what the names of a namespace begin with, up to the second colon, given one of them or this itself."""
    return name[: name.find(b":", name.find(b":") + 1) + 1]


def _cost(scope: Scope) -> int:
    return 1 if isinstance(scope, bytes | re.Pattern) else _READING


def _within(inner: Scope, outer: Scope) -> bool:
    if isinstance(outer, bytes):
        return not outer or (isinstance(inner, bytes) and inner.startswith(outer))
    return inner == outer
