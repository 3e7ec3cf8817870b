"""Calls that decide themselves how fresh a stored value is: served, refreshed, replaced by one load of the fleet."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, CacheTypeError, Namespace
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.freshness import FreshnessState
from magnus_cache.testing import virtual_clock
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

FRESH, EARLY, STALE, GONE = FreshnessState.FRESH, FreshnessState.EARLY, FreshnessState.STALE, FreshnessState.GONE


class Source:
    """A loader that counts its calls, and waits or fails when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self) -> int:
        self.calls += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.calls

    def load_blocking(self) -> int:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.calls


@asynccontextmanager
async def several(url: str, number: int) -> AsyncIterator[list[AsyncCacheManager]]:
    caches = [AsyncCacheManager(redis_url=url) for _ in range(number)]
    yield caches
    for cache in caches:
        await cache.close()


def says(state: FreshnessState) -> Callable[[Any, float], FreshnessState]:
    return lambda value, age: state


@pytest.mark.parametrize("namespace", ["t", Namespace("t", l1=False), Namespace("t", grace="1h")])
async def test_a_value_that_is_gone_for_its_callers_is_loaded_once_for_the_fleet(url: str, namespace: str) -> None:
    async with several(url, 2) as caches:
        source = Source()
        assert await caches[0].get_or_set(namespace, "k", source.load) == 1
        for cache in caches:
            assert await cache.get_or_set(namespace, "k", source.load, state_of=says(FRESH)) == 1
        source.gate.clear()
        calls = [
            asyncio.ensure_future(cache.get_or_set(namespace, "k", source.load, state_of=says(GONE)))
            for cache in caches * 20
        ]
        await wait_until_async(lambda: source.calls == 2)
        source.gate.set()
        assert await asyncio.gather(*calls) == [2] * 40
        assert source.calls == 2
        assert await caches[1].get(namespace, "k") == 2


async def test_a_load_that_fails_leaves_a_stale_value_and_none_that_is_gone(url: str) -> None:
    async with several(url, 1) as (cache,):
        source = Source()
        await cache.get_or_set("t", "k", source.load)
        source.error = OSError("away")
        assert await cache.get_or_set("t", "k", source.load, state_of=says(STALE)) == 1
        with pytest.raises(OSError, match="away"):
            await cache.get_or_set("t", "k", source.load, state_of=says(GONE))
        assert source.calls == 3
        assert cache.sync.get_or_set("t", "k", source.load_blocking, state_of=says(STALE)) == 1
        with pytest.raises(OSError, match="away"):
            cache.sync.get_or_set("t", "k", source.load_blocking, state_of=says(GONE))


async def test_an_early_value_is_served_and_refreshed_in_the_background(url: str) -> None:
    async with several(url, 1) as (cache,):
        source = Source()
        await cache.get_or_set("t", "k", source.load)
        source.gate.clear()
        assert await cache.get_or_set("t", "k", source.load, state_of=says(EARLY)) == 1
        await wait_until_async(lambda: source.calls == 2)
        source.gate.set()

        async def is_refreshed() -> bool:
            return bool(await cache.get("t", "k") == 2)

        await wait_until_answered(is_refreshed)


def test_an_early_value_is_refreshed_for_a_thread_too(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        threads, calls = set[int](), list[int]()

        def load() -> int:
            threads.add(threading.get_ident())
            calls.append(1)
            return len(calls)

        assert cache.get_or_set("t", "k", load) == 1
        assert cache.get_or_set("t", "k", load, state_of=says(EARLY)) == 1
        wait_until(lambda: cache.get("t", "k") == 2)
        assert len(threads) == 2


def test_a_thread_is_asked_about_a_value_that_is_in_redis_alone(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        source, far = Source(), Namespace("t", l1=False)
        cache.set(far, "other", 1)
        for _ in range(20):
            # Threads ask Redis by themselves, once their connection is there.
            cache.get(far, "other")
        for state, value in ((FRESH, 1), (FRESH, 1), (GONE, 2), (FRESH, 2)):
            assert cache.get_or_set(far, "k", source.load_blocking, state_of=says(state)) == value


async def test_the_age_is_that_of_the_value_in_each_process(url: str) -> None:
    ages = list[float]()

    def state_of(value: Any, age: float) -> FreshnessState:
        ages.append(age)
        return FRESH

    with virtual_clock() as clock:
        async with several(url, 2) as caches:
            await caches[0].set(Namespace("t", l1_ttl=5), "k", 1, ttl=100)
            for cache in caches:
                await cache.get_or_set(Namespace("t", l1_ttl=5), "k", Source().load, state_of=state_of)
            clock.advance(4)
            for cache in caches:
                await cache.get_or_set(Namespace("t", l1_ttl=5), "k", Source().load, state_of=state_of)
            assert [round(age) for age in ages] == [0, 0, 4, 4]


async def test_nothing_is_asked_in_bypass_nor_about_a_miss(url: str) -> None:
    def never(value: Any, age: float) -> FreshnessState:
        raise AssertionError

    async with several(url, 1) as (cache,):
        source = Source()
        assert await cache.get_or_set("t", "k", source.load, state_of=never) == 1
        with cache.bypass():
            assert await cache.get_or_set("t", "k", source.load, state_of=never) == 2
            assert cache.sync.get_or_set("t", "k", source.load_blocking, state_of=never) == 3
        with cache.disabled():
            assert await cache.get_or_set("t", "k", source.load, state_of=never) == 4


async def test_an_outage_takes_nothing_away(private_server: EmbeddedServer) -> None:
    async with several(private_server.url, 1) as (cache,):
        source = Source()
        await cache.get_or_set("t", "k", source.load)
        private_server.close()
        assert await cache.get_or_set("t", "k", source.load, state_of=says(FRESH)) == 1
        assert await cache.get_or_set("t", "k", source.load, state_of=says(GONE)) == 2
        assert await cache.get_or_set("t", "k", source.load, state_of=says(FRESH)) == 2


async def test_what_is_no_answer_is_told(url: str) -> None:
    async with several(url, 1) as (cache,):
        source = Source()
        await cache.get_or_set("t", "k", source.load)
        with pytest.raises(CacheTypeError, match="state_of: it returns a FreshnessState, not bool"):
            await cache.get_or_set("t", "k", source.load, state_of=lambda value, age: True)  # type: ignore[arg-type,return-value]
        with pytest.raises(CacheTypeError, match="state_of"):
            await cache.get_or_set("t", "k", source.load, state_of=3)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await cache.get_or_set("t", "k", source.load, state_of=lambda value, age: FRESH if 1 / 0 else GONE)
