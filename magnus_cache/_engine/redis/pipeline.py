"""What a wire has been asked and what it is owed: the order of requests and replies, without any I/O.

Requests queue up; `Pipeline.compose` turns the queue into bytes, merging neighbouring reads into one MGET, and
notes which answers they call for; `Pipeline.answered` hands a reply to whoever asked for it.
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
from magnus_cache._engine.redis.exchange import Connection, Receive, Waiter
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


class InFlight:
    """What was sent and is owed an answer: a batch of reads, or a call with `replies` still to come.

    :ivar quiet: the command that was sent within a transaction which keeps it from being announced; None for others.
    """

    __slots__ = ("asked", "error", "quiet", "replies", "sent")

    def __init__(self, sent: float, replies: int, asked: list[Read] | Call, quiet: Command | None = None) -> None:
        self.sent = sent
        self.replies = replies
        self.asked = asked
        self.quiet = quiet
        self.error: Exception | None = None


class _HandOut:
    """The values of one reply that are being handed out."""

    __slots__ = ("connection", "count", "sent", "size", "values")

    def __init__(self, batch: list[Read], values: list[bytes | None], connection: Connection, sent: float) -> None:
        self.values = zip(batch, values, strict=True)
        self.count = len(batch)
        self.connection = connection
        self.sent = sent
        self.size = 0


class Pipeline:
    """The queue of one connection and the answers that it is owed, first in, first out.

    The wire looks at these for each reply, so they are attributes and not properties.

    :ivar pending: requests queued or sent and not yet answered.
    :ivar queue: what waits to be sent.
    :ivar owed: what was sent and not yet answered, the oldest first.
    :ivar unfinished: the values of the last reply, while some of them are still to be handed out; else None.
    """

    __slots__ = ("_measure", "_value_bytes", "owed", "pending", "queue", "unfinished")

    def __init__(self, measure: Measure) -> None:
        self.pending = 0
        self._measure = measure
        self.queue: deque[Read | Call] = deque()
        self.owed: deque[InFlight] = deque()
        self._value_bytes = 256.0
        self.unfinished: _HandOut | None = None

    @property
    def oldest(self) -> InFlight | None:
        """What has been owed an answer for longest."""
        return self.owed[0] if self.owed else None

    def values_owed(self) -> int:
        """Return how many values, or other answers, the next reply may carry; 0 if none is owed."""
        frame = self.oldest
        if frame is None:
            return 0
        return len(frame.asked) if isinstance(frame.asked, list) else 1

    def add(self, asked: Read | Call) -> None:
        """Queue a request behind the others."""
        self.pending += 1
        self.queue.append(asked)

    def add_first(self, asked: Call) -> None:
        """Queue a request before all others."""
        self.pending += 1
        self.queue.appendleft(asked)

    def compose(self, now: float, *, quiet: bool = False) -> list[bytes | memoryview]:
        """Pack what is queued, up to `_BATCH_BYTES` of requests, and expect the answers to it.

        :param quiet: whether the server would announce our own writes to us, unless it is told not to.
        """
        queue, chunks, size = self.queue, list[bytes | memoryview](), 0
        while queue and size < _BATCH_BYTES:
            asked = queue.popleft()
            if isinstance(asked, Call):
                command, packed = asked.command, asked.command.packed
                if quiet and command.writes:
                    pieces, replies = command.quiet()
                    self.owed.append(InFlight(now, replies, asked, command))
                    chunks += pieces
                    size += len(packed)
                    continue
                self.owed.append(InFlight(now, command.replies, asked))
            else:
                batch = self._gather(asked)
                packed = commands.get_many([read.name for read in batch])
                self.owed.append(InFlight(now, 1, batch))
            chunks.append(packed)
            size += len(packed)
        return chunks

    def _gather(self, first: Read) -> list[Read]:
        """Take the reads that stand next to each other, as many as one reply should carry."""
        queue, batch = self.queue, [first]
        limit = min(_BATCH_KEYS, int(_BATCH_BYTES / self._value_bytes) or 1)
        room = _BATCH_BYTES - (first.expected or _UNKNOWN_BYTES)
        while queue and len(batch) < limit:
            following = queue[0]
            # Order is kept across kinds: a read queued after a write must see it.
            if not isinstance(following, Read):
                break
            room -= following.expected or _UNKNOWN_BYTES
            if room < 0:
                break
            batch.append(following)
            queue.popleft()
        return batch

    def answered(self, reply: Any, connection: Connection) -> Any:
        """Hand a reply to the oldest frame; there must be one. Return what it comes to: an error within, if any."""
        frame = self.owed[0]
        frame.replies -= 1
        # In a transaction the first error names the cause (OOM, NOPERM); EXEC's only says that it was aborted.
        if frame.error is None and isinstance(reply, Exception):
            frame.error = reply
        if frame.replies:
            return reply
        reply = frame.error or reply
        if frame.quiet is not None and type(reply) is list:
            reply = frame.quiet.reply(reply)
        if type(frame.asked) is list and not isinstance(reply, Exception):
            # While the frame still counts as owed: if this ends the connection, its callers are told.
            _check_values(reply, len(frame.asked))
        self.owed.popleft()
        if isinstance(frame.asked, Call):
            if isinstance(reply, NoScriptError) and frame.asked.command.again is not None:
                self.queue.append(frame.asked.said_again())
                return reply
            self._settle(frame.asked, reply, connection, frame.sent)
        elif isinstance(reply, Exception):
            for read in frame.asked:
                self._settle(read, reply, connection, frame.sent)
        else:
            self.unfinished = _HandOut(frame.asked, reply, connection, frame.sent)
            self.hand_out()
        return reply

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
        for read, value in some.values:
            size = len(value) if value is not None else 0
            some.size += size
            self._settle(read, value, some.connection, some.sent)
            left -= size + _EACH
            if left <= 0:
                return
        self.unfinished = None
        self._measure(some.sent, some.count)
        self._value_bytes += (some.size / some.count + 1 - self._value_bytes) / 8

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
            if not isinstance(error, CacheError):
                name = asked.command.name if isinstance(asked, Call) else "MGET"
                problem = f"Redis gave an answer to {name} that makes no sense"
                refusal = isinstance(error, ResponseError)
                error = refused(error, name) if refusal else CacheUnavailableError("protocol", problem)
            if not waiter.done():
                waiter.set_exception(error)
            return
        if not waiter.done():
            waiter.set_result(result)

    def fail_sent(self, error: CacheUnavailableError) -> None:
        """Tell everybody who is owed an answer that it will not come."""
        if self.unfinished is not None:
            # Cut off half-way. Their values are here, but nothing vouches for them any more.
            for read, _ in self.unfinished.values:
                self._fail(read, error)
            self.unfinished = None
        while self.owed:
            frame = self.owed.popleft()
            if isinstance(frame.asked, list) and len(frame.asked) > 1:
                # Perhaps the reply was too large to come in time; the next ones are made smaller.
                self._value_bytes = max(self._value_bytes, 4 * _BATCH_BYTES / len(frame.asked))
            for asked in frame.asked if isinstance(frame.asked, list) else (frame.asked,):
                self._fail(asked, error)

    def fail_queued(self, error: CacheUnavailableError) -> None:
        """Tell everybody whose request was not sent that it will not be."""
        while self.queue:
            self._fail(self.queue.popleft(), error)

    def _fail(self, asked: Read | Call, error: CacheUnavailableError) -> None:
        self.pending -= 1
        if not asked.waiter.done():
            try:
                asked.waiter.set_exception(error.again())
            except RuntimeError:
                # A future of a closed loop: its task has ended, and cannot be woken.
                if not isinstance(asked.waiter, asyncio.Future) or not asked.waiter.get_loop().is_closed():
                    raise


def _check_values(reply: Any, count: int) -> None:
    """:raises RedisConnectionError: for what is no answer to an MGET of so many keys: we are out of step."""
    if type(reply) is not list or len(reply) != count or not {type(value) for value in reply} <= _VALUE_TYPES:
        raise RedisConnectionError("Protocol error: what came is no answer to MGET")
