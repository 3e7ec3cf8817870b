"""`changes` tells a gap where it may have missed something: lost connections, flushes, other primaries, moved slots."""

import asyncio
import threading
from typing import Final

import pytest
import redis

from magnus_cache import CacheManager, Changed, Invalidated, Lost
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, Proxy
from tests.support.changes import PATIENT, Told, managers, step
from tests.support.groups import anyio_backend, url_of
from tests.support.inside import put_off_attempts
from tests.support.rights import LINE, USER
from tests.support.wait import wait_until, wait_until_async

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

QUICK: Final = {"op_timeout": 1.0, "max_staleness": 1.0}
"""For a cache whose connection dies silently, or is not there."""


async def test_a_cut_connection_is_a_gap_and_then_all_is_told_again(proxy: Proxy, url: str) -> None:
    async with managers(proxy.url, 1) as (here,), managers(url, 1) as (other,):
        await other.set("t", "a", 1)
        assert await here.get("t", "a") == 1
        async with here.changes("t") as changes, here.changes("u") as elsewhere:
            told = Told(changes)
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not changes.watching)
            await other.set("t", "a", 2)
            await here.get("t", "b")
            # Else the connection for values may happen to be back first.
            put_off_attempts(here, 60)
            proxy.resume()
            gap = await told.gap()
            assert (gap.namespace, gap.reason) == ("t", "connection")
            assert (await step(elsewhere)).namespace == "u"
            assert changes.watching
            assert await here.get("t", "a") == 2
            await other.set("t", "a", 3)
            await told.key("a")


async def test_a_gap_begins_where_all_was_told_by_the_clock_of_redis(proxy: Proxy, url: str, raw: redis.Redis) -> None:
    async with managers(proxy.url, 1) as (here,), here.changes("t") as changes:
        seconds, microseconds = raw.time()
        began = seconds + microseconds / 1e6
        proxy.cut()
        gap = await Told(changes).gap()
        assert gap.since is not None
        assert abs(gap.since - began) < 5


async def test_a_black_hole_is_found_although_nothing_happens(proxy: Proxy, url: str) -> None:
    """Within a third of `max_staleness` and `op_timeout`, and the time of a new connection."""
    async with managers(proxy.url, 1, **QUICK) as (here,), here.changes("t") as changes:
        proxy.black_hole()
        began = monotonic()
        await wait_until_async(lambda: not changes.watching)
        # Generous: the machine is shared.
        assert monotonic() - began < 15
        proxy.resume()
        proxy.cut()
        assert (await Told(changes).gap()).reason == "connection"


async def test_a_killed_connection_is_a_gap(url: str, raw: redis.Redis) -> None:
    async with managers(url, 1) as (here,), here.changes("t") as changes:
        for client in raw.client_list():
            if "B" in str(client["flags"]):
                raw.client_kill_filter(_id=client["id"])
        assert (await Told(changes).gap()).reason == "connection"
        await here.set("t", "a", 1)
        await Told(changes).key("a")


async def test_who_begins_in_an_outage_is_told_a_gap_when_redis_is_there(proxy: Proxy, url: str) -> None:
    proxy.refuse()
    async with managers(proxy.url, 1, **QUICK) as (here,), here.changes("t") as changes:
        assert not changes.watching
        # What this process does meanwhile is told.
        await here.set("t", "a", 1)
        assert await step(changes) == Changed("t", "a")
        await here.delete("t", "b")
        assert await step(changes) == Changed("t", "b")
        await here.clear("t")
        assert await step(changes) == Invalidated("t")
        await here.invalidate_tags("x")
        assert await step(changes) == Invalidated("t", "x")
        proxy.resume()
        await Told(changes).gap()
        assert changes.watching


async def test_a_flush_is_a_gap(url: str, raw: redis.Redis) -> None:
    async with managers(url) as (here, other):
        await other.set("t", "a", 1)
        assert await here.get("t", "a") == 1
        async with here.changes("t") as changes:
            raw.flushall()
            gap = await Told(changes).gap()
            assert gap.reason == "flushed"
            assert await here.get("t", "a") is None
            await other.set("t", "a", 2)
            await Told(changes).key("a")


async def test_a_restarted_server_is_a_gap(private_server: EmbeddedServer) -> None:
    async with managers(private_server.url, 1) as (here,), here.changes("t") as changes:
        private_server.kill()
        private_server.restart()
        assert (await Told(changes).gap()).reason == "connection"
        await here.set("t", "a", 1)
        await Told(changes).key("a")


