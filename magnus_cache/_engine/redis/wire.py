"""The wire: one multiplexed RESP3 connection of one event loop to one Redis.

Everybody on the loop shares it. What has queued up is sent as one piece (see `sender`), and replies are handed out as
they come (see `incoming`). Invalidation pushes arrive on this same connection, *in order with the replies*: that order
is what the local cache's correctness rests on.

The life of a wire, all of it in `Wire._live`::

    new -> connecting -> up -> connecting   the peer hung up: one more try at once, callers wait for it
                |         `--> down         it fell silent: callers fail at once, probes go on in the background
                `----> down -> up
"""

import asyncio
import contextlib
import math
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.turn import wait_turn as trial
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.announced import Questions
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.connection import opened, push_of, writer_of
from magnus_cache._engine.redis.diagnosis import explain, unable
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.exchange import ReadBatch, Receive, ValueReceiver, Waiter, Wanted, as_it_is
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.handshake import UNKNOWN_SERVER, arrive, history_check, introduce
from magnus_cache._engine.redis.heartbeat import Heartbeat, take_time
from magnus_cache._engine.redis.incoming import Rest, read
from magnus_cache._engine.redis.interleaved import apart
from magnus_cache._engine.redis.pipeline import Call, Pipeline, Read
from magnus_cache._engine.redis.sender import EARLY, Sender
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.redis.watchdog import PATIENCE, Watchdog
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.loop_end import connection_task
from magnus_cache._engine.runtime.turns import PIECE, pieces
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["Wire"]

_MOVING: Final = 5.0
"""Seconds between two attempts to find the primary by connecting anew."""


