"""Traffic of several caches on the same keys while something happens to their servers: no error, nothing too old."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Final

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import StalenessChecker
from tests.support.inside import state_of
from tests.support.wait import wait_until_async

BOUND: Final = 1.0

KEYS: Final = [f"k{number}" for number in range(60)]

_LEAST_READS: Final = 100

# While the servers are away, each call asks the source: then no read is excused.
STRICT: Final = Namespace("t", offline=0)


class Traffic:
    """Writers and readers on caches of their own; the readers are judged by what the writers were told is done."""

    def __init__(self, url: str) -> None:
        self.writer = AsyncCacheManager(redis_url=url)
        self.readers = [AsyncCacheManager(redis_url=url) for _ in range(2)]
        self.checker = StalenessChecker(BOUND)
        self.source = dict.fromkeys(KEYS, 0)
        self._told = 0
        self._untold: list[tuple[str, int]] = []
        self._over = False

    async def _changes(self) -> None:
        while not self._over:
            key = random.choice(KEYS)
            self.source[key] += 1
            version = self.source[key]
            if random.random() < 0.5:
                await self.writer.set(STRICT, key, version)
            else:
                await self.writer.delete(STRICT, key)
            self._done((key, version))
            await asyncio.sleep(0.002)

    async def _clears(self) -> None:
        while not self._over:
            await asyncio.sleep(0.5)
            for key in KEYS:
                self.source[key] += 1
            done = list(self.source.items())
            await self.writer.clear(STRICT)
            self._done(*done)

    def _done(self, *versions: tuple[str, int]) -> None:
        """Count changes as published once Redis was told of them."""
        self._untold += versions
        if not state_of(self.writer).outbox.pending:
            told, self._untold = self._untold, []
            self._told += len(told)
            for key, version in told:
                self.checker.published(key, version)

    async def _reads(self, cache: AsyncCacheManager) -> None:
        while not self._over:
            key = random.choice(KEYS)

            async def load(key: str = key) -> int:
                return self.source[key]

            began = monotonic()
            self.checker.read(key, await cache.get_or_set(STRICT, key, load), began)
            await asyncio.sleep(0)

    async def during(self, fault: Awaitable[object]) -> None:
        """Keep on while something happens to the servers, and for a while after it."""
        async with self.writer, self.readers[0], self.readers[1], asyncio.TaskGroup() as group:
            for work in (self._changes(), self._clears(), *map(self._reads, self.readers)):
                group.create_task(work)
            await asyncio.sleep(0.5)
            await fault
            await asyncio.sleep(2 * BOUND)
            # Else no read was judged. A machine that does much else takes longer.
            await wait_until_async(lambda: self._told > len(KEYS) and self.checker.check().reads > _LEAST_READS)
            self._over = True
        assert not state_of(self.writer).outbox.pending
