"""Values that a calendar ends: at the same moment for the whole fleet, by Redis' clock, whoever stores them and how."""

import asyncio
import base64
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from anyio import move_on_after

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheManager,
    CalendarTtl,
    Namespace,
    market,
    until,
)
from magnus_cache._engine.codec.envelope import read_header
from magnus_cache._engine.policy import trading_hours
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.store.lives import CalendarLife
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, VirtualClock, virtual_clock
from tests.conftest import emptied
from tests.support.clock_relay import ClockRelay
from tests.support.loaders import Slow, SourceError
from tests.support.managers import managers
from tests.support.wait import lapse_async, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

SECOND = 1_000_000

WEEK = 7 * 86_400 * SECOND

EXACT = 10_000_000
"""Part of its life to which the end of a value is exact: the header has numbers of single precision."""

CALLERS = ("async", "blocking")


@pytest.fixture
def anyio_backend() -> str:
    """No loop does anything else here than the other."""
    return "asyncio"


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """Nor does any server."""
    return emptied(running("valkey"))


class Bell(CalendarTtl):
    """A calendar that rings at some moments, in microseconds of the server's clock."""

    __slots__ = ("moments",)

    def __init__(self, *moments: int) -> None:
        self.moments = moments

    def end(self, began: int, now: int) -> int:
        return next((moment for moment in self.moments if moment > began), now + SECOND)

    def __repr__(self) -> str:
        return "Bell()"


class Gate(Bell):
    """A calendar that takes a while to build: until a test opens it."""

    __slots__ = ("built", "open")

    def __init__(self, *moments: int) -> None:
        super().__init__(*moments)
        self.open, self.built = threading.Event(), list[int]()

    def end(self, began: int, now: int) -> int:
        assert self.built, "it was asked before it was built"
        return super().end(began, now)

    def is_ready(self, at: int) -> bool:
        return bool(self.built)

    def prepare(self, at: int) -> None:
        assert self.open.wait(20)
        self.built.append(at)


def built(*moments: int) -> Gate:
    """Return a calendar that is yet to be built, which takes no time."""
    gate = Gate(*moments)
    gate.open.set()
    return gate


def server_now(raw: redis.Redis, clock: VirtualClock | None = None) -> int:
    """Return the time of the server, in microseconds, as caches see it."""
    seconds, micros = raw.time()
    return int(seconds) * SECOND + int(micros) + int((clock.ahead if clock else 0) * SECOND)


def end_in_redis(raw: redis.Redis, name: str) -> int:
    """Return the end of a value in Redis, in microseconds of its clock."""
    stored = raw.get(name)
    assert isinstance(stored, bytes)
    return read_header(stored).fresh_until


def is_at(end: int, moment: int) -> bool:
    """Return whether a value ends at a moment, and not a microsecond later; see `header_times`."""
    return 0 <= moment - end <= 100_000 * SECOND // EXACT


async def done(cache: AsyncCacheManager, callers: str, method: str, *args: Any, **options: Any) -> Any:
    """Call a method, as an async or as a blocking caller."""
    if callers == "async":
        return await getattr(cache, method)(*args, **options)
    return await asyncio.to_thread(lambda: getattr(cache.sync, method)(*args, **options))


# -- the end of a value ------------------------------------------------------------------------------------------------


async def _set(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "set", "t", "k", 1, bell)


async def _set_by_namespace(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "set", Namespace("t", ttl=bell), "k", 1)


async def _set_many(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "set_many", "t", {"k": 1, "other": 2}, ttl=bell)


async def _set_many_large(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "set_many", Namespace("t", ttl=bell, compress=True), {"k": "x" * 10_000})


async def _get_or_set(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "get_or_set", "t", "k", lambda: 1, bell) == 1


