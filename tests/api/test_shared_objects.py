"""Mutable objects that callers share, by `share` or `local`: callers of another policy of the same name get none."""

import asyncio
import enum
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from magnus_cache import CacheManager, Namespace, register_namespace, register_type
from magnus_cache._engine.memory.entry import SharedEntry
from tests.support.inside import remembered_calls, state_of
from tests.support.turns import turns_of_others
from tests.support.wait import wait_until, wait_until_async

NAME: Final = "shared"
ALIKE: Final = {"plain": {}, "share": {"share": True}, "local": {"local": True}, "ttl": {"l1_ttl": 600}}
"""Policies of one name."""

SHARING: Final = ("share", "local")
WAYS: Final = ("get", "async get", "get_many", "get_or_set", "function", "coroutine", "variadic")


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    yield
    register_namespace(Namespace(NAME), replace=True)


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


class Caller:
    """Asks for one key in one namespace, in several ways."""

    def __init__(self, cache: CacheManager, namespace: str) -> None:
        self.cache = cache
        self.namespace = namespace

        def function(key: str) -> Any:
            return made()

        def variadic(*keys: str) -> Any:
            return made()

        async def coroutine(key: str) -> Any:
            return made()

        decorate = cache.cached(namespace, key_func=lambda *keys: keys[0])
        self._functions = {"function": decorate(function), "variadic": decorate(variadic)}
        self._coroutine = decorate(coroutine)

    def ask(self, way: str) -> Any:
        cache, namespace = self.cache, self.namespace
        match way:
            case "get":
                return cache.get(namespace, "k")
            case "async get":
                return asyncio.run(cache.aio.get(namespace, "k"))
            case "get_many":
                return cache.get_many(namespace, ["k"]).get("k")
            case "get_or_set":
                return cache.get_or_set(namespace, "k", made)
            case "coroutine":
                return asyncio.run(self._coroutine("k"))
            case _:
                return self._functions[way]("k")


def made() -> Any:
    return {"rows": [1, 2]}


PAIRS: Final = pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ALIKE, 2)))
REGISTERED: Final = pytest.mark.parametrize("registered", [False, True], ids=["two objects", "registered anew"])


@REGISTERED
@PAIRS
@pytest.mark.parametrize("entries", [100, 100_000])
def test_only_those_who_share_get_a_shared_object(entries: int, one: str, other: str, registered: bool) -> None:
    """In a small cache, and in one that keeps the payloads of decoded values."""
    with CacheManager(redis_enabled=False, l1_max_entries=entries) as cache:
        _check(cache, one, other, registered=registered)


@REGISTERED
@PAIRS
def test_those_who_do_not_share_read_again(url: str, one: str, other: str, registered: bool) -> None:
    """Redis has the value, though memory has only the object that others share."""
    with CacheManager(redis_url=url) as cache:
        _check(cache, one, other, registered=registered)


def _check(cache: CacheManager, one: str, other: str, *, registered: bool) -> None:
    policies = {kind: Namespace(NAME, **ALIKE[kind]) for kind in (one, other)}
    callers = {kind: Caller(cache, NAME if registered else policies[kind]) for kind in policies}
    for way, (setter, reader) in itertools.product(WAYS, [(one, other), (other, one)]):
        if registered:
            register_namespace(policies[setter], replace=True)
        cache.set(callers[setter].namespace, "k", made())
        seen: list[Any] = []
        for kind in (reader, setter) * 2:
            if registered:
                register_namespace(policies[kind], replace=True)
            for _ in range(3):
                value = callers[kind].ask(way)
                if value is None:
                    assert "local" in (one, other), (way, kind)
                    continue
                assert value == made(), (way, kind)
                if kind in SHARING:
                    seen.append(value)
                    continue
                assert all(value is not before for before in seen), (way, kind)
                seen.append(value)
                value["rows"].append("spoiled")
                # What was spoiled is compared no more.
                seen[-1] = object()


def test_a_value_that_is_remembered_does_not_become_a_shared_object(memory: CacheManager) -> None:
    """Not in place, when it is decoded anew for one who shares it, as a class was defined again."""
    plain, shared = Namespace(NAME), Namespace(NAME, share=True)

    def define() -> Any:
        @register_type(name="shared-objects.Color")
        class Color(enum.Enum):
            RED = 1

        return Color

    memory.set(plain, "k", [define().RED])
    caller = Caller(memory, plain)
    for _ in range(4):
        caller.ask("function")
    assert remembered_calls(memory) == 1
    define()
    kept = [memory.get(shared, "k") for _ in range(3)]
    assert kept[1] is kept[2]
    assert all(caller.ask("function") is not value for value in kept for _ in range(3))


