"""Invalidation: what this process holds of values that were invalidated, and what is being loaded of them."""

from collections.abc import Callable, Iterable

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.trust import UnsharedTrust
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.flights.flights import Flights
from magnus_cache._engine.memory.clear_log import NamePattern, Scope
from magnus_cache._engine.memory.store import LocalCache

__all__ = ["Invalidation"]


class Invalidation:
    """The near cache, the loads, the leases and the epochs of one cache, as far as an invalidation touches them."""

    memory: LocalCache
    flights: Flights
    leases: Leases
    epochs: Epochs

    def outdated(self, name: bytes) -> None:
        """Drop all that an epoch is about, in constant time; and let nobody join what is being loaded of it."""
        prefix = self.epochs.prefix_of(name)
        if prefix is not None:
            self.forget_prefix(prefix)
            return
        # Noted before, for a load that is about to keep its value here; and after, as one that looks here in between
        # may still find what is gone then.
        self.epochs.invalidated((name,))
        if (stamp := self.epochs.stamp_of(name)) is not None:
            self.memory.invalidate_tag(stamp)
        self.epochs.invalidated((name,))

    def forget_prefix(self, prefix: bytes) -> None:
        """Drop all values whose names begin so, and let nobody join what is being loaded of them."""
        self._forget(prefix, lambda name: name.startswith(prefix))

    def forget_matching(self, pattern: NamePattern) -> None:
        """Do what `forget_prefix` does for the names that a pattern matches in full."""
        self._forget(pattern, lambda name: pattern.fullmatch(name) is not None)

    def _forget(self, scope: Scope, covered: Callable[[bytes], bool]) -> None:
        # The loads first: one that ends between the two steps is to find itself overtaken, or its place void. And last:
        # one that began in between may have found here what is gone now.
        self.flights.detach_matching(covered)
        self.leases.invalidated_matching(covered)
        self.memory.clear_matching(scope)
        self.flights.detach_matching(covered)

    def forget_names(self, names: Iterable[bytes]) -> None:
        """Forget what this process knows of some values, and let no load that began before have a say about them."""
        for name in names:
            self.flights.detach(name)
            self.leases.invalidated(name)
            self.memory.invalidate(name)
            # Again, as in `_forget`.
            self.flights.detach(name)

    def forget_read(self, names: Iterable[bytes]) -> None:
        """Forget what this process has read of some values; not what it keeps because Redis could not take it."""
        for name in names:
            entry = self.memory.get_stale(name, trusted=False)
            if entry is not None and isinstance(entry.trust, UnsharedTrust):
                self.memory.void(name)
            else:
                self.memory.invalidate(name)
