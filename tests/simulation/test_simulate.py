"""What candidates would have done: lives, sizes, rules of eviction, samples; and what is said about them."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import cachetools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import CacheArgumentError, CacheManager, CacheTypeError, Namespace
from magnus_cache._engine.memory.entry import Entry
from magnus_cache.simulation import RULES, Candidate, RecordingError, Simulation, combinations, simulate
from magnus_cache.simulation.memories import OPTIMUM, TRUST, Time, make_memory
from magnus_cache.testing import virtual_clock
from magnus_cache.testing.clock import VirtualClock
from tests.support.effort import examples

ROOM: Final = 2**30


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def hits_of(rule: str, keys: list[int], most: int) -> int:
    """Return how many accesses are hits in a memory for so many entries."""
    memory, hits = make_memory(rule, most, ROOM, Time()), 0
    for at, key in enumerate(keys):
        memory.next_use = next((at + 1.0 + gap for gap, later in enumerate(keys[at + 1 :]) if later == key), 1e18)
        name = b"m:t:%d" % key
        if memory.hit(name) is not None:
            hits += 1
        else:
            memory.keep(name, Entry(None, None, 2e18, TRUST, 10))
    return hits


# -- rules of eviction --------------------------------------------------------------------------------------------


@given(keys=st.lists(st.integers(0, 7), max_size=60), most=st.integers(1, 5))
def test_no_rule_has_more_hits_than_the_optimum(keys: list[int], most: int) -> None:
    best = hits_of(OPTIMUM, keys, most)
    assert all(hits_of(rule, keys, most) <= best for rule in RULES)


@settings(max_examples=examples(60))
@given(keys=st.lists(st.integers(0, 4), max_size=12), most=st.integers(1, 3))
def test_the_optimum_is_the_best_that_can_be_done(keys: list[int], most: int) -> None:
    """By trying all that can be evicted, or not be stored, at each miss."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for key in keys:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            choices = [held] if key in held else [held, *({*held, key} - {gone} for gone in {*held, -1})]
            for choice in choices:
                if len(choice) <= most:
                    kept = frozenset(choice)
                    after[kept] = max(after.get(kept, 0), hits + (key in held))
        states = after
    assert hits_of(OPTIMUM, keys, most) == max(states.values())


@given(keys=st.lists(st.integers(0, 9), max_size=80), most=st.integers(1, 6))
def test_lru_and_lfu_are_those_of_the_library_for_it(keys: list[int], most: int) -> None:
    for rule, kind in (("lru", cachetools.LRUCache), ("lfu", cachetools.LFUCache)):
        cache: Any = kind(most)
        hits = 0
        for key in keys:
            if cache.get(key) is not None:
                hits += 1
            else:
                cache[key] = key + 1
        assert hits_of(rule, keys, most) == hits


def test_tinylfu_keeps_what_is_asked_for_often_through_a_scan() -> None:
    rnd = random.Random(1)
    keys: list[int] = []
    for scanned in range(3_000):
        keys += [int(rnd.paretovariate(1.2)) % 50, 1_000 + scanned]
    found = {rule: hits_of_many(rule, keys, 30) for rule in ("tinylfu", "lru")}
    assert found["tinylfu"] > 1.05 * found["lru"]


def hits_of_many(rule: str, keys: list[int], most: int) -> int:
    memory, hits = make_memory(rule, most, ROOM, Time()), 0
    for key in keys:
        name = b"m:t:%d" % key
        if memory.hit(name) is not None:
            hits += 1
        else:
            memory.keep(name, Entry(None, None, 2e18, TRUST, 10))
    return hits


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_keeps_its_bounds_and_forgets_what_it_is_told(rule: str) -> None:
    clock = Time()
    memory = make_memory(rule, 100, 20 * 400, clock)
    for key in range(200):
        memory.keep(b"m:t:%d" % key, Entry(None, None, 50.0, TRUST, 60))
    kept = [key for key in range(200) if memory.hit(b"m:t:%d" % key) is not None]
    assert 10 <= len(kept) <= 22
    assert memory.evictions >= 178
    memory.invalidate(b"m:t:%d" % kept[0])
    assert memory.stale(b"m:t:%d" % kept[0]) is None
    memory.clear(b"m:other:")
    assert memory.hit(b"m:t:%d" % kept[1]) is not None
    clock.now = 51
    assert memory.hit(b"m:t:%d" % kept[1]) is None
    clock.now = 0
    memory.clear(b"m:t:")
    assert all(memory.hit(b"m:t:%d" % key) is None for key in kept)
    memory.keep(b"m:t:large", Entry(None, None, 50.0, TRUST, 10_000))
    assert memory.hit(b"m:t:large") is None


# -- candidates -----------------------------------------------------------------------------------------------------


