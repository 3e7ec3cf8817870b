"""Reads that an announcement of their epoch overtakes: one read of the epoch serves all of them, and none starves."""

import asyncio
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, Namespace
from tests.support.inside import state_of, wire_of
from tests.support.relay import Link, Relay
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("far", ttl=600, l1=False)
NEAR = Namespace("near", ttl=600)
READS = 100


def names(cache: AsyncCacheManager, namespace: Namespace) -> tuple[bytes, bytes]:
    """Return the name of the epoch of a namespace, and the prefix of the names of its values."""
    found = state_of(cache).epochs.epoch_names(namespace)
    return found.control, found.prefix


async def announce(cache: AsyncCacheManager, link: Link, name: bytes) -> None:
    """Announce an epoch, and return when the cache knows."""
    known = wire_of(cache).known
    await link.say(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%s\r\n" % (len(name), name))
    await wait_until_async(lambda: name in known.doubts)


def looked_up(raw: redis.Redis) -> int:
    """Return how many keys the server was asked for."""
    stats: Any = raw.info("stats")
    return int(stats["keyspace_hits"] + stats["keyspace_misses"])


@pytest.mark.parametrize("namespace", [FAR, NEAR], ids=["far", "near"])
async def test_one_read_of_an_epoch_serves_all_reads_that_its_announcement_has_overtaken(
    server: Any, url: str, raw: redis.Redis, namespace: Namespace
) -> None:
    async with AsyncCacheManager(redis_url=url) as writer:
        await writer.set_many(namespace, {f"k{number}": number for number in range(READS)})
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=60) as cache:
        for _ in range(2):
            await cache.get(namespace, "none")
        link, (epoch, prefix) = relay.links[-1], names(cache, namespace)
        before = looked_up(raw)
        link.hold()
        reads = [asyncio.create_task(cache.get(namespace, f"k{number}")) for number in range(READS)]
        await wait_until_async(lambda: link.held.count(prefix) == READS)
        await announce(cache, link, epoch)
        link.deliver()
        assert await asyncio.gather(*reads) == list(range(READS))
        # Each value twice, and a few epochs.
        assert looked_up(raw) - before < 2 * READS + 20


async def test_a_value_that_is_overtaken_again_comes_in_one_reply_with_its_epochs(server: Any) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=60) as cache:
        await cache.set(FAR, "k", 1)
        for _ in range(2):
            await cache.get(FAR, "k")
        link, (epoch, prefix) = relay.links[-1], names(cache, FAR)
        link.hold()
        read = asyncio.create_task(cache.get(FAR, "k"))
        asked: list[bytes] = []
        for _ in range(3):
            await wait_until_async(lambda: prefix in link.held)
            asked.append(link.held)
            await announce(cache, link, epoch)
            link.deliver()
            link.hold()
        assert epoch not in asked[0]
        together = asked[2][asked[2].rindex(b"MGET") :]
        assert 0 < together.find(epoch) < together.find(prefix)
        # The announcements go on, but what was asked for last needs no other answer.
        assert await read == 1
        link.deliver()
