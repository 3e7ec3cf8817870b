"""The eviction policies: what each keeps, and how the default compares to an exact LRU."""

import random
from typing import get_args

import pytest

from benchmarks.eviction import SIZE, TRACES, hit_ratio
from magnus_cache import CacheSettings
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.policy import POLICIES, PolicyName
from magnus_cache._engine.memory.store import LocalCache
from tests.support.inside import names_queued
from tests.support.memory import FOREVER, Clock, put

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


def entry() -> Entry:
    return Entry(1, None, float("inf"), FOREVER, 10)


def present(memory: LocalCache, *names: bytes) -> list[bool]:
    return [memory.get_stale(name, trusted=False) is not None for name in names]


def test_settings_offer_every_policy() -> None:
    assert set(NAMES) == set(POLICIES)
    for name in NAMES:
        assert CacheSettings(l1_policy=name).l1_policy == name
    assert CacheSettings().l1_policy == "car"


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("hot", [1 << 14, SIZE // 10])
def test_the_default_is_within_one_percent_of_an_exact_lru(trace: str, hot: int) -> None:
    names = TRACES[trace](30_000)
    exact = hit_ratio(names, SIZE, "lru")
    assert hit_ratio(names, SIZE, "car", hot) >= 0.99 * exact


@pytest.mark.parametrize("policy", NAMES)
def test_a_policy_keeps_the_bound_and_loses_no_entry(policy: PolicyName) -> None:
    memory, chance = LocalCache(50, 10**9, Clock(), policy=policy), random.Random(1)
    for step in range(5_000):
        name = b"%d" % chance.randrange(120)
        match chance.randrange(4):
            case 0:
                memory.hit(name)
            case 1:
                memory.invalidate(name)
            case _:
                put(memory, name, entry())
        assert len(memory) <= 50
        if policy != "lru" and step % 100 == 0:
            assert names_queued(memory) <= 2 * len(memory) + 3 * 64
    for number in range(200):
        put(memory, b"later:%d" % number, entry())
        memory.hit(b"later:%d" % number)
    assert len(memory) == 50
    for number in range(120):
        memory.invalidate(b"%d" % number)
    while memory.shrink():
        pass
    assert (len(memory), memory.bytes) == (0, 0)


@pytest.mark.parametrize("policy", ["car", "s3fifo"])
def test_a_scan_passes_what_is_in_use(policy: PolicyName) -> None:
    """As `warm_cache` with more keys than there is room for. CAR begins with half of the room for what is in use."""
    memory = LocalCache(1_000, 10**9, Clock(), policy=policy)
    for number in range(450):
        put(memory, b"used:%d" % number, entry())
        assert memory.hit(b"used:%d" % number) is not None
    for number in range(10_000):
        put(memory, b"scan:%d" % number, entry())
    assert all(present(memory, *(b"used:%d" % number for number in range(450))))


def test_the_exact_lru_goes_by_the_last_use() -> None:
    memory = LocalCache(3, 10**9, Clock(), policy="lru")
    assert not memory.marked
    for name in (b"a", b"b", b"c"):
        put(memory, name, entry())
    for name in (b"b", b"a", b"c"):
        assert memory.hit(name) is not None
    put(memory, b"d", entry())
    put(memory, b"e", entry())
    assert present(memory, b"a", b"b", b"c", b"d", b"e") == [False, False, True, True, True]


@pytest.mark.parametrize("policy", [name for name in NAMES if name != "lru"])
def test_where_all_are_in_use_one_goes(policy: PolicyName) -> None:
    memory = LocalCache(3_000, 10**9, Clock(), policy=policy)
    for number in range(3_000):
        put(memory, b"%d" % number, entry())
        assert memory.hit(b"%d" % number) is not None
    put(memory, b"new", entry())
    assert (len(memory), memory.evictions) == (3_000, 1)
    assert memory.hit(b"new") is not None
