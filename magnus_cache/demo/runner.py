"""The demo from beginning to end."""

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.demo.before_after import before_and_after
from magnus_cache.demo.callers import both_kinds
from magnus_cache.demo.console import Console
from magnus_cache.demo.crowd import one_load_for_many
from magnus_cache.demo.outage import redis_comes_back, redis_stops, without_redis
from magnus_cache.demo.stage import Stage
from magnus_cache.demo.world import World, open_world

__all__ = ["run_demo"]

_THREADS: Final = 64
"""More than there are callers at a time, so that none of them waits for a thread."""

_FAREWELL: Final = 5.0
"""Seconds that a thread may take to end once it has nothing left to do."""


def run_demo(*, speed: float = 1.0, with_server: bool = True, console: Console | None = None) -> bool:
    """Run the demo and return whether all its promises held.

    :param speed: how many times faster than in the guide the sources are; 1 or more.
    :param with_server: whether to start a Redis; without, the cache runs on its memory fallback.
    """
    console = console or Console()
    started = monotonic()
    threads = set(threading.enumerate())
    console.title("magnus_cache demo: the six workloads of the guide before and after, on made-up data")
    if speed != 1:
        console.say(f"All sources are {speed:g} times faster than in the guide, as --speed asks.")
    with open_world(console, speed=speed, with_server=with_server) as world, console.logging("magnus_cache"):
        asyncio.run(_steps(world, console))
    _nothing_left(world, set(threading.enumerate()) - threads, console)
    console.say(f"Took {monotonic() - started:.1f} s.")
    return console.verdict()


async def _steps(world: World, console: Console) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="demo-caller"))
    async with world.manager() as cache:
        stage = Stage(world, cache, both_kinds(world.plain), console)
        for callers in stage.callers:
            await before_and_after(stage, callers)
        await one_load_for_many(stage)
        await _statistics(stage)
        if world.server is None:
            await without_redis(stage)
        else:
            await redis_stops(stage, world.server)
            await redis_comes_back(stage, world.server)


async def _statistics(stage: Stage) -> None:
    stage.console.step("What cache.get_stats() counted so far.")
    stats = await stage.cache.get_stats()
    stage.console.say(
        f"Hit rate {stats['hit_rate_percent']:.1f}%: {stats['hit_count']} hits and {stats['miss_count']} misses in "
        f"{stats['total_requests']} requests. Keys in memory: {stats['in_memory_keys']}, "
        f"in Redis: {stats.get('redis_total_keys', 'n/a')} (using {stats.get('redis_used_memory', 'n/a')})."
    )
    stage.console.check(stats["hit_rate_percent"] > 90, "more than 90% of all requests were hits")


def _nothing_left(world: World, threads: Iterable[threading.Thread], console: Console) -> None:
    console.step("Everything is taken away again.")
    for thread in threads:
        thread.join(_FAREWELL)
    console.check(not any(thread.is_alive() for thread in threads), "no thread is left")
    console.check(not world.directory.exists(), "the database and its directory are gone")
    if world.server is not None:
        console.check(not world.server.running and not world.server.directory.exists(), "the Redis server is gone")
