"""`keep_warm` in one process: what is loaded when, what goes wrong, and how a job ends."""

import asyncio
import functools
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import redis

from magnus_cache import (
    AsyncCacheManager,
    AsyncKeepWarm,
    CacheManager,
    KeepWarm,
    LoadStarted,
    Namespace,
    WarmJob,
    WarmJobLost,
    WarmJobTaken,
    WarmRound,
    configure,
    get_async_cache_manager,
)
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheArgumentError, CacheClosedError
from magnus_cache.testing import EmbeddedCluster, Proxy, VirtualClock, no_leaks, virtual_clock
from tests.conftest import emptied
from tests.support.inside import state_of, wake, warm_backlog, warm_dues
from tests.support.managers import managers
from tests.support.wait import nothing_happens_for_async, wait_until, wait_until_answered, wait_until_async

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """One kind of server, as most of this is about time and the one process; `tests/fleet` has both kinds."""
    return emptied(running("valkey"))


@pytest.fixture(params=[pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


@pytest.fixture
async def cache(clock: VirtualClock, url: str) -> AsyncGenerator[AsyncCacheManager]:
    async with AsyncCacheManager(redis_url=url) as cache:
        yield cache


@pytest.fixture(params=["redis", "memory"])
async def any_cache(
    request: pytest.FixtureRequest, clock: VirtualClock, url: str
) -> AsyncGenerator[AsyncCacheManager]:  # fmt: skip
    options: dict[str, Any] = {"redis_url": url} if request.param == "redis" else {"redis_enabled": False}
    async with AsyncCacheManager(**options) as cache:
        yield cache


REQUEST: ContextVar[str] = ContextVar("request", default="none")


class Source:
    """Counts how often each key was loaded."""

    def __init__(self) -> None:
        self.loads: Counter[Any] = Counter()
        self.calls: list[list[Any]] = []
        self.broken: set[Any] = set()

    def load(self, key: Any) -> dict[str, Any]:
        self.loads[key] += 1
        if key in self.broken:
            raise TimeoutError(key)
        return {"key": key, "load": self.loads[key]}

    def load_many(self, keys: list[Any]) -> dict[Any, Any]:
        self.calls.append(list(keys))
        return {key: self.load(key) for key in keys if key not in self.broken}


async def next_round(job: AsyncKeepWarm) -> None:
    """Wait for a round that begins from now on."""
    rounds = job.figures.rounds
    wake(job)
    # Its lease has ended, too, as the clock was advanced.
    await wait_until_async(lambda: job.figures.rounds > rounds and job.holds)
    await nothing_happens_for_async(0.05)


def cached(cache: AsyncCacheManager | CacheManager, source: Source, **options: Any) -> Any:
    @cache.cached("q", **{"ttl": 60, **options})
    async def quote(ticker: str, currency: str = "USD") -> dict[str, Any]:
        return source.load(ticker)

    return quote


# -- what is loaded ---------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_values_are_loaded_once_an_interval_and_readers_never_miss(
    any_cache: AsyncCacheManager, clock: VirtualClock
) -> None:
    source, keys = Source(), [f"T{number}" for number in range(20)]
    quote = cached(any_cache, source)
    async with any_cache.keep_warm(quote, keys, every="30s") as job:
        await wait_until_async(lambda: len(source.loads) == len(keys))
        await wait_until_async(lambda: job.figures.refreshed == len(keys))
        misses = (await any_cache.get_stats())["miss_count"]
        for _ in range(16):
            clock.advance(13)
            wake(job)
            # What is due by now is loaded before time goes on.
            await wait_until_answered(lambda: _is_done(job, clock))
            for key in keys:
                await quote(key)
        assert (await any_cache.get_stats())["miss_count"] == misses
        # 208 seconds are seven intervals, of which the first may be half as long. In steps of 13, some are 39 long.
        assert all(5 <= count <= 9 for count in source.loads.values()), source.loads


async def _is_done(job: AsyncKeepWarm, clock: VirtualClock) -> bool:
    """Whether the job has looked at what is due since the clock was advanced."""
    await asyncio.sleep(0)
    return warm_backlog(job, clock()) == 0


@pytest.mark.anyio
async def test_loads_are_spread_over_the_interval(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source, keys = Source(), [f"T{number}" for number in range(20)]
    quote = cached(cache, source)
    async with cache.keep_warm(quote, keys, every=30) as job:
        await wait_until_async(lambda: job.figures.refreshed == len(keys))
        clock.advance(10)
        clock.advance(5)
        await next_round(job)
        dues = sorted(warm_dues(job))
        gaps = [later - earlier for earlier, later in itertools.pairwise(dues)]
        assert len(dues) == len(keys)
        assert min(gaps) > 0.7, "twenty loads in half of thirty seconds"


@pytest.mark.anyio
async def test_what_another_process_has_loaded_is_not_loaded_again(
    cache: AsyncCacheManager, clock: VirtualClock, url: str
) -> None:
    source, theirs = Source(), Source()
    quote = cached(cache, source, key="{ticker}")
    async with AsyncCacheManager(redis_url=url) as other:
        there = cached(other, theirs, key="{ticker}")
        await there("A")
        async with cache.keep_warm(quote, ["A"], every=30) as job:
            await wait_until_async(lambda: job.figures.rounds)
            clock.advance(29)
            await next_round(job)
            # From here to the moment when it is due, there is no round.
            await there.refresh("A")
            clock.advance(3)
            wake(job)
            await wait_until_async(lambda: job.holds)
            await nothing_happens_for_async(0.3)
            assert not source.loads
            clock.advance(30)
            await wait_until_async(lambda: source.loads["A"] == 1)


@pytest.mark.anyio
async def test_a_deleted_value_is_loaded_again_within_the_next_round(
    cache: AsyncCacheManager, clock: VirtualClock
) -> None:
    source = Source()
    quote = cached(cache, source, ttl=600)
    async with cache.keep_warm(quote, ["A"], every=300) as job:
        await wait_until_async(lambda: source.loads["A"] == 1 and job.figures.refreshed == 1)
        await quote.invalidate("A")
        clock.advance(61)
        await wait_until_async(lambda: source.loads["A"] == 2)


@pytest.mark.anyio
async def test_a_value_that_lives_longer_than_the_interval_by_its_own_ttl_is_left_alone(
    cache: AsyncCacheManager, clock: VirtualClock
) -> None:
    """As with a calendar: while the market is closed, a value lives until it opens."""
    source, is_open = Source(), True

    @cache.cached("q", ttl=lambda _: 15 if is_open else 3_600)
    async def quote(ticker: str) -> Any:
        return source.load(ticker)

    async with cache.keep_warm(quote, ["A"], every=10) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        is_open = False
        clock.advance(10)
        await wait_until_async(lambda: job.figures.refreshed == 2)
        for _ in range(6):
            clock.advance(500)
            await next_round(job)
        assert source.loads["A"] == 2
        clock.advance(591)
        await wait_until_async(lambda: source.loads["A"] == 3)


@pytest.mark.anyio
async def test_memory_that_keeps_values_for_less_than_they_live(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source, short = Source(), Namespace("short", ttl=600, l1_ttl=1)

    @cache.cached(short)
    async def quote(ticker: str) -> Any:
        return source.load(ticker)

    async with cache.keep_warm(quote, ["A"], every=300) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        for _ in range(4):
            clock.advance(60)
            await next_round(job)
        assert source.loads["A"] == 1
        clock.advance(60)
        await wait_until_async(lambda: source.loads["A"] == 2)


@pytest.mark.anyio
async def test_local_objects_are_kept_warm_by_each_process(any_cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source = Source()

    @any_cache.cached(Namespace("models", local=True, ttl=60))
    async def model(name: str) -> object:
        source.load(name)
        return object()

    async with any_cache.keep_warm(model, ["a"]) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        assert job.holds
        clock.advance(50)
        await wait_until_async(lambda: source.loads["a"] == 2)


# -- functions and keys -----------------------------------------------------------------------------------------


class Desk:
    """Has methods to cache."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source

    def __cache_key__(self) -> str:
        return self.name

    def symbols(self) -> list[str]:
        return ["A"]


@pytest.mark.anyio
async def test_tuples_dicts_and_single_arguments(cache: AsyncCacheManager) -> None:
    called: list[tuple[str, str]] = []

    @cache.cached("q", ttl=60)
    async def quote(ticker: str, currency: str = "USD") -> str:
        called.append((ticker, currency))
        return ticker

    keys = ["A", ("B", "EUR"), {"currency": "GBP", "ticker": "C"}, ("A",)]
    async with cache.keep_warm(quote, keys) as job:
        await wait_until_async(lambda: job.figures.refreshed == 3)
    assert called == [("A", "USD"), ("B", "EUR"), ("C", "GBP")]
    assert await quote("B", currency="EUR") == "B"
    assert len(called) == 3


@pytest.mark.anyio
async def test_methods_and_what_other_decorators_wrap(cache: AsyncCacheManager) -> None:
    source = Source()

    class Prices(Desk):
        @cache.cached("q", ttl=60)
        async def price(self, ticker: str) -> Any:
            return self.source.load((self.name, ticker))

        @classmethod
        @cache.cached("q", ttl=60)
        async def rate(cls, ticker: str) -> Any:
            return source.load(("rate", ticker))

    desk, wrapped = Prices("us", source), cached(cache, source)

    @functools.wraps(wrapped)
    async def logged(ticker: str) -> Any:
        return await wrapped(ticker)

    jobs = [
        cache.keep_warm(desk.price, ["A"]), cache.keep_warm(Prices.price, [(desk, "B")]),
        cache.keep_warm(Prices.rate, ["C"]), cache.keep_warm(logged, ["D"]),
    ]  # fmt: skip
    await wait_until_async(lambda: source.loads == Counter({("us", "A"): 1, ("us", "B"): 1, ("rate", "C"): 1, "D": 1}))
    for job in jobs:
        await job.aclose()


@pytest.mark.anyio
async def test_functions_of_many_keys_are_called_with_many(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source = Source()
    source.broken.add(3)

    @cache.cached_many("q", ttl=60)
    async def quotes(tickers: list[int], currency: str = "USD") -> dict[int, Any]:
        return source.load_many(tickers)

    keys = [*range(600), *((number, "EUR") for number in range(10))]
    async with cache.keep_warm(quotes, keys, every=30) as job:
        await wait_until_async(lambda: job.figures.refreshed == len(keys) - 2)
        assert len(source.calls) <= 6
        assert set(await quotes([1, 2])) == {1, 2}
        clock.advance(25)
        await nothing_happens_for_async(0.1)
        before = len(source.calls)
        clock.advance(10)
        await wait_until_async(lambda: job.figures.refreshed == 2 * (len(keys) - 2))
        assert len(source.calls) - before <= 12


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["function", "coroutine function"])
async def test_keys_are_asked_for_anew(cache: AsyncCacheManager, clock: VirtualClock, kind: str) -> None:
    source, listed, threads = Source(), ["A"], set[int]()

    def symbols() -> list[str]:
        threads.add(threading.get_ident())
        return list(listed)

    async def symbols_async() -> list[str]:
        threads.add(threading.get_ident())
        return list(listed)

    asked: Any = symbols if kind == "function" else symbols_async
    async with cache.keep_warm(cached(cache, source), asked, every=30, name="symbols") as job:
        await wait_until_async(lambda: source.loads["A"] == 1)
        listed[:] = ["B"]
        clock.advance(16)
        await wait_until_async(lambda: source.loads["B"] == 1 and job.figures.refreshed == 2)
        assert job.figures.keys == 1
        clock.advance(30)
        await wait_until_async(lambda: source.loads["B"] == 2)
        assert source.loads["A"] == 1
    # What may ask a database must not block the loop.
    assert (threading.get_ident() in threads) == (kind == "coroutine function")


@pytest.mark.anyio
async def test_keys_that_cannot_be_asked_for_do_not_end_the_job(
    cache: AsyncCacheManager, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, works = Source(), [True]

    def symbols() -> Any:
        if not works[0]:
            raise RuntimeError("secret")
        return ["A"]

    async with cache.keep_warm(cached(cache, source), symbols, every=30, name="symbols") as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        works[0] = False
        clock.advance(20)
        await wait_until_async(lambda: job.figures.error == "RuntimeError")
        # With the keys that it has.
        clock.advance(20)
        await wait_until_async(lambda: job.figures.refreshed == 2)
        works[0] = True
        clock.advance(20)
        await next_round(job)
    lines = [record.getMessage() for record in caplog.records if "keeping q:" in record.getMessage()]
    assert len(lines) == 1
    assert "asking for its keys failed" in lines[0]
    assert "secret" not in lines[0]


@pytest.mark.anyio
async def test_no_keys_and_unusable_keys(
    cache: AsyncCacheManager, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    async with cache.keep_warm(cached(cache, source), []) as job:
        await wait_until_async(lambda: job.figures.rounds == 1)
        clock.advance(100)
        await wait_until_async(lambda: job.figures.rounds == 2)
        assert job.figures.keys == 0
    async with cache.keep_warm(cached(cache, source), ["A", ("B", "USD", "too many"), object()]) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        assert job.figures.keys == 1
    assert "some of its keys cannot be used" in caplog.text


@pytest.mark.anyio
async def test_ten_thousand_keys_leave_the_loop_free(cache: AsyncCacheManager) -> None:
    source, longest, running = Source(), [0.0], True

    async def watch() -> None:
        while running:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest[0] = max(longest[0], time.thread_time() - began)

    quote = cached(cache, source, ttl=3_600)
    await cache.warm_cache("other", lambda key: key, [0])
    watcher = asyncio.create_task(watch())
    async with cache.keep_warm(quote, range(10_000), every=1_800, concurrency=64) as job:
        # The names of ten thousand keys, and their first look: no value is there.
        await wait_until_async(lambda: job.figures.keys == 10_000)
    running = False
    await watcher
    # In time of this thread's processor, as the machine has other work; a tenth of what all keys together take.
    assert longest[0] < 0.1


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_key_that_fails_is_tried_less_often_and_the_others_go_on(
    cache: AsyncCacheManager, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    source.broken.add("BAD")
    async with cache.keep_warm(cached(cache, source), ["BAD", "A"], every=30) as job:
        await wait_until_async(lambda: job.figures.failed == 1 and job.figures.refreshed == 1)
        assert job.figures.error == "TimeoutError"
        for _ in range(30):
            clock.advance(1)
            await nothing_happens_for_async(0.01)
        # After 2, 4 and 8 and 15 seconds, and each a part earlier, instead of thirty times.
        assert 2 <= source.loads["BAD"] <= 6
        clock.advance(30)
        await wait_until_async(lambda: job.figures.refreshed >= 2)
        source.broken.clear()
        clock.advance(31)
        await wait_until_async(lambda: job.figures.refreshed >= 3)
    assert sum("of its loads failed" in record.getMessage() for record in caplog.records) == 1


class BusyError(Exception):
    """As the clients of many services raise it."""

    retry_after = 20.0


@pytest.mark.anyio
async def test_an_error_may_say_when_to_try_again(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    called: list[str] = []

    @cache.cached("q", ttl=60)
    async def quote(ticker: str) -> str:
        called.append(ticker)
        raise BusyError

    async with cache.keep_warm(quote, ["A"], every=30) as job:
        await wait_until_async(lambda: job.figures.failed == 1)
        clock.advance(19)
        await next_round(job)
        assert len(called) == 1
        clock.advance(2)
        wake(job)
        await wait_until_async(lambda: len(called) == 2)


@pytest.mark.anyio
async def test_a_load_that_hangs_does_not_hold_up_the_others(cache: AsyncCacheManager) -> None:
    gate = asyncio.Event()

    @cache.cached("q", ttl=60, hard_timeout=0.05)
    async def quote(ticker: str) -> str:
        if ticker == "SLOW":
            await gate.wait()
        return ticker

    async with cache.keep_warm(quote, ["SLOW", "A"], every=30, concurrency=1) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1 and job.figures.error == "CacheTimeoutError")
        gate.set()


@pytest.mark.anyio
async def test_what_is_not_stored_is_not_loaded_all_the_time(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source = Source()
    quote = cached(cache, source, skip_if=lambda _: True)
    async with cache.keep_warm(quote, ["A"], every=30) as job:
        await wait_until_async(lambda: source.loads["A"] == 1)
        await nothing_happens_for_async(0.3)
        assert source.loads["A"] == 1
        assert job.figures.refreshed == job.figures.failed == 0
        clock.advance(2)
        await wait_until_async(lambda: source.loads["A"] == 2)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()], ids=["exit", "cancelled"])
async def test_what_would_end_a_task_does_not_end_the_job(
    cache: AsyncCacheManager, clock: VirtualClock, error: BaseException
) -> None:
    raised: list[str] = []

    @cache.cached("q", ttl=60)
    async def quote(ticker: str) -> str:
        if not raised:
            raised.append(ticker)
            raise error
        return ticker

    async with cache.keep_warm(quote, ["A"], every=30) as job:
        await wait_until_async(lambda: job.figures.failed == 1)
        clock.advance(5)
        await wait_until_async(lambda: job.figures.refreshed == 1)
        assert job.running


@pytest.mark.anyio
async def test_a_disabled_cache_loads_nothing(cache: AsyncCacheManager, clock: VirtualClock) -> None:
    source = Source()
    with cache.disabled():
        async with cache.keep_warm(cached(cache, source), ["A"]) as job:
            await wait_until_async(lambda: job.figures.rounds)
            await nothing_happens_for_async(0.1)
            assert not source.loads


# -- several processes, in short; with real ones in `tests/fleet` -----------------------------------------------


@pytest.mark.anyio
async def test_one_of_several_caches_has_the_job(cache: AsyncCacheManager, clock: VirtualClock, url: str) -> None:
    source, keys = Source(), [f"T{number}" for number in range(5)]
    async with AsyncCacheManager(redis_url=url) as other:
        # Both are the same function of the same program, as far as the fleet can tell.
        quotes = [cached(each, source, key="{ticker}") for each in (cache, other)]
        jobs = [
            each.keep_warm(quote, keys, every=30, name="T") for each, quote in zip((cache, other), quotes, strict=True)
        ]
        await wait_until_async(lambda: sum(job.holds for job in jobs) == 1 and sum(source.loads.values()) == 5)
        first, second = sorted(jobs, key=lambda job: not job.holds)
        (listed,) = await (cache if first is jobs[1] else other).warm_jobs()
        assert listed.name == first.figures.name
        assert listed.process is not None
        assert listed.process.endswith(f":{os.getpid()}")
        assert not listed.here
        await first.aclose()
        assert not first.running
        clock.advance(11)
        await wait_until_async(lambda: second.holds)
        clock.advance(20)
        await wait_until_async(lambda: sum(source.loads.values()) == 10)
        await second.aclose()
        assert await cache.warm_jobs() == []


@pytest.mark.anyio
async def test_a_job_whose_lease_was_taken_is_given_up(
    cache: AsyncCacheManager, clock: VirtualClock, raw: redis.Redis
) -> None:
    source, seen = Source(), list[Any]()
    with cache.observe(seen.append, WarmJobTaken, WarmJobLost):
        async with cache.keep_warm(cached(cache, source), ["A"], every=30, name="a") as job:
            await wait_until_async(lambda: job.holds)
            (lease,) = raw.keys("magnus!warm:*")  # type: ignore[misc]  # not awaited
            raw.set(lease, b"another:1:token\nnonsense", px=60_000)
            clock.advance(6)
            await wait_until_async(lambda: not job.holds)
            clock.advance(60)
            await nothing_happens_for_async(0.3)
            assert source.loads["A"] <= 2
            assert [each.name for each in await cache.warm_jobs()] == [job.figures.name]
            # A lease without an end is no lease.
            raw.persist(lease)
            clock.advance(60)
            await wait_until_async(lambda: job.holds)
    assert [type(event) for event in seen] == [WarmJobTaken, WarmJobLost, WarmJobTaken, WarmJobLost]
    assert [event.reason for event in seen[1::2]] == ["taken", "stopped"]
    assert raw.keys("magnus!warm:*") == []


@pytest.mark.anyio
async def test_without_contact_the_job_ends_with_its_lease(clock: VirtualClock, proxy: Proxy) -> None:
    source, seen = Source(), list[Any]()
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        cache.observe(seen.append, WarmJobTaken, WarmJobLost)
        async with cache.keep_warm(cached(cache, source), ["A"], every=30) as job:
            await wait_until_async(lambda: source.loads["A"] == 1)
            proxy.refuse()
            proxy.cut()
            clock.advance(9)
            await nothing_happens_for_async(0.1)
            # The lease of ten seconds was taken or renewed at most a second ago.
            clock.advance(11)
            assert not job.holds
            clock.advance(60)
            await wait_until_async(lambda: any(isinstance(event, WarmJobLost) for event in seen))
            assert source.loads["A"] == 1
            proxy.resume()
            await wait_until_async(lambda: job.holds)
            await wait_until_async(lambda: source.loads["A"] == 2)
    assert [getattr(event, "reason", "") for event in seen] == ["", "outage", "", "stopped"]


@pytest.mark.anyio
async def test_on_a_cluster(clock: VirtualClock, cluster: EmbeddedCluster) -> None:
    source, keys = Source(), [f"T{number}" for number in range(30)]
    async with managers(cluster.url, redis_cluster=True) as caches:
        quotes = [cached(each, source, key="{ticker}") for each in caches]
        jobs = [
            each.keep_warm(quote, keys, every=30, name="T") for each, quote in zip(caches, quotes, strict=True)
        ]  # fmt: skip
        await wait_until_async(lambda: sum(job.figures.refreshed for job in jobs) == len(keys))
        first, second = sorted(jobs, key=lambda job: not job.holds)
        assert [job.process is not None for job in await caches[0].warm_jobs()] == [True]
        await first.aclose()
        clock.advance(31)
        await wait_until_async(lambda: second.figures.refreshed == len(keys))
        assert source.loads == Counter(dict.fromkeys(keys, 2))


# -- events and figures -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_events_and_figures(cache: AsyncCacheManager) -> None:
    source, seen = Source(), list[Any]()
    cache.observe(seen.append, WarmJobTaken, WarmRound, LoadStarted)
    async with cache.keep_warm(cached(cache, source), ["A", "B"], every="30s", name="two") as job:
        await wait_until_async(lambda: job.figures.refreshed == 2)
        figures = job.figures
        assert (await cache.get_stats())["warm_jobs"][figures.name]["refreshed"] == 2
        assert "refreshing here" in repr(job)
    assert figures.name.startswith("q:")
    assert figures.name.endswith(":two")
    assert isinstance(figures, WarmJob)
    assert (figures.keys, figures.every, figures.rounds, figures.failed, figures.here) == (2, 30.0, 1, 0, True)
    assert {type(event) for event in seen} == {WarmJobTaken, WarmRound, LoadStarted}
    assert all(event.background for event in seen if isinstance(event, LoadStarted))
    assert "stopped" in repr(job)
    assert "warm_jobs" not in await cache.get_stats()


# -- blocking code ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
def test_blocking_code_has_jobs_in_the_background(clock: VirtualClock, url: str, kind: str) -> None:
    source = Source()
    with CacheManager(redis_url=url) as cache:

        @cache.cached("q", ttl=60)
        def quote(ticker: str) -> Any:
            return source.load(ticker)

        @cache.cached("q", ttl=60)
        async def quote_async(ticker: str) -> Any:
            return source.load(ticker)

        function: Any = quote if kind == "function" else quote_async
        with cache.keep_warm(function, ["A", "B"], every=30) as job:
            assert isinstance(job, KeepWarm)
            wait_until(lambda: job.figures.refreshed == 2)
            assert [each.here for each in cache.warm_jobs()] == [True]
            clock.advance(31)
            wait_until(lambda: job.figures.refreshed == 4)
        assert not job.running
        assert cache.warm_jobs() == []
        if kind == "function":
            assert quote("A")["load"] == 2


def test_a_loader_of_blocking_code_that_exits_does_not_end_the_background_loop(clock: VirtualClock, url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        @cache.cached("q", ttl=60)
        def quote(ticker: str) -> Any:
            raise SystemExit(3)

        with cache.keep_warm(quote, ["A"]) as job:
            wait_until(lambda: job.figures.failed == 1)
            assert job.running
            assert cache.get("q", "other") is None


# -- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_closed_cache_leaves_nothing_of_its_jobs(url: str, raw: redis.Redis) -> None:
    began, gate = asyncio.Event(), asyncio.Event()
    raw.ping()
    async with no_leaks():
        cache = AsyncCacheManager(redis_url=url)

        @cache.cached("q", ttl=60)
        async def quote(ticker: str) -> None:
            began.set()
            await gate.wait()

        job = cache.keep_warm(quote, ["A"])
        await began.wait()
        assert raw.keys("magnus!warm*")
        await cache.aclose()
        assert not job.running
        assert raw.keys("magnus!warm*") == []
        with pytest.raises(CacheClosedError):
            cache.keep_warm(quote, ["A"])
        await job.aclose()


def test_a_closed_blocking_cache_leaves_nothing_of_its_jobs(url: str, raw: redis.Redis) -> None:
    began, gate = threading.Event(), threading.Event()
    raw.ping()
    with no_leaks():
        cache = CacheManager(redis_url=url)

        @cache.cached("q", ttl=60)
        def quote(ticker: str) -> None:
            began.set()
            gate.wait(20)

        job = cache.keep_warm(quote, ["A"])
        assert began.wait(20)
        gate.set()
        cache.close()
        assert not job.running
        assert raw.keys("magnus!warm*") == []


def test_a_loop_that_ends_ends_its_jobs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    cache, source = AsyncCacheManager(redis_url=url), Source()
    quote = cached(cache, source)

    async def main() -> AsyncKeepWarm:
        job = cache.keep_warm(quote, ["A"], every=30)
        await wait_until_async(lambda: source.loads["A"] == 1)
        return job

    ended = asyncio.run(main())
    assert not ended.running
    ended.stop()
    cache.sync.close()
    assert "destroyed" not in caplog.text


@pytest.mark.anyio
async def test_a_job_outlives_its_beginner_and_stops_from_another_thread(cache: AsyncCacheManager) -> None:
    jobs, requests = list[AsyncKeepWarm](), list[str]()

    @cache.cached("q", ttl=60)
    async def quote(ticker: str) -> str:
        requests.append(REQUEST.get())
        return ticker

    async def begin() -> None:
        REQUEST.set("ended long ago")
        jobs.append(cache.keep_warm(quote, ["A"], every=30))

    await asyncio.create_task(begin())
    (job,) = jobs
    await wait_until_async(lambda: job.figures.refreshed == 1)
    assert requests == ["none"]
    await asyncio.to_thread(job.stop)
    await wait_until_async(lambda: not job.running)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_leaves_the_job_to_its_parent(url: str) -> None:
    source = Source()
    with CacheManager(redis_url=url) as cache:

        @cache.cached("q", ttl=60)
        def quote(ticker: str) -> Any:
            return source.load(ticker)

        with cache.keep_warm(quote, ["A"], every=30) as job:
            wait_until(lambda: job.figures.refreshed == 1)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = 0 if not job.running and not job.holds and not state_of(cache).jobs.running() else 2
                    job.stop()
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert job.holds


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        pytest.param({"function": len}, "function", "decorated with `cached`", id="not-cached"),
        pytest.param({"function": 5}, "function", "decorated with `cached`", id="no-function"),
        pytest.param({"every": 0}, "every", "more than zero", id="zero"),
        pytest.param({"every": -1}, "every", "more than zero", id="negative"),
        pytest.param({"every": "soon"}, "every", "write '90s'", id="no-duration"),
        pytest.param({"every": 60}, "every", "such as 30", id="as-long-as-the-ttl"),
        pytest.param({"every": "2m"}, "every", "or the function a longer one", id="longer-than-the-ttl"),
        pytest.param({"keys": "AAPL"}, "keys", "put it into a list", id="text"),
        pytest.param({"keys": 5}, "keys", "an iterable of keys", id="no-iterable"),
        pytest.param({"keys": [("A", "B", "C")]}, "keys", "the first one does not suit", id="too-many-arguments"),
        pytest.param({"concurrency": 0}, "concurrency", "1 or more", id="no-loads"),
        pytest.param({"name": ""}, "name", "1 to 100 characters", id="no-name"),
        pytest.param({"keys": Desk("a", Source()).symbols.__get__}, "name", "name='watchlist'", id="nameless"),
    ],
)
async def test_bad_input(cache: AsyncCacheManager, arguments: dict[str, Any], named: str, remedy: str) -> None:
    given: dict[str, Any] = {"function": cached(cache, Source()), "keys": ["A"], **arguments}
    with pytest.raises(CacheArgumentError, match=remedy) as caught:
        cache.keep_warm(given.pop("function"), given.pop("keys"), **given)
    assert caught.value.argument == named


@pytest.mark.anyio
async def test_a_function_of_another_cache(cache: AsyncCacheManager, url: str) -> None:
    async with AsyncCacheManager(redis_url=url, prefix="other") as other:
        quote = cached(other, Source())
        with pytest.raises(CacheArgumentError, match="call `keep_warm` of that one"):
            cache.keep_warm(quote, ["A"])


@pytest.mark.anyio
async def test_functions_of_keys_are_told_apart(cache: AsyncCacheManager) -> None:
    quote, names = cached(cache, Source()), list[str]()
    lists = [["A"], ["B"]]
    sources: list[Any] = [lambda: ["A"], lambda: ["B"], *(functools.partial(list, each[0]) for each in lists)]
    sources[2:] = [functools.partial(_listed, each[0]) for each in lists]

    class Unknown:
        def symbols(self) -> list[str]:
            return ["A"]

    for source in sources:
        async with cache.keep_warm(quote, source) as job:
            await wait_until_async(lambda: job.figures.name)
            names.append(job.figures.name)
    # The constants of code count, too: these lambdas differ in nothing else.
    assert len(set(names)) == 4
    with pytest.raises(CacheArgumentError, match="give the job a name"):
        cache.keep_warm(quote, Unknown().symbols)
    async with cache.keep_warm(quote, Unknown().symbols, name="mine"):
        pass


def _listed(ticker: str) -> list[str]:
    return [ticker]


@pytest.mark.anyio
async def test_a_process_wide_function(url: str) -> None:
    configure(redis_url=url)
    cache, source = get_async_cache_manager(), Source()
    quote = cached(cache, source)
    async with cache.keep_warm(quote, ["A"]) as job:
        await wait_until_async(lambda: job.figures.refreshed == 1)
        assert len(await cache.warm_jobs()) == 1
    await cache.aclose()
