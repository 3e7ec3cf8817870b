"""Loads that limits hold back where they go no usual way: cancelled, nested, in batches, in threads, over midnight."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import (
    AsyncCacheManager,
    Budget,
    CacheBudgetError,
    CacheManager,
    CacheTimeoutError,
    Namespace,
    RetryLater,
)
from magnus_cache._engine.policy.bucket import OwnTokens, returns_after
from magnus_cache._engine.policy.budgets import Rate
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import virtual_clock
from tests.conftest import emptied
from tests.support.wait import nothing_happens_for_async, wait_until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    return emptied(running("valkey"))


@pytest.fixture(params=["shared", "alone"])
def options(request: pytest.FixtureRequest, server: EmbeddedServer) -> dict[str, Any]:
    return {"redis_url": server.url} if request.param == "shared" else {"redis_enabled": False}


async def loaded(key: Any = None) -> Any:
    return key


async def many(keys: list[Any]) -> dict[Any, Any]:
    return dict.fromkeys(keys, 1)


async def begun(cache: AsyncCacheManager, namespace: str, keys: Any, **options: Any) -> int:
    """Return how many of some loads may begin, one after the other."""
    count = 0
    for key in keys:
        try:
            await cache.get_or_set(namespace, key, loaded, **options)
        except CacheBudgetError:
            continue
        count += 1
    return count


# -- tokens --------------------------------------------------------------------------------------------------------


async def test_one_source_has_one_account_whatever_limits_it_is_given(options: dict[str, Any]) -> None:
    one = Namespace("a", budget=Budget("1/h", source="vendor"), hard_timeout=1)
    two = Namespace("b", budget=Budget("2/h", source="vendor"), hard_timeout=1)
    async with AsyncCacheManager(**options) as cache:
        assert sum([await begun(cache, each, [key]) for key in "abcde" for each in (one, two)]) == 2


async def test_a_batch_that_one_source_refuses_gives_back_the_tokens_of_the_others(options: dict[str, Any]) -> None:
    brokers = Namespace("t", budget={"a:*": "3/h", "b:*": "1/h"}, hard_timeout=1)
    async with AsyncCacheManager(**options) as cache:
        await cache.get_or_set_many(brokers, ["b:0"], many)
        for number in range(4):
            with pytest.raises(CacheBudgetError):
                await cache.get_or_set_many(brokers, [f"a:{number}", f"b:{number}1"], many)
        assert await begun(cache, brokers, [f"a:more{number}" for number in range(5)]) == 3


async def test_a_batch_that_is_refused_has_not_failed(options: dict[str, Any]) -> None:
    for namespace in (
        Namespace("t", budget="1/h", hard_timeout=1),
        Namespace("g", budget="1/h", hard_timeout=1, grace=5),
        Namespace("p", budget="1/h"),
    ):
        async with AsyncCacheManager(**options, wait_timeout=1) as cache:
            await cache.get_or_set_many(namespace, ["a"], many)
            with pytest.raises(CacheBudgetError):
                await cache.get_or_set_many(namespace, ["b", "c"], many)
            counts = (await cache.get_stats())["namespaces"][str(namespace)]
            assert (counts["held_back"], counts["load_errors"], counts["loads"]) == (1, 0, 1)


async def test_explain_reports_nothing_twice(server: EmbeddedServer, raw: redis.Redis) -> None:
    namespace = Namespace("t", budget="8/h", hard_timeout=1)
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get_or_set(namespace, "a", loaded)
        # As with a failover: the process tells the new bucket what it has taken.
        raw.delete("magnus!budget:t")
        for _ in range(3):
            await cache.explain(namespace, "b")
        assert await begun(cache, namespace, map(str, range(10))) == 7


@given(loads=st.integers(1, 5), taken=st.lists(st.floats(0, 20), max_size=8), waiting=st.integers(1, 12))
def test_without_redis_each_turn_is_told_as_it_will_come(loads: int, taken: list[float], waiting: int) -> None:
    now, own, times = 20.0, OwnTokens(), sorted(taken)
    for at in times:
        own.take(at, 1)
    for number in range(waiting):
        told = own.due(now, Rate(loads, 10.0), number + 1)
        # One after the other, each as soon as a token is back. A budget that was lowered may have given more before.
        times.append(max(now, times[-loads] + returns_after(10.0)) if len(times) >= loads else now)
        assert told == pytest.approx(times[-1] - now)


# -- pauses --------------------------------------------------------------------------------------------------------


def test_a_pause_that_is_over_at_once_does_not_have_the_source_asked_for_ever(options: dict[str, Any]) -> None:
    calls = list[float]()

    def refused() -> None:
        calls.append(time.monotonic())
        raise RetryLater(1e-9)

    with CacheManager(**options, wait_timeout=0.2) as cache, pytest.raises(CacheBudgetError, match="RetryLater"):
        cache.get_or_set("t", "a", refused)
    assert calls[-1] - calls[0] < 5


async def test_the_same_for_batches(options: dict[str, Any]) -> None:
    async def refused(_: list[Any]) -> dict[Any, Any]:
        raise RetryLater(1e-9)

    async with AsyncCacheManager(**options, wait_timeout=0.2) as cache:
        with pytest.raises(CacheBudgetError):
            await asyncio.wait_for(cache.get_or_set_many("t", ["a"], refused), 20)
        assert (await cache.get_stats())["namespaces"]["t"]["load_errors"] == 0


def test_a_thread_that_is_refused_asks_for_no_further_key(options: dict[str, Any]) -> None:
    refused = list[int]()

    def load(number: int) -> int:
        # By then, many keys wait for a thread.
        if number > 300:
            refused.append(number)
            raise RetryLater(3600)
        return number

    with CacheManager(**options) as cache:
        job = cache.aio.warm_cache(Namespace("t", ttl=5), load, list(range(1000)), concurrency=2)

        async def warm() -> None:
            task = asyncio.ensure_future(job)
            await wait_until_async(lambda: cache._state.sources.active or task.done(), 60)
            assert not task.done(), task
            await nothing_happens_for_async(0.05)
            task.cancel()

        asyncio.run(warm())
    assert 1 <= len(refused) <= 2


def test_a_pause_is_cut_at_a_day_however_long_it_is() -> None:
    assert RetryLater(10**400).seconds == RetryLater(float("inf")).seconds == 86_400


# -- what callers get ----------------------------------------------------------------------------------------------


async def test_a_caller_whose_time_is_over_is_told_that_its_load_is_held_back(options: dict[str, Any]) -> None:
    patient, hurried = Namespace("t", budget="1/2s", hard_timeout=20), Namespace("t", budget="1/2s", hard_timeout=0.1)
    async with AsyncCacheManager(**options) as cache:
        await cache.get_or_set(patient, "a", loaded)
        first = asyncio.ensure_future(cache.get_or_set(patient, "b", loaded))
        await wait_until_async(lambda: cache._state.stats.by_namespace()["t"].held_back)
        with pytest.raises(CacheBudgetError) as raised:
            await cache.get_or_set(hurried, "b", loaded)
        assert 0 < raised.value.retry_after < 2.2
        await first


async def test_a_caller_whose_time_is_over_while_its_source_is_asked_gets_another_error(
    options: dict[str, Any],
) -> None:
    release = asyncio.Event()

    async def slow() -> int:
        await release.wait()
        return 1

    async with AsyncCacheManager(**options) as cache:
        with pytest.raises(CacheTimeoutError):
            await cache.get_or_set(Namespace("t", budget="5/h", hard_timeout=0.05), "a", slow)
        release.set()


# -- money ---------------------------------------------------------------------------------------------------------


async def test_a_loader_that_another_limit_holds_back_gets_its_price_back(options: dict[str, Any]) -> None:
    paid, inner = Namespace("paid", spend_limit="1.00/day"), Namespace("inner", budget="1/h", hard_timeout=1)
    async with AsyncCacheManager(**options) as cache:
        await cache.get_or_set(inner, "a", loaded)

        async def outer(key: str) -> Any:
            return await cache.get_or_set(inner, key, loaded)

        for key in "bcdefg":
            with pytest.raises(CacheBudgetError, match="'inner'"):
                await cache.get_or_set(paid, key, lambda key=key: outer(key), cost=0.25)
        with pytest.raises(CacheBudgetError, match="'inner'"):
            await cache.get_or_set_many(paid, ["x", "y"], lambda keys: outer("x"), cost=0.25)
        assert await begun(cache, paid, "hijklm", cost=0.25) == 4


async def test_a_load_that_is_cancelled_while_it_asks_is_not_charged(server: EmbeddedServer, raw: redis.Redis) -> None:
    limited = Namespace("t", spend_limit="100/day")
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get_or_set(limited, "first", loaded, cost=1)
        for turns in range(0, 80, 2):
            # At every await of a load.
            task = asyncio.ensure_future(cache.get_or_set(limited, str(turns), loaded, cost=1))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await cache.get_or_set(limited, "last", loaded, cost=1)
        counted = (await cache.get_stats())["namespaces"]["t"]["spent"]
        await wait_until_async(lambda: int(raw.hget("magnus!spend:day:t", "s") or 0) == counted * 1e9)  # type: ignore[arg-type]  # a text


def test_what_yesterday_was_charged_is_not_given_back_today(server: EmbeddedServer, raw: redis.Redis) -> None:
    limited = Namespace("t", spend_limit="10/day")
    with virtual_clock() as clock, CacheManager(redis_url=server.url) as cache:

        def fails() -> None:
            clock.advance(86_400)
            cache.get_or_set(limited, "today", lambda: 1, cost=3)
            raise OSError

        with pytest.raises(OSError):
            cache.get_or_set(limited, "yesterday", fails, cost=2)
        cache.get_or_set(limited, "again", lambda: 1, cost=1)
        assert int(raw.hget("magnus!spend:day:t", "s") or 0) == 4e9  # type: ignore[arg-type]  # a text
