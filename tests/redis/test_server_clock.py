"""The server's clock may be set at any time: what is written lives, and nothing is fresh for longer than its life."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import VirtualClock, virtual_clock
from tests.support.clock_error import CLOCK_ERROR
from tests.support.clock_relay import ClockRelay
from tests.support.fleet_of_managers import fleet
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

HOUR = 3600
STEPS = [HOUR, -HOUR]
LIFE = 5
LATEST = LIFE + CLOCK_ERROR
GRACE = Namespace("graceful", ttl=LIFE, grace="2h")


@asynccontextmanager
async def relayed(server: EmbeddedServer) -> AsyncIterator[tuple[ClockRelay, VirtualClock, AsyncCacheManager]]:
    """A manager on a virtual clock, behind a relay that sets the server's clock."""
    async with ClockRelay(server.port) as relay:
        with virtual_clock() as clock:
            async with fleet(relay.url, 1) as (manager,):
                yield relay, clock, manager


def end(raw: redis.Redis, name: str, relay: ClockRelay) -> float:
    """Return the seconds from now to the end of a stored value, by the server's clock as clients see it."""
    header = envelope.read_header(raw.get(name))
    return header.fresh_until / 1e6 - (time.time() + relay.ahead)


@pytest.mark.parametrize("step", STEPS)
async def test_a_write_after_a_rest_goes_by_the_present_clock(
    server: EmbeddedServer, raw: redis.Redis, step: int
) -> None:
    async with relayed(server) as (relay, clock, writer):
        assert await writer.set(GRACE, "k", 0)
        relay.ahead = step
        clock.advance(5)
        # The store itself: what it was answered along with would have it written again.
        writes = raw.info("commandstats")["cmdstat_set"]["calls"]
        assert await writer.set(GRACE, "k", 1)
        assert raw.info("commandstats")["cmdstat_set"]["calls"] == writes + 1
        assert 0 < end(raw, "magnus:graceful:k", relay) - clock.ahead <= LATEST
        assert await writer.get(GRACE, "k") == 1


@pytest.mark.parametrize("step", STEPS)
async def test_writes_of_many_after_a_rest_go_by_the_present_clock(
    server: EmbeddedServer, raw: redis.Redis, step: int
) -> None:
    async with relayed(server) as (relay, clock, writer):
        assert await writer.set_many(GRACE, {"k": 0, "l": 0})
        relay.ahead = step
        clock.advance(5)
        writes = raw.info("commandstats")["cmdstat_set"]["calls"]
        assert await writer.set_many(GRACE, {"k": 1, "l": 1})
        assert raw.info("commandstats")["cmdstat_set"]["calls"] == writes + 2
        for key in "kl":
            assert 0 < end(raw, f"magnus:graceful:{key}", relay) - clock.ahead <= LATEST
        assert await writer.get_many(GRACE, ["k", "l"]) == {"k": 1, "l": 1}


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_that_only_writes_notices(server: EmbeddedServer, raw: redis.Redis, step: int) -> None:
    """It never comes to rest, and reads nothing: the question goes along with its writes."""
    async with ClockRelay(server.port) as relay, fleet(relay.url, 1) as (writer,):
        assert await writer.set(GRACE, "k", 0)
        relay.ahead = step
        written = 0

        async def noticed() -> bool:
            nonlocal written
            written += 1
            assert await writer.set(GRACE, "k", written)
            return 0 < end(raw, "magnus:graceful:k", relay) <= LATEST

        deadline = time.monotonic() + 10
        while not await noticed():
            assert time.monotonic() < deadline, f"{written} values were dead at birth, or lived for too long"


async def test_writes_do_not_wait_for_the_time(server: EmbeddedServer) -> None:
    """One question a quarter of the bound, whatever is written."""
    async with ClockRelay(server.port) as relay, fleet(relay.url, 1) as (writer,):
        began = time.monotonic()
        for number in range(300):
            assert await writer.set("t", "k", number)
        took = time.monotonic() - began
        assert relay.asked <= 3 + 2 * took / 0.25


