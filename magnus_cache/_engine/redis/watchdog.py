"""When a connection is taken for dead: the one deadline of a wire, instead of two a command."""

import asyncio
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.pipeline import InFlight
from magnus_cache._engine.runtime.clock import Clock

__all__ = ["PATIENCE", "Watchdog"]

PATIENCE: Final = 20
"""Timeouts that a request may wait while others' answers, or parts of its own, keep coming."""


class Watchdog:
    """Watches over the requests of one wire. Whoever must not wait for an answer for ever, waits for this.

    :param timeout: seconds of silence after which a connection is given up.
    :param intake: tells when something last came: while a value comes over, Redis is there.
    :param oldest: returns the oldest request that is owed an answer.
    :param give_up: called when it is too old.
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
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Watch, as something has been asked."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self.check, None)

    def end(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self, overdue: InFlight | None) -> None:
        """Run when the oldest request may be overdue."""
        self._timer = None
        oldest = self._oldest()
        if oldest is None:
            return
        # Not overdue while anything keeps coming: what is wanted may lie behind many megabytes. Up to a bound.
        timeout = self._timeout
        due = min(max(oldest.sent, self._intake.heard) + timeout, oldest.sent + PATIENCE * timeout)
        left = due - self._clock()
        if left <= 0 and oldest is overdue:
            self._give_up()
            return
        # Overdue for the first time: if it was *our* loop that was held up, the answer lies in the socket and is
        # read before the next timer. Only who is overdue twice in a row is given up.
        grace = timeout / 10
        self._timer = self._loop.call_later(max(left, grace), self.check, oldest if left <= 0 else None)
