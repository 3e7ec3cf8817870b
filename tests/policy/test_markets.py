"""`market`: values live by the hours of an exchange, as exchange-calendars knows them.

`nox -s calendars` sets `MAGNUS_CALENDARS=all` for every minute of ten years. Without it, it is one year: the minutes
around each open and close, and those of a fortnight.
"""

import os
import pickle
import subprocess
import sys
import threading
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import exchange_calendars
import numpy as np
import pytest

from magnus_cache import CacheArgumentError, CacheTypeError, market
from magnus_cache._engine.policy import trading_hours
from magnus_cache._engine.policy.calendars import CalendarTtl, at_micros, micros
from magnus_cache._engine.policy.trading_hours import NONE, TradingHours, sessions_of, spans

ALL = os.environ.get("MAGNUS_CALENDARS") == "all"

EXCHANGES = ("XNYS", "XHKG", "XTKS")
"""With half days; east of the date line with a break for lunch; with another break, whose end was moved."""

MINUTE = 60_000_000

SECOND = 1_000_000

DAY = 1440 * MINUTE


def at(text: str) -> int:
    return micros(datetime.fromisoformat(text).replace(tzinfo=UTC))


def ends(calendar: CalendarTtl, began: str) -> str:
    """Return when a value ends that is loaded at a time of UTC."""
    moment = datetime.fromisoformat(began).replace(tzinfo=UTC)
    return calendar.ends_at(moment).strftime("%Y-%m-%d %H:%M:%S")


# -- against exchange-calendars ----------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_minute_is_as_exchange_calendars_says(exchange: str) -> None:
    """Whether the exchange is open at each minute, and when it opens and closes next."""
    start = "2016-01-01" if ALL else "2025-01-01"
    table = spans(sessions_of(exchange, at(start) - 30 * DAY, at("2026-02-01")), 0, 0, breaks=True)
    calendar = exchange_calendars.get_calendar(exchange, start=start, end="2026-02-01", side="left")
    minutes = np.arange(at(start), at("2026-01-20"), MINUTE)
    trading = calendar.minutes.tz_convert(None).to_numpy().astype("datetime64[us]").astype("int64")
    is_open = np.isin(minutes, trading, assume_unique=True)
    changes = np.flatnonzero(np.diff(is_open)) + 1
    next_open = _next(minutes, minutes[changes[is_open[changes]]])
    next_close = _next(minutes, minutes[changes[~is_open[changes]]])
    # Until the last open and close that the minutes show.
    count = int(changes[-2])
    places = range(count) if ALL else _thinned(changes, count)
    for place in places:
        found = table.after(int(minutes[place]))
        assert found == (is_open[place], next_open[place], next_close[place]), at_micros(int(minutes[place]))
    assert len(places) > (5_000_000 if ALL else 20_000)


def _next(minutes: Any, moments: Any) -> Any:
    """Return for each minute the first of some moments after it."""
    later = np.searchsorted(moments, minutes, side="right")
    return np.append(moments, -1)[later]


