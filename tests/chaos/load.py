"""Callers: half of them tasks, half threads, on two caches, over a few hundred keys. They read, load and invalidate."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from magnus_cache import AsyncCacheManager
from tests.chaos.ledger import Cache, Ledger
from tests.chaos.world import World

__all__ = ["Callers", "Seen"]

KEYS = [f"k{number}" for number in range(200)]
TAGS = 10
LOAD = 0.005
"""Seconds that the source takes."""

PAUSE = 0.08
"""Seconds on average between two calls of one caller: so that two cores suffice for two hundred."""


@dataclass
class Seen:
    """What callers saw since it was last asked."""

    latencies: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def tags(key: str) -> tuple[str, ...]:
    return (f"tag{int(key[1:]) % TAGS}",)


class Callers:
    """Two hundred callers, until they are told to stop."""

    def __init__(self, world: World, count: int = 200) -> None:
        self._world = world
        self._count = count
        self._over = threading.Event()
        self._seen = Seen()

    def take(self) -> Seen:
        """Return what was seen so far, and begin anew."""
        seen, self._seen = self._seen, Seen()
        return seen

    async def run(self) -> None:
        """Let them call until `stop`."""
        threads = ThreadPoolExecutor(self._count // 2, thread_name_prefix="chaos")
        loop = asyncio.get_running_loop()
        try:
            blocking = [loop.run_in_executor(threads, self._thread, number) for number in range(self._count // 2)]
            await asyncio.gather(*(self._task(number) for number in range(self._count - self._count // 2)), *blocking)
        finally:
            self._over.set()
            threads.shutdown()

    def stop(self) -> None:
        self._over.set()

    async def _task(self, number: int) -> None:
        dice = random.Random(number)
        while not self._over.is_set():
            which = dice.randrange(2)
            call = _Call(self._world.ledger, self._world.caches[which], self._world.managers[which], dice)
            began = time.monotonic()
            try:
                await call.awaited()
            except Exception as error:  # whatever it is, a caller has seen it
                self._seen.errors.append(error)
            self._seen.latencies.append(time.monotonic() - began)
            await asyncio.sleep(dice.expovariate(1 / PAUSE))

    def _thread(self, number: int) -> None:
        dice = random.Random(1000 + number)
        while not self._over.is_set():
            which = dice.randrange(2)
            call = _Call(self._world.ledger, self._world.caches[which], self._world.managers[which], dice)
            began = time.monotonic()
            try:
                call.blocking()
            except Exception as error:  # likewise
                self._seen.errors.append(error)
            self._seen.latencies.append(time.monotonic() - began)
            self._over.wait(dice.expovariate(1 / PAUSE))


class _Call:
    """One call: which, on what, decided by dice."""

    def __init__(self, ledger: Ledger, cache: Cache, manager: AsyncCacheManager, dice: random.Random) -> None:
        self._ledger = ledger
        self._cache = cache
        self._manager = manager
        # Some keys are much asked for.
        self._key = KEYS[min(int(dice.expovariate(1 / 40)), len(KEYS) - 1)]
        self._kind = dice.choices(["load", "get", "delete", "delete_many", "tag"], [70, 20, 6, 2, 2])[0]

    async def awaited(self) -> None:
        async def load() -> list[Any]:
            value = self._ledger.load(self._key)
            await asyncio.sleep(LOAD)
            return value

        manager, key = self._manager, self._key
        if self._kind == "load":
            await self._read(lambda: manager.get_or_set("chaos", key, load, 60, tags(key)))
        elif self._kind == "get":
            await self._read(lambda: manager.get("chaos", key))
        else:
            keys = self._touched()
            versions = self._ledger.change(keys)
            if self._kind == "tag":
                await manager.invalidate_tags(*tags(key))
            elif self._kind == "delete":
                await manager.delete("chaos", key)
            else:
                await manager.delete_many("chaos", keys)
            self._ledger.told(self._cache, versions)

    async def _read(self, read: Callable[[], Awaitable[Any]]) -> None:
        floor, began = self._ledger.begins(self._cache, self._key), time.monotonic()
        value = await read()
        if value is not None:
            self._ledger.ended(self._cache, self._key, value, began, floor)

    def blocking(self) -> None:
        def load() -> list[Any]:
            value = self._ledger.load(self._key)
            time.sleep(LOAD)
            return value

        manager, key = self._manager.sync, self._key
        if self._kind in {"load", "get"}:
            floor, began = self._ledger.begins(self._cache, key), time.monotonic()
            if self._kind == "load":
                value = manager.get_or_set("chaos", key, load, 60, tags(key))
            else:
                value = manager.get("chaos", key)
            if value is not None:
                self._ledger.ended(self._cache, key, value, began, floor)
            return
        keys = self._touched()
        versions = self._ledger.change(keys)
        if self._kind == "tag":
            manager.invalidate_tags(*tags(key))
        elif self._kind == "delete":
            manager.delete("chaos", key)
        else:
            manager.delete_many("chaos", keys)
        self._ledger.told(self._cache, versions)

    def _touched(self) -> list[str]:
        if self._kind == "tag":
            return [key for key in KEYS if tags(key) == tags(self._key)]
        if self._kind == "delete":
            return [self._key]
        first = KEYS.index(self._key)
        return KEYS[first : first + 5]