async def _get_or_set_many(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    def load(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    assert await done(cache, callers, "get_or_set_many", "t", ["k", "other"], load, ttl=bell)


async def _cached(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    if callers == "async":

        @cache.cached("t", ttl=bell, key="k")
        async def load() -> int:
            return 1

        assert await load() == 1
    else:

        @cache.sync.cached("t", ttl=bell, key="k")
        def load_blocking() -> int:
            return 1

        assert await asyncio.to_thread(load_blocking) == 1


async def _computed(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "get_or_set", "t", "k", lambda: 1, lambda value: bell if value else 5) == 1


async def _warm_cache(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    await done(cache, callers, "warm_cache", "t", lambda key: 1, ["k"], bell)


async def _touch(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    await done(cache, callers, "set", "t", "k", 1, 5)
    assert await done(cache, callers, "touch", "t", "k", bell)


async def _add(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "add", "t", "k", 1, bell)


async def _incr(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "incr", "t", "k", ttl=bell) == 1


async def _update(cache: AsyncCacheManager, callers: str, bell: Bell) -> None:
    assert await done(cache, callers, "update", "t", "k", lambda value: 1, default=0, ttl=bell) == 1


WAYS: list[Callable[[AsyncCacheManager, str, Bell], Awaitable[None]]] = [
    _set, _set_by_namespace, _set_many, _set_many_large, _get_or_set, _get_or_set_many, _cached, _computed, _warm_cache,
    _touch, _add, _incr, _update,
]  # fmt: skip


@pytest.mark.parametrize("store", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize("callers", CALLERS)
async def test_a_value_ends_at_the_moment(
    callers: str, store: Callable[..., Awaitable[None]], url: str, raw: redis.Redis
) -> None:
    bell = server_now(raw) + 1000 * SECOND
    async with managers(url, 1) as (cache,):
        await store(cache, callers, built(bell))
        assert is_at(end_in_redis(raw, "magnus:t:k"), bell)
        left = await cache.ttl("t", "k")
        assert left is not None
        assert 990 < left < 1000


@pytest.mark.parametrize("store", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize("callers", CALLERS)
async def test_without_redis_it_ends_by_the_clock_of_the_host(
    callers: str, store: Callable[..., Awaitable[None]]
) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:
            await store(cache, callers, built(int((time.time() + 1000) * SECOND)))
            left = await cache.ttl("t", "k")
            assert left is not None
            assert 900 < left <= 1000
            clock.advance(left + 1)
            assert not await cache.contains("t", "k")


async def test_the_copy_in_memory_ends_at_the_moment_too(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with managers(url, 2) as (one, other):
            bell = server_now(raw, clock) + 100 * SECOND
            await one.set("t", "k", 1, Bell(bell))
            assert (await one.get("t", "k"), await other.get("t", "k")) == (1, 1)
            clock.advance((bell - server_now(raw, clock)) / SECOND - 20)
            assert (await one.get("t", "k"), await other.get("t", "k")) == (1, 1)
            clock.advance(20)
            assert (await one.get("t", "k"), await other.get("t", "k")) == (None, None)


async def test_memory_keeps_a_value_no_longer_than_it_may(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with managers(url, 1) as (cache,):
            short = Namespace("t", ttl=Bell(server_now(raw) + 1000 * SECOND), l1_ttl="10s")
            await cache.set(short, "k", 1)
            await cache.get(short, "k")
            hits = (await cache.get_stats())["levels"]["l1"]["count"]
            assert await cache.get(short, "k") == 1
            assert (await cache.get_stats())["levels"]["l1"]["count"] == hits + 1
            clock.advance(11)
            assert await cache.get(short, "k") == 1
            assert (await cache.get_stats())["levels"]["l1"]["count"] == hits + 1


@pytest.mark.parametrize("callers", CALLERS)
async def test_jitter_never_moves_a_value_past_the_moment(callers: str, url: str, raw: redis.Redis) -> None:
    now = server_now(raw)
    bell = now + 1000 * SECOND
    jittery = Namespace("t", ttl=Bell(bell), jitter=0.5)
    async with managers(url, 1) as (cache,):
        await done(cache, callers, "set_many", jittery, {f"s{number}": 1 for number in range(20)})
        for number in range(20):
            await done(cache, callers, "set", jittery, f"o{number}", 1)
            await done(cache, callers, "get_or_set", jittery, f"l{number}", lambda: 1)
        ends = [end_in_redis(raw, name.decode()) for name in raw.scan_iter("magnus:t:*")]
    assert len(ends) == 60
    assert max(ends) <= bell
    assert min(ends) >= now + 490 * SECOND
    assert len(set(ends)) > 50


# -- loads that the moment overtakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("redis_there", [True, False], ids=["redis", "memory"])
@pytest.mark.parametrize("callers", CALLERS)
async def test_a_quote_of_before_the_close_is_not_kept_until_the_open(
    callers: str, redis_there: bool, url: str, raw: redis.Redis
) -> None:
    """The load begins before the close and ends after it: its value is returned, and the next call loads again."""
    with virtual_clock() as clock:
        options: dict[str, Any] = {"redis_url": url} if redis_there else {"redis_enabled": False}
        async with AsyncCacheManager(**options) as cache:
            await cache.get("t", "k")
            now = server_now(raw, clock)
            bell = Bell(now + 100 * SECOND, now + 50_000 * SECOND)
            loads = list[int]()

            def load() -> int:
                loads.append(1)
                if len(loads) == 1:
                    clock.advance(150)
                return len(loads)

            assert await done(cache, callers, "get_or_set", "t", "k", load, bell) == 1
            assert await cache.get("t", "k") is None
            assert await done(cache, callers, "get_or_set", "t", "k", load, bell) == 2
            assert await done(cache, callers, "get_or_set", "t", "k", load, bell) == 2
            left = await cache.ttl("t", "k")
            assert left is not None
            assert 49_000 < left < 50_000


@pytest.mark.parametrize("callers", CALLERS)
async def test_the_same_goes_for_what_is_loaded_together(callers: str, url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with managers(url, 1) as (cache,):
            await cache.get("t", "k")
            now = server_now(raw, clock)
            bell = Bell(now + 100 * SECOND, now + 50_000 * SECOND)
            loads = list[list[str]]()

            def load(keys: list[str]) -> dict[str, int]:
                loads.append(list(keys))
                if len(loads) == 1:
                    clock.advance(150)
                return dict.fromkeys(keys, len(loads))

            wanted = ["k", "other", "third"]
            assert await done(cache, callers, "get_or_set_many", "t", wanted, load, ttl=bell) == dict.fromkeys(
                wanted, 1
            )
            for _ in range(2):
                found = await done(cache, callers, "get_or_set_many", "t", wanted, load, ttl=bell)
                assert found == dict.fromkeys(wanted, 2)
            assert loads == [wanted, wanted]
            assert all(is_at(end_in_redis(raw, f"magnus:t:{key}"), bell.moments[1]) for key in wanted)


async def test_an_object_that_stays_in_the_process_ends_too(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with managers(url, 1) as (cache,):
            await cache.get("t", "k")
            now = server_now(raw, clock)
            models = Namespace("models", local=True, ttl=Bell(now + 100 * SECOND, now + 50_000 * SECOND))
            loads = list[object]()

            def load() -> object:
                loads.append(object())
                if len(loads) == 1:
                    clock.advance(150)
                return loads[-1]

            first = await cache.get_or_set(models, "k", load)
            second = await cache.get_or_set(models, "k", load)
            assert [first, second] == loads
            assert await cache.get_or_set(models, "k", load) is second


@pytest.mark.parametrize("redis_there", [True, False], ids=["redis", "memory"])
async def test_a_call_after_the_close_does_not_join_a_load_of_before_it(
    redis_there: bool, url: str, raw: redis.Redis
) -> None:
    with virtual_clock() as clock:
        options: dict[str, Any] = {"redis_url": url} if redis_there else {"redis_enabled": False}
        # Else the first load would count as one that hangs.
        async with AsyncCacheManager(wait_timeout=1000, **options) as cache:
            await cache.get("t", "k")
            now = server_now(raw, clock)
            quotes = Namespace("t", ttl=Bell(now + 100 * SECOND, now + 50_000 * SECOND))
            slow = Slow()
            first = asyncio.create_task(cache.get_or_set(quotes, "k", slow))
            await slow.begun()
            joined = asyncio.create_task(cache.get_or_set(quotes, "k", slow))
            await wait_until_async(lambda: cache._state.flights.joined == 1)
            clock.advance(150)
            late = asyncio.create_task(cache.get_or_set(quotes, "k", slow))
            # It does not even wait for the earlier one.
            await slow.begun(2)
            slow.finish(2)
            assert await late == 2
            slow.finish()
            assert (await first, await joined) == (1, 1)
            assert await cache.get(quotes, "k") == 2


async def test_who_waits_for_another_process_at_the_bell_loads_once_for_all(url: str, raw: redis.Redis) -> None:
    """The holder of the lease began before the bell: of those that wait, one loads again, and its value is kept."""
    with virtual_clock() as clock:
        async with managers(url, 4, wait_timeout=1000) as caches:
            for cache in caches:
                await cache.get("t", "k")
            now = server_now(raw, clock)
            quotes = Namespace("t", ttl=Bell(now + 100 * SECOND, now + 50_000 * SECOND))
            slow = Slow()
            first = asyncio.create_task(caches[0].get_or_set(quotes, "k", slow))
            await slow.begun()
            waiting = [asyncio.create_task(cache.get_or_set(quotes, "k", slow)) for cache in caches[1:]]
            await wait_until_async(lambda: all(len(cache._state.flights) for cache in caches[1:]))
            clock.advance(150)
            late = [asyncio.create_task(cache.get_or_set(quotes, "k", slow)) for cache in caches[1:]]
            # What waits begins after the bell, so they may join it.
            await wait_until_async(lambda: all(cache._state.flights.joined for cache in caches[1:]))
            slow.finish(2)
            slow.finish()
            assert await first == 1
            assert await asyncio.gather(*waiting, *late) == [2] * 6
            assert slow.calls == 2


# -- freshness -------------------------------------------------------------------------------------------------------


async def test_a_value_past_the_close_is_served_within_its_grace_if_the_source_fails(
    url: str, raw: redis.Redis
) -> None:  # fmt: skip
    with virtual_clock() as clock:
        async with managers(url, 1) as (cache,):
            quotes = Namespace("t", ttl=Bell(server_now(raw, clock) + 100 * SECOND), grace="1h")
            assert await cache.get_or_set(quotes, "k", lambda: 1) == 1
            clock.advance(150)

            def fail() -> int:
                raise SourceError

            assert await cache.get(quotes, "k") is None
            assert await cache.get_or_set(quotes, "k", fail) == 1
            clock.advance(3600)
            with pytest.raises(SourceError):
                await cache.get_or_set(quotes, "k", fail)


@pytest.mark.parametrize("calendar", [True, False], ids=["calendar", "plain"])
async def test_nothing_is_refreshed_early_that_would_end_at_the_same_moment(
    calendar: bool, url: str, raw: redis.Redis
) -> None:
    with virtual_clock() as clock:
        async with managers(url, 1) as (cache,):
            ttl: Any = Bell(server_now(raw, clock) + 100 * SECOND) if calendar else 100
            eager = Namespace("t", ttl=ttl, early=1e6)

            async def load() -> int:
                await lapse_async(0.05)
                return 1

            for _ in range(5):
                assert await cache.get_or_set(eager, "k", load) == 1
            await wait_until_async(lambda: not cache._state.flights.background)
            refreshes = (await cache.get_stats())["namespaces"]["t"]["early_refreshes"]
            assert refreshes == 0 if calendar else refreshes > 0


# -- clocks --------------------------------------------------------------------------------------------------------


async def test_the_clock_of_the_host_does_not_matter(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    bell = server_now(raw) + 1000 * SECOND
    real = time.time
    async with managers(url, 3) as caches:
        for cache, off in zip(caches, (-86_400, 0, 5_000_000), strict=True):
            monkeypatch.setattr(time, "time", lambda off=off: real() + off)
            await cache.set("t", "k", off, Bell(bell))
            assert is_at(end_in_redis(raw, "magnus:t:k"), bell)
            assert await cache.get_or_set("t", f"l{off}", lambda: 1, Bell(bell)) == 1
            assert is_at(end_in_redis(raw, f"magnus:t:l{off}"), bell)


async def test_the_clock_of_redis_counts_even_if_it_is_wrong(server: EmbeddedServer, raw: redis.Redis) -> None:
    """All processes see the same one."""
    async with ClockRelay(server.port) as relay:
        relay.ahead = 3 * 86_400
        async with managers(relay.url, 1) as (cache,):
            bell = server_now(raw) + (relay.ahead + 1000) * SECOND
            await cache.set("t", "k", 1, Bell(bell - 2000 * SECOND, bell))
            assert is_at(end_in_redis(raw, "magnus:t:k"), bell)


async def test_in_an_outage_the_last_known_time_of_redis_counts(
    private_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managers(private_server.url, 1) as (cache,):
        with redis.Redis(port=private_server.port) as raw:
            bell = Bell(server_now(raw) + 1000 * SECOND)
        await cache.set("t", "k", 1, 5)
        private_server.stop()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert await cache.set("t", "k", 2, bell)
        assert await cache.get_or_set("t", "l", lambda: 1, bell) == 1
        assert await cache.touch("t", "l", bell)
        for key in ("k", "l"):
            left = await cache.ttl("t", key)
            assert left is not None
            assert 900 < left <= 1000


async def test_a_value_that_has_ended_when_it_is_stored_is_not_there_and_replaces_the_old_one(
    url: str, raw: redis.Redis
) -> None:
    async with managers(url, 2) as (cache, other):
        await cache.set("t", "k", 1)
        assert await other.get("t", "k") == 1
        past = Past()
        assert await cache.set("t", "k", 2, past)
        assert await cache.get("t", "k") is None
        # The other process learns of it, as of any other write.
        async with asyncio.timeout(20):
            while await other.get("t", "k") is not None:
                await other.ping()
        assert await cache.set_many("t", {"k": 2, "l": 3}, past)
        assert await cache.get_many("t", ["k", "l"]) == {}


class Past(CalendarTtl):
    """A calendar whose moment is always over when the value is stored."""

    __slots__ = ()

    def end(self, began: int, now: int) -> int:
        return now - SECOND


async def test_in_doubt_a_load_began_before_the_moment() -> None:
    """How the clock of Redis goes is known to within half a round trip."""
    redis_time = RedisTime()
    redis_time.sample(100.0, 101.0, 1_000 * SECOND)
    assert redis_time.error(101.0) == 0.5
    bell = Bell(redis_time.at(110.0), redis_time.at(500.0))
    assert CalendarLife(bell, 110.4).left(redis_time, 110.4) < 0
    assert CalendarLife(bell, 110.6).left(redis_time, 110.6) > 300


@pytest.mark.parametrize("callers", CALLERS)
async def test_on_a_cluster_each_node_ends_its_values_by_its_own_clock(callers: str, cluster: EmbeddedCluster) -> None:
    async with managers(cluster.url, 2, redis_cluster=True) as (cache, other):
        moment = int((time.time() + 1000) * SECOND)
        keys = [f"k{number}" for number in range(30)]

        def load(wanted: list[str]) -> dict[str, int]:
            return dict.fromkeys(wanted, 1)

        await done(cache, callers, "get_or_set_many", "t", keys[:10], load, ttl=Bell(moment))
        await done(cache, callers, "set_many", "t", dict.fromkeys(keys[10:20], 1), ttl=Bell(moment))
        for key in keys[20:]:
            await done(cache, callers, "get_or_set", "t", key, lambda: 1, Bell(moment))
        for key in keys:
            left = await other.ttl("t", key)
            assert left is not None
            assert 900 < left <= 1000


async def test_sealed_values_end_too(url: str, raw: redis.Redis) -> None:
    options = {"seal_keys": "a:" + base64.b64encode(bytes(32)).decode()}
    async with managers(url, 2, **options) as (cache, other):
        secret = Namespace("secret", seal=True, ttl=Bell(server_now(raw) + 1000 * SECOND))
        await cache.set(secret, "k", 1)
        assert await other.get(secret, "k") == 1
        left = await other.ttl(secret, "k")
        assert left is not None
        assert 900 < left <= 1000


# -- exchanges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callers", CALLERS)
async def test_a_calendar_is_built_in_a_thread_while_the_loop_goes_on(callers: str, url: str, raw: redis.Redis) -> None:
    gate = Gate(server_now(raw) + 1000 * SECOND)
    async with managers(url, 1) as (cache,):
        if callers == "async":
            # The call for which it is built may be given up, also by a scope of anyio.
            with move_on_after(0.05) as scope:
                await cache.set("t", "given up", 1, gate)
            assert scope.cancelled_caught
        calls = [asyncio.create_task(done(cache, callers, "set", "t", str(number), 1, gate)) for number in range(4)]
        # Other calls are answered meanwhile, on the same loop.
        assert await done(cache, callers, "set", "t", "other", 1)
        assert await cache.get("t", "other") == 1
        cut = calls.pop(0)
        if callers == "async":
            cut.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cut
        gate.open.set()
        assert await asyncio.gather(*calls) == [True] * 3
        assert is_at(end_in_redis(raw, "magnus:t:1"), gate.moments[0])
        if callers == "blocking":
            assert await cut


@pytest.mark.parametrize("callers", CALLERS)
async def test_quotes_by_the_hours_of_an_exchange(callers: str, url: str, raw: redis.Redis) -> None:
    quotes = Namespace("quotes", ttl=market("XNYS", open="15s", closed="until open"))
    closing = Namespace("closing", ttl=until("16:05", tz="America/New_York", days="mon-fri"))
    async with managers(url, 1) as (cache,):
        for space in (quotes, closing):
            before = server_now(raw)
            assert await done(cache, callers, "get_or_set", space, "k", lambda: 1) == 1
            calendar: Any = space.ttl
            ends = {calendar.end(at, at) for at in (before, server_now(raw))}
            stored = end_in_redis(raw, f"magnus:{space}:k")
            assert min(ends) - WEEK // EXACT <= stored <= max(ends)


@pytest.mark.parametrize("callers", CALLERS)
async def test_an_exchange_that_does_not_exist_is_an_error_of_the_call(callers: str, url: str) -> None:
    async with managers(url, 1) as (cache,):
        with pytest.raises(CacheArgumentError, match="XNYS"):
            await done(cache, callers, "set", "t", "k", 1, market("XNYSE"))
        with pytest.raises(CacheArgumentError, match="XNYS"):
            await done(cache, callers, "get_or_set", "t", "k", lambda: 1, market("XNYSE"))


async def test_the_end_of_a_calendar_is_told_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    far = datetime(2031, 6, 2, 3, tzinfo=UTC)
    with virtual_clock() as clock:
        clock.advance(far.timestamp() - time.time())
        async with managers(url, 1) as (cache,):
            for _ in range(3):
                await cache.set("t", "k", 1, market("XSHG", open="15s"))
            left = await cache.ttl("t", "k")
            assert left is not None
            assert 10 < left <= 15
    lines = [line for line in caplog.messages if "XSHG" in line]
    assert len(lines) == 1
    assert "newer exchange-calendars" in lines[0]


def test_a_blocking_manager_without_a_loop(url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as cache:
        bell = Bell(server_now(raw) + 1000 * SECOND)

        @cache.cached("t", ttl=bell, key="k")
        def load() -> int:
            return 1

        assert load() == 1
        assert load.cache_info().ttl is bell
        assert is_at(end_in_redis(raw, "magnus:t:k"), bell.moments[0])
        wait_until(lambda: cache.get("t", "k") == 1)
        assert trading_hours.known("no such") is None


async def test_explain_names_the_calendar_of_a_namespace(url: str) -> None:
    closing = Namespace("closing", ttl=until("16:05", tz="America/New_York"))
    async with managers(url, 1) as (cache,):
        await cache.set(closing, "k", 1)
        found = await cache.explain(closing, "k")
        assert found.calendar == "until('16:05', tz='America/New_York')"
        assert "its namespace has ttl=until('16:05', tz='America/New_York')" in str(found)
        await cache.set("t", "k", 1)
        assert (await cache.explain("t", "k")).calendar is None
