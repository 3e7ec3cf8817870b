"""`Namespace(l1_max_entries=)`: at most so many entries of a namespace in memory, by whatever way they come there."""

import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.limits import head_of
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache.errors import CacheArgumentError
from tests.support.effort import examples
from tests.support.inside import state_of
from tests.support.memory import FOREVER, Clock, put

FEW = Namespace("few", l1_max_entries=3, ttl=600)
LOOSE = Namespace("few", ttl=600)
OBJECTS = Namespace("objects", l1_max_entries=3, local=True)


def entry(size: int = 10) -> Entry:
    return Entry(1, None, math.inf, FOREVER, size)


def near(manager: Any, namespace: str = "few") -> list[str]:
    """Return the keys of a namespace that are in memory."""
    head = f"magnus:{namespace}:".encode()
    names = [name for name in state_of(manager).memory.names() if head_of(name) == head]
    return sorted(name.removeprefix(head).decode().lstrip("~") for name in names)


# -- each way into memory ---------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[CacheManager, CacheManager], Any]] = {
    "set": lambda one, _: [one.set(FEW, key, key) for key in range(10)],
    "set_many": lambda one, _: one.set_many(FEW, {key: key for key in range(10)}),
    "get_or_set": lambda one, _: [one.get_or_set(FEW, key, lambda: 1) for key in range(10)],
    "get_or_set_many": lambda one, _: one.get_or_set_many(FEW, range(10), lambda keys: dict.fromkeys(keys, 1)),
    "warm_cache": lambda one, _: one.warm_cache(FEW, lambda key: key, range(10)),
    "add": lambda one, _: [one.add(FEW, key, key) for key in range(10)],
    "incr": lambda one, _: [one.incr(FEW, key) for key in range(10)],
    "update": lambda one, _: [one.update(FEW, key, lambda _: 1) for key in range(10)],
    "tagged": lambda one, _: one.set_many(FEW, {key: key for key in range(10)}, tags=["x"]),
    "cached": lambda one, _: [one.cached(FEW)(lambda key: key)(key) for key in range(10)],
    "get": lambda one, other: (
        other.set_many(FEW, {key: key for key in range(10)}) and [one.get(FEW, key) for key in range(10)]
    ),
    "get_many": lambda one, other: (
        other.set_many(FEW, {key: key for key in range(10)}) and one.get_many(FEW, range(10))
    ),
    "large": lambda one, _: [one.set(FEW, key, "x" * 300_000) for key in range(5)],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_limit_is_kept_on_each_way_into_memory(url: str, way: str) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as other:
        WAYS[way](one, other)
        # An announcement may have come in between, so that one is not kept.
        assert 0 < len(near(one)) <= 3
        figures = one.get_stats()["l1_limits"]["few"]
        assert figures["entries"] == len(near(one))
        assert figures["evictions"] == one.get_stats()["evictions"] > 0
        if way in {"set", "set_many", "get_many"}:
            assert one.get_many(FEW, range(10)) == {key: key for key in range(10)}, "Redis has them all"
            assert len(near(one)) <= 3


@pytest.mark.parametrize("entries", [10_000, 40_000])
def test_objects_of_a_local_namespace_have_a_limit_too(entries: int) -> None:
    with CacheManager(redis_enabled=False, l1_max_entries=entries) as manager:
        load = manager.cached(OBJECTS)(lambda key: object())
        first = load(0)
        for key in range(1, 20):
            load(key)
            assert load(0) is first, "what is used stays"
        assert len(near(manager, "objects")) == 3


