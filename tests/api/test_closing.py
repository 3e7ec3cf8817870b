"""Closing, by whatever name and in whatever code: awaited or not, on either manager."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.errors import CacheBatchError, CacheClosedError
from magnus_cache.testing import no_leaks
from tests.support.inside import wires_of

WAYS: dict[str, Callable[[CacheManager], Awaitable[None]]] = {
    "async close": lambda cache: cache.aio.close(),
    "async aclose": lambda cache: cache.aio.aclose(),
    "blocking close": lambda cache: cache.close(),
    "blocking aclose": lambda cache: cache.aclose(),
}


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_each_way_of_closing_can_be_awaited(url: str, way: str) -> None:
    async with no_leaks():
        cache = CacheManager(redis_url=url)
        await cache.aio.set("t", "k", 1)
        cache.get("t", "unknown")
        ended = [wire.ended for wire in wires_of(cache)]
        assert len(ended) == 2
        await WAYS[way](cache)
        # Awaited, it is complete: no turn of the loop later.
        assert all(end.done() for end in ended)
        await WAYS[way](cache)
        with pytest.raises(CacheClosedError):
            await cache.aio.get("t", "k")


def test_what_closing_returns_need_not_be_awaited(url: str) -> None:
    with no_leaks():
        cache = CacheManager(redis_url=url)
        cache.set("t", "k", 1)
        with contextlib.closing(cache):
            pass
        assert "closed" in repr(cache)


@pytest.mark.anyio
async def test_async_with_takes_either_manager(url: str) -> None:
    for kind in (CacheManager, AsyncCacheManager):
        manager: Any = kind(redis_url=url)
        async with manager as cache:
            assert cache is manager
            await cache.aio.set("t", "k", 1)
        with pytest.raises(CacheClosedError):
            await cache.aio.set("t", "k", 1)
        with pytest.raises(CacheClosedError):
            async with manager:
                pass


@pytest.mark.anyio
async def test_a_cancelled_close_still_closes(url: str) -> None:
    async with no_leaks():
        cache = AsyncCacheManager(redis_url=url)
        await cache.set("t", "k", 1)
        task = asyncio.create_task(cache.close())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert cache._state.closed
        await cache.aclose()


def test_disabled_holds_in_every_thread_and_task(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        calls: list[str] = []

        @cache.cached("t")
        def function(name: str) -> str:
            calls.append(name)
            return name

        @cache.cached("t")
        async def coroutine_function(name: str) -> str:
            calls.append(name)
            return name

        async def twice() -> None:
            await coroutine_function("task")
            await coroutine_function("task")

        begun, go = threading.Event(), threading.Event()

        def other() -> None:
            # A thread that was there before, as those of a server are.
            begun.set()
            assert go.wait(10)
            function("thread")
            function("thread")
            asyncio.run(twice())

        thread = threading.Thread(target=other)
        thread.start()
        assert begun.wait(10)
        with cache.disabled():
            go.set()
            thread.join()
            with cache.aio.disabled():
                pass
            assert cache.get("t", "k") is None
            function("here")
            function("here")
        assert calls == ["thread", "thread", "task", "task", "here", "here"]
        function("here")
        function("here")
        assert calls[6:] == ["here"]


def test_bypass_is_for_the_caller_alone(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        found: list[Any] = []
        with cache.bypass():
            thread = threading.Thread(target=lambda: found.append(cache.get("t", "k")))
            thread.start()
            thread.join()
            assert cache.get("t", "k") is None
            with cache.disabled():
                assert cache.set("t", "k", 2) is False
        assert found == [1]


KEYS = ["a", "b", "c"]


@pytest.mark.anyio
@pytest.mark.parametrize("number", [1, 3])
async def test_a_batch_that_is_under_way_fails_as_one_call_does(url: str, number: int) -> None:
    begun = asyncio.Event()

    async def load(_keys: list[str]) -> dict[str, int]:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    cache = AsyncCacheManager(redis_url=url)
    task = asyncio.create_task(cache.get_or_set_many("t", KEYS[:number], load))
    await begun.wait()
    await cache.close()
    with pytest.raises(CacheClosedError):
        await task


@pytest.mark.anyio
async def test_a_closed_cache_within_a_batch_loader_is_an_error_of_its_keys(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        errors = {key: CacheClosedError("another one") for key in KEYS}
        with pytest.raises(CacheBatchError) as caught:
            await cache.get_or_set_many("t", KEYS, lambda _: errors)
        assert caught.value.errors == errors
