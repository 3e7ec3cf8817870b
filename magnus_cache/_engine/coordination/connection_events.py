"""What becomes of what connections tell: that something has changed, or that they stand, or do not any more."""

from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.epoch_renewals import EpochRenewals
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis.events import Arrival
from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal

__all__ = ["ConnectionEvents", "Parts"]


class Parts(Protocol):
    """The parts of a `State` that learn what connections tell; see there."""

    announcements: Announcements
    clock: Clock
    epoch_renewals: EpochRenewals
    failover: FailoverGuard
    generations: OutageGenerations
    journal: "Journal | None"
    leases: Leases
    log: ConnectionLog
    outbox: Outbox
    replayer: Replayer
    stats: Stats
    topology: Topology


class ConnectionEvents:
    """Passes on to the parts of one cache what its connections tell. Called on their loops; nothing here blocks.

    :ivar abandoned: the connections that were given up.
    """

    def __init__(self, parts: Parts, abandoned: OrphanedConnections) -> None:
        self._parts = parts
        self.abandoned = abandoned

    def invalidated(self, names: list[bytes], connection: Connection) -> None:
        """Follow up what the server says has changed, or is no longer tracked: values, leases and epochs."""
        self._parts.announcements.changed(names, connection)

    def flushed(self, connection: Connection) -> None:
        """Ask about what is being loaded: its lease is gone like all the rest, if it was in the database concerned."""
        self._parts.generations.flushed(connection)
        self._parts.announcements.flushed(connection)

    def exchanged(self, connection: Connection) -> None:
        """Meet the server anew: what it has in this database was read by nobody here."""
        self._parts.failover.forget()

    def cut(self, connection: Connection) -> None:
        """Treat announcements that were not followed up before the connection was lost as changes; wake the waiters."""
        self._parts.generations.cut(connection)
        self._parts.announcements.cut(connection)
        if self._parts.journal is not None:
            # From here on, and not from the next connection: who asks until then waits for the answer to be believed.
            self._parts.journal.mark_unread()

    def beat(self, connection: Connection) -> None:
        """Keep the epochs of what is in use."""
        self._parts.epoch_renewals.beat(connection)

    def measured(self, sent: float, reads: int) -> None:
        """Note how long some reads took."""
        self._parts.stats.l2_latency.add(self._parts.clock() - sent, reads)

    def knows(self, identity: bytes) -> int | None:
        """Return the highest epoch known here, for a server that this process has not met last."""
        return self._parts.failover.knows(identity)

    def arrived(self, identity: bytes, arrival: Arrival) -> None:
        """Forget all that was known before a server that may have gone back in time."""
        self._parts.failover.arrived(identity, arrival)

    def connected(self, connection: Connection) -> None:
        """Distrust what was written meanwhile, and tell Redis what it missed."""
        others = [other for other in self._parts.topology.established() if other is not connection]
        self._parts.generations.connected(connection, first=not others)
        self._parts.leases.release_lost(connection)
        self._parts.failover.restore_identity(connection)
        self._parts.log.connected(connection)
        if self._parts.journal is not None:
            # Again: the file may have been made by another process since the last connection was lost.
            self._parts.journal.mark_unread()
        if self._parts.outbox.pending:
            self._parts.replayer.begin(connection)

    def vanished(self, connection: Connection) -> None:
        """Trust nothing that was read on a loop which has ended without a word."""
        self._parts.generations.cut(connection)
        if self._parts.topology.reachable:
            connection.trust.retire()
        else:
            connection.trust.kill()

    def disconnected(self, connection: Connection, error: CacheUnavailableError) -> None:
        """Say once that Redis is away, and why."""
        self._parts.stats.failed(error.reason)
        self._parts.log.disconnected(error)
