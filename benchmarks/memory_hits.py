"""A hit in memory, through each library's own decorator, on a function of one argument."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import lru_cache
from itertools import repeat
from typing import Any, Final

import aiocache
import async_lru
import cachetools
import cashews
from dogpile.cache import make_region

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.tables import OURS, Table, rotations
from magnus_cache import AsyncCacheManager, CacheManager, Namespace

__all__ = ["async_hits", "blocking_hits"]

AsyncFunction = Callable[[str], Coroutine[Any, Any, Any]]
Function = Callable[[str], Any]

SHARED: Final = f"{OURS}, share=True"

_TTL: Final = 3600
_SIZE: Final = 1000
_SHORTER: Final = 4
"""A turn is a fraction of that of others: there is no scheduler and no network to average over."""

_KEY: Final = "AAPL"
_VALUES: Final[dict[str, object]] = {"str": "AAPL: 187.25 USD", "int": 51_234_567, "dict": SMALL_DICT}
_NOTE: Final = f"dict: {OURS} gives each caller a dict of its own; the others, and {SHARED}, the same one to everybody."


def async_hits(plan: Plan) -> Table:
    """Return nanoseconds for a hit of a decorated coroutine function, by kind of value."""
    table = Table("l1-async", "L1 hit, decorated async function", "ns", less_is_better=True, notes=[_NOTE])
    asyncio.run(_async_hits(plan, table))
    return table


def blocking_hits(plan: Plan) -> Table:
    """Return nanoseconds for a hit of a decorated function, by kind of value."""
    table = Table("l1-sync", "L1 hit, decorated function", "ns", less_is_better=True, notes=[_NOTE])
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        for column, value in _VALUES.items():
            contenders = _functions(manager, column, value)
            for name, function in contenders.items():
                checked(function(_KEY), value, name)
                checked(function(_KEY), value, name)
            counts = {name: _calibrated(function, plan.turn / _SHORTER) for name, function in contenders.items()}
            settle()
            for name in rotations(list(contenders), plan.rounds):
                _time(contenders[name], 3)
                table.add(column, name, _time(contenders[name], counts[name]))
    return table


def _calibrated(function: Function, turn: float) -> int:
    _time(function, 3)
    return max(1, round(turn * 1e9 / _time(function, 100)))


def _time(function: Function, count: int) -> float:
    start = time.perf_counter_ns()
    for _ in repeat(None, count):
        function(_KEY)
    return (time.perf_counter_ns() - start) / count


async def _async_hits(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(AsyncCacheManager(redis_url=plan.url, prefix=PREFIX))
        for column, value in _VALUES.items():
            contenders = _async_functions(manager, column, value)
            for name, function in contenders.items():
                checked(await function(_KEY), value, name)
                checked(await function(_KEY), value, name)
            counts = {
                name: await _calibrated_async(function, plan.turn / _SHORTER) for name, function in contenders.items()
            }
            settle()
            for name in rotations(list(contenders), plan.rounds):
                # While others have their turns for seconds an idle cache's trust lapses; one call renews it.
                await _time_async(contenders[name], 3)
                table.add(column, name, await _time_async(contenders[name], counts[name]))


async def _calibrated_async(function: AsyncFunction, turn: float) -> int:
    await _time_async(function, 3)
    return max(1, round(turn * 1e9 / await _time_async(function, 100)))


async def _time_async(function: AsyncFunction, count: int) -> float:
    start = time.perf_counter_ns()
    for _ in repeat(None, count):
        await function(_KEY)
    return (time.perf_counter_ns() - start) / count


# -- the contenders -------------------------------------------------------------------------------------------

# Ours leaves out what these functions close over, as a function of a module closes over nothing: the namespaces tell
# them apart.


def _loaded_once(value: object) -> Function:
    """Return a function that returns `value` once; whoever calls it again has not had the hit that is timed."""
    calls: list[str] = []

    def load(ticker: str) -> object:
        calls.append(ticker)
        assert len(calls) == 1, "this was to be a hit"
        return value

    return load


def _coroutine_loaded_once(value: object) -> AsyncFunction:
    load = _loaded_once(value)

    # As a user's function would be: no library may see a callable without a signature.
    async def quote(ticker: str) -> object:
        return load(ticker)

    return quote


def _async_functions(manager: AsyncCacheManager, column: str, value: object) -> dict[str, AsyncFunction]:
    memory = cashews.Cache()
    memory.setup("mem://", size=_SIZE)
    contenders: dict[str, AsyncFunction] = {
        OURS: manager.cached(Namespace(f"async-{column}", ttl=_TTL), exclude=("load",))(_coroutine_loaded_once(value)),
        "async-lru": async_lru.alru_cache(maxsize=_SIZE, ttl=_TTL)(_coroutine_loaded_once(value)),
        "aiocache": aiocache.cached(ttl=_TTL, cache=aiocache.Cache.MEMORY)(_coroutine_loaded_once(value)),
        "cashews": memory(ttl=_TTL, key="{ticker}")(_coroutine_loaded_once(value)),
        "(no cache)": _uncached_coroutine(value),
    }
    if column == "dict":
        shared = Namespace("async-shared", ttl=_TTL, share=True)
        contenders[SHARED] = manager.cached(shared, exclude=("load",))(_coroutine_loaded_once(value))
    return contenders


def _uncached_coroutine(value: object) -> AsyncFunction:
    async def quote(ticker: str) -> object:
        return value

    return quote


def _functions(manager: CacheManager, column: str, value: object) -> dict[str, Function]:
    region = make_region().configure("dogpile.cache.memory", expiration_time=_TTL)
    contenders: dict[str, Function] = {
        OURS: manager.cached(Namespace(f"sync-{column}", ttl=_TTL), exclude=("calls", "value"))(_loaded_once(value)),
        "cachetools": cachetools.cached(cachetools.TTLCache(_SIZE, _TTL))(_loaded_once(value)),
        "cachetools, LRU only": cachetools.cached(cachetools.LRUCache(_SIZE))(_loaded_once(value)),
        "dogpile.cache": region.cache_on_arguments()(_loaded_once(value)),
        "functools.lru_cache": lru_cache(_SIZE)(_loaded_once(value)),
    }
    if column == "dict":
        shared = Namespace("sync-shared", ttl=_TTL, share=True)
        contenders[SHARED] = manager.cached(shared, exclude=("calls", "value"))(_loaded_once(value))
    return contenders
