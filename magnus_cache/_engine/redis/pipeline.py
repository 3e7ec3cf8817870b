"""What a connection has been asked and what it is owed: the order of requests and replies, without any I/O.

Requests queue up; `Pipeline.compose` turns the queue into bytes, merging neighbouring reads into one MGET, and
notes which answers they call for; `Pipeline.answered` hands a reply to those who asked for it.

Reads of values come in batches (`ReadBatch`) from the moment they are queued: a batch is one object in the queue, one
part of an MGET, and is judged in one go. All other reads, such as those of epochs, stand alone (`Read`), and go into
the same MGET as their neighbours: a value and the epochs that it is judged by come in one reply.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.diagnosis import refused
from magnus_cache._engine.redis.exchange import Connection, ReadBatch, Receive, ValueReceiver, Waiter
from magnus_cache._engine.runtime.turns import turn
from magnus_cache.errors import CacheError, CacheUnavailableError

__all__ = ["Call", "InFlight", "Measure", "Pipeline", "Read"]

_BATCH_KEYS: Final = 256
"""Reads in one MGET. Measured: past 512 keys throughput falls, as a reply is parsed before anybody is served."""

_BATCH_BYTES: Final = 2_000_000
"""Bytes aimed at in one reply or one write, so that no single one holds up the loop or the server."""

_UNKNOWN_BYTES: Final = 32_768
"""Bytes that a value is taken to have where none of its namespace was seen yet."""

_STEP_BYTES: Final = 524_288
"""Bytes of a reply that are handed out in one step. Checking a megabyte takes a third of a millisecond."""

_EACH: Final = 1_024
"""Bytes that a value counts for beyond its own: what is done for each."""

_VALUE_TYPES: Final = {bytes, type(None)}


Measure = Callable[[float, int], None]
"""Told of each answered batch of reads: ``measure(sent, count)``, with the monotonic second when it left."""


class Read:
    """One wanted value.

    :ivar expected: how many bytes it may have; 0 if nothing is known of its like.
    """

    __slots__ = ("expected", "name", "receive", "waiter")

    def __init__(self, name: bytes, receive: Receive[Any], waiter: Waiter, expected: float = 0) -> None:
        self.name = name
        self.receive = receive
        self.waiter = waiter
        self.expected = expected


class Call:
    """Any other command, sent as it is."""

    __slots__ = ("command", "receive", "waiter")

    def __init__(self, command: Command, receive: Receive[Any], waiter: Waiter) -> None:
        self.command = command
        self.receive = receive
        self.waiter = waiter

    def said_again(self) -> "Call":
        """Return the same request in the words for a server that does not know the script."""
        again = self.command.again
        assert again is not None
        return Call(again(), self.receive, self.waiter)


_Reads = list[Read | ReadBatch]
"""The parts of one MGET, in the order of its keys."""


class InFlight:
    """What was sent and is owed an answer: the parts of an MGET, or a call with `replies` still to come.

    :ivar count: how many values, or other answers, the next reply may carry.
    :ivar quiet: the command that was sent within a transaction which keeps it from being announced; None for others.
    """

    __slots__ = ("asked", "count", "error", "quiet", "replies", "sent")

    def __init__(
        self, sent: float, replies: int, asked: _Reads | Call, count: int = 1, quiet: Command | None = None
    ) -> None:
        self.sent = sent
        self.replies = replies
        self.asked = asked
        self.count = count
        self.quiet = quiet
        self.error: Exception | None = None


class _HandOut:
    """The values of one reply that are being handed out.

    :ivar parts: what asked for them, from the part on that is being served.
    :ivar served: how many reads of that part are served.
    :ivar values: the values of the reply.
    :ivar begin: where the values of that part begin.
    :ivar size: bytes of all values.
    """

    __slots__ = ("begin", "connection", "count", "parts", "sent", "served", "size", "values")

    def __init__(self, parts: _Reads, values: list[bytes | None], connection: Connection, sent: float) -> None:
        self.parts = deque(parts)
        self.served = 0
        self.values = values
        self.begin = 0
        self.size = sum(map(len, filter(None, values)))
        self.count = len(values)
        self.connection = connection
        self.sent = sent

    def step(self, part: Read | ReadBatch, left: int) -> tuple[slice, list[bytes | None], int]:
        """Return which further reads of a part one step may take, all its values, and what is left for the next part.

        :param left: bytes of values that this step may still hand out.
        """
        reads = len(part) if isinstance(part, ReadBatch) else 1
        values = self.values[self.begin : self.begin + reads]
        if self.size + self.count * _EACH <= _STEP_BYTES:
            return slice(0, reads), values, left
        first = end = self.served
        while end < reads and left > 0:
            value = values[end]
            left -= _EACH + (len(value) if value is not None else 0)
            end += 1
        return slice(first, end), values, left


class Pipeline:
    """The queue of one connection and the answers that it is owed, first in, first out.

    The connection looks at these for each reply, so they are attributes and not properties.

    :ivar pending: requests queued or sent and not yet answered.
    :ivar queue: what waits to be sent.
    :ivar owed: what was sent and not yet answered, the oldest first.
    :ivar unfinished: the values of the last reply, while some of them are still to be handed out; else None.
    :ivar growing: the batch at the end of the queue, if further reads may join it; else None.
    :ivar most: how many reads one batch may have.
    """

    __slots__ = ("_measure", "_value_bytes", "growing", "most", "owed", "pending", "queue", "unfinished")

    def __init__(self, measure: Measure) -> None:
        self.pending = 0
        self._measure = measure
        self.queue: deque[Read | ReadBatch | Call] = deque()
        self.owed: deque[InFlight] = deque()
        self._sized(256.0)
        self.unfinished: _HandOut | None = None
        self.growing: ReadBatch | None = None

    def _sized(self, value_bytes: float) -> None:
        """Note how many bytes a value has on average, to ask for as many as a reply should carry."""
        self._value_bytes = value_bytes
        self.most = min(_BATCH_KEYS, int(_BATCH_BYTES / value_bytes) or 1)

    @property
    def oldest(self) -> InFlight | None:
        """What has been owed an answer for longest."""
        return self.owed[0] if self.owed else None

    @property
    def is_single(self) -> bool:
        """Whether exactly one request is queued."""
        queue = self.queue
        if len(queue) != 1:
            return False
        asked = queue[0]
        return not isinstance(asked, ReadBatch) or len(asked.waiters) == 1

    def values_owed(self) -> int:
        """Return how many values, or other answers, the next reply may carry; 0 if none is owed."""
        return self.owed[0].count if self.owed else 0

    def add(self, asked: Read | Call) -> None:
        """Queue a request behind the others."""
        self.pending += 1
        self.growing = None
        self.queue.append(asked)

    def add_first(self, asked: Call) -> None:
        """Queue a request before all others."""
        self.pending += 1
        self.queue.appendleft(asked)

    def begin_batch(self, receiver: ValueReceiver) -> ReadBatch:
        """Return a new batch at the end of the queue, to which the caller adds a read."""
        batch = self.growing = ReadBatch(receiver)
        self.queue.append(batch)
        return batch

    def add_batch(self, batch: ReadBatch) -> None:
        """Queue reads that belong together behind the other requests."""
        self.pending += len(batch)
        self.growing = None
        self.queue.append(batch)

    def compose(self, now: float, *, quiet: bool = False) -> list[bytes | memoryview]:
        """Pack what is queued, up to `_BATCH_BYTES` of requests, and expect the answers to it.

        :param quiet: whether the server would announce our own writes to us, unless it is told not to.
        """
        queue, chunks, size = self.queue, list[bytes | memoryview](), 0
        self.growing = None
        while queue and size < _BATCH_BYTES:
            asked = queue.popleft()
            if isinstance(asked, Call):
                command, packed = asked.command, asked.command.packed
                if quiet and command.writes:
                    pieces, replies = command.quiet()
                    self.owed.append(InFlight(now, replies, asked, quiet=command))
                    chunks += pieces
                    size += len(packed)
                    continue
                self.owed.append(InFlight(now, command.replies, asked))
            else:
                parts, names = self._gather(asked)
                packed = commands.get_many(names)
                self.owed.append(InFlight(now, 1, parts, len(names)))
            chunks.append(packed)
            size += len(packed)
        return chunks

    def _gather(self, first: Read | ReadBatch) -> tuple[_Reads, list[bytes]]:
        """Take the reads that stand next to each other, as many as one reply should carry; with all their names."""
        queue, parts, names = self.queue, _Reads(), list[bytes]()
        room, asked = float(_BATCH_BYTES), first
        while True:
            if isinstance(asked, Read):
                room -= asked.expected or _UNKNOWN_BYTES
                fits = 1 if room >= 0 and len(names) < self.most else 0
                more = [asked.name]
            else:
                fits = min(len(asked), self.most - len(names))
                sizes = [wanted.epoch_names.value_bytes or _UNKNOWN_BYTES for wanted in asked.wanted[:fits]]
                room -= sum(sizes)
                while room < 0 and fits:
                    fits -= 1
                    room += sizes[fits]
                if not parts:
                    # However large: each reply carries one at least.
                    fits = max(fits, 1)
                if 0 < fits < len(asked):
                    queue.appendleft(asked.split(fits))
                    room = -1.0
                more = [wanted.name for wanted in asked.wanted]
            if parts and not fits:
                queue.appendleft(asked)
                return parts, names
            parts.append(asked)
            names += more
            # Order is kept across kinds: a read queued after a write must see it.
            if room < 0 or not queue or isinstance(following := queue[0], Call):
                return parts, names
            asked = following
            queue.popleft()

    def answered(self, reply: Any, connection: Connection) -> Any:
        """Hand a reply to the oldest request; there must be one. Return what it comes to: an error within, if any."""
        request = self.owed[0]
        request.replies -= 1
        # In a transaction the first error names the cause (OOM, NOPERM); EXEC's only says that it was aborted.
        if request.error is None and isinstance(reply, Exception):
            request.error = reply
        if request.replies:
            return reply
        reply = request.error or reply
        if request.quiet is not None and type(reply) is list:
            reply = request.quiet.reply(reply)
        asked = request.asked
        if type(asked) is list and not isinstance(reply, Exception):
            # While the request still counts as owed: if this ends the connection, its callers are told.
            _check_values(reply, request.count)
        self.owed.popleft()
        if isinstance(asked, Call):
            if isinstance(reply, NoScriptError) and asked.command.again is not None:
                self.growing = None
                self.queue.append(asked.said_again())
                return reply
            self._settle(asked, reply, connection, request.sent)
        elif isinstance(reply, Exception):
            self._refuse(asked, reply, connection, request.sent)
        else:
            self.unfinished = _HandOut(asked, reply, connection, request.sent)
            self.hand_out()
        return reply

    def _refuse(self, parts: _Reads, reply: Exception, connection: Connection, sent: float) -> None:
        """Tell those who asked for values that Redis has refused to give them."""
        refusal = refused(reply, "MGET")
        for part in parts:
            if isinstance(part, ReadBatch):
                self._fail_batch(part, slice(0, len(part)), refusal)
            else:
                self._settle(part, reply, connection, sent)

    async def handed_out(self) -> None:
        """Return when all values of the last reply are handed out, in as many turns of the loop as that takes."""
        while self.unfinished is not None:
            await turn()
            self.hand_out()

    def hand_out(self) -> None:
        """Hand out further values of the last reply, as many as one step may take.

        Nothing else may be read from the connection before all are: a later push may be about one of them.
        """
        some = self.unfinished
        if some is None:
            return
        left = _STEP_BYTES
        while some.parts:
            part = some.parts[0]
            reads, values, left = some.step(part, left)
            if isinstance(part, Read):
                self._settle(part, values[0], some.connection, some.sent)
            else:
                self._receive(part, reads, values, some)
            # Not before: if it is interrupted, all that it was about learn that they get no answer.
            some.served = reads.stop
            if reads.stop == len(values):
                some.parts.popleft()
                some.begin += len(values)
                some.served = 0
            if left <= 0 and some.parts:
                return
        self.unfinished = None
        self._measure(some.sent, some.count)
        self._sized(self._value_bytes + (some.size / some.count + 1 - self._value_bytes) / 8)

    def _receive(self, batch: ReadBatch, part: slice, values: list[bytes | None], some: _HandOut) -> None:
        try:
            batch.receiver.received(batch, part, values, some.connection, some.sent)
        # As in `_settle`: a fault in the handling of these must not take the connection from all the others.
        except Exception:  # noqa: BLE001  # it is told to whom it concerns
            error = CacheUnavailableError("protocol", "Redis gave an answer to MGET that makes no sense")
            self._fail_batch(batch, part, error)
        else:
            self.pending -= part.stop - part.start

    def _settle(self, asked: Read | Call, reply: Any, connection: Connection, sent: float) -> None:
        self.pending -= 1
        waiter = asked.waiter
        # A caller that has gone does not stop its answer from being kept for the next one: `receive` runs anyway.
        try:
            if isinstance(reply, Exception):
                raise reply
            result = asked.receive(reply, connection, sent)
        # A fault in one caller's handling must not take the connection from all the others.
        except Exception as error:  # noqa: BLE001  # it is handed to whom it concerns
            error = _error_of(error, asked.command.name if isinstance(asked, Call) else "MGET")
            if not waiter.done():
                waiter.set_exception(error)
            return
        if not waiter.done():
            waiter.set_result(result)

    def fail_sent(self, error: CacheUnavailableError) -> None:
        """Tell all who are owed an answer that it will not come."""
        some, self.unfinished = self.unfinished, None
        if some is not None:
            # Cut off half-way. Their values are here, but nothing vouches for them any more.
            for part in some.parts:
                self._fail(part, error, some.served)
                some.served = 0
        while self.owed:
            request = self.owed.popleft()
            if isinstance(request.asked, list) and request.count > 1:
                # Perhaps the reply was too large to come in time; the next ones are made smaller.
                self._sized(max(self._value_bytes, 4 * _BATCH_BYTES / request.count))
            for asked in request.asked if isinstance(request.asked, list) else (request.asked,):
                self._fail(asked, error)

    def fail_queued(self, error: CacheUnavailableError) -> None:
        """Tell all whose request was not sent that it will not be."""
        self.growing = None
        while self.queue:
            self._fail(self.queue.popleft(), error)

    def _fail(self, asked: Read | ReadBatch | Call, error: CacheUnavailableError, served: int = 0) -> None:
        if isinstance(asked, ReadBatch):
            self._fail_batch(asked, slice(served, len(asked)), error)
        elif not served:
            self.pending -= 1
            _fail_waiter(asked.waiter, error)

    def _fail_batch(self, batch: ReadBatch, part: slice, error: CacheUnavailableError) -> None:
        self.pending -= part.stop - part.start
        try:
            for waiter in batch.waiters[part]:
                _fail_waiter(waiter, error)
        finally:
            batch.receiver.unanswered(batch, part)


def _error_of(error: Exception, command: str) -> CacheError:
    """Return the error for those who asked: Redis' refusal, or that its answer makes no sense."""
    if isinstance(error, CacheError):
        return error
    if isinstance(error, ResponseError):
        return refused(error, command)
    return CacheUnavailableError("protocol", f"Redis gave an answer to {command} that makes no sense")


def _fail_waiter(waiter: Waiter, error: CacheUnavailableError) -> None:
    if not waiter.done():
        try:
            waiter.set_exception(error.again())
        except RuntimeError:
            # A future of a closed loop: its task has ended, and cannot be woken.
            if not isinstance(waiter, asyncio.Future) or not waiter.get_loop().is_closed():
                raise


def _check_values(reply: Any, count: int) -> None:
    """:raises RedisConnectionError: for what is no answer to an MGET of so many keys: we are out of step."""
    if type(reply) is not list or len(reply) != count or not set(map(type, reply)) <= _VALUE_TYPES:
        raise RedisConnectionError("Protocol error: what came is no answer to MGET")
