"""A manager that is dropped and not closed: it warns, and leaves no thread, no connection and no load."""

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.runtime.critical import section
from magnus_cache.testing import Proxy
from tests.support import leaks
from tests.support.wait import wait_until, wait_until_async


@contextmanager
def told(times: int = 1) -> Iterator[None]:
    """Expect so many warnings of dropped managers, and no other."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]
    assert len(found) == times, found
    for message in found:
        assert "was dropped without being closed: call its close() (await aclose() in async code)" in message
        # As it was when it was dropped.
        assert " closed)" not in message


def nothing_left(raw: redis.Redis, clients: int) -> Callable[[], bool]:
    return lambda: len(raw.client_list()) == clients and not leaks.threads()


def test_a_blocking_manager(url: str, raw: redis.Redis) -> None:
    clients = len(raw.client_list())
    with told(5):
        for number in range(5):
            assert CacheManager(redis_url=url).set("t", "k", number)
    wait_until(nothing_left(raw, clients))


def test_a_blocking_manager_without_redis() -> None:
    with told():
        CacheManager(redis_enabled=False).set("t", "k", 1)
    wait_until(lambda: not leaks.threads())


@pytest.mark.anyio
async def test_an_async_manager(url: str, raw: redis.Redis) -> None:
    clients, tasks = len(raw.client_list()), len(asyncio.all_tasks())
    with told(5):
        for number in range(5):
            assert await AsyncCacheManager(redis_url=url).set("t", "k", number)
    await wait_until_async(lambda: len(asyncio.all_tasks()) == tasks)
    await wait_until_async(nothing_left(raw, clients))


def test_an_async_manager_after_its_loop(url: str, raw: redis.Redis) -> None:
    clients = len(raw.client_list())
    cache = AsyncCacheManager(redis_url=url)
    asyncio.run(cache.set("t", "k", 1))
    with told():
        del cache
    cache = AsyncCacheManager(redis_url=url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cache.set("t", "k", 1))
    loop.close()
    with told():
        del cache
    wait_until(nothing_left(raw, clients))


def test_one_that_was_not_used_or_was_closed_says_nothing(url: str) -> None:
    with told(0):
        CacheManager(redis_url=url)
        AsyncCacheManager(redis_url=url)
        with CacheManager(redis_url=url) as cache:
            cache.set("t", "k", 1)
        del cache

        async def use() -> None:
            async with AsyncCacheManager(redis_url=url) as other:
                await other.set("t", "k", 1)

        asyncio.run(use())
        gc.collect()


def test_another_face_and_decorated_functions_keep_it(url: str) -> None:
    def decorated(cache: CacheManager) -> Any:
        @cache.cached("t")
        def double(number: int) -> int:
            return 2 * number

        @cache.cached_many("t")
        def doubles(numbers: list[int]) -> dict[int, int]:
            return {number: 2 * number for number in numbers}

        class Service:
            @cache.cached("t")
            def double(self, number: int) -> int:
                return 2 * number

            def __magnus_key__(self) -> int:
                return 1

        return double, doubles, cache.aio

    with told(0):
        cache = CacheManager(redis_url=url)
        double, doubles, face = decorated(cache)
        assert double(2) == 4
        del cache
        gc.collect()
        assert double(3) == 6
        assert doubles([3, 4]) == {3: 6, 4: 8}
        del double, face
        gc.collect()
        assert doubles([5]) == {5: 10}
    with told():
        del doubles
        gc.collect()
    wait_until(lambda: not leaks.threads())


def test_one_dropped_on_another_thread(url: str, raw: redis.Redis) -> None:
    clients = len(raw.client_list())
    held = [CacheManager(redis_url=url)]
    held[0].set("t", "k", 1)
    with told():
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
    wait_until(nothing_left(raw, clients))


def test_one_dropped_on_its_own_background_loop(url: str, raw: redis.Redis) -> None:
    clients = len(raw.client_list())
    held = [CacheManager(redis_url=url)]
    held[0].set("t", "k", 1)
    portal = held[0]._state.portal
    with told():
        portal.submit(held.clear)
        wait_until(nothing_left(raw, clients))


def test_one_collected_within_a_step_of_another(url: str, raw: redis.Redis) -> None:
    """The collector runs in the midst of a call, in a critical section, where nothing may be waited for."""
    clients = len(raw.client_list())

    class Owner:
        def __init__(self) -> None:
            self.cache = CacheManager(redis_url=url)
            self.me = self

    gc.collect()
    gc.disable()
    try:
        with told():
            Owner().cache.set("t", "k", 1)
            with section():
                gc.collect()
    finally:
        gc.enable()
    wait_until(nothing_left(raw, clients))


def test_one_that_warns_by_an_error_is_ended_all_the_same(url: str, raw: redis.Redis) -> None:
    clients, seen = len(raw.client_list()), list[Any]()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr("sys.unraisablehook", seen.append)
        CacheManager(redis_url=url).set("t", "k", 1)
    assert isinstance(seen[0].exc_value, ResourceWarning)
    seen.clear()
    wait_until(nothing_left(raw, clients))


@pytest.mark.anyio
async def test_a_refresh_that_goes_on_is_cancelled(url: str) -> None:
    cancelled = asyncio.Event()

    async def hang() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1

    cache = AsyncCacheManager(redis_url=url)
    with pytest.raises(TimeoutError):
        await cache.get_or_set("t", "k", hang, hard_timeout=0.3)
    with told():
        del cache
        async with asyncio.timeout(10):
            await cancelled.wait()


def test_what_redis_was_not_told_is_told_at_last(proxy: Proxy, url: str) -> None:
    with CacheManager(redis_url=url) as other:
        other.set("t", "k", 1)
        cache = CacheManager(redis_url=proxy.url, op_timeout=1)
        cache.set("t", "l", 1)
        proxy.refuse()
        proxy.cut()
        cache.delete("t", "k")
        assert cache._state.outbox.pending
        proxy.resume()
        outbox = cache._state.outbox
        with told():
            del cache
            wait_until(lambda: not outbox.pending)
        wait_until(lambda: other.get("t", "k") is None)
        wait_until(lambda: len(leaks.threads()) == 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_one_dropped_in_a_forked_child(used: bool, url: str, raw: redis.Redis) -> None:
    """The child has its own to end, or nothing; its parent's connection goes on."""
    cache = CacheManager(redis_url=url)
    cache.set("t", "k", 1)
    held, number = [cache], raw.client_list()[-1]["id"]
    del cache
    child = os.fork()
    if not child:
        try:
            clients = len(raw.client_list())
            if used:
                assert held[0].get("t", "k") == 1
            with told(used):
                held.clear()
            wait_until(nothing_left(raw, clients))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    # Not one that was made anew.
    assert held[0].set("t", "k", 2)
    assert number in [client["id"] for client in raw.client_list()]
    held[0].close()
