"""Audits: some hits are loaded again in the background and compared, and the report says how often they were wrong."""

import asyncio
import math
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import (
    AsyncCacheManager,
    AuditReport,
    AuditRow,
    CacheArgumentError,
    CacheManager,
    Namespace,
    RetryLater,
)
from magnus_cache._engine.api.audit_report import report_of, wilson_upper
from magnus_cache._engine.loading.audits import is_same
from magnus_cache._engine.policy.audits import Sampler
from magnus_cache._engine.runtime.audit_counts import EDGES, AuditCounts, bucket_of
from magnus_cache.testing import EmbeddedCluster, Proxy, virtual_clock
from tests.support.groups import cache_of
from tests.support.inside import state_of
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

ALL = Namespace("t", ttl="1h", audit=1)


def checked(cache: Any, count: int) -> Callable[[], bool]:
    """Return what tells whether so many audits of this process have ended."""
    audits = state_of(cache).stats.audits
    return lambda: sum(each.checked + each.failed for each in audits.of("t").values()) >= count


async def test_a_wrong_value_is_found_and_not_replaced(url: str) -> None:
    source = [1]

    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:

            @cache.cached(ALL)
            async def f() -> int:
                return source[0]

            assert await f() == 1
            clock.advance(3)
            assert await f() == 1
            await wait_until_async(checked(cache, 1))
            source[0] = 2
            clock.advance(30)
            assert await f() == 1
            await wait_until_async(checked(cache, 2))
            assert await f() == 1
            report = await cache.audit_report("t")
            assert [(row.since, row.until, row.checked, row.wrong) for row in report.rows] == [
                (2, 5, 1, 0),
                (20, 50, 1, 1),
            ]
            assert report.rows[0].wrong_share == 0
            assert (report.checked, report.wrong) == (2, 1)
            # It counts as no load, and no call waits for it.
            assert f.cache_info().loads == 1


def test_blocking_callers_are_audited_too(url: str) -> None:
    source = [1]
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:

        @cache.cached("t", "1h", audit=1.0)
        def f(number: int) -> int:
            return source[0]

        @cache.cached("t", "1h", audit=1.0)
        def several(*numbers: int) -> int:
            return source[0]

        assert f(1) == several(1, 2) == cache.get_or_set(ALL, "k", lambda: source[0]) == 1
        source[0] = 2
        clock.advance(3)
        assert f(1) == several(1, 2) == cache.get_or_set(ALL, "k", lambda: source[0]) == 1
        wait_until(checked(cache, 3))
        report = cache.audit_report("t")
        assert (report.checked, report.wrong) == (3, 3)
        assert report.wrong_share == 1


def test_without_redis(url: str) -> None:
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        assert cache.get_or_set(ALL, "k", lambda: 1) == 1
        clock.advance(3)
        assert cache.get_or_set(ALL, "k", lambda: 2) == 1
        wait_until(checked(cache, 1))
        assert cache.audit_report("t").wrong == 1


async def test_hits_in_redis_are_audited(url: str) -> None:
    far = Namespace("t", ttl="1h", audit=1, l1=False)
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.get_or_set(far, "k", lambda: 1) == 1
        assert await cache.get_or_set(far, "k", lambda: 1) == 1
        await wait_until_async(checked(cache, 1))


@pytest.mark.parametrize("l1", [True, False])
async def test_hits_of_batches_are_audited(url: str, l1: bool) -> None:
    """Each key by a call of the batch loader with this key alone. One that the source has no more is wrong."""
    namespace, source, calls = Namespace("t", ttl="1h", audit=1, l1=l1), {1: 1, 2: 2, 3: 3}, list[list[int]]()

    def load(keys: list[int]) -> dict[int, int]:
        calls.append(keys)
        return {key: source[key] for key in keys if key in source}

    async with AsyncCacheManager(redis_url=url) as cache:

        @cache.cached_many(namespace)
        async def f(keys: list[int]) -> dict[int, int]:
            return load(keys)

        cached = dict(source)
        assert await cache.get_or_set_many(namespace, [1, 2, 3], load) == await f([1, 2, 3]) == cached
        source[2] = 20
        del source[3]
        calls.clear()
        assert await cache.get_or_set_many(namespace, [1, 2, 3], load) == await f([1, 2, 3]) == cached
        await wait_until_async(checked(cache, 6))
        assert sorted(calls) == [[1], [1], [2], [2], [3], [3]]
        report = await cache.audit_report("t")
        assert (report.checked, report.wrong) == (6, 4)