def few_hot_ones(rnd: random.Random) -> int:
    return int(rnd.paretovariate(0.7)) % 60


def record_day(
    folder: Path, clock: VirtualClock, key_of: Callable[[random.Random], int] = few_hot_ones, rounds: int = 1_200,
    **more: Any,
) -> CacheManager:  # fmt: skip
    """Record a day of quotes that change now and then, and of reports that do not; return the closed cache."""
    cache, rnd, versions = CacheManager(redis_enabled=False), random.Random(4), dict[int, int]()

    @cache.cached(Namespace("quotes", ttl=60.5), key="{key}")
    def quote(key: int) -> str:
        return f"{key} {versions.get(key, 0)}"

    @cache.cached(Namespace("reports", ttl=600.5), key="{key}")
    def report(key: int) -> str:
        return f"report {key}"

    with cache.record_accesses(folder, **more):
        for round_ in range(rounds):
            key = key_of(rnd)
            (quote if rnd.random() < 0.7 else report)(key)
            if rnd.random() < 0.05:
                versions[key] = versions.get(key, 0) + 1
            if round_ % 4 == 0:
                clock.advance(rnd.random() * 9)
    cache.close()
    return cache


def rates(found: Simulation) -> list[float]:
    return [result.total.hit_rate for result in found.results]


def test_a_longer_life_has_more_hits_fewer_loads_and_more_outdated_values(tmp_path: Path, clock: VirtualClock) -> None:
    record_day(tmp_path, clock)
    lives = combinations({"ttl": ["15s", "60.5s", "5m", "1h"]}, ("quotes",))
    found = simulate(tmp_path, lives, namespaces=["quotes"], cost=0.5)
    assert found.agrees
    assert rates(found) == sorted(rates(found))
    assert rates(found)[0] < rates(found)[-1]
    loads = [result.total.loads for result in found.results]
    assert loads == sorted(loads, reverse=True)
    assert [result.total.money for result in found.results] == [0.5 * count for count in loads]
    outdated = [result.total.outdated_rate for result in found.results]
    assert outdated == sorted(outdated)
    assert outdated[0] < 0.5 * outdated[-1]
    # The one with the recorded life is the recorded one.
    assert found.results[1].total == found.as_recorded.total
    assert set(found.as_recorded.namespaces) == {"quotes"}


def test_a_candidate_for_one_namespace_leaves_the_others_alone(tmp_path: Path, clock: VirtualClock) -> None:
    record_day(tmp_path, clock)
    (result,) = simulate(tmp_path, [Candidate(ttl=1, namespaces=("quotes",))]).results
    recorded = simulate(tmp_path).as_recorded
    assert result.namespaces["reports"] == recorded.namespaces["reports"]
    assert result.namespaces["quotes"].hit_rate < 0.5 * recorded.namespaces["quotes"].hit_rate


def test_values_that_did_not_change_are_not_outdated(tmp_path: Path, clock: VirtualClock) -> None:
    record_day(tmp_path, clock)
    (result,) = simulate(tmp_path, [Candidate(ttl="1d")], namespaces=["reports"]).results
    assert result.total.outdated == 0


def test_a_larger_memory_has_more_hits_and_the_knee_is_found(tmp_path: Path, clock: VirtualClock) -> None:
    record_day(tmp_path, clock)
    found = simulate(tmp_path, combinations({"l1_max_entries": [1_000, 5, 120, 20]}))
    by_size = sorted(found.results, key=lambda result: result.candidate.l1_max_entries or 0)
    assert [result.total.hit_rate for result in by_size] == sorted(rates(found))
    assert by_size[0].evictions > by_size[-1].evictions == 0
    knee = found.knee
    assert knee is not None
    assert knee.candidate.l1_max_entries == 120
    # Rules of eviction have no order, and two points no bend.
    assert simulate(tmp_path, combinations({"policy": ["car", "lru", "lfu"]})).knee is None
    assert simulate(tmp_path, combinations({"l1_max_entries": [5, 20]})).knee is None


def test_redis_with_a_bound_loses_what_was_used_least_lately(url: str, tmp_path: Path) -> None:
    with CacheManager(redis_url=url) as cache, cache.record_accesses(tmp_path):
        load = cache.cached(Namespace("far", l1=False), key="{key}")(lambda key: "v" * 100)
        for _ in range(3):
            for key in range(30):
                load(key)
    found = simulate(tmp_path, combinations({"l2_max_bytes": [1_000, 2**20]}))
    assert found.difference == 0
    tight, roomy = (result.total.l2_hits for result in found.results)
    assert tight < 5
    assert roomy == 60
    assert simulate(tmp_path, [Candidate(l1=True)]).results[0].total.l1_hits == 60


