"""Local invalidation: drops invalidated values from memory, and keeps callers from joining overtaken loads."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.trust import UnsharedTrust
from magnus_cache._engine.coordination.changes import Changes
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.coordination.sources import Sources
from magnus_cache._engine.flights.flights import Flights
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.clear_log import NamePattern, Scope

__all__ = ["Invalidation"]

_NAMES: Final = 256
"""Names for which a lock is taken once."""


class Invalidation:
    """The part of a `State` that invalidates: memory, running loads, leases and epochs; and what it announces."""

    memory: BatchCache
    flights: Flights
    leases: Leases
    epochs: Epochs
    changes: Changes
    sources: Sources

    def outdated(self, name: bytes) -> None:
        """Drop all values that an epoch covers, in constant time, and detach their running loads."""
        prefix = self.epochs.prefix_of(name)
        if prefix is not None:
            self.forget_prefix(prefix)
            return
        # Noted twice. Before: a load that is about to store its value here finds itself overtaken. After: a load that
        # began in between may have read an entry that is gone now.
        self.epochs.invalidated((name,))
        if (stamp := self.epochs.stamp_of(name)) is not None:
            self.memory.invalidate_tag(stamp)
        self.epochs.invalidated((name,))
        if self.changes.active:
            self.changes.untagged(name)

    def forget_prefix(self, prefix: bytes) -> None:
        """Drop all values whose names have this prefix, and detach their running loads."""
        self._forget(prefix, lambda name: name.startswith(prefix))

    def forget_matching(self, pattern: NamePattern) -> None:
        """Drop all values whose full names match a pattern, and detach their running loads."""
        self._forget(pattern, lambda name: pattern.fullmatch(name) is not None)

    def _forget(self, scope: Scope, covered: Callable[[bytes], bool]) -> None:
        # Loads first: one that ends between the two steps finds itself overtaken, or its placeholder void. And loads
        # last: one that began in between may have read an entry that is gone now.
        self.flights.detach_matching(covered)
        self.leases.invalidated_matching(covered)
        self.memory.clear_matching(scope)
        self.flights.detach_matching(covered)
        if self.changes.active:
            self.changes.cleared(scope)

    def forget_names(self, names: Sequence[bytes]) -> None:
        """Drop some values, and void the loads of them that began before."""
        for start in range(0, len(names), _NAMES):
            some = names[start : start + _NAMES]
            self.flights.detach_many(some)
            self.leases.invalidated_many(some)
            self.memory.invalidate_many(some)
            # Again, as in `_forget`.
            self.flights.detach_many(some)
        if self.changes.active:
            self.changes.forgotten(names)

    def forget_read(self, names: Iterable[bytes]) -> None:
        """Drop what was read from Redis of some values; keep those that only this process has."""
        for name in names:
            # Not the entry itself: that would be unpacked in a large memory, and another one packed for it.
            if isinstance(self.memory.trust_of(name), UnsharedTrust):
                self.memory.void(name)
            else:
                self.memory.invalidate(name)
