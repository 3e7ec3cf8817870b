"""`ping` and `redis_available`: what they tell, how long they take, and that they never raise."""

import asyncio
import dataclasses
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.coordination.health import Health
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.support.inside import put_off_attempts
from tests.support.wait import wait_until

Ping = Callable[[CacheManager], Health]


def awaited(cache: CacheManager) -> Health:
    async def ask() -> Health:
        async with asyncio.timeout(10):
            return await cache.aio.ping()

    return asyncio.run(ask())


def blocking(cache: CacheManager) -> Health:
    return cache.ping()


@pytest.fixture(params=[awaited, blocking])
def ping(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_healthy_server(server: EmbeddedServer, ping: Ping, raw: redis.Redis) -> None:
    about: Any = raw.info("server")
    with CacheManager(redis_url=server.url) as cache:
        health = ping(cache)
        assert health.ok
        assert bool(health) is True
        assert health.reason is None
        assert health.latency_ms is not None
        assert 0 < health.latency_ms < 500
        assert health.server == ("valkey" if "valkey_version" in about else "redis")
        assert health.version == about.get("valkey_version", about["redis_version"])
        assert health.mode == "standalone"
        assert health.tracking is True
        assert cache.redis_available


def test_health_is_a_frozen_record(server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        health = cache.ping()
    with pytest.raises(dataclasses.FrozenInstanceError):
        health.ok = False  # type: ignore[misc]  # that is the point
    assert pickle.loads(pickle.dumps(health)) == health
    assert [field.name for field in dataclasses.fields(Health)] == [
        "ok", "latency_ms", "server", "version", "mode", "tracking", "reason", "address", "tracking_mode", "nodes",
    ]  # fmt: skip


def test_nothing_listens(ping: Ping) -> None:
    with CacheManager(redis_url="redis://127.0.0.1:1/0", op_timeout=0.2) as cache:
        health = ping(cache)
        assert (health.ok, bool(health), health.latency_ms) == (False, False, None)
        assert health.reason is not None
        assert health.reason.startswith("refused: Redis at ")


def test_a_wrong_password(private_server_with: Any, ping: Ping) -> None:
    server = private_server_with(requirepass="secret")
    with CacheManager(redis_url=f"redis://:wrong-word@127.0.0.1:{server.port}/0") as cache:
        health = ping(cache)
        assert health.reason is not None
        assert health.reason.startswith("auth: ")
        assert "wrong-word" not in repr(health)


def test_a_black_hole_takes_no_longer_than_the_timeout(proxy: Proxy, ping: Ping) -> None:
    proxy.black_hole()
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        began = time.monotonic()
        health = ping(cache)
        assert time.monotonic() - began < 3
        assert health.reason is not None
        assert health.reason.startswith("timeout: ")


def test_it_asks_though_the_cache_knows_of_an_outage(private_server: EmbeddedServer, ping: Ping) -> None:
    """The cache's own connection tries again when its pause is over; a question is answered now."""
    with CacheManager(redis_url=private_server.url) as cache:
        cache.set("t", "k", 1)
        private_server.kill()
        wait_until(lambda: not ping(cache).ok and cache._state.breaker.open)
        # As after a long outage: the next attempt is far away.
        put_off_attempts(cache, 3600)
        private_server.start()
        health = ping(cache)
        assert health.ok
        assert health.tracking
        cache._state.breaker.retry_now()


def test_a_closed_cache(server: EmbeddedServer, ping: Ping) -> None:
    cache = CacheManager(redis_url=server.url)
    cache.close()
    health = ping(cache)
    assert not health.ok
    assert health.reason is not None
    assert health.reason.startswith("closed: ")


def test_without_redis(ping: Ping) -> None:
    with CacheManager(redis_enabled=False) as cache:
        health = ping(cache)
        assert (health.ok, health.mode) == (False, "memory")
        assert health.reason is not None
        assert "redis_enabled" in health.reason


def test_on_the_background_loop_itself(server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:

        async def load() -> Health:
            return cache.ping()

        health = cache._state.portal.call(load)
        assert health.reason is not None
        assert health.reason.startswith("deadlock: ")


def test_a_background_loop_that_is_held_up(server: EmbeddedServer) -> None:
    go = threading.Event()
    with CacheManager(redis_url=server.url, op_timeout=0.2) as cache:

        async def hold() -> None:
            assert go.wait(10)

        thread = threading.Thread(target=lambda: cache._state.portal.call(hold))
        thread.start()
        try:
            health = cache.ping()
            assert health.reason is not None
            assert health.reason.startswith("timeout: ")
        finally:
            go.set()
            thread.join()


async def _cancelled(cache: AsyncCacheManager) -> None:
    task = asyncio.create_task(cache.ping())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_ping_is_cancelled_and_leaves_nothing(proxy: Proxy) -> None:
    proxy.freeze()
    with CacheManager(redis_url=proxy.url) as cache:

        async def ask() -> None:
            await _cancelled(cache.aio)
            await cache.aclose()

        asyncio.run(ask())


def test_redis_is_available_right_away(server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        assert cache.redis_available is True


def test_redis_is_not_available_where_nothing_listens() -> None:
    with CacheManager(redis_url="redis://127.0.0.1:1/0", op_timeout=0.2) as cache:
        assert cache.redis_available is False


def test_only_the_first_look_asks(proxy: Proxy) -> None:
    proxy.refuse()
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        assert cache.redis_available is False
        attempts = cache.get_stats()["breaker"]["attempts"]
        assert attempts >= 1
        asked: list[int] = []
        cache._state.portal.call = lambda *_, **__: asked.append(1)  # type: ignore[method-assign,assignment]
        try:
            assert cache.redis_available is False
        finally:
            del cache._state.portal.call
        assert not asked


def test_the_first_look_is_bounded(proxy: Proxy) -> None:
    proxy.black_hole()
    with CacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        began = time.monotonic()
        assert cache.redis_available is False
        assert time.monotonic() - began < 3


@pytest.mark.anyio
async def test_no_look_blocks_an_event_loop(server: EmbeddedServer) -> None:
    async with AsyncCacheManager(redis_url=server.url) as cache:
        assert cache.redis_available is False
        assert cache.sync.redis_available is False
        assert not cache._state.portal.running
        assert (await cache.ping()).ok
        assert cache.redis_available
        assert cache.sync.redis_available


def test_a_look_at_a_closed_cache_asks_nothing(server: EmbeddedServer) -> None:
    cache = CacheManager(redis_url=server.url)
    cache.close()
    assert cache.redis_available is False
