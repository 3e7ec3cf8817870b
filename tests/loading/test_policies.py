"""Policies of freshness on real servers: grace, stale-while-revalidate, stale-if-error, timeouts, early refresh, errors
that are remembered, conditional refresh. Async and blocking callers, near and from Redis alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis

from magnus_cache import (
    NOT_MODIFIED,
    AsyncCacheManager,
    CacheBatchError,
    CacheEncodeError,
    CacheTimeoutError,
    CacheTypeError,
    Namespace,
    current_load,
)
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing import Proxy, VirtualClock, no_leaks, virtual_clock
from tests.support.fleet_of_managers import near
from tests.support.loaders import PickyError, Slow, SourceError
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

NAME = b"magnus:t:k"


class NotFoundError(LookupError):
    """What it answers with."""

    def __init__(self, ticker: str, *, hint: str = "none") -> None:
        super().__init__(f"no {ticker}")
        self.ticker = ticker
        self.hint = hint


class Source:
    """A loader that counts its calls, and fails when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self) -> list[int]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return [self.calls]


class Caller:
    """One cache, asked from coroutines or from threads."""

    def __init__(self, manager: AsyncCacheManager, way: str) -> None:
        self.manager = manager
        self.way = way

    async def get_or_set(self, namespace: str, loader: Any, ttl: Any = 10, **options: Any) -> Any:
        if self.way == "async":
            return await self.manager.get_or_set(namespace, "k", loader, ttl, **options)
        return await asyncio.to_thread(self.manager.sync.get_or_set, namespace, "k", loader, ttl, **options)

    def counted(self) -> dict[str, Any]:
        figures: dict[str, Any] = self.manager._engine.state.stats.as_dict()["namespaces"]["t"]
        return figures

    async def forget(self) -> None:
        """Let the near cache be empty, as in another process."""
        self.manager._engine.state.memory.clear()


@pytest.fixture(params=["async", "blocking"])
def way(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def clock() -> Any:
    with virtual_clock() as clock:
        yield clock


@pytest.fixture
def caller(url: str, way: str, clock: VirtualClock) -> Any:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Caller]:
        async with AsyncCacheManager(redis_url=options.pop("redis_url", url), **options) as manager:
            yield Caller(manager, way)

    return opened


Opened = Callable[..., Any]


# -- stale if error -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l1", [True, False])
@pytest.mark.parametrize("forget", [True, False])
async def test_a_stale_value_is_served_when_its_source_fails(
    caller: Opened, clock: VirtualClock, l1: bool, forget: bool
) -> None:
    source, namespace = Source(), Namespace("t", grace=60, l1=l1, retry=5)
    async with caller() as cache:
        assert await cache.get_or_set(namespace, source) == [1]
        clock.advance(11)
        source.error = SourceError("away")
        if forget:
            await cache.forget()
        assert await cache.get_or_set(namespace, source) == [1]
        assert source.calls == 2
        # Left alone for a while, then tried again.
        assert await cache.get_or_set(namespace, source) == [1]
        assert source.calls == 2
        clock.advance(6)
        assert await cache.get_or_set(namespace, source) == [1]
        assert source.calls == 3
        source.error = None
        clock.advance(6)
        assert await cache.get_or_set(namespace, source) == [4]
        assert cache.counted()["stale_hits"] == 3


async def test_past_its_grace_a_value_is_gone(caller: Opened, clock: VirtualClock) -> None:
    source, namespace = Source(), Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, source)
        clock.advance(71)
        source.error = SourceError("away")
        with pytest.raises(SourceError):
            await cache.get_or_set(namespace, source)


async def test_without_a_grace_an_error_is_the_callers(caller: Opened, clock: VirtualClock) -> None:
    source = Source()
    async with caller() as cache:
        await cache.get_or_set("t", source)
        clock.advance(11)
        source.error = SourceError("away")
        with pytest.raises(SourceError):
            await cache.get_or_set("t", source)


@pytest.mark.parametrize("how", ["delete", "clear", "tag", "set"])
async def test_what_was_invalidated_is_not_served_stale(caller: Opened, clock: VirtualClock, how: str) -> None:
    """Invariant 1: grace is for what has aged, not for what is wrong."""
    source, namespace = Source(), Namespace("t", grace=60)
    async with caller() as cache, caller() as peer:
        await cache.get_or_set(namespace, source, tags="x")
        clock.advance(11)
        if how == "delete":
            await peer.manager.delete("t", "k")
        elif how == "clear":
            await peer.manager.clear("t")
        elif how == "tag":
            await peer.manager.invalidate_tags("x")
        else:
            await peer.manager.set(namespace, "k", ["newer"], 1)
            clock.advance(2)
        await cache.manager.get_stats()
        source.error = SourceError("away")
        if how == "set":
            assert await cache.get_or_set(namespace, source) == ["newer"]
        else:
            with pytest.raises(SourceError):
                await cache.get_or_set(namespace, source)


async def test_a_mistake_in_the_program_is_not_hidden_by_a_stale_value(caller: Opened, clock: VirtualClock) -> None:
    namespace = Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, lambda: 1)
        clock.advance(11)
        with pytest.raises(CacheEncodeError):
            await cache.get_or_set(Namespace("t", grace=60, strict=True), object)


