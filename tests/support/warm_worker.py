"""One process of a fleet that keeps values warm: ``python -m tests.support.warm_worker``; see `fleet_worker`."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from magnus_cache import AsyncCacheManager, AsyncKeepWarm, KeepWarm
from tests.support.fleet_worker import Worker, main

WARMED = "test:warmed:"
"""The loads of a key: a list of process ids and moments of `time.monotonic`."""


class WarmWorker(Worker):
    """A process with a job."""

    def __init__(self) -> None:
        super().__init__()
        self._job: AsyncKeepWarm | KeepWarm
        self._quote: Callable[[str], Any]
        self._reader: asyncio.Task[None]
        self._missed = self._read = 0

    def _load(self, ticker: str) -> dict[str, Any]:
        self._raw.rpush(f"{WARMED}{ticker}", f"{os.getpid()} {time.monotonic()}")
        return {"ticker": ticker}

    async def warm(self, keys: list[str], ttl: float, every: float, *, blocking: bool) -> None:
        """Begin to keep values warm."""
        cache: AsyncCacheManager = self._cache

        @cache.cached("warm", ttl=ttl, key="{ticker}")
        async def quote(ticker: str) -> dict[str, Any]:
            return self._load(ticker)

        self._quote = quote
        if blocking:
            self._job = await self.in_thread(lambda: self._sync.keep_warm(quote, keys, every, name="quotes"))
        else:
            self._job = cache.keep_warm(quote, keys, every, name="quotes")

    async def holds(self) -> bool:
        return self._job.holds

    async def job(self) -> dict[str, Any]:
        """Return what the job has done here."""
        figures = self._job.figures
        return {"holds": figures.here, "refreshed": figures.refreshed, "failed": figures.failed, "keys": figures.keys}

    async def jobs(self) -> list[tuple[str, str | None]]:
        """Return the jobs of the fleet, each with its process."""
        return [(job.name, job.process) for job in await self._cache.warm_jobs()]

    async def begin_reading(self, keys: list[str]) -> None:
        """Look for all keys again and again, without loading any."""

        async def read() -> None:
            while True:
                found = await self._cache.get_many("warm", keys)
                self._missed += len(keys) - len(found)
                self._read += len(keys)
                await asyncio.sleep(0.02)

        self._reader = asyncio.create_task(read())

    async def end_reading(self) -> tuple[int, int]:
        """Return how many values were missing, and how many were looked for."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        return self._missed, self._read


if __name__ == "__main__":
    asyncio.run(main(WarmWorker))
