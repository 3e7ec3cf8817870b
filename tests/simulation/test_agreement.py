"""A simulation of the recorded settings has the figures that the cache itself has counted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magnus_cache import CacheManager
from magnus_cache.simulation import Candidate, Figures, Simulation, simulate
from magnus_cache.testing import virtual_clock
from magnus_cache.testing.clock import VirtualClock
from tests.support.recordings import Traffic, record_traffic

POLICIES: Final = ("car", "lru", "clock", "sieve", "s3fifo")


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def local(**settings: Any) -> CacheManager:
    return CacheManager(redis_enabled=False, **settings)


def expect_the_same(found: Simulation, counted: Mapping[str, int]) -> None:
    """Expect what a cache has counted, in the recording and in its simulation."""
    for figures in (found.recorded, found.as_recorded.total):
        assert figures.misses == counted["miss_count"]
        assert figures.stale == counted["stale_hits"]
        assert figures.errors == counted["negative_hits"]
        assert figures.hits == counted["l1_hits"] + counted["l2_hits"]
        assert figures.l1_hits == counted["l1_hits"]
    assert found.agrees
    assert found.difference == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_evicts_in_the_simulation_what_it_evicts_in_memory(
    policy: Any, tmp_path: Path, clock: VirtualClock
) -> None:
    counted = record_traffic(tmp_path, clock, Traffic(7), [local(l1_policy=policy, l1_max_entries=12)])
    expect_the_same(simulate(tmp_path), counted)


@pytest.mark.parametrize(
    ("policy", "failing"),
    [
        ({"grace": 11.3}, 0.3),
        ({"grace": 11.3, "retry": 0.7}, 0.5),
        ({"negative": {LookupError: 1.7}}, 0.4),
        ({"grace": 11.3, "negative": {LookupError: 1.7}}, 0.4),
        ({"l1_ttl": 1.9}, 0.0),
        ({"jitter": 0.7}, 0.0),
        ({"l1_max_entries": 6}, 0.0),
        ({"local": True}, 0.0),
    ],
    ids=["grace", "retry", "negative", "grace and negative", "l1_ttl", "jitter", "l1_max_entries", "local"],
)
def test_each_option_of_a_namespace_does_in_the_simulation_what_it_does_in_the_cache(
    policy: dict[str, Any], failing: float, tmp_path: Path, clock: VirtualClock
) -> None:
    counted = record_traffic(tmp_path, clock, Traffic(11, failing=failing, policy=policy), [local()])
    expect_the_same(simulate(tmp_path), counted)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), entries=st.integers(3, 60), grace=st.sampled_from([0.0, 5.3]),
    policy=st.sampled_from(POLICIES), failing=st.sampled_from([0.0, 0.3]), acts=st.booleans(),
)  # fmt: skip
def test_random_traffic_is_reproduced(
    tmp_path_factory: pytest.TempPathFactory, clock: VirtualClock,
    seed: int, entries: int, grace: float, policy: Any, failing: float, acts: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("random")
    traffic = Traffic(seed, 200, failing, acts=acts, policy={"grace": grace})
    counted = record_traffic(folder, clock, traffic, [local(l1_policy=policy, l1_max_entries=entries)])
    expect_the_same(simulate(folder), counted)


def test_processes_that_share_redis_are_merged(url: str, tmp_path: Path, clock: VirtualClock) -> None:
    """What one loads, the others find in Redis; what one deletes is gone for all."""
    caches = [CacheManager(redis_url=url, l1_max_entries=10) for _ in range(3)]
    counted = record_traffic(tmp_path, clock, Traffic(5), caches)
    found = simulate(tmp_path)
    assert found.processes == 3
    assert found.recorded.hits == counted["l1_hits"] + counted["l2_hits"]
    # What two processes do within a millisecond has no certain order, and may have the other one in the simulation.
    assert found.difference < 0.03
    assert found.as_recorded.total.loads < 1.1 * found.recorded.misses
    alone = simulate(next(tmp_path.iterdir())).recorded
    assert alone.accesses < found.recorded.accesses


def test_processes_without_redis_share_nothing(tmp_path: Path, clock: VirtualClock) -> None:
    counted = record_traffic(tmp_path, clock, Traffic(5), [local(), local()])
    found = simulate(tmp_path)
    expect_the_same(found, counted)
    assert "2 fleets" in found.notes[0]


def test_early_refreshes_are_as_many_as_in_the_cache(tmp_path: Path, clock: VirtualClock) -> None:
    """They are random: the hit rate is the same, and loads are as many, about."""
    counted = record_traffic(tmp_path, clock, Traffic(3, 600, policy={"early": 1.0, "grace": 3.0}), [local()])
    found = simulate(tmp_path)
    assert found.agrees
    assert found.as_recorded.total.loads == pytest.approx(counted["loads"], rel=0.1)


def test_values_from_before_the_recording_are_there(tmp_path: Path, clock: VirtualClock) -> None:
    """A recording begins in the midst of the day: what was loaded before is a hit, until it expires."""
    cache = local()

    @cache.cached("t", ttl=30.5)
    def load(key: int) -> str:
        return str(key)

    for key in range(20):
        load(key)
    clock.advance(10)
    with cache.record_accesses(tmp_path):
        for _ in range(6):
            for key in range(20):
                load(key)
            clock.advance(8)
    cache.close()
    found = simulate(tmp_path)
    assert found.recorded.misses == 20
    assert found.as_recorded.total.misses == 20
    # With half the life, the same values end earlier; with a longer one, they never do.
    assert simulate(tmp_path, [Candidate(ttl=15)]).results[0].total.misses > 20
    assert simulate(tmp_path, [Candidate(ttl=300)]).results[0].total.misses == 0


def test_a_simulation_that_does_not_agree_says_so(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_traffic(tmp_path, clock, Traffic(7), [local(l1_max_entries=10)])
    assert simulate(tmp_path).agrees
    monkeypatch.setattr(Figures, "hit_rate", property(lambda figures: 1.0 if figures.load_seconds else 0.5))
    found = simulate(tmp_path)
    assert not found.agrees
    assert found.difference == 0.5
    assert simulate(tmp_path, tolerance=0.5).agrees


def test_a_cache_aside_set_counts_as_the_load_of_a_miss(tmp_path: Path, clock: VirtualClock) -> None:
    """`get`, and `set` what was missed: with a longer life there are fewer such loads, not as many writes."""
    cache = local()
    with cache.record_accesses(tmp_path):
        for round_ in range(12):
            for key in range(10):
                if cache.get("t", key) is None:
                    cache.set("t", key, key, ttl=10.5)
            clock.advance(3.7 if round_ % 2 else 4.1)
    cache.close()
    found = simulate(tmp_path, [Candidate(ttl=1_000), Candidate(ttl=2)])
    assert found.difference == 0
    assert found.as_recorded.total.loads == found.recorded.misses == 40
    assert [result.total.misses for result in found.results] == [10, 120]
    assert all(result.total.cut_short == 0 for result in found.results)
