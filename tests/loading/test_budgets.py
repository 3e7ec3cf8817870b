"""Budgets and pauses of sources: what loads wait for, in what order, and what their callers get."""

import asyncio
import pickle
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from magnus_cache import (
    AsyncCacheManager,
    Budget,
    BudgetExceeded,
    CacheArgumentError,
    CacheBudgetError,
    CacheManager,
    CacheTypeError,
    Namespace,
    RetryLater,
    SourcePaused,
)
from magnus_cache.embedded import EmbeddedServer
from tests.conftest import emptied
from tests.support.wait import nothing_happens_for, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

SHORT = "2/500ms"


class Source:
    """A loader that notes which keys it was asked for, and refuses while it is told to."""

    def __init__(self, refusals: int = 0, seconds: float = 0.3) -> None:
        self.asked: list[Any] = []
        self.at: list[float] = []
        self.refusals = refusals
        self.seconds = seconds

    def load_blocking(self, key: Any = None) -> Any:
        self.asked.append(key)
        self.at.append(time.monotonic())
        if self.refusals:
            self.refusals -= 1
            raise RetryLater(self.seconds)
        return key

    async def load(self, key: Any = None) -> Any:
        return self.load_blocking(key)

    async def many(self, keys: list[Any]) -> dict[Any, Any]:
        self.load_blocking(tuple(keys))
        return {key: key for key in keys}


