"""What a server drops on account of our own commands: keys, to make room, and its memory of who has read which."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis import handshake
from magnus_cache._engine.redis.commands import Command, pack
from magnus_cache.embedded import EmbeddedServer
from tests.conftest import SERVERS, binary_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


@pytest.fixture(params=SERVERS)
def own(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary_of(request.param), maxmemory_policy="volatile-ttl", maxmemory_samples="64") as server:
        yield server


async def tracking_flags(cache: AsyncCacheManager) -> set[bytes]:
    wire = cache._engine.state.topology.connection(b"")
    assert wire is not None
    reply: Any = await wire.execute(Command("CLIENT", pack(b"CLIENT", b"TRACKINGINFO")))
    return set(reply[b"flags"])


@pytest.fixture(params=["", "old"])
def ability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server is taken for: a present one, or Redis before 7.0, which is asked to announce by prefix."""
    if request.param:
        monkeypatch.setattr(handshake, "_ORDERLY", (1_000, 0))


@pytest.mark.usefixtures("ability")
async def test_what_our_own_writes_have_evicted_is_not_served(own: EmbeddedServer) -> None:
    async with AsyncCacheManager(redis_url=own.url) as cache, AsyncCacheManager(redis_url=own.url) as peer:
        await cache.set("t", "hot", "old", ttl=600)
        assert await cache.get("t", "hot") == "old"
        with redis.Redis(port=own.port, protocol=2) as admin:
            admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 3_000_000)
            await asyncio.gather(*(cache.set("t", number, "x" * 20_000, ttl=3_600) for number in range(300)))
            assert not admin.exists("magnus:t:hot")
        assert await cache.get("t", "hot") is None
        await peer.set("t", "hot", "new", ttl=600)
        assert await cache.get("t", "hot") == "new"
        assert await cache.get("t", 299) == "x" * 20_000


@pytest.mark.usefixtures("ability")
async def test_what_the_server_ceases_to_track_is_not_served(own: EmbeddedServer) -> None:
    """Its memory of who has read which keys is bounded; what it forgets because of our reads is announced to us."""
    async with AsyncCacheManager(redis_url=own.url, max_staleness=30) as cache:
        async with AsyncCacheManager(redis_url=own.url) as peer:
            numbers = range(700)
            await peer.set_many("t", dict.fromkeys(numbers, "old"))
            with redis.Redis(port=own.port, protocol=2) as admin:
                admin.config_set("tracking-table-max-keys", 500)
            assert set((await cache.get_many("t", numbers)).values()) == {"old"}
            for _ in range(20):
                await cache.get("t", "nothing")
            with redis.Redis(port=own.port, protocol=2) as admin:
                assert admin.info("stats")["tracking_total_keys"] <= 500
            await peer.set_many("t", dict.fromkeys(numbers, "new"))
        # An answer, behind all that was announced.
        await cache.get("t", "nothing")
        assert set((await cache.get_many("t", numbers)).values()) == {"new"}


async def test_our_own_writes_are_not_announced(url: str) -> None:
    """Neither a value that was just stored, nor the lease and the epochs under it, are heard of as if by others."""
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 0)
        if b"bcast" in await tracking_flags(cache):
            pytest.skip("this server cannot leave them out")
        heard: list[bytes] = []
        state = cache._engine.state
        invalidated = state.events.invalidated
        state.events.invalidated = lambda names, wire: (heard.extend(names), invalidated(names, wire))  # type: ignore
        for number in range(3):
            assert await cache.set("t", "k", number)
            assert state.memory.hit(b"magnus:t:k") is not None
            assert await cache.get_or_set("t", number, lambda number=number: number, tags="x") == number
            assert await cache.get_or_set("t", "again", lambda: 1) == 1
            assert await cache.touch("t", "k", 100)
            await cache.invalidate_tags("x")
        assert not heard
        await cache.clear("t")
        assert not [name for name in heard if not name.startswith(b"magnus:t:")]
        assert b"noloop" not in await tracking_flags(cache)


@pytest.mark.parametrize("why", ["version", "acl"])
async def test_a_server_that_cannot_leave_them_out_announces_by_prefix(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """As Redis 6, which announces by key what a command has changed in the midst of its reply."""
    raw.acl_setuser("app", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-multi"])
    if why == "version":
        monkeypatch.setattr(handshake, "_ORDERLY", (1_000, 0))
    else:
        url = url.replace("//", "//app:pw@")
    try:
        async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as peer:
            assert await cache.get_or_set("t", "k", lambda: "old") == "old"
            assert {b"bcast"} == await tracking_flags(cache) - {b"on"}
            assert (await cache.ping()).tracking_mode == "prefix"
            # The cache hears of its own write, asks whose it is, and keeps it.
            memory = cache._engine.state.memory
            await wait_until_async(lambda: memory.hit(b"magnus:t:k") is not None)
            await peer.delete("t", "k")
            await wait_until_async(lambda: memory.hit(b"magnus:t:k") is None)
            assert await cache.get_or_set("t", "k", lambda: "new") == "new"
    finally:
        raw.acl_deluser("app")
