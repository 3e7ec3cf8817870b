"""`get` remembers the entries of keys; it serves what it would without that, for the same calls in the same state."""

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magnus_cache import CacheManager, Namespace, register_namespace
from magnus_cache.errors import CacheError
from magnus_cache.testing import virtual_clock
from tests.support.effort import examples
from tests.support.inside import remembered_calls, without_remembered_gets


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


class Names(str, Enum):
    QUOTES = "n"


NAMESPACES = [
    "n", "".join(["", "n"]), Namespace("n"), Namespace("n", version=2), Namespace("n", version=3), Names.QUOTES, "m",
    Namespace("m", share=True),
]  # fmt: skip
KEYS = [1, True, "1", b"1", "True", UUID(int=1), (1,), ("1",), 1.0, "", None, [1]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "get", "get", "get", "set", "delete", "clear", "register"]),
        st.sampled_from(NAMESPACES),
        st.sampled_from(KEYS),
        st.sampled_from(["v", 5, None, {"a": [1]}]),
    ),
    max_size=30,
)


PLAIN, ONE, SECOND = NAMESPACES[0], NAMESPACES[2], NAMESPACES[3]


def asked(*steps: tuple[Any, ...]) -> list[Any]:
    return [(*step, "v")[:4] if len(step) == 3 else step for step in steps]


@settings(max_examples=examples(150), deadline=None)
@given(STEPS, st.booleans())
@example(asked(("set", SECOND, "k"), ("get", SECOND, "k"), ("get", ONE, "k"), ("get", PLAIN, "k")), False)
@example(asked(("set", SECOND, "k"), ("get", SECOND, "k"), ("get", ONE, "k"), ("get", PLAIN, "k")), True)
@example(asked(("set", PLAIN, "k"), ("get", PLAIN, "k"), ("register", PLAIN, "k"), ("get", PLAIN, "k")), False)
@example(asked(("set", PLAIN, "k"), ("get", PLAIN, "k"), ("register", PLAIN, "k"), ("get", PLAIN, "k")), True)
@example(asked(("set", PLAIN, 1), ("get", PLAIN, 1), ("get", PLAIN, True), ("get", PLAIN, 1.0)), False)
@example(asked(("set", PLAIN, 1), ("get", PLAIN, 1), ("get", PLAIN, True), ("get", PLAIN, 1.0)), True)
def test_a_get_serves_what_it_would_without_a_memory_of_calls(steps: list[Any], awaited: bool) -> None:
    register_namespace(Namespace("n"), replace=True)
    with CacheManager(redis_enabled=False) as fast, CacheManager(redis_enabled=False) as slow:
        without_remembered_gets(slow)

        def outcome(cache: CacheManager, what: str, namespace: Any, key: Any, value: Any) -> Any:
            try:
                if what == "get":
                    if awaited:
                        return asyncio.run(cache.aio.get(namespace, key, "none"))
                    return cache.get(namespace, key, "none")
                if what == "set":
                    return cache.set(namespace, key, value)
                if what == "delete":
                    return cache.delete(namespace, key)
                return cache.clear(str(namespace))
            except (CacheError, TypeError) as error:
                return type(error), str(error)

        for number, (what, namespace, key, value) in enumerate(steps):
            if what == "register":
                register_namespace(Namespace("n", version=number + 1), replace=True)
                continue
            for _ in range(3):
                ours, expected = outcome(fast, what, namespace, key, value), outcome(slow, what, namespace, key, value)
                assert ours == expected
                assert type(ours) is type(expected)
        for namespace in ("n", "m"):
            ours, expected = (cache.get_stats()["namespaces"].get(namespace) for cache in (fast, slow))
            assert ours == expected
    register_namespace(Namespace("n"), replace=True)


def test_hits_are_remembered(memory: CacheManager) -> None:
    for key in ("a", 1, b"x", UUID(int=1)):
        memory.set("n", key, "v")
        for _ in range(3):
            assert memory.get("n", key) == "v"
    assert remembered_calls(memory) == 4
    assert asyncio.run(memory.aio.get("n", "a")) == "v"
    assert remembered_calls(memory) == 4


def test_a_get_notices_the_end_of_what_it_remembers(memory: CacheManager) -> None:
    with virtual_clock() as clock:
        memory.set("n", "k", "v", ttl=60)
        for _ in range(3):
            assert memory.get("n", "k") == "v"
        clock.advance(61)
        assert memory.get("n", "k") is None


def test_a_get_notices_what_was_invalidated(memory: CacheManager) -> None:
    for again in (lambda: memory.get("n", "k"), lambda: asyncio.run(memory.aio.get("n", "k"))):
        memory.set("n", "k", "v", tags="group")
        assert [again() for _ in range(4)] == ["v"] * 4
        memory.invalidate_tags("group")
        assert again() is None


@pytest.mark.parametrize("awaited", [False, True])
def test_a_get_notices_a_lost_connection(url: str, awaited: bool) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("n", "k", "value")

        def from_memory() -> Any:
            return cache.get_stats()["levels"]["l1"]["count"]

        def lose_trust() -> None:
            for connection in cache._state.topology.connections():
                connection.trust.kill()

        async def ask() -> None:
            assert [await cache.aio.get("n", "k") for _ in range(4)] == ["value"] * 4
            assert from_memory() == 4
            lose_trust()
            assert await cache.aio.get("n", "k") == "value"

        if awaited:
            asyncio.run(ask())
        else:
            assert [cache.get("n", "k") for _ in range(4)] == ["value"] * 4
            assert from_memory() == 4
            lose_trust()
            assert cache.get("n", "k") == "value"
        # Not the value tells it: an announcement would remove an old one from memory, too.
        assert from_memory() == 4, "Redis was asked"


@pytest.mark.parametrize("mode", ["disabled", "bypass"])
def test_a_get_notices_how_the_cache_is_to_be_treated(memory: CacheManager, mode: str) -> None:
    memory.set("n", "k", "v")
    for _ in range(3):
        assert memory.get("n", "k") == "v"
    with getattr(memory, mode)():
        assert memory.get("n", "k") is None
        assert asyncio.run(memory.aio.get("n", "k")) is None


def test_namespaces_are_remembered_within_bounds(memory: CacheManager) -> None:
    for number in range(1_000):
        memory.set(f"n{number}", "k", number)
        for _ in range(3):
            assert memory.get(f"n{number}", "k") == number
    assert remembered_calls(memory) <= 256
