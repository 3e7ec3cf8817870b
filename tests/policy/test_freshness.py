"""The decisions about freshness: pure functions, checked by their properties."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import Namespace
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.memory.entry import Entry, pack_facts, pack_windows
from magnus_cache.errors import CacheArgumentError, CacheTypeError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY, Freshness, FreshnessState, classify, early_by, lifetime, merged

TIMES = st.floats(0, 1e9)
SPANS = st.floats(0, 1e6)
DRAWS = st.floats(0, 1, exclude_max=True)
ORDER = [FreshnessState.FRESH, FreshnessState.EARLY, FreshnessState.STALE, FreshnessState.GONE]


@given(TIMES, SPANS, SPANS, SPANS, TIMES)
def test_a_value_passes_through_its_standings_in_order(
    due: float, early: float, grace: float, later: float, now: float
) -> None:
    """Time only ever makes it worse; it is fresh before its end and gone after its grace."""
    fresh_until = due + early
    end = fresh_until + grace
    one, two = (ORDER.index(classify(at, due, fresh_until, end)) for at in (now, now + later))
    assert one <= two
    fresh = classify(now, due, fresh_until, end) in {FreshnessState.FRESH, FreshnessState.EARLY}
    assert fresh == (now < max(due, fresh_until))
    assert (classify(now, due, fresh_until, end) is FreshnessState.GONE) == (now >= max(due, fresh_until, end))


@given(SPANS, st.floats(0, 0.999), DRAWS)
def test_jitter_only_ever_shortens_a_life_and_by_no_more_than_its_share(ttl: float, jitter: float, draw: float) -> None:
    assert ttl * (1 - jitter) <= lifetime(ttl, jitter, lambda: draw) <= ttl
    assert lifetime(ttl, 0.0, lambda: draw) == ttl


@given(SPANS, st.floats(0, 10), DRAWS)
def test_an_early_refresh_is_due_before_the_end_and_not_absurdly_so(cost: float, beta: float, draw: float) -> None:
    early = early_by(cost, beta, lambda: draw)
    assert 0 <= early <= 45 * cost * beta + 1e-300
    assert early_by(0.0, beta, lambda: draw) == early_by(cost, 0.0, lambda: draw) == 0.0


def test_early_refreshes_are_spread_as_in_the_paper() -> None:
    """XFetch: the time that is left is exponentially distributed, with the mean of cost times beta."""
    draw = random.Random(7).random
    draws = [early_by(2.0, 1.5, draw) for _ in range(20_000)]
    assert math.isclose(sum(draws) / len(draws), 3.0, rel_tol=0.03)
    assert math.isclose(sum(early > 3.0 for early in draws) / len(draws), math.exp(-1), rel_tol=0.05)


@given(TIMES, SPANS, SPANS, st.integers(0, 2**64 - 1), st.integers(0, 2**40 - 1), st.booleans())
def test_an_entry_keeps_its_times(
    deadline: float, fresh: float, stale: float, version: int, size: int, negative: bool
) -> None:
    entry = Entry(
        1, None, deadline, Trust(0.0), size, pack_facts(version, pack_windows(fresh, stale, negative=negative))
    )
    assert (entry.deadline, entry.version, entry.size, entry.negative) == (deadline, version, size, negative)
    assert deadline + fresh - 0.0011 <= entry.fresh_until <= deadline + fresh + 1e-6
    assert deadline + fresh + stale - 0.0021 <= entry.end <= deadline + fresh + stale + 1e-6
    again = entry.until(deadline + 1, Trust(1.0))
    assert math.isclose(again.end - again.deadline, entry.end - entry.deadline, abs_tol=1e-5)
    assert again.negative == negative


def test_an_entry_that_just_ends_takes_no_more_room() -> None:
    """LIMITS: 250 bytes an entry. What most entries do not need costs them nothing."""
    assert pack_windows(0.0, 0.0) == 0
    plain = Entry(1, None, 5.0, Trust(0.0), 2**39, 2**63)
    assert plain._packed.__sizeof__() == 40
    assert plain.end == plain.fresh_until == plain.deadline == 5.0


# -- options ------------------------------------------------------------------------------------------------------


def test_no_policy_is_the_plain_one() -> None:
    assert Namespace("n").freshness is NO_POLICY
    assert Freshness.of({"grace": 0, "jitter": 0}) is NO_POLICY
    assert merged(Freshness.of({"grace": "1h"}), {"grace": 0}) is NO_POLICY


def test_a_call_departs_from_its_namespace() -> None:
    policy = Namespace("n", grace="1h", soft_timeout="100ms", negative={LookupError: 5}).freshness
    assert merged(policy, {"soft_timeout": 0, "early": 1}) == Freshness(
        grace=3600.0, soft_timeout=0.0, early=1.0, negative=((LookupError, 5.0),)
    )
    assert policy.soft_timeout == 0.1
    assert policy.negative_ttl(KeyError()) == 5.0
    assert policy.negative_ttl(ValueError()) is None


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"grace": -1}, "grace"),
        ({"grace": True}, "grace"),
        ({"grace": "soon"}, "grace"),
        ({"grace": 60, "soft_timeout": math.nan}, "soft_timeout"),
        ({"soft_timeout": 1}, "soft_timeout"),
        ({"grace": 60, "soft_timeout": 2, "hard_timeout": 1}, "soft_timeout"),
        ({"hard_timeout": 0}, "hard_timeout"),
        ({"early": -1}, "early"),
        ({"early": True}, "early"),
        ({"early": math.inf}, "early"),
        ({"jitter": 1}, "jitter"),
        ({"jitter": "10%"}, "jitter"),
        ({"retry": 0}, "retry"),
        ({"negative": LookupError}, "negative"),
        ({"negative": {"LookupError": 5}}, "negative"),
        ({"negative": {BaseException: 5}}, "negative"),
        ({"negative": {CacheUnavailableError: 5}}, "negative"),
        ({"negative": {LookupError: 0}}, "negative[LookupError]"),
        ({"gracee": 5}, "gracee"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(CacheArgumentError) as caught:
        Namespace("n", **options)
    assert caught.value.argument == argument


def test_of_the_wrong_type_is_a_type_error() -> None:
    with pytest.raises(CacheTypeError, match=r"negative: .* such as \{LookupError: '1m'\}, not int"):
        Namespace("n", negative=5)  # type: ignore[arg-type]


# -- throttle -----------------------------------------------------------------------------------------------------


def test_a_throttle_holds_for_its_time_and_is_bounded() -> None:
    """Invariant 10."""
    now = 0.0
    throttle = RetryThrottle(lambda: now)
    throttle.failed(b"a", 5.0)
    assert throttle.holds(b"a")
    assert not throttle.holds(b"b")
    throttle.succeeded(b"a")
    assert not throttle.holds(b"a")
    throttle.failed(b"a", 5.0)
    now = 5.0
    assert not throttle.holds(b"a")
    for number in range(11_000):
        throttle.failed(b"%d" % number, 5.0)
    assert not throttle.holds(b"0")
    assert throttle.holds(b"10999")
    assert len(throttle._until) == 10_000
