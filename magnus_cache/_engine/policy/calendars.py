"""TTLs that end at a moment of a calendar: what such a TTL is, and where one is accepted.

A plain TTL is a number of seconds. A calendar's ends values at moments that are the same for the whole fleet, such as
the close of an exchange. Two times decide, both in microseconds of Redis' clock:

- *when the load began* decides which moment is next. What was asked for before the close belongs to before the close,
  even if the answer comes, and is stored, after it. Otherwise a quote of before the close would live until the next
  open. Such a value has ended when it is stored.
- *now*, when the value is stored, is where durations count from, such as those of `market("XNYS", open="15s")`.

This module and those of the calendars are pure: no clock, no I/O. `store/lives` gives them the time of Redis.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["EPOCH", "CalendarTtl", "Ttl", "at_micros", "checked_ttl", "micros"]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_LAST: Final = int((datetime(9000, 1, 1, tzinfo=UTC) - EPOCH).total_seconds()) * MICROSECONDS
"""Clocks that are further ahead are wrong, and calendars cannot count so far."""


class CalendarTtl:
    """A TTL that ends at a moment of a calendar: what `until` and `market` return. Immutable; compares by its parts.

    Give it wherever a `ttl` is taken. Two calendars with the same arguments are equal.
    """

    __slots__ = ()

    def end(self, began: int, now: int) -> int:
        """Return when a value ends; a time up to `now` if it has ended. All are microseconds since 1970, UTC.

        :param began: when its load began.
        :param now: when it is stored.
        """
        raise NotImplementedError

    def is_ready(self, at: int) -> bool:
        """Return whether `end` knows the calendar around a time, in microseconds; if not, `prepare` it first."""
        del at
        return True

    def prepare(self, at: int) -> None:
        """Build what `end` needs around a time. It may take seconds, so call it in a thread that may block.

        :raises CacheArgumentError: if there is no such calendar.
        """

    def shortfall(self, at: int) -> str | None:
        """Return what the calendar does not know about a time, and what happens instead; None if it knows all."""
        del at
        return None

    def ends_at(self, began: datetime) -> datetime:
        """Return when a value ends that is loaded at once, in UTC. It may take seconds, so do not call it on a loop.

        :param began: when its load begins; with a time zone.
        :raises CacheArgumentError: for a time without a time zone, or if there is no such calendar.
        """
        if not isinstance(began, datetime):
            raise CacheTypeError("began", f"a datetime is needed, not {type(began).__name__}")
        if began.tzinfo is None:
            raise CacheArgumentError("began", "it has no time zone; write datetime(..., tzinfo=ZoneInfo('UTC'))")
        at = micros(began)
        if not self.is_ready(at):
            self.prepare(at)
        return at_micros(self.end(at, at))


Ttl: TypeAlias = Duration | CalendarTtl
"""A time to live: a duration, or a calendar such as ``until("16:05", tz="America/New_York")``."""


def checked_ttl(ttl: Ttl, argument: str = "ttl") -> float | CalendarTtl:
    """Return a caller's TTL: a duration in seconds, or a calendar as it is.

    :raises CacheArgumentError: (a `ValueError`) naming the argument, if it is neither.
    """
    return ttl if isinstance(ttl, CalendarTtl) else seconds(ttl, argument)


def micros(moment: datetime) -> int:
    """Return a moment in microseconds since 1970, UTC."""
    span = moment - EPOCH
    return (span.days * 86_400 + span.seconds) * MICROSECONDS + span.microseconds


def at_micros(at: int) -> datetime:
    """Return a time in microseconds since 1970 as a moment in UTC; the nearest one that a calendar can count to."""
    return EPOCH + timedelta(microseconds=min(max(at, 0), _LAST))
