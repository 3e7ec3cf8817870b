"""One exchange with Redis as its callers see it: the connection that carries it, and where its answer goes.

Separate from the pipeline, which imports redis-py: modules that must not import it use this.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.coherence.known_epochs import KnownEpochs
    from magnus_cache._engine.coherence.trust import Trust
    from magnus_cache._engine.redis.announced import Questions
    from magnus_cache._engine.redis.server_time import RedisTime
    from magnus_cache._engine.runtime.clock import Clock

__all__ = [
    "IGNORED",
    "Callback",
    "Connection",
    "ReadBatch",
    "Receive",
    "ValueReceiver",
    "Waiter",
    "Wanted",
    "as_it_is",
    "pass_error",
]

R = TypeVar("R")


class Waiter(Protocol):
    """Where an answer goes: an `asyncio.Future` of the connection's loop, a blocked thread's like of it, a callback."""

    def done(self) -> bool:
        """Return whether an answer would come too late."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Give the answer."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Give the reason why there is no answer."""


class Wanted(Protocol):
    """A value that is to be read.

    :ivar name: its name in Redis.
    :ivar epoch_names: the names of the epochs that it is judged by; its expected size is known there.
    """

    name: bytes
    epoch_names: "EpochNames"


class ReadBatch:
    """Values that are read and judged together: parallel lists, as an object for each read would cost more than both.

    :ivar receiver: judges them.
    :ivar wanted: what is read.
    :ivar places: what the receiver reserved for each value before it was asked for; None for nothing.
    :ivar waiters: where the answers go.
    """

    __slots__ = ("places", "receiver", "waiters", "wanted")

    def __init__(self, receiver: "ValueReceiver") -> None:
        self.receiver = receiver
        self.wanted: list[Any] = []
        self.places: list[Any] = []
        self.waiters: list[Waiter] = []

    def __len__(self) -> int:
        return len(self.waiters)

    def add(self, wanted: Any, place: Any, waiter: Waiter) -> None:
        """Add a read."""
        self.wanted.append(wanted)
        self.places.append(place)
        self.waiters.append(waiter)

    def divided(self, first: Sequence[bool]) -> "tuple[ReadBatch, ReadBatch]":
        """Return two batches: the reads for which `first` is true, and the others."""
        batches = ReadBatch(self.receiver), ReadBatch(self.receiver)
        for is_first, *read in zip(first, self.wanted, self.places, self.waiters, strict=True):
            batches[0 if is_first else 1].add(*read)
        return batches

    def split(self, count: int) -> "ReadBatch":
        """Keep the first `count` reads, and return the others."""
        rest = ReadBatch(self.receiver)
        for name in ("wanted", "places", "waiters"):
            reads = getattr(self, name)
            setattr(rest, name, reads[count:])
            del reads[count:]
        return rest


class ValueReceiver(Protocol):
    """Judges what batches of reads bring, and gives it to those who wait."""

    def received(
        self, batch: ReadBatch, part: slice, values: Sequence[bytes | None], connection: "Connection", sent: float
    ) -> None:
        """Judge a part of a batch, and settle its waiters. Runs inside the reader, as `Receive` does.

        :param part: which of the reads.
        :param values: the answers to all reads of the batch.
        """

    def unanswered(self, batch: ReadBatch, part: slice) -> None:
        """Give back what was reserved for reads that get no answer; their waiters have learned it."""


class Connection(Protocol):
    """What an event loop's connection to one server is good for: trust, epochs and clock are its own.

    A value is judged by the epochs that are known on the connection which has brought it. So the epochs and the value
    are asked for through one connection: that is why reads are queued here, and all else is asked of the `Client`.

    :ivar up: whether it stands and its handshake is done.
    :ivar trust: what entries read through it stand on; a new one each time it is established.
    :ivar known: the epochs that need not be asked for on it.
    :ivar time: the estimate of its server's clock.
    :ivar tracking: whether its server announces changes; where it does not, trust is granted per read.
    :ivar broadcasts: whether its server announces all changes, by prefix: those of this process, too.
    :ivar questions: what is to be asked because of announcements.
    :ivar keeps_identity: whether its handshake has read that its server keeps its own identity, and the server
        announces its removal.
    :ivar leases_held: leases that are held through it; while there are any, the heartbeat continues.
    """

    loop: asyncio.AbstractEventLoop
    clock: "Clock"
    max_staleness: float
    trust: "Trust"
    known: "KnownEpochs"
    time: "RedisTime"
    tracking: bool
    broadcasts: bool
    questions: "Questions"
    leases_held: int
    up: bool
    keeps_identity: bool

    @property
    def identity(self) -> bytes:
        """What tells its server's history of writes from another's; empty where that is not told."""
        ...

    def read(self, name: bytes, receive: "Receive[bytes | None]", waiter: Waiter, expected: float = 0) -> None:
        """Queue the read of one value, for the next batch; its bytes, or None, go through `receive` to `waiter`.

        :param expected: how many bytes it may have; 0 if nothing is known of its like.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """

    def read_value(self, receiver: ValueReceiver, wanted: Wanted, place: Any, waiter: Waiter) -> None:
        """Queue the read of one value, to be judged together with its neighbours.

        :param place: what the receiver has reserved for the value.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """

    def read_batch(self, batch: ReadBatch) -> None:
        """Queue the reads of some values of one call, to be judged together.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """

    async def renew(self) -> None:
        """Return after a heartbeat was answered: every push that is due before that answer has been handled.

        A heartbeat under way will do; requests that were queued before may still be without an answer.

        :raises CacheUnavailableError: when Redis does not answer.
        """


Receive = Callable[[R, Connection, float], Any]
"""Turns a reply into the waiter's result: ``receive(reply, connection, sent)``.

It runs before any later push or reply is looked at; `sent` is the monotonic second when the request left.
"""


def as_it_is(reply: Any, _connection: Connection, _sent: float) -> Any:
    """Return a reply as it came; a `Receive`."""
    return reply


def pass_error(waiter: Waiter, error: BaseException) -> None:
    """Give a waiter the reason why there is no answer, as it came, unless it has left."""
    if not waiter.done():
        waiter.set_exception(error)


class Callback:
    """Where the answer to a request goes that no coroutine and no thread waits for.

    It is always of interest, however late it comes.

    :param on_result: called with the answer; what it raises ends the connection.
    :param on_error: called with the reason if there is no answer.
    """

    __slots__ = ("_on_error", "_on_result")

    def __init__(
        self,
        on_result: Callable[[Any], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._on_result = on_result
        self._on_error = on_error

    def done(self) -> bool:
        """Return False: an answer never comes too late."""
        return False

    def set_result(self, result: Any, /) -> None:
        """Take the answer."""
        if self._on_result is not None:
            self._on_result(result)

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the reason why there is no answer."""
        if self._on_error is not None:
            self._on_error(exception)


IGNORED: Final = Callback()
"""For a request whose answer is of interest to its `Receive` alone."""