def test_hits_of_batches_in_blocking_code_are_audited(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        @cache.cached_many("t", "1h", audit=1)
        def f(keys: list[int]) -> dict[int, int]:
            return {key: next(numbers) for key in keys}

        @cache.cached_many("t", "1h")
        def silent(keys: list[int]) -> dict[int, int]:
            return {key: next(numbers) for key in keys}

        numbers = iter(range(100))
        assert f([1, 2]) == f([1, 2]) == {1: 0, 2: 1}
        assert silent([1]) == silent([1])
        wait_until(checked(cache, 2))
        report = cache.audit_report("t")
        assert (sum(row.hits for row in report.rows), report.checked, report.wrong) == (2, 2, 2)


async def test_what_a_batch_loader_fails_to_load_has_failed(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        for answer in (1, OSError()):
            await cache.get_or_set_many(ALL, ["k"], lambda keys, answer=answer: {"k": answer})  # type: ignore[misc]
        await wait_until_async(checked(cache, 1))
        (row,) = (await cache.audit_report("t")).rows
        assert (row.checked, row.failed) == (0, 1)
        for answer in (1, RetryLater(30)):
            await cache.get_or_set_many(ALL, ["other"], lambda keys, answer=answer: {"other": answer})  # type: ignore[misc]
        await wait_until_async(lambda: state_of(cache).stats.of("t").pauses == 1)


async def test_hits_in_redis_under_a_policy_are_audited(url: str) -> None:
    patient, silent = (Namespace("t", ttl="1h", grace="1h", l1=False, audit=share) for share in (1, 0))
    async with AsyncCacheManager(redis_url=url) as cache:
        made = cache.cached(patient, key="made")(lambda: 1)
        spared = cache.cached(patient, key="spared", audit=0)(lambda: 1)
        other = cache.cached(silent, key="other")(lambda: 1)
        for _ in range(2):
            await cache.get_or_set(patient, "k", lambda: 1)
            await asyncio.to_thread(lambda: (made(), spared(), other()))
        await wait_until_async(checked(cache, 2))
        assert sum(row.hits for row in (await cache.audit_report("t")).rows) == 2


@pytest.mark.parametrize(
    "make", [lambda: math.nan, lambda: np.array([1.0, 2.0]), lambda: pd.DataFrame({"a": [1, math.nan]})]
)
def test_objects_of_a_local_namespace_are_compared_by_their_bytes_if_they_have_some(make: Callable[[], Any]) -> None:
    local = Namespace("t", ttl="1h", audit=1, local=True)
    with CacheManager(redis_enabled=False) as cache:
        for _ in range(2):
            cache.get_or_set(local, "same", make)
        for number in range(2):
            cache.get_or_set(local, "other", lambda number=number: [number, make()])  # type: ignore[misc]
        wait_until(checked(cache, 2))
        report = cache.audit_report("t")
        assert (report.checked, report.wrong) == (2, 1)


async def test_a_fleet_has_one_report(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as other:
        for number, cache in enumerate((one, other)):
            await cache.get_or_set(ALL, f"k{number}", lambda: 1)
            await cache.get_or_set(ALL, f"k{number}", lambda: 1)
            await wait_until_async(checked(cache, 1))
        await other.aclose()
        await wait_until_answered(lambda: _has_checked(one, 2))
        assert (await one.audit_report("none")).rows == ()
        # The history of minutes names no namespace.
        assert (await one.get_history(1))[-1]["hit_count"] >= 0


async def _has_checked(cache: AsyncCacheManager, count: int) -> bool:
    return (await cache.audit_report("t")).checked == count


async def test_on_a_cluster(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as cache:
        for number in range(6):
            for _ in range(2):
                await cache.get_or_set(ALL, f"k{number}", lambda: 1)
        await wait_until_async(lambda: sum(each.checked for each in state_of(cache).stats.audits.of("t").values()) >= 4)
        assert (await cache.audit_report("t")).wrong == 0


async def test_a_hot_value_is_checked_once_for_each_age(url: str) -> None:
    calls: list[int] = []
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            for _ in range(50):
                await cache.get_or_set(ALL, "k", lambda: calls.append(1))
            await wait_until_async(checked(cache, 1))
            clock.advance(10)
            for _ in range(50):
                await cache.get_or_set(ALL, "k", lambda: calls.append(1))
            await wait_until_async(checked(cache, 2))
            assert 3 <= len(calls) <= 5
            assert sum(row.hits for row in (await cache.audit_report("t")).rows) >= 98


async def test_a_value_that_was_checked_is_not_checked_again_at_that_age(url: str) -> None:
    calls: list[int] = []

    async def load() -> int:
        calls.append(1)
        return 1

    with virtual_clock():
        async with AsyncCacheManager(redis_url=url) as cache:
            for _ in range(10):
                await cache.get_or_set(ALL, "k", load)
                for _ in range(50):
                    # So many turns that an audit would have ended.
                    await asyncio.sleep(0)
            # The load, its audit, and one more if real time has brought the value to the next age.
            assert 2 <= len(calls) <= 3


async def test_no_audit_delays_or_fails_a_call(url: str) -> None:
    go = threading.Event()
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        if len(calls) > 1:
            go.wait()
            raise OSError
        return 1

    async with AsyncCacheManager(redis_url=url) as cache:
        for _ in range(3):
            assert await asyncio.wait_for(cache.get_or_set(ALL, "k", load), 5) == 1
        await wait_until_async(lambda: len(calls) > 1)
        assert state_of(cache).flights.background == 1
        go.set()
        await wait_until_async(checked(cache, 1))
        report = await cache.audit_report("t")
        assert (report.checked, sum(row.failed for row in report.rows)) == (0, 1)


async def test_an_audit_is_within_the_budget_of_its_source(url: str) -> None:
    scarce = Namespace("t", ttl="1h", audit=1, budget="1/h", hard_timeout=0.2)
    calls: list[int] = []
    async with AsyncCacheManager(redis_url=url) as cache:
        for _ in range(3):
            await cache.get_or_set(scarce, "k", lambda: calls.append(1), cost=2)
        await wait_until_async(lambda: not state_of(cache).flights.background)
        assert len(calls) == 1
        assert (await cache.get_stats())["namespaces"]["t"]["spent"] == 2


async def test_what_an_audit_costs_is_spent(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        for _ in range(2):
            await cache.get_or_set(ALL, "k", lambda: 1, cost=2)
        await wait_until_async(checked(cache, 1))
        assert (await cache.get_stats())["namespaces"]["t"]["spent"] == 4


async def test_none_in_an_outage(proxy: Proxy) -> None:
    calls: list[int] = []
    async with AsyncCacheManager(redis_url=f"redis://127.0.0.1:{proxy.port}", op_timeout=0.2) as cache:
        await cache.get_or_set(ALL, "k", lambda: calls.append(1))
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not state_of(cache).reachable)
        for _ in range(5):
            await cache.get_or_set(ALL, "k", lambda: calls.append(1))
        assert state_of(cache).flights.background == 0
        assert len(calls) == 1


def test_nothing_is_drawn_without_a_share() -> None:
    with CacheManager(redis_enabled=False) as cache:
        for _ in range(5):
            cache.get_or_set("t", "k", lambda: 1)
        assert cache.audit_report("t") == AuditReport("t", ())
    for bad in (-0.1, 1.1, math.nan, True, "1"):
        with pytest.raises(CacheArgumentError, match="audit"):
            Namespace("t", audit=bad)  # type: ignore[arg-type]


def test_the_smallest_share_is_drawn_next_to_never() -> None:
    assert not any(map(Sampler.drawn, [Sampler(5e-324)] * 100))


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_each_hit_is_drawn_with_the_same_probability(share: float) -> None:
    sampler, hits = Sampler(share), 60_000
    drawn = sum(sampler.drawn() for _ in range(hits))
    assert abs(drawn - hits * share) <= 6 * math.sqrt(hits * share * (1 - share))


class _Unequal:
    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


def test_any_types_are_compared() -> None:
    assert is_same((b"a", 1), (b"a", 2)) is True
    assert is_same((b"a", {"x": 1, "y": 2}), (b"b", {"y": 2, "x": 1})) is True
    assert is_same((b"a", 1), (b"b", 2)) is False
    one, other = np.array([1, 2]), np.array([1, 3])
    assert is_same((b"a", one), (b"b", other)) is False
    assert is_same((None, one), (None, other)) is None
    assert is_same((b"a", _Unequal()), (b"b", _Unequal())) is False
    assert is_same((None, _Unequal()), (None, _Unequal())) is None
    assert is_same((b"a", math.nan), (b"a", math.nan)) is True


# -- the estimator ----------------------------------------------------------------------------------------------------


def rows(*found: tuple[int, int, int]) -> AuditReport:
    """Return a report of hits, checks and wrong values, from the bucket up to one second on, and an older row."""
    start, found = EDGES.index(1.0), (*found, (1, 1, 0))
    return AuditReport("t", tuple(
        AuditRow(EDGES[start + number - 1], EDGES[start + number], *each, 0) for number, each in enumerate(found)
    ))  # fmt: skip


def test_the_longest_ttl_that_does_is_proposed() -> None:
    report = rows((1000, 1000, 0), (1000, 1000, 1), (1000, 1000, 2), (1000, 1000, 300))
    proposal = report.propose_ttl(0.01)
    assert proposal.ttl == 5.0
    assert proposal.at_most is not None
    assert 0.001 < proposal.at_most < 0.01
    assert "5 s" in str(proposal)
    assert report.propose_ttl(0.5).ttl == 10.0
    assert "a longer one may do" in report.propose_ttl(0.5).reason


def test_too_few_checks_are_said_to_be_too_few() -> None:
    proposal = rows((50, 50, 0)).propose_ttl(0.01)
    assert proposal.ttl is None
    assert "Too few checks: 51. At least 268 are needed" in proposal.reason
    assert rows((268, 268, 0)).propose_ttl(0.01).ttl == 1.0
    assert "No TTL is short enough" in rows((1000, 1000, 100)).propose_ttl(0.01).reason
    assert AuditReport("t", ()).propose_ttl().ttl is None
    for bad in (0, 1, 2, "x", math.nan):
        with pytest.raises(CacheArgumentError, match="share"):
            rows((1, 1, 0)).propose_ttl(bad)  # type: ignore[arg-type]


def test_what_was_not_checked_is_not_proposed() -> None:
    assert rows((1000, 1000, 0), (1000, 0, 0), (1000, 1000, 0)).propose_ttl(0.01).ttl == 1.0


@given(st.floats(0, 1), st.integers(1, 10_000), st.floats(0.1, 4))
def test_wilsons_bound_is_above_the_estimate_and_falls_with_the_checks(share: float, checks: int, z: float) -> None:
    upper = wilson_upper(share, checks, z)
    assert share - 1e-9 <= upper <= 1
    assert wilson_upper(share, 2 * checks, z) <= upper + 1e-9


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=6),
    st.floats(0.001, 0.5),
)
def test_a_proposal_keeps_what_it_promises_by_its_own_figures(found: list[tuple[int, int, int]], share: float) -> None:
    report = rows(*[(max(hits, checks), checks, min(checks, wrong)) for hits, checks, wrong in found])
    proposal = report.propose_ttl(share)
    if proposal.ttl is not None:
        assert proposal.at_most is not None
        assert proposal.expected is not None
        assert proposal.expected <= proposal.at_most <= share
        # A larger share allows no shorter TTL.
        wider = report.propose_ttl(min(0.99, 2 * share)).ttl
        assert wider is not None
        assert wider >= proposal.ttl


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Sources that change by chance: with the TTL that is proposed, fewer hits are wrong than was asked for."""
    random, failed, proposed = Random(4711), 0, 0
    for _ in range(100):
        rate = 10 ** random.uniform(-4.5, -2)  # changes a second
        counts = AuditCounts()
        for _ in range(1000):
            age = random.uniform(0, 60)
            for kind in ("hits", "checked"):
                counts.count("t", bucket_of(age), kind)
            counts.count("t", bucket_of(age), "wrong", random.random() < 1 - math.exp(-rate * age))
        ttl = report_of("t", counts.of("t")).propose_ttl(0.05).ttl
        if ttl is not None:
            assert ttl <= 50
            proposed += 1
            failed += 1 - (1 - math.exp(-rate * ttl)) / (rate * ttl) > 0.05
    assert proposed > 50
    assert failed <= 0.1 * proposed


@given(st.dictionaries(st.tuples(st.text(max_size=5), st.integers(0, 21)), st.integers(1, 10**6), max_size=5))
def test_counts_travel_as_fields(found: dict[tuple[str, int], int]) -> None:
    counts = AuditCounts()
    for (name, bucket), times in found.items():
        counts.count(name, bucket, "checked", times)
    again = AuditCounts.from_fields(
        [*counts.fields().items(), ("n:h1:t", 5), ("a:x1:t", 5), ("a:h99999:t", 1), ("", 0)]
    )
    for name in counts.namespaces():
        assert again.of(name) == counts.of(name)
