"""Clusters and Sentinel sets, as the tests of several floors use them."""

from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, ServerNode

__all__ = ["anyio_backend", "cache_of", "key_on", "url_of"]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One kind of loop, for modules whose tests take seconds and do not depend on it."""
    kind: str = request.param
    return kind


def url_of(group: EmbeddedCluster | EmbeddedSentinels, *, user: str = "", tls: bool = False, name: str = "") -> str:
    """Return the URL of the nodes of a cluster that run, or of all sentinels.

    :param user: with the password, as in ``user:password``.
    :param name: in place of the hosts.
    """
    if isinstance(group, EmbeddedCluster):
        kind, service, nodes = "cluster", "", [node for node in group.nodes if node.running]
    else:
        kind, service, nodes = "sentinel", f"/{group.service}", group.sentinels
    hosts = ",".join(f"{name or node.host}:{node.port}" for node in nodes)
    return f"redis{'s' if tls else ''}+{kind}://{f'{user}@' if user else ''}{hosts}{service}"


def cache_of(group: EmbeddedCluster | EmbeddedSentinels, **options: Any) -> AsyncCacheManager:
    return AsyncCacheManager(redis_url=url_of(group), **options)


def key_on(cluster: EmbeddedCluster, node: ServerNode) -> tuple[str, int]:
    """Return a key of the namespace `t` on a node, and its slot."""
    name = cluster.key_on(node, prefix="magnus:t:")
    return name.removeprefix("magnus:t:"), key_slot(name.encode())
