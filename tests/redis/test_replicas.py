"""Replicas: one that has lost its primary is not believed, one that follows it is."""

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import virtual_clock
from tests.conftest import SERVERS, binary_of
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("kind", SERVERS)]

NOWHERE = 1


def started(kind: str) -> EmbeddedServer:
    return EmbeddedServer(binary_of(kind), repl_diskless_sync_delay="0").start()


async def follow(port: int, primary: int) -> None:
    """Make a server a replica, and return when it has what the primary has."""
    with redis.Redis(port=port, protocol=2) as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", str(primary))
        await wait_until_async(lambda: admin.info("replication").get("master_link_status") == "up")


def orphan(port: int) -> None:
    """Let a replica lose its primary."""
    with redis.Redis(port=port, protocol=2) as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", str(NOWHERE))


async def test_invariant_5_a_replica_that_lost_its_primary_is_not_believed(kind: str) -> None:
    """A process that starts with the address of before a failover. It is served when the link is back."""
    with started(kind) as old, started(kind) as new:
        async with AsyncCacheManager(redis_url=old.url) as cache:
            await cache.set("t", "k", "old")
        await follow(new.port, old.port)
        with redis.Redis(port=new.port, protocol=2) as admin:
            admin.execute_command("REPLICAOF", "NO", "ONE")
        await follow(old.port, new.port)
        orphan(old.port)
        async with AsyncCacheManager(redis_url=new.url) as cache:
            await cache.delete("t", "k")
        async with AsyncCacheManager(redis_url=old.url) as fresh:
            assert await fresh.get("t", "k") is None
            assert not fresh.redis_available
            assert "masterdown" in (await fresh.get_stats())["errors"]
            assert await fresh.get_or_set("t", "k", lambda: "loaded") == "loaded"
            await follow(old.port, new.port)
            await wait_until_async(lambda: fresh.redis_available)
            assert await fresh.get("t", "other") is None


@pytest.mark.parametrize("reads", ["near", "in redis"])
async def test_a_server_that_becomes_one_while_connected_is_left(kind: str, reads: str) -> None:
    """It says nothing by itself, and its data stays as it was."""
    with started(kind) as server, virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=server.url) as cache:
            await cache.set("t", "k", "old")
            orphan(server.port)
            clock.advance(1)

            async def noticed() -> bool:
                await cache.get("t", "k" if reads == "near" else "absent")
                return not cache.redis_available

            await wait_until_answered(noticed)
            assert "masterdown" in (await cache.get_stats())["errors"]


async def test_a_replica_that_follows_its_primary_is_read(kind: str) -> None:
    with started(kind) as primary, started(kind) as replica:
        async with AsyncCacheManager(redis_url=primary.url) as writer:
            await writer.set("t", "k", 1)
            await follow(replica.port, primary.port)
            async with AsyncCacheManager(redis_url=replica.url) as reader:
                assert await reader.get("t", "k") == 1
                assert reader.redis_available
