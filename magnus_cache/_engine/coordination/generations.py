"""OutageGenerations: the times between two outages of Redis, and which values may be fallen back on in the next one.

In an outage, a value that was good when it began is better than none. But a value that an earlier connection brought
may have been invalidated since without notice: if nothing asked for it in between, no announcement came. While Redis
can be asked, such a value must be confirmed; while it cannot, it is not served.

Others may go on to change values in a Redis that only this process cannot reach. A namespace's `offline` bounds for how
long memory serves regardless. That is counted from the moment from which the trust in a value was last counted: what
was announced later may be lost, however late the loss of the connection was noticed.
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
"""Different bounds that are told apart in one outage; values with others are not kept."""


class OfflineTrust(UnsharedTrust):
    """What values stand on that are stored while Redis is away; worthless once it is back."""

    __slots__ = ("_bounded",)

    def __init__(self, deadline: float, generation: int = 0) -> None:
        super().__init__(deadline, generation)
        self._bounded: dict[float, OfflineTrust] = {}

    def until(self, deadline: float) -> "OfflineTrust":
        """Return the same with a deadline, in monotonic seconds: it ends with this one at the latest."""
        bounded = self._bounded.get(deadline)
        if bounded is None:
            most = deadline if len(self._bounded) < _MOST_BOUNDS else -math.inf
            bounded = self._bounded.setdefault(most, OfflineTrust(most, self.generation))
        # In this order: if Redis comes back in between, either it finds this one, or this finds that it did.
        if self.deadline == -math.inf:
            bounded.kill()
        return bounded

    def kill(self) -> None:
        """Make every entry that stands on this, or on a part of it, suspect at once."""
        super().kill()
        for bounded in list(self._bounded.values()):
            bounded.kill()


class OutageGenerations:
    """The eras of one cache.

    :param max_staleness: seconds that a trust lasts after it was confirmed.
    :param contact: returns the monotonic second of the last contact with Redis.
    :ivar current: how many outages have ended; what stands on a trust of another era is no fallback.
    :ivar offline: what entries written while Redis is away stand on; worthless once it is back.
    """

    __slots__ = ("_contact", "_lapsed", "_max_staleness", "_trusts", "current", "offline")

    def __init__(self, max_staleness: float, contact: Callable[[], float]) -> None:
        self._max_staleness = max_staleness
        self._contact = contact
        self._lapsed = -math.inf
        self.current = 0
        self.offline = OfflineTrust(math.inf)
        self._trusts: weakref.WeakKeyDictionary[Connection, Trust] = weakref.WeakKeyDictionary()

    def connected(self, connection: "Connection", *, first: bool) -> None:
        """Note that a connection stands, on a trust of its own.

        :param first: whether no other does: an outage has ended.
        """
        before, self._trusts[connection] = self._trusts.get(connection), connection.trust
        if before is not None and before is not connection.trust:
            before.retire()
        self.current += first
        connection.trust.generation = self.current
        self.offline.kill()
        self.offline = OfflineTrust(math.inf, self.current)

    def flushed(self, connection: "Connection") -> None:
        """Note that a connection which stands has another trust."""
        if connection in self._trusts:
            self._trusts[connection] = connection.trust

    def cut(self, connection: "Connection") -> None:
        """Note that a connection does not stand any more, if it did."""
        if self._trusts.get(connection) is connection.trust:
            self._lapsed = max(self._lapsed, connection.trust.lapsed)

    def confirmed(self, connections: "Iterable[Connection]") -> float:
        """Return the monotonic second from which the trust in any connection was last counted; -inf if there was none.

        :param connections: those that stand.
        """
        return max([self._lapsed, *(connection.trust.lapsed for connection in connections)]) - self._max_staleness

    # -- what memory may serve while Redis is away -----------------------------------------------------------

    def trust_for(self, offline: OfflineTrust, namespace: Namespace) -> OfflineTrust:
        """Return what a namespace's values stand on that are stored while Redis is away.

        :param offline: what all of them stand on, from before it was known that Redis is away.
        """
        return offline if namespace.offline is None else offline.until(self._contact() + namespace.offline)

    def served_until(self, trust: Trust, offline: float) -> float:
        """Return the monotonic second until which a value may be served in an outage.

        :param offline: for how many seconds after the loss of contact.
        """
        # Of what was stored since then nothing was confirmed at all.
        contact = self._contact() if isinstance(trust, OfflineTrust) else trust.lapsed - self._max_staleness
        return contact + offline

    def reset(self) -> None:
        """Begin anew, in a forked child."""
        self._lapsed = -math.inf
        self.offline = OfflineTrust(math.inf, self.current)
        self._trusts = weakref.WeakKeyDictionary()
