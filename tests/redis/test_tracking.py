"""The ways in which Redis announces changes: by prefix, all of ours to everyone and from no table; off, none at all."""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings, CacheSettingsError
from magnus_cache._engine.codec.envelope import VERSION_AT
from magnus_cache._engine.coherence.epochs import ControlNames
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import lane
from magnus_cache._engine.redis.tracking import tracking_of
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.fleet_of_managers import fleet, kept, near
from tests.support.inside import all_answered, state_of, wire_of
from tests.support.lanes import NEAR, through_the_lane
from tests.support.loaders import Slow
from tests.support.rights import UNTRACKED
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

BOUND = 10.0
"""Long enough for a busy machine; the clock is the test's."""


def told(cache: AsyncCacheManager) -> list[bytes]:
    """Return a list that gets the names that a cache is told of from now on."""
    events, names = state_of(cache).events, list[bytes]()
    original = events.invalidated

    def invalidated(some: list[bytes], connection: Any) -> None:
        names.extend(some)
        original(some, connection)

    events.invalidated = invalidated  # type: ignore[method-assign]
    return names


def tracked(raw: redis.Redis) -> int:
    """Return how many pairs of a key and a client the server remembers."""
    return int(raw.info("stats")["tracking_total_items"])


# -- settings ---------------------------------------------------------------------------------------------------


def test_a_way_that_does_not_exist_is_refused() -> None:
    for wrong in ("table", "", 1, True, None):
        with pytest.raises(CacheSettingsError, match=r"tracking \(MAGNUS_CACHE_TRACKING\).*'keys'.*'prefix'.*'off'"):
            CacheSettings(tracking=wrong)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("text", ["false", "No", "0"])
