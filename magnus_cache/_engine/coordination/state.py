"""The one state behind both faces of a cache: settings, near cache, flights, figures, and the wires to Redis.

`CacheManager` and `AsyncCacheManager` are views of one `State`. It owns what has a life: one wire per event loop,
the background loop for blocking callers, and the duty to tell Redis what it missed. What is done with all this
is in `core`.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.realms import EpochNames
from magnus_cache._engine.coordination.announcements import Announcements
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.epoch_renewals import EpochRenewals
from magnus_cache._engine.coordination.epoch_sync import EpochSync
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.invalidation import Forgetting
from magnus_cache._engine.coordination.leases import Leases
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
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.runtime.background_loops import BackgroundLoops
from magnus_cache._engine.runtime.clock import current_clock
from magnus_cache._engine.runtime.closing import Ending
from magnus_cache._engine.runtime.critical import check_waiting, section
from magnus_cache._engine.runtime.forks import part, watch
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.loops import loop_error
from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT
from magnus_cache._engine.runtime.stats import Stats
from magnus_cache._engine.runtime.switches import Presence, Switch
from magnus_cache._engine.runtime.turns import turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.workers import LoaderThreads
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.redis.wire import Wire
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["State"]

_abandoned: Final[list[object]] = []


class State(Forgetting, CutOff):
    """All that one cache knows and owns. Thread-safe; nothing is connected or started before the first call."""

    def __init__(self, settings: "CacheSettings") -> None:
        self.settings = settings
        self.clock = current_clock()
        self.endpoint = settings.endpoint() if settings.redis_enabled else None
        self.keyspace = Keyspace(settings.prefix, self.endpoint.db if self.endpoint else 0, default_registry)
        self.namespaces = default_registry
        self.local_namespaces: set[str] = set()
        self.memory = ReloadingCache(settings.l1_max_entries, settings.l1_max_bytes, self.clock, renew=codec.renewed)
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
        self.outbox = Outbox(f"{self.keyspace.prefix}:".encode(), tags=self.epochs.names.tags)
        self.leases = Leases(self.flights.detach_flight)
        self.generations = OutageGenerations(settings.max_staleness, self.contact)
        self.log = ConnectionLog(
            self.endpoint, self.notices, self.breaker, self.outbox, self.clock, settings.max_staleness
        )
        self.closed = False
        self.special: set[object] = set()
        self.disabling: set[object] = set()
        self._lock = section()
        self._values = f"{self.keyspace.prefix}:".encode()
        self._wires: dict[asyncio.AbstractEventLoop, Wire] = {}
        self.failover = FailoverGuard(self.epochs, self.outbox, self._values, self.outdated)
        self.epoch_reads = EpochSync(self.epochs, settings.max_staleness, self.clock, self.outdated)
        self.epoch_renewals = EpochRenewals(self.epochs, self.clock)
        self.announcements = Announcements(self._values, self, self.failover, self.epoch_reads)
        self.journal = self._new_journal()
        self.replayer = self._new_replays()
        watch(self)

    def _new_replays(self) -> Replayer:
        return Replayer(self, self.outbox, self.epochs, self.notices, self.settings.op_timeout, self.journal)

    def _new_journal(self) -> "Journal | None":
        path = self.settings.recovery_path
        if path is None or self.endpoint is None:
            return None
        # Deferred: SQLite is for those who want a journal.
        from magnus_cache._engine.outage.journal import Journal
        from magnus_cache._engine.outage.journal_file import JournalFile

        file = JournalFile(path, f"{self.endpoint.display} {self.keyspace.prefix}", self._values)
        journal = Journal(file, self.outbox, self.notices.warn, self.settings.op_timeout)
        part(journal)
        journal.begin_doubt()
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

    # -- wires ----------------------------------------------------------------------------------------------

    def largest_value(self) -> int:
        """Return how many bytes an encoded value may have in the namespace that allows most."""
        return max(self.settings.max_value_bytes, *(namespace.max_value_bytes or 0 for namespace in self.namespaces), 0)

    def wire(self) -> "Wire | None":
        """Return the running loop's wire, made now if need be; None when Redis is switched off.

        :raises CacheClosedError: after `aclose`.
        :raises CacheLoopError: without a running event loop of asyncio.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise loop_error() from None
        wire = self._wires.get(loop)
        if wire is not None and not wire.over:
            return wire
        self.check_open()
        return None if self.endpoint is None else self._new_wire(loop)

    def _new_wire(self, loop: asyncio.AbstractEventLoop) -> "Wire":
        from magnus_cache._engine.redis.events import WireLimits
        from magnus_cache._engine.redis.wire import Wire

        assert self.endpoint is not None
        settings = self.settings
        probe = f"{self.keyspace.prefix}!probe".encode()
        root, largest = self.epochs.root, self.largest_value
        limits = WireLimits(settings.op_timeout, settings.max_staleness, settings.max_pending, probe, root, largest)
        wire = Wire(self.endpoint, limits, self.breaker, self, self.clock)
        with self._lock:
            # Again, under the lock: what is made after the last one was taken would never be closed.
            self.check_open()
            # Loops come and go with `asyncio.run`; a loop that ended without a word takes its trust with it.
            for old_loop, old in list(self._wires.items()):
                if old.closed:
                    self.generations.cut(old)
                    if self.reachable:
                        old.trust.retire()
                    else:
                        old.trust.kill()
                    del self._wires[old_loop]
            self._wires[loop] = wire
        return wire

    @property
    def reachable(self) -> bool:
        """Whether some wire is connected to Redis now, and its loop would notice if it were not."""
        return any(map(_lives, self._all_wires()))

    def doubts(self, epoch_names: EpochNames) -> bool:
        """Whether some wire has heard of a namespace's epoch, or that of all, and has not read it again yet."""
        known = [wire.known.doubts for wire in self._all_wires()]
        return any(epoch_names.control in names or self.epochs.root in names for names in known if names)

    def _all_wires(self) -> "list[Wire]":
        return list(self._wires.values())

    @property
    def used(self) -> bool:
        """Whether anything was begun, in this process, that is to be closed."""
        return self.portal.started or any(wire.started for wire in self._all_wires())

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked; False before it ever was. No I/O."""
        return self.endpoint is not None and self.breaker.closed

    def describe(self) -> str:
        """Return what tells this cache from another, without secrets."""
        where = self.endpoint.display if self.endpoint else "memory only"
        return f"{where} prefix={self.settings.prefix!r}{' closed' if self.closed else ''}"

    # -- what wires tell us ---------------------------------------------------------------------------------

    def invalidated(self, names: list[bytes], wire: "Wire") -> None:
        """Follow up what the server says has changed, or is no longer tracked: values, leases and epochs."""
        self.announcements.changed(names, wire)

    def missed(self, record: Callable[[Outbox], int]) -> int:
        """Record what Redis may not know, and tell it as soon as it listens; return the record's mark."""
        mark = record(self.outbox)
        for wire in self._all_wires():
            if _lives(wire):
                call_on_loop(wire.loop, self.replayer.begin, wire)
                break
        return mark

    async def recorded(self) -> None:
        """Return once what was recorded would survive this process, as far as there is a journal and its disk works."""
        if self.journal is not None:
            await self.journal.written()

    def flushed(self, wire: "Wire") -> None:
        """Ask about what is being loaded: its lease is gone like all the rest, if it was in the database concerned."""
        self.generations.flushed(wire)
        self.announcements.flushed(wire)

    def exchanged(self, wire: "Wire") -> None:
        """Meet the server anew: what it has in this database was read by nobody here."""
        self.failover.forget()

    def cut(self, wire: "Wire") -> None:
        """Take for changed what was announced and not followed up on a lost connection; wake who waits for more."""
        self.generations.cut(wire)
        self.announcements.cut(wire)
        if self.journal is not None:
            # From here on, and not from the next connection: who asks until then waits for the answer to be believed.
            self.journal.begin_doubt()

    def beat(self, wire: "Wire") -> None:
        """Keep the epochs of what is in use."""
        self.epoch_renewals.beat(wire)

    def measured(self, sent: float, reads: int) -> None:
        """Note how long some reads took."""
        self.stats.l2_latency.add(self.clock() - sent, reads)

    def greeting(self, identity: bytes) -> Command | None:
        """Return what a server is sent that this process has not met: whether all became invalid with its arrival."""
        return self.failover.greeting(identity)

    def greeted(self, identity: bytes, reply: Any) -> None:
        """Forget all that was known before a server that may have gone back in time."""
        self.failover.greeted(identity, reply)

    def connected(self, wire: "Wire") -> None:
        """Distrust what was written meanwhile, and tell Redis what it missed."""
        others = (other for other in self._all_wires() if other is not wire)
        self.generations.connected(wire, first=not any(map(_lives, others)))
        self.leases.release_lost(wire)
        self.failover.vouch(wire)
        self.log.connected(wire)
        if self.journal is not None:
            # Again: the file may have been made by another process since the last connection was lost.
            self.journal.begin_doubt()
        if self.outbox.pending:
            self.replayer.begin(wire)

    def without_loop(self, error: CacheUnavailableError) -> None:
        """Count a call of blocking code that had no background loop to go to, and say why."""
        self.stats.failed(error.reason)
        if "interpreter shutdown" in error.problem:
            # From Python 3.12 on, in an atexit handler: that is no fault that could be mended.
            return
        what = "functions are called without the cache, and Redis is told later what was invalidated"
        self.notices.warn(error.reason, f"{error}; meanwhile, in blocking code, {what}")

    def disconnected(self, wire: "Wire", error: CacheUnavailableError) -> None:
        """Say once that Redis is away, and why."""
        self.stats.failed(error.reason)
        self.log.disconnected(error)

    # -- the end --------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """:raises CacheClosedError: after `close`."""
        if self.closed:
            raise CacheClosedError("this cache manager was closed; make a new one, or call get_cache_manager() again")

    async def aclose(self) -> None:
        """Close every wire, and the background loop with its thread; nothing of this cache is left running."""
        if running_loop() is None:
            # Under another async library than asyncio no wire is this loop's.
            self.close()
            return
        self.closed = True
        try:
            await self.flights.aclose()
            here = asyncio.get_running_loop()
            if (last := self.farewell()) is not None:
                await asyncio.wait([asyncio.wrap_future(last)], timeout=CLOSE_TIMEOUT)
            if replayer := self.replayer.stop():
                await asyncio.wait(replayer)
            ending = [wire for wire in self._stop_wires() if wire.loop in (here, self.portal.loop)]
            # Waited for: cancelled once more by the end of its loop, one would leave its transport half-closed.
            waited = [asyncio.wrap_future(wire.ended) for wire in ending]
            if waited:
                await asyncio.wait(waited, timeout=CLOSE_TIMEOUT)
            await self.portal.aclose()
            if self.journal is not None:
                await self.journal.aclose(CLOSE_TIMEOUT)
            while self.memory.shrink():
                await turn()
        finally:
            self.end()

    def close(self) -> Ending:
        """Do what `aclose` does, from a thread; wires of other running loops end as soon as those loops turn.

        Awaiting what it returns waits for those of the loop that this thread is running.

        :raises CacheDeadlockError: in a signal handler or finalizer that has interrupted a critical section.
        """
        if sys.is_finalizing():
            # Nothing of it runs any more.
            self.closed = True
            return Ending()
        check_waiting()
        self.closed = True
        try:
            with contextlib.suppress(CacheClosedError):
                if self.portal.running:
                    # Loads on it end with it anyway; this also tells those who wait on other loops.
                    self.portal.call(self.flights.aclose)
            if (last := self.farewell(but=running_loop())) is not None:
                # Its loop may end meanwhile, and take it along: what it came to is not asked.
                wait([last], CLOSE_TIMEOUT)
            self.replayer.stop()
            wires = self._stop_wires()
            wait([wire.ended for wire in wires if wire.loop is self.portal.loop], CLOSE_TIMEOUT)
            self.portal.close()
            if self.journal is not None:
                self.journal.close(CLOSE_TIMEOUT)
            while self.memory.shrink():
                pass  # Other threads get the GIL in between.
        finally:
            self.end()
        return Ending([(wire.loop, wire.ended) for wire in wires])

    def farewell(self, but: asyncio.AbstractEventLoop | None = None) -> "Future[None] | None":
        """Begin to tell Redis what it was not told yet, on a loop that runs.

        :param but: a loop that does not, as this call holds it up.
        """
        if not self.outbox.pending:
            return None
        for wire in self._all_wires():
            if not wire.started or wire.over or not wire.loop.is_running() or wire.loop is but:
                continue
            words = self.replayer.farewell(wire, self.breaker)
            try:
                return asyncio.run_coroutine_threadsafe(words, wire.loop)
            except RuntimeError:
                # The loop was closed in between.
                words.close()
        return None

    def _stop_wires(self) -> "list[Wire]":
        """Begin to close all wires, and return those that will tell their end."""
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
        for wire in wires:
            # A loop that ended meanwhile has taken its wire along.
            call_on_loop(wire.loop, wire.stop)
        return [wire for wire in wires if wire.started and not wire.closed]

    def end(self) -> None:
        """End everything that this cache started, also after an interrupted close."""
        self.replayer.stop()
        self._stop_wires()
        self.portal.end()
        if self.journal is not None:
            self.journal.end()
        else:
            self.log.closed()
        self.memory.reset()
        self.generations.offline.kill()

    def after_fork(self) -> None:
        """Start anew in a forked child: its parent's sockets, threads and loads are not its own."""
        envelope.reseed()
        # Collected, a connection would warn and try to close a transport of a loop that lives in the parent.
        _abandoned.extend((self._wires, self.replayer))
        self._lock = section()
        self._wires, self.replayer = {}, self._new_replays()
        # A block that disables the cache is left in the child as well, if the thread in it is the one that forked.
        self.special.intersection_update(self.disabling)
        for own in (
            self.memory, self.flights, self.portal, self.stats, self.notices, self.breaker, self.outbox, self.epochs,
            self.leases, self.generations, self.abandoned, self.workers, self.epoch_renewals,
        ):  # fmt: skip
            own.reset()
        if self.journal is not None:
            self.journal.reset()
            self.journal.begin_doubt()


def _lives(wire: "Wire") -> bool:
    """Whether a wire is connected, and its loop would notice if it were not."""
    return wire.up and not wire.closed and wire.loop.is_running()
