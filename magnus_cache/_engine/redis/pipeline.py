"""What a connection has been asked and what it is owed: the order of requests and replies, without any I/O.

Requests queue up; `Pipeline.compose` turns the queue into bytes, merging neighbouring reads into one MGET, and
notes which answers they call for; `Pipeline.answered` hands a reply to those who asked for it.

Large values do not hold up small ones. A connection sends replies in order, so a small value waits for all that was
asked for before it. Large values are therefore requested one reply at a time, of two megabytes or one value: the others
wait in `Pipeline.large`, and small reads overtake them. Reads may be reordered; a read never overtakes a write, and a
value never overtakes the epochs that were requested for it.

Reads of values come in batches (`ReadBatch`) from the moment they are queued: a batch is one object in the queue, one
part of an MGET, and is judged in one go. All other reads, such as those of epochs, stand alone (`Read`), and go into
the same MGET as their neighbours: a value and the epochs that it is judged by come in one reply.
"""

from collections import deque
from typing import Any, Final

from redis.exceptions import NoScriptError

from magnus_cache._engine.coherence.epochs import LARGE_BYTES
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.diagnosis import cause, refused
from magnus_cache._engine.redis.exchange import Connection, ReadBatch, ValueReceiver
from magnus_cache._engine.redis.outcomes import check_values, error_of, fail_waiter, no_answer
from magnus_cache._engine.redis.requests import (
    STEP_BYTES,
    Call,
    HandOut,
    InFlight,
    Measure,
    Read,
    ReadParts,
    is_one_step,
)  # fmt: skip
from magnus_cache._engine.runtime.turns import turn
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Call", "InFlight", "Measure", "Pipeline", "Read"]

_BATCH_KEYS: Final = 256
"""Reads in one MGET. Measured: past 512 keys throughput falls, as a reply is parsed before anybody is served."""

_BATCH_BYTES: Final = 2_000_000
"""Bytes aimed at in one reply or one write, so that no single one holds up the loop or the server."""

_LIMITING: Final = _BATCH_BYTES / _BATCH_KEYS - 1
"""Bytes of a value up to which a reply may carry `_BATCH_KEYS` of them."""

_UNKNOWN_BYTES: Final = 32_768
"""Bytes that a value is taken to have where none of its namespace was seen yet."""

_ALONG: Final = 64
"""Bytes up to which a read stands beside values in a reply, and takes no place of theirs: that of an epoch."""


