"""A replica takes the place of a primary that still answers: what it lacks of the primary's writes."""

import asyncio
from collections.abc import Callable

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.slots import SLOTS, ClusterNode, SlotMap, anchor_tag, group_of, key_slot
from magnus_cache.testing import EmbeddedCluster, ServerNode
from magnus_cache.testing.servers.migration import SlotMigration
from tests.support.groups import anyio_backend, cache_of, key_on
from tests.support.inside import beat_with_role, cluster_view_of, error_of, state_of
from tests.support.wait import wait_until_answered, wait_until_async

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

StartCluster = Callable[..., EmbeddedCluster]


async def _delete_unheard(
    cluster: EmbeddedCluster, cache: AsyncCacheManager, primary: ServerNode
) -> tuple[str, int, ServerNode]:  # fmt: skip
    """Delete a value at a primary that is cut off from the others, and still confirmed by them.

    Returns its key, the slot, and the replica, which has the value.
    """
    key, slot = key_on(cluster, primary)
    replica = cluster.replicas_of(primary)[0]
    await cache.set("t", key, "old")

    async def has_it() -> bool:
        return "old" in str(replica.try_all([("READONLY",), ("GET", f"magnus:t:{key}")])[1])

    await wait_until_answered(has_it)
    await asyncio.to_thread(cluster.partition, primary)
    assert await cache.delete("t", key)
    return key, slot, replica


async def _is_met(cache: AsyncCacheManager, place: tuple[str, int], owner: ServerNode, former: ServerNode) -> None:
    """Return once a cache has read a key from a new owner; it never finds the old value.

    :param place: the key, and its slot.
    :param former: the primary whose slots are another one's by now.
    """
    key, slot = place

    async def is_found() -> bool:
        assert await cache.get("t", key) is None
        known = cluster_view_of(cache).map
        found = known.owner(slot)
        return found is not None and found.id == owner.id and former.id not in known.nodes

    async def is_used() -> bool:
        assert await cache.get("t", key) is None
        return state_of(cache).topology.reaches(f"magnus:t:{key}".encode())

    await wait_until_answered(is_found)
    await wait_until_answered(is_used)
    assert await cache.get("t", key) is None
    await cache.set("t", key, "new")
    assert "new" in str(owner.ask("GET", f"magnus:t:{key}"))


async def test_invariant_7_a_replica_takes_over_from_a_primary_that_still_answers(
    private_cluster_with: StartCluster,
) -> None:
    """The connection to the former primary is up; that is no sign that slots were moved by one who had them all."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0, links=True)
    async with cache_of(cluster, op_timeout=5.0) as cache:
        primary = cluster.primaries[0]
        key, slot, replica = await _delete_unheard(cluster, cache, primary)
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        await _is_met(cache, (key, slot), replica, primary)
        cluster.heal()


async def _moves_on(
    cluster: EmbeddedCluster, cache: AsyncCacheManager, primary: ServerNode, target: ServerNode
) -> tuple[str, int]:
    """Delete a value at a primary that is cut off, put its replica in its place, and move the slots on from there.

    Return the key of the value, and its slot.
    """
    key, slot, replica = await _delete_unheard(cluster, cache, primary)
    replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    await asyncio.to_thread(cluster.wait_for_primary, replica)
    slots = [each for each in cluster.view(replica)[replica.id].slots if group_of(each) == group_of(slot)]
    migration = SlotMigration(slots, replica, target, [replica, target])
    await asyncio.to_thread(migration.complete)
    assert "old" in str(target.ask("GET", f"magnus:t:{key}"))
    return key, slot


async def test_invariant_7_a_group_moves_on_from_a_successor_while_the_former_primary_still_answers(
    private_cluster_with: StartCluster,
) -> None:
    """All that are noted are there, and the new owner has taken no one's place."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0, links=True)
    async with cache_of(cluster, op_timeout=5.0) as cache:
        primary, other, target = cluster.primaries
        place = await _moves_on(cluster, cache, primary, target)
        for node in (other, target):
            await wait_until_async(lambda node=node: not cluster.view(node)[primary.id].slots)  # type: ignore[misc]
        await _is_met(cache, place, target, primary)
        cluster.heal()


