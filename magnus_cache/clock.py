"""Time: durations as callers write them, the process's clock, and the estimate of Redis' clock.

No two hosts' clocks are ever compared. A value's end of life travels in Redis time; each process
translates it to its own monotonic clock through `RedisTime`, erring on the side of too early.
"""

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, Final

from magnus_cache.errors import CacheArgumentError
from magnus_cache.numeric import number

__all__ = [
    "LONGEST",
    "MICROSECONDS",
    "Clock",
    "Duration",
    "RedisTime",
    "ahead",
    "current_clock",
    "monotonic",
    "process_clock",
    "seconds",
    "server_time",
    "switch_process_clock",
    "using_clock",
]

Clock = Callable[[], float]
"""Seconds on a clock that never goes back, and runs on while the machine sleeps; `monotonic` by default."""

Duration = float | int | timedelta | str
"""A time to live: seconds, a `timedelta`, or text such as ``"90s"``, ``"5m"``, ``"1h30m"``.

Any other number will do as well, such as NumPy's or a `Decimal`; type checkers are told of the everyday kinds.
"""

MICROSECONDS: Final = 1_000_000


def _system_clock() -> Clock:
    """Return a clock that never goes back and counts the time for which the machine sleeps.

    `time.monotonic` does not count it on Linux and macOS: right after waking up, what was near would be trusted for the
    rest of the staleness bound, hours after it was last confirmed. This one costs 20 ns more, about 1 % of a `get`.
    """
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    number = getattr(time, name, None)
    if number is not None:
        # The kernel may be older than the name.
        with contextlib.suppress(OSError):
            time.clock_gettime(number)
            return partial(time.clock_gettime, number)
    return time.monotonic


monotonic: Final[Clock] = _system_clock()
"""What caches go by. Timers of event loops need not count sleep: they come later than meant, never too early."""

process_clock: Final = partial(monotonic)
"""What all caches of this process go by: `monotonic`, or what a test has switched it to.

A partial, because it runs at C speed and what it calls can be exchanged: caches that exist already follow at once, and
a hit in memory pays nothing for it.
"""

_CLOCK: Final[ContextVar[Clock]] = ContextVar("magnus_cache_clock", default=process_clock)

_switched_to: Final[list[Clock]] = []
"""Keeps these clocks alive: another thread may be in the midst of a call of one, and a partial holds no reference."""
_before_new: Final[list[Callable[[], object]]] = []


def switch_process_clock(clock: Clock, before_new: Callable[[], object] | None = None) -> None:
    """Let all caches of this process go by another clock, those that exist already too. It must not be behind.

    :param before_new: called before a cache is made, as long as this clock counts.
    """
    _switched_to.append(clock)
    _before_new[:] = [before_new] if before_new is not None else []
    # A partial of a partial would cost twice as much.
    now = clock if isinstance(clock, partial) else partial(clock)
    # It is how partials are unpickled.
    process_clock.__setstate__((now.func, now.args, now.keywords, None))  # type: ignore[attr-defined]  # as said


def current_clock() -> Clock:
    """Return the clock of a cache that is made in this context: `process_clock`, or what `using_clock` says."""
    for call in _before_new:
        call()
    return _CLOCK.get()


@contextlib.contextmanager
def using_clock(clock: Clock) -> Generator[None]:
    """Within it, let caches that are made go by another clock. For tests; see `testing.VirtualClock`."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def ahead(clock: Clock) -> float:
    """Return the seconds that a clock is ahead of `monotonic`; a server's clock is seen as being so, too."""
    seconds: float = getattr(process_clock.func if clock is process_clock else clock, "ahead", 0.0)
    return seconds


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_TEXT: Final = re.compile(rf"(?:{_PART.pattern})+")

LONGEST: Final = 100 * 365 * 86400.0
"""Seconds in a century. Beyond, Redis' millisecond arithmetic and ours stop being worth testing, and what claims to be
so far ahead is nonsense."""

_TIME_DIGITS: Final = 12
"""Digits of the seconds of a server's clock: thousands of years, and within what a float of microseconds holds."""

_DRIFT: Final = 100e-6
"""How fast two clocks may part, in seconds a second: quartz stays well within 100 ppm."""


def seconds(duration: Duration, argument: str = "ttl", *, zero: bool = False) -> float:
    """Return a duration in seconds.

    :param duration: seconds as int, float or any other number, a `timedelta`, or text of numbers with the units
        ``ms s m h d w``, as in ``"1h30m"``.
    :param argument: the argument's name for the error message.
    :param zero: whether it may be zero.
    :raises CacheArgumentError: (a `ValueError`) for zero, negative, NaN, infinite or bool
        durations, for more than a century, and for text that is no duration.
    """
    # The common case first: this runs on every `set`.
    if type(duration) is int or type(duration) is float:
        # An int may be too large for a float.
        amount = float(duration) if abs(duration) <= LONGEST else math.inf if duration > 0 else -math.inf
    elif isinstance(duration, bool):
        raise CacheArgumentError(argument, f"{duration!r} is a bool, not a duration in seconds")
    elif isinstance(duration, timedelta):
        amount = duration.total_seconds()
    elif isinstance(duration, str):
        amount = _parse(duration, argument)
    elif (plain := number(duration)) is not None:
        return seconds(plain, argument, zero=zero)
    elif (span := _numpy_span(duration)) is not None:
        return seconds(span, argument, zero=zero)
    else:
        raise CacheArgumentError(
            argument, f"a duration is seconds, a timedelta or text such as '90s', not {type(duration).__name__}"
        )
    if not 0 < amount <= LONGEST and not (zero and amount == 0):
        got, least = duration if isinstance(duration, float) else amount, "zero or more" if zero else "more than zero"
        raise CacheArgumentError(argument, f"a duration must be {least} and at most a century, got {got:g} seconds")
    return amount


def _numpy_span(duration: Any) -> timedelta | None:
    """Return a ``np.timedelta64`` as a `timedelta`; None for one without a unit, and for anything else."""
    if str(getattr(duration, "dtype", "")).startswith("timedelta64["):
        span = duration.astype("timedelta64[us]").item()
        return span if isinstance(span, timedelta) else None
    return None


def _parse(text: str, argument: str) -> float:
    compact = text.replace(" ", "").lower()
    if not _TEXT.fullmatch(compact):
        raise CacheArgumentError(argument, f"{text[:40]!r} is no duration; write '90s', '5m' or '1h30m'")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))


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

    def local(self, server: int) -> float:
        """Return a monotonic time at or before the moment when the server's clock reads `server`."""
        return (server - self._offset) / MICROSECONDS - self._error
