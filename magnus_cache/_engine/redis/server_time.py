"""The estimate of the Redis server's clock.

The clocks of two processes are never compared. A value carries its expiry in server time. Each process converts it to
its own monotonic clock through `RedisTime`, rather too early than too late.
"""

import math
import sys
import time
from typing import Final

from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock, offset_of
from magnus_cache._engine.runtime.durations import LONGEST

__all__ = ["RedisTime", "host_time", "server_time"]

_TIME_DIGITS: Final = 12
"""The most digits of a server's seconds: thousands of years, still exact as microseconds in a float."""

_DRIFT: Final = 100e-6
"""The drift between two clocks, in seconds per second: quartz stays well within 100 ppm."""


def server_time(reply: object) -> int | None:
    """Return the answer to TIME in microseconds; None for an invalid answer."""
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

    Each answer to ``TIME`` was given between the moment when the command was sent and the moment when the answer was
    read (Cristian's algorithm). The answer with the shortest interval wins; its error grows with age.

    :ivar sampled: monotonic second at which the last answered request was sent.
    :ivar steps: how often the server's clock was set.
    :ivar horizon: a century after the last answer, in microseconds; later times are nonsense.
    """

    __slots__ = ("_estimate", "horizon", "sampled", "steps")

    def __init__(self) -> None:
        self.horizon = 0
        self.sampled = -math.inf
        self.steps = 0
        # Offset, error and when that was the error; in one, as blocking callers read it in their own threads.
        self._estimate = 0.0, math.inf, 0.0

    @property
    def known(self) -> bool:
        """Whether any answer has been seen."""
        return self._estimate[1] < math.inf

    def sample(self, sent: float, received: float, server: int) -> None:
        """Update the estimate by one answer.

        :param sent: monotonic seconds just before the command was sent.
        :param received: monotonic seconds just after the answer was read.
        :param server: the answer, in microseconds.
        """
        self.sampled = sent
        self.horizon = server + int(LONGEST * MICROSECONDS)
        offset = server - (sent + received) / 2 * MICROSECONDS
        error = (received - sent) / 2
        aged = self.error(received)
        stepped = abs(offset - self._estimate[0]) > (error + aged) * MICROSECONDS
        self.steps += stepped and self.known
        # If the samples differ by more than both errors, the server's clock was set, and only the newer sample is
        # right.
        if error <= aged or stepped:
            self._estimate = offset, error, received

    def error(self, now: float) -> float:
        """Return the bound on the estimate's error in seconds at a monotonic time."""
        _, error, at = self._estimate
        return error + max(0.0, now - at) * _DRIFT

    def at(self, now: float) -> int:
        """Return the estimate of the server's clock in microseconds at a monotonic time."""
        return int(self._estimate[0] + now * MICROSECONDS)

    def end(self, server: int, life: float, now: float) -> float:
        """Return the monotonic time until which a value is fresh, even if the server's clock was set meanwhile.

        :param server: the same time on the server's clock.
        :param life: the value's whole TTL in seconds; 0 or nonsense if unknown.
        :param now: a monotonic time when the value existed, or was not stored yet.
        """
        return min(self.local(server), now + (life if 0 < life < LONGEST else LONGEST))

    def past(self, now: float) -> int:
        """Return a reading of the server's clock up to which `local` is past at a monotonic time.

        Later by some microseconds than need be, so that no rounding takes what is past for what is to come. An integer,
        as the times of values are: to compare one with a float takes three times as long.
        """
        offset, error, _ = self._estimate
        # Not math.floor() alone: nothing is known of a server's clock before its first answer.
        return math.floor((now + error) * MICROSECONDS + offset + _ROUNDING) if error < math.inf else sys.maxsize

    def local(self, server: int) -> float:
        """Return a monotonic time at or before the moment when the server's clock reads `server`."""
        offset, error, _ = self._estimate
        return (server - offset) / MICROSECONDS - error


def host_time(clock: Clock) -> RedisTime:
    """Return the clock of this host in place of a server's, for a cache that has not met its server, or has none.

    No other host's clock is ever compared with it: what a process keeps by this clock stays in its memory.

    :param clock: the cache's; if a test has moved it, the host's clock is as far ahead.
    """
    found, now = RedisTime(), clock()
    found.sample(now, now, int((time.time() + offset_of(clock)) * MICROSECONDS))
    return found
