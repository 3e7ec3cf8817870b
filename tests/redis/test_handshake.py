"""The handshake of a connection: how many round trips it takes, and what it leaves at the server."""

from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, __version__
from magnus_cache._engine.redis import handshake
from magnus_cache.embedded import EmbeddedServer
from tests.support.connections import others
from tests.support.inside import wire_of
from tests.support.lanes import through_the_lane
from tests.support.relay import Link, Relay
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


class _CountingLink(Link):
    """Counts the round trips: how often the client waits for the server.

    :ivar trips: as many as began with a request that came after all replies to earlier ones.
    """

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self.trips = 0
        self._answered = True

    def asked(self, chunk: bytes) -> None:
        self.trips += self._answered
        self._answered = False

    def passed(self, chunk: bytes) -> bytes:
        self._answered = True
        return chunk


class _CountingRelay(Relay):
    def link(self) -> Link:
        return _CountingLink(self)

    @property
    def trips(self) -> list[int]:
        return [link.trips for link in self.links if isinstance(link, _CountingLink)]


async def test_the_first_read_of_a_process_takes_three_round_trips(server: EmbeddedServer) -> None:
    """Another process has met the server: HELLO, the handshake, and the value with the epochs that it is judged by."""
    async with AsyncCacheManager(redis_url=server.url) as earlier:
        await earlier.set("t", "k", 1)
    async with _CountingRelay(server.port) as relay, AsyncCacheManager(redis_url=relay.url) as cache:
        assert await cache.get("t", "k") == 1
        # Redis before 7.0 is asked to announce by prefix, once its version is known.
        assert relay.trips == [3 if (await cache.ping()).tracking_mode == "keys" else 4]


async def test_a_server_that_no_process_has_met_takes_another_round_trip(server: EmbeddedServer) -> None:
    async with _CountingRelay(server.port) as relay, AsyncCacheManager(redis_url=relay.url) as cache:
        await cache.get("t", "k")
        # And one more where the epochs are missing, too: they are issued after the read has shown it.
        assert relay.trips in ([4], [5])


async def test_a_connection_shows_the_library_and_its_version(
    server: EmbeddedServer, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server can show it. `redis-py` tells its own in round trips of its own, and is kept from that."""
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.set("t", "k", 1)
        assert await cache.get("t", "k") == 1
        assert (await cache.ping()).ok
        libraries: list[Any] = [client.get("lib-name") for client in others(raw)]
        versions: list[Any] = [client.get("lib-ver") for client in others(raw)]
    # Servers before 7.2 do not know CLIENT SETINFO.
    knows = "lib-name" in raw.client_list()[0]
    assert (libraries, versions) == ((["magnus-cache"], [__version__]) if knows else ([None], [None]))
    # The other servers refuse it, and nothing comes of that.
    assert caplog.records == []


def test_every_connection_of_a_cache_shows_the_library(server: EmbeddedServer, raw: redis.Redis) -> None:
    """Those of threads that ask Redis themselves, too."""
    with CacheManager(redis_url=server.url) as cache:
        through_the_lane(cache)
        cache.set("t", "large", "x" * 1_000_000)
        with CacheManager(redis_url=server.url) as other:
            assert other.get("t", "large")
            assert other.get("t", "large")
            clients: list[Any] = others(raw)
    knows = "lib-name" in clients[0]
    assert len(clients) >= 3
    assert {client.get("lib-name") for client in clients} == {"magnus-cache" if knows else None}
    assert {client.get("lib-ver") for client in clients} == {__version__ if knows else None}


async def test_an_identity_that_the_handshake_has_read_is_not_written_again(
    server: EmbeddedServer, raw: redis.Redis
) -> None:
    async with AsyncCacheManager(redis_url=server.url) as earlier:
        await earlier.get("t", "k")
    raw.config_resetstat()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get("t", "k")
        assert "cmdstat_set" not in raw.info("commandstats")


@pytest.mark.parametrize("echoes", [False, True])
@pytest.mark.parametrize("met", [False, True])
async def test_an_identity_that_is_removed_is_written_again(
    server: EmbeddedServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, met: bool, echoes: bool
) -> None:
    """Each process that has read it is told, if only in the handshake; and where our own writes are not announced."""
    if not echoes:
        monkeypatch.setattr(handshake, "_ORDERLY", (1_000, 0))
    if met:
        async with AsyncCacheManager(redis_url=server.url) as earlier:
            await earlier.get("t", "k")
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get("t", "k")
        for _ in range(2):
            identity = raw.get("magnus!server")
            assert identity is not None
            raw.delete("magnus!server")
            await wait_until_async(lambda identity=identity: raw.get("magnus!server") == identity)


@pytest.mark.parametrize("stored", [None, b"", b"another"])
async def test_a_server_that_tells_no_identity_keeps_none(
    server: EmbeddedServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, stored: bytes | None
) -> None:
    """As where INFO is forbidden. An empty value in the place of the identity is none, either."""
    monkeypatch.setattr(handshake, "server_identity", lambda *_: b"")
    if stored is not None:
        raw.set("magnus!server", stored)
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get("t", "k")
        wire = wire_of(cache)
        assert not wire.server.keeps_identity
        assert not wire.keeps_identity
    assert raw.get("magnus!server") == stored


@pytest.mark.parametrize("stored", [None, b"", b"another", b"run:history"])
async def test_a_server_whose_data_may_be_of_another_history_is_not_believed(
    server: EmbeddedServer, raw: redis.Redis, stored: bytes | None
) -> None:
    """What the handshake reads there spares the script only if it is the identity itself."""
    async with AsyncCacheManager(redis_url=server.url) as earlier:
        await earlier.set("t", "k", 1)
    identity = raw.get("magnus!server")
    assert identity is not None
    async with AsyncCacheManager(redis_url=server.url) as known:
        assert await known.get("t", "k") == 1
    if stored is None:
        raw.delete("magnus!server")
    else:
        raw.set("magnus!server", stored)
    async with AsyncCacheManager(redis_url=server.url) as cache:
        assert await cache.get("t", "k") is None
    assert raw.get("magnus!server") == identity
