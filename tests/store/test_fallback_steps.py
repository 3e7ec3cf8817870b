"""Steps on the fallback that look, await and store: touch, and what loads and writes do without Redis."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.key_locks import KeyLocks
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.inside import only_wire_of, pipeline_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

USERS = Namespace("users", ttl=60, negative={LookupError: "1m"})


async def away(cache: AsyncCacheManager, proxy: Proxy) -> None:
    """Take Redis away from a cache, and return when that is known."""
    await cache.get("t", "warm")
    proxy.refuse()
    proxy.cut()
    await wait_until_async(lambda: not cache._state.breaker.closed)


async def opened(proxy: Proxy, redis_enabled: bool) -> AsyncCacheManager:
    return AsyncCacheManager(redis_url=proxy.url, redis_enabled=redis_enabled, op_timeout=0.5)


# -- touch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redis_enabled", [True, False], ids=["outage", "memory"])
async def test_touch_leaves_a_remembered_error_an_error(proxy: Proxy, redis_enabled: bool) -> None:
    calls = 0

    async def loader() -> int:
        nonlocal calls
        calls += 1
        raise LookupError("no such user")

    async with await opened(proxy, redis_enabled) as cache:
        if redis_enabled:
            await away(cache, proxy)
        for _ in range(2):
            with pytest.raises(LookupError, match="no such user"):
                await cache.get_or_set(USERS, 7, loader)
            assert await cache.touch(USERS, 7, "10m") is False
            assert await cache.get(USERS, 7, "nothing") == "nothing"
            assert await cache.ttl(USERS, 7) is None
            assert await cache.contains(USERS, 7) is False
    assert calls == 1


def between_look_and_store(monkeypatch: pytest.MonkeyPatch, act: Callable[[LocalCache, bytes], object]) -> None:
    """Have something happen once, right after memory was looked at, as another thread would do it."""
    original = LocalCache.get_untrusted
    acted: list[bytes] = []

    def get_untrusted(self: LocalCache, name: bytes) -> Entry | None:
        entry = original(self, name)
        if not acted:
            acted.append(name)
            act(self, name)
        return entry

    monkeypatch.setattr(LocalCache, "get_untrusted", get_untrusted)


async def test_touch_brings_nothing_back_that_was_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", 1, ttl=60)
        between_look_and_store(monkeypatch, LocalCache.invalidate)
        assert await cache.touch("t", "k", 60) is False
        assert await cache.get("t", "k") is None


@pytest.mark.parametrize("what", ["clear", "tags"])
async def test_touch_brings_nothing_back_that_was_cleared_meanwhile(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", 1, ttl=60, tags=["x"])
        state = cache._state
        outdate = {
            "clear": lambda: state.forget_prefix(b"magnus:t:"),
            "tags": lambda: state.outdated(state.epochs.tag_name("x")),
        }[what]
        between_look_and_store(monkeypatch, lambda _memory, _name: outdate())
        assert await cache.touch("t", "k", 60) is False
        assert await cache.get("t", "k") is None


async def test_touch_extends_the_newer_of_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", "old", ttl=60)
        sync = cache.sync
        between_look_and_store(monkeypatch, lambda _memory, _name: sync.set("t", "k", "new", ttl=5))
        assert await cache.touch("t", "k", 600) is True
        assert await cache.get("t", "k") == "new"
        assert 500 < (await cache.ttl("t", "k") or 0) <= 600


async def test_touch_without_redis_keeps_tags_grace_and_the_bound_of_memory() -> None:
    graceful, short = Namespace("graceful", ttl=10, grace=50), Namespace("short", ttl=10, l1_ttl=5)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:

            async def failing() -> int:
                raise OSError("the source is away")

            await cache.set(graceful, "k", 1, tags=["x"])
            await cache.touch(graceful, "k", 20)
            clock.advance(30)
            assert await cache.get_or_set(graceful, "k", failing) == 1
            await cache.invalidate_tags("x")
            with pytest.raises(OSError, match="away"):
                await cache.get_or_set(graceful, "k", failing)
            await cache.set(short, "k", 1)
            assert await cache.touch(short, "k", 600)
            assert (await cache.ttl(short, "k") or 0) <= 5
            clock.advance(6)
            assert await cache.get(short, "k") is None


@pytest.mark.parametrize("size", [100, 200_000])
async def test_touch_handles_large_compressed_values_off_the_loop(
    url: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    threads: list[int] = []
    original = envelope.open_payload

    def open_payload(*arguments: Any) -> bytes:
        threads.append(threading.get_ident())
        return original(*arguments)

    namespace = Namespace("zipped", compress=True, max_value_bytes=2**20)
    async with AsyncCacheManager(redis_url=url) as cache:
        value = os.urandom(size // 20) * 20
        await cache.set(namespace, "k", value, ttl=60)
        monkeypatch.setattr(envelope, "open_payload", open_payload)
        assert await cache.touch(namespace, "k", 600)
        monkeypatch.undo()
        here = threading.get_ident()
        assert [thread == here for thread in threads] == [size < 1000]
        assert 500 < (await cache.ttl(namespace, "k") or 0) <= 600
        assert await cache.get(namespace, "k") == value


# -- one step at a time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["touch", "load"])
async def test_a_step_waits_for_a_write_that_redis_did_not_take(proxy: Proxy, other: str) -> None:
    """The write has dropped the old value already, and asks Redis again before it keeps the new one here."""
    calls = 0

    async def loader() -> str:
        nonlocal calls
        calls += 1
        return "loaded"

    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await cache.set("t", "k", "old", ttl=60)
        await cache.delete("t", "other")
        wire = only_wire_of(cache)
        proxy.black_hole()
        if other == "touch":
            second = asyncio.create_task(cache.touch("t", "k", 600))
        else:
            cache._state.memory.invalidate(b"magnus:t:k")
            second = asyncio.create_task(cache.get_or_set("t", "k", loader))
        # Asked before the write is, so that it is told first that Redis is away.
        await wait_until_async(lambda: pipeline_of(wire).pending >= 1)
        first = asyncio.create_task(cache.set("t", "k", "new", ttl=60))
        await wait_until_async(lambda: pipeline_of(wire).pending >= 2)
        proxy.refuse()
        proxy.cut()
        assert await first is True
        assert await second == (True if other == "touch" else "new")
        assert await cache.get("t", "k") == "new"
        assert calls == 0
        assert len(cache._state.key_locks) == 0


# -- the locks ----------------------------------------------------------------------------------------------------


async def test_one_task_at_a_time_has_a_key() -> None:
    locks, inside, most = KeyLocks(10), 0, 0

    async def step(name: bytes) -> None:
        nonlocal inside, most
        async with locks.hold(name):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(step(b"one") for _ in range(20)))
    assert most == 1
    most = 0
    await asyncio.gather(*(step(b"%d" % number) for number in range(20)))
    assert most > 1
    assert len(locks) == 0


async def test_a_cancelled_waiter_leaves_the_lock_to_the_others() -> None:
    locks, order = KeyLocks(10), list[int]()
    release = asyncio.Event()

    async def step(number: int) -> None:
        async with locks.hold(b"k"):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(step(number)) for number in range(4)]
    await wait_until_async(lambda: order == [0])
    tasks[1].cancel()
    tasks[0].cancel()
    release.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, True, False, False]
    assert order == [0, 2, 3]
    assert len(locks) == 0


async def test_the_number_of_locks_is_bounded() -> None:
    locks, release = KeyLocks(10, most=5), asyncio.Event()

    begun = 0

    async def step(number: int) -> None:
        nonlocal begun
        begun += 1
        async with locks.hold(b"%d" % number):
            await release.wait()

    tasks = [asyncio.create_task(step(number)) for number in range(500)]
    await wait_until_async(lambda: begun == 500)
    assert len(locks) <= 5 + 64
    release.set()
    await asyncio.gather(*tasks)
    assert len(locks) == 0


async def test_a_task_does_not_wait_for_a_lock_for_ever() -> None:
    locks = KeyLocks(0.05)
    async with locks.hold(b"k"), asyncio.timeout(5), locks.hold(b"k"):
        pass
    assert len(locks) == 0


async def test_the_locks_of_a_closed_loop_are_dropped() -> None:
    locks = KeyLocks(10)

    async def stuck() -> None:
        async with locks.hold(b"k"):
            await asyncio.Event().wait()

    def elsewhere() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(stuck())
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # abandoned on purpose
        loop.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    async with locks.hold(b"k"):
        assert len(locks) == 1
    gc.collect()
    assert len(locks) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_begins_without_locks() -> None:
    with CacheManager(redis_enabled=False) as cache:
        locks = cache._state.key_locks

        async def held() -> int:
            async with locks.hold(b"k"):
                child = os.fork()
                if not child:
                    os._exit(len(locks))
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert asyncio.run(held()) == 0
