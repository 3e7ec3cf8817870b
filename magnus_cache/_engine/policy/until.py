"""`until`: values end when a clock on the wall shows a time.

A wall clock in a zone with daylight saving skips some times and shows others twice. The rule is the same for all: a
value ends at the next moment at which the clock *reaches* the time. It reaches a time that it skips when it jumps over
it, and a time that it shows twice on both occasions. So no value lives past a moment at which the clock shows the time.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from magnus_cache._engine.policy.calendars import EPOCH, CalendarTtl, at_micros, micros
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["reaches", "until"]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_FULL: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_TIME: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")

_AHEAD: Final = 9
"""Days of which the times are looked at: a week, and a day for what time zones shift."""

_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, repr=False)
class _Until(CalendarTtl):
    """See `until`."""

    times: tuple[time, ...]
    zone: str
    days: frozenset[int]
    at_most: int | None
    _span: list[tuple[int, int]] = field(compare=False)
    """The last answer: from when to when a load may begin for the value to end at the second of the two."""

    def end(self, began: int, now: int) -> int:
        """Return when a value ends; see `CalendarTtl.end`."""
        start, end = self._span[0]
        if not start <= began < end:
            start, end = self._span[0] = self._around(began)
        return end if self.at_most is None else min(end, now + self.at_most)

    def _around(self, at: int) -> tuple[int, int]:
        """Return the last moment up to a time and the next one after it."""
        zone, moment = _zone(self.zone), at_micros(at)
        today = moment.astimezone(zone).date()
        at = micros(moment)
        days = [today + timedelta(days=ahead) for ahead in range(-1, _AHEAD)]
        # Of all days together: a clock that is set back over midnight reaches times of two days in turn.
        days = [day for day in days if day.weekday() in self.days]
        reached = [each for day in days for wall in self.times for each in reaches(day, wall, zone)]
        return max((each for each in reached if each <= at), default=at), min(each for each in reached if each > at)

    def __repr__(self) -> str:
        times = ", ".join(repr(_text(each)) for each in self.times)
        days = "" if len(self.days) == 7 else f", days={','.join(_DAYS[day] for day in sorted(self.days))!r}"
        most = "" if self.at_most is None else f", at_most={self.at_most / MICROSECONDS!r}"
        return f"until({times}, tz={self.zone!r}{days}{most})"

    def __reduce__(self) -> tuple[object, ...]:
        days = ",".join(_DAYS[day] for day in sorted(self.days))
        most = None if self.at_most is None else self.at_most / MICROSECONDS
        return _restored, (self.times, self.zone, days, most)


def until(
    *times: str | time, tz: str | tzinfo, days: str | Iterable[str] | None = None, at_most: Duration | None = None
) -> CalendarTtl:
    """Return a TTL that ends when a clock on the wall shows a time, such as ``until("16:05", tz="America/New_York")``.

    A load that begins before the time gives a value that ends at the time, however long the load takes. A time that
    the clock skips in spring ends values when it jumps over it; a time that it shows twice in autumn ends them twice.

    :param times: one or more, such as ``"16:05"`` or ``"9:30:15"``, or `datetime.time` without a time zone; values end
        at the next one.
    :param tz: where the clock hangs: the name of a time zone, or a `ZoneInfo`.
    :param days: the days on which the times count, such as ``"mon-fri"``, ``"sat,sun"`` or a list of names; None means
        all.
    :param at_most: the longest that a value lives, as a duration; None means until the time.
    :raises CacheArgumentError: (a `ValueError`) for a time, time zone or day that does not exist.
    """
    if not times:
        raise CacheArgumentError("times", 'give at least one time of day, such as until("16:05", tz=...)')
    most = None if at_most is None else int(seconds(at_most, "at_most") * MICROSECONDS)
    checked = tuple(sorted(set(map(_time, times))))
    zone = _zone_name(tz)
    start = micros(EPOCH)
    return _Until(checked, zone, _weekdays(days), most, [(start, start)])


def _restored(times: tuple[time, ...], tz: str, days: str, at_most: float | None) -> CalendarTtl:
    return until(*times, tz=tz, days=days, at_most=at_most)


def reaches(day: date, wall: time, zone: tzinfo) -> list[int]:
    """Return when a wall clock reaches a time of a day, in microseconds since 1970: once, or twice if it is set back.

    A time that the clock skips is reached when it jumps over it.
    """
    local = datetime.combine(day, wall, tzinfo=zone)
    first, second = micros(local), micros(local.replace(fold=1))
    if first == second:
        return [first]
    if first < second:
        return [first, second]
    # Skipped: with the offset from before the jump it is after it, and the other way round.
    low, high = second // MICROSECONDS, -(-first // MICROSECONDS)
    before = _offset(low, zone)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(middle, zone) == before else (low, middle)
    return [high * MICROSECONDS]


def _offset(at: int, zone: tzinfo) -> timedelta | None:
    return (EPOCH + at * _SECOND).astimezone(zone).utcoffset()


def _time(given: object) -> time:
    if isinstance(given, time):
        if given.tzinfo is not None:
            raise CacheArgumentError("times", f"{given} has a time zone; leave it out and give tz")
        return given.replace(fold=0)
    if not isinstance(given, str):
        raise CacheTypeError("times", f"a time of day such as '16:05' is needed, not {type(given).__name__}")
    match = _TIME.fullmatch(given.strip())
    hour, minute, second = map(int, match.groups(default="0")) if match else (24, 0, 0)
    if hour > 23 or minute > 59 or second > 59:
        raise CacheArgumentError("times", f"{given[:40]!r} is not a time of day; write '16:05', '9:30' or '16:05:30'")
    return time(hour, minute, second)


def _text(given: time) -> str:
    return given.isoformat("minutes" if not given.second and not given.microsecond else "auto")


def _zone_name(tz: object) -> str:
    name = tz if isinstance(tz, str) else getattr(tz, "key", None) or (str(tz) if isinstance(tz, tzinfo) else None)
    if not isinstance(name, str):
        problem = "give the name of a time zone, such as 'America/New_York', or a ZoneInfo"
        raise CacheTypeError("tz", f"{problem}, not {type(tz).__name__}")
    _zone(name)
    return name


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    """:raises CacheArgumentError: if there is no such zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    try:
        ZoneInfo("Europe/London")
    except (ZoneInfoNotFoundError, OSError):
        problem = f"{name[:40]!r} cannot be looked up, as this system has no time zones: pip install tzdata"
        raise CacheArgumentError("tz", problem) from None
    problem = f"there is no time zone {name[:40]!r}; names are such as 'America/New_York' or 'Asia/Hong_Kong'"
    raise CacheArgumentError("tz", problem)


def _weekdays(days: object) -> frozenset[int]:
    if days is None:
        return frozenset(range(7))
    if isinstance(days, str):
        parts: list[object] = list(days.split(","))
    elif isinstance(days, Iterable):
        parts = list(days)
    else:
        raise CacheTypeError("days", f"days such as 'mon-fri' are needed, not {type(days).__name__}")
    found: set[int] = set()
    for part in parts:
        if not isinstance(part, str):
            raise CacheTypeError("days", f"days such as 'mon-fri' are needed, not {type(part).__name__}")
        first, _, last = part.partition("-")
        start = _weekday(first, part)
        end = _weekday(last, part) if last else start
        found.update((start + ahead) % 7 for ahead in range((end - start) % 7 + 1))
    if not found:
        raise CacheArgumentError("days", "no day is left; leave it out for all days")
    return frozenset(found)


def _weekday(name: str, given: str) -> int:
    short = name.strip().lower()
    for number, day in enumerate(_DAYS):
        if short.startswith(day) and _FULL[number].startswith(short):
            return number
    raise CacheArgumentError("days", f"{given[:40]!r} is not a day of the week; write 'mon-fri', 'sat,sun' or 'friday'")
