"""The end of a cache: its last words to Redis, and all that it has begun ended."""

import asyncio
import contextlib
import sys
from concurrent.futures import wait
from typing import TYPE_CHECKING

from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
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

__all__ = ["LifeCycle"]


class LifeCycle(Invalidation):
    """The part of a `State` that ends it.

    :ivar closed: whether it was closed.
    """

    closed: bool
    breaker: Breaker
    generations: OutageGenerations
    journal: "Journal | None"
    log: ConnectionLog
    outbox: Outbox
    portal: BackgroundLoops
    replayer: Replayer
    topology: Topology

    def check_open(self) -> None:
        """:raises CacheClosedError: after `close`."""
        if self.closed:
            raise CacheClosedError("this cache manager was closed; make a new one, or call get_cache_manager() again")

    async def aclose(self) -> None:
        """Close every connection, and the background loop with its thread; nothing of this cache is left running."""
        if running_loop() is None:
            # Under another async library than asyncio no connection is this loop's.
            self.close()
            return
        self.closed = True
        try:
            await self.flights.aclose()
            here = asyncio.get_running_loop()
            if (last := self.final_replay()) is not None:
                await asyncio.wait([asyncio.wrap_future(last)], timeout=CLOSE_TIMEOUT)
            if replayer := self.replayer.stop():
                await asyncio.wait(replayer)
            # Waited for: cancelled once more by the end of its loop, one would leave its transport half-closed.
            ending = [ended for loop, ended in self.topology.stop() if loop in (here, self.portal.loop)]
            waited = [asyncio.wrap_future(ended) for ended in ending]
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
        """Do what `aclose` does, from a thread; connections of other running loops end as soon as those loops turn.

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
            if (last := self.final_replay(but=running_loop())) is not None:
                # Its loop may end meanwhile, and take it along: what it came to is not asked.
                wait([last], CLOSE_TIMEOUT)
            self.replayer.stop()
            ending = self.topology.stop()
            wait([ended for loop, ended in ending if loop is self.portal.loop], CLOSE_TIMEOUT)
            self.portal.close()
            if self.journal is not None:
                self.journal.close(CLOSE_TIMEOUT)
            while self.memory.shrink():
                pass  # Other threads get the GIL in between.
        finally:
            self.end()
        return Ending(ending)

    def final_replay(self, but: asyncio.AbstractEventLoop | None = None) -> "Future[None] | None":
        """Begin to tell Redis what it was not told yet, on a loop that runs.

        :param but: a loop to skip, because this call blocks it.
        """
        if not self.outbox.pending:
            return None
        for connection in self.topology.running():
            if connection.loop is but:
                continue
            words = self.replayer.final_replay(connection, self.breaker)
            try:
                return asyncio.run_coroutine_threadsafe(words, connection.loop)
            except RuntimeError:
                # The loop was closed in between.
                words.close()
        return None

    def end(self) -> None:
        """End everything that this cache started, also after an interrupted close."""
        self.replayer.stop()
        self.topology.stop()
        self.portal.end()
        if self.journal is not None:
            self.journal.end()
        else:
            self.log.closed()
        self.memory.reset()
        self.generations.offline.kill()
