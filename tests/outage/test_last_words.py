"""What an outage leaves to be done: leases granted to nobody, what Redis was not told, and whose task that is."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.coordination.replay import Replayer
from magnus_cache._engine.loading.acquire import _Acquisition
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache.testing import Proxy
from tests.support.inside import all_sent, replays, wires_of
from tests.support.wait import end_tasks, wait_until, wait_until_async


@contextlib.contextmanager
def resting_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs only when it is told to, as in a REPL."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        end_tasks(loop)
        loop.close()


# -- leases -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("caller", ["waits", "is gone"])
async def test_a_lease_that_was_granted_to_nobody_is_given_back(
    private_server: Any, monkeypatch: pytest.MonkeyPatch, caller: str
) -> None:
    """The server froze with the request before it, and grants it when it goes on: nobody waits for it any more."""
    ask, frozen = _Acquisition._ask, False

    async def freezing(self: _Acquisition, *args: Any, **options: Any) -> Any:
        nonlocal frozen
        if not frozen:
            frozen = True
            private_server.pause()
        return await ask(self, *args, **options)

    async with AsyncCacheManager(redis_url=private_server.url, lease=600) as manager:
        await manager.get_or_set("t", "other", lambda: 1)
        monkeypatch.setattr(_Acquisition, "_ask", freezing)
        load = asyncio.create_task(manager.get_or_set("t", "k", lambda: 2))
        if caller == "is gone":
            await wait_until_async(lambda: frozen)
            await wait_until_async(lambda: all_sent(manager))
            load.cancel()
            # Whoever comes now asks again, behind the first request, which is the one that will be granted.
            await manager.get_or_set("t", "k", lambda: 2)
        await asyncio.wait([load])
        await wait_until_async(lambda: not manager.redis_available)
        private_server.resume()
        await wait_until_async(lambda: manager.redis_available)
        async with AsyncCacheManager(redis_url=private_server.url) as peer:
            assert await asyncio.wait_for(peer.get_or_set("t", "k", lambda: 3), 5) == 3


# -- who tells Redis ------------------------------------------------------------------------------------------------


def test_what_redis_refused_is_told_by_a_loop_that_runs(private_server: Any) -> None:
    """A loop that rests would tell it when it goes on, or never."""
    with redis.Redis(port=private_server.port) as raw, resting_loop() as loop:
        with CacheManager(redis_url=private_server.url) as cache, CacheManager(redis_url=private_server.url) as peer:
            loop.run_until_complete(cache.aio.get("t", "x"))
            cache.set("t", "k", "OLD")
            raw.config_set("maxmemory-policy", "noeviction")
            raw.config_set("maxmemory", "1")
            cache.set("t", "k", "NEW")
            wait_until(lambda: not cache._engine.state.outbox.pending)
            assert peer.get("t", "k") is None
            raw.config_set("maxmemory", "0")


@pytest.mark.parametrize("face", ["blocking", "async"])
@pytest.mark.parametrize("when", ["backing off", "replaying"])
def test_close_tells_redis_what_it_missed_if_it_can_be_reached(url: str, proxy: Proxy, face: str, when: str) -> None:
    keys = list(range(3000))

    async def outage(manager: AsyncCacheManager) -> None:
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not manager._engine.state.reachable)
        await manager.delete_many("t", keys)
        proxy.resume()
        if when == "replaying":
            await wait_until_async(lambda: manager._engine.state.reachable)

    with CacheManager(redis_url=url) as peer:
        peer.set_many("t", dict.fromkeys(keys, "OLD"))
        if face == "async":

            async def life() -> None:
                async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as manager:
                    await manager.get("t", "k")
                    await outage(manager)

            asyncio.run(life())
        else:
            with CacheManager(redis_url=proxy.url, op_timeout=5) as cache:
                cache.get("t", "k")
                cache._engine.state.portal.call(outage, cache.aio)
        # What the peer has near goes as soon as the announcements have come.
        wait_until(lambda: peer.get_many("t", keys) == {})


@pytest.mark.anyio
async def test_close_waits_no_longer_than_a_call_does(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as manager:
        await manager.set("t", "k", 1)
        proxy.freeze()
        await manager.delete("t", "k")
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 1.0


@pytest.mark.anyio
async def test_a_close_that_is_cancelled_ends_all_the_same(proxy: Proxy) -> None:
    cache = AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2)
    await cache.set("t", "kept", 1)
    memory = cache._state.memory
    proxy.freeze()
    await cache.delete("t", "k")
    assert cache._state.outbox.pending
    assert len(memory)
    closing = asyncio.create_task(cache.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert not len(memory)


def test_close_outlives_the_loop_that_was_to_tell_redis(private_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task is cancelled by the end of `asyncio.run`, which is nothing to whoever closes the cache elsewhere."""
    manager = AsyncCacheManager(redis_url=private_server.url, op_timeout=2)
    begin, begun, deleted, over = Replayer.final_replay, threading.Event(), threading.Event(), threading.Event()

    async def final_replay(*args: Any) -> None:
        begun.set()
        await begin(*args)

    async def life() -> None:
        await manager.set("t", "k", 1)
        await manager.set("t", "stays", 1)
        private_server.pause()
        await manager.delete("t", "k")
        deleted.set()
        await asyncio.to_thread(over.wait, 60)

    monkeypatch.setattr(Replayer, "final_replay", final_replay)
    with ThreadPoolExecutor(2) as threads:
        living = threads.submit(asyncio.run, life())
        try:
            assert deleted.wait(10)
            closing = threads.submit(manager.sync.close)
            assert begun.wait(10)
            over.set()
            closing.result(10)
            living.result(10)
        finally:
            over.set()
            private_server.resume()
    assert not wires_of(manager)
    assert not len(manager._engine.state.memory)


