"""Managers with near caches of their own, as in so many processes, and what a test asks of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from magnus_cache import AsyncCacheManager


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


class Slow:
    """A loader that a test lets go on when it likes; counts its calls and returns their number."""

    def __init__(self) -> None:
        self.calls = 0
        self.began: list[asyncio.Event] = []
        self.go: list[asyncio.Event] = []

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        self.event(self.began, number).set()
        await self.event(self.go, number).wait()
        return number

    def event(self, events: list[asyncio.Event], number: int) -> asyncio.Event:
        while len(events) < number:
            events.append(asyncio.Event())
        return events[number - 1]

    async def begun(self, number: int = 1) -> None:
        async with asyncio.timeout(10):
            await self.event(self.began, number).wait()

    def finish(self, number: int = 1) -> None:
        self.event(self.go, number).set()