async def test_invariant_7_a_group_moves_on_from_a_successor_before_this_process_has_heard_of_it(
    private_cluster_with: StartCluster,
) -> None:
    """By the map of this process, the former primary owns the rest of its slots, and may have passed one on."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0, links=True)
    # Within this bound, no node is asked for the map unless something calls for it.
    async with cache_of(cluster, op_timeout=5.0, max_staleness=60.0) as cache:
        primary, _, target = cluster.primaries
        key, slot = await _moves_on(cluster, cache, primary, target)
        view = cluster_view_of(cache)
        view.moved(slot, view.map.nodes[target.id], state_of(cache).clock())
        assert primary.id in view.map.nodes
        assert await cache.get("t", key) is None
        await cache.set("t", key, "new")
        assert await cache.get("t", key) == "new"
        assert "new" in str(target.ask("GET", f"magnus:t:{key}"))
        cluster.heal()


async def test_invariant_7_a_group_is_suspect_until_its_servers_are_vetted_by_one_map(
    private_cluster_with: StartCluster,
) -> None:
    """A new map comes with the first connection to a replica, while the servers of the group are vetted."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0, links=True)
    async with cache_of(cluster, op_timeout=5.0, max_staleness=60.0) as cache:
        primary, other, target = cluster.primaries
        replica = cluster.replicas_of(primary)[0]
        key, slot = await _moves_on(cluster, cache, primary, target)
        view = cluster_view_of(cache)
        # A third node tells of the replica, and has not heard yet that all of the group has moved on from it.
        kept = {slot, key_slot(anchor_tag(group_of(slot)))}
        late = next(each for each in range(SLOTS) if group_of(each) == group_of(slot) and each not in kept)
        owners = dict.fromkeys(cluster.view(replica)[target.id].slots, view.map.nodes[target.id])
        successor = ClusterNode(replica.id, replica.host, replica.port)
        owners |= dict.fromkeys({*cluster.view(replica)[replica.id].slots, late}, successor)
        owners |= dict.fromkeys(cluster.view(replica)[other.id].slots, view.map.nodes[other.id])
        told = SlotMap((each, each, owner) for each, owner in owners.items())
        view.adopt(told, other.id, state_of(cache).clock())
        assert await cache.get("t", key) is None
        # That is what the replica told when the process connected with it.
        assert cluster_view_of(cache).map.owner(late) == view.map.nodes[target.id]
        await cache.set("t", key, "new")
        assert "new" in str(target.ask("GET", f"magnus:t:{key}"))
        cluster.heal()


async def test_invariant_1_a_former_primary_that_is_still_listed_is_not_believed(
    private_cluster_with: StartCluster,
) -> None:
    """Until it is missed, the others list it beside its successor, as a primary that is well."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0, links=True)
    async with cache_of(cluster) as cache:
        primary, other, *_ = cluster.primaries
        replica = cluster.replicas_of(primary)[0]
        key, slot = key_on(cluster, primary)
        await cache.set("t", key, "old")
        await asyncio.to_thread(cluster.partition, primary)
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")

        async def is_taken() -> bool:
            return slot in cluster.view(other)[replica.id].slots

        await wait_until_answered(is_taken)
        assert cluster.view(other)[primary.id].primary

        async def is_found() -> bool:
            await cache.get("t", key)
            found = cluster_view_of(cache).map.owner(slot)
            return found is not None and found.id == replica.id

        await wait_until_answered(is_found)
        cluster.heal()


async def test_a_former_primary_is_heard_although_its_heartbeat_was_under_way(
    private_cluster_with: StartCluster,
) -> None:
    """It answers that it has become a replica, which ends a connection only while others name it as a primary."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0)
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    async with cache_of(cluster, max_staleness=60.0) as cache:
        key, _ = key_on(cluster, primary)
        await cache.set("t", key, "value")
        wire = state_of(cache).topology.wire(f"magnus:t:{key}".encode())
        await asyncio.to_thread(cluster.promote, replica)
        pulse = beat_with_role(wire)
        view, now = cluster_view_of(cache), state_of(cache).clock()
        successor = ClusterNode(replica.id, replica.host, replica.port)
        ranges = [(first, last, successor if node.id == primary.id else node) for first, last, node in view.map.ranges]
        view.adopt(SlotMap(ranges), cluster.primaries[1].id, now)
        await wait_until_async(pulse.done)
        assert wire.up
        assert error_of(wire) is None


async def test_values_stay_valid_in_a_planned_failover(private_cluster_with: StartCluster) -> None:
    """The former primary tells that the replica had all its writes."""
    cluster = private_cluster_with(3, 3, node_timeout=30.0)
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    keys = [cluster.key_on(primary, number, prefix="magnus:t:").removeprefix("magnus:t:") for number in range(40)]
    async with cache_of(cluster, op_timeout=5.0) as one, cache_of(cluster, op_timeout=5.0) as other:
        await one.set_many("t", dict.fromkeys(keys, "kept"))
        await one.delete("t", keys[0])
        assert await other.get_many("t", keys) == dict.fromkeys(keys[1:], "kept")
        await asyncio.to_thread(cluster.promote, replica)

        async def is_found() -> bool:
            await one.get("t", keys[1])
            return primary.id not in cluster_view_of(one).map.nodes

        await wait_until_answered(is_found)
        for cache in (one, other):
            assert await cache.get_many("t", keys) == dict.fromkeys(keys[1:], "kept")
        assert await other.set("t", keys[0], "new")
        assert "new" in str(replica.ask("GET", f"magnus:t:{keys[0]}"))
        async with cache_of(cluster) as fresh:
            assert await fresh.get_many("t", keys[1:]) == dict.fromkeys(keys[1:], "kept")
