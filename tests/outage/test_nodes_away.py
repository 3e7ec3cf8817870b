"""Some nodes of a cluster are away: their keys are served as in an outage, and others are not affected."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import EmbeddedCluster, ServerNode
from tests.support.groups import anyio_backend, cache_of
from tests.support.inside import state_of
from tests.support.wait import wait_until_answered, wait_until_async

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

NEVER = Namespace("never", offline=0)
GRACE = Namespace("grace", ttl=0.05, grace="1h")

StartCluster = Callable[..., EmbeddedCluster]


@pytest.fixture
def three(private_cluster_with: StartCluster) -> EmbeddedCluster:
    """Three primaries without replicas, which take no notice if one of them is away for some seconds."""
    return private_cluster_with(3, 0, node_timeout=30.0)


def keys_on(cluster: EmbeddedCluster, node: ServerNode, count: int, namespace: str = "t") -> list[str]:
    """Return keys of a namespace whose values and epochs are on one node."""
    state = state_of(cache_of(cluster))
    found: list[str] = []
    numbers = itertools.count()
    while len(found) < count:
        key = f"k{next(numbers)}"
        name = f"magnus:{namespace}:{key}"
        copy = state.epochs.names_for(namespace, name.encode()).control.decode()
        if cluster.owner(name) == node and cluster.owner(copy) == node:
            found.append(key)
    return found


async def is_away(cache: AsyncCacheManager, key: str) -> None:
    """Return once a cache knows that the node of a key is away."""
    name = f"magnus:t:{key}".encode()

    async def noticed() -> bool:
        await cache.get("t", key)
        state = state_of(cache)
        return not state.reaches(name) and state.topology.breaker_of(name).open

    await wait_until_answered(noticed)


async def is_back(cache: AsyncCacheManager, key: str) -> None:
    await wait_until_async(lambda: state_of(cache).reaches(f"magnus:t:{key}".encode()), 20)


@asynccontextmanager
async def two_caches(cluster: EmbeddedCluster) -> AsyncIterator[tuple[AsyncCacheManager, AsyncCacheManager]]:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        yield one, other


async def test_keys_of_a_node_that_is_away_are_served_as_in_an_outage(three: EmbeddedCluster) -> None:
    gone, stays, _ = three.primaries
    (here,), (there,) = keys_on(three, gone, 1), keys_on(three, stays, 1)
    async with two_caches(three) as (one, other):
        never, grace = keys_on(three, gone, 1, "never")[0], keys_on(three, gone, 1, "grace")[0]
        for namespace, key in (("t", here), ("t", there), (NEVER, never), (GRACE, grace)):
            await other.set(namespace, key, "old")
            assert await one.get(namespace, key) == "old"
        await asyncio.to_thread(three.kill, gone)
        await is_away(one, here)
        assert one.redis_available
        # Memory serves what was read before, as long as the namespace allows.
        assert await one.get("t", here) == "old"
        assert await one.get_many("t", [here, there]) == {here: "old", there: "old"}
        assert await one.get(NEVER, never, "nothing") == "nothing"
        # Stale within grace, if the source fails.

        async def fails() -> str:
            raise LookupError

        assert await one.get_or_set(GRACE, grace, fails) == "old"
        # Loads by this process are kept in its memory, and so are writes.
        loads: list[str] = []

        async def load() -> str:
            loads.append("loaded")
            return "loaded"

        missing = keys_on(three, gone, 2)[1]
        assert [await one.get_or_set("t", missing, load) for _ in range(3)] == ["loaded"] * 3
        assert loads == ["loaded"]
        assert await one.set("t", missing, "written")
        assert await one.get("t", missing) == "written"
        # The keys of the others are asked for as ever.
        await other.set("t", there, "new")
        await wait_until_answered(lambda: _is(one, there, "new"))
        assert await one.set("t", there, "newer")
        assert stays.ask("EXISTS", f"magnus:t:{there}") == 1


async def _is(cache: AsyncCacheManager, key: str, value: str) -> bool:
    return bool(await cache.get("t", key) == value)


async def test_values_of_a_node_that_was_away_are_confirmed_when_it_is_back(three: EmbeddedCluster) -> None:
    """What another process has changed there meanwhile is not served any more."""
    gone = three.primaries[0]
    changed, kept, loaded = keys_on(three, gone, 3)
    async with two_caches(three) as (one, other):
        for key in (changed, kept):
            await other.set("t", key, "old", ttl=3600)
            assert await one.get("t", key) == "old"
        await asyncio.to_thread(three.pause, gone)
        await is_away(one, changed)
        assert await one.get("t", changed) == "old"
        assert await one.get_or_set("t", loaded, lambda: "loaded here") == "loaded here"
        await asyncio.to_thread(three.resume, gone)
        await other.set("t", changed, "new")
        await other.set("t", loaded, "loaded elsewhere")
        await is_back(one, changed)
        assert await one.get("t", changed) == "new"
        assert await one.get("t", loaded) == "loaded elsewhere"
        assert await one.get("t", kept) == "old"


async def test_what_was_not_confirmed_since_the_last_outage_is_not_served_in_the_next(three: EmbeddedCluster) -> None:
    gone, stays, _ = three.primaries
    (key,), (there,) = keys_on(three, gone, 1), keys_on(three, stays, 1)
    async with two_caches(three) as (one, other):
        for each in (key, there):
            await other.set("t", each, "old", ttl=3600)
            assert await one.get("t", each) == "old"
        for _ in range(2):
            await asyncio.to_thread(three.pause, gone)
            await is_away(one, keys_on(three, gone, 2)[1])
            await asyncio.to_thread(three.resume, gone)
            await is_back(one, key)
        # In between it was back, and may have been changed without a word to this process.
        await asyncio.to_thread(three.kill, gone)
        await is_away(one, keys_on(three, gone, 2)[1])
        assert await one.get("t", key, "nothing") == "nothing"
        assert await one.get("t", there) == "old"


async def test_one_timeout_in_all_for_a_node_that_is_stopped(three: EmbeddedCluster) -> None:
    gone, stays, _ = three.primaries
    here, there = keys_on(three, gone, 40), keys_on(three, stays, 40)
    timeout = 1.5
    async with cache_of(three, op_timeout=timeout) as cache:
        # So that all epochs are known.
        await cache.set_many("t", dict.fromkeys([*here, *there], "old"))
        assert await cache.delete_many("t", [*here, *there]) == 80
        await asyncio.to_thread(three.pause, gone)
        began = monotonic()
        waiting = [asyncio.create_task(cache.get_or_set("t", key, lambda: "loaded")) for key in here]
        # Whoever asks the others does not wait for it.
        for key in there:
            assert await cache.get_or_set("t", key, lambda: "loaded") == "loaded"
            assert await cache.delete("t", key)
        assert not any(task.done() for task in waiting)
        assert await asyncio.gather(*waiting) == ["loaded"] * len(here)
        for key in here:
            assert await cache.set("t", key, "written")
            assert await cache.get("t", key) == "written"
            assert not await cache.contains("t", f"{key} missing")
        assert monotonic() - began < 2 * timeout
        await asyncio.to_thread(three.resume, gone)
