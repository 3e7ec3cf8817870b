"""`f.clear()` drops all values of one function everywhere, and of no other; `f.contains` and `f.explain` take its
arguments."""

import asyncio
import os
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Explanation, Namespace
from magnus_cache._engine.codec.envelope import MOST_TAGS
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.policy.function_tags import function_tag, visible_tags, with_function_tag
from magnus_cache._engine.runtime import critical
from magnus_cache.errors import CacheArgumentError, CacheClosedError, CacheTypeError
from magnus_cache.testing import virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.loaders import Slow
from tests.support.programs import in_forked_children
from tests.support.wait import wait_until, wait_until_answered

CALLS: list[Any] = []
"""Calls of the functions below: of the module, as what a function closes over may be part of its keys."""


@pytest.fixture
def calls() -> list[Any]:
    CALLS.clear()
    return CALLS


def decorated(manager: AsyncCacheManager, **options: Any) -> Any:
    """Return the same function of each process."""

    @manager.cached("t", **options)
    async def rows(number: int) -> list[int]:
        CALLS.append(number)
        return [number, len(CALLS)]

    return rows


def blocking(manager: CacheManager, **options: Any) -> Any:
    @manager.cached("t", **options)
    def rows(number: int) -> list[int]:
        CALLS.append(number)
        return [number, len(CALLS)]

    return rows


async def told(*managers: AsyncCacheManager) -> None:
    """Return once the managers have heard what Redis announced before."""
    for manager in managers:
        await manager.get_stats()


# -- what is cleared --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "options", [{}, {"key": "k {number}"}, {"key_func": str}, {"tags": "user:{number}"}, {"tags": str}, {"grace": 60}]
)
async def test_all_values_of_a_function_are_gone_everywhere(
    url: str, options: dict[str, Any], calls: list[Any]
) -> None:
    async with fleet(url) as (one, two):
        here, there = decorated(one, **options), decorated(two, **options)
        first = [await here(number) for number in range(5)]
        assert [await there(number) for number in range(5)] == first
        assert len(calls) == 5
        assert await here.clear() is None
        await told(two)
        for number in range(5):
            assert await two.get("t", there.cache_key(number)) is None
            assert await there.contains(number) is False
            assert (await there(number))[0] == number
            assert await here(number) == await there(number)
        assert calls == [0, 1, 2, 3, 4] * 2


@pytest.mark.anyio
async def test_it_is_one_exchange_and_keeps_the_names(url: str, raw: redis.Redis, calls: list[Any]) -> None:
    async with fleet(url, 1) as (one,):
        function = decorated(one)
        await asyncio.gather(*map(function, range(200)))
        names = set(raw.keys("magnus:*"))
        assert f"magnus:t:{function.cache_key(7)}".encode() in names
        before = raw.info("commandstats")
        await function.clear()
        after = raw.info("commandstats")
        ran = sum(after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after)
        assert ran < 20
        assert set(raw.keys("magnus:*")) == names


@pytest.mark.anyio
async def test_other_functions_and_values_stay(url: str, calls: list[Any]) -> None:
    async with fleet(url, 1) as (one,):
        function = decorated(one)

        @one.cached("t")
        async def other(number: int) -> list[int]:
            CALLS.append(-number)
            return [number]

        elsewhere = one.cached("elsewhere")(function.__wrapped__)
        await function(1)
        await other(2)
        await elsewhere(3)
        await one.set("t", "k", "value")
        await function.clear()
        await told(one)
        await other(2)
        await elsewhere(3)
        assert calls == [1, -2, 3]
        assert await one.get("t", "k") == "value"


def test_the_blocking_form(url: str, calls: list[Any]) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as two:
        here, there = blocking(one), blocking(two)
        assert here(1) == there(1)
        assert here.contains(1) is there.contains(1) is True
        assert isinstance(here.explain(1), Explanation)
        assert here.clear() is None
        two.get_stats()
        assert there.contains(1) is False
        assert there(1) == [1, 2]
        assert here(1) == [1, 2]
    with pytest.raises(CacheClosedError):
        here.clear()


def test_in_memory_alone(calls: list[Any]) -> None:
    with CacheManager(redis_enabled=False) as cache:
        function = blocking(cache)
        function(1)
        function(2)
        function.clear()
        assert function.contains(1) is False
        function(1)
        function(2)
        assert calls == [1, 2, 1, 2]


