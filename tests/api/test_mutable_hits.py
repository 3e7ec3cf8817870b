"""Mutable values on a hit in memory: each caller has a copy of its own, and what is kept for that is counted."""

import asyncio
import dataclasses
import enum
import threading
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from magnus_cache import CacheManager, Namespace, register_type
from magnus_cache._engine import codec
from magnus_cache._engine.store import planned
from tests.support.inside import plan_of

ROWS = [{"id": number, "price": Decimal(number) / 7, "tags": ["a", {"b": [number]}]} for number in range(20)]


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


@pytest.mark.parametrize("way", ["function", "coroutine", "get", "async get", "get_or_set"])
def test_each_caller_has_a_copy_of_its_own(memory: CacheManager, way: str) -> None:
    @memory.cached("t", key="{key}")
    def function(key: str) -> Any:
        return ROWS

    @memory.cached("t", key="{key}")
    async def coroutine(key: str) -> Any:
        return ROWS

    def ask() -> Any:
        match way:
            case "function":
                return function("k")
            case "coroutine":
                return asyncio.run(coroutine("k"))
            case "get":
                return memory.get("t", "k")
            case "async get":
                return asyncio.run(memory.aio.get("t", "k"))
            case _:
                return memory.get_or_set("t", "k", lambda: ROWS)

    memory.set("t", "k", ROWS)
    for _ in range(6):
        value = ask()
        assert value == [dict(row, tags=["a", {"b": [row["id"]]}]) for row in ROWS]
        value[3]["tags"][1]["b"].append("spoiled")
        value[4]["tags"].clear()
        value[5].clear()
        value.pop()
    assert plan_of(memory, b"magnus:t:k") is not None


def test_threads_have_copies_of_their_own(memory: CacheManager) -> None:
    memory.set("t", "k", {"rows": [[1], [2]]})
    problems: list[Any] = []

    def work() -> None:
        for _ in range(2_000):
            value = memory.get("t", "k")
            if value != {"rows": [[1], [2]]}:
                problems.append(value)
            value["rows"][0].append(3)
            value["rows"].pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_what_is_kept_for_copies_is_counted(memory: CacheManager) -> None:
    """The payload, the value that is copied and the plan: within a factor of two of what they take."""
    memory.set("t", "warm", ROWS)
    for _ in range(3):
        memory.get("t", "warm")
    memory.set("t", "k", ROWS)
    before = memory.get_stats()["in_memory_bytes"]
    tracemalloc.start()
    try:
        for _ in range(2):
            memory.get("t", "k")
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert plan_of(memory, b"magnus:t:k") is not None
    assert taken / 2 <= memory.get_stats()["in_memory_bytes"] - before <= taken * 2
    assert memory.delete("t", "k")
    assert memory.delete("t", "warm")
    assert memory.get_stats()["in_memory_bytes"] == 0


def test_a_value_without_room_for_copies_is_decoded() -> None:
    payload = len(codec.encode(ROWS))
    with CacheManager(redis_enabled=False, l1_max_bytes=3 * payload) as cache:
        cache.set("t", "k", ROWS)
        for _ in range(4):
            assert cache.get("t", "k") == ROWS
        assert plan_of(cache, b"magnus:t:k") is None
        assert cache.get_stats()["in_memory_bytes"] <= 3 * payload


def test_a_value_is_planned_once(memory: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its second hit; one that cannot be planned is not looked at again."""
    made: list[Any] = []

    def plan_for(value: Any) -> Any:
        made.append(value)
        return real(value)

    real = codec.plan_for
    monkeypatch.setattr(planned.codec, "plan_for", plan_for)
    memory.set("t", "k", [1])
    memory.set("t", "o", bytearray(b"x"))
    memory.get("t", "k")
    memory.get("t", "o")
    assert made == []
    for _ in range(3):
        assert memory.get("t", "k") == [1]
        assert memory.get("t", "o") == bytearray(b"x")
    assert made == [[1], bytearray(b"x")]


def test_shared_values_stay_shared(memory: CacheManager) -> None:
    shared = Namespace("shared-copies", share=True)
    memory.set(shared, "k", {"a": [1]})
    assert len({id(memory.get(shared, "k")) for _ in range(5)}) <= 2
    assert memory.get(shared, "k") is memory.get(shared, "k")


def test_a_class_that_is_defined_again_is_the_one_that_copies_are_of(memory: CacheManager) -> None:
    def define() -> Any:
        @register_type(name="mutable-hits.Color")
        class Color(enum.Enum):
            RED = 1

        return Color

    old = define()
    memory.set("t", "k", [old.RED])
    for _ in range(4):
        assert memory.get("t", "k") == [old.RED]
    new = define()
    for _ in range(4):
        assert memory.get("t", "k") == [new.RED]


def test_a_plan_survives_a_new_term(memory: CacheManager) -> None:
    """And the bytes that it counts for."""
    memory.set("t", "k", {"a": [1]})
    for _ in range(3):
        memory.get("t", "k")
    counted = memory.get_stats()["in_memory_bytes"]
    assert memory.touch("t", "k", 60)
    assert memory.get("t", "k") == {"a": [1]}
    assert memory.get_stats()["in_memory_bytes"] == counted


@register_type(name="mutable-hits.Order")
@dataclasses.dataclass
class Order:
    lots: list[int]


def test_objects_are_decoded_for_each_caller(memory: CacheManager) -> None:
    memory.set("t", "k", [Order([1])])
    for _ in range(4):
        (order,) = memory.get("t", "k")
        assert order == Order([1])
        order.lots.append(2)
