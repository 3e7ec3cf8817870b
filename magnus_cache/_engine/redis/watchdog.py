"""Timeouts: one deadline for a whole connection, instead of two for each command."""

import asyncio
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.pipeline import InFlight
from magnus_cache._engine.runtime.clock import Clock

__all__ = ["PATIENCE", "Watchdog"]

PATIENCE: Final = 20
"""A request may wait for this many timeouts while input keeps arriving."""


class Watchdog:
    """Closes the connection of a wire when its oldest request waits too long for an answer.

    :param timeout: seconds without input after which a connection counts as dead.
    :param intake: knows the time of the last input: while a value arrives, Redis is alive.
    :param oldest: returns the oldest unanswered request.
    :param give_up: called when that request is too old.
    :ivar timer: of the next look; None while it does not watch.
    """

    def __init__(
        self,
        timeout: float,
        clock: Clock,
        intake: Intake,
        oldest: Callable[[], InFlight | None],
        give_up: Callable[[], object],
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._intake = intake
        self._oldest = oldest
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Start watching, because a request was sent."""
        if self.timer is None:
            self.timer = self._loop.call_later(self._timeout, self.check, None)

    def end(self) -> None:
        """Stop watching."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def check(self, overdue: InFlight | None) -> None:
        """Give up if the oldest request is overdue for the second time, else check again later."""
        self.timer = None
        oldest = self._oldest()
        if oldest is None:
            return
        # Input extends the deadline, up to a bound: the answer may follow many megabytes of others.
        timeout = self._timeout
        due = min(max(oldest.sent, self._intake.heard) + timeout, oldest.sent + PATIENCE * timeout)
        left = due - self._clock()
        if left <= 0 and oldest is overdue:
            self._give_up()
            return
        # Overdue for the first time: if *our* loop was blocked, the answer is in the socket, and is read before the
        # next timer. Only a request that is overdue twice in a row is given up.
        grace = timeout / 10
        self.timer = self._loop.call_later(max(left, grace), self.check, oldest if left <= 0 else None)
