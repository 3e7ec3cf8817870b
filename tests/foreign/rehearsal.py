"""A call of a real client in a cached function, as a program sees it: cold, warm, from elsewhere, and in an outage."""

import asyncio
from collections.abc import Callable
from typing import Any

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.support.kinds import alike

__all__ = ["rehearse", "rehearse_async", "same"]

SETTINGS: dict[str, Any] = {"op_timeout": 0.3}


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same throughout: of the same types, equal, and frames equal in each detail."""
    kind = type(one)
    if type(other) is not kind and not (isinstance(one, tuple) and hasattr(one, "_fields")):
        return False
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        named = (kind.__name__, one._fields) == (type(other).__name__, getattr(other, "_fields", None))
        return named and len(one) == len(other) and all(map(same, one, other))
    if kind.__module__.partition(".")[0] == "pandas":
        from pandas import testing

        check = testing.assert_frame_equal if kind.__name__ == "DataFrame" else testing.assert_series_equal
        check(one, other, check_freq=True, check_flags=True)
        return True
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if one != one:
        return bool(other != other)
    return alike(one, other)


def rehearse(
    server: EmbeddedServer, call: Callable[[int], Any], asked: Callable[[], int], returns: Any = None,
    content: Callable[[Any], Any] = lambda value: value,
) -> Any:  # fmt: skip
    """Call a blocking function through two caches, as two processes would, and without Redis; return its result.

    :param call: asks the client; its argument only tells keys apart.
    :param asked: returns how often the vendor was asked.
    :param returns: the annotation of its result.
    :param content: returns what of a result is the same each time the vendor is asked.
    """
    with (
        Proxy(server.port) as proxy,
        CacheManager(redis_url=proxy.url, **SETTINGS) as near,
        CacheManager(redis_url=server.url) as far,
    ):
        here, there = (
            each.cached("trial", ttl=600, key_func=lambda number: number, returns=returns)(call)
            for each in (near, far)
        )  # fmt: skip
        before = asked()
        cold = here(1)
        once = asked()
        assert once > before
        for value in (here(1), there(1), there(1)):
            assert same(cold, value)
        assert asked() == once
        counts = near.get_stats()["namespaces"]["trial"]
        assert (counts["stores"], counts["unstorable"]) == (1, 0)
        proxy.refuse()
        proxy.cut()
        assert same(cold, here(1))
        assert asked() == once
        other = here(2)
        assert same(content(cold), content(other))
        assert asked() > once
        again = asked()
        assert same(other, here(2))
        assert asked() == again
    return cold


async def rehearse_async(
    server: EmbeddedServer, call: Callable[[int], Any], asked: Callable[[], int], returns: Any = None,
    content: Callable[[Any], Any] = lambda value: value,
) -> Any:  # fmt: skip
    """Do what `rehearse` does, with a coroutine function, or a blocking one in a thread."""

    async def load(number: int) -> Any:
        if asyncio.iscoroutinefunction(call):
            return await call(number)
        return await asyncio.to_thread(call, number)

    with Proxy(server.port) as proxy:
        async with (
            AsyncCacheManager(redis_url=proxy.url, **SETTINGS) as near,
            AsyncCacheManager(redis_url=server.url) as far,
        ):
            here, there = (
                each.cached("trial", ttl=600, key_func=lambda number: number, returns=returns)(load)
                for each in (near, far)
            )  # fmt: skip
            cold, joined = await asyncio.gather(here(1), here(1))
            once = asked()
            for value in (joined, await here(1), await there(1), await there(1)):
                assert same(cold, value)
            assert asked() == once
            counts = (await near.get_stats())["namespaces"]["trial"]
            assert (counts["stores"], counts["unstorable"]) == (1, 0)
            proxy.refuse()
            proxy.cut()
            assert same(cold, await here(1))
            assert asked() == once
            assert same(content(cold), content(await here(2)))
            assert asked() > once
    return cold