@pytest.mark.parametrize("which", ["ttl", "skip_if", "tags"])
async def test_a_value_that_its_rules_choke_on_is_as_good_as_none(
    caller: Opened, clock: VirtualClock, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    """As from a source whose answer lacks the field that tells for how long it is good."""
    reply: dict[str, Any] = {"for": 10, "drop": False, "tag": "x"}
    calls = 0

    def load() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return dict(reply)

    async def load_async() -> dict[str, Any]:
        return load()

    namespace = Namespace("t", grace=60, retry=5)
    async with caller() as cache:
        decorate = cache.manager.cached(
            namespace=namespace,
            ttl=lambda value: value["for"],
            skip_if=lambda value: value["drop"],
            tags=lambda value: value["tag"],
        )
        call = decorate(load_async) if cache.way == "async" else partial(asyncio.to_thread, decorate(load))
        first = await call()
        clock.advance(11)
        del reply[{"ttl": "for", "skip_if": "drop", "tags": "tag"}[which]]
        assert await call() == first
        assert await call() == first
        assert calls == 2, "tried again at once"
        assert "failed (KeyError)" in caplog.text
        clock.advance(61)
        with pytest.raises(KeyError):
            await call()


async def test_get_serves_nothing_stale(caller: Opened, clock: VirtualClock) -> None:
    """Who only looks has no source, so that nobody would refresh it."""
    namespace = Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, lambda: [1])
        clock.advance(11)
        manager = cache.manager
        for _ in range(2):
            assert await manager.get(namespace, "k") is None
            assert not await manager.contains(namespace, "k")
            assert await manager.get_many(namespace, ["k"]) == {}
            assert await manager.ttl(namespace, "k") is None
            await cache.forget()
        explanation = await manager.explain(namespace, "k")
        assert explanation.level is None
        assert "past its end" in explanation.verdict
        assert "may be served stale" in explanation.verdict


async def test_a_stale_value_is_a_callers_own(caller: Opened, clock: VirtualClock) -> None:
    source, namespace = Source(), Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, source)
        clock.advance(11)
        source.error = SourceError("away")
        (await cache.get_or_set(namespace, source)).append("spoiled")
        assert await cache.get_or_set(namespace, source) == [1]


async def test_in_an_outage_a_stale_value_is_better_than_none(
    proxy: Proxy, caller: Opened, clock: VirtualClock
) -> None:
    source, namespace = Source(), Namespace("t", grace=60)
    async with caller(redis_url=proxy.url) as cache:
        await cache.get_or_set(namespace, source)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache.manager._engine.state.reachable)
        clock.advance(11)
        source.error = SourceError("away as well")
        assert await cache.get_or_set(namespace, source) == [1]
        source.error = None
        clock.advance(6)
        assert await cache.get_or_set(namespace, source) == [3]


@pytest.mark.parametrize("age", [1, 11])
async def test_what_a_peer_deleted_while_we_were_cut_off_is_served_neither_fresh_nor_stale(
    url: str, proxy: Proxy, caller: Opened, clock: VirtualClock, age: int
) -> None:
    """Invariant 5: what was read through a connection that broke is not good enough for an excuse either."""
    source, namespace = Source(), Namespace("t", grace=60)
    async with AsyncCacheManager(redis_url=url) as peer, caller(redis_url=proxy.url) as cache:
        await cache.get_or_set(namespace, source)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache.manager._engine.state.reachable)
        await peer.delete("t", "k")
        clock.advance(age)
        proxy.resume()
        await wait_until_async(lambda: cache.manager._engine.state.reachable)
        source.error = SourceError("away as well")
        with pytest.raises(SourceError):
            await cache.get_or_set(namespace, source)


# -- stale while revalidate, timeouts -----------------------------------------------------------------------------


async def test_stale_while_revalidate(caller: Opened, clock: VirtualClock) -> None:
    """All get the stale value at once, one load goes on for them, and then all get the new one."""
    slow, namespace = Slow(), Namespace("t", grace=60, soft_timeout=0)
    async with caller() as cache:
        slow.finish()
        assert await cache.get_or_set(namespace, slow) == 1
        clock.advance(11)
        assert await asyncio.gather(*(cache.get_or_set(namespace, slow) for _ in range(10))) == [1] * 10
        await slow.begun(2)
        assert cache.manager._engine.state.flights.background == 1
        assert (await cache.manager.get_stats())["unattended"] == 1
        slow.finish(2)
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert await cache.get_or_set(namespace, slow) == 2
        assert slow.calls == 2


async def test_a_soft_timeout_lets_a_quick_load_win(caller: Opened, clock: VirtualClock) -> None:
    slow, namespace = Slow(), Namespace("t", grace=60, soft_timeout=5)
    async with caller() as cache:
        slow.finish()
        await cache.get_or_set(namespace, slow)
        clock.advance(11)
        slow.finish(2)
        assert await cache.get_or_set(namespace, slow) == 2
        clock.advance(11)
        assert await cache.get_or_set(namespace, slow, soft_timeout=0.05) == 2
        slow.finish(3)
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert await cache.get_or_set(namespace, slow) == 3


async def test_a_hard_timeout_ends_the_waiting_and_not_the_load(caller: Opened) -> None:
    slow, namespace = Slow(), Namespace("t", hard_timeout=0.3)
    async with caller() as cache:
        with pytest.raises(
            CacheTimeoutError,
            match=r"namespace 't' was not loaded within its hard_timeout of 0\.3 s; the load continues",
        ) as caught:
            await cache.get_or_set(namespace, slow)
        assert isinstance(CacheTimeoutError("t", 1.0), TimeoutError)
        assert caught.value.goes_on
        slow.finish()
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert await cache.get_or_set(namespace, slow) == 1
        assert slow.calls == 1
        assert cache.counted()["timeouts"] == 1


