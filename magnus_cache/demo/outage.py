"""Steps: Redis goes away, the application goes on, Redis comes back; or it was never there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.demo.callers import Callers, Timed
from magnus_cache.demo.stage import Stage
from magnus_cache.embedded import EmbeddedServer

__all__ = ["redis_comes_back", "redis_stops", "without_redis"]

_PATIENCE: Final = 10.0
"""Seconds to wait for what is to happen by itself."""


async def redis_stops(stage: Stage, server: EmbeddedServer) -> None:
    """Stop Redis while the application is in use, and look at what still works."""
    stage.console.step("Redis stops half-way; the application goes on with this process's memory.")
    apps = [callers.cached(stage.cache) for callers in stage.callers]
    before = [await callers.side_by_side(app) for callers, app in zip(stage.callers, apps, strict=True)]

    await asyncio.to_thread(server.stop)
    waited = await _until(_becomes(stage, available=False))
    stage.console.check(not stage.cache.redis_available, f"redis_available is False, {waited:.2f} s after the stop")

    start = stage.world.calls.snapshot()
    during = [await callers.in_turn(app) for callers, app in zip(stage.callers, apps, strict=True)]
    slowest = max(timed.milliseconds for kind in during for timed in kind)
    stage.console.check(
        _values(during) == _values(before) and not stage.world.calls.since(start),
        f"all six are served to blocking and async callers, without a call (slowest: {slowest:.2f} ms)",
    )
    await _still_works(stage)


async def redis_comes_back(stage: Stage, server: EmbeddedServer) -> None:
    """Start Redis again, and look whether the application uses it."""
    stage.console.step("Redis starts again, empty, on the same port; nobody tells the application.")
    await asyncio.to_thread(server.restart)
    waited = await _until(_becomes(stage, available=True))
    stage.console.check(stage.cache.redis_available, f"redis_available is True again, by itself, after {waited:.2f} s")

    async with stage.world.manager() as other:

        async def shared() -> bool:
            await stage.cache.set("demo", "note", "written with Redis")
            return bool(await other.get("demo", "note") == "written with Redis")

        await _until(shared)
        stage.console.check(await shared(), "what this cache stores, another manager reads from Redis")


async def without_redis(stage: Stage) -> None:
    """Look at what works without any Redis."""
    stage.console.step("There is no Redis: all of this came from this process's memory, and the cache says so.")
    stage.console.check(not stage.cache.redis_available, "redis_available is False")
    await _still_works(stage)


async def _still_works(stage: Stage) -> None:
    """Check that values are stored, read and loaded while there is no Redis."""
    cache = stage.cache
    stored = await asyncio.to_thread(cache.sync.set, "demo", "note", "written without Redis")
    read = await cache.get("demo", "note")
    stage.console.check(
        stored and read == "written without Redis", "what a blocking cache.set stores, an async cache.get finds"
    )

    start = stage.world.calls.snapshot()
    prices = [await _price(callers, cache, "TSLA") for callers in stage.callers]
    made = stage.world.calls.since(start)["stock_price"]
    stage.console.check(made == 1 and prices[0] == prices[1], "a price not asked for before is loaded once, and kept")


async def _price(callers: Callers, cache: AsyncCacheManager, ticker: str) -> object:
    app = callers.cached(cache)
    return (await callers.timed(lambda: app.get_stock_price(ticker))).value


def _values(rounds: list[list[Timed]]) -> list[list[object]]:
    return [[timed.value for timed in one_round] for one_round in rounds]


def _becomes(stage: Stage, *, available: bool) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return stage.cache.redis_available is available

    return reached


async def _until(reached: Callable[[], Awaitable[bool]]) -> float:
    """Wait until something has happened by itself, or for as long as the demo's patience; return the seconds."""
    started = monotonic()
    while not await reached() and monotonic() < started + _PATIENCE:  # noqa: ASYNC110  # what is awaited tells nobody
        await asyncio.sleep(0.01)
    return monotonic() - started
