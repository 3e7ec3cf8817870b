"""The state of one cache: settings, memory, running loads, statistics, and the connections to Redis.

`CacheManager` and `AsyncCacheManager` are views of one `State`, which owns all parts. `life_cycle` closes them,
`invalidation` drops what they hold of invalidated values, and `connection_events` passes on the events of connections.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.codec import versions
from magnus_cache._engine.codec.sealing import SealRing
from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coordination.acts import Acts
from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.changes import Changes
from magnus_cache._engine.coordination.connection_events import ConnectionEvents
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.epoch_renewals import EpochRenewals
from magnus_cache._engine.coordination.epoch_sync import EpochSync
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.fleet_log import FleetLog
from magnus_cache._engine.coordination.fleet_stats import FleetStats
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.happenings import Happenings
from magnus_cache._engine.coordination.jobs import Jobs
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.coordination.life_cycle import LifeCycle
from magnus_cache._engine.coordination.offline import OfflineBounds
from magnus_cache._engine.coordination.own_writes import OwnWrites
from magnus_cache._engine.coordination.recordings import Recordings
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.coordination.sources import SourceLimits, Sources
from magnus_cache._engine.coordination.spending import Spending, SpendingParts
from magnus_cache._engine.flights.flights import Flights
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.memory.key_locks import KeyLocks
from magnus_cache._engine.memory.reload import ReloadingCache
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.policy.modes import MODE, Mode
from magnus_cache._engine.policy.registry import default_registry
from magnus_cache._engine.redis.client import Client
from magnus_cache._engine.redis.events import WireLimits
from magnus_cache._engine.redis.fleet_keys import FleetNames
from magnus_cache._engine.redis.job_keys import JobNames
from magnus_cache._engine.redis.lane import Lane
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.redis.tracking import tracking_of
from magnus_cache._engine.runtime.background_loops import BackgroundLoops
from magnus_cache._engine.runtime.clock import current_clock
from magnus_cache._engine.runtime.forks import around_fork, on_fork_child
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.observers import Observers
from magnus_cache._engine.runtime.recorder import Recorder
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache._engine.runtime.switches import Presence, Switch
from magnus_cache._engine.runtime.workers import LoaderThreads
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["State"]

_FLEET_TAG: Final = b"{fleet}"
"""Has all keys of fleet statistics in one slot of a cluster, and so those of jobs."""


def _cluster_epochs(keyspace: Keyspace) -> Epochs:
    # Deferred, like those below: redis-py is imported for it.
    from magnus_cache._engine.redis.cluster import cluster_epochs

    return cluster_epochs(keyspace)


def _cluster_topology(*parts: Any) -> Topology:
    from magnus_cache._engine.redis.cluster import ClusterTopology

    return ClusterTopology(*parts)


def _sentinel_topology(*parts: Any) -> Topology:
    from magnus_cache._engine.redis.sentinel_topology import SentinelTopology

    return SentinelTopology(*parts)


def _outbox(state: "State", *, is_cluster: bool) -> Outbox:
    values, tags = f"{state.keyspace.prefix}:".encode(), state.epochs.names.tags
    if not is_cluster:
        return Outbox(values, tags=tags, clock=state.clock)
    from magnus_cache._engine.redis.cluster import group_of_name

    return Outbox(values, tags=tags, clock=state.clock, part_of=group_of_name)


def _replayer(state: "State", *, is_cluster: bool) -> Replayer:
    parts = state, state.outbox, state.epochs, state.notices, state.settings.op_timeout, state.journal
    if not is_cluster:
        return Replayer(*parts)
    # Deferred: only a cluster needs it.
    from magnus_cache._engine.coordination.node_replay import NodeReplayer

    return NodeReplayer(*parts)


def _node_generations(state: "State") -> OutageGenerations:
    from magnus_cache._engine.coordination.node_generations import NodeGenerations
    from magnus_cache._engine.redis.cluster import ClusterTopology

    assert isinstance(state.topology, ClusterTopology)
    return NodeGenerations(state.settings.max_staleness, state.contact, state.topology, state.clock)


def _cluster_client(state: "State") -> Client:
    from magnus_cache._engine.redis.cluster import ClusterClient, ClusterTopology, GroupEpochs

    assert isinstance(state.topology, ClusterTopology)
    assert isinstance(state.epochs, GroupEpochs)
    return ClusterClient(state.topology, state.epochs)


class State(LifeCycle, OfflineBounds):
    """Owns all parts of one cache. Thread-safe; nothing is connected or started before the first call."""

    def __init__(self, settings: "CacheSettings") -> None:
        self.settings = settings
        self.clock = current_clock()
        deployment = settings.deployment() if settings.redis_enabled else None
        self.endpoint = deployment.endpoint if deployment else None
        self.place = deployment.display if deployment else ""
        is_cluster = deployment is not None and deployment.kind == "cluster"
        database = self.endpoint.db if self.endpoint else 0
        self.keyspace = Keyspace(settings.prefix, database, default_registry)
        self.namespaces = default_registry
        self.seals = SealRing(settings.sealed_by(), settings.prefix)
        self.local_namespaces: set[str] = set()
        self.memory = ReloadingCache(
            settings.l1_max_entries, settings.l1_max_bytes, self.clock, policy=settings.l1_policy, renew=codec.renewed
        )
        codec.on_replaced(self.memory)
        self.flights = Flights(clock=self.clock)
        self.key_locks = KeyLocks(4 * settings.op_timeout)
        self.portal = BackgroundLoops()
        self.workers = LoaderThreads(run=self.portal.run)
        self.special: set[object] = set()
        self.observers = Observers(self.special)
        self.recorder = Recorder(settings.recorder_keys, self.clock)
        self.stats = Stats()
        self.notices = RateLimitedLog(place=f"{self.place} {settings.prefix}")
        self.abandoned = OrphanedConnections(self.notices.warn)
        self.breaker = Breaker(2 * settings.op_timeout)
        self.epochs = _cluster_epochs(self.keyspace) if is_cluster else Epochs(self.keyspace)
        self.outbox = _outbox(self, is_cluster=is_cluster)
        self.events = ConnectionEvents(self, self.abandoned)
        limits = self._limits()
        is_watched = deployment is not None and deployment.kind == "sentinel"
        make: Callable[..., Topology] = (
            partial(_cluster_topology, deployment) if is_cluster
            else partial(_sentinel_topology, deployment) if is_watched
            else partial(Topology, self.endpoint)
        )  # fmt: skip
        self.topology = make(limits, self.breaker, self.events, self.clock, self.check_open)
        self.lane = Lane(self.endpoint, limits, self.epochs, self.clock, self.events.measured)
        self.client = _cluster_client(self) if is_cluster else Client(self.topology, database)
        self.leases = Leases(self.flights.detach_flight, self.client)
        self.generations = (
            _node_generations(self) if is_cluster else OutageGenerations(settings.max_staleness, self.contact)
        )
        self.log = ConnectionLog(
            self.place, self.notices, self.breaker, self.outbox, self.clock,
            None if settings.tracking == "off" else settings.max_staleness,
        )  # fmt: skip
        self.closed = False
        self.disabling: set[object] = set()
        self._values = f"{self.keyspace.prefix}:".encode()
        self.changes = Changes(self, self._values, make if self.endpoint else None, limits)
        self.elsewhere = Happenings(self, self.outdated)
        arrived, outdated = self.elsewhere.arrived, self.elsewhere.outdated
        self.failover = FailoverGuard(self.epochs, self.client, self.outbox, self._values, arrived)
        self.epoch_sync = EpochSync(self.epochs, self.client, settings.max_staleness, self.clock, outdated)
        self.epoch_renewals = EpochRenewals(self.epochs, self.client, self.clock)
        tag = _FLEET_TAG if is_cluster else b""
        names = FleetNames(self.keyspace, tag)
        self.jobs = Jobs(self.client, JobNames(self.keyspace, tag), self.clock)
        self.fleet_stats = FleetStats(
            self.stats, self.process_figures, self.client, names, settings.stats_interval, self.clock
        )
        self.fleet_log = FleetLog(
            self.client, names, lambda: self.fleet_stats.instance, self.topology.established, self.clock,
            enabled=settings.recorder_keys > 0 and self.endpoint is not None,
        )  # fmt: skip
        self.recordings = Recordings(self, names)
        has_redis = self.endpoint is not None
        self.sources = Sources(
            self.client, self.keyspace, SourceLimits(has_redis, names, settings.max_staleness),
            lambda: self.fleet_stats.instance, self.clock, self.stats,
        )  # fmt: skip
        spending = SpendingParts(
            has_redis, lambda: self.fleet_stats.instance, self.sources.fleet, self.topology.time_of
        )  # fmt: skip
        self.spending = Spending(self.client, self.keyspace, spending, self.clock)
        self.acts = Acts(self)
        # On a cluster, what a value stands on depends on its slot, too: there a read finds it out.
        own = OwnWrites(self.memory, self.client) if not is_cluster else None
        self.announcements = Announcements(
            self._values, self, self.failover, self.epoch_sync, own, self.elsewhere.changed
        )
        self.journal = self._new_journal()
        self.replayer = _replayer(self, is_cluster=is_cluster)
        on_fork_child(self)

    def _limits(self) -> WireLimits:
        settings, controls = self.settings, self.epochs.names
        return WireLimits(
            settings.op_timeout, settings.max_staleness, settings.max_pending, controls, self.largest_value,
            tracking_of(settings.tracking, controls),
        )  # fmt: skip

    def _new_journal(self) -> "Journal | None":
        path = self.settings.recovery_path
        if path is None or self.endpoint is None:
            return None
        # Deferred: only a cache with a journal imports SQLite.
        from magnus_cache._engine.outage.journal import Journal
        from magnus_cache._engine.outage.journal_file import JournalFile

        file = JournalFile(path, f"{self.place} {self.keyspace.prefix}", self._values)
        journal = Journal(file, self.outbox, self.notices.warn, self.settings.op_timeout)
        around_fork(journal)
        journal.mark_unread()
        return journal

    # -- modes of the current context ---------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How calls in this context treat the cache."""
        # The first set keeps the context variable off the hot path while nothing uses it.
        if not self.special:
            return Mode.NORMAL
        return Mode.DISABLED if self.disabling else MODE.get()

    def bypass(self) -> AbstractContextManager[None]:
        """Bypass the cache within this context: this task or thread, and those that it starts."""
        return Switch(MODE, Mode.BYPASS, self.special)

    def disabled(self) -> AbstractContextManager[None]:
        """Disable the cache for all callers, in any thread or task."""
        return Presence(self.disabling, self.special)

    # -- figures --------------------------------------------------------------------------------------------

    def process_figures(self) -> dict[str, Any]:
        """Return what the process has counted, and has now, as a whole."""
        memory = self.memory
        return {
            "in_memory_keys": len(memory),
            "in_memory_bytes": memory.bytes,
            "evictions": memory.evictions,
            "expirations": memory.expirations,
            "fenced_fills": memory.fenced + self.stats.fenced_loads,
            "flights": len(self.flights),
            "flights_joined": self.flights.joined,
            "unattended": self.flights.background,
            "outages": self.breaker.outages,
        }

    # -- Redis ----------------------------------------------------------------------------------------------

    def largest_value(self) -> int:
        """Return the largest `max_value_bytes` of all namespaces."""
        return max(self.settings.max_value_bytes, *(namespace.max_value_bytes or 0 for namespace in self.namespaces), 0)

    def doubts(self, epoch_names: EpochNames) -> bool:
        """Whether on some connection the epoch of a namespace, or the root's, was announced and not read again yet."""
        known = [connection.known.doubts for connection in self.topology.connections()]
        return any(epoch_names.control in names or epoch_names.root in names for names in known if names)

    @property
    def used(self) -> bool:
        """Whether this process has started anything that must be closed."""
        return self.portal.started or self.topology.used

    @property
    def redis_available(self) -> bool:
        """Whether the last exchange with Redis succeeded; False before the first. No I/O."""
        return self.endpoint is not None and self.breaker.closed

    def describe(self) -> str:
        """Return an identification of this cache for messages, without secrets."""
        where = self.place or "memory only"
        return f"{where} prefix={self.settings.prefix!r}{' closed' if self.closed else ''}"

    def record_missed(self, record: Callable[[Outbox], int], names: Sequence[bytes] = ()) -> int:
        """Record an invalidation that Redis may have missed, and replay it as soon as possible; return its position.

        :param names: the values, if it is about some only: while their servers are away, there is nothing to try.
        """
        position = record(self.outbox)
        if not names or any(map(self.reaches, names)):
            for connection in self.topology.established()[:1]:
                call_on_loop(connection.loop, self.replayer.begin_new, connection)
        return position

    async def journal_written(self) -> None:
        """Return when everything recorded is in the journal, if there is one and its disk works."""
        if self.journal is not None:
            await self.journal.written()

    def without_loop(self, error: CacheUnavailableError) -> None:
        """Count a blocking call that found no background loop, and log why."""
        self.stats.failed(error.reason)
        if "interpreter shutdown" in error.problem:
            # From Python 3.12 on, no thread starts in an atexit handler: the user can change nothing.
            return
        what = "functions are called without the cache, and invalidations are replayed to Redis later"
        self.notices.warn(error.reason, f"{error}; meanwhile, in blocking code, {what}")

    def after_fork(self) -> None:
        """Start empty in a forked child: sockets, threads and loads belong to its parent."""
        versions.reseed()
        # Kept: the forked thread may be inside a block that disables the cache, and leaves it in the child as well.
        self.special.intersection_update(self.disabling)
        for own in (
            self.memory, self.flights, self.portal, self.stats, self.notices, self.breaker, self.outbox, self.epochs,
            self.leases, self.generations, self.abandoned, self.workers, self.epoch_renewals, self.topology,
            self.lane, self.replayer, self.fleet_stats, self.observers,
            self.recorder, self.fleet_log, self.elsewhere, self.changes, self.jobs, self.recordings, self.sources,
            self.spending,
        ):  # fmt: skip
            own.reset()
        if self.journal is not None:
            self.journal.reset()
            self.journal.mark_unread()