async def test_a_loader_that_blocks_has_timeouts_too(caller: Opened, clock: VirtualClock) -> None:
    gate, calls = threading.Event(), []
    namespace = Namespace("t", grace=60, soft_timeout=0.05)

    def blocking() -> int:
        calls.append(1)
        if len(calls) > 1:
            assert gate.wait(10)
        return len(calls)

    async with caller() as cache:
        assert await cache.get_or_set(namespace, blocking) == 1
        clock.advance(11)
        assert await cache.get_or_set(namespace, blocking) == 1
        gate.set()
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert await cache.get_or_set(namespace, blocking) == 2


async def test_a_load_that_failed_in_the_background_is_throttled(
    caller: Opened, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, namespace = Source(), Namespace("t", grace=60, soft_timeout=0, retry=5)
    async with caller() as cache:
        await cache.get_or_set(namespace, source)
        clock.advance(11)
        source.error = SourceError("a secret")
        for _ in range(5):
            assert await cache.get_or_set(namespace, source) == [1]
            await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert source.calls == 2
        assert "loading a value for namespace 't' failed (SourceError)" in caplog.text
        assert "secret" not in caplog.text


async def test_loads_that_nobody_waits_for_are_bounded(url: str, clock: VirtualClock) -> None:
    """Invariant 10: the sixty-fifth is given up; its caller is served all the same."""
    namespace, gate = Namespace("t", grace=60, soft_timeout=0), asyncio.Event()
    running = 0

    async def slow() -> int:
        nonlocal running
        running += 1
        try:
            await gate.wait()
        finally:
            running -= 1
        return 2

    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set_many(namespace, dict.fromkeys(range(100), 1), 10)
        clock.advance(11)
        got = await asyncio.gather(*(manager.get_or_set(namespace, key, slow) for key in range(100)))
        assert got == [1] * 100
        await wait_until_async(lambda: running == 64)
        assert manager._engine.state.flights.background == 64
        gate.set()
        await wait_until_async(lambda: not manager._engine.state.flights.background)


@pytest.mark.parametrize("loader", ["async", "blocking"])
async def test_close_ends_what_goes_on_unattended(url: str, way: str, loader: str) -> None:
    gate = threading.Event()

    def blocking() -> int:
        gate.wait(10)
        return 1

    with virtual_clock() as clock:
        async with no_leaks():
            manager = AsyncCacheManager(redis_url=url)
            cache = Caller(manager, way)
            namespace = Namespace("t", grace=60, soft_timeout=0)
            await cache.get_or_set(namespace, lambda: 0)
            clock.advance(11)
            slow = Slow()
            assert await cache.get_or_set(namespace, slow if loader == "async" else blocking) == 0
            await wait_until_async(lambda: manager._engine.state.flights.background == 1)
            async with asyncio.timeout(5):
                closing = asyncio.create_task(manager.aclose())
                await asyncio.sleep(0)
                gate.set()
                await closing
            assert manager._engine.state.flights.background == 0


async def test_a_delete_overtakes_what_goes_on_unattended(
    caller: Opened, clock: VirtualClock, raw: redis.Redis
) -> None:
    """Invariant 2: a removal is not lost while a load runs in the background."""
    slow, namespace = Slow(), Namespace("t", grace=60, soft_timeout=0)
    async with caller() as cache:
        slow.finish()
        await cache.get_or_set(namespace, slow)
        clock.advance(11)
        assert await cache.get_or_set(namespace, slow) == 1
        await slow.begun(2)
        await cache.manager.delete("t", "k")
        slow.finish(2)
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert raw.get(NAME) is None
        slow.finish(3)
        assert await cache.get_or_set(namespace, slow) == 3


async def test_cancelling_a_caller_that_has_a_timeout_cancels_the_load_if_nobody_else_waits(url: str) -> None:
    """Invariant 4: a load goes on without its callers only once their patience is over."""
    ended = asyncio.Event()

    async def slow() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 1

    async with AsyncCacheManager(redis_url=url) as manager:
        call = asyncio.create_task(manager.get_or_set(Namespace("t", hard_timeout=30), "k", slow))
        await wait_until_async(lambda: len(manager._engine.state.leases) == 1)
        call.cancel()
        async with asyncio.timeout(5):
            await ended.wait()


# -- early refresh, jitter ----------------------------------------------------------------------------------------


async def test_a_value_is_refreshed_before_its_end(caller: Opened, clock: VirtualClock) -> None:
    """XFetch: with a beta that makes it certain, a hit begins a refresh, and no caller ever waits or misses."""
    namespace, calls = Namespace("t", early=1e6), 0

    async def slow() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        return calls

    async with caller() as cache:
        assert await cache.get_or_set(namespace, slow, 5) == 1
        await cache.forget()
        clock.advance(4.5)
        assert await cache.get_or_set(namespace, slow, 5) == 1
        await wait_until_async(lambda: calls == 2 and not cache.manager._engine.state.flights.background)
        assert cache.counted()["early_refreshes"] == 1
        assert cache.counted()["miss_count"] == 1
        assert await cache.manager.get(namespace, "k") == 2


async def test_no_beta_is_too_great(caller: Opened) -> None:
    """What is due before it was made is due at once."""
    namespace, source = Namespace("t", early=1e308), Source()
    async with caller() as cache:
        assert await cache.get_or_set(namespace, source, 5) == [1]
        assert await cache.manager.get(namespace, "k") == [1]
        await cache.forget()
        assert await cache.get_or_set(namespace, source, 5) == [1]
        assert (await cache.manager.explain(namespace, "k")).left == pytest.approx(5, abs=0.5)


async def test_an_early_refresh_that_fails_harms_nobody(caller: Opened, clock: VirtualClock) -> None:
    namespace, source = Namespace("t", early=1e9), Source()
    async with caller() as cache:
        assert await cache.get_or_set(namespace, source, 5) == [1]
        clock.advance(1)
        source.error = SourceError("away")
        for _ in range(3):
            assert await cache.get_or_set(namespace, source, 5) == [1]
            await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert source.calls == 2
        clock.advance(5)
        with pytest.raises(SourceError):
            await cache.get_or_set(namespace, source, 5)


async def test_an_early_refresh_is_no_part_of_the_load_that_happens_to_cause_it(url: str, clock: VirtualClock) -> None:
    """The one does not wait for the other, so that the other may wait for the one."""
    part, whole, got = Namespace("part", early=1e6), Namespace("t"), asyncio.Event()

    async def load_part() -> list[Any]:
        await asyncio.sleep(0.01)
        return [1] if not got.is_set() else [2, await cache.get_or_set(whole, "k", load_whole)]

    async def load_whole() -> list[Any]:
        found = await cache.get_or_set(part, "p", load_part, 5)
        got.set()
        await asyncio.sleep(0.05)
        return found

    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.get_or_set(part, "p", load_part, 5) == [1]
        clock.advance(4.5)
        assert await cache.get_or_set(whole, "k", load_whole) == [1]
        await wait_until_async(lambda: not cache._engine.state.flights.background)
        assert await cache.get(part, "p") == [2, [1]]


async def test_an_early_refresh_takes_what_somebody_else_has_just_refreshed(url: str, clock: VirtualClock) -> None:
    """Invariant 3: the lease is asked for with the version that is to be replaced."""
    namespace = Namespace("t", early=1e9)
    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as two:
        source = Source()
        await one.get_or_set(namespace, "k", source, 5)
        await two.get_or_set("t", "k", source, 5)
        clock.advance(0.5)
        slow = Slow()
        await one.get_or_set(namespace, "k", slow, 5)
        await slow.begun()
        assert await two.get_or_set(namespace, "k", slow, 5) == [1]
        slow.finish()
        await wait_until_async(lambda: not one._engine.state.flights.background)
        await wait_until_async(lambda: not two._engine.state.flights.background)
        assert slow.calls == 1


@pytest.mark.parametrize("how", ["set", "set_many", "load", "load_many"])
async def test_jitter_spreads_the_ends_of_what_was_stored_at_once(url: str, how: str) -> None:
    namespace, keys = Namespace("t", jitter=0.5, ttl=1000), range(50)
    async with AsyncCacheManager(redis_url=url) as manager:
        if how == "set_many":
            await manager.set_many(namespace, dict.fromkeys(keys, 1))
        elif how == "load_many":
            await manager.get_or_set_many(namespace, keys, lambda some: dict.fromkeys(some, 1))
        for key in keys:
            if how == "set":
                await manager.set(namespace, key, 1)
            elif how == "load":
                await manager.get_or_set(namespace, key, lambda: 1)
        left = [await manager.ttl(namespace, key) or 0 for key in keys]
        assert all(499 <= seconds <= 1000 for seconds in left)
        assert max(left) - min(left) > 100


async def test_the_ttl_may_depend_on_the_value(caller: Opened) -> None:
    async with caller() as cache:
        await cache.get_or_set("t", lambda: {"expires_in": 77}, ttl=lambda value: value["expires_in"])
        assert 76 < (await cache.manager.ttl("t", "k") or 0) <= 77
        with pytest.raises(CacheArgumentError, match="ttl"):
            await cache.manager.get_or_set("t", "other", lambda: 1, ttl=lambda value: -1)


# -- errors that are remembered -----------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("l1", [True, False])
async def test_an_error_that_is_an_answer_is_remembered(
    caller: Opened, clock: VirtualClock, forget: bool, l1: bool
) -> None:
    source = Source(NotFoundError("XYZ", hint="delisted"))
    namespace = Namespace("t", negative={LookupError: 30}, l1=l1)
    async with caller() as cache:
        for _ in range(3):
            with pytest.raises(NotFoundError, match="no XYZ") as caught:
                await cache.get_or_set(namespace, source)
            assert (caught.value.ticker, caught.value.hint) == ("XYZ", "delisted")
            if forget:
                await cache.forget()
        assert source.calls == 1
        assert cache.counted()["negative_hits"] == 2
        assert await cache.manager.get(namespace, "k", "default") == "default"
        assert await cache.manager.get("t", "k", "default") == "default"
        assert not await cache.manager.contains("t", "k")
        assert not await cache.manager.touch("t", "k", 60)
        assert await cache.manager.get_many("t", ["k"]) == {}
        source.error = None
        clock.advance(31)
        assert await cache.get_or_set(namespace, source) == [2]


async def test_an_error_is_remembered_by_the_fleet_and_forgotten_by_a_delete(caller: Opened) -> None:
    source, namespace = Source(NotFoundError("XYZ")), Namespace("t", negative={LookupError: 30})
    async with caller() as one, caller() as two:
        for cache in (one, two):
            with pytest.raises(NotFoundError):
                await cache.get_or_set(namespace, source)
        assert source.calls == 1
        source.error = None
        await one.manager.delete("t", "k")
        # On the connection that has read it, which is not that of this loop if the caller blocks.
        await wait_until_async(lambda: not near(two.manager, "t", "k"))
        assert await two.get_or_set(namespace, source) == [2]


@pytest.mark.parametrize("named", [{}, {OSError: 30}])
async def test_who_does_not_name_an_error_does_not_get_it_from_the_cache(
    caller: Opened, named: dict[type[Exception], float]
) -> None:
    """Invariant 9: what is stored chooses no class. To everybody else the remembered error is a miss."""
    source = Source(NotFoundError("XYZ"))
    async with caller() as cache:
        with pytest.raises(NotFoundError):
            await cache.get_or_set(Namespace("t", negative={LookupError: 30}), source)
        source.error = None
        assert await cache.get_or_set(Namespace("t", negative=named), source) == [2]


async def test_other_errors_are_not_remembered(caller: Opened) -> None:
    source, namespace = Source(SourceError()), Namespace("t", negative={LookupError: 30})
    async with caller() as cache:
        for _ in range(2):
            with pytest.raises(SourceError):
                await cache.get_or_set(namespace, source)
        assert source.calls == 2


async def test_an_answer_that_is_an_error_beats_a_stale_value(caller: Opened, clock: VirtualClock) -> None:
    """The source has said that it is gone: the old value would be wrong."""
    source, namespace = Source(), Namespace("t", grace=60, negative={LookupError: 30})
    async with caller() as cache:
        await cache.get_or_set(namespace, source)
        clock.advance(11)
        source.error = NotFoundError("XYZ")
        for _ in range(2):
            with pytest.raises(NotFoundError):
                await cache.get_or_set(namespace, source)
        assert source.calls == 2


async def test_all_who_wait_get_the_remembered_error(caller: Opened) -> None:
    """One failing call for all, and none for those who come after."""
    source, namespace = Source(NotFoundError("XYZ")), Namespace("t", negative={LookupError: 30})
    async with caller() as cache:
        got = await asyncio.gather(*(cache.get_or_set(namespace, source) for _ in range(20)), return_exceptions=True)
        assert [type(error) for error in got] == [NotFoundError] * 20
        assert source.calls == 1


# -- conditional refresh ------------------------------------------------------------------------------------------


class Tagged:
    """A source that knows ETags: it says that nothing has changed as long as that is so."""

    def __init__(self) -> None:
        self.version = 1
        self.asked: list[str | None] = []

    def __call__(self) -> Any:
        load = current_load()
        self.asked.append(load.validator)
        if load.validator == f"etag-{self.version}":
            assert load.has_previous
            assert load.previous == {"version": self.version}
            return NOT_MODIFIED
        load.validator = f"etag-{self.version}"
        return {"version": self.version}


@pytest.mark.parametrize("forget", [True, False])
async def test_a_conditional_refresh(caller: Opened, clock: VirtualClock, forget: bool) -> None:
    source, namespace = Tagged(), Namespace("t", grace=60)
    async with caller() as cache:
        for turn in range(4):
            source.version = 1 + turn // 3
            assert await cache.get_or_set(namespace, source) == {"version": source.version}
            assert 9 < (await cache.manager.ttl(namespace, "k") or 0) <= 10
            clock.advance(11)
            if forget:
                await cache.forget()
        assert source.asked == [None, "etag-1", "etag-1", "etag-1"]


async def test_an_early_refresh_may_be_conditional(caller: Opened, clock: VirtualClock) -> None:
    source, namespace = Tagged(), Namespace("t", early=1e9)
    async with caller() as cache:
        await cache.get_or_set(namespace, source, 5)
        clock.advance(1)
        assert await cache.get_or_set(namespace, source, 5) == {"version": 1}
        await wait_until_async(lambda: len(source.asked) >= 2 and not cache.manager._engine.state.flights.background)
        assert source.asked[1] == "etag-1"


async def test_a_touch_keeps_the_validator(caller: Opened, clock: VirtualClock) -> None:
    source, namespace = Tagged(), Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, source)
        assert await cache.manager.touch(namespace, "k", 20)
        clock.advance(21)
        await cache.get_or_set(namespace, source)
        assert source.asked == [None, "etag-1"]


