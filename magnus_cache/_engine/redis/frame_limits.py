"""Limits on one incoming frame: its bytes, its elements and its duration.

A parser keeps all bytes of a frame until the last one has arrived. An endless frame would fill the memory, and a slow
one would block the connection forever, even while no answer is expected, because pushes arrive unasked. So the bytes
since the last complete frame are counted and timed. Its elements are counted before the parser allocates them.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.redis.elements import Elements
from magnus_cache._engine.redis.incoming import Incoming, Taken
from magnus_cache._engine.runtime.clock import Clock

__all__ = ["Intake"]

_UNASKED_BYTES: Final = 16 << 20
"""Bytes of a frame while no answer is expected: an announcement has 100,000 names in a few megabytes."""

_REPLY_BYTES: Final = 64 << 20
_TIMES: Final = 8
"""A reply may have this many times the bytes of a value: a value that is too large must be read to be replaced."""


class Intake:
    """Enforces the limits on the input of a connection.

    :param patience: seconds from the first byte of a frame to its last.
    :param owed: returns how many values the next reply may have; 0 if no reply is expected.
    :param value_bytes: returns how many bytes one of them may have.
    :ivar refusal: why the input of this connection, or of the last one, was refused; None if it was not.
    :ivar heard: monotonic second of the last input, even of a part of an answer.
    :ivar incoming: hands over replies as they arrive; None if the connection cannot, so that it has to be read.
    """

    def __init__(self, patience: float, clock: Clock, owed: Callable[[], int], value_bytes: Callable[[], int]) -> None:
        self._patience = patience
        self._clock = clock
        self._owed = owed
        self._value_bytes = value_bytes
        self._reader: Any = None
        self._elements = Elements()
        self.incoming: Incoming | None = None
        self._size = 0
        self._begun = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.refusal: RedisConnectionError | None = None
        self.heard = -math.inf

    def attach(self, connection: AbstractConnection, incoming: Incoming | None = None) -> None:
        """Watch a connection from its first byte on."""
        # redis-py has no public name for it. Without it, only whole answers count as input, and no limit applies.
        reader = getattr(connection, "_reader", None)
        self.detach()
        self.refusal = None
        if reader is None:
            return
        self._reader = reader
        feed, self._elements, self.incoming = reader.feed_data, Elements(), incoming
        too_many = self._elements.too_many

        def fed(data: Any) -> None:
            if not self._took(len(data)):
                return
            if too_many(data):
                self._refuse("a frame has too many elements")
                return
            taken = Taken.NOT if incoming is None else incoming.take(data)
            if taken is Taken.NOT:
                feed(data)
            elif taken is not Taken.PART:
                # Once for all replies that came together: it only matters to what arrives later.
                self._ended(is_whole=taken is Taken.WHOLE)

        reader.feed_data = fed

    def detach(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None:
            # Breaks a reference cycle.
            del self._reader.feed_data
            self._reader = None
            if self.incoming is not None:
                self.incoming.detach()
        # Frees the part of a frame that was read.
        self._elements, self.incoming = Elements(), None
        self.completed()

    def completed(self) -> None:
        """Note that a frame has ended. Bytes of the next frame that are here already count when more arrive."""
        self._ended(is_whole=self.incoming is not None and self.incoming.is_whole)

    def _ended(self, *, is_whole: bool) -> None:
        """Note the same as `completed`.

        :param is_whole: whether no bytes of the next frame are here.
        """
        self._size = 0
        self._begun = math.inf
        if self._reader is None:
            self.heard = self._clock()
        if is_whole:
            self._elements.is_whole = True

    def _took(self, size: int) -> bool:
        """Count some bytes; return whether the parser may have them."""
        self.heard = now = self._clock()
        self._size += size
        if self.refusal is not None:
            return False
        if self._begun == math.inf:
            self._begun = now
            if self._timer is None:
                self._watch(self._patience)
        if self._size > _UNASKED_BYTES and self._size > self._allowed():
            self._refuse("a frame is too large")
            return False
        return True

    def _allowed(self) -> int:
        """Return how many bytes the current frame may have."""
        values = self._owed()
        if not values:
            return _UNASKED_BYTES
        value_bytes = self._value_bytes()
        return max(_REPLY_BYTES, _TIMES * value_bytes) + (values - 1) * value_bytes

    def _watch(self, seconds: float, overdue: float | None = None) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check, overdue)

    def _check(self, overdue: float | None) -> None:
        self._timer = None
        if self._begun == math.inf:
            return
        left = self._begun + self._patience - self._clock()
        if left <= 0 and self._begun == overdue:
            self._refuse("a frame takes too long")
        else:
            # Overdue for the first time: if *our* loop was blocked, the rest of the frame is in the socket.
            self._watch(max(left, self._patience / 10), self._begun if left <= 0 else None)

    def _refuse(self, why: str) -> None:
        # Not an exception in the reader: its traceback would keep the input alive until a garbage collection.
        self.refusal = RedisConnectionError(f"Protocol error: {why}")
        self._reader.feed_eof()
