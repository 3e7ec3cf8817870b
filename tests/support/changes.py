"""What consumers of `changes` are told, within a bounded time."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from magnus_cache import AsyncCacheManager, AsyncChanges, Change, Invalidated, Lost
from tests.support import managers as several

__all__ = ["PATIENT", "Told", "managers", "step"]

PATIENCE: Final = 30.0
"""Seconds in which a change must be told, on a busy machine too."""

PATIENT: Final = {"op_timeout": 10.0}
"""For caches whose writes have to reach Redis, however busy the machine is."""


def managers(url: str, count: int = 2, **options: Any) -> AbstractAsyncContextManager[list[AsyncCacheManager]]:
    """Open some caches of one Redis, and close them; their writes reach Redis on a busy machine too."""
    return several.managers(url, count, **(PATIENT | options))


async def step(changes: AsyncChanges) -> Change:
    """Return the next change."""
    return await asyncio.wait_for(anext(changes), PATIENCE)


class Told:
    """Collects what an iterator yields."""

    def __init__(self, changes: AsyncChanges) -> None:
        self.changes = changes
        self.all: list[Change] = []

    async def until(self, condition: Callable[[list[Change]], object]) -> list[Change]:
        """Return what was told so far, once a condition about it holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition(self.all):
                self.all.append(await anext(self.changes))
        return self.all

    async def key(self, key: Any) -> None:
        """Return once a key was told from now on, or what stands for it."""
        start = len(self.all)
        await self.until(lambda told: any(_is(change, key) for change in told[start:]))

    async def gap(self) -> Lost:
        """Return the next gap that is told."""
        start = len(self.all)
        await self.until(lambda told: any(isinstance(change, Lost) for change in told[start:]))
        return next(change for change in self.all[start:] if isinstance(change, Lost))


def _is(change: Change, key: Any) -> bool:
    """Return whether a change is that of a key, or stands for it: a gap, and the invalidation of all values."""
    every = isinstance(change, Invalidated) and change.tag is None and change.function is None
    return isinstance(change, Lost) or every or getattr(change, "key", None) == key
