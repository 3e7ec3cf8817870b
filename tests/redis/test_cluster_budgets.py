"""Budgets on a cluster: one bucket in one slot, shared by all processes, and pauses that reach each of them."""

import pytest

from magnus_cache import CacheBudgetError, Namespace, RetryLater
from magnus_cache.testing.servers import EmbeddedCluster
from tests.support.groups import anyio_backend, cache_of  # noqa: F401  # it takes the place of the usual one
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


async def test_the_processes_of_a_cluster_share_a_bucket(cluster: EmbeddedCluster) -> None:
    namespace, asked = Namespace("t", budget="3/h", hard_timeout=1), list[int]()
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        for number, cache in enumerate((one, other, one)):
            await cache.get_or_set(namespace, number, lambda number=number: asked.append(number))
        for cache in (one, other):
            with pytest.raises(CacheBudgetError) as raised:
                await cache.get_or_set(namespace, "more", lambda: asked.append(9))
            assert 3_000 < raised.value.retry_after < 3_601
        assert asked == [0, 1, 2]


@pytest.mark.parametrize("budget", [None, "100/s"])
async def test_a_pause_reaches_the_processes_of_a_cluster(cluster: EmbeddedCluster, budget: str | None) -> None:
    namespace, asked = Namespace("t", budget=budget, hard_timeout=1), list[str]()

    def refused() -> None:
        asked.append("refused")
        raise RetryLater(60)

    async with cache_of(cluster) as one, cache_of(cluster) as other:
        await other.set("t", "k", 1)
        with pytest.raises(CacheBudgetError, match="paused"):
            await one.get_or_set(namespace, "a", refused)
        if budget is None:
            await wait_until_async(lambda: other._state.sources.active)
        for key in "bcdefgh":
            with pytest.raises(CacheBudgetError, match="paused"):
                await other.get_or_set(namespace, key, refused)
        assert asked == ["refused"]
