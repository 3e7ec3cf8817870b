"""Answers to GETs that were sent together to a node of a cluster: in order with announcements, however they arrive."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache.testing import EmbeddedCluster, ServerNode
from tests.support.groups import cache_of
from tests.support.inside import intake_of, pipeline_of, state_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("far", l1=False)


def text(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def push(name: bytes) -> bytes:
    return b">2\r\n" + text(b"invalidate") + b"*1\r\n" + text(name)


class Silent:
    """A connection of a cache to a node that answers nothing: its answers are what a test makes of them."""

    def __init__(self, cache: AsyncCacheManager, wire: ClusterWire) -> None:
        self.cache, self.wire = cache, wire
        self.pipeline = pipeline_of(wire)

    async def asked(self, count: int) -> None:
        """Wait until so many GETs were sent."""
        await wait_until_async(lambda: sum(getattr(each, "wanted", 0) for each in self.pipeline.owed) >= count)

    def arrives(self, data: bytes, *, cut: bool = False) -> None:
        """Let bytes arrive: together, or one by one."""
        incoming = intake_of(self.wire).incoming
        assert incoming is not None
        for some in [data[at : at + 1] for at in range(len(data))] if cut else [data]:
            assert incoming.take(some)


@asynccontextmanager
async def silent(cluster: EmbeddedCluster, key: str) -> AsyncIterator[Silent]:
    """Yield a cache that knows the epochs of a key, and whose node then falls silent."""
    node: ServerNode | None = None
    try:
        async with cache_of(cluster, op_timeout=5, max_staleness=20) as cache:
            await cache.set("far", key, "v")
            assert await cache.get(FAR, key) == "v"
            name = state_of(cache).keyspace.value_name(FAR, key)
            node = cluster.owner(name.decode())
            wire = state_of(cache).topology.connection(name)
            assert isinstance(wire, ClusterWire)
            await wait_until_async(lambda: not pipeline_of(wire).owed)
            await asyncio.to_thread(cluster.pause, node)
            yield Silent(cache, wire)
    finally:
        if node is not None:
            await asyncio.to_thread(cluster.resume, node)


@pytest.mark.parametrize("cut", [False, True])
async def test_invariant_2_an_epoch_that_came_before_its_announcement_counts_as_changed(
    cluster: EmbeddedCluster, cut: bool
) -> None:
    async with silent(cluster, "k") as node:
        state, known = state_of(node.cache), node.wire.known
        names = state.epochs.names_for(FAR, state.keyspace.value_name(FAR, "k"))
        epochs = [b"%016d" % state.epochs.latest(name) for name in (names.root, names.control)]
        known.forget()
        read = asyncio.create_task(node.cache.get(FAR, "k"))
        await node.asked(3)
        # Another client clears the namespace between our second GET and the third.
        node.arrives(text(epochs[0]) + text(epochs[1]) + push(names.control) + b"_\r\n", cut=cut)
        assert await read is None
        assert names.root in known.current
        assert names.control in known.doubts
        assert names.control not in known.current


@pytest.mark.parametrize("cut", [False, True])
async def test_answers_however_they_arrive(cluster: EmbeddedCluster, cut: bool) -> None:
    async with silent(cluster, "k") as node:
        topology = state_of(node.cache).topology
        value_name, owner = state_of(node.cache).keyspace.value_name, topology.connection
        keys = [key for key in map("x{}".format, range(400)) if owner(value_name(FAR, key)) is node.wire][:40]
        node.wire.known.ready.update(
            state_of(node.cache).epochs.names_for(FAR, value_name(FAR, key)).ready for key in keys
        )  # fmt: skip
        reads = [asyncio.create_task(node.cache.get(FAR, key)) for key in keys]
        await node.asked(len(keys))
        kinds = (b"_\r\n", b"$-1\r\n", b"-WRONGTYPE no string\r\n", push(b"magnus:far:other") + b"_\r\n")
        node.arrives(b"".join(kinds[number % len(kinds)] for number in range(len(keys))), cut=cut)
        assert await asyncio.gather(*reads) == [None] * len(keys)
        assert not node.pipeline.owed
        assert node.pipeline.pending == 0
        # It is still in step.
        node.arrives(push(b"magnus:far:other"))


async def test_invariant_10_what_was_held_back_is_released_in_turns_of_the_loop(cluster: EmbeddedCluster) -> None:
    """Announcements of many names, and the answers among them, come in their order; others wait behind them."""
    async with silent(cluster, "k") as node:
        state, wire = state_of(node.cache), node.wire
        names = state.epochs.names_for(FAR, state.keyspace.value_name(FAR, "k"))
        reads = [asyncio.create_task(node.cache.get(FAR, "k")) for _ in range(2)]
        await node.asked(2)
        others = b"".join(text(b"magnus:far:%d" % number) for number in range(100_000))
        # No other node has its turn in between.
        vouched, wire.known.vouched = wire.known.vouched, -math.inf
        node.arrives(b"_\r\n_\r\n" + b">2\r\n" + text(b"invalidate") + b"*100000\r\n" + others)
        assert not any(read.done() for read in reads)
        wire.vouched(vouched)
        # It has begun, and other tasks have their turns.
        assert node.pipeline.releasing
        node.arrives(push(names.control))
        assert names.control in wire.known.current
        assert await asyncio.gather(*reads) == [None, None]
        await wait_until_async(lambda: not node.pipeline.releasing)
        assert names.control in wire.known.doubts
        assert not node.pipeline.held
