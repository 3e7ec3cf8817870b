"""What the nodes of a real cluster announce in place of an address: IPv6, host names, nothing."""

import asyncio
from collections.abc import Callable

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache.testing import EmbeddedCluster, ServerVersion
from tests.conftest import binary_of, kind_here
from tests.support import rights
from tests.support.groups import anyio_backend, cache_of, key_on
from tests.support.inside import cluster_view_of

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

KEYS = [f"k{number}" for number in range(60)]

_PREFERRED = "cluster_preferred_endpoint_type"

_ANNOUNCED = {
    "ipv6": ({"bind": "127.0.0.1 ::1", "cluster_announce_ip": "::1"}, "::1"),
    "host name": ({_PREFERRED: "hostname", "cluster_announce_hostname": "localhost"}, "localhost"),
    "no host name": ({_PREFERRED: "hostname"}, "127.0.0.1"),
    "unknown": ({_PREFERRED: "unknown-endpoint"}, "127.0.0.1"),
}


@pytest.mark.parametrize("announced", _ANNOUNCED)
@pytest.mark.parametrize("kind", dict.fromkeys([kind_here("valkey"), "redis"]))
async def test_a_cluster_that_announces(
    private_cluster_with: Callable[..., EmbeddedCluster], announced: str, kind: str
) -> None:
    options, host = _ANNOUNCED[announced]
    version = ServerVersion.of(binary_of(kind))
    if _PREFERRED in options and rights.before_7(version):
        pytest.skip(f"{version} announces numeric addresses only")
    cluster = private_cluster_with(3, 0, kind=kind, node_timeout=30.0, **options)
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await one.set_many("t", dict.fromkeys(KEYS, "old"))
        assert await other.get_many("t", KEYS) == dict.fromkeys(KEYS, "old")
        assert {node.host for node in cluster_view_of(other).map.nodes.values()} == {host}
        # Redirections name the same.
        source, target = cluster.primaries[:2]
        key, slot = key_on(cluster, source)
        await one.set("t", key, "old")
        await asyncio.to_thread(cluster.migrate, [slot], target)
        assert await other.get("t", key) == "old"
        assert await one.set("t", key, "new")
        assert await other.get("t", key) == "new"
        assert (await one.ping()).ok


async def test_the_only_address_in_the_settings_is_of_ipv6(
    private_cluster_with: Callable[..., EmbeddedCluster],
) -> None:
    cluster = private_cluster_with(3, 0, node_timeout=30.0, bind="127.0.0.1 ::1", cluster_announce_ip="::1")
    async with AsyncCacheManager(redis_url=f"redis+cluster://[::1]:{cluster.nodes[0].port}") as cache:
        await cache.set_many("t", dict.fromkeys(KEYS, "value"))
        assert await cache.get_many("t", KEYS) == dict.fromkeys(KEYS, "value")
        health = await cache.ping()
        assert health.ok
        assert {node.address for node in health.nodes} == {f"[::1]:{node.port}" for node in cluster.primaries}