def test_errors_and_stale_values_follow_the_candidate(tmp_path: Path, clock: VirtualClock) -> None:
    cache = CacheManager(redis_enabled=False)

    @cache.cached("t", ttl=5.5, key="{key}")
    def fails(key: int) -> str:
        raise LookupError(key)

    with cache.record_accesses(tmp_path):
        for _ in range(20):
            with pytest.raises(LookupError):
                fails(1)
            clock.advance(1.3)
    cache.close()
    found = simulate(tmp_path, [Candidate(negative="4s"), Candidate(negative=0)])
    assert found.difference == 0
    assert found.as_recorded.total.failures == 20
    remembered, not_remembered = (result.total for result in found.results)
    assert remembered.loads == remembered.failures == 5
    assert remembered.errors == 15
    assert not_remembered.loads == 20


def test_a_sample_has_the_rates_of_all_keys(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SHARDS: three of ten keys, in as much of the memory."""
    # The secret decides which keys are in the sample.
    monkeypatch.setattr("magnus_cache._engine.coordination.recordings.secrets.token_bytes", lambda size: b"4" * size)
    for name, share in (("all", 1.0), ("some", 0.3)):
        record_day(tmp_path / name, clock, lambda rnd: int(rnd.random() ** 2 * 2_000), 6_000, share=share)
    sizes = combinations({"ttl": ["1d"], "l1_max_entries": [100, 300, 1_000]})
    every, some = simulate(tmp_path / "all", sizes), simulate(tmp_path / "some", sizes)
    assert some.share == pytest.approx(0.3)
    assert some.recorded.accesses == every.recorded.accesses == 6_000
    assert some.agrees
    assert rates(every)[0] + 0.02 < rates(every)[-1]
    assert rates(some) == pytest.approx(rates(every), abs=0.04)
    loads = [[result.total.loads for result in found.results] for found in (some, every)]
    assert loads[0] == pytest.approx(loads[1], rel=0.15)


def test_what_loads_cost_is_recorded(tmp_path: Path) -> None:
    with CacheManager(redis_enabled=False) as cache, cache.record_accesses(tmp_path):
        fixed = cache.cached("fixed", ttl=60, cost=0.25)(lambda key: key)
        by_value = cache.cached("by_value", ttl=60, cost=lambda value: value / 10)(lambda key: key)
        for key in (1, 2, 3, 1, 2, 3):
            fixed(key)
            by_value(key)
    found = simulate(tmp_path, [Candidate(l1_max_entries=0)], cost=99)
    each = [result.namespaces for result in (found.as_recorded, *found.results)]
    assert [row["fixed"].money for row in each] == pytest.approx([0.75, 1.5])
    assert [row["by_value"].money for row in each] == pytest.approx([0.6, 1.2])


def test_recordings_of_different_shares_are_not_mixed(tmp_path: Path) -> None:
    with CacheManager(redis_enabled=False) as cache:
        for share in (0.9, 1.0):
            with cache.record_accesses(tmp_path, share=share):
                cache.get_many("t", range(20))
    with pytest.raises(RecordingError, match=r"different shares of the keys \(0.9, 1\)"):
        simulate(tmp_path)


def test_a_namespace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with CacheManager(redis_enabled=False) as cache, cache.record_accesses(tmp_path):
        cache.get("prices", 1)
    with pytest.raises(RecordingError, match="nothing was recorded of the namespace 'price'; there are prices"):
        simulate(tmp_path, namespaces=["price"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 0}, "ttl"), ({"ttl": "soon"}, "ttl"), ({"policy": "fifo"}, "'fifo' is none of car, lru"),
        ({"l1_max_entries": -1}, "l1_max_entries: a number of 0 or more"), ({"jitter": 1}, "from 0 to below 1"),
        ({"early": -1}, "early"), ({"l2_max_bytes": "much"}, "l2_max_bytes"),
    ],
    ids=["zero", "text", "policy", "entries", "jitter", "early", "bytes"],
)  # fmt: skip
def test_a_candidate_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheArgumentError, match=message):
        Candidate(**options)


def test_other_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    namespaces: Any = "prices"
    with pytest.raises(CacheTypeError, match="give a tuple of names"):
        Candidate(namespaces=namespaces)
    with pytest.raises(CacheArgumentError, match="these are 400 combinations, more than 200"):
        combinations({"ttl": range(1, 21), "grace": range(20)})
    with pytest.raises(CacheArgumentError, match="cost: a number of 0 or more"):
        simulate(tmp_path, cost=-1)


def test_a_label_says_what_is_replaced() -> None:
    assert Candidate().label == "as recorded"
    candidate = Candidate(ttl="90s", grace="2h", l1_max_entries=10, l1_max_bytes=2**21, policy="lru", jitter=0.5)
    assert candidate.label == "ttl=90s, grace=2h, jitter=0.5, l1_max_entries=10, l1_max_bytes=2MiB, policy=lru"
    assert combinations({}) == []
