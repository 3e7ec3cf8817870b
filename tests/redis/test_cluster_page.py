"""What the page about Redis Cluster tells users to do."""

import re
from pathlib import Path

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache.testing import EmbeddedCluster
from tests.redis.test_cluster import KEYS
from tests.support import rights
from tests.support.groups import anyio_backend

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

PAGES = Path(__file__).parents[2] / ".docs"
PAGE = (PAGES / "cluster.md").read_text()
GRANTS = (PAGES / "deployment.md").read_text()


async def test_the_grants_of_the_page_suffice(cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    assert "deployment.md#acl-grants" in PAGE
    # Those of a single server, and those that a cluster needs beside them.
    lines = re.findall(r"^ACL SETUSER app .*$", GRANTS.replace("magnus*", "desk*"), re.MULTILINE)
    assert len(lines) == 2
    for node in cluster.nodes:
        for line in lines:
            node.ask(*rights.suited(line, node.version).replace("SETUSER app", "SETUSER desk").split())
    url = f"redis+cluster://desk:password@{cluster.replicas[0].address}"
    try:
        async with (
            AsyncCacheManager(redis_url=url, prefix="desk") as one,
            AsyncCacheManager(redis_url=url, prefix="desk") as other,
        ):
            await one.set_many("t", dict.fromkeys(KEYS, "value"), tags=["tag"])
            assert await other.get_many("t", KEYS) == dict.fromkeys(KEYS, "value")
            assert await other.get_or_set("t", "loaded", lambda: "loaded", tags=["tag"]) == "loaded"
            assert await one.delete_many("t", KEYS[:10]) == 10
            assert await one.clear("desk:t:k1*") > 0
            await one.invalidate_tags("tag")
            assert await one.get_many("t", KEYS) == {}
            await one.set("t", "k", "value")
            assert await one.clear("t") > 0
            assert (await one.explain("t", "k")).verdict == "not there"
            health = await one.ping()
            assert (health.ok, health.tracking) == (True, True)
            stats = await one.get_stats()
            assert stats["redis_total_keys"] == 0
            assert stats["errors"] == {}
        assert [record.getMessage() for record in caplog.records if record.name == "magnus_cache"] == []
    finally:
        for node in cluster.nodes:
            node.ask("ACL", "DELUSER", "desk")
