"""Large values come through connections of their own: no small one waits for them, and they are judged as any other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheClosedError, Namespace
from magnus_cache._engine.coherence.epochs import LARGE_BYTES
from magnus_cache._engine.redis import commands, scripts
from magnus_cache.embedded import EmbeddedServer
from tests.support.connections import others
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import large_wires_here, large_wires_of
from tests.support.relay import Link, Relay
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("far", ttl=600, l1=False)
SMALL = Namespace("small", ttl=600, l1=False)
LARGE = bytes(300_000)
MOST = 3


class LateLink(Link):
    """A link that keeps what the server sends while it is late."""

    late = False
    kept = b""

    def passed(self, chunk: bytes) -> bytes:
        if not self.late:
            return chunk
        self.kept += chunk
        return b""

    async def arrive(self) -> None:
        """Let the client have what was kept."""
        self.late, kept = False, self.kept
        await self.say(kept)


class LateRelay(Relay):
    def link(self) -> Link:
        return LateLink(self)


def standing(cache: AsyncCacheManager) -> int:
    """Return how many connections for large values stand."""
    return sum(wire.up for wire in large_wires_of(cache))


async def reads_apart(cache: AsyncCacheManager, count: int = 1) -> None:
    """Store values, and read a large one until so many connections for large values stand."""
    assert await cache.set(FAR, "large", LARGE)
    assert await cache.set(FAR, "little", 1)
    assert await cache.set(SMALL, "k", 2)
    assert await cache.get(SMALL, "k") == 2

    async def stands() -> bool:
        found = await asyncio.gather(*(cache.get(FAR, "large") for _ in range(count)))
        assert found == [LARGE] * count
        return standing(cache) == count

    await wait_until_answered(stands)
    # Each knows the epochs from now on.
    assert await asyncio.gather(*(cache.get(FAR, "large") for _ in range(count))) == [LARGE] * count


@asynccontextmanager
async def relayed(
    server: EmbeddedServer, count: int = 1
) -> AsyncIterator[tuple[AsyncCacheManager, Link, list[LateLink]]]:
    """Return a cache, the link of its connection for all values, and those of its connections for large values."""
    async with LateRelay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=20) as cache:
        await reads_apart(cache, count)
        first, *apart = relay.links
        yield cache, first, [link for link in apart if isinstance(link, LateLink)]


# -- no small value waits for a large one -----------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
async def test_no_small_value_waits_for_a_large_one(server: EmbeddedServer, many: bool) -> None:
    async with relayed(server) as (cache, _, (apart,)):
        apart.late = True
        large: asyncio.Future[object] = asyncio.ensure_future(
            cache.get_many(FAR, ["large", "little"]) if many else cache.get(FAR, "large")
        )
        await wait_until_async(lambda: len(apart.kept) > len(LARGE))
        assert await cache.get(SMALL, "k") == 2
        assert not large.done()
        await apart.arrive()
        assert await large == ({"large": LARGE, "little": 1} if many else LARGE)


async def test_a_small_value_of_a_namespace_with_large_ones_comes_through_the_idle_connection(
    server: EmbeddedServer,
) -> None:
    async with relayed(server, 2) as (cache, _, links):
        busy = large_wires_of(cache)[0]
        links[0].late = links[1].late = True
        large = asyncio.ensure_future(cache.get(FAR, "large"))
        await wait_until_async(lambda: sum(len(link.kept) for link in links) > len(LARGE))
        assert busy.pending == 1
        slow, idle = sorted(links, key=lambda link: len(link.kept), reverse=True)
        await idle.arrive()
        assert await cache.get(FAR, "little") == 1
        assert not large.done()
        await slow.arrive()
        assert await large == LARGE


async def test_there_are_few_connections_for_large_values(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await reads_apart(cache, MOST)
        for _ in range(3):
            assert await asyncio.gather(*(cache.get(FAR, "large") for _ in range(20))) == [LARGE] * 20
        assert standing(cache) == len(large_wires_of(cache)) == MOST
        assert len(others(raw)) == 1 + MOST
    await wait_until_async(lambda: not others(raw))


async def test_one_after_the_other_large_values_come_through_one_connection(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        await reads_apart(cache)
        for _ in range(5):
            assert await cache.get(FAR, "large") == LARGE
        assert standing(cache) == 1


# -- where there is none ----------------------------------------------------------------------------------------


async def test_large_values_come_through_the_connection_for_all_if_the_server_allows_no_other(
    private_server_with: Callable[..., EmbeddedServer],
) -> None:
    """It is nothing to tell anybody."""
    server = private_server_with()
    async with fleet(server.url, 1) as (cache,):
        assert await cache.set(FAR, "large", LARGE)
        with redis.Redis(port=server.port) as client:
            # Itself and the connection for all values.
            client.config_set("maxclients", 2)
            for _ in range(3):
                assert await cache.get(FAR, "large") == LARGE
            await wait_until_async(lambda: large_wires_of(cache)[0].over)
            assert await cache.get(FAR, "large") == LARGE
            assert len(large_wires_of(cache)) == 1
            assert cache.redis_available
            assert (await cache.get_stats())["errors"] == {}
            client.config_set("maxclients", 100)
            large_wires_of(cache)[0].next_at = 0
            await reads_apart(cache)


async def test_a_large_value_whose_connection_is_lost_is_requested_again(server: EmbeddedServer) -> None:
    async with relayed(server) as (cache, _, (apart,)):
        apart.late = True
        large = asyncio.ensure_future(cache.get(FAR, "large"))
        await wait_until_async(lambda: len(apart.kept) > len(LARGE))
        apart.cut()
        assert await large == LARGE
        assert cache.redis_available
        assert standing(cache) == 0
        large_wires_of(cache)[0].next_at = 0
        await reads_apart(cache)


async def test_a_cache_that_is_closed_makes_no_connection_for_large_values(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        await reads_apart(cache)
        large = large_wires_here(cache)
    assert large is not None
    (ended,) = large.all
    assert ended.over
    with pytest.raises(CacheClosedError):
        large.idlest(ended.next_at)
    assert large.all == []


# -- they are judged as any other -------------------------------------------------------------------------------


async def read_near(reader: AsyncCacheManager, writer: AsyncCacheManager) -> None:
    """Have a reader keep a large value in memory that has come through a connection for large values."""
    state = reader._engine.state

    async def kept() -> bool:
        assert await writer.set("t", "k", LARGE)
        await wait_until_async(lambda: not near(reader, "t", "k"))
        assert await reader.get("t", "k") == LARGE
        entry = state.memory.hit(state.keyspace.value_name("t", "k"))
        return entry is not None and entry.trust in [wire.trust for wire in large_wires_of(reader)]

    await wait_until_answered(kept)


@pytest.mark.parametrize("how", ["set", "delete", "clear", "tag"])
async def test_invariant_1_a_change_of_a_large_value_elsewhere_ends_it_here(url: str, how: str) -> None:
    async with fleet(url, 2, max_staleness=60) as (reader, writer):
        await read_near(reader, writer)
        match how:
            case "set":
                await writer.set("t", "k", "new")
            case "delete":
                await writer.delete("t", "k")
            case "clear":
                await writer.clear("t")
            case _:
                await writer.set("t", "k", LARGE, tags="x")
                await wait_until_async(lambda: not near(reader, "t", "k"))
                assert await reader.get("t", "k") == LARGE
                await writer.invalidate_tags("x")
        await wait_until_async(lambda: not near(reader, "t", "k"))
        assert await reader.get("t", "k") == ("new" if how == "set" else None)


async def test_what_came_through_a_lost_connection_is_confirmed_before_it_is_served(url: str) -> None:
    async with fleet(url, 2, max_staleness=60) as (reader, writer):
        await read_near(reader, writer)
        (apart,) = large_wires_of(reader)
        apart.stop()
        await wait_until_async(lambda: apart.over)
        assert not near(reader, "t", "k")
        assert await reader.get("t", "k") == LARGE
        # By its header: nothing of the value was sent.
        assert near(reader, "t", "k")
        await writer.set("t", "k", "new")
        await wait_until_async(lambda: not near(reader, "t", "k"))
        assert await reader.get("t", "k") == "new"


async def test_invariant_1_a_large_value_that_is_deleted_on_its_way_is_not_kept(server: EmbeddedServer) -> None:
    async with relayed(server) as (cache, _, (apart,)), fleet(server.url, 1) as (writer,):
        await read_near(cache, writer)
        await writer.set("t", "k", LARGE)
        await wait_until_async(lambda: not near(cache, "t", "k"))
        apart.late = True
        reading = asyncio.create_task(cache.get("t", "k"))
        await wait_until_async(lambda: len(apart.kept) > len(LARGE))
        assert await cache.delete("t", "k")
        await apart.arrive()
        assert await reading in (LARGE, None)
        assert await cache.get("t", "k") is None


def test_a_command_with_a_large_value_has_the_same_bytes() -> None:
    words = (b"SET", b"k", b"v" * 70_000, "PX", 5)
    assert commands.pack_large(*words) == commands.pack(*words)
    small, large = (commands.store(b"k", b"v" * size, 5).packed for size in (LARGE_BYTES - 1, LARGE_BYTES))
    assert small.replace(b"$%d" % (LARGE_BYTES - 1), b"$%d" % LARGE_BYTES).replace(b"vv\r", b"vvv\r") == large
    for size in (0, LARGE_BYTES):
        command = scripts.fill(b"k", b"token", b"v" * size, 5)
        assert command.packed.endswith(commands.pack(b"v" * size).split(b"\r\n", 1)[1] + b"$1\r\n5\r\n")


async def test_a_large_value_is_sent_in_parts_and_in_order(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
        values = {"a": b"a" * 3_000_000, "b": b"b" * 2_000_000, "c": "small"}
        await asyncio.gather(*(cache.set("t", key, value) for key, value in values.items()))
        await asyncio.gather(
            *(cache.set("t", "last", number) for number in range(20)), cache.set("t", "a", values["a"])
        )
        assert await other.get_many("t", values) == values
        assert await other.get("t", "last") == await cache.get("t", "last")