async def test_the_rights_that_the_pages_name_are_enough(private_server: EmbeddedServer) -> None:
    with redis.Redis(port=private_server.port) as raw:
        raw.execute_command(*LINE.split())
    url = f"redis://{USER}@127.0.0.1:{private_server.port}"
    async with managers(url) as (here, other), here.changes("t") as changes:
        await other.set("t", "a", 1, tags=("x",))
        assert await step(changes) == Changed("t", "a")
        await other.invalidate_tags("x")
        assert await step(changes) == Invalidated("t", "x")
        await other.clear("t")
        # The epoch is asked for before it is told: that a key is removed may come first.
        while (change := await step(changes)) != Invalidated("t"):
            assert change == Changed("t", "a")


def test_a_blocked_consumer_is_told_of_a_gap(proxy: Proxy) -> None:
    with CacheManager(redis_url=proxy.url, **PATIENT) as cache, cache.changes("t") as changes:
        told: list[object] = []
        thread = threading.Thread(target=lambda: told.append(next(changes)))
        thread.start()
        proxy.cut()
        thread.join(10)
        assert [type(change) for change in told] == [Lost]
        wait_until(lambda: changes.watching)


# -- several servers --------------------------------------------------------------------------------------------


async def test_every_primary_of_a_cluster_is_watched(cluster: EmbeddedCluster) -> None:
    async with managers(url_of(cluster)) as (here, other), here.changes("t") as changes:
        told = Told(changes)
        for primary in cluster.primaries:
            key = cluster.key_on(primary, prefix="magnus:t:k").removeprefix("magnus:t:")
            await other.set("t", key, 1, tags=("x",))
            await told.key(key)
        # The first process that meets the servers of a group invalidates it, and that may be told.
        assert not any(isinstance(change, Lost) for change in told.all)
        await other.invalidate_tags("x")
        await told.until(lambda all_told: Invalidated("t", "x") in all_told)
        await other.clear("t")
        await told.until(lambda all_told: Invalidated("t") in all_told)


@pytest.mark.parametrize("how", ["migrated", "given away"])
async def test_a_moved_slot_is_a_gap_and_its_new_owner_is_watched(cluster: EmbeddedCluster, how: str) -> None:
    source, target, *_ = cluster.primaries
    key = cluster.key_on(source, prefix="magnus:t:k").removeprefix("magnus:t:")
    slot = key_slot(f"magnus:t:{key}".encode())
    async with managers(url_of(cluster)) as (here, other):
        await other.set("t", key, 1)
        assert await here.get("t", key) == 1
        async with here.changes("t") as changes:
            told = Told(changes)
            move = cluster.migrate if how == "migrated" else cluster.give_away
            await asyncio.to_thread(move, [slot], target)
            gap = await told.gap()
            assert gap.reason == "moved"
            assert await here.get("t", key) == (1 if how == "migrated" else None)
            await other.set("t", key, 2)
            # Not a gap: it is told a second time after the bound.
            await told.until(lambda all_told: Changed("t", key) in all_told)
            assert await here.get("t", key) == 2


async def test_a_promoted_replica_is_watched(cluster: EmbeddedCluster) -> None:
    primary = cluster.primaries[0]
    key = cluster.key_on(primary, prefix="magnus:t:k").removeprefix("magnus:t:")
    async with managers(url_of(cluster)) as (here, other), here.changes("t") as changes:
        await other.set("t", key, 0)
        told = Told(changes)
        await asyncio.to_thread(cluster.promote, cluster.replicas_of(primary)[0])
        assert (await told.gap()).reason in {"moved", "connection"}
        await _is_told_at_last(other, told, key)


async def test_another_primary_of_sentinel_is_watched(sentinels: EmbeddedSentinels) -> None:
    async with managers(url_of(sentinels)) as (here, other), here.changes("t") as changes:
        await other.set("t", "a", 0)
        told = Told(changes)
        await told.key("a")
        await asyncio.to_thread(sentinels.promote)
        assert (await told.gap()).reason == "connection"
        # Once more, when no connection leads to the old one any longer.
        await told.gap()
        await _is_told_at_last(other, told, "a")


async def _is_told_at_last(writer: object, told: Told, key: str) -> None:
    """Return once a write is told by its key: what is written while the primary changes may be lost."""
    for number in range(1, 100):
        told.all.clear()
        await writer.set("t", key, number)  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(1):
                await told.until(lambda all_told: Changed("t", key) in all_told)
        except TimeoutError:
            continue
        return
    raise AssertionError("no write was told")
