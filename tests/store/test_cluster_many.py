"""Many keys of a cluster in one call: requests by node, and the same answers as key by key."""

import asyncio
from typing import Any

import pytest

from magnus_cache import Namespace
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.slots import group_of, key_slot
from magnus_cache.testing import EmbeddedCluster
from tests.support.groups import cache_of
from tests.support.inside import cluster_view_of, intake_of, pipeline_of, state_of
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("many", l1=False)
KEYS = [f"k{number}" for number in range(1_000)]


async def test_values_of_one_call_are_read_by_node(cluster: EmbeddedCluster) -> None:
    values: dict[Any, Any] = {key: {"number": number} for number, key in enumerate(KEYS)}
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set_many("many", values)
        for namespace in (FAR, "many"):
            assert await other.get_many(namespace, [*KEYS, "missing"]) == values
        # From memory, and after a change by another process.
        await one.set("many", KEYS[0], "other")
        await wait_until_async(lambda: state_of(other).memory.hit(b"magnus:many:k0") is None)
        values[KEYS[0]] = "other"
        assert await other.get_many("many", KEYS) == values
        assert await other.get_many(FAR, KEYS) == values


async def test_what_a_former_node_of_a_slot_answers_is_not_kept(cluster: EmbeddedCluster) -> None:
    near: Any = "near"
    async with cache_of(cluster, op_timeout=5, max_staleness=20) as cache:
        state, view = state_of(cache), cluster_view_of(cache)
        name = state.keyspace.value_name(near, "k")
        node = cluster.owner(name.decode())
        await cache.set(near, "k", "v")
        raw = await state.client.get(name)
        assert raw is not None
        await cache.get(near, "k")
        state.memory.invalidate(name)
        wire = state.topology.connection(name)
        assert isinstance(wire, ClusterWire)
        await wait_until_async(lambda: not pipeline_of(wire).owed)
        await asyncio.to_thread(cluster.pause, node)
        try:
            read = asyncio.create_task(cache.get_many(near, ["k"]))
            await wait_until_async(lambda: bool(pipeline_of(wire).owed))
            (target,) = [other for other in view.map.nodes.values() if other.id != wire.node_id][:1]
            view.moved(key_slot(name), target, state.clock())
            incoming = intake_of(wire).incoming
            assert incoming is not None
            # The slot's epochs are known on this connection again: only the slot tells that the value is too old.
            names = state.epochs.names_for(near, name)
            for control in (names.root, names.control):
                wire.known.learned(control, state.epochs.latest(control), state.clock())
            assert incoming.take(b"$%d\r\n%b\r\n" % (len(raw), raw))
            assert await read == {"k": "v"}
            assert state.memory.hit(name) is None
        finally:
            await asyncio.to_thread(cluster.resume, node)


async def test_values_of_one_call_are_written_by_node(cluster: EmbeddedCluster) -> None:
    values: dict[Any, Any] = {key: {"number": number} for number, key in enumerate(KEYS)}
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        assert await one.set_many("many", values, tags=["tag"])
        assert await other.get_many("many", KEYS) == values
        # Each is announced to the others, and none to the process that has written it. Where the values of a group are
        # not on the node of its epochs, these have to be asked for now and then.
        await one.set_many("many", dict.fromkeys(KEYS, "new"))
        split = cluster_view_of(one).map.split_groups()
        names = [b"magnus:many:%b" % key.encode() for key in KEYS]
        held = [state_of(one).memory.get_untrusted(name) for name in names if group_of(key_slot(name)) not in split]
        # How many that are depends on which slots earlier tests have moved.
        assert held
        # By prefix, as before Redis 7.0, they are announced to it, too, and kept from the next read on.
        assert None not in held or (await one.ping()).tracking_mode == "prefix"
        await wait_until_async(
            lambda: not any(state_of(other).memory.hit(b"magnus:many:%b" % key.encode()) for key in KEYS)
        )  # fmt: skip
        assert await other.get_many("many", KEYS) == dict.fromkeys(KEYS, "new")
        await other.set_many("many", {KEYS[0]: "tagged"}, tags=["tag"])
        await one.invalidate_tags("tag")

        async def is_gone() -> bool:
            return await other.get("many", KEYS[0]) is None

        await wait_until_answered(is_gone)
        assert await one.delete_many("many", KEYS) == len(KEYS)
        assert await other.get_many("many", KEYS) == {}
        assert await one.delete_many("many", KEYS) == 0


async def test_many_values_void_the_loads_under_way(cluster: EmbeddedCluster) -> None:
    began, finish = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        began.set()
        await finish.wait()
        return "loaded"

    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for change in (lambda: one.set_many("many", dict.fromkeys(KEYS, "set")), lambda: one.delete_many("many", KEYS)):
            began.clear()
            finish.clear()
            await one.delete("many", KEYS[7])
            call = asyncio.create_task(other.get_or_set("many", KEYS[7], load))
            await began.wait()
            await change()
            finish.set()
            assert await call == "loaded"
            assert await one.get(FAR, KEYS[7]) == ("set" if await one.get(FAR, KEYS[8]) else None)


@pytest.mark.parametrize("how", ["moved", "half"])
async def test_many_values_of_which_a_slot_is_at_another_node(cluster: EmbeddedCluster, how: str) -> None:
    async with cache_of(cluster) as cache:
        await cache.set_many("many", dict.fromkeys(KEYS, "old"))
        slot = key_slot(b"magnus:many:k0")
        source = cluster.owner(slot)
        target = next(node for node in cluster.primaries if node is not source)
        if how == "moved":
            await asyncio.to_thread(cluster.migrate, [slot], target)
            # It asks the former node: what it is told counts, one by one.
        else:
            move = cluster.migration([slot], target)
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.move_keys)
        errors = dict(state_of(cache).stats.errors)
        assert await cache.set_many("many", dict.fromkeys(KEYS, "new"))
        assert await cache.get_many(FAR, KEYS) == dict.fromkeys(KEYS, "new")
        assert await cache.delete_many("many", KEYS) == len(KEYS)
        assert await cache.get_many(FAR, KEYS) == {}
        assert dict(state_of(cache).stats.errors) == errors