async def test_after_an_invalidation_there_is_nothing_to_refresh(caller: Opened, clock: VirtualClock) -> None:
    source, namespace = Tagged(), Namespace("t", grace=60)
    async with caller() as cache:
        await cache.get_or_set(namespace, source, tags="x")
        clock.advance(11)
        await cache.manager.invalidate_tags("x")
        await cache.get_or_set(namespace, source, tags="x")
        assert source.asked == [None, None]


async def test_not_modified_without_a_value_is_a_mistake(caller: Opened) -> None:
    async with caller() as cache:
        with pytest.raises(CacheTypeError, match="loader: it returned NOT_MODIFIED although there is no value"):
            await cache.get_or_set(Namespace("t", grace=60), lambda: NOT_MODIFIED)


def test_outside_of_a_load_there_is_nothing_to_replace() -> None:
    load = current_load()
    assert (load.has_previous, load.previous, load.validator) == (False, None, None)
    load.validator = "x"
    assert load.validator == "x"
    with pytest.raises(CacheTypeError, match="validator: a str or None is needed, not int"):
        load.validator = 5  # type: ignore[assignment]
    with pytest.raises(CacheArgumentError, match="longer than 4096 bytes"):
        load.validator = "x" * 5000


# -- where policies are told --------------------------------------------------------------------------------------


