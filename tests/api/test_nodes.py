"""What `explain`, `ping`, the statistics and the log say of the nodes of a cluster."""

import asyncio
from typing import Any

import pytest

from magnus_cache import CacheManager
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import EmbeddedCluster
from tests.outage.test_nodes_away import is_away, is_back, keys_on, three, two_caches
from tests.support.groups import anyio_backend, cache_of
from tests.support.wait import wait_until_answered

__all__ = ["anyio_backend", "three"]

pytestmark = pytest.mark.anyio


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "magnus_cache"]


async def test_a_node_that_is_away_and_back(three: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    gone, stays, _ = three.primaries
    (here, other), (there,) = keys_on(three, gone, 2), keys_on(three, stays, 1)
    name = f"magnus:t:{here}"
    async with cache_of(three) as cache:
        await cache.set("t", here, "value")
        await cache.set("t", there, "value")
        found = await cache.explain("t", here)
        assert (found.node, found.slot) == (gone.address, key_slot(name.encode()))
        assert f"slot {found.slot}, node {gone.address}" in str(found)
        health = await cache.ping()
        assert (health.ok, health.mode, health.reason, health.tracking) == (True, "cluster", None, True)
        assert sorted(node.address for node in health.nodes) == sorted(node.address for node in three.primaries)
        assert all(node.ok and node and node.latency_ms and node.reason is None for node in health.nodes)
        nodes: Any = (await cache.get_stats())["nodes"]
        assert sorted(nodes) == sorted(node.address for node in three.primaries)
        assert sum(node["slots"] for node in nodes.values()) == 16_384
        assert {node["connections"] for node in nodes.values()} == {1}
        assert nodes[gone.address]["breaker"]["state"] == "closed"
        assert nodes[gone.address]["keys"] == int(gone.ask("DBSIZE"))
        assert nodes[gone.address]["used_memory"].endswith(("K", "M"))

        await asyncio.to_thread(three.pause, gone)
        began = monotonic()
        health = await cache.ping()
        assert monotonic() - began < 2
        assert not health.ok
        assert health.mode == "cluster"
        assert health.reason is not None
        assert f"node {gone.address} away" in health.reason
        states = {node.address: node for node in health.nodes}
        assert states[gone.address].reason == health.reason
        assert states[stays.address].ok
        await is_away(cache, other)
        health = await cache.ping()
        assert [node.address for node in health.nodes if not node] == [gone.address]
        found = await cache.explain("t", here)
        assert (found.level, found.node) == ("l1", gone.address)
        assert f"node {gone.address} is away" in found.verdict
        assert (await cache.explain("t", there)).verdict == "in memory, and valid in Redis"
        stats = await cache.get_stats()
        assert stats["redis_available"] is True
        assert stats["redis_total_keys"] == "N/A"
        assert stats["nodes"][gone.address]["breaker"]["state"] in {"open", "half-open"}
        assert stats["nodes"][gone.address]["connections"] == 0
        assert "keys" not in stats["nodes"][gone.address]
        assert stats["nodes"][stays.address]["breaker"]["state"] == "closed"
        (line,) = [line for line in told(caplog) if "away" in line]
        assert line.startswith(f"node {gone.address} away: ")
        assert "Its keys are served from this process's memory, others are not affected" in line

        await asyncio.to_thread(three.resume, gone)
        await is_back(cache, here)
        (line,) = [line for line in told(caplog) if "is back" in line]
        assert line.startswith(f"node {gone.address} is back after ")
        await wait_until_answered(cache.ping)


def test_a_blocking_ping_and_a_cluster_without_nodes(three: EmbeddedCluster) -> None:
    with CacheManager(redis_url="redis+cluster://" + three.nodes[0].address) as cache:
        health = cache.ping()
        assert (health.ok, health.mode, len(health.nodes)) == (True, "cluster", 3)
        for node in three.nodes:
            three.kill(node)
        health = cache.ping()
        assert not health.ok
        assert health.reason is not None


async def test_a_node_that_is_replaced(cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    (key,) = keys_on(cluster, primary, 1)
    async with two_caches(cluster) as (one, _):
        await one.set("t", key, "value")
        await asyncio.to_thread(cluster.kill, primary)
        await is_away(one, key)
        await asyncio.to_thread(cluster.promote, replica, "takeover")

        async def told_so() -> bool:
            await one.set("t", key, "new")
            return any(f"node {primary.address} was away and is replaced after " in line for line in told(caplog))

        await wait_until_answered(told_so)
        await is_back(one, key)
        assert (await one.explain("t", key)).node == replica.address
        nodes: Any = (await one.get_stats())["nodes"]
        assert replica.address in nodes
        assert primary.address not in nodes
