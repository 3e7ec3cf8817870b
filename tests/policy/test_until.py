"""`until`: values end when a clock on the wall reaches a time, whatever the zone does to its clocks."""

import pickle
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import CacheArgumentError, CacheTypeError, Namespace, until
from magnus_cache._engine.policy.calendars import at_micros, micros
from magnus_cache._engine.policy.until import reaches
from tests.support.effort import examples

UTC = UTC

MINUTE = timedelta(minutes=1)

ZONES = sorted(available_timezones())


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]  # some numbers


def reached_by_hand(wall: time, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Watch a wall clock minute by minute, and return when it shows the time, or has jumped over it."""
    found, moment = [], start
    before = (moment - MINUTE).astimezone(zone).replace(tzinfo=None)
    while moment <= end:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        # It shows the time of that day, or that time lies in the gap that it has just jumped over.
        jumped = before + MINUTE
        targets = {datetime.combine(day, wall) for day in (before.date(), shown.date(), jumped.date())}
        if shown in targets or any(jumped <= target < shown for target in targets):
            found.append(moment)
        before, moment = shown, moment + MINUTE
    return found


def test_a_value_ends_at_the_next_time() -> None:
    bell = until("16:05", tz="America/New_York")
    assert bell.ends_at(utc(2026, 7, 1, 20, 4, 59)) == utc(2026, 7, 1, 20, 5)
    # What is loaded at the very moment belongs to after it.
    assert bell.ends_at(utc(2026, 7, 1, 20, 5)) == utc(2026, 7, 2, 20, 5)
    assert bell.ends_at(utc(2026, 12, 1, 20, 5)) == utc(2026, 12, 1, 21, 5)


def test_the_load_decides_even_if_the_value_is_stored_after_it() -> None:
    bell = until("16:05", tz="America/New_York")
    began, stored = micros(utc(2026, 7, 1, 20, 4, 59)), micros(utc(2026, 7, 1, 20, 5, 30))
    assert at_micros(bell.end(began, stored)) == utc(2026, 7, 1, 20, 5)


@pytest.mark.parametrize(
    ("began", "end"),
    [
        (utc(2026, 3, 8, 6), utc(2026, 3, 8, 7)),  # at two it is three, so half past two is reached at once
        (utc(2026, 3, 8, 7), utc(2026, 3, 9, 6, 30)),
    ],
)
def test_a_time_that_the_clock_skips_is_reached_when_it_jumps(began: datetime, end: datetime) -> None:
    assert until("2:30", tz="America/New_York").ends_at(began) == end


@pytest.mark.parametrize(
    ("began", "end"),
    [
        (utc(2026, 11, 1, 5), utc(2026, 11, 1, 5, 30)),
        (utc(2026, 11, 1, 5, 30), utc(2026, 11, 1, 6, 30)),  # an hour later it is half past one again
        (utc(2026, 11, 1, 6, 30), utc(2026, 11, 2, 6, 30)),
    ],
)
def test_a_time_that_the_clock_shows_twice_ends_values_twice(began: datetime, end: datetime) -> None:
    assert until("1:30", tz="America/New_York").ends_at(began) == end


def test_a_day_that_a_zone_skips_is_reached_when_it_is_skipped() -> None:
    """Samoa went from Thursday to Saturday."""
    friday = until("12:00", tz="Pacific/Apia", days="fri")
    assert friday.ends_at(utc(2011, 12, 30)) == utc(2011, 12, 30, 10)
    assert friday.ends_at(utc(2011, 12, 30, 10)) == utc(2012, 1, 5, 22)


def test_a_clock_that_is_set_back_over_midnight() -> None:
    """Newfoundland set its clocks back at a minute past midnight: 23:30 and 0:00 come in turn."""
    both = until("23:30", "0:00", tz="America/St_Johns")
    moment, found = utc(2010, 11, 7, 1), list[datetime]()
    zone = ZoneInfo("America/St_Johns")
    for _ in range(4):
        moment = both.ends_at(moment)
        found.append(moment)
    start = utc(2010, 11, 7, 1)
    by_hand = [each for wall in (time(23, 30), time(0)) for each in reached_by_hand(wall, zone, start, found[-1])]
    assert found == sorted(each for each in by_hand if each > start)
    assert [each.astimezone(zone).minute for each in found] == [30, 0, 30, 0]


@pytest.mark.parametrize(
    ("days", "names"),
    [
        ("mon-fri", "mon,tue,wed,thu,fri"), ("sat-mon", "mon,sat,sun"), ("Friday", "fri"), ("tue , thurs", "tue,thu"),
        (["mon", "wed-fri"], "mon,wed,thu,fri"),
    ],
)  # fmt: skip
def test_days_are_given_as_people_write_them(days: Any, names: str) -> None:
    calendar = until("16:00", tz="Europe/London", days=days)
    assert repr(calendar) == f"until('16:00', tz='Europe/London', days='{names}')"
    assert calendar == until("16:00", tz="Europe/London", days=names)


def test_weekdays_leave_the_weekend_out() -> None:
    weekday = until("16:05", tz="America/New_York", days="mon-fri")
    assert weekday.ends_at(utc(2026, 11, 27, 21, 5)) == utc(2026, 11, 30, 21, 5)


def test_the_first_of_several_times_counts() -> None:
    times = until("16:00", "9:30", tz="America/New_York")
    assert times.ends_at(utc(2026, 11, 27, 12)) == utc(2026, 11, 27, 14, 30)
    assert times.ends_at(utc(2026, 11, 27, 14, 30)) == utc(2026, 11, 27, 21)
    assert times == until(time(9, 30), time(16), tz=ZoneInfo("America/New_York"))


def test_a_value_lives_at_most_so_long() -> None:
    quotes = until("16:00", tz="America/New_York", at_most="5m")
    assert quotes.ends_at(utc(2026, 11, 27, 15)) == utc(2026, 11, 27, 15, 5)
    assert quotes.ends_at(utc(2026, 11, 27, 20, 58)) == utc(2026, 11, 27, 21)


@pytest.mark.parametrize(
    ("times", "options", "names", "hint"),
    [
        ((), {}, "times", "at least one"), (("25:00",), {}, "times", "16:05"), (("4 pm",), {}, "times", "16:05"),
        (("16:05",), {"tz": "America/New_Yrok"}, "tz", "America/New_York"),
        (("16:05",), {"tz": "../x"}, "tz", "no time"),
        (("16:05",), {"days": "mon-xyz"}, "days", "mon-fri"), (("16:05",), {"days": []}, "days", "no day"),
        (("16:05",), {"at_most": "0s"}, "at_most", "more than zero"),
        ((time(16, tzinfo=UTC),), {}, "times", "leave it out"),
    ],
    ids=["none", "25", "text", "zone", "path", "day", "no-day", "zero", "zoned"],
)  # fmt: skip
def test_what_makes_no_sense_is_named(times: Any, options: Any, names: str, hint: str) -> None:
    with pytest.raises(CacheArgumentError, match=hint) as caught:
        until(*times, **{"tz": "UTC", **options})
    assert str(caught.value).startswith(f"{names}: ")


@pytest.mark.parametrize(
    ("times", "options"), [((16,), {}), (("16:05",), {"tz": 5}), (("16:05",), {"days": 5}), (("16:05",), {"days": [5]})]
)
def test_what_is_of_the_wrong_type_is_named(times: Any, options: Any) -> None:
    with pytest.raises(CacheTypeError):
        until(*times, **{"tz": "UTC", **options})


def test_it_is_a_value_that_can_be_sent_to_another_process() -> None:
    calendar = until("16:05", "9:30:15", tz="America/New_York", days="mon-fri", at_most="1h")
    assert repr(calendar) == (
        "until('09:30:15', '16:05', tz='America/New_York', days='mon,tue,wed,thu,fri', at_most=3600.0)"
    )
    same = pickle.loads(pickle.dumps(calendar))
    assert same == calendar
    assert hash(same) == hash(calendar)
    assert same != until("16:05", tz="America/New_York")
    assert same != "16:05"
    assert same.ends_at(utc(2026, 11, 27)) == calendar.ends_at(utc(2026, 11, 27))


def test_a_namespace_has_it_as_its_policy() -> None:
    one, other = (Namespace("closing", ttl=until("16:05", tz="America/New_York")) for _ in range(2))
    assert one.policy == other.policy
    assert repr(one) == "Namespace('closing', ttl=until('16:05', tz='America/New_York'))"
    assert pickle.loads(pickle.dumps(one)).ttl == one.ttl
    with pytest.raises(CacheArgumentError, match="l1_ttl"):
        Namespace("closing", l1_ttl=one.ttl)  # type: ignore[arg-type]


@pytest.mark.parametrize("began", [utc(2026, 11, 27).replace(tzinfo=None), "today"])
def test_a_moment_needs_a_time_zone(began: Any) -> None:
    with pytest.raises((CacheArgumentError, CacheTypeError), match="began"):
        until("16:05", tz="UTC").ends_at(began)


@pytest.mark.parametrize("at", [-(10**18), 0, 10**15, 10**18], ids=["before", "1970", "2001", "after"])
def test_a_clock_that_is_far_off_is_no_error(at: int) -> None:
    """What such a server calls the time is nonsense; the value ends by it, or has ended."""
    assert isinstance(until("16:05", tz="America/New_York", days="mon").end(at, at), int)


@given(
    st.sampled_from(ZONES),
    st.dates(date(1975, 1, 1), date(2036, 1, 1)),
    st.times().map(lambda each: each.replace(fold=0)),
)
@settings(max_examples=examples(150))
def test_a_time_is_reached_when_its_wall_clock_gets_there(name: str, day: date, wall: time) -> None:
    """By the arithmetic of zoneinfo: before the moment the clock shows less, at it the time or more."""
    zone = ZoneInfo(name)
    target = datetime.combine(day, wall)
    moments = list(map(at_micros, reaches(day, wall, zone)))
    assert 1 <= len(moments) <= 2
    for moment in moments:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        earlier = (moment - timedelta(microseconds=1)).astimezone(zone).replace(tzinfo=None)
        assert earlier < target <= shown
        # It is later only if the clock has jumped.
        assert shown == target or shown - earlier > timedelta(microseconds=1)


@given(st.sampled_from(ZONES), st.datetimes(datetime(1975, 1, 1), datetime(2036, 1, 1)), st.integers(0, 95))
@settings(max_examples=examples(60))
def test_no_value_lives_past_a_moment_at_which_the_clock_shows_the_time(
    name: str, near: datetime, quarter: int
) -> None:  # fmt: skip
    """Against a clock that is watched minute by minute, over the changes of all zones."""
    zone, start = ZoneInfo(name), near.replace(second=0, microsecond=0, tzinfo=UTC)
    wall = time(quarter // 4, quarter % 4 * 15)
    calendar, end = until(wall, tz=zone), start + timedelta(hours=30)
    expected = [each for each in reached_by_hand(wall, zone, start + MINUTE, end) if each > start]
    found, moment = list[datetime](), start
    while (moment := calendar.ends_at(moment)) <= end:
        found.append(moment)
    # Offsets of old times have seconds; a clock that is watched by the minute does not see them.
    if all((start + step * MINUTE).astimezone(zone).second == 0 for step in range(0, 1800, 300)):
        assert found == expected