@pytest.mark.anyio
async def test_a_replay_that_redis_refuses_ends_with_the_cache(private_server: Any) -> None:
    with redis.Redis(port=private_server.port) as raw:
        raw.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-unlink")
    async with AsyncCacheManager(redis_url=f"redis://app:pw@127.0.0.1:{private_server.port}/0") as manager:
        await manager.set("t", "k", 1)
        await manager.delete("t", "k")
        await wait_until_async(lambda: replays(manager))
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "magnus-cache-replay"]


# -- the breaker ----------------------------------------------------------------------------------------------------


def test_a_trial_that_nobody_ends_is_lost_after_twice_the_time_it_may_take() -> None:
    """The loop that made it rests, or is held up: the others try in its place."""
    with CacheManager(redis_enabled=False, op_timeout=0.3) as cache:
        breaker: Breaker = cache._engine.state.breaker
        breaker.failed(0.0)
        assert breaker.try_acquire(1.0) == 0
        assert breaker.try_acquire(1.0) == pytest.approx(0.6)
        assert breaker.try_acquire(1.61) == 0


def test_a_hurried_attempt_is_made_at_once() -> None:
    breaker, rung = Breaker(), threading.Event()
    breaker.failed(0.0)
    breaker.subscribe(rung.set)
    assert breaker.try_acquire(0.01) > 0
    breaker.retry_now()
    assert rung.is_set()
    assert breaker.try_acquire(0.01) == 0


# -- what is said ---------------------------------------------------------------------------------------------------


def test_what_breaks_again_all_the_time_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    notices = RateLimitedLog(lambda: now)
    for _ in range(9):
        notices.warn("redis", "Redis is away")
        notices.resolved("redis")
        now += 1
    assert [record.getMessage() for record in caplog.records] == ["Redis is away"]
    now += 2
    notices.warn("redis", "Redis is away")
    assert caplog.records[-1].getMessage() == "Redis is away (8 more like this)"
    assert notices.resolved("redis")
    assert not notices.resolved("redis"), "nothing was said that could be taken back"
