"""The estimate of Redis' clock.

No two hosts' clocks are ever compared. A value's end of life travels in Redis time; each process translates it to its
own monotonic clock through `RedisTime`, erring on the side of too early.
"""

import math
from typing import Final

from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import LONGEST

__all__ = ["RedisTime", "server_time"]

_TIME_DIGITS: Final = 12
"""Digits of the seconds of a server's clock: thousands of years, and within what a float of microseconds holds."""

_DRIFT: Final = 100e-6
"""How fast two clocks may part, in seconds a second: quartz stays well within 100 ppm."""


def server_time(reply: object) -> int | None:
    """Return what a server says to TIME in microseconds; None for what cannot be that."""
    if not isinstance(reply, list) or len(reply) != 2:
        return None
    number, part = reply
    if type(number) is not bytes or type(part) is not bytes or not (number.isdigit() and part.isdigit()):
        return None
    if len(number) > _TIME_DIGITS or len(part) > _TIME_DIGITS or int(part) >= MICROSECONDS:
        return None
    return int(number) * MICROSECONDS + int(part)


_ROUNDING: Final = 4.0
"""Microseconds: more than sums of such numbers lose as floats."""


class RedisTime:
    """An estimate of one Redis server's clock, in microseconds of its epoch, with a bound on its error.

    Each answer to ``TIME`` brackets the server's clock between the moment the command was sent and the
    moment the answer was read (Cristian's algorithm). The tightest bracket wins; its error grows with age.

    :ivar sampled: monotonic seconds when the last answer was asked for.
    :ivar steps: how often the server's clock turned out to have been set.
    :ivar horizon: a century ahead of the last answer, in microseconds; what is later is nonsense.
    """

    __slots__ = ("_at", "_error", "_offset", "horizon", "sampled", "steps")

    def __init__(self) -> None:
        self.horizon = 0
        self.sampled = -math.inf
        self.steps = 0
        self._offset = 0.0
        self._error = math.inf
        self._at = 0.0

    @property
    def known(self) -> bool:
        """Whether any answer has been seen."""
        return self._error < math.inf

    def sample(self, sent: float, received: float, server: int) -> None:
        """Take one answer.

        :param sent: monotonic seconds just before the command was sent.
        :param received: monotonic seconds just after the answer was read.
        :param server: the answer, in microseconds.
        """
        self.sampled = sent
        self.horizon = server + int(LONGEST * MICROSECONDS)
        offset = server - (sent + received) / 2 * MICROSECONDS
        error = (received - sent) / 2
        aged = self.error(received)
        stepped = abs(offset - self._offset) > (error + aged) * MICROSECONDS
        self.steps += stepped and self.known
        # A server whose clock was set cannot be told from a bad sample except by disagreement
        # beyond both errors; then the newer one is the only one that can be right.
        if error <= aged or stepped:
            self._offset, self._error, self._at = offset, error, received

    def error(self, now: float) -> float:
        """Return the bound on the estimate's error in seconds at a monotonic time."""
        return self._error + max(0.0, now - self._at) * _DRIFT

    def at(self, now: float) -> int:
        """Return the server's clock in microseconds at a monotonic time, as best known."""
        return int(self._offset + now * MICROSECONDS)

    def end(self, server: int, life: float, now: float) -> float:
        """Return the monotonic time until which a value is fresh, whatever the server's clock has done meanwhile.

        :param server: what the server's clock reads then.
        :param life: seconds that it was to live in all; 0 or nonsense if that is not known.
        :param now: a monotonic time when it was there, or not yet stored.
        """
        return min(self.local(server), now + (life if 0 < life < LONGEST else LONGEST))

    def past(self, now: float) -> float:
        """Return a reading of the server's clock up to which `local` is past at a monotonic time.

        Later by some microseconds than need be, so that no rounding takes what is past for what is to come.
        """
        return (now + self._error) * MICROSECONDS + self._offset + _ROUNDING

    def local(self, server: int) -> float:
        """Return a monotonic time at or before the moment when the server's clock reads `server`."""
        return (server - self._offset) / MICROSECONDS - self._error
