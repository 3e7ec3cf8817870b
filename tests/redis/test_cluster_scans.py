"""Operations on keys whose names are not known: they reach every primary, also while slots move."""

import asyncio
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.cluster_scans import on_all_primaries
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache._engine.redis.wire import Wire
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.testing import EmbeddedCluster, ServerNode
from tests.redis.test_cluster import KEYS
from tests.support.groups import cache_of
from tests.support.inside import state_of

pytestmark = pytest.mark.anyio


def _primaries(cluster: EmbeddedCluster) -> list[ServerNode]:
    """Return the primaries, the one with most of the keys first: earlier tests have moved slots."""
    owners = [cluster.owner(f"magnus:t:{key}") for key in KEYS]
    return sorted(cluster.primaries, key=owners.count, reverse=True)


def topology_of(cache: Any) -> Any:
    return state_of(cache).topology


async def test_a_glob_is_cleared_on_all_nodes_by_the_first_call(cluster: EmbeddedCluster) -> None:
    """Before any other call, the cache does not know which primaries there are."""
    async with cache_of(cluster) as one:
        await one.set_many("t", dict.fromkeys(KEYS, 1))
        # Nor does the node that it asks first, if it is a replica, serve anything itself.
        async with AsyncCacheManager(redis_url=f"redis+cluster://{cluster.replicas[0].address}") as fresh:
            assert await fresh.clear("magnus:t:k*") == len(KEYS)
        await one.set_many("t", dict.fromkeys(KEYS[:7], 1))
        stats = await one.get_stats()
        assert stats["redis_total_keys"] == 7
        assert str(stats["redis_used_memory"]).count("+") == 2


@pytest.mark.parametrize("pattern", ["t", "magnus:t:*k*"])
async def test_keys_of_a_slot_that_is_half_moved_are_removed(cluster: EmbeddedCluster, pattern: str) -> None:
    source, target, *_ = _primaries(cluster)
    async with cache_of(cluster) as cache:
        await cache.set_many("t", dict.fromkeys(KEYS, 1))
        slots = sorted({key_slot(f"magnus:t:{key}".encode()) for key in KEYS} & set(cluster.slots_of(source)))[:10]
        migration = cluster.migration(slots, target)
        await asyncio.to_thread(migration.begin)
        await asyncio.to_thread(migration.move_keys, 5)
        removed = await cache.clear(pattern)
        # A key that was still at the source is removed there, and then looked for at the target.
        assert removed == len(KEYS) if pattern == "t" else len(KEYS) - 10 <= removed <= len(KEYS)
        found = [name for node in cluster.primaries for name in node.ask("KEYS", "magnus:t:*")]
        assert found == []
        await asyncio.to_thread(migration.complete)


async def test_nodes_that_slots_have_moved_to_are_scanned_again(cluster: EmbeddedCluster) -> None:
    source, target, *others = _primaries(cluster)
    async with cache_of(cluster) as cache:
        await cache.set_many("t", dict.fromkeys(KEYS, 1))
        topology = topology_of(cache)
        key = next(key for key in KEYS if cluster.owner(f"magnus:t:{key}") == source)
        slot = key_slot(f"magnus:t:{key}".encode())
        scanned: list[str] = []

        async def work(wire: Wire) -> int:
            scanned.append(topology.node_id(wire))
            if scanned.count(source.id) == 1 and topology.node_id(wire) == source.id:
                await asyncio.to_thread(cluster.migrate, [slot], target)
                # The cache learns of it from the answer to this.
                assert await cache.ttl("t", key) is not None
            return 1

        assert await on_all_primaries(topology, work) == (3 + len(others), None)
        assert sorted(scanned) == sorted([source.id, target.id, target.id, *(node.id for node in others)])


async def test_a_node_that_fails_stops_no_work_on_another(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as cache:
        await cache.get("t", "k")
        topology = topology_of(cache)
        failure = CacheUnavailableError("lost", "away")

        async def work(wire: Wire) -> int:
            if topology.node_id(wire) == cluster.primaries[0].id:
                raise failure
            return 1

        assert await on_all_primaries(topology, work) == (2, failure)
