"""`market`: values live by the hours of an exchange."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final

from magnus_cache._engine.policy.calendars import CalendarTtl, at_micros
from magnus_cache._engine.policy.trading_hours import Spans, TradingHours, build, known, spans
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["market"]

_OPEN, _CLOSE = "until open", "until close"

_LEAST: Final = 60.0
"""Seconds that values live when the calendar has ended and no duration is given."""

_Rule = float | str
"""Seconds, or one of the two texts above."""


@dataclass(frozen=True, slots=True, repr=False)
class _Market(CalendarTtl):
    """See `market`."""

    exchange: str
    open: _Rule
    closed: _Rule
    before: float
    after: float
    breaks: bool
    _built: list[tuple[TradingHours, Spans] | None] = field(compare=False)
    """The table that was used last, and what this calendar makes of it."""

    def end(self, began: int, now: int) -> int:
        """Return when a value ends; see `CalendarTtl.end`."""
        found = self._spans()
        is_open, opens, closes = (True, None, None) if found is None else found.after(began)
        rule, change = (self.open, closes) if is_open else (self.closed, opens)
        if isinstance(rule, str):
            end = opens if rule == _OPEN else closes
            return now + int(self._fallback * MICROSECONDS) if end is None else end
        end = now + int(rule * MICROSECONDS)
        if change is None:
            # Whether the exchange opens or closes soon is not known.
            return min(end, now + int(self._fallback * MICROSECONDS))
        return min(end, change)

    @property
    def _fallback(self) -> float:
        """Seconds that values live where the calendar has ended: as if the exchange might open or close any time."""
        return min((rule for rule in (self.open, self.closed) if isinstance(rule, float)), default=_LEAST)

    def _spans(self) -> Spans | None:
        table, built = known(self.exchange), self._built[0]
        if table is None:
            return None
        if built is None or built[0] is not table:
            before, after = (int(each * MICROSECONDS) for each in (self.before, self.after))
            built = self._built[0] = table, spans(table, before, after, breaks=self.breaks)
        return built[1]

    def is_ready(self, at: int) -> bool:
        """Return whether the calendar is built around a time; see `CalendarTtl.is_ready`."""
        table = known(self.exchange)
        return table is not None and table.covers(at)

    def prepare(self, at: int) -> None:
        """Build the calendar around a time; see `CalendarTtl.prepare`.

        :raises CacheArgumentError: if there is no such exchange.
        """
        build(self.exchange, at)
        self._spans()

    def shortfall(self, at: int) -> str | None:
        """Return what the calendar does not know about a time; see `CalendarTtl.shortfall`."""
        table, found = known(self.exchange), self._spans()
        if table is None or found is None or None not in found.after(at):
            return None
        ends = at_micros(table.last).date()
        return (
            f"the calendar of {self.exchange} ends on {ends}, and values live {self._fallback:g} s until a newer "
            "exchange-calendars knows more"
        )

    def _given(self) -> str:
        parts = [f"open={self.open!r}", f"closed={self.closed!r}"]
        parts += [f"{name}={value!r}" for name in ("before", "after") if (value := getattr(self, name))]
        return ", ".join(parts if self.breaks else [*parts, "breaks=False"])

    def __repr__(self) -> str:
        return f"market({self.exchange!r}, {self._given()})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self.exchange, self.open, self.closed, self.before, self.after, self.breaks)


def market(
    exchange: str, *, open: Duration = _CLOSE, closed: Duration = _OPEN, before: Duration = 0, after: Duration = 0,
    breaks: bool = True,
) -> CalendarTtl:  # fmt: skip
    """Return a TTL by the hours of an exchange, such as ``market("XNYS", open="15s", closed="until open")``.

    When the load begins decides which of the two counts. What is loaded in trading hours never lives past the close,
    and what is loaded outside never past the open, unless ``"until open"`` or ``"until close"`` says so.

    :param exchange: the ISO code that exchange-calendars knows it by, such as ``"XNYS"``, ``"XHKG"`` or ``"24/7"``. It
        is looked up when the first value is stored.
    :param open: how long values live that are loaded in trading hours: a duration, ``"until close"`` or, for the next
        session, ``"until open"``.
    :param closed: how long values live that are loaded outside of trading hours, in the same forms.
    :param before: a duration before each session that counts as trading, such as ``"5h30m"`` for a pre-market.
    :param after: a duration after each session that counts as trading: ``"15m"`` until closing prices are final, or
        ``"4h"`` for a post-market. It never reaches into the next session.
    :param breaks: whether breaks for lunch count as closed; False counts them as trading.
    :raises CacheArgumentError: (a `ValueError`) for an invalid argument, naming it.
    :raises ImportError: without the extra ``markets``.
    """
    if not isinstance(exchange, str):
        raise CacheTypeError("exchange", f"a code such as 'XNYS' is needed, not {type(exchange).__name__}")
    if not exchange.strip():
        raise CacheArgumentError("exchange", "a code such as 'XNYS' is needed, got an empty text")
    if not isinstance(breaks, bool):
        raise CacheTypeError("breaks", f"give True or False, not {type(breaks).__name__}")
    rules = _rule(open, "open"), _rule(closed, "closed")
    more = seconds(before, "before", zero=True), seconds(after, "after", zero=True)
    if find_spec("exchange_calendars") is None:
        problem = 'market() needs exchange-calendars: pip install "magnus-cache[markets]"'
        raise ImportError(problem, name="exchange_calendars")
    return _Market(exchange.strip(), *rules, *more, breaks, [None])


def _restored(exchange: str, open: _Rule, closed: _Rule, before: float, after: float, breaks: bool) -> CalendarTtl:
    return market(exchange, open=open, closed=closed, before=before, after=after, breaks=breaks)


def _rule(given: Duration, argument: str) -> _Rule:
    if isinstance(given, str) and given.split()[:1] == ["until"]:
        words = " ".join(given.split())
        if words in (_OPEN, _CLOSE):
            return words
        raise CacheArgumentError(argument, f"{given[:40]!r} is neither 'until open' nor 'until close'")
    return seconds(given, argument)
