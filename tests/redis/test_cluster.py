"""A cache on a Redis Cluster: the same operations and promises as on one server."""

import asyncio
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.coherence.group_epochs import logical_name
from magnus_cache._engine.coherence.node_trust import SPAN
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.slots import GROUPS, MapChanges, anchor_tag, group_of, key_slot
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, ServerNode, isolated
from tests.support.groups import cache_of, key_on, url_of
from tests.support.inside import (
    cluster_view_of,
    heartbeat_is_due,
    map_is_asked_for_again,
    push,
    put_off_attempts,
    state_of,
    waits_for_a_lease,
    wires_of,
)
from tests.support.loaders import Slow
from tests.support.wait import nothing_happens_for_async, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

KEYS = [f"k{number}" for number in range(200)]


async def test_values_are_stored_on_all_nodes(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for number, key in enumerate(KEYS):
            assert await one.set("t", key, number)
        assert [await other.get("t", key) for key in KEYS] == list(range(len(KEYS)))
        assert await asyncio.gather(*(other.get("t", key) for key in KEYS)) == list(range(len(KEYS)))
        stored = [node for node in cluster.primaries if int(node.ask("DBSIZE")) > len(KEYS) // 6]
        assert len(stored) == 3
        assert await other.contains("t", KEYS[0])
        assert await other.touch("t", KEYS[0], 60)
        left = await other.ttl("t", KEYS[0])
        assert left is not None
        assert 55 < left <= 60
        assert await other.delete("t", KEYS[0])
        assert not await other.delete("t", KEYS[0])
        assert await one.get("t", KEYS[0]) is None


async def test_a_test_leaves_nothing_behind_on_any_node(cluster: EmbeddedCluster) -> None:
    async with isolated(redis_url=url_of(cluster)) as cache:
        await cache.set_many("t", dict.fromkeys(KEYS, 1))
        assert all(int(node.ask("DBSIZE")) > 0 for node in cluster.primaries)
    assert [int(node.ask("DBSIZE")) for node in cluster.primaries] == [0, 0, 0]


async def test_many_values_at_once(cluster: EmbeddedCluster) -> None:
    values: dict[Any, Any] = {key: number for number, key in enumerate(KEYS)}
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set_many("t", values)
        assert await other.get_many("t", [*KEYS, "missing"]) == values
        assert await other.delete_many("t", KEYS[:50]) == 50
        assert await one.get_many("t", KEYS) == {key: values[key] for key in KEYS[50:]}
        loaded: list[Any] = []

        async def load(keys: Any) -> dict[Any, Any]:
            loaded.extend(keys)
            return {key: values[key] for key in keys}

        assert await other.get_or_set_many("t", KEYS, load) == values
        assert sorted(loaded) == sorted(KEYS[:50])


@pytest.mark.tracking("keys", "prefix")
async def test_a_clear_reaches_every_group(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for key in KEYS:
            await one.set("t", key, 1)
            await one.set("u", key, 2)
        assert len({group_of(key_slot(f"magnus:t:{key}".encode())) for key in KEYS}) > GROUPS * 0.9
        assert await other.clear("t") == len(KEYS)
        assert [await one.get("t", key) for key in KEYS] == [None] * len(KEYS)
        assert await other.get_many("u", KEYS) == dict.fromkeys(KEYS, 2)
        assert await one.clear("magnus:u:k1*") == len([key for key in KEYS if key.startswith("k1")])
        assert await one.clear("magnus:*") == len([key for key in KEYS if not key.startswith("k1")])
        assert await other.get_many("u", KEYS) == {}


@pytest.mark.tracking("keys", "prefix")
async def test_tags_reach_every_group(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for number, key in enumerate(KEYS):
            await one.set("t", key, number, tags=["odd" if number % 2 else "even"])
        await other.invalidate_tags("odd")
        assert await other.get_many("t", KEYS) == {key: number for number, key in enumerate(KEYS) if number % 2 == 0}
        # By the one that knows: a value from a process that has not heard of the invalidation yet counts as invalid.
        await other.set("t", KEYS[1], "new", tags=["odd"])
        assert await one.get("t", KEYS[1]) == "new"


@pytest.mark.tracking("keys", "prefix")
async def test_a_change_elsewhere_is_announced(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for key in KEYS[:30]:
            await one.set("t", key, "old")
            assert await other.get("t", key) == "old"

        async def from_memory() -> bool:
            before = state_of(other).stats.l2_latency.count
            assert [await other.get("t", key) for key in KEYS[:30]] == ["old"] * 30
            return state_of(other).stats.l2_latency.count == before

        # Not always the first time: the epochs of a group that is split count for a part of a second only.
        await wait_until_answered(from_memory)
        for key in KEYS[:30]:
            await one.set("t", key, "new")

        async def all_new() -> bool:
            return [await other.get("t", key) for key in KEYS[:30]] == ["new"] * 30

        await wait_until_answered(all_new)


@pytest.mark.tracking("keys", "prefix")
async def test_invariant_3_one_load_for_the_fleet(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        loads: list[str] = []

        def loader(key: str) -> Callable[[], Any]:
            async def load() -> str:
                loads.append(key)
                await asyncio.sleep(0.05)
                return f"value of {key}"

            return load

        calls = [cache.get_or_set("t", key, loader(key)) for key in KEYS[:20] for cache in (one, other, one)]
        values = await asyncio.gather(*calls)
        assert values == [f"value of {key}" for key in KEYS[:20] for _ in range(3)]
        assert sorted(loads) == sorted(KEYS[:20])


@pytest.mark.tracking("keys", "prefix")
async def test_invariant_2_an_overtaken_load_is_not_stored(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for key in KEYS[:5]:
            began, finish = asyncio.Event(), asyncio.Event()

            async def load(began: asyncio.Event = began, finish: asyncio.Event = finish) -> str:
                began.set()
                await finish.wait()
                return "old"

            call = asyncio.create_task(one.get_or_set("t", key, load))
            await began.wait()
            await other.delete("t", key)
            finish.set()
            assert await call == "old"
            assert await one.get("t", key) is None
            assert await other.get("t", key) is None


async def test_one_connection_for_each_loop_and_primary(cluster: EmbeddedCluster) -> None:
    replica = cluster.replicas[0].address
    async with AsyncCacheManager(redis_url=f"redis+cluster://{replica}") as cache:
        await asyncio.gather(*(cache.get("t", f"x{number}") for number in range(1000)))
        # Nothing is left of the connection to the replica, which has told who the primaries are.
        await wait_until_async(lambda: len(wires_of(cache)) == 3)
        assert all(wire.up for wire in wires_of(cache))
        assert sorted(node.id for node in cluster.primaries) == sorted(cluster_view_of(cache).map.nodes)


def test_blocking_callers(cluster: EmbeddedCluster) -> None:
    with CacheManager(redis_url=url_of(cluster)) as cache:
        for number, key in enumerate(KEYS[:40]):
            assert cache.set("t", key, number)
        assert cache.get_many("t", KEYS[:40]) == {key: number for number, key in enumerate(KEYS[:40])}
        calls: list[int] = []

        @cache.cached("t", key="f{number}")
        def function(number: int) -> int:
            calls.append(number)
            return number

        assert [function(number) for number in (1, 2, 1)] == [1, 2, 1]
        assert calls == [1, 2]
        assert cache.clear("t") == 42
        assert cache.get("t", KEYS[0]) is None
        health = cache.ping()
        assert (health.ok, health.mode) == (True, "cluster")


async def test_all_connections_of_a_cluster_count(cluster: EmbeddedCluster) -> None:
    """A record of the outbox begins its replay on one of them, and the end of the cache tells all nodes."""
    async with cache_of(cluster) as cache:
        topology = state_of(cache).topology
        assert not topology.reachable
        await cache.get_many("t", KEYS)
        assert topology.reachable
        assert topology.used
        addresses = {node.address for node in cluster.primaries}
        for found in (topology.connections(), topology.established(), topology.running()):
            assert {topology.node_led_to(wire) for wire in found} - {None} == addresses


async def test_a_replica_is_asked_for_no_sign_of_life(cluster: EmbeddedCluster) -> None:
    """Its answer would be held back, as no node confirms it, and the connection would end with a warning."""
    replica = cluster.replicas[0]
    async with AsyncCacheManager(redis_url=f"redis+cluster://{replica.address}") as cache:
        await cache.get("t", "k")
        wires = {state_of(cache).topology.node_led_to(wire): wire for wire in wires_of(cache) if wire.up}
        assert heartbeat_is_due(wires[cluster.owner("magnus:t:k").address], 1)
        assert not heartbeat_is_due(wires[None], 1)


async def test_the_first_node_is_down(cluster: EmbeddedCluster) -> None:
    """Any of the nodes that the settings name leads to the others, a replica as well."""
    down = "127.0.0.1:1"
    for node in (cluster.primaries[1], cluster.replicas[0]):
        url = f"redis+cluster://{down},{node.address}"
        async with AsyncCacheManager(redis_url=url) as cache:
            for key in KEYS[:20]:
                assert await cache.set("t", key, key)
            names = [f"magnus:t:{key}" for key in KEYS[:20]]
            assert [cluster.owner(name).ask("EXISTS", name) for name in names] == [1] * 20
            assert await cache.get_many("t", KEYS[:20]) == {key: key for key in KEYS[:20]}
            assert len(cluster_view_of(cache).map.nodes) == 3


async def test_a_replica_that_the_settings_name_sends_elsewhere_at_once(cluster: EmbeddedCluster) -> None:
    """Its answers are not held back until others confirm it, which none ever does."""
    async with AsyncCacheManager(redis_url=f"redis+cluster://{cluster.replicas[0].address}") as cache:
        assert await asyncio.gather(*(cache.get("t", key, "none") for key in KEYS)) == ["none"] * len(KEYS)
        assert (await cache.get_stats())["errors"] == {}
        assert all(wire.up for wire in state_of(cache).topology.connections())


# -- what is not what the settings say --------------------------------------------------------------------------------


async def test_a_clusters_url_for_a_single_server(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncCacheManager(redis_url=f"redis+cluster://127.0.0.1:{server.port}") as cache:
        assert await cache.get("t", "k", "default") == "default"
        health = await cache.ping()
    assert health.reason is not None
    assert health.reason.startswith("topology: ")
    assert "use a redis:// URL, or unset REDIS_CLUSTER" in health.reason
    assert [line for line in caplog.messages if "unset REDIS_CLUSTER" in line]


async def test_a_single_servers_url_for_a_cluster(cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncCacheManager(redis_url=f"redis://{cluster.nodes[0].address}") as cache:
        assert await cache.get_or_set("t", "k", lambda: "loaded") == "loaded"
        health = await cache.ping()
    assert health.reason is not None
    assert "set REDIS_CLUSTER=true, or use a redis+cluster:// URL" in health.reason
    assert [line for line in caplog.messages if "REDIS_CLUSTER=true" in line]


# -- migrations -------------------------------------------------------------------------------------------------------


@pytest.mark.tracking("keys", "prefix")
async def test_slots_that_have_moved_are_found(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for number, key in enumerate(KEYS):
            await one.set("t", key, number)
            assert await other.get("t", key) == number
        slots_of = {key_slot(f"magnus:t:{key}".encode()) for key in KEYS}
        source = max(cluster.primaries, key=lambda node: len(slots_of & set(cluster.slots_of(node))))
        slots = sorted(slots_of & set(cluster.slots_of(source)))
        target = next(node for node in cluster.primaries if node is not source)
        await asyncio.to_thread(cluster.migrate, slots, target)
        moved = [key for key in KEYS if key_slot(f"magnus:t:{key}".encode()) in slots]
        assert len(moved) > 30
        for key in moved:
            await one.set("t", key, "new")
            assert await one.get("t", key) == "new"
        await wait_until_async(lambda: all(cluster_view_of(other).map.owner(slot) is not None for slot in slots))
        for key in moved:
            assert await other.delete("t", key)
            assert await other.get("t", key) is None


async def test_what_is_in_other_slots_stays_in_memory_when_a_slot_moves(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    keys = [cluster.key_on(source, number, prefix="magnus:t:").removeprefix("magnus:t:") for number in range(40)]
    slots = [key_slot(f"magnus:t:{key}".encode()) for key in keys]
    async with cache_of(cluster) as one, cache_of(cluster, max_staleness=600) as other:
        for key in keys:
            await one.set("t", key, "old")
            assert await other.get("t", key) == "old"
        await asyncio.to_thread(cluster.migrate, slots[:1], target)
        await one.set("t", keys[0], "new")
        assert await other.delete("t", keys[0])  # the node that had it tells where it is
        view = cluster_view_of(other)
        assert view.map.nodes[target.id] == view.map.owner(slots[0])
        asked = state_of(other).stats.l2_latency.count
        far = [key for key, slot in zip(keys, slots, strict=True) if slot // SPAN != slots[0] // SPAN]
        assert len(far) > 30
        assert [await other.get("t", key) for key in far] == ["old"] * len(far)
        assert state_of(other).stats.l2_latency.count == asked  # all of them from memory


async def test_a_slot_that_is_half_moved(cluster: EmbeddedCluster) -> None:
    """Keys that are still at the source, keys that are at the target, and keys that do not exist."""
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        source, target = cluster.primaries[:2]
        key, slot = key_on(cluster, source)
        await one.set("t", key, "old")
        assert await other.get("t", key) == "old"
        migration = cluster.migration([slot], target)
        await asyncio.to_thread(migration.begin)
        assert await one.get("t", key) == "old"
        await one.set("t", key, "at the source")
        await asyncio.to_thread(migration.move_keys)
        assert await asyncio.wait_for(other.get("t", key), 1) == "at the source"
        assert await one.set("t", key, "at the target")
        assert await one.get("t", key) == "at the target"
        assert await other.delete("t", key)
        assert await one.get("t", key) is None
        assert await one.get_or_set("t", key, lambda: "loaded") == "loaded"
        await asyncio.to_thread(migration.complete)
        assert await one.set("t", key, "moved")
        assert await other.get("t", key) == "moved"


async def test_atomic_writes_while_a_slot_is_half_moved(cluster: EmbeddedCluster) -> None:
    """The value is at the source, at the target, or nowhere; its lease does not exist."""
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        source, target = cluster.primaries[:2]
        key, slot = key_on(cluster, source)
        assert await one.incr("t", key) == 1
        assert await other.get("t", key) == 1
        migration = cluster.migration([slot], target)
        await asyncio.to_thread(migration.begin)
        assert await one.incr("t", key) == 2
        assert await other.update("t", key, lambda number: number + 1) == 3
        await asyncio.to_thread(migration.move_keys)
        assert await one.incr("t", key) == 4
        assert await other.update("t", key, lambda number: number + 1) == 5
        assert not await one.add("t", key, 0)
        assert await other.delete("t", key)
        assert await one.add("t", key, 6)
        assert await other.incr("t", key) == 7
        await asyncio.to_thread(migration.complete)
        assert await one.incr("t", key) == 8
        assert await other.update("t", key, lambda number: number + 1) == 9


@pytest.mark.parametrize("how", ["incr", "update", "add"])
async def test_invariant_2_a_load_that_an_atomic_write_overtakes(cluster: EmbeddedCluster, how: str) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        slow = Slow()
        load = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        if how == "incr":
            await other.incr("t", "k", 9)
        elif how == "update":
            await other.update("t", "k", lambda _: 9, default=0)
        else:
            await other.add("t", "k", 9)
        slow.finish()
        assert await load == 1
        assert await one.get("t", "k") == 9
        assert await other.get("t", "k") == 9


async def test_a_bump_while_an_anchors_slot_is_half_moved(cluster: EmbeddedCluster) -> None:
    """Some of a group's epochs are at the source, others at the target, and some do not exist."""
    source, target = cluster.primaries[:2]
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        tag = next(
            anchor_tag(group).decode() for group in range(GROUPS)
            if cluster.owner(f"{{{anchor_tag(group).decode()}}}") is source
        )  # fmt: skip
        slot = key_slot(tag.encode())
        keys = [f"k{number}" for number in range(3000)]
        key = next(key for key in keys if group_of(key_slot(f"magnus:t:{key}".encode())) == group_of(slot))
        await one.set("t", key, "old", tags=["x"])
        assert await other.get("t", key) == "old"
        names = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        assert len(names) >= 5  # the guard, the servers, and the epochs of all, of the namespace and of the tag
        for moved in range(1, len(names)):
            migration = cluster.migration([slot], target)
            await asyncio.to_thread(migration.begin)
            await asyncio.to_thread(migration.move_keys, moved)
            for invalidate in (one.clear("t"), one.invalidate_tags("x")):
                await one.set("t", key, "old", tags=["x"])
                await other.get("t", key)
                await invalidate
                assert await one.get("t", key) is None

                async def is_gone() -> bool:
                    return await other.get("t", key) is None

                await wait_until_answered(is_gone)
            assert not state_of(one).outbox.pending
            await asyncio.to_thread(migration.complete)
            source, target = target, source
        assert (await one.get_stats())["errors"] == {}


async def _move(cluster: EmbeddedCluster, slot: int, target: ServerNode, how: str) -> None:
    if how == "atomic" and not cluster.version.migrates_atomically:
        pytest.skip("this server has no atomic migrations")
    await asyncio.to_thread(partial(cluster.migrate, [slot], target, atomic=how == "atomic"))


@pytest.mark.parametrize("how", ["classic", "atomic"])
async def test_invariant_3_a_load_that_waits_for_a_lease_whose_slot_moves(cluster: EmbeddedCluster, how: str) -> None:
    """It is announced neither at the old node nor at the new one, and nothing polls."""
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    slow = Slow()
    async with cache_of(cluster, lease=60) as one, cache_of(cluster, lease=60, wait_timeout=60) as other:
        call = asyncio.create_task(one.get_or_set("t", key, slow))
        await slow.begun()
        waiting = asyncio.create_task(other.get_or_set("t", key, slow))
        await wait_until_async(lambda: waits_for_a_lease(other))
        await _move(cluster, slot, target, how)
        slow.finish()
        assert await call == 1
        assert await asyncio.wait_for(waiting, 10) == 1
        assert slow.calls == 1
        assert cluster.owner(slot) is target
        assert target.ask("EXISTS", f"magnus:t:{key}") == 1


async def test_a_load_that_waits_for_a_lease_which_is_lost_with_its_slot(cluster: EmbeddedCluster) -> None:
    """Redis 7 deletes the lease and says nothing; a process in use finds that the slot has moved."""
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    slow = Slow()
    async with cache_of(cluster, lease=60) as one, cache_of(cluster, lease=60, wait_timeout=60) as other:
        call = asyncio.create_task(one.get_or_set("t", key, slow))
        await slow.begun()
        waiting = asyncio.create_task(other.get_or_set("t", key, lambda: "loaded here"))
        await wait_until_async(lambda: waits_for_a_lease(other))
        await asyncio.to_thread(cluster.give_away, [slot], target)

        async def is_loaded() -> bool:
            await other.get("t", "another")
            return waiting.done()

        await wait_until_answered(is_loaded)
        assert await waiting == "loaded here"
        slow.finish()
        assert await call == 1
        assert await one.get("t", key) == await other.get("t", key) == "loaded here"


@pytest.mark.parametrize("how", ["classic", "atomic"])
async def test_invariant_1_a_load_whose_lease_moves_takes_no_further_callers(
    cluster: EmbeddedCluster, how: str
) -> None:
    """The old node announces no delete of the lease any more."""
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    slow = Slow()
    async with cache_of(cluster, lease=60) as one, cache_of(cluster) as other:
        overtaken = asyncio.create_task(one.get_or_set("t", key, slow))
        await slow.begun()
        await _move(cluster, slot, target, how)
        assert await one.get("t", key) is None  # it learns where the slot is
        assert not await other.delete("t", key)
        assert await asyncio.wait_for(one.get_or_set("t", key, lambda: "new"), 10) == "new"
        slow.finish()
        assert await overtaken == 1
        assert await one.get("t", key) == await other.get("t", key) == "new"


@pytest.mark.parametrize("how", ["classic", "atomic", "give_away"])
async def test_invariant_1_a_remembered_error_whose_slot_moves(cluster: EmbeddedCluster, how: str) -> None:
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    namespace = Namespace("t", negative={LookupError: 600})

    def missing() -> str:
        raise LookupError("not there")

    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for cache in (one, other):
            with pytest.raises(LookupError, match="not there"):
                await cache.get_or_set(namespace, key, missing)
        if how == "give_away":
            await asyncio.to_thread(cluster.give_away, [slot], target)
        else:
            await _move(cluster, slot, target, how)
        await one.set(namespace, key, "there")

        async def is_there() -> bool:
            await other.get("t", "another")  # it is a busy process
            try:
                return await other.get_or_set(namespace, key, missing) == "there"
            except LookupError:
                return False

        began = monotonic()
        await wait_until_answered(is_there)
        assert monotonic() - began < 2


async def test_a_load_in_a_slot_that_stays_half_moved(cluster: EmbeddedCluster) -> None:
    """Neither node serves a value and its lease together: the load is not stored, and does not wait for that."""
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        migration = cluster.migration([slot], target)
        await asyncio.to_thread(migration.begin)
        began = monotonic()
        assert await asyncio.gather(
            one.get_or_set("t", key, lambda: "loaded"), other.get_or_set("t", key, lambda: "loaded")
        ) == ["loaded", "loaded"]  # fmt: skip
        assert monotonic() - began < 5
        names = [f"magnus:t:{key}", f"{{magnus:t:{key}}}:lease"]
        assert [source.ask("CLUSTER", "COUNTKEYSINSLOT", slot), target.ask("CLUSTER", "COUNTKEYSINSLOT", slot)] == [
            0,
            0,
        ]
        await asyncio.to_thread(migration.complete)

        async def is_stored() -> bool:
            assert await one.get_or_set("t", key, lambda: "loaded") == "loaded"
            return [target.ask("EXISTS", name) for name in names] == [1, 0]

        await wait_until_answered(is_stored)


# -- lost writes ------------------------------------------------------------------------------------------------------


async def _has_it(replica: ServerNode, key: str) -> None:
    """Return once a replica has a value, and knows that it has the slot, which may just have moved there."""
    await wait_until_async(lambda: "old" in str(replica.try_all([("READONLY",), ("GET", f"magnus:t:{key}")])[1]))


async def _does_not_revive(cluster: EmbeddedCluster, cache: AsyncCacheManager, key: str) -> None:
    """Check that an old value is not found, neither before the cache reaches its node nor afterwards; store another.

    What the cache stores and reads meanwhile may be in its own memory alone. So the node is asked.
    """
    name = f"magnus:t:{key}"
    node, group, moment = cluster.owner(name), group_of(key_slot(name.encode())), str(monotonic())
    # Of another group, whose epochs say nothing about this one.
    names = (cluster.key_on(node, number, prefix="magnus:t:") for number in range(1_000))
    probe = next(each for each in names if group_of(key_slot(each.encode())) != group)

    async def is_stored(stored: str) -> bool:
        assert await cache.get("t", key) != "old"
        await cache.set("t", stored.removeprefix("magnus:t:"), moment)
        return moment in str(node.ask("GET", stored))

    await wait_until_answered(lambda: is_stored(probe))
    await wait_until_answered(lambda: is_stored(name))
    await wait_until_answered(lambda: has(cache, key, moment))


async def has(cache: AsyncCacheManager, key: str, value: object) -> bool:
    return bool(await cache.get("t", key) == value)


@pytest.mark.parametrize("change", ["set", "delete", "clear", "tag"])
async def test_invariant_7_what_a_replica_lacks_does_not_come_back(cluster: EmbeddedCluster, change: str) -> None:
    """A change was acknowledged by a primary that is gone, and its replica has never heard of it."""
    primary = next(node for node in cluster.primaries if cluster.replicas_of(node))
    replica = cluster.replicas_of(primary)[0]
    key, _ = key_on(cluster, primary)
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set("t", key, "old", tags=["tag"])
        assert await other.get("t", key) == "old"
        await asyncio.to_thread(cluster.settle)
        await _has_it(replica, key)
        await asyncio.to_thread(cluster.pause, replica)
        # Or the kernel would keep for it what the primary sends.
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        if change == "set":
            await one.set("t", key, "new", tags=["tag"])
        elif change == "delete":
            await one.delete("t", key)
        elif change == "clear":
            await one.clear("t")
        else:
            await one.invalidate_tags("tag")
        await asyncio.to_thread(cluster.kill, primary)
        await asyncio.to_thread(cluster.resume, replica)
        await asyncio.to_thread(cluster.promote, replica, "takeover")
        assert "old" in replica.ask("GET", f"magnus:t:{key}")
        async with cache_of(cluster) as fresh:
            for cache in (fresh, one, other):
                await _does_not_revive(cluster, cache, key)


async def _lose_a_delete(cluster: EmbeddedCluster, one: AsyncCacheManager, key: str) -> ServerNode:
    """Delete a value at a primary that dies before its replica has heard of it; return the replica, which has it."""
    primary = cluster.owner(f"magnus:t:{key}")
    replica = cluster.replicas_of(primary)[0]
    await asyncio.to_thread(cluster.settle)
    await _has_it(replica, key)
    await asyncio.to_thread(cluster.pause, replica)
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    assert await one.delete("t", key)
    await asyncio.to_thread(cluster.kill, primary)
    await asyncio.to_thread(cluster.resume, replica)
    await asyncio.to_thread(cluster.promote, replica, "takeover")
    assert "old" in replica.ask("GET", f"magnus:t:{key}")
    return replica


async def _gather(cluster: EmbeddedCluster, group: int, target: ServerNode) -> None:
    """Move all slots of a group to one node."""
    for node in cluster.primaries:
        slots = [slot for slot in cluster.slots_of(node) if group_of(slot) == group]
        if node is not target and slots:
            await asyncio.to_thread(cluster.migrate, slots, target)


async def _split_group(cluster: EmbeddedCluster) -> tuple[str, int]:
    """Return a key, and its slot, which is moved away from the other slots of its group, to a node with a replica."""
    target, source = sorted(cluster.primaries, key=lambda node: not cluster.replicas_of(node))[:2]
    anchors = {key_slot(anchor_tag(group)) for group in range(GROUPS)}
    for number in range(100):
        name = cluster.key_on(source, number, prefix="magnus:t:")
        slot = key_slot(name.encode())
        if slot not in anchors:
            await _gather(cluster, group_of(slot), source)
            await asyncio.to_thread(cluster.migrate, [slot], target)
            return name.removeprefix("magnus:t:"), slot
    raise AssertionError("there is no such key")


async def test_invariant_7_the_half_of_a_group_without_its_epochs_may_lack_writes_as_well(
    cluster: EmbeddedCluster,
) -> None:
    key, slot = await _split_group(cluster)
    slots = ((name, key_slot(f"magnus:t:{name}".encode())) for name in map(str, range(10_000, 30_000)))
    neighbour = next(name for name, each in slots if each != slot and group_of(each) == group_of(slot))
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set("t", neighbour, "at the node with the epochs")
        await one.set("t", key, "old")
        assert await other.get("t", key) == "old"
        await _lose_a_delete(cluster, one, key)
        async with cache_of(cluster) as fresh:
            for cache in (fresh, one, other):
                await _does_not_revive(cluster, cache, key)


async def test_invariant_7_a_slot_moves_on_from_a_server_that_lacks_writes_and_that_no_process_met(
    cluster: EmbeddedCluster,
) -> None:
    """The server that it is moved to is known to be without fault, and so are the epochs of the group."""
    key, slot = await _split_group(cluster)
    async with cache_of(cluster) as one:
        await one.set("t", key, "old")
        assert await one.get("t", key) == "old"
        await _lose_a_delete(cluster, one, key)
    await asyncio.to_thread(cluster.migrate, [slot], cluster.owner(f"{{{anchor_tag(group_of(slot)).decode()}}}"))
    async with cache_of(cluster) as fresh:
        await _does_not_revive(cluster, fresh, key)


async def test_invariant_7_a_group_that_is_split_is_not_invalidated(cluster: EmbeddedCluster) -> None:
    """Nor when it is whole again, by a process that has met only one of its servers before."""
    async with cache_of(cluster) as one:
        key, slot = await _split_group(cluster)
        anchor = cluster.owner(f"{{{anchor_tag(group_of(slot)).decode()}}}")
        await one.set("t", key, "kept")
        async with cache_of(cluster) as fresh:
            assert await fresh.get("t", key) == "kept"
        both = {anchor.id, cluster.owner(slot).id}

        async def are_noted() -> bool:
            noted = anchor.ask("GET", f"magnus!server{{{anchor_tag(group_of(slot)).decode()}}}")
            return {each.partition("=")[0] for each in noted.split(" ")} == both

        # No call waits for the note.
        await wait_until_answered(are_noted)
        await asyncio.to_thread(cluster.migrate, [slot], anchor)
        async with cache_of(cluster) as fresh:
            assert await fresh.get("t", key) == "kept"


async def test_invariant_7_a_group_that_was_moved_is_not_invalidated(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    group = group_of(slot)
    slots = [slot for slot in cluster.slots_of(source) if group_of(slot) == group]
    async with cache_of(cluster) as one:
        await one.set("t", key, "kept")
        await asyncio.to_thread(cluster.migrate, slots, target)
        async with cache_of(cluster) as fresh:
            assert await fresh.get("t", key) == "kept"
            await one.clear("t")
            assert await fresh.get("t", key) is None


async def test_a_process_that_asks_a_dead_node_alone_finds_its_successor(cluster: EmbeddedCluster) -> None:
    primary = next(node for node in cluster.primaries if cluster.replicas_of(node))
    replica = cluster.replicas_of(primary)[0]
    key, slot = key_on(cluster, primary)
    name = f"magnus:t:{key}".encode()
    # No heartbeat asks the others about the map.
    async with cache_of(cluster, max_staleness=600) as cache:
        assert await cache.set("t", key, "value")
        await asyncio.to_thread(cluster.settle)
        await asyncio.to_thread(cluster.kill, primary)

        async def is_away() -> bool:
            await cache.get("t", key)
            return not state_of(cache).topology.wire(name).up

        await wait_until_answered(is_away)
        # All that the loss has caused is over by then, and no further attempt asks the others about the map.
        await nothing_happens_for_async(0.3)
        put_off_attempts(cache, 600, name)
        await asyncio.to_thread(cluster.promote, replica, "takeover")

        async def is_found() -> bool:
            map_is_asked_for_again(cache, name)
            await cache.get("t", key)
            owner = cluster_view_of(cache).map.owner(slot)
            return owner is not None and owner.id == replica.id

        await wait_until_answered(is_found)


async def test_invariant_7_what_was_invalidated_does_not_revive_when_its_slots_move(cluster: EmbeddedCluster) -> None:
    """Epochs belong to slots: at the new owner, the values are as invalid as they were."""
    primary = next(node for node in cluster.primaries if cluster.replicas_of(node))
    target = next(node for node in cluster.primaries if node is not primary)
    key, slot = key_on(cluster, primary)
    await _gather(cluster, group_of(slot), primary)
    async with cache_of(cluster) as one:
        await one.get("t", "another")  # it knows which node has which key
        await one.set_many("t", dict.fromkeys(KEYS, 1))  # no group is new to the other nodes
        await one.set("t", key, "old")
        replica = await _lose_a_delete(cluster, one, key)
    # This group's epoch alone is raised: the new primary lacks a write.
    async with cache_of(cluster) as met:

        async def is_invalidated() -> bool:
            assert await met.get("t", key) is None
            return bool(state_of(met).topology.wire(f"magnus:t:{key}".encode()).known.current)

        await wait_until_answered(is_invalidated)
    slots = [each for each in cluster.slots_of(replica) if group_of(each) == group_of(slot)]
    assert "old" in replica.ask("GET", f"magnus:t:{key}")
    await asyncio.to_thread(cluster.migrate, slots, target)
    assert "old" in target.ask("GET", f"magnus:t:{key}")
    async with cache_of(cluster) as fresh:
        await fresh.get("t", "another")  # it knows which node has the key
        assert await fresh.get("t", key) is None
        await fresh.set("t", key, "new")
        assert await fresh.get("t", key) == "new"


async def test_invariant_1_what_was_cleared_does_not_come_back_with_a_migration(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    name = f"magnus:t:{key}"
    slots = [each for each in cluster.slots_of(source) if group_of(each) == group_of(slot)]
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set("t", key, "old", tags=["x"])
        assert await other.get("t", key) == "old"
        source.ask("COPY", name, f"{{{name}}}:kept")
        for invalidate in (one.clear("t"), one.invalidate_tags("x")):
            await invalidate
            # As if it had not been removed.
            source.ask("COPY", f"{{{name}}}:kept", name, "REPLACE")
            await asyncio.to_thread(cluster.migrate, slots, target)
            assert "old" in target.ask("GET", name)
            async with cache_of(cluster) as fresh:
                for cache in (fresh, one, other):
                    assert await cache.get("t", key) is None
            source, target = target, source


async def test_invariant_1_an_answer_that_left_before_its_slot_moved_is_not_kept(cluster: EmbeddedCluster) -> None:
    """The node that gave it announces no later change."""
    key, slot = key_on(cluster, cluster.primaries[0])
    name = f"magnus:t:{key}".encode()
    async with cache_of(cluster) as cache:
        await cache.set("t", key, "value")
        state = state_of(cache)
        view, names, wire = cluster_view_of(cache), state.epochs.names_for("t", name), state.topology.wire(name)
        trust_of = state.topology.trust_by_key
        assert trust_of is not None
        now = state.clock()
        assert trust_of(name, names, wire, now).deadline > now
        target = view.map.nodes[cluster.primaries[1].id]
        # Of another slot, nothing is doubted; of this one, all that was asked for before.
        view.moved((slot + 9000) % 16384, target, now + 1)
        assert trust_of(name, names, wire, now + 2).deadline > now
        view.moved(slot, target, now + 3)
        assert [trust_of(name, names, wire, now + sent).deadline > now for sent in (2, 3, 4)] == [False, False, True]
        view.answered_elsewhere(slot, now + 5)
        assert [trust_of(name, names, wire, now + sent).deadline > now for sent in (4, 5, 6)] == [False, False, True]


async def test_invariant_1_an_epoch_that_was_asked_for_before_its_slot_moved_is_asked_for_again(
    cluster: EmbeddedCluster,
) -> None:
    """The node that gives it announces no later change."""
    key, slot = key_on(cluster, cluster.primaries[0])
    name = f"magnus:t:{key}".encode()
    async with cache_of(cluster) as cache:
        await cache.set("t", key, "value")
        state = state_of(cache)
        view, names, wire = cluster_view_of(cache), state.epochs.names_for("t", name), state.topology.wire(name)
        sent = state.clock()
        wire.known.current |= {names.root, names.control}
        view.moved(slot, view.map.nodes[cluster.primaries[1].id], state.clock())
        assert not {names.root, names.control} & wire.known.current
        wire.known.learned(names.control, state.epochs.latest(names.control), sent)
        assert names.control not in wire.known.current
        wire.known.learned(names.control, state.epochs.latest(names.control), state.clock())
        assert names.control in wire.known.current


@pytest.mark.parametrize("call", ["ttl", "touch", "increment", "update"])
async def test_what_has_moved_is_judged_by_its_present_owner(cluster: EmbeddedCluster, call: str) -> None:
    """The former owner is asked once, and knows nothing of the value's epochs any more."""
    key, slot = key_on(cluster, cluster.primaries[0])
    # With the slot of the epochs.
    slots = dict.fromkeys([slot, key_slot(anchor_tag(group_of(slot)))])
    owners = {each: node for node in cluster.primaries for each in slots if each in cluster.slots_of(node)}
    target = next(node for node in cluster.primaries if node not in owners.values())
    async with cache_of(cluster) as one, cache_of(cluster, max_staleness=60.0) as other:
        assert await one.set("t", key, 1)
        assert await other.get("t", "another") is None
        assert await other.ttl("t", key) is not None
        for each in slots:
            await asyncio.to_thread(cluster.migrate, [each], target)
        before = sum(map(_sent_elsewhere, cluster.primaries))
        if call == "ttl":
            assert await other.ttl("t", key) is not None
        elif call == "touch":
            assert await other.touch("t", key, 60)
        elif call == "increment":
            assert await other.incr("t", key) == 2
        else:
            assert await other.update("t", key, lambda value: value + 1) == 2
        assert sum(map(_sent_elsewhere, cluster.primaries)) <= before + 1


def _sent_elsewhere(node: ServerNode) -> int:
    """Return how many requests a node has answered with MOVED."""
    found = re.search(r"errorstat_MOVED:count=(\d+)", str(node.ask("INFO", "errorstats")))
    return 0 if found is None else int(found[1])


async def test_invariant_7_an_epoch_counts_only_if_its_server_is_vetted_by_the_present_map(
    cluster: EmbeddedCluster,
) -> None:
    """Slots may move after the origins of their group were judged, and before the epoch is asked for."""
    key, slot = key_on(cluster, cluster.primaries[0])
    name = f"magnus:t:{key}".encode()
    async with cache_of(cluster) as cache:
        await cache.set("t", key, "value")
        state = state_of(cache)
        root = state.epochs.names_for("t", name).root
        suffix = root[len(logical_name(root)) :]
        # The node that has the epochs of the group, which may not have the key, as other tests move slots.
        wire = state.topology.wire(root)
        assert isinstance(wire, ClusterWire)

        def sent_at(_epoch: int, _connection: object, sent: float) -> Any:
            return sent

        async def counts(between: Callable[[], object]) -> bool:
            asked = [asyncio.get_running_loop().create_future() for _ in range(2)]
            for waiter in asked:
                # The second one is sent at the end of the turn, as the first one is under way.
                state.client.learn(root, 0, sent_at, waiter)
            between()
            sent: float = (await asyncio.gather(*asked))[1]
            return sent >= wire.known.since > -math.inf

        assert await counts(lambda: None)
        # A server that is met meanwhile is vetted before the epoch is asked for.
        while any(isinstance(each, ClusterWire) and each.is_unknown(suffix) for each in state.topology.connections()):
            assert await counts(lambda: None)
        assert not await counts(lambda: wire.slots_moved(MapChanges(((slot, slot),))))
        since = wire.known.since
        await push(wire, [b"invalidate", None])
        assert wire.known.since == since
        assert await cache.get("t", key) == "value"


# -- another node's word ----------------------------------------------------------------------------------------------


async def test_invariant_1_a_node_that_no_other_one_confirms_is_not_believed(
    private_cluster_with: Callable[..., EmbeddedCluster],
) -> None:
    """It goes on to answer; but if it were cut off, the others might have put another one in its place by now."""
    cluster = private_cluster_with(3, 0, node_timeout=30.0)
    primary, *others = cluster.primaries
    key, _ = key_on(cluster, primary)
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set("t", key, "value")
        await other.get_many("t", KEYS)
        for node in others:
            await asyncio.to_thread(cluster.pause, node)
        try:
            view = cluster_view_of(other)
            await wait_until_async(lambda: monotonic() > view.vouched[primary.id] + 1.0)
            assert await other.get("t", key, "nothing") == "nothing"
        finally:
            for node in others:
                await asyncio.to_thread(cluster.resume, node)

        async def is_served() -> bool:
            return await other.get("t", key) == "value"

        await wait_until_answered(is_served)


@pytest.mark.tracking("keys", "prefix")
async def test_invariant_1_a_slot_that_is_given_away_with_its_keys(cluster: EmbeddedCluster) -> None:
    """Redis 7 deletes the keys that it has left without a word to those who have read them."""
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set("t", key, "old", ttl=3600)
        assert await other.get("t", key) == "old"
        await asyncio.to_thread(cluster.give_away, [slot], target)
        await one.set("t", key, "new")
        began = monotonic()

        async def is_new() -> bool:
            await other.get("t", "another")  # it is a busy process
            return await other.get("t", key) == "new"

        await wait_until_answered(is_new)
        assert monotonic() - began < 2
