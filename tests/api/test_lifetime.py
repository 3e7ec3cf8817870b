"""`lifetime`: how old a value is, and how long it lives, by the clock of Redis."""

import asyncio

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, Lifetime, Namespace
from magnus_cache.testing import Proxy, virtual_clock

pytestmark = pytest.mark.anyio


def rounded(life: Lifetime | None) -> tuple[int, int] | None:
    return None if life is None else (round(life.age), round(life.left))


async def test_a_value_has_an_age_and_a_time_left(url: str) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
            assert await cache.lifetime("t", "k") is None
            await cache.set("t", "k", 1, ttl=60, tags="tag")
            assert await cache.get_or_set("t", "loaded", lambda: 1, 60) == 1
            for key in ("k", "loaded"):
                for each in (cache, other):
                    assert rounded(await each.lifetime("t", key)) == (0, 60)
            clock.advance(20)
            # By that of the server, which has not moved, for what is read from there.
            assert rounded(await cache.lifetime("t", "loaded")) == (20, 40)
            await cache.touch("t", "loaded", 100)
            life = await cache.lifetime("t", "loaded")
            assert life is not None
            assert round(life.left) == 100
            # A touched value is as old as before.
            assert round(life.age) == 20
            await other.delete("t", "loaded")
            assert await cache.lifetime("t", "loaded") is None
            clock.advance(100)
            assert await cache.lifetime("t", "k") is None


async def test_a_value_in_memory_costs_no_exchange(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=f"redis://127.0.0.1:{proxy.port}") as cache:
        await cache.get_or_set("t", "k", lambda: 1, 60)
        proxy.freeze()
        assert rounded(await asyncio.wait_for(cache.lifetime("t", "k"), 1)) == (0, 60)
        proxy.resume()


def test_in_blocking_code_and_without_redis() -> None:
    local = Namespace("local", local=True)
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", "k", 1, ttl=60)
        cache.set(local, "k", object(), ttl=60)
        assert rounded(cache.lifetime("t", "k")) == rounded(cache.lifetime(local, "k")) == (0, 60)
        with cache.disabled():
            assert cache.lifetime("t", "k") is None
        assert cache.get_or_set("t", "none", lambda: None) is None
        assert rounded(cache.lifetime("t", "none")) == (0, 300)


async def test_a_remembered_error_is_no_value(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        for _ in range(2):
            with pytest.raises(KeyError):
                await cache.get_or_set("t", "k", lambda: {}["no"], negative={KeyError: 60})
        assert await cache.lifetime("t", "k") is None
