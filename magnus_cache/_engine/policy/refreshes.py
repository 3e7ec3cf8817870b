"""When a value that is kept warm is to be loaded again. Decides only: no clock and no I/O.

The idea
--------
What is due follows from each value itself: from how long ago it was stored, and from how long it lasts, by Redis' time.
So nothing is lost when another process takes over, a value that another process has just loaded is not due, and a value
that a calendar keeps until the market opens is left alone until then.

- With a fixed TTL, a value is due `every` after it was stored.
- If the TTL depends on the value or on a calendar, values that live as long as `every` or twice as long are due as
  above. One that lives longer is due `every` before its end.
- Without `every`, it is due when four fifths of its life have passed, but at most five minutes before its end.
- If loading it again did not move its end, as before a calendar's boundary, it is due at its end and not earlier.

Values that were stored together would be due together, again and again. So each is moved ahead of the one that follows
it, by the interval over twice the number of keys: see `levelled`. After one interval they are due one after the other.
"""

from collections.abc import Generator, Sequence
from random import random
from typing import Final, NamedTuple

__all__ = ["Due", "due", "lease_seconds", "levelled", "look_interval", "retry_after"]

_SHARE: Final = 0.2
"""The share of a life before its end in which a value is refreshed, without `every`."""

_LONGEST_LEAD: Final = 300.0
"""Seconds of that at most."""

_LOOK: Final = 60.0
"""Seconds after which all keys are asked for and looked at again, at the latest."""

_SHORTEST_LOOK: Final = 0.05

_SHORTEST_LEASE: Final = 0.5
_LONGEST_LEASE: Final = 15.0
_LEASES: Final = 3
"""Leases that fit between the moment at which a value is due and its end: one for a holder that dies just then."""

_FIRST_RETRY: Final = 1 / 16
"""The pause after the first failure, as a share of the interval; it doubles up to the interval."""

_STEP: Final = 2_000
"""Keys that are handled in one step."""


class Due(NamedTuple):
    """When a value is to be loaded again."""

    after: float
    """Seconds from now; zero or less if it is due."""
    span: float
    """Seconds from when it was stored to when it is due."""


def due(every: float | None, age: float, left: float, *, fixed: bool) -> Due:
    """Return when a value is to be loaded again.

    :param every: seconds between two loads; None to go by the value's own life.
    :param age: seconds since it was stored.
    :param left: seconds until its end; zero or less past it.
    :param fixed: whether all values have the same TTL.
    """
    life = max(0.0, age + left)
    lead = min(_SHARE * life, _LONGEST_LEAD)
    if every is not None and every < life:
        lead = life - every if fixed else min(life - every, every)
    return Due(left - lead, life - lead)


def levelled(dues: Sequence[float], gap: float, now: float) -> Generator[None, None, list[float]]:
    """Return the times at which values are loaded, in steps: some earlier than they are due, none earlier than now.

    Two that follow each other are `gap` apart, as far as moving the first ahead does it.

    :param dues: when they are due, in seconds of any clock.
    :param gap: seconds.
    """
    order = sorted(range(len(dues)), key=dues.__getitem__, reverse=True)
    yield
    times = list(dues)
    following = float("inf")
    for count, place in enumerate(order, 1):
        following = times[place] = min(dues[place], max(now, following - gap))
        if count % _STEP == 0:
            yield
    return times


def look_interval(every: float | None, ttl: float | None) -> float:
    """Return the seconds after which all keys are asked for and looked at again.

    It is half the time between two loads: values that were loaded together are spread before they are due again.

    :param ttl: the fixed TTL of all values, or None.
    """
    own = every if every is not None else _LOOK if ttl is None else (1 - _SHARE) * ttl
    return max(_SHORTEST_LOOK, min(own / 2, _LOOK))


def lease_seconds(every: float | None, ttl: float | None) -> float:
    """Return the duration of the lease of a job: short enough for another process to take over before values end.

    :param ttl: the fixed TTL of all values, or None.
    """
    if ttl is not None:
        spare = due(every, 0.0, ttl, fixed=True)
        room = ttl - spare.span
    else:
        # Values may live for little longer than `every`.
        room = _LONGEST_LEASE if every is None else every
    return min(_LONGEST_LEASE, max(_SHORTEST_LEASE, room / _LEASES))


def retry_after(failures: int, span: float) -> float:
    """Return the seconds until the next attempt to load a key, with a random part.

    :param failures: how often its load has failed since it last succeeded, 1 or more.
    :param span: seconds between two loads that succeed; no pause is longer.
    """
    pause = span * min(1.0, _FIRST_RETRY * 2.0 ** min(failures - 1, 10))
    return pause * (1 - random() / 4)