def test_an_off_that_yaml_has_read_as_false_is_explained(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_TRACKING", text)
    with pytest.raises(CacheSettingsError, match=r"tracking \(MAGNUS_CACHE_TRACKING\).*in quotes"):
        CacheSettings()
    with pytest.raises(CacheSettingsError, match="in quotes"):
        CacheSettings(tracking=False)  # type: ignore[arg-type]  # what is tested


def test_the_variable_may_be_written_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_TRACKING", " Prefix ")
    assert CacheSettings().tracking == "prefix"
    monkeypatch.delenv("MAGNUS_CACHE_TRACKING")
    assert CacheSettings().tracking == "keys"


@pytest.mark.parametrize("prefix", ["magnus", "a", "magnus-2", "x" * 50])
@pytest.mark.parametrize("database", [0, 3])
def test_no_prefix_begins_with_another(raw: redis.Redis, prefix: str, database: int) -> None:
    """A server refuses those that do."""
    tracking = tracking_of("prefix", ControlNames(Keyspace(prefix, database)))
    for one in tracking.prefixes:
        assert not any(other is not one and other.startswith(one) for other in tracking.prefixes)
    words = [word for name in tracking.prefixes for word in ("PREFIX", name)]
    with redis.Redis(port=raw.connection_pool.connection_kwargs["port"], protocol=3) as client:
        assert client.execute_command("CLIENT", "TRACKING", "ON", "BCAST", *words)


# -- by prefix ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("database", [0, 3])
async def test_all_that_a_cache_depends_on_is_announced(url: str, raw: redis.Redis, database: int) -> None:
    """Values, leases, epochs, the server's identity; neither the clock, which changes with each, nor others' names."""
    at = f"@{database}" if database else ""
    ours = [
        "magnus:t:k", "magnus:u:never read", f"{{magnus:t:k}}:lease{at}", f"magnus!epoch{at}", f"magnus!epoch{at}:t",
        f"magnus!epoch{at}:t{{53}}", f"magnus!tag{at}:x", f"magnus!server{at}", f"magnus!server{at}{{53}}",
    ]  # fmt: skip
    others = [f"magnus!clock{at}", f"magnus!guard{at}", "magnus!stats:1", "magnus2:t:k", "{magnus2:t:k}:lease", "k"]
    async with fleet(url.replace("/0", f"/{database}"), 1, tracking="prefix") as (cache,):
        await cache.get_stats()
        names = told(cache)
        raw.execute_command("SELECT", database)
        for name in (*ours, *others):
            raw.set(name, "x", px=60_000)
        await all_answered(wire_of(cache))
        assert [name.decode() for name in names] == ours


@pytest.mark.anyio
async def test_the_server_keeps_no_table(url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of what tasks read, nor of what threads read by themselves."""
    monkeypatch.setattr(lane, "_WORTH", 0)
    async with fleet(url, 2, tracking="prefix") as (one, two):
        await one.set_many("t", {f"k{number}": number for number in range(300)}, tags="x")
        assert len(await two.get_many("t", [f"k{number}" for number in range(300)])) == 300
        await two.get_or_set("t", "loaded", lambda: 1, tags="y")
        assert raw.info("stats")["tracking_total_prefixes"] == 6
        assert tracked(raw) == 0


def test_what_a_thread_has_read_by_itself_is_announced(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the background loop, without a table, and without a request of the thread."""
    monkeypatch.setattr(lane, "_WORTH", 0)
    with CacheManager(redis_url=url, max_staleness=60, tracking="prefix") as cache, CacheManager(redis_url=url) as peer:
        through_the_lane(cache)
        through_the_lane(cache, NEAR)
        assert tracked(raw) == 0
        memory = cache._state.memory
        for number in range(50):
            peer.set(NEAR, "k", number)
            wait_until(lambda: memory.hit(b"magnus:near:k") is None)
            assert cache.get(NEAR, "k") == number


@pytest.mark.anyio
async def test_an_own_write_stays_in_memory(url: str, raw: redis.Redis) -> None:
    """Its announcement takes it out, and Redis says that it is still ours."""
    async with fleet(url, 1, tracking="prefix", max_staleness=60) as (cache,):
        for key, store in (
            ("set", lambda: cache.set("t", "set", 1)),
            ("load", lambda: cache.get_or_set("t", "load", lambda: 1)),
            ("many", lambda: cache.set_many("t", {"many": 1})),
        ):
            reads = raw.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
            names = told(cache)
            await store()
            await wait_until_async(lambda key=key, names=names: f"magnus:t:{key}".encode() in names)  # type: ignore[misc]
            await all_answered(wire_of(cache))
            assert near(cache, "t", key)
            assert raw.info("commandstats")["cmdstat_getrange"]["calls"] == reads + 1
            assert state_of(cache).memory.pending == 0
            raw.delete(f"magnus:t:{key}")
            await wait_until_async(lambda key=key: not near(cache, "t", key))  # type: ignore[misc]


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["overwritten", "at once", "deleted", "cleared", "tag", "lost"])
async def test_invariant_1_an_own_write_that_was_overtaken_is_not_put_back(
    proxy: Proxy, raw: redis.Redis, how: str
) -> None:
    """Before Redis answers whether it still has it."""
    async with (
        fleet(proxy.url, 1, tracking="prefix", max_staleness=60) as (cache,),
        fleet(proxy.url, 1, tracking="prefix") as (peer,),
    ):
        await peer.get_stats()
        await cache.set("t", "k", "old", tags="x")
        await cache.get_stats()
        own = state_of(cache).announcements._own
        assert own is not None
        ask, found = own.ask, list[Any]()
        own.ask = found.extend  # type: ignore[method-assign]
        await cache.set("t", "k", "own", tags="x")
        await wait_until_async(lambda: found)
        assert not near(cache, "t", "k")
        match how:
            case "overwritten":
                raw.set("magnus:t:k", b"foreign")
            case "at once":
                # In the same turn of the server: the announcement of both was handled.
                raw.set("magnus:t:k", raw.get("magnus:t:k")[:-1] + b"?")
                raw.setrange("magnus:t:k", VERSION_AT, b"another1")
                await cache.get_stats()
            case "deleted":
                raw.delete("magnus:t:k")
            case "lost":
                proxy.cut()
            case _:
                ask(found)
                # Before the answer is handled.
                state = state_of(cache)
                state.outdated(b"magnus!tag:x" if how == "tag" else b"magnus!epoch:t")
                found.clear()
        ask(found)
        await cache.get_stats()
        await all_answered(wire_of(cache))
        assert not near(cache, "t", "k")
        assert state_of(cache).memory.pending == 0


@pytest.mark.anyio
async def test_many_own_writes_are_not_asked_for(url: str, raw: redis.Redis) -> None:
    """Most of what a batch stores is not read soon."""
    async with fleet(url, 1, tracking="prefix") as (cache,):
        await cache.set_many("t", {f"k{number}": number for number in range(1000)})
        await cache.get_stats()
        await all_answered(wire_of(cache))
        assert raw.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"] < 100


@pytest.mark.anyio
async def test_announcements_of_own_leases_slow_nothing_down(url: str) -> None:
    """Each is asked about, and none of these questions is what others have to wait for."""
    async with fleet(url, 2, tracking="prefix", max_staleness=60) as (one, two):
        await two.set("t", "k", "old")
        assert await one.get("t", "k") == "old"
        for number in range(30):
            assert await one.get_or_set("t", f"k{number}", lambda: 1, tags=f"tag{number}") == 1
        await one.get_stats()
        wire = wire_of(one)
        assert wire.known.pace.delay(wire.loop.time()) == 0.0
        await two.clear("t")
        await one.get_stats()
        await wait_until_async(lambda: not wire.known.doubts)
        assert await one.get("t", "k") is None


@pytest.mark.anyio
async def test_epochs_that_get_lost_again_and_again_are_asked_for_at_a_pace(url: str, raw: redis.Redis) -> None:
    """Who asks for a missing one has it issued: that is announced as well, and may have a full server evict another."""
    async with fleet(url, 1, tracking="prefix", max_staleness=60) as (cache,):
        await cache.set("t", "k", 1)
        await cache.get_stats()
        wire = wire_of(cache)
        await wait_until_async(lambda: not wire.known.doubts)
        asked, delay = 0, wire.known.pace.delay

        class Counted:
            def delay(self, now: float) -> float:
                nonlocal asked
                asked += 1
                return delay(now)

            def reset(self) -> None: ...

        wire.known.pace = Counted()  # type: ignore[assignment]
        for lost in range(1, 4):
            raw.delete("magnus!epoch:t")
            await wait_until_async(lambda: raw.exists("magnus!epoch:t"))
            await wait_until_async(lambda lost=lost: asked >= lost and not wire.known.doubts)  # type: ignore[misc]


@pytest.mark.anyio
async def test_invariant_1_every_announcement_of_an_open_question_counts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that began between two of them is none for who came after the second."""
    for ask in ("_ask", "_ask_reads"):
        monkeypatch.setattr(f"magnus_cache._engine.redis.announced.Questions.{ask}", lambda _: None)
    slow = Slow()
    async with fleet(url, 2, tracking="prefix") as (one, two):
        await two.get("t", "x")
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await slow.begun()
        flight = state_of(one).flights.current(b"magnus:t:k")
        assert flight is not None
        # The first epoch of the tag was announced. As if that had come at the last moment before the load began:
        state_of(one).events.invalidated([b"magnus!tag:x"], wire_of(one))
        assert b"magnus!tag:x" in wire_of(one).known.doubts
        flight.look.since = state_of(one).epochs.moment()
        await two.invalidate_tags("x")
        await one.get_stats()
        late = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await wait_until_async(lambda: state_of(one).flights.joined)
        slow.finish()
        slow.finish(2)
        assert (await call, await late) == (1, 2)


@pytest.mark.anyio
async def test_invariant_10_a_flood_of_announcements_does_not_hold_up_the_loop(url: str, raw: redis.Redis) -> None:
    """A peer writes a hundred thousand values at once: they are handled in steps, and nothing is believed before."""
    async with fleet(url, 1, tracking="prefix", max_staleness=60) as (cache,):
        await cache.set("t", "k", "old")
        await kept(cache, "t", "k")
        names, most, loop = told(cache), 0, asyncio.get_running_loop()
        handled, over = 0, False

        def turn() -> None:
            nonlocal most, handled
            most, handled = max(most, len(names) - handled), len(names)
            if not over:
                loop.call_soon(turn)

        turn()
        script = "for n = 1, 100000 do redis.call('SET', 'magnus:flood:' .. n, 'x', 'PX', 60000) end"
        await asyncio.to_thread(raw.eval, script + " redis.call('DEL', 'magnus:t:k')", 0)
        await wait_until_async(lambda: len(names) >= 100_001)
        over = True
        assert await cache.get("t", "k") is None
        # It takes some microseconds for ten of them, and a step two milliseconds.
        assert most <= 25_000


@pytest.mark.anyio
async def test_the_identity_is_heard_of_where_writes_are_not_quiet(url: str, raw: redis.Redis) -> None:
    """Whoever removes it: then it is stored again, and the next process to connect finds its values."""
    async with fleet(url, 1, tracking="prefix") as (cache,):
        await cache.set("t", "k", 1)
    async with fleet(url, 1, tracking="prefix") as (cache,):
        await cache.get_stats()
        assert wire_of(cache).keeps_identity
        raw.delete("magnus!server")
        await wait_until_async(lambda: raw.exists("magnus!server"))
        async with fleet(url, 1, tracking="prefix") as (other,):
            assert await other.get("t", "k") == 1


@pytest.mark.anyio
async def test_invariant_5_a_lost_connection_ends_what_stood_on_it(proxy: Proxy, raw: redis.Redis) -> None:
    async with fleet(proxy.url, 1, tracking="prefix", max_staleness=60) as (cache,):
        await cache.set("t", "k", "old")
        await kept(cache, "t", "k")
        assert near(cache, "t", "k")
        trust = wire_of(cache).trust
        proxy.cut()
        await wait_until_async(lambda: wire_of(cache).trust is not trust and wire_of(cache).up)
        raw.delete("magnus:t:k")
        assert await cache.get("t", "k") is None
        await cache.set("t", "k", "new")
        await kept(cache, "t", "k")
        raw.delete("magnus:t:k")
        await wait_until_async(lambda: not near(cache, "t", "k"))


# -- off ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unable(url: str, raw: redis.Redis) -> Iterator[str]:
    """A user who may not ask for announcements."""
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    yield url.replace("redis://", "redis://limited:pw@")
    raw.acl_deluser("limited")


@pytest.mark.anyio
async def test_off_asks_for_no_announcements(
    url: str, unable: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """So a user needs no right to, and is not told to get it."""
    caplog.set_level(logging.INFO, "magnus_cache")
    async with fleet(url, 1, tracking="off") as (one,), fleet(unable, 1, tracking="off") as (two,):
        await one.set("t", "k", 1)
        assert await two.get("t", "k") == 1
        assert raw.info("clients")["tracking_clients"] == 0
        assert tracked(raw) == 0
        for cache in (one, two):
            health = await cache.ping()
            assert (health.ok, health.tracking, health.tracking_mode) == (True, False, "off")
    assert "connected to Redis" in caplog.text
    assert "TRACKING" not in caplog.text


@pytest.mark.anyio
async def test_a_prefix_that_is_refused_is_told_of_and_the_bound_holds(
    unable: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with virtual_clock() as clock:
        async with fleet(unable, 1, tracking="prefix", max_staleness=BOUND) as (cache,):
            await cache.set("t", "k", 1)
            assert near(cache, "t", "k")
            raw.delete("magnus:t:k")
            clock.advance(BOUND)
            assert not near(cache, "t", "k")
            assert await cache.get("t", "k") is None
            assert (await cache.ping()).tracking_mode == "off"
    assert "refuses CLIENT TRACKING" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["keys", "prefix", "off"])
async def test_a_health_check_says_how_changes_are_announced(proxy: Proxy, way: Any) -> None:
    """Also one that connects by itself, as the cache waits for its next attempt."""
    async with AsyncCacheManager(redis_url=proxy.url, tracking=way) as cache:
        health = await cache.ping()
        if way == "keys" and str(health.version) < "7" and health.server == "redis":
            way = "prefix"
        assert (health.tracking, health.tracking_mode) == (way != "off", way)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: state_of(cache).breaker.open)
        assert (await cache.ping()).tracking_mode is None
        proxy.resume()
        health = await cache.ping()
        assert (health.tracking, health.tracking_mode) == (way != "off", way)


async def finds(cache: AsyncCacheManager, value: object) -> None:
    """Return once a cache has heard of a change."""

    async def found() -> bool:
        return await cache.get("t", "k") == value

    await wait_until_answered(found)


@pytest.mark.anyio
async def test_a_fleet_may_differ_in_its_ways(url: str) -> None:
    """As while a new setting is rolled out: each hears in its own way of what the others do."""
    async with (
        fleet(url, 1, tracking="keys") as (one,),
        fleet(url, 1, tracking="prefix") as (two,),
        fleet(url, 1, tracking="off", max_staleness=0.05) as (three,),
    ):
        caches = (one, two, three)
        for number, writer in enumerate(caches * 2):
            await writer.set("t", "k", number, tags="x")
            for reader in caches:
                await finds(reader, number)
            await writer.invalidate_tags("x")
            for reader in caches:
                await finds(reader, None)
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.05)
            return loads

        assert await asyncio.gather(*(cache.get_or_set("t", "load", load) for cache in caches * 3)) == [1] * 9


def test_blocking_callers_without_announcements(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "_WORTH", 0)
    with CacheManager(redis_url=url, tracking="off", max_staleness=0.05) as cache, CacheManager(redis_url=url) as peer:
        through_the_lane(cache)
        for number in range(5):
            peer.set(NEAR, "k", number)
            wait_until(lambda: cache._state.memory.hit(b"magnus:near:k") is None)
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(lambda _: cache.get(NEAR, "k"), range(4))) == [number] * 4
