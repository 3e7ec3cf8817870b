"""How much a server may send for one frame, and for how long.

A parser keeps every byte of a frame until the last one has come. A frame that does not end would fill the memory, or,
if it comes slowly, occupy the connection for ever, also when nothing is owed an answer, as pushes come unasked. So the
bytes since the last complete frame are counted, and timed. How many elements it claims to have is looked at before the
parser makes room for them.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.redis.elements import Elements
from magnus_cache._engine.redis.incoming import Incoming
from magnus_cache._engine.runtime.clock import Clock

__all__ = ["Intake"]

_UNASKED_BYTES: Final = 16 << 20
"""Bytes of a frame while nothing is owed: an announcement names a hundred thousand keys in a few megabytes."""

_REPLY_BYTES: Final = 64 << 20
_TIMES: Final = 8
"""Times a value's bytes that one reply may have. A value that is merely too large has to be read to be replaced."""


class Intake:
    """Watches over what comes in through a connection.

    :param patience: seconds that a frame may take from its first byte to its last.
    :param owed: returns how many values the next reply may carry; 0 if none is owed.
    :param value_bytes: returns how many bytes one of them may have.
    :ivar refusal: why the present connection, or the last one, was ended; None if it was not.
    :ivar heard: seconds of the clock when something last came, be it a part of an answer.
    :ivar incoming: hands over what comes as it comes; None where it cannot be, so that it has to be read.
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
        """Watch a connection, from its first byte on."""
        # redis-py has no public name for it. Without it, whole answers are heard, and nothing is counted.
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
            elif incoming is None or not incoming.take(data):
                feed(data)

        reader.feed_data = fed

    def detach(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None:
            # Or the two would keep each other alive.
            del self._reader.feed_data
            self._reader = None
            if self.incoming is not None:
                self.incoming.detach()
        # Nor is what was read of a frame to stay.
        self._elements, self.incoming = Elements(), None
        self.completed()

    def completed(self) -> None:
        """Note that a frame has ended. What has come of the next one counts with its next bytes."""
        self._size = 0
        self._begun = math.inf
        incoming = self.incoming
        if incoming is not None and not incoming.is_buffered:
            self._elements.restart()

    def _took(self, size: int) -> bool:
        """Count some bytes; return whether they are to be kept."""
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
        """Return how many bytes the frame may have that is coming in."""
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
            # Overdue for the first time: if it was *our* loop that was held up, its end lies in the socket.
            self._watch(max(left, self._patience / 10), self._begun if left <= 0 else None)

    def _refuse(self, why: str) -> None:
        # Not by an exception in the reader: that would keep all that was read until a garbage collection.
        self.refusal = RedisConnectionError(f"Protocol error: {why}")
        self._reader.feed_eof()
