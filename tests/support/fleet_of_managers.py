"""Managers with near caches of their own, as in so many processes, and what a test asks of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from magnus_cache import AsyncCacheManager
from tests.support.loaders import Slow


@asynccontextmanager
async def fleet(url: str, count: int = 2, **options: Any) -> AsyncIterator[list[AsyncCacheManager]]:
    managers = [AsyncCacheManager(redis_url=url, **options) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for manager in managers:
            stack.push_async_callback(manager.aclose)
        yield managers


def near(manager: AsyncCacheManager, namespace: str, key: str) -> bool:
    """Whether the near cache would serve the value now."""
    state = manager._engine.state
    return state.memory.hit(state.keyspace.value_name(namespace, key)) is not None


async def kept(manager: AsyncCacheManager, namespace: str, key: str) -> None:
    """Return once a value that this manager has just written is in its memory to stay.

    Where Redis announces all changes of a prefix, also our own, that takes it out of memory, and a read puts it back.
    """
    # The announcement comes before the answer.
    await manager.get_stats()
    await manager.get(namespace, key)


async def expect_two_loads(manager: AsyncCacheManager, slow: Slow, first: "asyncio.Task[int]") -> None:
    """Check that a new call for ``t:k`` does not join the load of the first call, but begins one of its own."""
    late = asyncio.create_task(manager.get_or_set("t", "k", slow))
    await slow.begun(2)
    slow.finish()
    slow.finish(2)
    assert (await first, await late) == (1, 2)