@pytest.mark.anyio
async def test_the_limit_is_kept_by_async_callers(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set_many(FEW, {key: key for key in range(10)})
        assert near(manager) == ["7", "8", "9"]
        assert await manager.get_many(FEW, range(10)) == {key: key for key in range(10)}
        assert len(near(manager)) == 3


def test_the_limit_is_kept_by_a_batch_that_is_read_together(url: str) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as other:
        other.set_many(FEW, {key: key for key in range(20)})
        # From here on, the epochs of the namespace are known, and a batch is judged as a whole.
        one.get_many(LOOSE, [0, 1])
        assert len(one.get_many(FEW, range(10))) == 10
        assert len(near(one)) <= 3


# -- which one goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["car", "lru", "clock", "sieve", "s3fifo"])
def test_what_is_used_stays_and_what_is_new_too(policy: Any) -> None:
    with CacheManager(redis_enabled=False, l1_policy=policy) as manager:
        for key in range(20):
            manager.set(FEW, key, key)
            assert manager.get(FEW, 0) == 0, "it is in use"
            assert str(key) in near(manager)
        assert len(near(manager)) == 3


def test_where_all_are_used_one_goes() -> None:
    with CacheManager(redis_enabled=False) as manager:
        for key in range(20):
            manager.set(FEW, key, key)
            assert str(key) in near(manager), "what was just stored stays"
            for there in map(int, near(manager)):
                assert manager.get(FEW, there) == there
        assert len(near(manager)) == 3


def test_what_has_left_otherwise_makes_room() -> None:
    with CacheManager(redis_enabled=False) as manager:
        manager.set_many(FEW, {"a": 1, "b": 2, "c": 3})
        manager.delete(FEW, "b")
        manager.set(FEW, "d", 4)
        assert near(manager) == ["a", "c", "d"]
        manager.clear(FEW)
        manager.set_many(FEW, {"e": 1, "f": 2})
        assert manager.get_stats()["l1_limits"]["few"]["evictions"] == 0
        manager.set(FEW, "e", 5)
        manager.set(FEW, "g", 6)
        assert near(manager) == ["e", "f", "g"]


# -- beside others ----------------------------------------------------------------------------------------------


def test_other_namespaces_keep_their_room(url: str) -> None:
    with CacheManager(redis_url=url) as manager:
        manager.set_many("others", {key: key for key in range(50)})
        manager.set_many("fewer", {key: key for key in range(50)})
        manager.set_many(FEW, {key: key for key in range(50)})
        assert (len(near(manager, "others")), len(near(manager, "fewer")), len(near(manager))) == (50, 50, 3)


def test_another_policy_of_the_name_evicts_nothing_and_counts() -> None:
    with CacheManager(redis_enabled=False) as manager:
        manager.set_many(LOOSE, {f"l{key}": key for key in range(5)})
        manager.set(FEW, "a", 1)
        assert len(near(manager)) == 3, "what was there before counts"
        manager.set_many(LOOSE, {f"m{key}": key for key in range(5)})
        assert len(near(manager)) == 8
        manager.set(FEW, "b", 1)
        assert len(near(manager)) == 3
        assert manager.get(FEW, "b") == 1


def test_processes_have_limits_of_their_own(url: str) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as other:
        one.set_many(FEW, {key: key for key in range(10)})
        assert len(other.get_many(LOOSE, range(10))) == 10
        assert (len(near(one)), len(near(other))) == (3, 10)
        assert "l1_limits" not in other.get_stats()


def test_explain_tells_of_the_limit(url: str) -> None:
    with CacheManager(redis_url=url) as manager:
        manager.set_many(FEW, {key: key for key in range(5)})
        found = manager.explain(FEW, 0)
        assert found.level == "l2"
        assert "not in memory, where its namespace has all of its l1_max_entries=3" in found.verdict
        assert "l1_max_entries" not in manager.explain(FEW, 4).verdict


def test_a_limit_of_what_is_not_kept_is_refused() -> None:
    with pytest.raises(CacheArgumentError, match="leave out one of the two"):
        Namespace("t", l1=False, l1_max_entries=3)


# -- what it costs others ---------------------------------------------------------------------------------------


def test_it_costs_a_hit_nothing_and_a_store_elsewhere_a_look() -> None:
    """Counted in calls of Python functions: of a hit the same, whether or not there are limits."""

    def calls(memory: LocalCache, work: Callable[[], object]) -> Counter[str]:
        made: Counter[str] = Counter()
        sys.setprofile(lambda frame, event, _: made.update([frame.f_code.co_name]) if event == "call" else None)
        try:
            work()
        finally:
            sys.setprofile(None)
        return made

    free, limited = LocalCache(100, 10**6), LocalCache(100, 10**6)
    limited.limit(b"m:few:", 3)
    for memory in (free, limited):
        put(memory, b"m:t:a", entry())
    hits = [calls(memory, lambda memory=memory: memory.hit(b"m:t:a")) for memory in (free, limited)]  # type: ignore[misc]
    assert hits[0] == hits[1]
    stores = [calls(memory, lambda memory=memory: put(memory, b"m:t:b", entry())) for memory in (free, limited)]  # type: ignore[misc]
    assert stores[1] - stores[0] == Counter(["_keep_limit", "head_of"])
    assert not stores[0] - stores[1]


# -- whatever comes ---------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"m:%b:%d" % (space, key) for space in (b"a", b"b", b"ab") for key in range(8)])


class Limits(RuleBasedStateMachine):
    """Stores, hits and removals in any order, with and without a cold store."""

    @initialize(hot=st.sampled_from([2, 2, 100]), policy=st.sampled_from(["car", "lru", "sieve"]))
    def begin(self, hot: int, policy: Any) -> None:
        self.clock, self.kept = Clock(), True
        self.memory = LocalCache(16, 10**6, self.clock, policy=policy, hot=hot)
        self.memory.limit(b"m:a:", 5)
        for key in range(6):
            self.store(b"m:a:%d" % key, 1000.0, packed=True)

    @rule(name=NAMES, life=st.sampled_from([3.0, 1000.0]), packed=st.booleans())
    def store(self, name: bytes, life: float, packed: bool) -> None:
        value, payload = (None, b"\x01") if packed else (object(), None)
        made = Entry(value, payload, self.clock.now + life, FOREVER, 10)
        assert put(self.memory, name, made)
        self.kept = self.kept or head_of(name) == b"m:a:"

    @rule(name=NAMES)
    def hit(self, name: bytes) -> None:
        self.memory.hit(name)

    @rule(name=NAMES)
    def invalidate(self, name: bytes) -> None:
        self.memory.invalidate(name)

    @rule(prefix=st.sampled_from([b"m:a:1", b"m:a:", b"m:b:", b"m:ab:"]))
    def clear(self, prefix: bytes) -> None:
        self.memory.clear(prefix)

    @rule(most=st.sampled_from([None, 2, 5, 5, 5]))
    def limit(self, most: int | None) -> None:
        self.memory.limit(b"m:a:", most)
        self.kept = most is None

    @rule()
    def time_passes(self) -> None:
        self.clock.now += 2
        self.memory.sweep()

    @rule(certain=st.sampled_from([False] * 9 + [True]))
    def reset(self, certain: bool) -> None:
        if certain:
            self.memory.reset()
            self.kept = True

    @invariant()
    def the_names_are_those_that_are_there(self) -> None:
        there = {name for name in self.memory.names() if name.startswith(b"m:a:")}
        limited = self.memory.limits.get(b"m:a:")
        if limited is not None:
            assert set(limited.names) == there
            assert limited.most is None or not self.kept or len(there) <= limited.most
        assert len(self.memory) == len(self.memory.names())


TestLimits = Limits.TestCase
TestLimits.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
