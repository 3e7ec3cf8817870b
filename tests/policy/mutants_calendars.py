"""The guards that the tests of calendars see missing."""

from typing import Final

from magnus_cache._engine.policy import markets, trading_hours, until
from tests.support.guards import guard, put, rewrite

UNTIL: Final = "tests/policy/test_until.py"

MARKETS: Final = "tests/policy/test_markets.py"


@guard(UNTIL)
def without_the_second_time_that_a_clock_shows() -> None:
    rewrite(until.reaches, "return [first, second]", "return [first]")


@guard(UNTIL)
def without_the_jump_of_a_clock() -> None:
    rewrite(until.reaches, "return [high * MICROSECONDS]", "return [first]")


@guard(UNTIL)
def without_the_earliest_of_all_days() -> None:
    rewrite(
        until._Until._around, "min(each for each in reached if each > at)", "[each for each in reached if each > at][0]"
    )


@guard(MARKETS)
def without_the_end_of_trading() -> None:
    rewrite(markets._Market.end, "return min(end, change)", "return end")


@guard(MARKETS)
def without_breaks() -> None:
    rewrite(trading_hours.spans, "if breaks and pause != NONE:", "if False:")


@guard(MARKETS)
def without_a_session_that_ends_what_follows_the_one_before() -> None:
    rewrite(trading_hours.spans, "min(end + after, max(upcoming, end))", "end + after")


@guard(MARKETS)
def without_building_a_calendar_again() -> None:
    put(trading_hours.TradingHours, "covers", lambda self, at: True)


@guard(MARKETS)
def without_one_build_for_all() -> None:
    rewrite(trading_hours.build, "if present is not None and present.covers(at):", "if False:")


@guard(MARKETS)
def without_a_life_past_the_end_of_a_calendar() -> None:
    rewrite(markets._Market.end, "return min(end, now + int(self._fallback * MICROSECONDS))", "return end + 10**12")


@guard(f"{MARKETS}::test_a_clock_from_before_an_exchange_was_known_does_no_harm")
def without_a_table_for_times_before_all_that_is_known() -> None:
    rewrite(trading_hours.sessions_of, "min(max(end, earliest + _LEAST), latest)", "max(min(end, latest), earliest)")


@guard(f"{MARKETS}::test_a_calendar_that_cannot_be_made_is_named")
def without_naming_a_calendar_that_cannot_be_made() -> None:
    rewrite(trading_hours.sessions_of, "except Exception as error", "except ZeroDivisionError as error")
