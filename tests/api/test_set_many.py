"""`set_many` says what `set` says: whether the values are stored."""

from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.runtime.critical import section
from magnus_cache.errors import CacheEncodeError
from tests.support.inside import deferred_calls
from tests.support.wait import wait_until

pytestmark = pytest.mark.anyio

VALUES = {f"k{number}": number for number in range(1200)}


async def test_true_where_redis_has_taken_them(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.set("t", "one", 1) is True
        assert await cache.set_many("t", VALUES, ttl="1m", tags="all") is True
        assert await cache.set_many("t", {}) is True
        assert len(raw.keys("magnus:t:*")) == len(VALUES) + 1
    with CacheManager(redis_url=url) as blocking:
        assert blocking.set("t", "one", 1) is True
        assert blocking.set_many("t", VALUES) is True


async def test_true_where_this_process_keeps_them(server: Any, proxy: Any) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        await cache.set("t", "one", 1)
        proxy.refuse()
        proxy.cut()
        assert await cache.set("t", "one", 2) is True
        assert await cache.set_many("t", {"one": 3, "two": 4}) is True
        assert await cache.get_many("t", ["one", "two"]) == {"one": 3, "two": 4}


@pytest.mark.parametrize("settings", [{"redis_enabled": False}, {"redis_url": "redis://127.0.0.1:1"}])
def test_false_where_nothing_keeps_one_of_them(settings: dict[str, Any]) -> None:
    far = Namespace("far", l1=False)
    with CacheManager(**settings) as cache:
        assert cache.set("t", "one", 1) is True
        assert cache.set_many("t", {"one": 1}) is True
        assert cache.set(far, "one", 1) is False
        assert cache.set_many(far, {"one": 1, "two": 2}) is False
    with CacheManager(**settings, l1_max_bytes=10_000) as small:
        assert small.set("t", "large", "x" * 20_000) is False
        assert small.set_many("t", {"large": "x" * 20_000, "small": 1}) is False
        assert small.get("t", "small") == 1


async def test_false_while_the_cache_is_disabled(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "one", 1)
        with cache.disabled():
            assert await cache.set("t", "other", 2) is False
            assert await cache.set_many("t", {"one": 2}) is False
        assert await cache.get("t", "one") is None
    with CacheManager(redis_url=url) as blocking, blocking.disabled():
        assert blocking.set_many("t", {"one": 2}) is False


def test_nothing_is_stored_if_one_of_them_cannot_be(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        with pytest.raises(CacheEncodeError):
            cache.set_many("t", VALUES | {"last": object()})
        assert cache.get_many("t", VALUES) == {}


def test_false_and_stored_soon_in_the_midst_of_the_cache(url: str, raw: redis.Redis) -> None:
    """As a signal handler calls it, where waiting could never end."""
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "one", 1)
        with section():
            assert cache.set("t", "one", 2) is False
            assert cache.set_many("t", {"one": 3, "two": 4}) is False
            with pytest.raises(CacheEncodeError):
                cache.set_many("t", {"one": 5, "bad": object()})
            with cache.disabled():
                assert cache.set_many("t", {"three": 5}) is False
        wait_until(lambda: raw.exists("magnus:t:two") == 1 and not deferred_calls(cache))
        assert cache.get_many("t", ["one", "two", "three"]) == {"one": 3, "two": 4}
