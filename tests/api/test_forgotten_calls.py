"""Entries that leave the memory of a cache are remembered by no function and no `get`."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from magnus_cache import CacheManager, Namespace, register_namespace
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.tiers import HOT
from magnus_cache._engine.runtime.critical import section
from tests.support.inside import known_calls, remembered_calls, remembered_gets, state_of
from tests.support.interrupts import interrupted

THINGS = Namespace("forgotten", local=True)


class Thing:
    """What a local namespace keeps by reference."""


@pytest.fixture
def cache() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False, l1_max_entries=100) as manager:
        yield manager


def _replaced(cache: CacheManager) -> None:
    memory = state_of(cache).memory
    entry = memory.hit(b"magnus:forgotten:k")
    assert entry is not None
    other = Entry(None, b"", entry.deadline, entry.trust, 0)
    assert memory.replace(b"magnus:forgotten:k", entry, other)


def _evicted(cache: CacheManager) -> None:
    for number in range(2_000):
        cache.set("other", number, number)
        cache.get("other", number)
        cache.get("other", number)


WAYS: dict[str, Callable[[CacheManager], object]] = {
    "set again": lambda cache: cache.set(THINGS, "k", Thing()),
    "replaced": _replaced,
    "reset": lambda cache: state_of(cache).memory.reset(),
    "deleted": lambda cache: cache.delete(THINGS, "k"),
    "cleared": lambda cache: cache.clear("forgotten"),
    "evicted": _evicted,
    "closed": lambda cache: cache.close(),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_object_that_left_the_cache_is_free_at_once(cache: CacheManager, way: str) -> None:
    """Without anything else being remembered, and without the collector."""
    cache.set(THINGS, "k", Thing())
    thing = weakref.ref(cache.get(THINGS, "k"))
    for _ in range(3):
        assert cache.get(THINGS, "k") is thing()
    assert remembered_calls(cache) == 1
    gc.disable()
    try:
        WAYS[way](cache)
        assert thing() is None
    finally:
        gc.enable()


def test_an_entry_that_is_packed_is_remembered_no_more() -> None:
    with CacheManager(redis_enabled=False, l1_max_entries=100_000) as cache:
        numbers = range(20_000)
        cache.set_many("t", {number: f"{number}" for number in numbers})
        for number in numbers:
            for _ in range(2):
                assert cache.get("t", number) == f"{number}"
        assert 0 < remembered_gets(cache) == remembered_calls(cache) <= HOT


def test_many_may_remember_an_entry(cache: CacheManager) -> None:
    """As many calls of one key, by instances that come and go: what is gone keeps no place."""
    memory = state_of(cache).memory
    cache.set("t", "k", "v")
    entry = memory.hit(b"magnus:t:k")
    assert entry is not None
    many: list[dict[Any, Any]] = [{} for _ in range(100)]
    for calls in many:
        memory.remember(entry, calls, "k")
    for number in range(1_000):
        calls = {}
        memory.remember(entry, calls, number)
        calls.clear()
        assert known_calls(entry) <= 2 * len(many) + 20
    assert all(calls == {"k": entry} for calls in many)
    # Beyond a limit, remembering starts over.
    many += [{} for _ in range(2_000)]
    for calls in many:
        memory.remember(entry, calls, "k")
    assert many[-1] == {"k": entry}
    assert sum(map(len, many)) <= 1_600
    cache.delete("t", "k")
    assert not any(many)
    # Not one that has left.
    memory.remember(entry, many[0], "k")
    assert not many[0]


def test_nothing_is_remembered_by_what_interrupts_a_step_of_the_cache(cache: CacheManager) -> None:
    cache.set("t", "k", "v")
    with section():
        for _ in range(3):
            assert cache.get("t", "k") == "v"
    assert remembered_calls(cache) == 0


@pytest.mark.parametrize("kind", ["function", "variadic", "get"])
def test_a_call_remembers_nothing_of_a_policy_that_was_replaced_meanwhile(cache: CacheManager, kind: str) -> None:
    """Wherever a hit is when another thread registers the namespace: calls that begin later have the new policy."""
    for place in itertools.count(1):
        name = f"anew-{kind}-{place}"

        def policy(version: int, name: str = name) -> None:
            register_namespace(Namespace(name, version=version), replace=True)

        call = _caller(cache, kind, name)
        policy(2)
        assert call() == 1
        policy(1)
        assert call() == 2
        # Forgets where the value lives, so that the hit below finds out again.
        policy(2)
        with interrupted(place, partial(policy, 1)) as interruption:
            assert call() in (1, 2)
        if not interruption.done:
            break
        for _ in range(3):
            assert call() == 2, interruption.where
    assert place > 20


def _caller(cache: CacheManager, kind: str, name: str) -> Callable[[], int]:
    """Return a call whose values are 1, 2 and so on for each version of a namespace that it meets."""
    count = itertools.count(1)
    if kind == "get":

        def get() -> int:
            value: int | None = cache.get(name, 7)
            if value is None:
                cache.set(name, 7, value := next(count))
            return value

        return get
    if kind == "variadic":

        @cache.cached(name)
        def variadic(*numbers: int) -> int:
            return next(count)

        return partial(variadic, 7)

    @cache.cached(name)
    def function(number: int) -> int:
        return next(count)

    return partial(function, 7)