class Pipeline:
    """The queue of one connection and the answers that it is owed, first in, first out.

    The connection looks at these for each reply, so they are attributes and not properties.

    :ivar pending: requests queued or sent and not yet answered.
    :ivar queue: what waits to be sent.
    :ivar owed: what was sent and not yet answered, the oldest first.
    :ivar transactions: the same where replies within a transaction may be skipped without a look at anything else; else
        empty.
    :ivar unfinished: the values of the last reply, while some of them are still to be handed out; else None.
    :ivar large: reads of large values that wait for the reply of such a read.
    :ivar growing: the batch at the end of the queue, if further reads may join it; else None.
    :ivar most: how many reads one batch may have.
    """

    __slots__ = (
        "_large_owed", "_measure", "_value_bytes", "growing", "large", "most", "owed", "pending", "queue",
        "transactions", "unfinished",
    )  # fmt: skip

    def __init__(self, measure: Measure) -> None:
        self.pending = 0
        self._measure = measure
        self.queue: deque[Read | ReadBatch | Call] = deque()
        self.transactions = self.owed = deque[InFlight]()
        self.large: deque[ReadBatch] = deque()
        self._large_owed = False
        self._sized(256.0)
        self.unfinished: HandOut | None = None
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
    def is_ready(self) -> bool:
        """Whether anything is queued that may be sent now."""
        return bool(self.queue or (self.large and not self._large_owed))

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
                if not parts:
                    continue
                packed = self._pack_reads(now, parts, names)
            chunks.append(packed)
            size += len(packed)
        if self.large and not self._large_owed:
            chunks.append(self._compose_large(now))
        return chunks

    def _compose_large(self, now: float) -> bytes:
        """Pack the next read of large values."""
        batch, names = self.large.popleft(), list[bytes]()
        room = float(_BATCH_BYTES)
        for wanted in batch.wanted:
            room -= wanted.epoch_names.value_bytes
            if names and room < 0:
                self.large.appendleft(batch.split(len(names)))
                break
            names.append(wanted.name)
        packed = self._pack_reads(now, [batch], names)
        self.owed[-1].is_large = self._large_owed = True
        return packed

    def _pack_reads(self, now: float, parts: ReadParts, names: list[bytes]) -> bytes:
        """Pack some reads, and expect the answer."""
        self.owed.append(InFlight(now, 1, parts, len(names)))
        return commands.get_many(names)

    def _gather(self, first: Read | ReadBatch) -> tuple[ReadParts, list[bytes]]:
        """Take the reads that stand next to each other, as many as one reply should carry; with all their names.

        There may be none left when those of large values are put off.
        """
        parts, names = ReadParts(), list[bytes]()
        room, along, asked = float(_BATCH_BYTES), 0, first
        while True:
            if isinstance(asked, Read):
                expected = asked.expected or _UNKNOWN_BYTES
                room -= expected
                # The first value follows its epochs however large it is, and however large values are on average.
                if len(names) >= _BATCH_KEYS or (len(names) > along and (room < 0 or len(names) >= self.most)):
                    self.queue.appendleft(asked)
                    return parts, names
                if expected <= _ALONG:
                    along += 1
                parts.append(asked)
                names.append(asked.name)
            else:
                room = self._gather_batch(asked, parts, names, room, along)
            following = self.queue[0] if self.queue else None
            # Order is kept across kinds: a read queued after a write must see it.
            if room < 0 or following is None or isinstance(following, Call):
                return parts, names
            asked = following
            self.queue.popleft()

    def _gather_batch(self, batch: ReadBatch, parts: ReadParts, names: list[bytes], room: float, along: int) -> float:
        """Take as much of a batch as one reply should carry, and leave the rest in the queue.

        :param along: how many of the names are not those of values; see `_ALONG`.

        Returns the bytes that are left for further reads; less than 0 for none.
        """
        # Most batches fit whatever the order of their values: so many of the largest kind would.
        kinds = {wanted.epoch_names for wanted in batch.wanted}
        largest = max([kind.value_bytes or _UNKNOWN_BYTES for kind in kinds])
        reads = len(batch.wanted)
        if reads + len(names) <= self.most and largest <= LARGE_BYTES and reads * largest <= room:
            parts.append(batch)
            names += [wanted.name for wanted in batch.wanted]
            return room - reads * largest
        sizes = [wanted.epoch_names.value_bytes or _UNKNOWN_BYTES for wanted in batch.wanted]
        # Not where epochs are requested along with it: a value may have to come in one reply with them.
        if max(sizes) > LARGE_BYTES and not any(isinstance(part, Read) for part in parts):
            batch, large = batch.divided([size <= LARGE_BYTES for size in sizes])
            self.large.append(large)
            sizes = [size for size in sizes if size <= LARGE_BYTES]
            if not sizes:
                return room
        count = min(len(sizes), max(self.most - len(names) + along, 0))
        left = room - sum(sizes[:count])
        while left < 0 and count:
            count -= 1
            left += sizes[count]
        if len(names) == along:
            # However large: each reply carries one at least.
            count = max(count, 1)
        if count < len(sizes):
            rest = batch.split(count) if count else batch
            self.queue.appendleft(rest)
            left = -1.0
        if count:
            parts.append(batch)
            names += [wanted.name for wanted in batch.wanted]
        return left

    def skipped(self) -> bool:
        """Count a reply that only begins a transaction, or queues one of its commands; return False if none is due."""
        if not self.owed or self.owed[0].replies <= 1:
            return False
        self.owed[0].replies -= 1
        return True

    def answered(self, reply: Any, connection: Connection) -> Any:
        """Hand a reply to the oldest request; there must be one. Return what it comes to: an error within, if any."""
        request = self.owed[0]
        if type(reply) is list and type(request.asked) is list:
            # Values, which most replies bring; a read owes one reply, and is in no transaction.
            self._answered(request, request.asked, reply, connection)
            return reply
        request.replies -= 1
        # In a transaction the first error names the cause (OOM, NOPERM); EXEC's only says that it was aborted.
        if request.error is None and isinstance(reply, Exception):
            request.error = cause(reply)
        if request.replies:
            return reply
        reply = request.error or reply
        if request.quiet is not None and type(reply) is list:
            reply = request.quiet.reply(reply)
        asked = request.asked
        if type(asked) is list and not isinstance(reply, Exception):
            raise no_answer()
        self.owed.popleft()
        if request.is_large:
            self._large_owed = False
        if isinstance(asked, Call):
            if isinstance(reply, NoScriptError) and asked.command.again is not None:
                self.growing = None
                self.queue.append(asked.said_again())
                return reply
            self._settle(asked, reply, connection, request.sent)
        else:
            self._refuse(asked, reply, connection, request.sent)
        return reply

    def _answered(
        self, request: InFlight, parts: ReadParts, values: list[bytes | None], connection: Connection
    ) -> None:
        """Hand out the values of a reply: all of them, or as many as one step may take."""
        # While the request still counts as owed: if this ends the connection, its callers are told.
        check_values(values, request.count)
        self.owed.popleft()
        if request.is_large:
            self._large_owed = False
        size, batch, sent = sum(map(len, filter(None, values))), parts[0], request.sent
        # One value cannot be divided.
        if len(parts) > 1 or isinstance(batch, Read) or (len(values) > 1 and not is_one_step(size, len(values))):
            self.unfinished = HandOut(parts, values, connection, sent)
            self.hand_out()
            return
        # One batch in one step, as most are: what `hand_out` would do, without keeping count of it.
        try:
            self._receive(batch, slice(0, len(values)), values, connection, sent)
        except BaseException:
            # Interrupted: those who wait for the rest are to learn that they get no answer.
            self.unfinished = HandOut(parts, values, connection, sent)
            raise
        self._handed_out(size, len(values), sent)

    def _refuse(self, parts: ReadParts, reply: Exception, connection: Connection, sent: float) -> None:
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
        left = STEP_BYTES
        while some.parts:
            part = some.parts[0]
            reads, values, left = some.step(part, left)
            if isinstance(part, Read):
                self._settle(part, values[0], some.connection, some.sent)
            else:
                self._receive(part, reads, values, some.connection, some.sent)
            # Not before: if it is interrupted, all that it was about learn that they get no answer.
            some.served = reads.stop
            if reads.stop == len(values):
                some.parts.popleft()
                some.begin += len(values)
                some.served = 0
            if left <= 0 and some.parts:
                return
        self.unfinished = None
        self._handed_out(some.size, some.count, some.sent)

    def _handed_out(self, size: int, count: int, sent: float) -> None:
        self._measure(sent, count)
        before = self._value_bytes
        self._value_bytes = after = before + (size / count + 1 - before) / 8
        # Of small ones, their number alone is a limit.
        if after > _LIMITING or before > _LIMITING:
            self._sized(after)

    def _receive(
        self, batch: ReadBatch, part: slice, values: list[bytes | None], connection: Connection, sent: float
    ) -> None:
        try:
            batch.receiver.received(batch, part, values, connection, sent)
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
            error = error_of(error, asked.command.name if isinstance(asked, Call) else "MGET")
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
        self._large_owed = False
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
        while self.queue or self.large:
            self._fail((self.queue or self.large).popleft(), error)

    def _fail(self, asked: Read | ReadBatch | Call, error: CacheUnavailableError, served: int = 0) -> None:
        if isinstance(asked, ReadBatch):
            self._fail_batch(asked, slice(served, len(asked)), error)
        elif not served:
            self.pending -= 1
            fail_waiter(asked.waiter, error)

    def _fail_batch(self, batch: ReadBatch, part: slice, error: CacheUnavailableError) -> None:
        self.pending -= part.stop - part.start
        try:
            for waiter in batch.waiters[part]:
                fail_waiter(waiter, error)
        finally:
            batch.receiver.unanswered(batch, part)