async def test_a_decorated_function_has_policies_of_its_own(url: str, way: str, clock: VirtualClock) -> None:
    calls = 0

    async with AsyncCacheManager(redis_url=url) as manager:

        def price(ticker: str) -> int:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise SourceError
            return calls

        call: Callable[[str], Awaitable[int]]
        if way == "async":

            @manager.cached("t", ttl=10, grace=60, retry=5, negative={NotFoundError: 5})
            async def priced(ticker: str) -> int:
                return price(ticker)

            call = priced
        else:
            blocking = manager.cached("t", ttl=10, grace=60, retry=5)(price)

            async def in_thread(ticker: str) -> int:
                return await asyncio.to_thread(blocking, ticker)

            call = in_thread
        assert await call("AAPL") == 1
        clock.advance(11)
        assert await call("AAPL") == 1
        assert await call("AAPL") == 1
        assert calls == 2


async def test_a_mistake_in_a_decorators_policy_is_told_where_it_is_made(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as manager:
        with pytest.raises(CacheArgumentError, match="soft_timeout: .* give a grace as well"):
            manager.cached("t", soft_timeout=1)(lambda: 1)


async def test_redis_keeps_a_value_for_its_grace_and_the_near_cache_serves_it_for_its_life(
    url: str, raw: redis.Redis
) -> None:
    """Invariant 6."""
    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set(Namespace("t", grace=60), "k", 1, 10)
        assert 69_000 < raw.pttl(NAME) <= 70_000
        held = manager._engine.state.memory.get_untrusted(NAME)
        assert held is not None
        assert type(held.trust) is Trust
        left = held.deadline - manager._engine.state.clock()
        assert 9 < left <= 10
        assert 59.9 < held.end - held.deadline <= 60


async def test_batches_remember_errors_too(url: str) -> None:
    namespace, calls = Namespace("t", negative={LookupError: 30}), []

    def load(keys: list[str]) -> dict[str, Any]:
        calls.append(keys)
        return {key: NotFoundError(key) if key == "bad" else key for key in keys}

    async with AsyncCacheManager(redis_url=url) as manager:
        with pytest.raises(CacheBatchError, match="1 of 2 keys could not be loaded"):
            await manager.get_or_set_many(namespace, ["good", "bad"], load)
        with pytest.raises(NotFoundError):
            await manager.get_or_set_many(namespace, ["good", "bad"], load)
        with pytest.raises(NotFoundError):
            await manager.get_or_set(namespace, "bad", lambda: 1)
        assert calls == [["good", "bad"]]


async def test_the_header_tells_what_it_is(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as manager:
        with pytest.raises(NotFoundError):
            await manager.get_or_set(Namespace("t", negative={LookupError: 30}), "k", Source(NotFoundError("X")))
        stored: Any = raw.get(NAME)
        assert envelope.read_header(stored).flags & envelope.NEGATIVE
        assert "an error that loading raised" in (await manager.explain("t", "k")).verdict


async def test_batches_serve_what_is_stale_when_the_source_fails(url: str, way: str, clock: VirtualClock) -> None:
    namespace, calls = Namespace("t", ttl=10, grace=60, retry=5), []
    failing: Exception | None = None

    def load(keys: list[str]) -> dict[str, Any]:
        calls.append(keys)
        if failing is not None:
            raise failing
        return {key: [key] for key in keys}

    async with AsyncCacheManager(redis_url=url) as manager:

        async def get(*keys: str) -> Any:
            if way == "async":
                return await manager.get_or_set_many(namespace, keys, load)
            return await asyncio.to_thread(manager.sync.get_or_set_many, namespace, keys, load)

        await get("a", "b")
        clock.advance(11)
        failing = SourceError("away")
        assert await get("a", "b") == {"a": ["a"], "b": ["b"]}
        assert await get("a", "b") == {"a": ["a"], "b": ["b"]}
        assert calls == [["a", "b"], ["a", "b"]]
        with pytest.raises(SourceError):
            await get("a", "new")
        clock.advance(6)
        with pytest.raises(CacheBatchError, match="1 of 2 keys could not be loaded") as caught:
            await get("a", "new")
        assert caught.value.results == {"a": ["a"]}


async def test_loads_whose_loop_is_gone_make_room(url: str) -> None:
    """A program that runs one event loop after the other does not use up what may go on unattended."""
    namespace = Namespace("t", grace=60, soft_timeout=0)
    with virtual_clock() as clock:
        manager = AsyncCacheManager(redis_url=url)

        async def once(number: int) -> None:
            await manager.set(namespace, number, 1, 10)
            clock.advance(11)
            slow = Slow()
            assert await manager.get_or_set(namespace, number, slow) == 1

        for number in range(70):
            await asyncio.to_thread(asyncio.run, once(number))
        assert manager._engine.state.flights.background <= 1
        await manager.aclose()


# -- inside one another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_batch_within_a_load_has_nothing_to_replace(url: str, clock: VirtualClock, blocking: bool) -> None:
    """A validator that it sets is not the outer value's."""
    seen: list[Any] = []

    def many(keys: list[str]) -> dict[str, int]:
        load = current_load()
        seen.append((load.has_previous, load.validator))
        load.validator = "of the batch"
        return dict.fromkeys(keys, 1)

    async def many_async(keys: list[str]) -> dict[str, int]:
        return many(keys)

    async with AsyncCacheManager(redis_url=url) as cache:
        namespace = Namespace("t", grace=60)

        async def load() -> int:
            current_load().validator = current_load().validator or "of the load"
            await cache.get_or_set_many("part", [f"p{len(seen)}"], many if blocking else many_async)
            seen.append(current_load().validator)
            return 1

        for _ in range(2):
            await cache.get_or_set(namespace, "k", load, 10)
            clock.advance(11)
        assert seen == [(False, None), "of the load"] * 2


async def test_a_blocking_call_on_the_loop_that_revalidates_is_served(url: str, clock: VirtualClock) -> None:
    """It would not have waited for that load: there is nothing to be stuck on."""
    slow, namespace = Slow(), Namespace("t", grace=60, soft_timeout=0)
    async with AsyncCacheManager(redis_url=url) as cache:
        slow.finish()
        assert await cache.get_or_set(namespace, "k", slow, 10) == 1
        clock.advance(11)
        assert await cache.get_or_set(namespace, "k", slow, 10) == 1
        assert cache.sync.get_or_set(namespace, "k", slow, 10) == 1
        slow.finish(2)
        await wait_until_async(lambda: not cache._engine.state.flights.background)


async def test_a_calls_grace_is_its_own(caller: Opened, clock: VirtualClock) -> None:
    """Not that of whoever stored the value."""
    source = Source()
    async with caller() as cache:
        assert await cache.get_or_set("t", source, grace="1h") == [1]
        clock.advance(60)
        source.error = SourceError("away")
        for options in ({"grace": "10s"}, {"jitter": 0.1}, {"grace": 0, "retry": 1}):
            with pytest.raises(SourceError):
                await cache.get_or_set("t", source, **options)
        assert await cache.get_or_set("t", source, grace="1h") == [1]


async def test_an_error_that_cannot_be_made_again_is_not_replaced_by_another(caller: Opened) -> None:
    source = Source(PickyError(7))
    async with caller() as cache:
        for _ in range(2):
            with pytest.raises(PickyError):
                await cache.get_or_set("t", source, negative={PickyError: 60})


# -- what is due early, and what may not be fallen back on ----------------------------------------------------------


@pytest.mark.parametrize("redis", [True, False])
async def test_without_redis_what_is_due_for_a_refresh_is_as_fresh_as_ever(
    proxy: Proxy, caller: Opened, clock: VirtualClock, redis: bool
) -> None:
    namespace, source = Namespace("t", ttl=100, early=1e9), Source()
    options = {"redis_url": proxy.url} if redis else {"redis_enabled": False}
    async with caller(**options) as cache:
        await cache.get_or_set(namespace, source)
        memory = cache.manager._engine.state.memory
        if redis:
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not cache.manager._engine.state.reachable)
        clock.advance(1)
        assert memory.hit(NAME) is None, "it should be due by now"
        manager = cache.manager
        assert await manager.get(namespace, "k") == [1]
        assert await manager.contains(namespace, "k")
        assert await manager.get_many(namespace, ["k"]) == {"k": [1]}
        assert await manager.ttl(namespace, "k") == pytest.approx(9, abs=1)
        if cache.way == "blocking":
            assert await asyncio.to_thread(manager.sync.get, namespace, "k") == [1]
        assert await manager.touch(namespace, "k", 200)
        clock.advance(100)
        assert await manager.get(namespace, "k") == [1]


@pytest.mark.parametrize("how", ["delete", "tag"])
async def test_what_was_invalidated_between_two_outages_is_no_fallback_in_the_second(
    url: str, proxy: Proxy, caller: Opened, clock: VirtualClock, how: str
) -> None:
    """Nobody asked for it in between, so that nobody here was told."""
    source, namespace = Source(), Namespace("t", grace=60)

    async def outage() -> None:
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache.manager._engine.state.reachable)

    async def end() -> None:
        proxy.resume()
        await wait_until_async(lambda: cache.manager._engine.state.reachable)

    # A busy machine must not cause a third outage.
    async with AsyncCacheManager(redis_url=url) as peer, caller(redis_url=proxy.url, op_timeout=20) as cache:
        await cache.get_or_set(namespace, source, tags="day")
        await cache.manager.set(namespace, "other", 1)
        await outage()
        await (peer.delete("t", "k") if how == "delete" else peer.invalidate_tags("day"))
        await end()
        # Read once more if what was read was not kept: an announcement may have come in between.
        while (await cache.manager.explain(namespace, "other")).level != "l1":
            assert await cache.manager.get(namespace, "other") == 1
        await outage()
        assert await cache.manager.get(namespace, "k") is None
        assert cache.manager._engine.state.breaker.outages == 2
        assert await cache.manager.get(namespace, "other") == 1
        source.error = SourceError("away as well")
        with pytest.raises(SourceError):
            await cache.get_or_set(namespace, source)


