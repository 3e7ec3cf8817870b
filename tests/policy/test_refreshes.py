"""When a value that is kept warm is due: by its own life, and spread over the interval."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.policy.refreshes import due, lease_seconds, levelled, look_interval, retry_after
from magnus_cache._engine.runtime.turns import at_once

DURATIONS = st.floats(0.01, 1e6)


def times(dues: list[float], gap: float, now: float = 0.0) -> list[float]:
    return at_once(levelled(dues, gap, now))


@pytest.mark.parametrize(
    ("every", "age", "left", "fixed", "after"),
    [
        pytest.param(30.0, 0.0, 60.0, True, 30.0, id="fixed-new"),
        pytest.param(30.0, 29.0, 31.0, True, 1.0, id="fixed-soon"),
        pytest.param(30.0, 45.0, 15.0, True, -15.0, id="fixed-late"),
        pytest.param(30.0, 0.0, 20.0, True, 16.0, id="fixed-but-shorter"),
        pytest.param(10.0, 0.0, 15.0, False, 10.0, id="market-open"),
        pytest.param(10.0, 0.0, 61_200.0, False, 61_190.0, id="market-closed"),
        pytest.param(10.0, 0.0, 5.0, False, 4.0, id="just-before-the-close"),
        pytest.param(None, 0.0, 60.0, True, 48.0, id="by-its-life"),
        pytest.param(None, 0.0, 86_400.0, True, 86_100.0, id="five-minutes-at-most"),
        pytest.param(None, 60.0, -10.0, True, -20.0, id="past-its-end"),
    ],
)
def test_due(every: float | None, age: float, left: float, fixed: bool, after: float) -> None:
    assert due(every, age, left, fixed=fixed).after == pytest.approx(after)


@given(every=st.none() | DURATIONS, age=st.floats(0, 1e6), left=DURATIONS, fixed=st.booleans())
def test_a_value_is_due_before_its_end_and_after_its_beginning(
    every: float | None, age: float, left: float, fixed: bool
) -> None:
    found = due(every, age, left, fixed=fixed)
    assert -age - 1e-6 <= found.after < left
    assert found.span >= -1e-6


@given(
    dues=st.lists(st.floats(-100, 1_000), max_size=40), gap=st.floats(0.001, 20), now=st.floats(-10, 10)
)  # fmt: skip
def test_values_are_only_moved_ahead_and_never_into_the_past(dues: list[float], gap: float, now: float) -> None:
    for at, moved in zip(dues, times(dues, gap, now), strict=True):
        assert moved <= at
        assert moved >= min(at, now)


@given(dues=st.lists(st.floats(500, 1_000), min_size=2, max_size=40))
def test_values_are_apart_once_they_were_moved(dues: list[float]) -> None:
    moved = sorted(times(dues, 1.0))
    assert all(later - earlier >= 1.0 - 1e-6 for earlier, later in itertools.pairwise(moved))
    # What is apart stays where it is: the interval between two loads of a key does not shrink.
    assert times(moved, 1.0) == pytest.approx(moved)


def test_values_that_were_stored_together_fill_half_the_interval() -> None:
    assert times([60.0] * 4, 60 / 8) == pytest.approx([37.5, 45.0, 52.5, 60.0][::-1])


@pytest.mark.parametrize(
    ("every", "ttl", "lease"),
    [
        pytest.param(30.0, 60.0, 10.0, id="third-of-what-is-left"),
        pytest.param(1.0, 3600.0, 15.0, id="longest"),
        pytest.param(0.9, 1.0, 0.5, id="shortest"),
        pytest.param(None, 60.0, 4.0, id="by-life"),
        pytest.param(6.0, None, 2.0, id="open-life"),
        pytest.param(None, None, 5.0, id="nothing-known"),
    ],
)
def test_a_lease_leaves_time_for_another_process(every: float | None, ttl: float | None, lease: float) -> None:
    assert lease_seconds(every, ttl) == pytest.approx(lease)


def test_keys_are_asked_for_twice_an_interval_and_once_a_minute_at_least() -> None:
    assert look_interval(30.0, 60.0) == 15.0
    assert look_interval(None, 50.0) == 20.0
    assert look_interval(3600.0, None) == look_interval(None, 86_400.0) == 60.0


@given(failures=st.integers(1, 10_000), span=DURATIONS)
def test_failures_are_repeated_ever_less_often_and_no_less_often_than_loads(failures: int, span: float) -> None:
    pause = retry_after(failures, span)
    assert 0 < pause <= span
    assert pause >= 0.75 * span * min(1.0, 2.0 ** min(failures - 5, 0)) - 1e-9
