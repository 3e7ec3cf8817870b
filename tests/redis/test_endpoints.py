"""Nodes of a cluster that announce names, nothing, or a question mark in place of their addresses; TLS among them."""

from pathlib import Path
from typing import Any

import pytest
import trustme

from magnus_cache import AsyncCacheManager
from magnus_cache.testing import EmbeddedCluster, ServerTls, ServerVersion
from tests.conftest import SERVERS, binary_of
from tests.support import rights
from tests.support.groups import anyio_backend, url_of
from tests.support.inside import cluster_view_of

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

KEYS = [f"k{number}" for number in range(40)]


async def _works(cluster: EmbeddedCluster, url: str, **options: Any) -> set[str]:
    """Check that all nodes are reached, also by MOVED; return the hosts by which they are."""
    async with AsyncCacheManager(redis_url=url, **options) as cache:
        for key in KEYS:
            assert await cache.set("t", key, key)
        assert await cache.get_many("t", KEYS) == {key: key for key in KEYS}
        stored = [node for node in cluster.primaries if int(node.ask("DBSIZE")) > 0]
        assert len(stored) == 3
        return {node.host for node in cluster_view_of(cache).map.nodes.values()}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("endpoint", "hostname", "found"),
    [
        ("ip", "", "127.0.0.1"), ("hostname", "localhost", "localhost"), ("hostname", "", "127.0.0.1"),
        ("unknown-endpoint", "", "localhost"),
    ],
    ids=["address", "name", "name that is not set", "unknown"],
)  # fmt: skip
async def test_what_nodes_announce(kind: str, endpoint: str, hostname: str, found: str) -> None:
    """Without any host, it is the one that the node was reached by; with a question mark, the address."""
    if rights.before_7(version := ServerVersion.of(binary_of(kind))):
        pytest.skip(f"{version} announces numeric addresses only")
    options = {"cluster_preferred_endpoint_type": endpoint, "cluster_announce_hostname": hostname}
    with EmbeddedCluster(3, 0, binary=binary_of(kind), **options) as cluster:
        url = url_of(cluster, user="").replace("127.0.0.1", "localhost")
        assert await _works(cluster, url) == {found}


@pytest.mark.skipif("redis" not in SERVERS, reason="the embedded Valkey has no TLS")
async def test_names_that_are_in_certificates(authority: trustme.CA, tmp_path: Path) -> None:
    """The certificates have no number. Clients show one of their own."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    files = ServerTls(tmp_path / "authority.pem", tmp_path / "certificate.pem", tmp_path / "key.pem")
    of_client = {
        "redis_ssl_ca_certs": str(files.authority), "redis_ssl_certfile": str(files.certificate),
        "redis_ssl_keyfile": str(files.key),
    }  # fmt: skip
    options = {"cluster_preferred_endpoint_type": "hostname", "cluster_announce_hostname": "localhost"}
    with EmbeddedCluster(3, 0, tls=files, **options) as cluster:
        url = url_of(cluster, user="").replace("127.0.0.1", "localhost").replace("redis+", "rediss+")
        # Several handshakes at once: more than half a second on a busy machine.
        assert await _works(cluster, url, **of_client, op_timeout=5.0) == {"localhost"}
