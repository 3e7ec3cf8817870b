"""Under another async library than asyncio, each operation says at once what to do instead."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from magnus_cache import AsyncCacheManager, CacheLoopError, CacheManager
from magnus_cache.embedded import EmbeddedServer

OPERATIONS: dict[str, Callable[[AsyncCacheManager], Awaitable[Any]]] = {
    "get": lambda cache: cache.get("t", "k"),
    "set": lambda cache: cache.set("t", "k", 1),
    "delete": lambda cache: cache.delete("t", "k"),
    "contains": lambda cache: cache.contains("t", "k"),
    "touch": lambda cache: cache.touch("t", "k", 1),
    "ttl": lambda cache: cache.ttl("t", "k"),
    "get_or_set": lambda cache: cache.get_or_set("t", "k", lambda: 1),
    "get_or_set with a policy": lambda cache: cache.get_or_set("t", "k", lambda: 1, grace=1, soft_timeout=1),
    "get_many": lambda cache: cache.get_many("t", ["k", "l"]),
    "get_or_set_many": lambda cache: cache.get_or_set_many("t", ["k"], dict.fromkeys),
    "set_many": lambda cache: cache.set_many("t", {"k": 1}),
    "delete_many": lambda cache: cache.delete_many("t", ["k"]),
    "clear": lambda cache: cache.clear("t"),
    "invalidate_tags": lambda cache: cache.invalidate_tags("tag"),
    "warm_cache": lambda cache: cache.warm_cache("t", str, ["k"]),
    "explain": lambda cache: cache.explain("t", "k"),
    "get_stats": lambda cache: cache.get_stats(),
    "cached": lambda cache: _cached(cache)(1),
    "invalidate": lambda cache: _cached(cache).invalidate(1),
    "refresh": lambda cache: _cached(cache).refresh(1),
    "cached_many": lambda cache: _cached_many(cache)([1]),
}


def _cached(cache: AsyncCacheManager) -> Any:
    @cache.cached("t", key="{number}")
    async def function(number: int) -> int:
        return number

    return function


def _cached_many(cache: AsyncCacheManager) -> Any:
    @cache.cached_many("t", key="{numbers}")
    async def function(numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers}

    return function


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_names_asyncio_and_the_remedy(url: str, name: str, enabled: bool) -> None:
    with CacheManager(redis_url=url, redis_enabled=enabled) as cache:

        async def main() -> None:
            with trio.fail_after(10):
                await OPERATIONS[name](cache.aio)

        with pytest.raises(CacheLoopError, match=r"runs on asyncio, and this is trio.*worker thread"):
            trio.run(main)


def test_the_blocking_manager_works_in_a_worker_thread(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        async def main() -> Any:
            await trio.to_thread.run_sync(cache.set, "t", "k", 1)
            return await trio.to_thread.run_sync(cache.get, "t", "k")

        assert trio.run(main) == 1


def test_ping_says_so_instead(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        health = trio.run(cache.aio.ping)
        assert not health.ok
        assert health.reason is not None
        assert health.reason.startswith("loop: ")
        assert "trio" in health.reason


def test_a_look_does_not_block_its_loop(server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:

        async def main() -> bool:
            return cache.redis_available

        assert trio.run(main) is False
        assert not cache._state.portal.running


def test_closing_works(url: str) -> None:
    cache = CacheManager(redis_url=url)
    cache.set("t", "k", 1)
    trio.run(cache.aio.aclose)
    assert cache._state.closed
    assert not cache._state.portal.running


def test_a_cache_used_by_hand_without_any_loop_says_so(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        coroutine = cache.aio.get("t", "k")
        with pytest.raises(CacheLoopError, match=r"asyncio\.run"):
            coroutine.send(None)
