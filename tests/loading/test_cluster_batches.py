"""Loads of many keys of a cluster: leases and fills travel together to each node, and each key stands for itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache.testing import EmbeddedCluster
from tests.support.groups import anyio_backend, cache_of, key_on
from tests.support.inside import held_leases, state_of, waits_for_a_lease
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

__all__ = ["anyio_backend"]

KEYS = [f"k{number}" for number in range(300)]


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("a key was asked about alone")


def _together_only(cache: AsyncCacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have requests for the lease of one key, and fills of one key, fail."""
    for name in ("acquire", "fill"):
        monkeypatch.setattr(state_of(cache).client, name, _never)


async def test_leases_and_values_of_one_call_travel_by_node(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, asked = {key: {"key": key} for key in KEYS}, list[str]()

    def load(keys: Sequence[str]) -> dict[str, Any]:
        asked.extend(keys)
        return {key: values[key] for key in keys if key != KEYS[-1]}

    async with cache_of(cluster) as one, cache_of(cluster) as other:
        _together_only(one, monkeypatch)
        loaded = await one.get_or_set_many("t", KEYS, load)
        assert loaded == {key: values[key] for key in KEYS[:-1]}
        assert sorted(asked) == sorted(KEYS)
        assert not held_leases(one)
        # From memory here, and from Redis in another process.
        assert await one.get_many("t", KEYS) == loaded == await other.get_many("t", KEYS)
        # On a busy machine, another node's word may be late, and what is kept is not served until it comes.
        await wait_until_async(lambda: state_of(one).memory.hit(b"magnus:t:k0") is not None)
        await other.clear("t")
        assert await one.get_many("t", KEYS) == {}
        # What a clear leaves behind in Redis is no reason not to load.
        assert await one.get_or_set_many("t", KEYS, load) == loaded


async def test_leases_and_values_of_cached_calls_and_of_warming_travel_by_node(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        _together_only(one, monkeypatch)
        asked = list[str]()

        @one.cached_many("t")
        async def doubled(keys: list[str]) -> dict[str, str]:
            asked.extend(keys)
            return {key: 2 * key for key in keys}

        assert await doubled(KEYS) == {key: 2 * key for key in KEYS}
        assert await doubled(KEYS) == {key: 2 * key for key in KEYS}
        assert len(asked) == len(KEYS)
        await doubled.clear()
        await doubled(KEYS)
        assert len(asked) == 2 * len(KEYS)

        async def load(key: str) -> str:
            return f"warm {key}"

        for _ in range(2):
            # Fresh values take the leases by force, from values that are stored.
            report = await one.warm_cache("warm", load, KEYS, progress=False)
            assert (report.loaded, report.failed) == (len(KEYS), 0)
            assert await other.get_many("warm", KEYS) == {key: f"warm {key}" for key in KEYS}


async def test_invariant_3_two_processes_that_load_a_batch_of_a_cluster_load_each_key_once(
    cluster: EmbeddedCluster,
) -> None:
    asked, leads = list[str](), asyncio.Event()

    async with cache_of(cluster) as one, cache_of(cluster) as other:

        async def load(keys: Sequence[str]) -> dict[str, str]:
            asked.extend(keys)
            leads.set()
            await wait_until_async(lambda: waits_for_a_lease(other))
            return dict.fromkeys(keys, "loaded")

        first = asyncio.create_task(one.get_or_set_many("t", KEYS, load))
        await leads.wait()
        assert await other.get_or_set_many("t", KEYS, load) == dict.fromkeys(KEYS, "loaded") == await first
        assert sorted(asked) == sorted(KEYS)


async def test_invariant_2_one_overtaken_key_of_a_batch_on_a_cluster_is_not_stored(cluster: EmbeddedCluster) -> None:
    gone = KEYS[:2]

    async with cache_of(cluster) as one, cache_of(cluster) as other:

        async def load(keys: Sequence[str]) -> dict[str, str]:
            await other.delete_many("t", gone)
            # Refused by the token alone: the announcement may come later than the values.
            return dict.fromkeys(keys, "old")

        assert await one.get_or_set_many("t", KEYS, load) == dict.fromkeys(KEYS, "old")
        kept = dict.fromkeys(KEYS[2:], "old")
        assert await other.get_many("t", KEYS) == kept == await one.get_many("t", KEYS)
        assert not held_leases(one)


async def test_invariant_2_a_tag_of_a_batch_on_a_cluster_is_invalidated_while_it_is_loaded(
    cluster: EmbeddedCluster,
) -> None:
    async with cache_of(cluster) as one, cache_of(cluster) as other:

        async def load(keys: Sequence[str]) -> dict[str, str]:
            await other.invalidate_tags("x")
            return dict.fromkeys(keys, "old")

        assert await one.get_or_set_many("t", KEYS, load, tags=["x"]) == dict.fromkeys(KEYS, "old")
        assert await one.get_many("t", KEYS) == {} == await other.get_many("t", KEYS)


async def test_a_slot_moves_between_the_leases_of_a_batch_and_its_values(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    keys = [key, *KEYS]

    async with cache_of(cluster) as one, cache_of(cluster) as other:

        async def load(keys: Sequence[str]) -> dict[str, str]:
            if key in keys:
                await asyncio.to_thread(cluster.migrate, [slot], target)
            return dict.fromkeys(keys, "new")

        assert await one.get_or_set_many("t", keys, load) == dict.fromkeys(keys, "new")
        # It moved with its lease, so its value is stored by the new owner.
        assert await other.get("t", key) == "new"
        assert not held_leases(one)


async def test_the_lease_of_a_slot_that_has_moved_is_heard_of_from_its_new_node(cluster: EmbeddedCluster) -> None:
    source, target = cluster.primaries[:2]
    key, slot = key_on(cluster, source)
    name = f"magnus:t:{key}".encode()
    async with cache_of(cluster) as cache:
        await cache.get_many("t", [key, *KEYS])
        state, connections = state_of(cache), list[bool]()

        async def load(key_: str) -> str:
            if key_ == key:
                connections.append(held_leases(cache)[name].connection is state.client.current_connection(name))
            return "new"

        # Values that are loaded anew are not read before: the request for the lease is what meets the new owner.
        await asyncio.to_thread(cluster.migrate, [slot], target)
        assert (await cache.warm_cache("t", load, [key, *KEYS], progress=False)).failed == 0
        assert connections == [True]


async def test_a_node_is_away_while_a_batch_is_loaded(cluster: EmbeddedCluster) -> None:
    node = cluster.primaries[0]
    async with cache_of(cluster, op_timeout=0.3) as cache:

        async def load(keys: Sequence[str]) -> dict[str, str]:
            await asyncio.to_thread(cluster.pause, node)
            return dict.fromkeys(keys, "new")

        try:
            assert await cache.get_or_set_many("t", KEYS, load) == dict.fromkeys(KEYS, "new")
            assert not held_leases(cache)
        finally:
            await asyncio.to_thread(cluster.resume, node)
        here = [key for key in KEYS if cluster.owner(f"magnus:t:{key}") is not node]
        async with cache_of(cluster) as other:
            assert await other.get_many("t", here) == dict.fromkeys(here, "new")


async def test_a_value_that_is_no_value_of_ours_is_no_reply_of_a_transaction(cluster: EmbeddedCluster) -> None:
    """A foreign client has stored what Redis answers to commands that it queues."""
    async with cache_of(cluster) as cache:
        wire = state_of(cache).client
        for number, foreign in enumerate((b"OK", b"QUEUED")):
            await wire.store(f"magnus:t:k{number}".encode(), foreign, 60_000, lambda stored, *_: stored)
        loaded = await cache.get_or_set_many("t", KEYS, lambda keys: dict.fromkeys(keys, "v"))
        assert loaded == dict.fromkeys(KEYS, "v")
