"""A connection that asks one server the same questions again and again, such as a sentinel for the primary."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from magnus_cache._engine.redis.connection import answers, opened
from magnus_cache._engine.redis.diagnosis import explain
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.runtime.loop_end import connection_task

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.runtime.clock import Clock
    from magnus_cache.errors import CacheUnavailableError

__all__ = ["Informant", "Listener"]

_REPLY_BYTES: Final = 1 << 20

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0
"""Seconds between two attempts to connect: after the first failure, and at most."""


class Listener(Protocol):
    """Receives what an informant learns, on its loop."""

    def told(self, informant: "Informant", replies: list[Any], sent: float) -> None:
        """Take the answers to questions that were asked at a monotonic second; raise `ValueError` for nonsense."""

    def untold(self, informant: "Informant") -> None:
        """Note that there is no answer, see `Informant.error`."""


class Informant:
    """See the module. Everything is called on its loop; the first question connects.

    :param questions: packed, each with one reply.
    :param timeout: seconds for one exchange, the connection included.
    :ivar asked: the monotonic second of the last question; minus infinity before the first.
    :ivar answered: that of the last question with an answer.
    :ivar error: why the last question has no answer; None if it has one.
    """

    def __init__(
        self, endpoint: "Endpoint", questions: tuple[bytes, ...], timeout: float, clock: "Clock", listener: Listener,
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self._questions = questions
        self._timeout = timeout
        self._clock = clock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self.asked = self.answered = -math.inf
        self.error: CacheUnavailableError | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause = 0.0

    def ask(self) -> None:
        """Ask, unless an answer is under way."""
        if self._task is None:
            self._task = connection_task(self._loop, self._live(), "magnus-cache-informant")
        self._wanted.set()

    def hurry(self) -> None:
        """Do not wait with the next attempt to connect."""
        self._pause = 0.0

    def end(self, ended: Callable[[], object]) -> bool:
        """Disconnect; return False if there is nothing to end, else call `ended` afterwards."""
        task = self._task
        if task is None or task.done():
            return False
        task.add_done_callback(lambda _: ended())
        task.cancel()
        return True

    async def _live(self) -> None:
        while True:
            await self._wanted.wait()
            before = self.answered
            found = await self._exchanges()
            if self.answered > before and found.reason == "lost":
                # It was closed while nothing was asked, as when its role changes: what was asked now is asked anew.
                self._wanted.set()
                continue
            self.error = found
            self._listener.untold(self)
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            await asyncio.sleep(self._pause)

    async def _exchanges(self) -> "CacheUnavailableError":
        """Connect, answer questions for as long as the connection lasts, and return why it has ended."""
        intake = Intake(self._timeout, self._clock, lambda: 1, lambda: _REPLY_BYTES)
        self.asked = sent = self._clock()
        try:
            async with (
                asyncio.timeout(self._timeout) as patience,
                opened(self.endpoint, self._timeout, intake) as connection,
            ):
                while True:
                    self._wanted.clear()
                    replies = await answers(connection, *self._questions)
                    intake.completed()
                    self.answered, self.error, self._pause = sent, None, 0.0
                    self._listener.told(self, replies, sent)
                    patience.reschedule(None)
                    await self._wanted.wait()
                    self.asked = sent = self._clock()
                    patience.reschedule(self._loop.time() + self._timeout)
        # As with any connection: the errors of redis-py, sockets and TLS have no common base class below Exception.
        except Exception as error:  # noqa: BLE001  # as said
            return explain(intake.refusal or error, self.endpoint)
        raise AssertionError("unreachable: a connection ends by an error")
