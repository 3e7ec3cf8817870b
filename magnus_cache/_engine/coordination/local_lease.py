"""The lease of a load whose object stays in this process: Redis does not know it."""

import math
from typing import TYPE_CHECKING

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.lease import Lease, Owner
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.memory.store import LocalCache

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LocalLease"]


class LocalLease(Lease):
    """A lease without Redis. It ends and is voided like one at Redis.

    :ivar placeholder: reserves the object's place in memory; void once the key is deleted, overwritten or cleared.
    """

    __slots__ = ("_confirmed_until", "_memory", "placeholder")

    def __init__(self, owner: Owner, connection: "Connection", name: bytes, flight: Flight, memory: LocalCache) -> None:
        self.connection, self.name, self.flight = connection, name, flight
        self.token, self.seconds = b"", 0.0
        # No deadline: epochs decide at the end of the load whether it was overtaken, whatever became of the
        # connection. Callers may join until then, because the same decision applies to them.
        self.trust = Trust(math.inf)
        self._confirmed_until = connection.clock() + connection.max_staleness
        self.void = self.ended = self.doubted = self._asking = False
        self._owner = owner
        self._left, self._timer = 0, None
        self._memory = memory
        # Of several loads of one key, only the last one to begin may store.
        self.placeholder = memory.reserve(name, anew=True)

    def joinable_until(self, *, cut_off: bool) -> float:
        """Return the monotonic second until which callers may join the load; see `Lease.joinable_until`."""
        # Without contact, epochs do not show what other processes invalidate, so later callers must not join.
        return min(self.trust.deadline, self._confirmed_until) if cut_off else self.trust.deadline

    def doubt(self) -> None:
        """Keep callers from joining: the epochs that the load depends on are gone, as after FLUSHALL."""
        self._owner.uncertain(self)

    def _close(self, filled: bool, unstorable: bool) -> None:
        if not self.ended:
            self.ended = True
            self._owner.ended(self)
            self._memory.release(self.placeholder)
