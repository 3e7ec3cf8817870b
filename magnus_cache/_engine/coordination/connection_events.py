"""Dispatch of connection events to the parts of a cache: changes, new connections, lost connections."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.changes import Changes
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.epoch_renewals import EpochRenewals
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.fleet_log import FleetLog
from magnus_cache._engine.coordination.fleet_stats import FleetStats
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.happenings import Happenings
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.coordination.recordings import Recordings
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.coordination.sources import Sources
from magnus_cache._engine.coordination.spending import Spending
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis.events import Arrival
from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.lane import Lane
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal

__all__ = ["ConnectionEvents", "Parts"]


class Parts(Protocol):
    """The parts of a `State` that receive connection events."""

    announcements: Announcements
    changes: Changes
    clock: Clock
    elsewhere: Happenings
    epoch_renewals: EpochRenewals
    failover: FailoverGuard
    fleet_log: FleetLog
    fleet_stats: FleetStats
    generations: OutageGenerations
    journal: "Journal | None"
    lane: Lane
    leases: Leases
    log: ConnectionLog
    outbox: Outbox
    recordings: Recordings
    replayer: Replayer
    sources: Sources
    spending: Spending
    stats: Stats
    topology: Topology


class ConnectionEvents:
    """Dispatches the events of all connections of one cache. Called on their loops; nothing here blocks.

    :ivar abandoned: connections that were lost with commands unanswered.
    """

    def __init__(self, parts: Parts, abandoned: OrphanedConnections) -> None:
        self._parts = parts
        self.abandoned = abandoned

    def invalidated(self, names: list[bytes], connection: Connection) -> None:
        """React to names that changed at the server, or that it no longer tracks."""
        self._parts.announcements.changed(names, connection)

    def flushed(self, connection: Connection) -> None:
        """React to an emptied database: the leases of running loads may be gone."""
        self._parts.elsewhere.flushed()
        self._parts.generations.flushed(connection)
        self._parts.announcements.flushed(connection)

    def moved(self, covers: Callable[[bytes], bool], connection: Connection) -> None:
        """React to slots that have moved: nothing is announced about the leases in them."""
        self._parts.leases.moved(covers, connection)

    def exchanged(self, connection: Connection) -> None:
        """React to a swapped database: check the server's history again, as nothing in this database was read here."""
        self._parts.failover.forget()

    def cut(self, connection: Connection) -> None:
        """React to a lost connection: unanswered announcements count as changes, and waiting loads wake."""
        self._parts.lane.cut(connection)
        self._parts.generations.cut(connection)
        self._parts.announcements.cut(connection)
        if self._parts.journal is not None:
            # Now, not with the next connection: callers that ask in between wait until the journal was read.
            self._parts.journal.mark_unread()

    def beat(self, connection: Connection) -> None:
        """Prolong the epochs in use, and publish statistics when they are due."""
        self._parts.elsewhere.beat()
        self._parts.epoch_renewals.beat(connection)
        self._parts.fleet_stats.beat(connection)
        self._parts.recordings.beat(connection)

    def measured(self, sent: float, reads: int) -> None:
        """Count the latency of some reads."""
        self._parts.stats.l2_latency.add(self._parts.clock() - sent, reads)

    def knows(self, identity: bytes) -> int | None:
        """Return the highest epoch known here if the server is new to this process; None for the last one met."""
        return self._parts.failover.knows(identity)

    def arrived(self, identity: bytes, arrival: Arrival) -> None:
        """Forget all earlier knowledge if the server may have lost writes."""
        self._parts.failover.arrived(identity, arrival)

    def connected(self, connection: Connection) -> None:
        """Start a new outage generation if this ends an outage, and replay missed invalidations to Redis."""
        self._parts.generations.connected(connection, first=self._parts.topology.is_only(connection))
        self._parts.leases.release_lost(connection)
        if not connection.keeps_identity:
            self._parts.failover.restore_identity(connection)
        node = self._parts.topology.node_led_to(connection)
        self._parts.log.connected(connection, node)
        self._parts.elsewhere.connected(node)
        self._parts.fleet_log.arm()
        self._parts.recordings.beat(connection)
        self._parts.sources.connected(connection)
        self._parts.spending.report()
        if self._parts.journal is not None:
            # Again: another process may have created the file since the last connection was lost.
            self._parts.journal.mark_unread()
        if self._parts.outbox.pending:
            self._parts.replayer.begin(connection)
        if self._parts.changes.active:
            self._parts.changes.connected()

    def remapped(self) -> None:
        """React to slots that have moved: what was stored here while their node was away is to be confirmed."""
        self._parts.generations.remapped()
        if self._parts.log.any_away:
            nodes = self._parts.topology.figures(self._parts.clock())
            self._parts.log.remapped(nodes)
            self._parts.elsewhere.remapped(nodes)
        if self._parts.outbox.pending:
            # Other nodes may be able to settle what waits.
            for connection in self._parts.topology.established()[:1]:
                call_on_loop(connection.loop, self._parts.replayer.begin, connection)

    def vanished(self, connection: Connection) -> None:
        """Stop trusting what was read on an event loop that ended without closing its connection."""
        self._parts.generations.cut(connection)
        if self._parts.topology.is_only(connection):
            connection.trust.kill()
        else:
            connection.trust.retire()

    def warned(self, topic: str, problem: str) -> None:
        """Warn of servers that can be used although something is wrong with them."""
        self._parts.log.warned(topic, problem)

    def disconnected(self, connection: Connection, error: CacheUnavailableError) -> None:
        """Count the failure, and log once why Redis is unavailable."""
        self._parts.stats.failed(error.reason)
        node = self._parts.topology.node_led_to(connection)
        self._parts.log.disconnected(error, node)
        self._parts.elsewhere.disconnected(error, node)
