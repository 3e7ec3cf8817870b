"""What is asked of a connection: reads and calls, what was sent of them, and the values of a reply in steps."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.redis.commands import NOTES, Command
from magnus_cache._engine.redis.exchange import Connection, ReadBatch, Receive, Waiter

__all__ = ["STEP_BYTES", "Call", "HandOut", "InFlight", "Measure", "Read", "ReadParts", "is_one_step"]

STEP_BYTES: Final = 524_288
"""Bytes of a reply that are handed out in one step. Checking a megabyte takes a third of a millisecond."""

_EACH: Final = 1_024
"""Bytes that a value counts for beyond its own: what is done for each."""


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


ReadParts = list[Read | ReadBatch]
"""The parts of one MGET, in the order of its keys."""


class InFlight:
    """What was sent and is owed an answer: the parts of an MGET, or a call with `replies` still to come.

    :ivar count: how many values, or other answers, the next reply may carry.
    :ivar is_large: whether it is the one request for large values.
    :ivar quiet: the command that was sent within a transaction which keeps it from being announced; None for others.
    """

    __slots__ = ("asked", "count", "error", "is_large", "quiet", "replies", "sent")

    def __init__(
        self, sent: float, replies: int, asked: ReadParts | Call, count: int = 1, quiet: Command | None = None
    ) -> None:
        self.sent = sent
        self.replies = replies
        self.asked = asked
        self.count = count
        self.quiet = quiet
        self.is_large = False
        self.error: Exception | None = None

    @property
    def is_note(self) -> bool:
        """Whether it is a write by which the process tells about itself: no caller has asked for it."""
        return isinstance(self.asked, Call) and self.asked.command.name in NOTES


def is_one_step(size: int, count: int) -> bool:
    """Return whether so many values, of so many bytes together, may be handed out in one step."""
    return size + count * _EACH <= STEP_BYTES


class HandOut:
    """The values of one reply that are being handed out.

    :ivar parts: what asked for them, from the part on that is being served.
    :ivar served: how many reads of that part are served.
    :ivar values: the values of the reply.
    :ivar begin: where the values of that part begin.
    :ivar size: bytes of all values.
    """

    __slots__ = ("begin", "connection", "count", "parts", "sent", "served", "size", "values")

    def __init__(self, parts: ReadParts, values: list[bytes | None], connection: Connection, sent: float) -> None:
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
        if is_one_step(self.size, self.count):
            return slice(0, reads), values, left
        first = end = self.served
        while end < reads and left > 0:
            value = values[end]
            left -= _EACH + (len(value) if value is not None else 0)
            end += 1
        return slice(first, end), values, left
