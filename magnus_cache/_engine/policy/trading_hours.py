"""When exchanges are open, as exchange-calendars knows it, in a form that is quick to look up.

exchange-calendars imports pandas, and takes seconds for that. So it is imported, and a calendar is built, when a value
is first stored that needs it, in a thread that may block: see `store/lives`. A process builds each calendar once, for
some months around the time that is asked for, and again when these are over.
"""

import difflib
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from magnus_cache._engine.policy.calendars import at_micros
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.forks import ForkLock
from magnus_cache.errors import CacheArgumentError

__all__ = ["NONE", "Session", "Spans", "TradingHours", "build", "known", "sessions_of", "spans"]

_DAY: Final = 86_400 * MICROSECONDS

_BEFORE: Final = 60 * _DAY
"""How far a table reaches back from the time that is asked for: further than any exchange was closed since 1914."""

_AHEAD: Final = 400 * _DAY
"""How far a table reaches ahead: calendars are known for a year, some for less."""

_RENEWED: Final = 45 * _DAY
"""How long before its end a table is built again."""

_LEAST: Final = timedelta(days=60)
"""The shortest time of which a table is made."""

_FURTHEST: Final = 180 * 365 * _DAY
"""A time in 2149, beyond all that calendars know."""

NONE: Final = -1
"""Instead of the start and the end of a break: there is none."""

Session = tuple[int, int, int, int]
"""A day of trading: its open, the start and the end of its break or twice `NONE`, its close; microseconds, UTC."""


@dataclass(frozen=True, slots=True)
class TradingHours:
    """The sessions of an exchange in some months.

    :ivar first: from when on they are known.
    :ivar last: the last close that is known.
    :ivar final: whether exchange-calendars knows no later one.
    """

    name: str
    sessions: tuple[Session, ...]
    first: int
    last: int
    final: bool

    def covers(self, at: int) -> bool:
        """Return whether a time is neither before the first session nor so late that more can be known."""
        return self.first <= at and (self.final or at < self.last - _RENEWED)


@dataclass(frozen=True, slots=True)
class Spans:
    """Times of trading in their order, in parallel; none begins before the one before it has ended."""

    opens: tuple[int, ...]
    closes: tuple[int, ...]

    def after(self, at: int) -> tuple[bool, int | None, int | None]:
        """Return whether an exchange is open at a time, its next open and its next close, None for those unknown."""
        place = bisect_right(self.opens, at)
        opens = self.opens[place] if place < len(self.opens) else None
        if place and at < self.closes[place - 1]:
            return True, opens, self.closes[place - 1]
        return False, opens, self.closes[place] if opens is not None else None


def spans(hours: TradingHours, before: int, after: int, *, breaks: bool) -> Spans:
    """Return the times that count as trading.

    A session that begins ends what counts of the one before: `after` never reaches into the next open.

    :param before: microseconds that count before each session.
    :param after: microseconds that count after each session.
    :param breaks: whether breaks do not count.
    """
    opens, closes = list[int](), list[int]()
    sessions = hours.sessions
    for place, (start, pause, resume, end) in enumerate(sessions):
        upcoming = sessions[place + 1][0] if place + 1 < len(sessions) else end + after
        opens.append(max(start - before, closes[-1]) if closes else start - before)
        if breaks and pause != NONE:
            closes.append(pause)
            opens.append(resume)
        closes.append(min(end + after, max(upcoming, end)))
    return Spans(tuple(opens), tuple(closes))


_TABLES: Final[dict[str, TradingHours]] = {}

_lock: Final = ForkLock()


def known(name: str) -> TradingHours | None:
    """Return the table of an exchange as it was built last in this process; None before."""
    return _TABLES.get(name)


def build(name: str, at: int) -> TradingHours:
    """Return a table of an exchange around a time; of several threads, one builds it. It may take seconds.

    :param at: microseconds, UTC.
    :raises CacheArgumentError: if there is no such exchange.
    """
    with _lock():
        present = _TABLES.get(name)
        if present is not None and present.covers(at):
            return present
        first, last = at - _BEFORE, at + _AHEAD
        if present is not None:
            # Two servers whose clocks differ by years must not take turns.
            first, last = min(first, present.first), max(last, present.last)
        _TABLES[name] = built = sessions_of(name, first, last)
        return built


def sessions_of(name: str, first: int, last: int) -> TradingHours:
    """Return the sessions of an exchange between two times, as far as exchange-calendars knows them.

    :raises CacheArgumentError: if there is no such exchange.
    """
    import exchange_calendars
    from exchange_calendars.errors import InvalidCalendarName

    start, end = at_micros(first), at_micros(last)
    try:
        try:
            calendar = exchange_calendars.get_calendar(name, start=start.date(), end=end.date())
        except InvalidCalendarName:
            raise CacheArgumentError("exchange", _unknown(name, exchange_calendars.get_calendar_names())) from None
        except ValueError:
            # Beyond what is known of it.
            earliest, latest = _bounds(exchange_calendars.get_calendar(name))
            start, end = min(max(start, earliest), latest - _LEAST), min(max(end, earliest + _LEAST), latest)
            calendar = exchange_calendars.get_calendar(name, start=start.date(), end=end.date())
        return _table(name, calendar, first, last)
    except CacheArgumentError:
        raise
    except Exception as error:
        # Not all releases of pandas and exchange-calendars go together.
        version = getattr(exchange_calendars, "__version__", "?")
        problem = (
            f"exchange-calendars {version} fails to make the calendar of {name!r} from {start:%Y-%m-%d} to "
            f"{end:%Y-%m-%d} ({type(error).__name__}: {str(error)[:100]}); try other releases of it and of pandas, "
            "and check the clock of Redis"
        )
        raise CacheArgumentError("exchange", problem) from error


def _table(name: str, calendar: Any, first: int, last: int) -> TradingHours:
    columns = (calendar.schedule[column] for column in ("open", "break_start", "break_end", "close"))
    # As integers of microseconds, whatever the unit of the columns; what is missing is the smallest integer.
    opens, pauses, resumes, closes = (
        column.dt.tz_convert(None).to_numpy().astype("datetime64[us]").astype("int64").tolist() for column in columns
    )
    pauses = [NONE if pause < 0 else pause for pause in pauses]
    resumes = [NONE if resume < 0 else resume for resume in resumes]
    sessions = tuple(zip(opens, pauses, resumes, closes, strict=True))
    latest = closes[-1] if closes else first
    # A weekend with holidays on both sides.
    return TradingHours(name, sessions, first, latest, final=latest < last - 15 * _DAY)


def _bounds(calendar: Any) -> tuple[datetime, datetime]:
    """Return from when to when exchange-calendars knows an exchange."""
    earliest, latest = calendar.bound_min(), calendar.bound_max()
    return (
        at_micros(0) if earliest is None else earliest.to_pydatetime().replace(tzinfo=UTC),
        at_micros(_FURTHEST) if latest is None else latest.to_pydatetime().replace(tzinfo=UTC),
    )


def _unknown(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"exchange-calendars knows no {name!r}; {hint}Names are ISO codes such as 'XNYS', 'XHKG' and 'XLON'"
