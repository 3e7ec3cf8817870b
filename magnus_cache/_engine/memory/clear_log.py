"""The log of clears, which makes clearing a million entries O(1).

Every clear opens a new generation. An entry carries the generation in which it was last known to be good. A read that
finds an entry of an older generation asks the log once whether a clear since then covered the entry's name.
"""

import re
import sys
from typing import Final, NamedTuple, Protocol

__all__ = ["Clear", "ClearLog", "NamePattern", "Scope", "covers"]


class NamePattern(Protocol):
    """Matches the names that a clear covers, as a `re.Pattern` of bytes does. Equal patterns cover the same names."""

    def fullmatch(self, name: bytes, /) -> object | None:
        """Return any object for a covered name, and None for any other."""


Scope = bytes | NamePattern
"""What a clear covers: the names with a prefix, or those that a pattern matches in full."""

_MOST: Final = 64
"""Clears kept of other scopes than namespaces. Past this limit, one clear of everything replaces them all: that causes
too many misses, and never a stale value."""

_MOST_NAMESPACES: Final = 1_024
"""Clears kept of whole namespaces; past this limit, the same happens."""


_READING: Final = 8
"""Comparisons that a pattern counts for if it extracts the key from each name, which takes some microseconds."""


def covers(scope: Scope, name: bytes) -> bool:
    """Return whether a name is within a clear's scope."""
    return name.startswith(scope) if isinstance(scope, bytes) else scope.fullmatch(name) is not None


class Clear(NamedTuple):
    """One clear. Entries within its scope and of an older generation are invalid.

    :ivar done: the number of the collector's round that begins after every entry of the time of the clear was visited.
    """

    scope: Scope
    generation: int
    done: int = sys.maxsize


class ClearLog:
    """The clears whose entries may still be in memory: clears of namespaces by name, others oldest first.

    `cleared` costs one look-up for all clears of namespaces together, and one comparison for each other clear. It
    needs no lock, because the containers it reads are replaced and never changed. The caller serializes the rest.
    """

    __slots__ = ("_clears", "_namespaces", "_next_done")

    def __init__(self) -> None:
        self._clears: tuple[Clear, ...] = ()
        self._namespaces: dict[bytes, Clear] = {}
        self._next_done = sys.maxsize

    def __len__(self) -> int:
        return len(self._clears) + len(self._namespaces)

    @property
    def comparisons(self) -> int:
        """How many comparisons `cleared` may take beyond its one look-up, weighted by their cost."""
        return sum(_cost(clear.scope) for clear in self._clears)

    def bounded(self, steps: int) -> int:
        """Return how many steps the collector may take: fewer than `steps` if each takes many comparisons."""
        return max(1, steps * 4 // (4 + self.comparisons))

    def add(self, clear: Clear) -> Clear:
        """Add a clear and return it as it was stored; this drops older clears within its scope."""
        scope = clear.scope
        # Repeats if a signal handler has added a clear in between. No call stands between the check and the store.
        # An empty prefix is no namespace: it covers all of them.
        while isinstance(scope, bytes) and scope and _namespace_of(scope) == scope:
            before_it = self._namespaces
            after_it: dict[bytes, Clear] = {**before_it, scope: clear}
            if len(after_it) > _MOST_NAMESPACES:
                clear = clear._replace(scope=b"")
                break
            if self._namespaces is before_it:
                self._namespaces = after_it
                return clear
        while True:
            before, new = self._clears, clear
            kept = tuple(old for old in before if not _within(old.scope, clear.scope))
            if len(kept) >= _MOST:
                kept, new = (), clear._replace(scope=b"")
            after = (*kept, new)
            if self._clears is before:
                self._clears = after
                return new

    def end(self, clear: Clear, done: int) -> None:
        """Note the round at which the collector is done with a clear."""
        while True:
            spaces = self._namespaces
            ended = {scope: old._replace(done=done) if old is clear else old for scope, old in spaces.items()}
            if self._namespaces is spaces:
                self._namespaces = ended
                self._next_done = 0
                break
        while True:
            before = self._clears
            after = tuple(old._replace(done=done) if old is clear else old for old in before)
            if self._clears is before:
                self._clears = after
                return

    def cleared(self, name: bytes, generation: int) -> bool:
        """Return whether a clear after this generation covered a name."""
        if self._namespaces:
            whole = self._namespaces.get(_namespace_of(name))
            if whole is not None and whole.generation > generation:
                return True
        for clear in reversed(self._clears):
            if clear.generation <= generation:
                return False
            if covers(clear.scope, name):
                return True
        return False

    def prune(self, now: int) -> None:
        """Remove the clears that the collector is done with, given its round."""
        before = self._clears
        if before and before[0].done <= now:
            left = tuple(clear for clear in before if clear.done > now)
            if self._clears is before:
                self._clears = left
        if self._next_done <= now:
            spaces = self._namespaces
            under = {scope: clear for scope, clear in spaces.items() if clear.done > now}
            first = min((clear.done for clear in under.values()), default=sys.maxsize)
            if self._namespaces is spaces:
                self._namespaces = under
                self._next_done = first

    def reset(self) -> None:
        """Forget all clears."""
        self._clears, self._namespaces, self._next_done = (), {}, sys.maxsize


def _namespace_of(name: bytes) -> bytes:
    """Return the prefix of a namespace's names, up to the second colon, given one of the names or the prefix itself."""
    return name[: name.find(b":", name.find(b":") + 1) + 1]


def _cost(scope: Scope) -> int:
    return 1 if isinstance(scope, bytes | re.Pattern) else _READING


def _within(inner: Scope, outer: Scope) -> bool:
    if isinstance(outer, bytes):
        return not outer or (isinstance(inner, bytes) and inner.startswith(outer))
    return inner == outer
