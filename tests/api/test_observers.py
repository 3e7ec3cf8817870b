"""Observers: what they are told, where, and what becomes of the cache when they misbehave."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import redis

import magnus_cache
from magnus_cache import (
    AsyncCacheManager,
    CacheEvent,
    CacheManager,
    CacheTypeError,
    Cleared,
    Deleted,
    ErrorServed,
    Evicted,
    FillRefused,
    Hit,
    LoadEnded,
    LoadStarted,
    Miss,
    Namespace,
    OutageBegan,
    OutageEnded,
    PeerInvalidated,
    StaleServed,
    Stored,
    TagsInvalidated,
    Touched,
    Unreadable,
    Unstorable,
    WaitExpired,
    get_async_cache_manager,
    get_cache_manager,
)
from magnus_cache.testing import Proxy, isolated, virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.loaders import Slow
from tests.support.programs import in_forked_children
from tests.support.wait import lapse, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

KEY = "magnus:t:k"


class Seen(list[CacheEvent]):
    """An observer that keeps what it was told."""

    def __call__(self, event: CacheEvent) -> None:
        self.append(event)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kinds)]

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self]


# -- what is told -------------------------------------------------------------------------------------------------


async def test_a_miss_a_load_and_hits(url: str) -> None:
    seen = Seen()
    async with fleet(url) as (one, two):
        one.observe(seen)

        @one.cached("t", key="k")
        async def load() -> dict[str, int]:
            return {"a": 1}

        for _ in range(4):
            await load()
        assert seen.kinds() == ["Miss", "LoadStarted", "LoadEnded", "Stored", "Hit", "Hit", "Hit"]
        started, ended = seen.of(LoadStarted, LoadEnded)
        assert started.load == ended.load
        assert started.function == ended.function == f"{__name__}.{load.__qualname__}"
        assert (started.key, started.namespace, ended.error) == (KEY, "t", None)
        assert ended.duration >= 0
        assert seen.of(Stored) == [Stored("t", KEY, "redis", loaded=True)]
        assert set(seen.of(Hit)) == {Hit("t", KEY, "l1")}
        with two.observe(seen):
            seen.clear()
            await two.get("t", "k")
        assert seen == [Hit("t", KEY, "l2")]


def test_blocking_callers(url: str) -> None:
    seen = Seen()
    with CacheManager(redis_url=url) as cache, cache.observe(seen):

        @cache.cached("t", key="{key}")
        def load(key: str, *more: str) -> str:
            return key

        load("k")
        load("k")
        cache.get("t", "k")
        cache.set("t", "k", 1)
        cache.touch("t", "k", 60)
        load.invalidate("k")
        load.clear()
        cache.delete("t", "k")
        cache.invalidate_tags("x")
        cache.clear("t")
    assert seen.kinds() == [
        "Miss", "LoadStarted", "LoadEnded", "Stored", "Hit", "Hit", "Stored", "Touched", "Deleted", "Cleared",
        "Deleted", "TagsInvalidated", "Cleared",
    ]  # fmt: skip
    assert [event.removed for event in seen.of(Deleted)] == [1, 0]
    assert [event.target for event in seen.of(Cleared)] == [f"{__name__}.{load.__qualname__}", "t"]
    assert seen.of(TagsInvalidated)[0].tags == ("x",)
    assert seen.of(Touched) == [Touched("t", KEY, 60.0)]
    sites = {event.site.partition(":")[0] for event in seen.of(Deleted, Cleared, TagsInvalidated)}
    assert sites == {"tests/api/test_observers.py"}


@pytest.mark.parametrize("blocking", [True, False])
async def test_events_sum_up_to_the_figures(url: str, raw: redis.Redis, *, blocking: bool) -> None:
    """Each count of the statistics has its event, whichever way a value takes."""
    seen, graceful = Seen(), Namespace("g", grace=60, retry=60, negative={KeyError: 60})
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as other:
            await other.set_many("t", {"a": 1, "b": [2]})
        cache = CacheManager(redis_url=url)
        cache.observe(seen)

        def work() -> None:
            def fail(error: Exception) -> Any:
                raise error

            cache.get_many("t", ["a", "b", "c"])
            cache.get_many("t", ["a", "b", "c"])
            cache.get_or_set_many("t", ["a", "d", "e"], lambda keys: dict.fromkeys(keys, 1))
            cache.warm_cache("w", lambda key: key, ["x", "y"])
            cache.set_many("t", {"f": 1, "g": 2})
            cache.get_or_set(graceful, "k", lambda: 1, ttl=1)
            clock.advance(2)
            for _ in range(2):
                assert cache.get_or_set(graceful, "k", lambda: fail(ValueError()), ttl=1) == 1
                with pytest.raises(KeyError):
                    cache.get_or_set(graceful, "none", lambda: fail(KeyError()))
            raw.set("magnus:t:junk", b"junk")
            assert cache.get("t", "junk") is None
            cache.get_or_set("t", "odd", object)

        if blocking:
            await asyncio.to_thread(work)
        else:
            await asyncio.to_thread(lambda: asyncio.run(_awaited(cache, work)))
        total = cache.get_stats()
        cache.close()
    counts = Counter[str]()
    for event in seen:
        name = type(event).__name__
        counts[f"{name}{getattr(event, 'level', '')}"] += getattr(event, "count", 1)
    figures = Counter[str]()
    for namespace in total["namespaces"].values():
        figures.update(namespace)
    told = {
        "l1_hits": counts["Hitl1"], "l2_hits": counts["Hitl2"], "miss_count": counts["Miss"],
        "loads": sum(event.count for event in seen.of(LoadEnded) if event.error is None),
        "load_errors": sum(event.count for event in seen.of(LoadEnded) if event.error is not None),
        "stores": counts["Stored"], "stale_hits": counts["StaleServed"], "negative_hits": counts["ErrorServed"],
        "unreadable": counts["Unreadable"], "unstorable": counts["Unstorable"],
    }  # fmt: skip
    assert told == {name: figures[name] for name in told}
    assert all(told.values()), told
    for kind in (StaleServed, ErrorServed, Unreadable, Unstorable):
        assert seen.of(kind)


async def _awaited(cache: CacheManager, work: Callable[[], object]) -> None:
    # Blocking calls in a thread that runs a loop.
    work()


async def test_a_load_that_is_overtaken(url: str) -> None:
    seen, slow = Seen(), Slow()
    async with fleet(url) as (one, two):
        one.observe(seen, FillRefused, Stored)
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        await two.delete("t", "k")
        await one.get_stats()
        slow.finish()
        await call
        assert seen == [FillRefused("t", KEY, "overtaken")]


async def test_a_load_that_fails_or_is_cancelled_ends(url: str) -> None:
    seen, slow = Seen(), Slow()
    async with fleet(url, 1) as (cache,):
        cache.observe(seen, LoadStarted, LoadEnded)

        async def fail() -> int:
            raise ValueError("why")

        with pytest.raises(ValueError, match="why") as raised:
            await cache.get_or_set("t", "k", fail)
        call = asyncio.create_task(cache.get_or_set("t", "k", slow))
        await slow.begun()
        call.cancel()
        await asyncio.wait([call])
        await wait_until_async(lambda: len(seen) == 4)
        first, second = seen.of(LoadEnded)
        assert first.error is raised.value
        assert isinstance(second.error, asyncio.CancelledError)
        assert [event.load for event in seen.of(LoadStarted)] == [first.load, second.load]


async def test_a_refresh_before_the_end_runs_in_the_background(url: str) -> None:
    seen = Seen()
    with virtual_clock() as clock:
        async with fleet(url, 1) as (cache,):
            early = Namespace("t", early=1e9, grace=10)
            cache.observe(seen, LoadStarted)

            async def slow() -> int:
                clock.advance(1)
                return 1

            for _ in range(2):
                await cache.get_or_set(early, "k", slow, ttl=60)
            await wait_until_async(lambda: len(seen) == 2)
            assert [event.background for event in seen.of(LoadStarted)] == [False, True]


async def test_a_caller_that_stops_waiting(url: str) -> None:
    seen, slow = Seen(), Slow()
    async with fleet(url, 1) as (cache,):
        cache.observe(seen, WaitExpired)
        with pytest.raises(magnus_cache.CacheTimeoutError):
            await cache.get_or_set("t", "k", slow, hard_timeout=0.01)
        assert seen == [WaitExpired("t", KEY)]
        slow.finish()


async def test_what_others_do_is_told_and_what_this_process_does_is_no_news(url: str) -> None:
    seen = Seen()
    async with fleet(url) as (one, two):
        one.observe(seen, PeerInvalidated)
        for act in (one.delete, two.delete):
            await one.set("t", "k", 1, tags=["x"])
            await one.set("t", "k2", 1, tags=["x"])
            await act("t", "k")
            await one.get_stats()
        assert seen == [PeerInvalidated("keys", keys=(KEY,))]
        seen.clear()
        for cache in (one, two):
            await one.set("t", "k", 1, tags=["x"])
            await one.get("t", "k")
            await cache.invalidate_tags("x")
            await cache.clear("t")
            await cache.clear("magnus:*")
            await one.get_stats()
        await wait_until_async(lambda: PeerInvalidated("all") in seen)
        told = [event for event in seen if event.scope != "keys"]  # type: ignore[attr-defined]
        assert told == [PeerInvalidated("tag", "x"), PeerInvalidated("namespace", "t"), PeerInvalidated("all")]


async def test_evictions(url: str) -> None:
    seen = Seen()
    async with fleet(url, 1, l1_max_entries=10, max_staleness=0.3) as (cache,):
        cache.observe(seen, Evicted)
        await cache.set_many("t", {str(number): number for number in range(50)})
        await wait_until_async(lambda: seen)
        assert sum(event.count for event in seen.of(Evicted)) == (await cache.get_stats())["evictions"] == 40


async def test_an_outage_begins_and_ends_once(proxy: Proxy) -> None:
    seen = Seen()
    async with fleet(proxy.url, 1) as (cache,):
        cache.observe(seen, OutageBegan, OutageEnded)
        await cache.set("t", "k", 1)
        breaker = cache._state.breaker
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "other")
        await wait_until_async(lambda: breaker.outage is not None and breaker.outage.attempts >= 3)
        assert [type(event) for event in seen] == [OutageBegan]
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        await wait_until_async(lambda: len(seen) == 2)
        (ended,) = seen.of(OutageEnded)
        assert ended.duration > 0
        assert ended.node is None


def test_without_redis_values_are_stored_in_memory() -> None:
    seen = Seen()
    with CacheManager(redis_enabled=False) as cache, cache.observe(seen):
        cache.set("t", "k", 1)
        cache.get_or_set("t", "k2", lambda: 1)
        cache.get_or_set(Namespace("none", l1=False), "k", lambda: 1)
    assert seen.of(Stored) == [Stored("t", KEY, "memory"), Stored("t", f"{KEY}2", "memory", loaded=True)]
    assert seen.of(FillRefused) == [FillRefused("none", "magnus:none:k", "unkept")]


@pytest.mark.parametrize("place", ["redis", "memory"], ids=["server", "memory"])
def test_what_is_written_in_one_step_is_told(url: str, place: str) -> None:
    seen = Seen()
    with CacheManager(redis_url=url, redis_enabled=place == "redis") as cache, cache.observe(seen, Stored):
        assert cache.add("t", "k", 1)
        assert not cache.add("t", "k", 2)
        assert cache.incr("t", "k") == 2
        assert cache.decr("t", "k", 2**60) == 2 - 2**60
        assert cache.update("t", "k", lambda value: [value]) == [2 - 2**60]
        assert list(seen) == [Stored("t", KEY, place)] * 4
        assert cache.get_stats()["namespaces"]["t"]["stores"] == 4


def test_a_disabled_cache_tells_nothing_of_reads(url: str) -> None:
    seen = Seen()
    with CacheManager(redis_url=url) as cache, cache.observe(seen), cache.disabled():
        cache.get("t", "k")
        cache.get_or_set("t", "k", lambda: 1)
        cache.get_or_set_many("t", ["a"], lambda keys: dict.fromkeys(keys, 1))
    assert seen == []


def test_events_are_frozen_and_made_for_logs() -> None:
    event = Hit("t", KEY, "l1")
    with pytest.raises(FrozenInstanceError):
        event.level = "l2"  # type: ignore[misc]
    assert event.as_dict() == {"event": "Hit", "namespace": "t", "key": KEY, "level": "l1", "count": 1}
    for name in magnus_cache.events.__all__:
        assert issubclass(getattr(magnus_cache, name), CacheEvent)


# -- hits on the fast path ------------------------------------------------------------------------------------------


def _plain(key: str) -> str:
    return key


def _general(*keys: str) -> str:
    return keys[0]


@pytest.mark.parametrize("function", [_plain, _general])
async def test_each_hit_is_told_once_while_hits_are_observed(url: str, function: Any) -> None:
    """The wrappers leave hits to the readable path, and take them back when the last observer has gone."""
    seen = Seen()
    async with fleet(url, 1) as (cache,):
        load = cache.sync.cached("t")(function)

        async def later(key: str) -> str:
            return key

        awaited = cache.cached("u")(later)
        for _ in range(3):
            await asyncio.to_thread(load, "k")
            await awaited("k")
            await cache.get("t", "x")
        before = (await cache.get_stats())["levels"]["l1"]["count"]
        with cache.observe(seen, Hit):
            for _ in range(3):
                load("k")
                await awaited("k")
        load("k")
        assert len(seen) == 6
        assert (await cache.get_stats())["levels"]["l1"]["count"] == before + 7
        assert not cache._state.special


async def test_observers_of_other_kinds_leave_hits_to_the_fast_path(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        loads = cache.observe(Seen(), LoadStarted, LoadEnded)
        assert not cache._state.special
        everything = cache.observe(Seen())
        assert cache._state.special
        everything.close()
        assert not cache._state.special
        loads.close()
        assert not cache._state.observers.active


# -- context ----------------------------------------------------------------------------------------------------------

SPAN: ContextVar[str] = ContextVar("SPAN", default="none")


class Tracer:
    """Sets a context variable for the time of a load, as a tracer does with its current span."""

    def __init__(self) -> None:
        self.parents: list[str] = []
        self._tokens: dict[int, Any] = {}

    def __call__(self, event: LoadStarted | LoadEnded) -> None:
        if isinstance(event, LoadStarted):
            self.parents.append(SPAN.get())
            self._tokens[event.load] = SPAN.set(f"load {event.count}")
        else:
            # In another context than that of the begin, this raises.
            SPAN.reset(self._tokens.pop(event.load))


async def _in_coroutine(key: str = "") -> str:
    await asyncio.sleep(0)
    return SPAN.get()


def _in_function(key: str = "") -> str:
    return SPAN.get()


@pytest.mark.parametrize("loader", [_in_coroutine, _in_function])
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_loader_runs_in_the_context_of_its_events(
    url: str, loader: Any, caplog: pytest.LogCaptureFixture, *, blocking: bool
) -> None:
    tracer = Tracer()

    def many(keys: list[str]) -> dict[str, str]:
        return {key: SPAN.get() for key in keys}

    async def many_awaited(keys: list[str]) -> dict[str, str]:
        return many(keys)

    batch = many_awaited if loader is _in_coroutine else many
    async with AsyncCacheManager(redis_url=url) as cache:
        cache.observe(tracer, LoadStarted, LoadEnded)
        SPAN.set("caller")
        if blocking:
            one = await asyncio.to_thread(cache.sync.get_or_set, "t", "one", loader)
            timed = await asyncio.to_thread(cache.sync.get_or_set, "t", "timed", loader, hard_timeout=9)
            some = await asyncio.to_thread(cache.sync.get_or_set_many, "t", ["a", "b"], batch)
            await asyncio.to_thread(cache.sync.warm_cache, "w", loader, ["k"])
        else:
            one = await cache.get_or_set("t", "one", loader)
            timed = await cache.get_or_set("t", "timed", loader, hard_timeout=9)
            some = await cache.get_or_set_many("t", ["a", "b"], batch)
            await cache.warm_cache("w", loader, ["k"])
        assert (one, timed, some) == ("load 1", "load 1", {"a": "load 2", "b": "load 2"})
        assert await cache.get("w", "k") == "load 1"
        assert SPAN.get() == "caller"
    assert tracer.parents == ["caller"] * 4
    assert "observer" not in caplog.text


# -- observers that misbehave -----------------------------------------------------------------------------------------


async def test_what_an_observer_raises_is_logged_and_changes_nothing(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def broken(event: CacheEvent) -> None:
        raise asyncio.CancelledError if isinstance(event, Miss) else ValueError("private")

    async with fleet(url, 1) as (cache,):
        cache.observe(broken)
        cache.observe(seen)
        assert await cache.get_or_set("t", "k", lambda: 1) == 1
        assert await cache.get("t", "k") == 1
        await cache.delete("t", "k")
    assert seen.kinds() == ["Miss", "LoadStarted", "LoadEnded", "Stored", "Hit", "Deleted"]
    assert "broken" in caplog.text
    assert "raised" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "private" not in warnings[0]


def test_a_slow_observer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_enabled=False) as cache, cache.observe(lambda _: lapse(0.11), Stored):
        cache.set("t", "k", 1)
    assert "took 0.1 s; a call of the cache waited for it" in caplog.text


def test_what_an_observer_does_with_a_cache_is_not_observed(url: str) -> None:
    seen = Seen()
    with CacheManager(redis_url=url) as cache:

        def curious(event: CacheEvent) -> None:
            seen(event)
            assert len(seen) < 10
            cache.get("t", "mine")

        cache.observe(curious, Hit, Miss)
        cache.get("t", "k")
        cache.get("t", "k")
    assert seen.kinds() == ["Miss", "Miss"]


async def test_an_observer_that_unsubscribes_in_its_own_call_is_not_called_again() -> None:
    calls: list[str] = []
    async with AsyncCacheManager(redis_enabled=False) as cache:

        def once(_: CacheEvent) -> None:
            calls.append("once")
            own.close()
            other.close()

        own = cache.observe(once)
        other = cache.observe(lambda _: calls.append("other"))
        await cache.get("t", "k")
        await cache.get("t", "k")
        assert calls == ["once"]
        assert own.closed
        assert "closed" in repr(own)
        own.close()


@pytest.mark.parametrize("wrong", [None, 3, _in_coroutine])
def test_what_cannot_observe(wrong: Any) -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheTypeError, match="function"):
        cache.observe(wrong)


@pytest.mark.parametrize("wrong", [int, "Hit", Hit("t", None, "l1")])
def test_what_is_no_kind_of_event(wrong: Any) -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheTypeError, match="kinds"):
        cache.observe(print, wrong)


def test_many_threads_and_observers_that_come_and_go() -> None:
    seen, over = Seen(), threading.Event()
    with CacheManager(redis_enabled=False) as cache, cache.observe(seen, Miss):

        def come_and_go() -> None:
            while not over.is_set():
                with cache.observe(lambda _: None):
                    pass

        def ask() -> None:
            for _ in range(500):
                cache.get("t", "k")

        visitor = threading.Thread(target=come_and_go)
        visitor.start()
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        visitor.join()
    assert len(seen) == 2_000


# -- the life of a cache ----------------------------------------------------------------------------------------------


def test_both_managers_of_a_cache_have_the_same_observers() -> None:
    seen = Seen()
    with CacheManager(redis_enabled=False) as cache, cache.aio.observe(seen, Miss):
        cache.get("t", "k")
        asyncio.run(cache.aio.get("t", "k"))
    assert len(seen) == 2


def test_observers_follow_the_process_wide_cache(url: str) -> None:
    seen = Seen()
    with isolated(redis_url=url):
        cache = get_cache_manager()
        observation = cache.observe(seen, Miss, Hit)
        cache.get("t", "k")
        cache.close()
        cache.get("t", "k")
        asyncio.run(get_async_cache_manager().aclose())
        observation.close()
        cache.get("t", "k")
    assert seen.kinds() == ["Miss", "Miss"]


def test_observing_the_process_wide_cache_does_not_open_it() -> None:
    with isolated(redis_enabled=False):
        get_cache_manager().observe(print, Miss).close()
        assert "not in use" in repr(get_cache_manager())


def test_a_forked_child_has_the_observers_of_its_parent(url: str) -> None:
    seen = Seen()
    with CacheManager(redis_url=url) as cache:
        cache.observe(seen)
        load = cache.cached("t")(_plain)
        load("k")
        load("k")

        def child() -> list[str]:
            seen.clear()
            for _ in range(4):
                load("k")
            cache.close()
            return seen.kinds()

        (kinds,) = in_forked_children(child)
    assert kinds == ["Hit"] * 4


def test_an_act_of_a_finalizer_is_told_with_the_next_event() -> None:
    from magnus_cache._engine.runtime.critical import section

    seen = Seen()
    with CacheManager(redis_enabled=False) as cache, cache.observe(seen, Deleted, Miss):
        with section():
            # As a finalizer that runs within a critical section would.
            cache.delete("t", "k")
            assert seen == []
        cache.get("t", "k")
        wait_until(lambda: len(seen) == 2)
    assert seen.kinds() == ["Deleted", "Miss"]
