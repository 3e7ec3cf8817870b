"""When what is queued for a connection is sent, and how.

All that callers queue in one turn of the loop leaves as one piece, at the end of that turn. Two cases do not wait for
it. A caller that seems to be alone is served at once: its request would gain nothing from the wait. And once a batch
has `EARLY` reads while the server has nothing to do, they are sent, so that the server works while we queue the rest.

The callers that a batch of answers wakes run in the next turn, and most of them ask again. So the end of that turn is
scheduled right behind them (`expect`). A flush that the first of them schedules would run one turn later, after one
more look at all sockets.

Most pieces are written right there, in the callback or by the caller that queued them: no task has to be woken. What
the socket does not take at once is left to the task `run`, which waits until it does. So is what is large: the loop
gets a turn after each part of it, as the transport and the kernel copy what they are given.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Final

from redis.asyncio.connection import AbstractConnection

from magnus_cache._engine.redis.pipeline import Pipeline

__all__ = ["EARLY", "Sender"]

EARLY: Final = 32
"""Reads in a batch that are sent at once if the server is idle: below, a reply costs more than the wait saves."""


_LARGE: Final = 524_288
"""Bytes that are sent in one step at most."""


class Sender:
    """Sends what is queued in a pipeline. Everything is called on the connection's loop.

    :param pack: takes what is to be sent from the pipeline and returns its bytes.
    :ivar is_scheduled: whether what is queued will be sent at the end of this turn of the loop.
    """

    __slots__ = (
        "_bell", "_context", "_is_alone", "_is_waiting", "_loop", "_pack", "_pipeline", "_rest", "_transport",
        "is_scheduled",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pipeline: Pipeline, pack: Callable[[], list[bytes | memoryview]]
    ) -> None:
        self._loop = loop
        self._pipeline = pipeline
        self._pack = pack
        # Of its own: timers that are set while something is sent outlive the call that happened to queue it.
        self._context = Context()
        self._transport: asyncio.WriteTransport | None = None
        self._bell: asyncio.Future[None] | None = None
        self._is_alone = True
        # What is packed, and too large to be sent at once.
        self._rest: list[bytes | memoryview] = []
        self.is_scheduled = False
        self._is_waiting = False

    def attach(self, writer: asyncio.StreamWriter | None) -> None:
        """Send through this writer from now on; without one, everything is left to `run`."""
        self._transport = None if writer is None else writer.transport
        self.kick()

    def detach(self) -> None:
        """Send nothing any more: the connection ends."""
        self._transport, self._rest = None, []
        self._is_waiting = False

    def kick(self) -> None:
        """See to it that what is queued is sent."""
        if self.is_scheduled:
            return
        if self._is_alone and not self._pipeline.owed:
            self._context.run(self._send)
        else:
            self.schedule()

    def schedule(self) -> None:
        """Send what is queued at the end of this turn of the loop, in one piece with what follows."""
        if not self.is_scheduled:
            self.is_scheduled = True
            self._loop.call_soon(self._turn_ended, context=self._context)

    def expect(self) -> None:
        """Send what the callers queue that were just woken by answers, as soon as all of them have run."""
        if not self._is_alone:
            self.schedule()

    def send_now(self) -> None:
        """Send what is queued, without waiting for what may follow."""
        self._context.run(self._send)

    def _turn_ended(self) -> None:
        self.is_scheduled = False
        self._send()

    def _send(self) -> None:
        pipeline, transport = self._pipeline, self._transport
        # The queue first, here and below: most often it says all, and `is_ready` is a call.
        if not pipeline.queue and not pipeline.is_ready:
            return
        if transport is None or self._is_waiting or transport.get_write_buffer_size():
            self._ring()
            return
        self._is_alone = self._has_one()
        chunks = self._pack()
        if sum(map(len, chunks)) > _LARGE:
            self._rest, self._is_waiting = chunks, True
            self._ring()
            return
        try:
            if len(chunks) == 1:
                transport.write(chunks[0])
            else:
                transport.writelines(chunks)
        except Exception:  # noqa: BLE001  # uvloop refuses to write where asyncio does not; the reader sees the end
            with contextlib.suppress(RuntimeError):
                transport.abort()
        if (pipeline.queue or pipeline.large) and pipeline.is_ready:
            self._ring()

    def _has_one(self) -> bool:
        """Return whether one request is queued, or the reads of one call."""
        growing = self._pipeline.growing
        return len(self._pipeline.queue) == 1 and (growing is None or len(growing.waiters) == 1)

    def _ring(self) -> None:
        # Done without being rung: a task that was cancelled with its connection, and has not run since.
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def run(self, connection: AbstractConnection) -> None:
        """Send what cannot be sent at once, waiting for the socket; never return."""
        pipeline = self._pipeline
        while True:
            if not self._rest and not pipeline.is_ready:
                self._bell = self._loop.create_future()
                try:
                    await self._bell
                finally:
                    self._bell = None
            self._is_waiting = True
            while self._rest or pipeline.is_ready:
                chunks, self._rest = self._rest, []
                if not chunks:
                    self._is_alone = self._has_one()
                    chunks = self._pack()
                for part in _parts(chunks):
                    # A failure here closes the transport, which the reader sees and reports.
                    await connection.send_packed_command(part, check_health=False)  # type: ignore[arg-type]  # any buffers
            self._is_waiting = False


def _parts(chunks: list[bytes | memoryview]) -> Iterator[list[bytes | memoryview]]:
    """Yield what is to be sent in parts, each for one turn of the loop."""
    if sum(map(len, chunks)) <= _LARGE:
        yield chunks
        return
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _LARGE):
            yield [view[start : start + _LARGE]]