@pytest.mark.parametrize("step", STEPS)
async def test_a_write_that_meets_the_new_clock_is_corrected(
    server: EmbeddedServer, raw: redis.Redis, step: int
) -> None:
    """Its answer comes along with the time by which its end was wrong."""
    async with relayed(server) as (relay, clock, writer):
        assert await writer.set(GRACE, "k", 0)
        await writer.get_or_set(GRACE, "l", lambda: 0)
        for ahead, key, write in (
            (step, "k", lambda: writer.set(GRACE, "k", 1)),
            (0, "n", lambda: writer.get_or_set(GRACE, "n", lambda: 1)),
        ):
            relay.ahead = ahead
            # Less than after which a write asks first; more than after which it asks along.
            clock.advance(1)
            assert await write() == 1
            assert 0 < end(raw, f"magnus:graceful:{key}", relay) - clock.ahead <= LATEST
            assert await writer.get(GRACE, key) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_judgement_goes_by_the_present_clock(server: EmbeddedServer, step: int) -> None:
    async with relayed(server) as (relay, clock, reader):
        assert await reader.get(GRACE, "k") is None
        relay.ahead = step
        async with fleet(relay.url, 1) as (writer,):
            assert await writer.set(GRACE, "k", 1)
        clock.advance(1)
        assert await reader.get(GRACE, "k") == 1
        left = await reader.ttl(GRACE, "k")
        assert left is not None
        assert 0 < left <= LIFE


@pytest.mark.parametrize("life", [2.0, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("ahead", [HOUR, 10**12, 9 * 10**12])
async def test_nothing_is_fresh_for_longer_than_its_life(url: str, raw: redis.Redis, life: float, ahead: int) -> None:
    """Whatever stands in its header: it may have been written by a clock that was set since, or by no clock."""
    async with fleet(url, 1) as (reader,):
        await reader.set("t", "k", 1)
        epoch = envelope.read_header(raw.get("magnus:t:k")).epoch
        fresh_until = int((time.time() + ahead) * 1e6) % (1 << 63)
        for namespace in ("t", GRACE):
            await reader.get(namespace, "other")
            payload = codec.encode("value")
            value = envelope.pack(payload, version=1, fresh_until=fresh_until, epoch=1 << 52, life=life)
            assert epoch < 1 << 52
            raw.set(f"magnus:{namespace}:odd", value)
            most = life if 0 < life < 1e9 else 3.2e9
            assert await reader.get_or_set(namespace, "odd", lambda: "loaded", early=1.0, grace="1h") == "value"
            left = await reader.ttl(namespace, "odd")
            assert left is not None
            assert left <= most
            entry = reader._engine.state.memory.get_untrusted(f"magnus:{namespace}:odd".encode())
            assert entry is not None
            assert entry.fresh_until - reader._engine.state.clock() <= most


@pytest.mark.parametrize("step", STEPS)
async def test_what_a_process_keeps_of_its_own_write_ends_with_its_life(server: EmbeddedServer, step: int) -> None:
    async with ClockRelay(server.port) as relay:
        with virtual_clock() as clock:
            async with fleet(relay.url, 1) as (writer,):
                assert await writer.set("t", "k", 0, ttl=10)
                relay.ahead = step
                clock.advance(0.5)
                assert await writer.set("t", "k", 1, ttl=10)
                assert await writer.get("t", "k") == 1
                clock.advance(10 + CLOCK_ERROR)
                assert await writer.get("t", "k") is None


NONSENSE = [
    b"*2\r\n$2\r\n-5\r\n$1\r\n0\r\n",
    b"*2\r\n$1\r\nx\r\n$1\r\n0\r\n",
    b"*2\r\n$20\r\n" + b"9" * 20 + b"\r\n$1\r\n0\r\n",
    b"*2\r\n$10\r\n1700000000\r\n$7\r\n9999999\r\n",
    b"*1\r\n$10\r\n1700000000\r\n",
    b":1700000000\r\n",
    b"$-1\r\n",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_time_that_makes_no_sense_counts_for_nothing(server: EmbeddedServer, nonsense: bytes) -> None:
    """While connected, and at the next connection, which does not come about; all is well when it is over."""
    async with ClockRelay(server.port) as relay:
        with virtual_clock() as clock:
            cache = AsyncCacheManager(redis_url=relay.url)
        async with cache:
            await cache.set("t", "k", 1)
            relay.nonsense = nonsense
            wire = cache._engine.state.topology.connection(b"")
            assert wire is not None
            for number in range(3):
                clock.advance(0.5)
                assert await cache.set("t", "k", number)
                assert await cache.get("t", "k") == number
                assert abs(wire.time.at(clock()) / 1e6 - clock.ahead - time.time()) < 60
            for link in relay.links:
                link.cut()
            assert await cache.get("t", "new") is None
            relay.nonsense = None
            await wait_until_async(lambda: cache.redis_available)
            assert await cache.set("t", "k", 9)
            assert await cache.get("t", "k") == 9
