"""The heartbeat: periodic requests of a busy connection, in one round trip.

Three requests, answered in this order:

- TIME, so that no value is written or judged by an old estimate of the server's clock.
- At times INFO replication: a replica that has lost its primary must not be trusted.
- The root epoch, as a marker of the database. Each change of it is announced. If it changed without an announcement,
  the database is another one (SWAPDB), and values read from the former one do not count.

Only the last answer renews the trust of a connection. Any answer proves that no announcement was missed, but only this
one proves that the database is still the same.
"""

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.coherence.epochs import epoch_of
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.connection import is_orphan
from magnus_cache._engine.redis.pipeline import Call
from magnus_cache._engine.redis.server_time import server_time
from magnus_cache._engine.runtime.clock import MICROSECONDS, offset_of
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["Heartbeat", "take_time"]

_EVERY: Final = 1.0
"""Seconds between two requests for the time at most, while requests are sent; for replication, at least."""

_PART: Final = 4
"""A heartbeat precedes a request after 1/`_PART` of the staleness bound."""


class Heartbeat:
    """The heartbeat of one wire, on the running loop.

    :param max_staleness: seconds that a connection is trusted after an answered heartbeat was sent.
    :param marker: the name of the key that identifies the database.
    :param exchanged: called when the database was swapped.
    :ivar due: the monotonic second from which on a heartbeat should be sent before the next request.
    :ivar fault: why the current connection must be closed, or None.
    """

    def __init__(self, clock: "Clock", max_staleness: float, marker: bytes, exchanged: "Callable[[], object]") -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._max_staleness = max_staleness
        self._exchanged = exchanged
        self._marker = commands.read(marker)
        self._name = marker
        self._every = min(max_staleness / _PART, _EVERY)
        self.due = self._looked = -math.inf
        self._pulse: asyncio.Future[None] | None = None
        self._replicates = False
        self.fault: RedisConnectionError | None = None

    def begin(self, sent: float, *, replication: bool) -> None:
        """Start with a new connection, whose handshake has sent the same requests.

        :param sent: the monotonic second of the handshake.
        :param replication: whether the server reports replication.
        """
        self.due, self._looked = sent + self._every, sent
        self._replicates = replication
        self.fault = None

    @property
    def pulse(self) -> "asyncio.Future[None] | None":
        """The future of the heartbeat under way, or None."""
        return None if self._pulse is None or self._pulse.done() else self._pulse

    def is_due(self, now: float) -> bool:
        """Whether a heartbeat should be sent before the next request: it is due, and none is under way."""
        return now >= self.due and self.pulse is None

    def ask(self, now: float) -> "tuple[asyncio.Future[None], list[Call]]":
        """Return the future of a new heartbeat, and its requests in order."""
        self.due = now + self._every
        self._pulse = pulse = self._waiter()
        calls = [Call(commands.TIME, self._took_time, self._waiter()), Call(self._marker, self._marked, pulse)]
        if self._replicates and now - self._looked >= max(_EVERY, self._max_staleness):
            self._looked = now
            calls.insert(1, Call(commands.INFO_REPLICATION, self._took_replication, self._waiter()))
        return pulse, calls

    def _waiter(self) -> asyncio.Future[None]:
        # It may fail without a waiter; the end of the connection is reported elsewhere.
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiter.add_done_callback(_looked_at)
        return waiter

    def _took_time(self, reply: Any, connection: "Connection", sent: float) -> None:
        take_time(reply, connection, sent, self._clock)

    def _took_replication(self, reply: Any, _connection: "Connection", _sent: float) -> None:
        if is_orphan(reply):
            self._fail("the server is a replica that has lost its primary")

    def _marked(self, reply: Any, connection: "Connection", sent: float) -> None:
        known, epoch = connection.known, epoch_of(reply[0])
        if connection.tracking and self._name in known.current and epoch != known.marker_epoch:
            self._exchanged()
            self._fail("the database is another one, as after SWAPDB")
        known.confirmed = sent
        connection.trust.deadline = known.trusted_from + self._max_staleness

    def _fail(self, problem: str) -> None:
        """:raises CacheUnavailableError: for the waiters; the wire closes the connection because of `fault`."""
        self.fault = RedisConnectionError(problem)
        raise CacheUnavailableError("lost", f"Redis cannot be trusted: {problem}")


def take_time(reply: Any, connection: "Connection", sent: float, clock: "Clock") -> None:
    """Update the estimate of the server's clock by an answer to TIME.

    :raises RedisConnectionError: for any other answer.
    """
    server = server_time(reply)
    if server is None:
        raise RedisConnectionError("Protocol error: what came is no answer to TIME")
    connection.time.sample(sent, clock(), server + int(offset_of(clock) * MICROSECONDS))


def _looked_at(waiter: asyncio.Future[None]) -> None:
    if not waiter.cancelled():
        waiter.exception()
