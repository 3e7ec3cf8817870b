"""One direction of a proxied connection: bytes are delivered in order, later, or never."""

import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from magnus_cache.testing.proxy.pushes import PushFilter

__all__ = ["Lane", "LaneRules", "reset"]

_MOST_WAITING: Final = 16 << 20
"""Bytes that one direction of a connection holds back before it stops reading, like a network."""

_END: Final = b""

_NO_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


@dataclass(slots=True)
class LaneRules:
    """The rules and counts that all lanes of one direction share.

    :ivar delay: seconds between arrival and delivery.
    :ivar forwarded: bytes delivered so far.
    :ivar swallowed: bytes dropped so far.
    :ivar waiting: bytes waiting now.
    """

    delay: float = 0.0
    frozen: bool = False
    swallowing: bool = False
    forwarded: int = 0
    swallowed: int = 0
    waiting: int = 0


class Lane:
    """Carries bytes, the end of the stream or a reset from `source` to `sink`. Either may not exist yet, or be closed.

    `on_end` is called once the end of the stream is delivered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rules: LaneRules, pushes: PushFilter | None) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.ended = False
        self._loop = loop
        self._rules = rules
        self._pushes = pushes
        # When it arrived, and what: bytes; empty bytes for the end of the stream; None for a reset.
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._amount = 0
        self._choked = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def arrived(self, data: bytes) -> None:
        """Accept bytes."""
        self._append(data)

    def arrived_end(self) -> None:
        """Accept the end of the stream."""
        self._append(_END)

    def arrived_reset(self) -> None:
        """Accept that the source was reset."""
        self._append(None)

    def _append(self, item: bytes | None) -> None:
        self._waiting.append((self._loop.time(), item))
        self._count(len(item or b""))
        self.pump()

    def choke(self, choked: bool) -> None:
        """Note that the sink accepts no more bytes for now, or accepts them again."""
        self._choked = choked
        self.pump()

    def pump(self) -> None:
        """Deliver what is due by the present rules, and set a timer for the next item."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rules = self._rules
        if self._pushes is not None and not rules.frozen:
            self._write(self._pushes.feed(b""))
        while self._waiting and (rules.swallowing or not (rules.frozen or self._choked or self.sink is None)):
            since, item = self._waiting[0]
            due = since + rules.delay
            if due > self._loop.time() and not rules.swallowing:
                self._timer = self._loop.call_at(due, self.pump)
                break
            self._waiting.popleft()
            self._count(-len(item or b""))
            self._deliver(item)
        self._throttle()

    def _deliver(self, item: bytes | None) -> None:
        if self._rules.swallowing:
            self._rules.swallowed += len(item or b"")
        elif item is None:
            self.ended = True
            reset(self.sink)
        elif item == _END:
            self._end()
        else:
            self._write(item if self._pushes is None else self._pushes.feed(item))

    def _end(self) -> None:
        self.ended = True
        if self.sink is not None and not self.sink.is_closing():
            if self.sink.can_write_eof():
                # The peer may have reset it, and asyncio not know yet.
                with contextlib.suppress(OSError):
                    self.sink.write_eof()
            else:
                # TLS has no half-closed connections.
                self.sink.close()
        self.on_end()

    def _write(self, data: bytes) -> None:
        if data and not (self.sink is None or self.sink.is_closing() or self.ended):
            if self._rules.swallowing:
                self._rules.swallowed += len(data)
                return
            self._rules.forwarded += len(data)
            self.sink.write(data)

    def _throttle(self) -> None:
        full = self._choked or self._amount > _MOST_WAITING
        if full == self._paused or self.source is None or self.source.is_closing():
            return
        self._paused = full
        if full:
            self.source.pause_reading()
        else:
            self.source.resume_reading()

    def _count(self, change: int) -> None:
        self._amount += change
        self._rules.waiting += change

    def clear(self) -> None:
        """Drop what waits, and deliver nothing more."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self._count(-self._amount)
        if self._pushes is not None:
            self._pushes.discard()


def reset(transport: asyncio.Transport | None) -> None:
    """Close a connection so that the peer sees a reset, not the end of a stream."""
    if transport is None:
        return
    with contextlib.suppress(OSError):
        # Without this option, the system sends a reset only if there are unread bytes.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
