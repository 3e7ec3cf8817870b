"""SWAPDB: nobody announces that the keys of one number are another database's now."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import VirtualClock, virtual_clock
from tests.support.fleet_of_managers import near
from tests.support.inside import only_wire_of
from tests.support.relay import Relay
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

BOUND = 1.0


@contextlib.asynccontextmanager
async def blue_and_green(
    server: EmbeddedServer, url: str | None = None
) -> AsyncIterator[tuple[AsyncCacheManager, VirtualClock]]:
    """Yield a cache of the first database, with old values near; the second one has new values."""
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url or server.url, max_staleness=BOUND) as blue:
            await blue.set_many("t", {"k": "old", "other": "old"})
            async with AsyncCacheManager(redis_url=server.url.replace("/0", "/1")) as green:
                await green.set_many("t", {"k": "new", "other": "new"})
            assert await blue.get("t", "k") == "old"
            assert near(blue, "t", "k")
            yield blue, clock


async def test_invariant_5_an_exchanged_database_is_noticed_within_the_bound(
    server: EmbeddedServer, raw: redis.Redis
) -> None:
    async with blue_and_green(server) as (blue, clock):
        raw.swapdb(0, 1)
        clock.advance(BOUND)
        assert await blue.get("t", "k") in {None, "new"}
        await blue.set("t", "k", "newer")
        assert await blue.get("t", "k") == "newer"
        assert (await blue.get_stats())["breaker"]["outages"] == 0


async def test_another_answer_proves_nothing_about_the_database(server: EmbeddedServer, raw: redis.Redis) -> None:
    """It shows that no announcement was missed, and none is made of this."""
    async with blue_and_green(server) as (blue, clock):
        raw.swapdb(0, 1)
        clock.advance(BOUND)
        await blue.get("t", "absent")
        assert not near(blue, "t", "k")
        assert await blue.get("t", "k") in {None, "new"}


async def test_a_busy_process_notices_by_itself(server: EmbeddedServer, raw: redis.Redis) -> None:
    """All that it asks for is near."""
    async with blue_and_green(server) as (blue, _):
        raw.swapdb(0, 1)
        await wait_until_async(lambda: not near(blue, "t", "k"))
        assert await blue.get("t", "k") in {None, "new"}


async def test_threads_notice_as_well(server: EmbeddedServer, raw: redis.Redis) -> None:
    async with blue_and_green(server) as (blue, clock):
        assert await asyncio.to_thread(blue.sync.get, "t", "k") == "old"
        raw.swapdb(0, 1)
        clock.advance(BOUND)
        assert await asyncio.to_thread(blue.sync.get, "t", "k") in {None, "new"}


async def test_an_exchanged_database_is_no_fallback_in_the_next_outage(
    server: EmbeddedServer, raw: redis.Redis
) -> None:
    """Which begins as it is noticed."""
    async with Relay(server.port) as relay, blue_and_green(server, relay.url) as (blue, clock):
        raw.swapdb(0, 1)
        relay.refusing = True
        clock.advance(BOUND)
        assert await blue.get("t", "k") is None
        assert not blue.redis_available
        assert await blue.get("t", "k") is None


async def test_the_other_database_is_met_anew(server: EmbeddedServer, raw: redis.Redis) -> None:
    """Nobody has been there since the server was started: what it has may be from before the latest writes."""
    async with blue_and_green(server) as (blue, clock):
        epoch = int(raw.get("magnus!epoch"))
        with redis.Redis(port=server.port, db=1, protocol=2) as green:
            # As of a time when it was the first one.
            green.mset({"magnus!server": "another:history", "magnus!epoch": f"{epoch - 1:016d}"})
        # That was announced, as announcements know no databases, and is asked about.
        wire = only_wire_of(blue)
        await blue.get_stats()
        await wait_until_async(lambda: b"magnus!epoch" in wire.known.current)
        raw.swapdb(0, 1)
        clock.advance(BOUND)
        assert await blue.get("t", "k") is None
        assert int(raw.get("magnus!epoch")) > epoch
        identity = raw.get("magnus!server")
        assert identity
        assert identity != b"another:history"


async def test_a_database_that_was_never_used_is_taken_as_it_is(server: EmbeddedServer, raw: redis.Redis) -> None:
    async with blue_and_green(server) as (blue, clock):
        raw.swapdb(0, 7)
        clock.advance(BOUND)
        assert await blue.get("t", "k") is None
        assert await blue.get_or_set("t", "k", lambda: "loaded") == "loaded"
        assert await blue.get("t", "k") == "loaded"


async def test_clears_and_evictions_of_everything_are_no_exchange(server: EmbeddedServer, raw: redis.Redis) -> None:
    """By anybody: here, through another connection of this process, in another process; and nobody is disconnected."""
    async with blue_and_green(server) as (blue, clock), AsyncCacheManager(redis_url=server.url) as peer:
        await asyncio.to_thread(blue.sync.get_stats)
        await peer.get_stats()
        connections = raw.info("stats")["total_connections_received"]
        for clear in (blue.clear, peer.clear, lambda name: asyncio.to_thread(blue.sync.clear, name)):
            await blue.set("t", "k", 1)
            await clear("magnus:*")
            clock.advance(BOUND)
            assert await blue.get("t", "k") is None
            assert await asyncio.to_thread(blue.sync.get, "t", "k") is None
        raw.delete("magnus!epoch")
        clock.advance(BOUND)
        assert await blue.get("t", "k") is None
        assert raw.info("stats")["total_connections_received"] == connections