# -- within a bound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read", "bypass", "refresh"])
async def test_a_hard_timeout_bounds_all_that_is_waited_for(url: str, proxy: Proxy, way: str, how: str) -> None:
    over = threading.Event()
    async with AsyncCacheManager(redis_url=proxy.url if how == "read" else url, op_timeout=10) as manager:
        await manager.set("t", "other", 1)
        faces: Any = manager if way == "async" else manager.sync

        @faces.cached("t", hard_timeout=0.1)  # type: ignore[untyped-decorator]  # of either face
        def function(key: str) -> Any:
            over.wait(10)
            return key

        async def call(fn: Any, *args: Any, **options: Any) -> Any:
            return await fn(*args, **options) if way == "async" else await asyncio.to_thread(fn, *args, **options)

        if way == "async":

            async def coroutine(key: str) -> Any:
                while not over.is_set():
                    await asyncio.sleep(0.01)
                return key

            function = manager.cached("t", hard_timeout=0.1)(coroutine)

        if how == "read":
            proxy.freeze()
        began = asyncio.get_running_loop().time()
        with pytest.raises(CacheTimeoutError):
            if how == "refresh":
                await call(function.refresh, "k")
            elif how == "bypass":
                with manager.bypass():
                    await call(faces.get_or_set, "t", "k", lambda: over.wait(10), hard_timeout=0.1)
            else:
                await call(function, "k")
        assert asyncio.get_running_loop().time() - began < 5
        over.set()