def test_of_a_method_the_values_of_all_instances(url: str, calls: list[Any]) -> None:
    with CacheManager(redis_url=url) as cache:

        class Account:
            def __init__(self, name: str) -> None:
                self.name = name

            def __cache_key__(self) -> str:
                return self.name

            @cache.cached("t")
            def owner(self) -> str:
                return self.name

            @cache.cached("t")
            @classmethod
            def kind(cls) -> str:
                return cls.__name__

        one, two = Account("a"), Account("b")
        for account in (one, two):
            account.owner()
        Account.kind()
        one.owner.clear()
        assert not two.owner.contains()
        assert Account.kind.contains()
        Account.kind.clear()
        assert not Account.kind.contains()


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["async", "blocking"])
async def test_a_function_of_many_keys(url: str, form: str, calls: list[Any]) -> None:
    async with fleet(url, 1) as (one,):

        @one.cached_many("t")
        async def later(tickers: list[str], days: int = 1) -> dict[str, int]:
            return dict.fromkeys(tickers, days)

        @one.cached_many("t")
        def now(tickers: list[str], days: int = 1) -> dict[str, int]:
            return dict.fromkeys(tickers, days)

        async def do(operation: str, *args: Any) -> Any:
            if form == "async":
                return await getattr(later, operation)(*args)
            return await asyncio.to_thread(getattr(now, operation), *args)

        await do("__call__", ["a", "b"], 2)
        assert await do("contains", "a", 2) is True
        assert await do("contains", "a") is False
        assert (await do("explain", "b", 2)).level == "l1"
        with pytest.raises(CacheTypeError, match="one key, given in place of the keys"):
            await do("contains", ["a"], 2)
        with pytest.raises(CacheTypeError, match="one key"):
            await do("explain", ["a"], 2)
        await do("clear")
        assert await do("contains", "a", 2) is False


# -- in time ----------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("clearing", [0, 1])
async def test_invariant_2_a_load_that_began_before_a_clear_is_not_stored(
    url: str, clearing: int, calls: list[Any]
) -> None:
    slow = Slow()
    async with fleet(url) as managers:

        def made(manager: AsyncCacheManager) -> Any:
            @manager.cached("t")
            async def value() -> int:
                return await slow()

            return value

        functions = [made(manager) for manager in managers]
        before = asyncio.create_task(functions[0]())
        await slow.begun()
        await functions[clearing].clear()
        await told(*managers)
        after = asyncio.create_task(functions[0]())
        slow.finish(1)
        assert await before == 1
        await slow.begun(2)
        slow.finish(2)
        assert await after == 2
        assert await functions[0]() == await functions[1]() == 2


@pytest.mark.anyio
async def test_stale_and_remembered_values_are_cleared_too(url: str, calls: list[Any]) -> None:
    with virtual_clock() as clock:
        async with fleet(url, 1) as (one,):

            @one.cached("t", ttl=10, grace=100, negative={LookupError: 60})
            async def value(number: int) -> int:
                CALLS.append(number)
                if number < 0 or len(CALLS) > 2:
                    raise LookupError(number) if number < 0 else RuntimeError("away")
                return number

            assert await value(1) == 1
            with pytest.raises(LookupError):
                await value(-1)
            clock.advance(20)
            await value.clear()
            with pytest.raises(RuntimeError, match="away"):
                await value(1)
            with pytest.raises(LookupError):
                await value(-1)
            assert calls == [1, -1, 1, -1]


@pytest.mark.anyio
async def test_a_clear_in_an_outage_is_made_up_for(proxy: Any, url: str, calls: list[Any]) -> None:
    async with fleet(proxy.url, 1, op_timeout=0.5) as (one,), fleet(url, 1) as (two,):
        here, there = decorated(one), decorated(two)
        assert await here(1) == await there(1) == [1, 1]
        proxy.refuse()
        proxy.cut()
        await here.clear()
        assert (await here(1))[0] == 1
        assert len(calls) == 2
        assert await there(1) == [1, 1]
        proxy.resume()

        async def told() -> bool:
            await one.get_stats()
            return await there(1) != [1, 1]

        await wait_until_answered(told, patience=20)


# -- values from before, and from elsewhere ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_values_stored_without_the_tag_are_served(url: str, calls: list[Any]) -> None:
    """An earlier release stored them, or `set` or `warm_cache`: the function's epoch is no older than its first use."""
    async with fleet(url) as (old, new):
        function = decorated(new)
        key = function.cache_key(7)
        await old.set("t", key, [7, 0])
        assert await function(7) == [7, 0]
        assert await function(7) == [7, 0]
        assert await function.contains(7)
        await function.clear()
        assert await function(7) == [7, 0]
        assert await function.refresh(7) == [7, 1]
        await function.clear()
        assert await function(7) == [7, 2]


@pytest.mark.anyio
async def test_a_process_that_met_the_values_before_the_function(url: str, calls: list[Any]) -> None:
    """It has their marks from reading them by their keys."""
    async with fleet(url) as (one, two):
        here = decorated(one)
        await here(1)
        await here(2)
        key = here.cache_key(1)
        assert await two.get("t", key) == [1, 1]
        there = decorated(two)
        assert await there(2) == [2, 2]
        await here.clear()
        await told(two)
        assert await two.get("t", key) is None
        assert await there(2) == [2, 3]


