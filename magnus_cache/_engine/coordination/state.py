"""The one state behind both faces of a cache: settings, near cache, flights, figures, and the connections to Redis.

`CacheManager` and `AsyncCacheManager` are views of one `State`, which owns the parts that they work with. How they end
is in `life_cycle`, what they forget when something is invalidated in `invalidation`, and what they learn from the
connections to Redis in `connection_events`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.realms import EpochNames
from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.connection_events import ConnectionEvents
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.epoch_renewals import EpochRenewals
from magnus_cache._engine.coordination.epoch_sync import EpochSync
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.leases import Leases
from magnus_cache._engine.coordination.life_cycle import LifeCycle
from magnus_cache._engine.coordination.offline import CutOff
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.flights.flights import Flights
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.memory.key_locks import KeyLocks
from magnus_cache._engine.memory.reload import ReloadingCache
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.policy.modes import MODE, Mode
from magnus_cache._engine.policy.namespaces import default_registry
from magnus_cache._engine.redis.client import Client
from magnus_cache._engine.redis.events import WireLimits
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.background_loops import BackgroundLoops
from magnus_cache._engine.runtime.clock import current_clock
from magnus_cache._engine.runtime.forks import around_fork, on_fork_child
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache._engine.runtime.switches import Presence, Switch
from magnus_cache._engine.runtime.workers import LoaderThreads
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["State"]


class State(LifeCycle, CutOff):
    """All that one cache knows and owns. Thread-safe; nothing is connected or started before the first call."""

    def __init__(self, settings: "CacheSettings") -> None:
        self.settings = settings
        self.clock = current_clock()
        self.endpoint = settings.endpoint() if settings.redis_enabled else None
        database = self.endpoint.db if self.endpoint else 0
        self.keyspace = Keyspace(settings.prefix, database, default_registry)
        self.namespaces = default_registry
        self.local_namespaces: set[str] = set()
        self.memory = ReloadingCache(
            settings.l1_max_entries, settings.l1_max_bytes, self.clock, policy=settings.l1_policy, renew=codec.renewed
        )
        codec.on_replaced(self.memory)
        self.flights = Flights(clock=self.clock)
        self.key_locks = KeyLocks(4 * settings.op_timeout)
        self.portal = BackgroundLoops()
        self.workers = LoaderThreads(run=self.portal.run)
        self.stats = Stats()
        self.notices = RateLimitedLog(place=f"{self.endpoint.display if self.endpoint else ''} {settings.prefix}")
        self.abandoned = OrphanedConnections(self.notices.warn)
        self.breaker = Breaker(2 * settings.op_timeout)
        self.epochs = Epochs(self.keyspace)
        self.outbox = Outbox(f"{self.keyspace.prefix}:".encode(), tags=self.epochs.names.tags, clock=self.clock)
        self.events = ConnectionEvents(self, self.abandoned)
        self.topology = self._new_topology()
        self.client = Client(self.topology, database)
        self.leases = Leases(self.flights.detach_flight, self.client)
        self.generations = OutageGenerations(settings.max_staleness, self.contact)
        self.log = ConnectionLog(
            self.endpoint, self.notices, self.breaker, self.outbox, self.clock, settings.max_staleness
        )
        self.closed = False
        self.special: set[object] = set()
        self.disabling: set[object] = set()
        self._values = f"{self.keyspace.prefix}:".encode()
        self.failover = FailoverGuard(self.epochs, self.client, self.outbox, self._values, self.outdated)
        self.epoch_reads = EpochSync(self.epochs, self.client, settings.max_staleness, self.clock, self.outdated)
        self.epoch_renewals = EpochRenewals(self.epochs, self.client, self.clock)
        self.announcements = Announcements(self._values, self, self.failover, self.epoch_reads)
        self.journal = self._new_journal()
        self.replayer = Replayer(self, self.outbox, self.epochs, self.notices, settings.op_timeout, self.journal)
        on_fork_child(self)

    def _new_topology(self) -> Topology:
        settings, controls = self.settings, self.epochs.names
        limits = WireLimits(
            settings.op_timeout, settings.max_staleness, settings.max_pending, controls, self.largest_value
        )
        return Topology(self.endpoint, limits, self.breaker, self.events, self.clock, self.check_open)

    def _new_journal(self) -> "Journal | None":
        path = self.settings.recovery_path
        if path is None or self.endpoint is None:
            return None
        # Deferred: SQLite is for those who want a journal.
        from magnus_cache._engine.outage.journal import Journal
        from magnus_cache._engine.outage.journal_file import JournalFile

        file = JournalFile(path, f"{self.endpoint.display} {self.keyspace.prefix}", self._values)
        journal = Journal(file, self.outbox, self.notices.warn, self.settings.op_timeout)
        around_fork(journal)
        journal.mark_unread()
        return journal

    # -- what the present context wants ---------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How calls in this context treat the cache."""
        # The first set keeps the context variable off the hot path while nothing uses it.
        if not self.special:
            return Mode.NORMAL
        return Mode.DISABLED if self.disabling else MODE.get()

    def bypass(self) -> AbstractContextManager[None]:
        """Bypass the cache within this context: this task or thread, and what it starts."""
        return Switch(MODE, Mode.BYPASS, self.special)

    def disabled(self) -> AbstractContextManager[None]:
        """Disable the cache for all callers, in whatever thread or task."""
        return Presence(self.disabling, self.special)

    # -- Redis ----------------------------------------------------------------------------------------------

    def largest_value(self) -> int:
        """Return how many bytes an encoded value may have in the namespace that allows most."""
        return max(self.settings.max_value_bytes, *(namespace.max_value_bytes or 0 for namespace in self.namespaces), 0)

    def doubts(self, epoch_names: EpochNames) -> bool:
        """Whether some connection has heard of a namespace's epoch, or that of all, and has not read it again yet."""
        known = [connection.known.doubts for connection in self.topology.connections()]
        return any(epoch_names.control in names or self.epochs.root in names for names in known if names)

    @property
    def used(self) -> bool:
        """Whether anything was begun, in this process, that is to be closed."""
        return self.portal.started or self.topology.used

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked; False before it ever was. No I/O."""
        return self.endpoint is not None and self.breaker.closed

    def describe(self) -> str:
        """Return what tells this cache from another, without secrets."""
        where = self.endpoint.display if self.endpoint else "memory only"
        return f"{where} prefix={self.settings.prefix!r}{' closed' if self.closed else ''}"

    def missed(self, record: Callable[[Outbox], int]) -> int:
        """Record what Redis may not know, and tell it as soon as it listens; return the record's mark."""
        mark = record(self.outbox)
        for connection in self.topology.standing()[:1]:
            call_on_loop(connection.loop, self.replayer.begin, connection)
        return mark

    async def recorded(self) -> None:
        """Return once what was recorded would survive this process, as far as there is a journal and its disk works."""
        if self.journal is not None:
            await self.journal.written()

    def without_loop(self, error: CacheUnavailableError) -> None:
        """Count a call of blocking code that had no background loop to go to, and say why."""
        self.stats.failed(error.reason)
        if "interpreter shutdown" in error.problem:
            # From Python 3.12 on, in an atexit handler: that is no fault that could be mended.
            return
        what = "functions are called without the cache, and Redis is told later what was invalidated"
        self.notices.warn(error.reason, f"{error}; meanwhile, in blocking code, {what}")

    def after_fork(self) -> None:
        """Start anew in a forked child: its parent's sockets, threads and loads are not its own."""
        envelope.reseed()
        # A block that disables the cache is left in the child as well, if the thread in it is the one that forked.
        self.special.intersection_update(self.disabling)
        for own in (
            self.memory, self.flights, self.portal, self.stats, self.notices, self.breaker, self.outbox, self.epochs,
            self.leases, self.generations, self.abandoned, self.workers, self.epoch_renewals, self.topology,
            self.replayer,
        ):  # fmt: skip
            own.reset()
        if self.journal is not None:
            self.journal.reset()
            self.journal.mark_unread()
