"""The schedule of a job that keeps values warm."""

import math

from magnus_cache._engine.loading.warm_schedule import WarmSchedule
from magnus_cache._engine.store.lifetimes import Lifetime, Look


def look(version: int, age: float, left: float, *, negative: bool = False) -> Look:
    return Look(version, negative, Lifetime(age, left))


def schedule(every: float | None = 30.0, *, fixed: bool = True) -> WarmSchedule:
    return WarmSchedule(every, 30.0, fixed=fixed)


def test_values_are_taken_in_the_order_in_which_they_are_due() -> None:
    plan = schedule()
    for name, at in ((b"late", 9.0), (b"first", 1.0), (b"second", 1.0), (b"soon", 2.0)):
        plan.set(name, at)
    assert plan.next == 1.0
    assert plan.take(2.0, 3) == [b"first", b"second", b"soon"]
    assert plan.take(8.0, 3) == []
    assert plan.next == 9.0


def test_only_the_last_time_counts() -> None:
    plan = schedule()
    plan.set(b"a", 1.0)
    plan.set(b"a", 5.0)
    assert plan.next == 5.0
    assert plan.take(10.0, 10) == [b"a"]
    assert plan.next == math.inf


def test_keys_that_are_gone_are_due_no_more() -> None:
    plan = schedule()
    for name in (b"a", b"b"):
        plan.set(name, 1.0)
    plan.keep([b"b"])
    assert plan.take(2.0, 10) == [b"b"]


def test_a_value_that_someone_has_loaded_is_another_one() -> None:
    plan = schedule()
    assert plan.judge(b"a", look(1, 0, 60), 100.0) == (130.0, True)
    assert plan.is_known(b"a", look(1, 30, 30))
    assert not plan.is_known(b"a", look(2, 0, 60))
    assert not plan.is_known(b"a", None)
    assert not plan.is_known(b"b", None)


def test_a_missing_value_is_due_at_once() -> None:
    assert schedule().judge(b"a", None, 7.0) == (7.0, False)


def test_a_failure_is_repeated_later_and_later_until_someone_succeeds() -> None:
    plan, pauses = schedule(), list[float]()
    plan.judge(b"a", look(1, 30, 30), 0.0)
    for _ in range(8):
        plan.failed(b"a", look(1, 30, 30), 0.0)
        pauses.append(plan.next)
        # A look at the old value changes nothing.
        assert plan.judge(b"a", look(1, 30, 30), 0.0)[0] == pauses[-1]
        assert plan.is_known(b"a", look(1, 30, 30))
    assert pauses[0] < 2 < pauses[3] < pauses[-1] <= 30
    assert plan.judge(b"a", look(2, 0, 60), 0.0) == (30.0, True)
    assert plan.loaded(b"a", look(2, 30, 30), look(3, 0, 60), 100.0)
    plan.failed(b"a", look(3, 0, 60), 0.0)
    assert plan.next < 2


def test_a_result_that_is_not_stored_is_tried_again_later() -> None:
    plan = schedule()
    plan.judge(b"a", None, 0.0)
    assert not plan.loaded(b"a", None, None, 0.0)
    assert 0 < plan.next < 2
    assert plan.judge(b"a", None, 0.0)[0] == plan.next


def test_a_refresh_that_does_not_move_the_end_waits_for_the_end() -> None:
    """As with a calendar: until the market opens, the value stays as it is."""
    plan = schedule(10.0, fixed=False)
    closed = look(1, 50_000.0, 10.0)
    assert plan.judge(b"a", closed, 0.0) == (0.0, True)
    assert plan.loaded(b"a", closed, look(2, 0.0, 9.9), 0.1)
    assert plan.next == 10.0
    # The next look says the same, and does not have it spread over the time before.
    assert plan.judge(b"a", look(2, 4.0, 5.95), 4.0) == (9.95, False)
    # From the opening on, it lasts for 15 seconds.
    assert plan.loaded(b"a", None, look(3, 0.0, 15.0), 10.2)
    assert plan.judge(b"a", look(3, 0.0, 15.0), 10.2) == (20.2, True)


def test_a_remembered_error_is_loaded_again_at_its_end() -> None:
    assert schedule().judge(b"a", look(1, 1.0, 4.0, negative=True), 10.0) == (14.0, False)


def test_loads_are_spread_by_the_shortest_interval() -> None:
    plan = schedule(None)
    assert plan.gap(10) == 1.5
    plan.judge(b"a", look(1, 0, 50), 0.0)
    plan.judge(b"b", look(2, 0, 500), 0.0)
    assert plan.gap(10) == 2.0


def test_a_load_that_takes_long_does_not_make_its_value_due_at_once() -> None:
    plan = schedule(30.0)
    assert plan.loaded(b"a", None, look(1, 40.0, 60.0), 100.0)
    assert plan.next == 130.0
    assert plan.judge(b"a", look(1, 50.0, 50.0), 110.0)[0] == 130.0
    # Of a value that another process has loaded, it is not known what took how long.
    assert plan.judge(b"a", look(2, 40.0, 60.0), 110.0)[0] == 100.0