async def test_a_load_that_fails_after_its_caller_has_gone_is_told(
    caller: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def load() -> None:
        gate.wait(10)
        raise SourceError("a secret")

    async with caller() as cache:
        with pytest.raises(CacheTimeoutError):
            await cache.get_or_set("t", load, hard_timeout=0.3)
        gate.set()
        await wait_until_async(lambda: not cache.manager._engine.state.flights.background)
        assert cache.counted()["load_errors"] == 1
    assert "loading a value for namespace 't' failed (SourceError)" in caplog.text
    assert "secret" not in caplog.text


# -- smaller ones ---------------------------------------------------------------------------------------------------


async def test_batches_serve_what_is_stale_from_redis_too(url: str, way: str, clock: VirtualClock) -> None:
    """A namespace without a near cache, or one that has forgotten the value, has its grace all the same."""
    namespace, calls = Namespace("t", ttl=10, grace=60, retry=5, l1=False), 0
    failing = False

    def load(keys: list[str]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if failing:
            raise SourceError("away")
        return {key: [key] for key in keys}

    async with AsyncCacheManager(redis_url=url) as manager:

        async def get(**options: Any) -> Any:
            if way == "async":
                return await manager.get_or_set_many(options.get("namespace", namespace), ["a"], load)
            return await asyncio.to_thread(
                manager.sync.get_or_set_many, options.get("namespace", namespace), ["a"], load
            )

        await get()
        clock.advance(21)
        failing = True
        for _ in range(3):
            assert await get() == {"a": ["a"]}
        assert calls == 2
        with pytest.raises(SourceError):
            await get(namespace=Namespace("t", grace=5, l1=False))


@pytest.mark.parametrize("many", [False, True])
async def test_without_the_cache_a_load_within_another_replaces_nothing(
    caller: Opened, clock: VirtualClock, many: bool
) -> None:
    seen: list[Any] = []

    async with caller() as cache:
        sync = cache.manager.sync

        def inner(*_: Any) -> Any:
            seen.append((current_load().has_previous, current_load().validator))
            return {"x": NOT_MODIFIED} if many else NOT_MODIFIED

        def outer() -> int:
            current_load().validator = "outer"
            with sync.disabled():
                if many:
                    with pytest.raises(CacheBatchError) as caught:
                        sync.get_or_set_many("t", ["x"], inner)
                    assert isinstance(caught.value.errors["x"], CacheTypeError)
                else:
                    with pytest.raises(CacheTypeError, match="NOT_MODIFIED"):
                        sync.get_or_set("t", "x", inner)
            return 1

        for _ in range(2):
            await cache.get_or_set("t", outer, grace=60)
            clock.advance(11)
    assert seen == [(False, None)] * 2


async def test_a_load_that_cancels_itself_is_a_load_that_failed(url: str, clock: VirtualClock) -> None:
    async def load() -> int:
        raise asyncio.CancelledError

    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set(Namespace("t", grace=60), "k", 1, 10)
        clock.advance(11)
        assert await manager.get_or_set("t", "k", load, grace=60) == 1
        slow = Slow()
        task = asyncio.create_task(manager.get_or_set("t", "k", slow, grace=60))
        await slow.begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_call_may_do_without_what_its_namespace_has(caller: Opened, clock: VirtualClock) -> None:
    """No stale value for this one call; or less patience. Neither has to know of the namespace's soft timeout."""
    namespace, source = Namespace("t", ttl=10, grace="1h", soft_timeout=2), Source()
    async with caller() as cache:
        for grace in (0, "0s", None):
            await cache.get_or_set(namespace, source)
            clock.advance(11)
            source.error = SourceError()
            with pytest.raises(SourceError):
                await cache.get_or_set(namespace, source, grace=grace)
            source.error = None
            clock.advance(6)
        assert await cache.get_or_set(namespace, source, hard_timeout=1) == [7]
