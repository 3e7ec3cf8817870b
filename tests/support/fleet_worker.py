"""One process of a fleet under test: ``python -m tests.support.fleet_worker``; `tests.support.fleet` starts it.

It does what it is told on its standard input, one JSON object a line, ``{"id": 1, "do": "get", ...}``, any number of
requests at a time, and answers on its standard output: ``{"id": 1, "result": ...}`` or ``{"id": 1, "error": "..."}``.
Moments are seconds of `time.monotonic`, on one machine the same clock for all processes. It ends with its input.
"""

import asyncio
import json
import os
import random
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from magnus_cache import AsyncCacheManager, CacheBudgetError, CacheManager, Namespace, RetryLater

PATIENCE = 25
"""Seconds that a load waits at its gate, or a crowd for its last member."""

LOADS = "test:loads:"
"""How often a key was loaded; by `INCR`, through a plain client, beside the prefix of the cache."""

HOLDERS = "test:holders:"
"""The process ids of those that loaded a key, in that order."""

Read = tuple[str, float, float, int | None]
"""A read of `read`: key, when it began, when it ended, and the event that the value was of."""

Event = tuple[str, int, str, float, float]
"""An event of `write`: key, number, ``"set"`` or ``"delete"``, when it began, when it was completed."""


class Worker:
    """The requests, each a method."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(300)
        self._cache: AsyncCacheManager
        self._sync: CacheManager
        self._raw: redis.Redis
        self._readers: list[asyncio.Task[list[Read]]] = []
        self._reading = False

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return what a blocking call returns. Not `to_thread`, which has but a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    # -- life -------------------------------------------------------------------------------------------------

    async def open(self, url: str, server: str, options: dict[str, Any]) -> int:
        """Make the cache, and a plain client that goes past all proxies; return the process id."""
        self._cache = AsyncCacheManager(redis_url=url, **options)
        self._sync = self._cache.sync
        self._raw = redis.Redis.from_url(server, protocol=2, socket_timeout=2 * PATIENCE)
        self._raw.ping()
        # Both faces are connected, and know this namespace's epochs: what follows costs no handshakes.
        await self._cache.get("t", "nothing")
        await self.in_thread(self._sync.get, "t", "nothing")
        return os.getpid()

    async def close(self) -> None:
        await self._cache.aclose()
        self._raw.close()

    # -- operations -------------------------------------------------------------------------------------------

    async def get(self, namespace: str, key: str) -> Any:
        return await self._cache.get(namespace, key)

    async def get_blocking(self, namespace: str, key: str) -> Any:
        return await self.in_thread(self._sync.get, namespace, key)

    async def get_many(self, namespace: str, keys: list[str]) -> dict[str, Any]:
        return await self._cache.get_many(namespace, keys)

    async def set_many(self, namespace: str, mapping: dict[str, Any]) -> None:
        await self._cache.set_many(namespace, mapping)

    async def set(self, namespace: str, key: str, value: Any) -> float:
        """Return when it was completed, as `delete` and `clear` do."""
        await self._cache.set(namespace, key, value)
        return time.monotonic()

    async def delete(self, namespace: str, key: str) -> float:
        await self._cache.delete(namespace, key)
        return time.monotonic()

    async def clear(self, namespace: str) -> float:
        await self._cache.clear(namespace)
        return time.monotonic()

    async def call(self, method: str, *, blocking: bool, arguments: list[Any], options: dict[str, Any]) -> Any:
        """Do anything else that both faces can."""
        if blocking:
            return await self.in_thread(lambda: getattr(self._sync, method)(*arguments, **options))
        return await getattr(self._cache, method)(*arguments, **options)

    async def count(self, key: str, times: int, how: str) -> list[int]:
        """Add one to a value many times, by eight tasks or threads at a time; return the numbers that came of it."""

        def one_more(value: int) -> int:
            return value + 1

        async def some(count: int) -> list[int]:
            return [
                await self._cache.incr("t", key) if how == "incr"
                else await self._cache.update("t", key, one_more, default=0) if how == "update"
                else await self.in_thread(self._sync.incr, "t", key) if how == "incr_blocking"
                else await self.in_thread(lambda: self._sync.update("t", key, one_more, default=0))
                for _ in range(count)
            ]  # fmt: skip

        parts = await asyncio.gather(*(some(times // 8) for _ in range(8)))
        return [number for numbers in parts for number in numbers]

    async def stats(self) -> dict[str, Any]:
        """Return the figures; as replies come in order with pushes, all that was announced is known by then."""
        return dict(await self._cache.get_stats())

    async def waiting(self, namespace: str) -> tuple[int, int]:
        """Return how many callers have not found their value, and how many ever joined the load of another.

        It takes no exchange with Redis, as `stats` would, and so disturbs nothing.
        """
        state = self._cache._engine.state
        return state.stats.of(namespace).misses, state.flights.joined

    # -- loads ------------------------------------------------------------------------------------------------

    def load(self, key: str, seconds: float, gate: str | None, gated: int) -> dict[str, Any]:
        """Be the loader: count, and come back after some time, or the first `gated` loads after the gate opened."""
        number = int(str(self._raw.incr(f"{LOADS}{key}")))
        self._raw.rpush(f"{HOLDERS}{key}", os.getpid())
        if gate is not None and number <= gated:
            self._raw.blpop([gate], PATIENCE)
        time.sleep(seconds)
        return {"load": number, "pid": os.getpid()}

    async def crowd(
        self, namespace: str, key: str, tasks: int = 0, threads: int = 0, at: float = 0.0,
        seconds: float = 0.0, gate: str | None = None, gated: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask for a value from many tasks and threads at one moment; return what they got, and when."""

        def load() -> dict[str, Any]:
            return self.load(key, seconds, gate, gated)

        async def load_async() -> Any:
            return await self.in_thread(load)

        async def call() -> Any:
            await asyncio.sleep(at - time.monotonic())
            return await self._cache.get_or_set(namespace, key, load_async)

        def call_blocking() -> Any:
            all_there.wait(PATIENCE)
            time.sleep(max(0.0, at - time.monotonic()))
            return self._sync.get_or_set(namespace, key, load)

        all_there = threading.Barrier(max(1, threads))
        blocked = [self.in_thread(call_blocking) for _ in range(threads)]
        began = time.monotonic()
        results = await asyncio.gather(*blocked, *(call() for _ in range(tasks)), return_exceptions=True)
        values = [result for result in results if not isinstance(result, BaseException)]
        errors = [repr(result) for result in results if isinstance(result, BaseException)]
        return {"values": values, "errors": errors, "began": began, "ended": time.monotonic()}

    # -- histories --------------------------------------------------------------------------------------------

    async def write(
        self, namespace: str, keys: list[str], versions: int, deletes: float, pause: float, seed: int
    ) -> list[Event]:
        """Set values one after another, some of them after a delete, through both faces; the value is the number."""
        chance, events, number = random.Random(seed), list[Event](), 0

        async def done(key: str, what: str, call: Awaitable[object]) -> None:
            began = time.monotonic()
            await call
            events.append((key, number, what, began, time.monotonic()))

        for _ in range(versions):
            key, blocking = chance.choice(keys), chance.random() < 0.3
            if chance.random() < deletes:
                number += 1
                await done(key, "delete", self._cache.delete(namespace, key))
            number += 1
            if blocking:
                await done(key, "set", self.in_thread(self._sync.set, namespace, key, number))
            else:
                await done(key, "set", self._cache.set(namespace, key, number))
            # Bursts and lulls: a fill races with a write in the former, the near cache serves in the latter.
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * pause)
        return events

    async def read(self, namespace: str, keys: list[str], tasks: int, pause: float, seed: int) -> None:
        """Begin to read random keys, until told `stop_reading`."""
        self._reading = True

        async def reads(chance: random.Random) -> list[Read]:
            log: list[Read] = []
            while self._reading:
                key = chance.choice(keys)
                began = time.monotonic()
                value = await self._cache.get(namespace, key)
                log.append((key, began, time.monotonic(), value))
                await asyncio.sleep(chance.random() * pause)
            return log

        self._readers = [asyncio.create_task(reads(random.Random(seed + index))) for index in range(tasks)]

    async def stop_reading(self) -> list[Read]:
        self._reading = False
        return [read for log in await asyncio.gather(*self._readers) for read in log]

    # -- budgets ----------------------------------------------------------------------------------------------

    async def ask_source(
        self, source: str, keys: list[str], budget: str | None, hard_timeout: float
    ) -> list[str]:  # fmt: skip
        """Load keys from an HTTP server that limits calls, all at once; return the values, or names of errors."""
        namespace = Namespace("limited", ttl=60, budget=budget, hard_timeout=hard_timeout)

        def fetch(key: str) -> str:
            try:
                with urllib.request.urlopen(f"{source}?{key}", timeout=PATIENCE) as reply:  # of this machine
                    return str(reply.read().decode())
            except urllib.error.HTTPError as error:
                with error:
                    raise RetryLater(float(error.headers["Retry-After"])) from error

        async def get(key: str) -> str:
            try:
                return await self._cache.get_or_set(namespace, key, lambda: fetch(key))
            except CacheBudgetError as error:
                return type(error).__name__

        return list(await asyncio.gather(*map(get, keys)))

    # -- the conversation -------------------------------------------------------------------------------------

    async def answer(self, request: dict[str, Any]) -> None:
        number, do = request.pop("id"), request.pop("do")
        try:
            answer = {"id": number, "result": await getattr(self, do)(**request)}
        except Exception:
            answer = {"id": number, "error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


async def main(kind: type[Worker] = Worker) -> None:
    worker, loop = kind(), asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    def begin(request: dict[str, Any]) -> None:
        task = loop.create_task(worker.answer(request))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(begin, json.loads(line))
        # Nobody is left to answer to, whatever is still under way.
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
