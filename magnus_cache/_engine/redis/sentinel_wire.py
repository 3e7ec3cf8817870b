"""The connection of one event loop to the primary that the sentinels name.

It is a `ConfirmedWire`: an answer counts only while a majority of the sentinels has named its server within
`max_staleness`, and no other server calls itself the primary without having been one before; see `sentinel_view`.
When the sentinels name another one, the connection ends at once, and the next one leads there. The new primary is
another server to the cache: what it may lack of the latest writes is invalidated, as after any failover.
"""

import asyncio
import math
from typing import TYPE_CHECKING

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.connection import answers, writer_of
from magnus_cache._engine.redis.diagnosis import TopologyError
from magnus_cache._engine.redis.endpoint import Address
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.sentinel_view import Verdict
from magnus_cache._engine.redis.sentinel_watch import SentinelWatch
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.deployment import Deployment

__all__ = ["SentinelWire"]


class SentinelWire(ConfirmedWire):
    """See the module.

    :ivar watch: knows who is the primary.
    """

    def __init__(
        self, deployment: "Deployment", limits: WireLimits, breaker: Breaker, observer: WireListener, clock: Clock,
    ) -> None:  # fmt: skip
        super().__init__(deployment.endpoint, limits, breaker, observer, clock)
        self.watch = SentinelWatch(deployment, limits, clock, self._judged)
        self._transport: asyncio.WriteTransport | None = None
        self._was_named: tuple[Address | None, bool] = None, False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def address(self) -> Address:
        """Where it leads to."""
        return self._endpoint.host, self._endpoint.port

    @property
    def started(self) -> bool:
        """Whether anything was ever asked through it, or of the sentinels."""
        return super().started or self.watch.started

    # -- the word of the sentinels --------------------------------------------------------------------------

    def _ask_for_word(self, *, urgent: bool = False) -> None:
        self.watch.confirm(urgent=urgent)

    def _judged(self, verdict: Verdict) -> None:
        """Act on what the sentinels, and the servers, have told."""
        is_named = verdict.primary is not None and verdict.at > -math.inf
        before, self._was_named = self._was_named, (verdict.primary, is_named)
        if not self.up:
            if is_named and before != self._was_named:
                # Whatever the last attempt has met, this is another primary, or it is certain by now.
                self._breaker.retry_now()
        elif verdict.primary is not None and verdict.primary != self.address:
            self._replaced()
        elif verdict.doubted_by is not None:
            self._doubted()
        elif verdict.primary == self.address:
            self.vouched(verdict.at)

    def _doubted(self) -> None:
        """Believe nothing until the sentinels have decided: another server calls itself the primary."""
        self.known.vouched = -math.inf
        self.trust.kill()

    def _replaced(self) -> None:
        """End the connection: another server is the primary."""
        self._doubted()
        if self._transport is not None:
            # As if it had hung up: callers wait for the connection to the new one.
            self._proved = True
            self._transport.abort()

    # -- the connection -------------------------------------------------------------------------------------

    async def _connection(self) -> CacheUnavailableError:
        self._proved = self._stood = False
        self._look()
        try:
            self._endpoint = await self.watch.primary()
        except CacheUnavailableError as error:
            return error
        except BaseException:
            self._breaker.withdrawn(self.clock())
            raise
        return await super()._connection()

    def _look(self) -> None:
        """Ask the sentinels again and again while there is no connection: it may be found before the next attempt."""
        self._looking = None
        if self.over or self.up:
            return
        self.watch.confirm()
        self._looking = self.loop.call_later(self.watch.pause, self._look)

    async def _introduce(self, connection: AbstractConnection) -> None:
        writer = writer_of(connection)
        self._transport = None if writer is None else writer.transport
        # Before anything is concluded from what it has.
        (replication,) = await answers(connection, commands.INFO_REPLICATION.packed)
        if isinstance(replication, NoPermissionError):
            # A replica that is named by mistake, or was promoted, could not be told from a primary.
            raise replication
        if info(replication, b"role") == "slave":
            raise TopologyError("the sentinels name it as the primary, and it is a replica; the cache waits for them")
        await super()._introduce(connection)
        self.known.vouched = self.watch.at(self.address)
        self.trust.deadline = min(self.trust.deadline, self.known.trusted_from + self.max_staleness)

    def _lost(self, error: CacheUnavailableError) -> None:
        self._transport = None
        super()._lost(error)
        if not self.over and self._looking is None:
            self._look()

    # -- its end --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin to close, without waiting."""
        if self._task is None:
            self._end()
        else:
            super().stop()

    def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        # First the others' connections: who waits for the end of this one is to find nothing left.
        self.watch.end(super()._end)