def _thinned(changes: Any, count: int) -> list[int]:
    """Return the places around each change, and those of a fortnight."""
    near = {int(change) + offset for change in changes[1:-4] for offset in (-1, 0, 1)}
    return sorted(near | set(range(count // 2, count // 2 + 14 * 1440)))


def test_the_years_that_are_looked_at_have_what_is_difficult() -> None:
    new_york = sessions_of("XNYS", at("2024-01-01"), at("2025-01-01"))
    lengths = {close - opened for opened, _, _, close in new_york.sessions}
    assert lengths == {6.5 * 60 * MINUTE, 3.5 * 60 * MINUTE}
    hong_kong = sessions_of("XHKG", at("2024-01-01"), at("2025-01-01"))
    assert {pause == NONE for _, pause, _, _ in hong_kong.sessions} == {True, False}
    tokyo = sessions_of("XTKS", at("2024-10-01"), at("2024-12-01"))
    assert {close % DAY for _, _, _, close in tokyo.sessions} == {6 * 60 * MINUTE, 6.5 * 60 * MINUTE}


# -- what the arguments mean ------------------------------------------------------------------------------------------


def test_quotes_end_at_the_close_and_the_last_ones_live_until_the_open() -> None:
    quotes = market("XNYS", open="15s", closed="until open")
    assert ends(quotes, "2026-11-25 15:00:00") == "2026-11-25 15:00:15"
    assert ends(quotes, "2026-11-25 20:59:55") == "2026-11-25 21:00:00"
    # The day after is Thanksgiving.
    assert ends(quotes, "2026-11-25 21:00:00") == "2026-11-27 14:30:00"
    # Friday is half a day, and then there is a weekend.
    assert ends(quotes, "2026-11-27 17:59:59") == "2026-11-27 18:00:00"
    assert ends(quotes, "2026-11-27 18:00:00") == "2026-11-30 14:30:00"


def test_when_the_load_began_decides() -> None:
    quotes = market("XNYS", open="15s", closed="until open")
    began, stored = at("2026-11-25 20:59:59"), at("2026-11-25 21:00:03")
    quotes.prepare(began)
    assert quotes.end(began, stored) == at("2026-11-25 21:00:00")
    # A duration counts from when the value is stored, however long the load took.
    assert quotes.end(at("2026-11-25 15:00:00"), at("2026-11-25 15:00:20")) == at("2026-11-25 15:00:35")


def test_a_duration_outside_of_trading_ends_at_the_open() -> None:
    orders = market("XNYS", closed="5m")
    assert ends(orders, "2026-11-25 03:00:00") == "2026-11-25 03:05:00"
    assert ends(orders, "2026-11-25 14:28:00") == "2026-11-25 14:30:00"
    assert ends(orders, "2026-11-25 15:00:00") == "2026-11-25 21:00:00"


def test_daily_figures_live_until_the_next_close() -> None:
    bars = market("XHKG", open="until close", closed="until close", breaks=False)
    assert ends(bars, "2026-11-24 03:00:00") == "2026-11-24 08:00:00"
    assert ends(bars, "2026-11-24 08:00:00") == "2026-11-25 08:00:00"
    opening = market("XNYS", open="until open", closed="until open")
    assert ends(opening, "2026-11-25 15:00:00") == "2026-11-27 14:30:00"


def test_lunch_counts_as_closed_unless_told_otherwise() -> None:
    assert ends(market("XHKG", open="15s"), "2026-11-24 03:59:55") == "2026-11-24 04:00:00"
    assert ends(market("XHKG", open="15s"), "2026-11-24 04:00:00") == "2026-11-24 05:00:00"
    assert ends(market("XHKG", open="15s", breaks=False), "2026-11-24 04:00:00") == "2026-11-24 04:00:15"
    # Christmas Eve has no afternoon.
    assert ends(market("XHKG", open="15s"), "2026-12-24 04:00:00") == "2026-12-28 01:30:00"


def test_hours_before_and_after_the_session_count_as_trading() -> None:
    extended = market("XNYS", open="15s", before="5h30m", after="4h")
    assert ends(extended, "2026-11-25 08:59:59") == "2026-11-25 09:00:00"
    assert ends(extended, "2026-11-25 09:00:00") == "2026-11-25 09:00:15"
    assert ends(extended, "2026-11-26 00:59:55") == "2026-11-26 01:00:00"
    # On half a day, what follows the close follows it earlier.
    assert ends(extended, "2026-11-27 21:59:55") == "2026-11-27 22:00:00"
    assert ends(extended, "2026-11-27 22:00:00") == "2026-11-30 09:00:00"


def test_closing_prices_may_take_a_while_to_be_final() -> None:
    settled = market("XNYS", open="15s", after="15m")
    assert ends(settled, "2026-11-25 21:00:01") == "2026-11-25 21:00:16"
    assert ends(settled, "2026-11-25 21:15:00") == "2026-11-27 14:30:00"


def test_sessions_never_overlap() -> None:
    always = spans(sessions_of("24/7", at("2026-01-01"), at("2026-03-01")), 3600 * SECOND, 7200 * SECOND, breaks=True)
    futures = spans(sessions_of("CMES", at("2026-01-01"), at("2026-03-01")), 3600 * SECOND, 7200 * SECOND, breaks=True)
    for table in (always, futures):
        assert all(opens < closes for opens, closes in zip(table.opens, table.closes, strict=True))
        assert all(closes <= opens for closes, opens in zip(table.closes, table.opens[1:], strict=False))
    assert all(later - earlier == DAY for earlier, later in pairwise(always.closes[:-1]))
    # A session begins when it begins, whatever follows the one before.
    assert {opens % DAY for opens in always.opens[1:]} == {0}


def test_a_calendar_without_nights() -> None:
    coins = market("24/7", open="10s", closed="1h")
    assert ends(coins, "2026-11-28 23:59:55") == "2026-11-29 00:00:00"
    assert ends(coins, "2026-11-29 00:00:00") == "2026-11-29 00:00:10"


# -- the end of what is known ------------------------------------------------------------------------------------------


def test_past_the_end_of_a_calendar_values_live_as_if_the_exchange_might_open_any_time() -> None:
    """China publishes its holidays for a year."""
    prices = market("XSHG", open="15s", closed="until open")
    last = exchange_calendars.get_calendar("XSHG").last_session
    far = micros(last.to_pydatetime().replace(tzinfo=UTC)) + 200 * DAY
    prices.prepare(far)
    assert prices.is_ready(far)
    assert prices.end(far, far) == far + 15 * SECOND
    assert f"ends on {last.date()}" in str(prices.shortfall(far))
    assert "15 s" in str(prices.shortfall(far))
    assert market("XSHG", open="15s", closed="5m").end(far, far) == far + 15 * SECOND
    daily = market("XSHG", open="until close", closed="until open")
    assert daily.end(far, far) == far + MINUTE
    # After the last close that is known, the next open is not.
    evening = micros(last.to_pydatetime().replace(tzinfo=UTC)) + 12 * 60 * MINUTE
    assert prices.end(evening, evening) == evening + 15 * SECOND


def test_a_calendar_is_built_again_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trading_hours, "_TABLES", {})
    quotes = market("XNYS", open="15s")
    today, in_a_year = at("2026-11-25 21:00"), at("2027-11-24 21:00")
    assert not quotes.is_ready(today)
    quotes.prepare(today)
    assert quotes.is_ready(today)
    assert quotes.shortfall(today) is None
    assert not quotes.is_ready(in_a_year)
    quotes.prepare(in_a_year)
    # Also for another server, whose clock is not ahead.
    assert quotes.is_ready(in_a_year)
    assert quotes.is_ready(today)
    assert quotes.end(in_a_year, in_a_year) == at("2027-11-26 14:30")
    assert quotes.end(today, today) == at("2026-11-27 14:30")


def test_a_calendar_is_built_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[str]()

    def sessions(name: str, first: int, last: int) -> TradingHours:
        built.append(name)
        return TradingHours(name, (), first, last, final=True)

    monkeypatch.setattr(trading_hours, "_TABLES", {})
    monkeypatch.setattr(trading_hours, "sessions_of", sessions)
    calendars = [market("XNYS", open=f"{seconds}s") for seconds in range(1, 9)]
    threads = [threading.Thread(target=calendar.prepare, args=(at("2026-11-25"),)) for calendar in calendars]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["XNYS"]


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "options", "names", "hint"),
    [
        ("  ", {}, "exchange", "XNYS"), ("XNYS", {"open": "until opening"}, "open", "until open"),
        ("XNYS", {"closed": "soon"}, "closed", "5m"), ("XNYS", {"open": 0}, "open", "more than zero"),
        ("XNYS", {"before": "-1h"}, "before", "1h30m"), ("XNYS", {"after": -5}, "after", "zero or more"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(exchange: str, options: Any, names: str, hint: str) -> None:
    with pytest.raises(CacheArgumentError, match=hint) as caught:
        market(exchange, **options)
    assert str(caught.value).startswith(f"{names}: ")


@pytest.mark.parametrize(("exchange", "options"), [(5, {}), ("XNYS", {"breaks": "yes"})])
def test_what_is_of_the_wrong_type_is_named(exchange: Any, options: Any) -> None:
    with pytest.raises(CacheTypeError):
        market(exchange, **options)


def test_an_exchange_that_does_not_exist_is_named_with_a_likely_one() -> None:
    with pytest.raises(CacheArgumentError, match="did you mean 'XNYS'"):
        market("XNYSE").ends_at(datetime.now(UTC))


@pytest.mark.parametrize("exchange", ["XTKS", "XSHG"])
def test_a_clock_from_before_an_exchange_was_known_does_no_harm(exchange: str) -> None:
    """As that of a machine that has just been switched on: the next session that is known is the first one."""
    began = at("1970-01-01 00:10:00")
    table = sessions_of(exchange, began - 60 * DAY, began + 400 * DAY)
    assert table.covers(began)
    is_open, opens, closes = spans(table, 0, 0, breaks=True).after(began)
    assert (is_open, opens) == (False, table.sessions[0][0])
    assert closes is not None
    # Once the clock is set, the calendar is built again.
    assert not table.covers(at("2026-11-25"))


def test_a_calendar_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some calendars of exchange-calendars fail with some releases of pandas."""

    def fails(*_: Any, **__: Any) -> None:
        raise NotImplementedError("implemented by subclasses")

    monkeypatch.setattr(exchange_calendars, "get_calendar", fails)
    with pytest.raises(CacheArgumentError, match=r"exchange: .*'ASEX'.*NotImplementedError.*releases"):
        sessions_of("ASEX", at("2026-01-01"), at("2027-01-01"))


def test_it_is_a_value_that_can_be_sent_to_another_process() -> None:
    calendar = market("XHKG", open="15s", closed="until  open", before="30m", after=60, breaks=False)
    assert repr(calendar) == ("market('XHKG', open=15.0, closed='until open', before=1800.0, after=60.0, breaks=False)")
    same = pickle.loads(pickle.dumps(calendar))
    assert same == calendar
    assert hash(same) == hash(calendar)
    assert same != market("XHKG", open="15s")


def test_without_the_extra_it_is_named_and_until_works() -> None:
    program = """
import sys
from importlib.machinery import PathFinder
sys.modules["exchange_calendars"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "exchange_calendars" else real(name, *more)
from magnus_cache import market, until
print(until("16:05", tz="America/New_York"))
try:
    market("XNYS")
except ImportError as error:
    print(error)
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "until('16:05', tz='America/New_York')",
        'market() needs exchange-calendars: pip install "magnus-cache[markets]"',
        "False",
    ]


def test_a_calendar_costs_nothing_until_it_is_needed() -> None:
    program = "import sys; from magnus_cache import Namespace, market; Namespace('quotes', ttl=market('XNYS'))\n"
    program += "print('pandas' in sys.modules, 'exchange_calendars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