class Wire:
    """One event loop's connection to one Redis. Every method must be called on that loop.

    `Connection` describes the attributes that callers use; each connection begins with a new trust and new epochs.

    :ivar database: the number of the database that it reads and writes.
    :ivar probe: a key that need not exist, to ask for when only an answer counts.
    :ivar server: what the server of the present connection has told about itself.
    :ivar over: whether it was closed.
    :ivar ended: done when it is closed, for waiters in other threads.
    """

    _pipeline_type, _heartbeat_type, _unable = Pipeline, Heartbeat, staticmethod(unable)

    def __init__(
        self, endpoint: "Endpoint", limits: WireLimits, breaker: Breaker, observer: WireListener,
        clock: Clock = monotonic,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.max_staleness = limits.max_staleness
        self.database, self.probe = endpoint.db, limits.controls.probe
        self.trust, self.known = Trust(-math.inf), KnownEpochs()
        self.questions = Questions(self.loop, lambda: self.known.pace, lambda: not self.broadcasts)
        self.leases_held, self.time, self.tracking, self.broadcasts = 0, RedisTime(), False, False
        self._endpoint, self._limits, self._breaker, self._observer = endpoint, limits, breaker, observer
        self._pipeline = self._pipeline_type(observer.measured)
        self._sender = Sender(self.loop, self._pipeline, self._pack)
        self._most_pending, self._moved = limits.max_pending, -math.inf
        self.server, self.ended = UNKNOWN_SERVER, Future[None]()
        self._intake = Intake(PATIENCE * limits.op_timeout, clock, self._pipeline.values_owed, limits.value_bytes)
        self._silence = Watchdog(limits.op_timeout, clock, self._intake, lambda: self._pipeline.oldest, self.give_up)
        self.over = self.up = self.keeps_identity = self._proved = self._stood = self._worked = False
        self._error: CacheUnavailableError | None = None
        self._task: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._heartbeat = self._heartbeat_type(clock, limits.max_staleness, limits.controls.root, self._exchanged)

    # -- what callers use -----------------------------------------------------------------------------------

    @property
    def identity(self) -> bytes:
        """What tells the server's history of writes from another's; empty where that is not told."""
        return self.server.identity

    @property
    def closed(self) -> bool:
        """Whether the wire can never answer again: it was closed, or its loop was."""
        return self.over or self.loop.is_closed()

    def read(self, name: bytes, receive: Receive[bytes | None], waiter: Waiter, expected: float = 0) -> None:
        """Queue the read of one value; see `Connection.read`, also for what it raises."""
        self._admit()
        self._pipeline.add(Read(name, receive, waiter, expected))
        # Never at once, even if nothing else waits: most often it is an epoch, and its value comes right behind it.
        self._sender.schedule()

    def read_value(self, receiver: ValueReceiver, wanted: Wanted, place: Any, waiter: Waiter) -> None:
        """Queue the read of one value, see `Connection.read_value`; written out, because all reads come here.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        pipeline = self._pipeline
        if not self.up or pipeline.pending >= self._most_pending:
            self._admit()
        batch = pipeline.growing
        if batch is None or batch.receiver is not receiver or (count := len(batch.waiters)) >= pipeline.most:
            batch, count = pipeline.begin_batch(receiver), 0
        batch.wanted.append(wanted)
        batch.places.append(place)
        batch.waiters.append(waiter)
        pipeline.pending += 1
        sender = self._sender
        if not sender.is_scheduled:
            sender.kick()
        elif count == EARLY - 1 and not pipeline.owed:
            sender.send_now()

    def read_batch(self, batch: ReadBatch) -> None:
        """Queue the reads of some values of one call, to be judged together; fails as `read_value` does."""
        self._admit()
        self._pipeline.add_batch(batch)
        self._sender.kick()

    def call(self, command: Command, receive: Receive[Any], waiter: Waiter) -> None:
        """Queue a command; its last reply goes through `receive` to `waiter`.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        self._enqueue(Call(command, receive, waiter))

    def execute(self, command: Command, receive: Receive[Any] | None = None) -> asyncio.Future[Any]:
        """Send a command; to be awaited for its last reply, or what `receive` makes of it.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        waiter = self.loop.create_future()
        self.call(command, receive or as_it_is, waiter)
        return waiter

    async def renew(self) -> None:
        """Return after a heartbeat was answered: every push that is due before that answer has been handled.

        One heartbeat serves all who wait for it, also if it is under way already.

        :raises CacheUnavailableError: when Redis does not answer.
        """
        await asyncio.shield(self._pulse())

    async def aclose(self) -> None:
        """Disconnect, and fail all waiters. Idempotent."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def started(self) -> bool:
        """Whether anything was ever asked through it, so that there is something to end."""
        return self._task is not None

    def stop(self) -> None:
        """Begin to close, without waiting; for the thread of another loop, through `call_soon_threadsafe`."""
        if self._task is not None:
            self._task.cancel()

    def _enqueue(self, *asked: Read | Call) -> None:
        self._admit()
        for one in asked:
            self._pipeline.add(one)
        self._sender.kick()

    def _admit(self) -> None:
        """:raises CacheUnavailableError: if nothing can be asked now."""
        if self._task is None:
            self._start()
        # If another wire has found Redis again, this one is about to: callers that fail now would load for nothing.
        if self._error is not None and (self.over or self._breaker.open):
            # A fresh one each time: an exception raised over and over would drag all its tracebacks along.
            raise self._error.again()
        if self._pipeline.pending >= self._most_pending:
            raise CacheUnavailableError("overloaded", f"more than {self._most_pending} requests wait for Redis")

    def _start(self) -> None:
        self._task = connection_task(self.loop, self._live(), "magnus-cache-wire", self._end)

    # -- the connection's life ------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            while True:
                await trial(self._breaker, self.clock, self._rest)
                began = self.clock()
                error = await self._connection()
                self._lost(error)
                if not self._stood and self._breaker.succeeded_at > began:
                    # Another wire has connected since: what this one met is over.
                    continue
                # Who served us and hung up may be back at once, as after CLIENT KILL or a restart: let callers
                # wait for one attempt. Who fell silent or refused us would make all of them wait in vain.
                if self._proved and error.reason == "lost":
                    continue
                self._error = error
                self._breaker.failed(self.clock(), error.reason)
                self._observer.disconnected(self, error)
                self._pipeline.fail_queued(error)
        finally:
            self._end()

    def _rest(self) -> None:
        """Fail the waiters until the next attempt is due, because another wire has just learned that Redis is away."""
        if self._error is None:
            self._error = CacheUnavailableError("down", f"Redis at {self._endpoint.display} is away; waiting to retry")
        self._pipeline.fail_queued(self._error)

    def _end(self) -> None:
        """Fail all waiters, for good; also called for a task that was cancelled before its first step."""
        if self.over:
            return
        self.over, self._error = True, CacheUnavailableError("closed", "the connection to Redis was closed")
        try:
            self._lost(self._error)
        finally:
            self.ended.set_result(None)
            self._pipeline.fail_queued(self._error)

    async def _connection(self) -> CacheUnavailableError:
        """Hold one connection for as long as it lasts, and return why it ended."""
        self._proved = self._stood = False
        writer: asyncio.Task[None] | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._limits.op_timeout):
                    connection = await stack.enter_async_context(
                        opened(self._endpoint, self._limits.op_timeout, self._intake, self._settled)
                    )
                    await self._introduce(connection)
                self._ready()
                writer = connection_task(self.loop, self._sender.run(connection), "magnus-cache-writer")
                self._sender.attach(writer_of(connection))
                async with asyncio.timeout(None) as self._patience:
                    handle, intake = apart(self._handle, self.server), self._intake
                    owed = () if self.server.interleaves else self._pipeline.transactions
                    await read(connection, intake.incoming, handle, intake.completed, self._sender.expect, owed)
        # What redis-py, the socket and the TLS layer can raise has no common root below Exception; whatever it
        # is, the connection is over, and the reason is told.
        except Exception as error:  # noqa: BLE001  # as said
            return explain(self._intake.refusal or error, self._endpoint, worked=self._worked)
        except BaseException as error:
            writer = None if isinstance(error, GeneratorExit) else writer  # a closed loop has ended it
            if not self.up:
                self._breaker.withdrawn(self.clock())
            raise
        finally:
            self._patience = None
            self._sender.detach()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        raise AssertionError("unreachable: a connection ends by an error")

    async def _introduce(self, connection: AbstractConnection) -> None:
        sent = self.clock()
        server = await introduce(connection, self._limits.controls.server, self._limits.tracking)
        # The staleness bound holds without.
        self.tracking, self.broadcasts = server.tracking, server.broadcasts
        # A new connection may lead to a new server: nothing known about the old one's clock counts.
        self.time = RedisTime()
        take_time(server.time, self, sent, self.clock)
        self._heartbeat.begin(sent, replication=bool(server.history))
        self.trust = Trust(sent + self.max_staleness)
        self.known = KnownEpochs(self._limits.controls.root, sent)
        if not self.tracking:
            self.known.deadline = sent + self.max_staleness
        known = self._observer.knows(server.identity) if server.identity else None
        if known is not None:
            arrival = await arrive(connection, self._limits.controls, server, known)
            self._observer.arrived(server.identity, arrival)
        self.server, self.keeps_identity = server, server.announces_removal and server.keeps_identity

    def _ready(self) -> None:
        self._intake.completed()
        # In this order: other threads must not find this wire up, and theirs still told that Redis is away.
        self._breaker.succeeded(self.clock())
        self.up, self._stood, self._worked, self._error = True, True, True, None
        self._observer.connected(self)
        self._schedule_beat()

    def _settled(self) -> bool:
        return self.up and not self._pipeline.owed

    def _lost(self, error: CacheUnavailableError) -> None:
        """Give up a connection: nothing read through it is trusted, and no caller waits for its answers."""
        self.up = False
        self.trust.kill()
        self._silence.end()
        self.questions.close()
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._pipeline.owed:
            # First: once its callers know, whatever they do instead is to come after all that they did here.
            self._observer.abandoned.leave(self.server.run, self.server.client)
        self.server = UNKNOWN_SERVER
        try:
            self._pipeline.fail_sent(error)
        finally:
            self._observer.cut(self)

    # -- writing --------------------------------------------------------------------------------------------

    def _pack(self) -> list[bytes | memoryview]:
        """Return the bytes of a heartbeat that is due, and of what is queued, which is judged by its answers."""
        if (now := self.clock()) >= self._heartbeat.due and self._heartbeat.is_due(now):
            for call in reversed(self._heartbeat.ask(now)[1]):
                self._pipeline.add_first(call)
        if self._observer.abandoned.waiting:
            for command, ending in self._observer.abandoned.ends(self.server.run, self.server.ended):
                self._pipeline.add_first(Call(command, as_it_is, ending))
        chunks = self._pipeline.compose(now, quiet=self.server.echoes)
        if self._silence.timer is None:
            self._silence.begin()
        self._schedule_beat()
        return chunks

    def give_up(self) -> None:
        """End the connection, as the server is silent."""
        if self._patience is not None:
            self._patience.reschedule(self.loop.time())

    # -- reading --------------------------------------------------------------------------------------------

    def _handle(self, reply: Any) -> Rest:
        """Handle a reply or a push as far as one turn of the loop allows; return what is left to do of it."""
        if type(reply) is bytes and (reply == b"QUEUED" or reply == b"OK") and self._pipeline.skipped():
            return None
        frame = None if type(reply) is list else push_of(reply)
        if frame is None:
            self._answered(reply)
            return None if self._pipeline.unfinished is None else self._pipeline.handed_out
        if frame[0] != b"invalidate":
            return None
        if (names := frame[1]) is None:
            self._flushed()
        elif len(names) <= PIECE:
            self._observer.invalidated(names, self)
        else:
            return partial(self._invalidated, names)
        return None

    async def _invalidated(self, names: list[bytes]) -> None:
        # Between two steps the others count as not arrived: no later answer renews trust before they are handled.
        async for some in pieces(names):
            self._observer.invalidated(some, self)

    def _flushed(self) -> None:
        """FLUSHALL or FLUSHDB: every entry of this connection is void at once; later answers count again."""
        before = self.trust.deadline, self.trust.generation
        self.trust.retire()
        self.trust = Trust(*before)
        self.known = KnownEpochs(self._limits.controls.root, self.known.confirmed)
        if self.server.history:
            check = history_check(self.known, self.server.history)
            self._pipeline.add_first(Call(commands.recognize(self.probe), as_it_is, check))
            self._sender.kick()
        self._observer.flushed(self)

    def _answered(self, reply: Any) -> None:
        pipeline = self._pipeline
        if not pipeline.owed:
            raise RedisConnectionError("Protocol error: a reply without a request")
        if isinstance(reply, Exception) and self._unable(reply) is not None:
            raise reply  # it refuses everything, so all waiters are told now
        self._proved = True
        request, reply = pipeline.owed[0], pipeline.answered(reply, self)
        if (pipeline.queue or pipeline.large) and pipeline.is_ready:
            self._sender.kick()  # a script that the server did not know, or further large values
        if self._heartbeat.fault is not None:
            raise self._heartbeat.fault
        if isinstance(reply, ReadOnlyError) and not request.is_note and (now := self.clock()) > self._moved + _MOVING:
            # It was demoted. A new connection may lead to its successor, which the name stands for by now.
            self._moved = now
            raise RedisConnectionError("the primary has become a replica")

    # -- trust and time -------------------------------------------------------------------------------------

    def _schedule_beat(self) -> None:
        if self._beat is None and self.up:
            self._beat = self.loop.call_later(self.max_staleness / 3, self._on_beat)

    def _on_beat(self) -> None:
        """Keep the trust of a process alive that is busy, or loading; an idle one lets it lapse and costs nothing."""
        self._beat = None
        self._observer.beat(self)
        if self.up and (self.trust.used or self.leases_held):
            self.trust.used = False
            with contextlib.suppress(CacheUnavailableError):
                self._pulse()

    def _pulse(self) -> asyncio.Future[None]:
        """Ask what the heartbeat asks, unless that is under way: one exchange serves trust and clock both."""
        pulse = self._heartbeat.pulse
        if pulse is None:
            self._admit()
            pulse, calls = self._heartbeat.ask(self.clock())
            self._enqueue(*calls)
        return pulse

    def _exchanged(self) -> None:
        """Let nothing count that was read from another database than the present one."""
        self.trust.retire()
        self._observer.exchanged(self)