@pytest.mark.parametrize("entries", [100, 100_000])
def test_a_large_shared_object_is_copied_in_turns(entries: int) -> None:
    """By coroutines that do not share it, whether or not its payload is kept: a loop must not stall."""
    with CacheManager(redis_enabled=False, l1_max_entries=entries) as cache:
        rows = [{"row": number, "text": f"{number}" * 8} for number in range(30_000)]
        cache.set(Namespace(NAME, share=True), "k", rows)

        async def ask() -> tuple[Any, int]:
            async with turns_of_others() as others:
                return await cache.aio.get(Namespace(NAME), "k"), others.count

        first, turns = asyncio.run(ask())
        assert first == rows
        assert turns > 2
        assert asyncio.run(ask())[0] is not first


def test_an_object_of_a_local_namespace_stays_there(memory: CacheManager) -> None:
    """Callers that share another value of that name do not get it: Redis may have one, and they would not see it."""
    thing = object()
    memory.set(Namespace(NAME, local=True), "k", thing)
    assert memory.get(Namespace(NAME, local=True), "k") is thing
    for other in ({}, {"share": True}):
        assert memory.get(Namespace(NAME, **other), "k") is None
        assert memory.get_many(Namespace(NAME, **other), ["k"]) == {}
    assert memory.get(Namespace(NAME, local=True), "k") is thing


def test_a_local_object_does_not_hide_the_value_in_redis(url: str) -> None:
    local, plain = Namespace(NAME, local=True), Namespace(NAME)
    with CacheManager(redis_url=url) as cache:
        caller = Caller(cache, plain)
        for way in WAYS:
            cache.set(plain, "k", ["in Redis"])
            assert cache.get_or_set(local, "k", object) is not None
            cache.set(local, "k", object())
            assert caller.ask(way) == ["in Redis"], way


@pytest.mark.parametrize("led", ["thread", "task"])
def test_who_joins_the_load_of_a_local_object_gets_none(memory: CacheManager, led: str) -> None:
    """A caller of another policy of the same name loads for itself."""
    local, plain = Namespace(NAME, local=True), Namespace(NAME)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        assert go_on.wait(30)
        return made()

    async def slow_on_a_loop() -> Any:
        return await asyncio.to_thread(slow)

    def lead() -> Any:
        if led == "thread":
            return memory.get_or_set(local, "k", slow)
        return asyncio.run(memory.aio.get_or_set(local, "k", slow_on_a_loop))

    with ThreadPoolExecutor(3) as threads:
        leader = threads.submit(lead)
        assert begun.wait(30)
        others = [threads.submit(memory.get_or_set, each, "k", made) for each in (local, plain)]
        wait_until(lambda: state_of(memory).flights.joined == 2)
        go_on.set()
        value, same, other = leader.result(30), *(each.result(30) for each in others)
    assert same is value
    assert other == value
    assert other is not value


def test_callers_of_several_policies_that_wait_for_one_value_get_what_theirs_says(memory: CacheManager) -> None:
    """It is stored, as an object that some of them share, while they wait for their turn to load it."""
    share, plain = Namespace(NAME, share=True), Namespace(NAME)
    memory.set(share, "other", made())
    state = state_of(memory)
    other = state.memory.hit(b"magnus:shared:other")
    assert other is not None
    stored = SharedEntry(made(), None, other.deadline, other.trust, other.size)

    async def ask() -> list[Any]:
        async with state.key_locks.hold(b"magnus:shared:k"):
            policies = (plain, plain, share, plain)
            calls = [asyncio.create_task(memory.aio.get_or_set(each, "k", made)) for each in policies]
            await wait_until_async(lambda: state.flights.joined == 3)
            place = state.memory.reserve(b"magnus:shared:k")
            assert state.memory.fill(place, stored)
            state.memory.release(place)
        return await asyncio.gather(*calls)

    values = [*asyncio.run(ask()), stored.value]
    assert all(value == made() for value in values)
    for one, other in itertools.combinations(values, 2):
        assert one is not other