@pytest.mark.anyio
async def test_a_value_with_as_many_tags_as_there_can_be(url: str, calls: list[Any]) -> None:
    async with fleet(url, 1) as (one,):
        tags = [f"tag{number}" for number in range(MOST_TAGS - 1)]
        function = decorated(one, tags=tags)
        computed = decorated(one, tags=lambda _: tags, key="other {number}")
        for kept in (function, computed):
            assert await kept(1) == await kept(1)
            assert (await kept.explain(1)).tags == tuple(tags)
            await kept.clear()
            assert await kept.contains(1) is False
        tags.append("one too many")
        for refused in (decorated(one, tags=tags), computed):
            with pytest.raises(CacheArgumentError, match="at most 254 tags"):
                await refused(2)


@pytest.mark.anyio
async def test_its_tag_is_not_shown(url: str, calls: list[Any]) -> None:
    async with fleet(url, 1) as (one,):
        function = decorated(one, tags=["x", "user:{number}"])
        await function(7)
        assert (await function.explain(7)).tags == ("x", "user:7")
        await one.invalidate_tags("x")
        assert await function.contains(7) is False


def test_names_of_tags(calls: list[Any]) -> None:
    assert visible_tags(("x", function_tag("t", "module.name"), "~x")) == ("x", "~x")
    assert function_tag("t", "module.name") != function_tag("u", "module.name")
    assert len(function_tag("t", "x" * 1_000)) <= 200
    assert function_tag("t", "x" * 1_000) != function_tag("t", "x" * 999 + "y")
    assert with_function_tag(("a", "b"), ("f",)) == ("a", "b", "f")
    assert with_function_tag(("a",), ()) == ("a",)


def _in_child(function: Any) -> tuple[Any, Any]:
    first = function(1)
    function.clear()
    return first, function(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_clears_what_it_has_in_memory(url: str, calls: list[Any]) -> None:
    """The child remembers where the values of calls live, and must find the marks of its new values there."""
    with CacheManager(redis_url=url) as cache:
        function = blocking(cache)
        function(1)
        assert in_forked_children(_in_child, function) == [([1, 1], [1, 2])]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_without_redis_too(calls: list[Any]) -> None:
    with CacheManager(redis_enabled=False) as cache:
        function = blocking(cache)
        function(1)
        ((first, second),) = in_forked_children(_in_child, function)
        assert first[0] == second[0] == 1
        assert first != second


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_its_tag_takes_no_room_of_values(url: str, calls: list[Any]) -> None:
    async with fleet(url, 2) as (one, two):
        await decorated(one, key="k {number}")(1)
        await two.set("t", "k 2", [1, 1])
        assert one._state.memory.bytes == two._state.memory.bytes


@pytest.mark.anyio
async def test_the_epoch_of_a_function_comes_along_with_its_first_value(url: str, calls: list[Any]) -> None:
    """Else that would have to be asked for twice; where nobody announces changes, every half a second."""
    async with fleet(url) as (one, two):
        here, there = decorated(one), decorated(two)
        await here(0)
        received, answers = two._reads.received, list[Any]()

        def counted(*args: Any) -> Any:
            answers.append(args)
            return received(*args)

        two._reads.received = counted  # type: ignore[method-assign]
        assert await there(0) == [0, 1]
        assert len(answers) == 1


@pytest.mark.anyio
async def test_values_that_are_never_near(url: str, calls: list[Any]) -> None:
    namespace = Namespace("near", l1=False)
    async with fleet(url) as managers:

        def made(manager: AsyncCacheManager) -> Any:
            @manager.cached(namespace)
            async def value(number: int) -> int:
                CALLS.append(number)
                return len(CALLS)

            return value

        one, two = map(made, managers)
        assert await one(1) == await two(1) == 1
        await one.clear()
        assert await two(1) == 2


def test_names_of_tags_are_remembered_within_bounds(calls: list[Any]) -> None:
    epochs = Epochs(Keyspace())
    for number in range(3_000):
        assert epochs.tag_name(f"tag{number}") == f"magnus!tag:tag{number}".encode()
    assert len(epochs._names_of_tags) <= 1_024


def test_a_call_out_of_a_finalizer_or_signal_handler_waits_for_nothing(url: str, calls: list[Any]) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as two:
        here, there = blocking(one), blocking(two)
        many = one.cached_many("t", key="{keys}")(of_many)
        here(1)
        here(2)
        many(["a"])
        assert there(1) == [1, 1]
        with critical.section():
            assert many.invalidate(["a"]) is True
            assert here.invalidate(2) is True
            assert here.clear() is None
        wait_until(lambda: not any((here.contains(1), here.contains(2), many.contains("a"))))
        wait_until(lambda: not there.contains(1))


def of_many(keys: list[str]) -> dict[str, int]:
    return dict.fromkeys(keys, 1)
