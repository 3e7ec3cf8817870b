"""Outage generations: which values memory may serve as a fallback while Redis is away.

A generation is the time between two outages. In an outage, values that were valid when it began are served: they are
better than nothing. Values of an earlier generation are not served. They may have been invalidated unnoticed: a
connection announces only keys that it has read, and they were read through an older one. While Redis answers, such a
value must be confirmed first.

Other processes may continue to change values in a Redis that only this process cannot reach. A namespace's `offline`
bounds how long memory serves nevertheless. It counts from the last confirmation of the trust, not from the moment when
the loss was noticed: announcements in between may be lost.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.coherence.trust import Trust, UnsharedTrust
from magnus_cache._engine.policy.namespaces import Namespace

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["OfflineTrust", "OutageGenerations"]

_MOST_BOUNDS: Final = 256
"""Deadlines that are distinguished in one outage; values with further ones are not kept."""


class OfflineTrust(UnsharedTrust):
    """The trust of values stored while Redis is away; killed when Redis is back."""

    __slots__ = ("_bounded",)

    def __init__(self, deadline: float, generation: float = 0) -> None:
        super().__init__(deadline, generation)
        self._bounded: dict[float, OfflineTrust] = {}

    def until(self, deadline: float) -> "OfflineTrust":
        """Return a trust with a deadline in monotonic seconds, which ends with this one at the latest."""
        bounded = self._bounded.get(deadline)
        if bounded is None:
            most = deadline if len(self._bounded) < _MOST_BOUNDS else -math.inf
            bounded = self._bounded.setdefault(most, OfflineTrust(most, self.generation))
        # In this order: if `kill` runs in between, either it finds the new trust, or this line sees that it ran.
        if self.deadline == -math.inf:
            bounded.kill()
        return bounded

    def kill(self) -> None:
        """Make every entry that depends on this, or on a bounded part of it, suspect at once."""
        super().kill()
        for bounded in list(self._bounded.values()):
            bounded.kill()


class OutageGenerations:
    """Counts the outages of one cache, and bounds what it serves during them.

    :param max_staleness: seconds that a trust lasts after it was confirmed.
    :param contact: returns the monotonic second of the last contact with the server of a name.
    :ivar current: how many outages have ended; values of another generation are no fallback.
    :ivar offline: the trust of values stored while Redis is away; killed when Redis is back.
    """

    __slots__ = ("_contact", "_lapsed", "_max_staleness", "_trusts", "current", "offline")

    def __init__(self, max_staleness: float, contact: Callable[[bytes], float]) -> None:
        self._max_staleness = max_staleness
        self._contact = contact
        self._lapsed = -math.inf
        self.current = 0
        self.offline = OfflineTrust(math.inf)
        self._trusts: weakref.WeakKeyDictionary[Connection, Trust] = weakref.WeakKeyDictionary()

    def connected(self, connection: "Connection", *, first: bool) -> None:
        """Note a new connection, which has a new trust.

        :param first: whether it is the only one: then an outage has ended.
        """
        before, self._trusts[connection] = self._trusts.get(connection), connection.trust
        if before is not None and before is not connection.trust:
            before.retire()
        self.current += first
        connection.trust.generation = self.current
        self.offline.kill()
        self.offline = OfflineTrust(math.inf, self.current)

    def flushed(self, connection: "Connection") -> None:
        """Note the new trust of a connection whose database was emptied."""
        if connection in self._trusts:
            self._trusts[connection] = connection.trust

    def cut(self, connection: "Connection") -> None:
        """Note that a connection was lost, if it had been established."""
        if self._trusts.get(connection) is connection.trust:
            self._lapsed = max(self._lapsed, connection.trust.lapsed)

    def remapped(self) -> None:
        """Note that slots of a cluster have moved."""

    def confirmed(self, name: bytes, connections: "Iterable[Connection]") -> float:
        """Return the monotonic second when the server of a value last confirmed any trust; -inf if it never did.

        :param connections: all that are up.
        """
        return max([self._lapsed, *(connection.trust.lapsed for connection in connections)]) - self._max_staleness

    # -- what memory may serve while Redis is away -----------------------------------------------------------

    def now(self, name: bytes) -> float:
        """Return the generation of a trust in a value that begins now."""
        return self.current

    def offline_of(self, name: bytes) -> OfflineTrust:
        """Return the trust of a value that is stored while its server is away; killed when that is back."""
        return self.offline

    def heard(self, trust: Trust, name: bytes) -> bool:
        """Return whether a value was good when the present outage of its server began."""
        return trust.generation == self.current

    def trust_for(self, offline: OfflineTrust, namespace: Namespace, name: bytes) -> OfflineTrust:
        """Return the trust for a value of a namespace that is stored while its server is away.

        :param offline: `offline_of` as it was before the caller learned that the server is away: if it returned since,
            this trust is dead already.
        """
        return offline if namespace.offline is None else offline.until(self._contact(name) + namespace.offline)

    def served_until(self, trust: Trust, offline: float, name: bytes) -> float:
        """Return the monotonic second until which a value may be served in an outage.

        :param offline: seconds after the loss of contact.
        """
        # Values stored during the outage were never confirmed.
        contact = self._contact(name) if isinstance(trust, OfflineTrust) else trust.lapsed - self._max_staleness
        return contact + offline

    def end(self) -> None:
        """Make what was stored in an outage suspect, as the cache is closed."""
        self.offline.kill()

    def reset(self) -> None:
        """Start empty in a forked child."""
        self._lapsed = -math.inf
        self.offline = OfflineTrust(math.inf, self.current)
        self._trusts = weakref.WeakKeyDictionary()
