"""Closing a cache: a final replay to Redis, then connections, threads and loads are ended."""

import asyncio
import contextlib
import sys
from concurrent.futures import wait
from typing import TYPE_CHECKING

from magnus_cache._engine.coordination.changes import Changes
from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.fleet_log import FleetLog
from magnus_cache._engine.coordination.fleet_stats import FleetStats
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.coordination.jobs import Jobs
from magnus_cache._engine.coordination.recordings import Recordings
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis.lane import Lane
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.background_loops import BackgroundLoops
from magnus_cache._engine.runtime.closing import Ending
from magnus_cache._engine.runtime.critical import check_waiting
from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT
from magnus_cache._engine.runtime.turns import turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheClosedError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from magnus_cache._engine.outage.journal import Journal
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LifeCycle"]


class LifeCycle(Invalidation):
    """The part of a `State` that closes it.

    :ivar closed: whether it was closed.
    """

    closed: bool
    breaker: Breaker
    changes: Changes
    fleet_log: FleetLog
    fleet_stats: FleetStats
    generations: OutageGenerations
    jobs: Jobs
    journal: "Journal | None"
    lane: Lane
    log: ConnectionLog
    outbox: Outbox
    portal: BackgroundLoops
    recordings: Recordings
    replayer: Replayer
    topology: Topology

    def check_open(self) -> None:
        """:raises CacheClosedError: after `close`."""
        if self.closed:
            raise CacheClosedError("this cache manager was closed; make a new one, or call get_cache_manager() again")

    async def aclose(self) -> None:
        """Close all connections, loops and threads of this cache; nothing is left running."""
        if running_loop() is None:
            # Under another async library than asyncio, no connection belongs to this loop.
            self.close()
            return
        self.closed = True
        self.lane.end()
        ends = self.changes.stop()
        try:
            # Before all else: they give up their leases, for which others wait.
            await self.jobs.aclose(CLOSE_TIMEOUT)
            await self.flights.aclose()
            here = asyncio.get_running_loop()
            if (last := self.final_replay()) is not None:
                await asyncio.wait([asyncio.wrap_future(last)], timeout=CLOSE_TIMEOUT)
            if (report := self.final_report()) is not None:
                await asyncio.wait([asyncio.wrap_future(report)], timeout=CLOSE_TIMEOUT)
            if replayer := self.replayer.stop():
                await asyncio.wait(replayer)
            # Waited for: if the end of the loop cancelled a connection again, its transport would stay half-closed.
            ending = [ended for loop, ended in (*ends, *self.topology.stop()) if loop in (here, self.portal.loop)]
            waited = [asyncio.wrap_future(ended) for ended in ending]
            if waited:
                await asyncio.wait(waited, timeout=CLOSE_TIMEOUT)
            await self.portal.aclose()
            if self.journal is not None:
                await self.journal.aclose(CLOSE_TIMEOUT)
            await self.recordings.aclose()
            while self.memory.shrink():
                await turn()
        finally:
            self.end()

    def close(self) -> Ending:
        """Close the cache from a thread; connections of other running loops end when those loops run next.

        Await the result to wait for the connections of the loop that runs in this thread.

        :raises CacheDeadlockError: in a signal handler or finalizer that has interrupted a critical section.
        """
        if sys.is_finalizing():
            # No thread or loop of it runs any more.
            self.closed = True
            return Ending()
        check_waiting()
        self.closed = True
        self.lane.end()
        ends = self.changes.stop()
        try:
            self.jobs.close(CLOSE_TIMEOUT)
            with contextlib.suppress(CacheClosedError):
                if self.portal.running:
                    # Loads on this loop end with it anyway; this call also ends the waits of callers on other loops.
                    self.portal.call(self.flights.aclose)
            if (last := self.final_replay(but=running_loop())) is not None:
                # Without its result: its loop may end meanwhile, and cancel it.
                wait([last], CLOSE_TIMEOUT)
            if (report := self.final_report(but=running_loop())) is not None:
                wait([report], CLOSE_TIMEOUT)
            self.replayer.stop()
            ending = [*ends, *self.topology.stop()]
            wait([ended for loop, ended in ending if loop is self.portal.loop], CLOSE_TIMEOUT)
            self.portal.close()
            if self.journal is not None:
                self.journal.close(CLOSE_TIMEOUT)
            self.recordings.close()
            while self.memory.shrink():
                pass  # Between two calls, other threads can take the GIL.
        finally:
            self.end()
        return Ending(ending)

    def final_replay(self, but: asyncio.AbstractEventLoop | None = None) -> "Future[None] | None":
        """Begin to replay pending invalidations to Redis, on a running loop; return None if there is nothing to do.

        :param but: a loop to skip, because the caller blocks it.
        """
        if not self.outbox.pending:
            return None
        for connection in self.topology.running():
            if connection.loop is but:
                continue
            replay = self.replayer.final_replay(connection, self.breaker)
            try:
                return asyncio.run_coroutine_threadsafe(replay, connection.loop)
            except RuntimeError:
                # The loop was closed in between.
                replay.close()
        return None

    def final_report(self, but: asyncio.AbstractEventLoop | None = None) -> "Future[None] | None":
        """Begin to publish what was counted since the last report, on a running loop; return None without a connection.

        :param but: a loop to skip, because the caller blocks it.
        """
        if not (self.fleet_stats.interval or self.fleet_log.waiting):
            return None
        for connection in self.topology.running():
            if connection.loop is but or not connection.up:
                continue
            report = self._last_report(connection)
            try:
                return asyncio.run_coroutine_threadsafe(report, connection.loop)
            except RuntimeError:
                # As for a replay.
                report.close()
        return None

    async def _last_report(self, connection: "Connection") -> None:
        await self.fleet_log.published(connection)
        await self.fleet_stats.published(connection, last=True)

    def end(self) -> None:
        """End everything that this cache started, even after an interrupted close."""
        self.jobs.end()
        self.replayer.stop()
        self.lane.end()
        self.changes.stop()
        self.topology.stop()
        self.portal.end()
        self.recordings.end()
        if self.journal is not None:
            self.journal.end()
        else:
            self.log.closed()
        self.memory.reset()
        self.generations.end()