@pytest.fixture
def anyio_backend() -> Any:
    """One loop alone: most of these tests wait for real time to pass."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """One server alone: `tests/redis/test_buckets.py` runs the scripts on each kind."""
    return emptied(running("valkey"))


@pytest.fixture(params=["shared", "alone"])
def options(request: pytest.FixtureRequest, server: EmbeddedServer) -> dict[str, Any]:
    return {"redis_url": server.url} if request.param == "shared" else {"redis_enabled": False}


@asynccontextmanager
async def several(number: int, **options: Any) -> AsyncGenerator[list[AsyncCacheManager]]:
    caches = [AsyncCacheManager(**options) for _ in range(number)]
    for cache in caches:
        await cache.get("t", "nothing")
    yield caches
    for cache in caches:
        await cache.close()


def getting(cache: AsyncCacheManager, namespace: str, source: Source, key: Any) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(cache.get_or_set(namespace, key, lambda: source.load(key)))


# -- what a budget counts ------------------------------------------------------------------------------------------


async def test_loads_past_the_budget_wait_and_hits_cost_nothing(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", budget=SHORT, hard_timeout=5), Source()
    async with several(1, **options) as (cache,):
        assert await asyncio.gather(*[getting(cache, namespace, source, key) for key in "abcde"]) == list("abcde")
        # In pairs: the loaders of a pair may run in threads, which begin in any order.
        assert [sorted(source.asked[at : at + 2]) for at in (0, 2, 4)] == [["a", "b"], ["c", "d"], ["e"]]
        for first, last in zip(source.at, source.at[2:], strict=False):
            assert last - first >= 0.5
        assert [await cache.get_or_set(namespace, "a", source.load) for _ in range(10)] == ["a"] * 10
        counts = (await cache.get_stats())["namespaces"]["t"]
        assert (counts["held_back"], counts["loads"]) == (3, 5)


def test_threads_wait_as_tasks_do(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", budget=SHORT), Source()
    with CacheManager(**options) as cache:
        for key in "abc":
            assert cache.get_or_set(namespace, key, lambda key=key: source.load_blocking(key)) == key
        assert source.at[2] - source.at[0] >= 0.5


async def test_a_load_that_many_wait_for_takes_one_token(url: str) -> None:
    namespace, source = Namespace("t", budget="2/h", hard_timeout=1), Source()
    async with several(2, redis_url=url) as caches:
        await asyncio.gather(*[getting(cache, namespace, source, "a") for cache in caches * 20])
        assert await getting(caches[0], namespace, source, "b") == "b"
        with pytest.raises(CacheBudgetError):
            await getting(caches[1], namespace, source, "c")
        assert source.asked == ["a", "b"]


async def test_the_fleet_shares_one_bucket(url: str) -> None:
    namespace, source = Namespace("t", budget="3/h", hard_timeout=1), Source()
    async with several(3, redis_url=url) as caches:
        for number, cache in enumerate(caches):
            await getting(cache, namespace, source, number)
        for cache in caches:
            with pytest.raises(CacheBudgetError):
                await getting(cache, namespace, source, "more")
        assert source.asked == [0, 1, 2]


async def test_a_call_of_a_batch_loader_is_one_load_unless_its_keys_are_counted(options: dict[str, Any]) -> None:
    source = Source()
    async with several(1, **options) as (cache,):
        calls = Namespace("calls", budget="2/h", hard_timeout=1)
        for keys in (list("abc"), list("def")):
            await cache.get_or_set_many(calls, keys, source.many)
        with pytest.raises(CacheBudgetError):
            await cache.get_or_set_many(calls, list("ghi"), source.many)
        keyed = Namespace("keys", budget=Budget("4/h", per_key=True), hard_timeout=1)
        await cache.get_or_set_many(keyed, list("abc"), source.many)
        with pytest.raises(CacheBudgetError):
            await cache.get_or_set_many(keyed, list("de"), source.many)
        assert await cache.get_or_set_many(keyed, list("ad"), source.many) == {"a": "a", "d": "d"}
        assert len(source.asked) == 4


def test_threads_take_tokens_for_their_batches(options: dict[str, Any]) -> None:
    namespace = Namespace("t", budget="1/h", hard_timeout=1)
    with CacheManager(**options) as cache:
        cache.get_or_set_many(namespace, list("abc"), lambda keys: dict.fromkeys(keys, 1))
        with pytest.raises(CacheBudgetError):
            cache.get_or_set_many(namespace, list("def"), lambda keys: dict.fromkeys(keys, 1))


async def test_each_value_of_a_placeholder_has_a_bucket_of_its_own(options: dict[str, Any]) -> None:
    source = Source()
    async with several(1, **options) as (cache,):
        budget = {"free:*": "9/h", "{broker}:*": "1/h"}

        @cache.cached("t", key="{broker}:{symbol}", budget=budget, hard_timeout=1)
        async def price(broker: str, symbol: str) -> str:
            return await source.load(broker)  # type: ignore[no-any-return]  # it is what it was given

        for broker in ("free", "free", "one", "two"):
            assert await price(broker, str(len(source.asked))) == broker
        for broker in ("one", "two"):
            with pytest.raises(CacheBudgetError, match=rf"t:.*price\(\):{broker}:\*"):
                await price(broker, "more")
        assert await price("free", "more") == "free"


async def test_a_function_has_a_bucket_of_its_own_and_shares_one_by_name(options: dict[str, Any]) -> None:
    namespace, calls = Namespace("t", budget="1/h", hard_timeout=1), list[str]()
    async with several(1, **options) as (cache,):

        @cache.cached(namespace)
        async def first() -> None:
            calls.append("first")

        @cache.cached(namespace, budget="1/h")
        async def own() -> None:
            calls.append("own")

        @cache.cached("a", budget=Budget("1/h", source="vendor"), hard_timeout=1)
        async def shared() -> None:
            calls.append("shared")

        @cache.cached("b", budget=Budget("1/h", source="vendor"), hard_timeout=1)
        async def other() -> None:
            calls.append("other")

        await first()
        await own()
        await shared()
        with pytest.raises(CacheBudgetError, match="'vendor'"):
            await other()
        assert calls == ["first", "own", "shared"]


# -- past it -------------------------------------------------------------------------------------------------------


async def test_a_turn_that_would_come_too_late_is_an_error_at_once(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", budget="1/min", hard_timeout=5), Source()
    async with several(1, **options) as (cache,):
        await getting(cache, namespace, source, "a")
        began = time.monotonic()
        with pytest.raises(CacheBudgetError) as raised:
            await getting(cache, namespace, source, "b")
        assert time.monotonic() - began < 3
        error = pickle.loads(pickle.dumps(raised.value))
        assert (error.namespace, str(error)) == ("t", str(raised.value))
        assert 55 < error.retry_after <= 60.25
        # A waiting caller of another key has room again: it was not left in the queue.
        assert source.asked == ["a"]


async def test_stale_values_are_served_at_once_and_the_bucket_is_left_alone(server: EmbeddedServer) -> None:
    namespace, source = Namespace("t", ttl=0.05, grace=60, budget="1/h", hard_timeout=5), Source()
    async with several(1, redis_url=server.url) as (cache,):
        await getting(cache, namespace, source, "a")
        await asyncio.to_thread(nothing_happens_for, 0.06)
        assert await getting(cache, namespace, source, "a") == "a"
        with redis.Redis.from_url(server.url, protocol=2) as client:
            before = scripts_run(client)
            assert [await getting(cache, namespace, source, "a") for _ in range(20)] == ["a"] * 20
            # The lease of the refused load may be released late, and statistics are published now and then.
            assert scripts_run(client) - before <= 3
        assert source.asked == ["a"]
        assert (await cache.get_stats())["namespaces"]["t"]["stale_hits"] == 21


def test_threads_get_stale_values(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", ttl=0.05, grace=60, budget="1/h"), Source()
    with CacheManager(**options) as cache:
        cache.get_or_set(namespace, "a", source.load_blocking)
        nothing_happens_for(0.06)
        cache.get_or_set(namespace, "a", source.load_blocking)
        assert len(source.asked) == 1


async def test_batches_get_stale_values(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", ttl=0.05, grace=60, budget="1/h", hard_timeout=5), Source()
    async with several(1, **options) as (cache,):
        await cache.get_or_set_many(namespace, list("ab"), source.many)
        await asyncio.to_thread(nothing_happens_for, 0.06)
        assert await cache.get_or_set_many(namespace, list("ab"), source.many) == {"a": "a", "b": "b"}
        with pytest.raises(CacheBudgetError):
            await cache.get_or_set_many(namespace, list("abc"), source.many)
        assert len(source.asked) == 1


async def test_hot_keys_come_first_and_background_loads_last(options: dict[str, Any]) -> None:
    namespace = Namespace("t", ttl=0.1, grace=60, budget="1/400ms", hard_timeout=10)
    lazy, source = Namespace("t", ttl=0.1, grace=60, soft_timeout=0, budget="1/400ms"), Source()
    async with several(1, **options) as (cache,):
        await getting(cache, lazy, source, "background")
        await asyncio.to_thread(nothing_happens_for, 0.11)
        assert await getting(cache, lazy, source, "background") == "background"
        await wait_until_async(lambda: len(cache._state.flights) == 1)
        cold = [getting(cache, namespace, source, key) for key in ("cold", "colder")]
        await wait_until_async(lambda: len(cache._state.flights) == 3)
        hot = [getting(cache, namespace, source, "hot") for _ in range(5)]
        await asyncio.gather(*cold, *hot)
        await wait_until_async(lambda: len(source.asked) == 5)
        assert source.asked == ["background", "hot", "cold", "colder", "background"]


async def test_waiting_sends_nothing_to_redis(server: EmbeddedServer) -> None:
    namespace, source = Namespace("t", budget="1/s", hard_timeout=5), Source()
    async with several(1, redis_url=server.url) as (cache,):
        await getting(cache, namespace, source, "a")
        with redis.Redis.from_url(server.url, protocol=2) as client:
            before = scripts_run(client)
            assert await getting(cache, namespace, source, "b") == "b"
            # The lease, the question, the turn, and the value.
            assert scripts_run(client) - before <= 5
        assert source.at[1] - source.at[0] >= 1


def scripts_run(client: "redis.Redis") -> int:
    figures: Any = client.info("commandstats")
    return sum(figures.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def test_a_cancelled_load_gives_its_place_to_the_next(server: EmbeddedServer) -> None:
    namespace, source = Namespace("t", budget="1/1500ms", hard_timeout=2), Source()
    async with several(2, redis_url=server.url) as caches:
        await getting(caches[0], namespace, source, "a")
        first = getting(caches[0], namespace, source, "b")
        await wait_until_async(lambda: caches[0]._state.stats.by_namespace()["t"].held_back)
        with pytest.raises(CacheBudgetError):
            await getting(caches[1], namespace, source, "c")
        first.cancel()
        with redis.Redis.from_url(server.url, protocol=2) as client:
            # At once, and not when its turn would have come.
            await wait_until_async(lambda: not client.hexists("magnus!budget:t", "w"), 1.0)
        assert await getting(caches[1], namespace, source, "c") == "c"
        assert source.asked == ["a", "c"]


async def test_the_lease_of_a_load_that_waits_does_not_lapse(url: str) -> None:
    namespace, source = Namespace("t", budget="1/s", hard_timeout=5), Source()
    async with several(2, redis_url=url, lease=0.3) as caches:
        await getting(caches[0], namespace, source, "a")
        first = getting(caches[0], namespace, source, "b")
        await wait_until_async(lambda: caches[0]._state.stats.by_namespace()["t"].held_back)
        assert await asyncio.gather(first, getting(caches[1], namespace, source, "b")) == ["b", "b"]
        assert source.asked == ["a", "b"]


async def test_warming_takes_tokens_and_waits_for_them(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", budget="2/300ms"), Source(refusals=1, seconds=0.1)
    for loader in (source.load, source.load_blocking):
        async with several(1, **options) as (cache,):
            source.at, source.refusals = [], 1
            report = await cache.warm_cache(namespace, loader, list("abcde"), concurrency=3)
            assert (report.loaded, report.failed) == (5, 0)
            assert len(source.at) == 6
            for before, after in zip(source.at, source.at[2:], strict=False):
                assert after - before >= 0.28
            await cache.clear("t")
            await asyncio.to_thread(nothing_happens_for, 0.4)


async def test_what_is_held_back_is_told(options: dict[str, Any]) -> None:
    namespace, source, events = Namespace("t", budget=SHORT, hard_timeout=0.7), Source(), list[Any]()
    async with several(1, **options) as (cache,):
        cache.observe(events.append, BudgetExceeded, SourcePaused)
        await asyncio.gather(*[getting(cache, namespace, source, key) for key in "abc"])
        waited = [(event.key, event.source, event.waits) for event in events]
        assert waited == [("magnus:t:c", "t", True)]
        assert 0.3 < events[0].retry_after < 0.6
        source.refusals, source.seconds = 1, 60
        with pytest.raises(CacheBudgetError, match="paused"):
            await getting(cache, namespace, source, "d")
        paused = [event for event in events if isinstance(event, SourcePaused)]
        assert paused == [SourcePaused("t", "t", 60)]
        assert events[-1].as_dict()["waits"] is False


# -- RetryLater ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, "100/s"])
async def test_a_source_that_asks_for_a_pause_is_asked_again_afterwards(
    options: dict[str, Any], budget: str | None
) -> None:
    namespace, source = Namespace("t", budget=budget, hard_timeout=5), Source(refusals=2)
    async with several(1, **options) as (cache,):
        assert await getting(cache, namespace, source, "a") == "a"
        assert source.asked == ["a"] * 3
        assert source.at[1] - source.at[0] >= 0.3
        assert source.at[2] - source.at[1] >= 0.3
        counts = (await cache.get_stats())["namespaces"]["t"]
        assert (counts["pauses"], counts["loads"], counts["load_errors"]) == (2, 1, 0)


@pytest.mark.parametrize("budget", [None, "100/s"])
def test_threads_wait_for_the_end_of_a_pause(options: dict[str, Any], budget: str | None) -> None:
    namespace, source = Namespace("t", budget=budget), Source(refusals=1)
    with CacheManager(**options) as cache:
        assert cache.get_or_set(namespace, "a", lambda: source.load_blocking("a")) == "a"
        assert source.at[1] - source.at[0] >= 0.3


@pytest.mark.parametrize("budget", [None, "100/s"])
@pytest.mark.parametrize("tracking", ["keys", "prefix", "off"])
async def test_a_pause_holds_for_the_whole_fleet_at_once(url: str, budget: str | None, tracking: str) -> None:
    namespace, source = Namespace("t", budget=budget, hard_timeout=1), Source(refusals=1, seconds=60)
    async with several(3, redis_url=url, tracking=tracking, max_staleness=0.2) as caches:
        with pytest.raises(CacheBudgetError, match="paused"):
            await getting(caches[0], namespace, source, "a")
        if budget is None:
            await wait_until_async(lambda: all(cache._state.sources.active for cache in caches))
        if tracking == "off":
            await asyncio.to_thread(nothing_happens_for, 0.25)
        for cache in caches:
            with pytest.raises(CacheBudgetError) as raised:
                await getting(cache, namespace, source, "b")
            assert 50 < raised.value.retry_after <= 60
        # Also for those that come later.
        async with several(1, redis_url=url) as (late,):
            with pytest.raises(CacheBudgetError):
                await getting(late, namespace, source, "c")
        assert source.asked == ["a"]
        assert await getting(caches[1], "other", source, "b") == "b"


async def test_a_paused_source_serves_stale_values(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", ttl=0.05, grace=60, hard_timeout=5), Source()
    async with several(1, **options) as (cache,):
        await getting(cache, namespace, source, "a")
        await asyncio.to_thread(nothing_happens_for, 0.06)
        source.refusals, source.seconds = 1, 30
        began = time.monotonic()
        assert [await getting(cache, namespace, source, "a") for _ in range(3)] == ["a"] * 3
        assert time.monotonic() - began < 3
        assert source.asked == ["a", "a"]


async def test_batch_loaders_pause_their_source(options: dict[str, Any]) -> None:
    namespace, source = Namespace("t", hard_timeout=5), Source(refusals=1)
    async with several(1, **options) as (cache,):
        assert await cache.get_or_set_many(namespace, list("ab"), source.many) == {"a": "a", "b": "b"}
        assert source.asked == [("a", "b")] * 2
        assert source.at[1] - source.at[0] >= 0.3


async def test_explain_tells_of_a_paused_source_and_of_a_budget_that_is_used_up(options: dict[str, Any]) -> None:
    source = Source()
    async with several(1, **options) as (cache,):
        limited, free = Namespace("limited", budget="1/h", hard_timeout=1), Namespace("free", hard_timeout=1)
        assert "source" not in (await cache.explain(limited, "a")).verdict
        await getting(cache, limited, source, "a")
        assert "budget of 1/h of its source 'limited' is used up" in (await cache.explain(limited, "b")).verdict
        assert (await cache.explain(limited, "a")).level is not None
        source.refusals, source.seconds = 2, 60
        with pytest.raises(CacheBudgetError):
            await getting(cache, free, source, "a")
        assert "its source 'free' is paused for 1 min more" in (await cache.explain(free, "b")).verdict

        @cache.cached(free, key="{key}", budget="1/h")
        async def own(key: str) -> str:
            return key

        await own("a")
        assert "budget of 1/h" in (await own.explain("b")).verdict
        assert "own()' is used up" in (await own.explain("b")).verdict


# -- without Redis -------------------------------------------------------------------------------------------------


@pytest.fixture
def private(running: Callable[[str], EmbeddedServer]) -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


async def test_in_an_outage_each_process_keeps_to_its_share(private: EmbeddedServer) -> None:
    namespace, source = Namespace("t", budget="6/h", hard_timeout=1), Source()
    async with several(3, redis_url=private.url, stats_interval=0.1) as caches:
        await wait_until_answered(lambda: _all_are_counted(caches))
        # What a process has taken itself counts; and it looks now at how many there are.
        assert await getting(caches[0], namespace, source, "before") == "before"
        for cache in caches[1:]:
            await cache.explain(namespace, "x")
        await wait_until_async(lambda: caches[0]._state.sources.processes == 3)
        private.stop()
        for number, cache in enumerate(caches):
            taken = 0
            for key in range(8):
                try:
                    await getting(cache, namespace, source, f"{number}:{key}")
                    taken += 1
                except CacheBudgetError:
                    break
            cache_share = caches[number]._state.sources.processes
            assert taken == 6 // cache_share - (number == 0)


async def _all_are_counted(caches: list[AsyncCacheManager]) -> bool:
    for cache in caches:
        await cache.get("t", "counted")
    return len(await caches[0].get_processes()) == len(caches)


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ("60", "no budget"), ("x/min", "no budget"), ("0/min", "1 to 10000"), ("60/fortnight", "not a duration"),
        ("1/32d", "31 days"), (60, "not int"), ({}, "empty"), ({"a": 1}, "not int"), ({1: "1/s"}, "not 1"),
        ({"{a b}": "1/s"}, "brace"), ({"": "1/s"}, "not ''"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_used(budget: Any, problem: str) -> None:
    with pytest.raises(CacheArgumentError, match=problem) as raised:
        Namespace("t", budget=budget)
    assert raised.value.argument == "budget"
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheArgumentError, match=problem):
        cache.cached("t", budget=budget)


def test_a_sealed_namespace_takes_no_patterns_of_keys() -> None:
    with pytest.raises(CacheArgumentError, match="sealed"):
        Namespace("t", seal=True, budget={"*": "1/s"})


@pytest.mark.parametrize(
    "make", [lambda: Budget(5), lambda: Budget("1/s", per_key=1), lambda: Budget("1/s", source=5)]  # type: ignore[arg-type]
)  # fmt: skip
def test_parts_of_a_budget_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(CacheTypeError):
        make()


def test_a_namespace_keeps_its_budget() -> None:
    namespace = Namespace("t", budget={"{a}:*": Budget("5/s", per_key=True), "*": "1/h"})
    assert pickle.loads(pickle.dumps(namespace)).policy == namespace.policy
    assert repr(Namespace("t", budget="60/min")).startswith("Namespace('t', budget=Budget(limit='60/min'")


@pytest.mark.parametrize("seconds", [0, -1, "1", True, float("nan")])
def test_a_pause_takes_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(CacheArgumentError, match="more than 0"):
        RetryLater(seconds)
    assert pickle.loads(pickle.dumps(RetryLater(1e9))).seconds == 86_400
