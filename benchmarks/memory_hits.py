"""A hit in memory, through each library's own decorator.

All of them take CPU time of this process: a hit waits for nothing, and what background threads do for it counts.
"""

import asyncio
import io
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, redirect_stdout
from itertools import accumulate, cycle, islice
from random import Random
from typing import Any, Final

from benchmarks.contenders import if_installed
from benchmarks.memory_peers import (
    SHARED,
    AsyncFunction,
    Case,
    Function,
    Make,
    Quotes,
    async_functions,
    async_methods,
    functions,
    methods,
)
from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, CacheManager, Namespace

__all__ = ["async_hits", "blocking_hits", "call_kinds", "large_hits"]

Timer = Callable[[Any, Sequence[str]], Coroutine[Any, Any, int]]
"""Returns the nanoseconds that a contender takes for the hits of these keys."""

_SHORTER: Final = 4
"""A turn is a fraction of that of others: there is no scheduler and no network to average over."""

_ONE: Final = ("AAPL",)
_THOUSAND: Final = tuple(f"user:{number:06}" for number in range(1000))
_SAMPLE: Final = 50_000
"""Reads of a large cache: of more keys than the processor's own caches hold."""

_STEP: Final = 10_000

_WARM_UP: Final = 3
"""Hits of each key before any is timed: caches that remember what is hit again have done so by then."""

_NOTES: Final = [
    "str, int, dict: the value, of one key. Thousand keys, method, key_func: strings, of a thousand keys each.",
    f"dict: {OURS} and cachebox give each caller a dict of its own; the others, and {SHARED}, the same to all.",
]


def _quote(ticker: str) -> str:
    return f"{ticker}: 187.25 USD"


_VALUES: Final[dict[str, Make]] = {"str": _quote, "int": lambda _: 51_234_567, "dict": lambda _: SMALL_DICT}


# -- timers -----------------------------------------------------------------------------------------------------


async def _call(function: Function, keys: Sequence[str]) -> int:
    start = time.process_time_ns()
    for key in keys:
        function(key)
    return time.process_time_ns() - start


async def _await(function: AsyncFunction, keys: Sequence[str]) -> int:
    start = time.process_time_ns()
    for key in keys:
        await function(key)
    return time.process_time_ns() - start


async def _call_method(quotes: Quotes, keys: Sequence[str]) -> int:
    # Looked up for each call, as callers do.
    start = time.process_time_ns()
    for key in keys:
        quotes.quote(key)
    return time.process_time_ns() - start


async def _await_method(quotes: Quotes, keys: Sequence[str]) -> int:
    start = time.process_time_ns()
    for key in keys:
        await quotes.quote(key)
    return time.process_time_ns() - start


async def _compare(
    plan: Plan, table: Table, column: str, contenders: Mapping[str, Any], timer: Timer, keys: Sequence[str]
) -> None:
    """Time hits of all contenders in turn; every key is loaded and hit first."""
    batches = {}
    for name, contender in contenders.items():
        for _ in range(_WARM_UP):
            await timer(contender, keys)
        some = list(islice(cycle(keys), 200))
        took = await timer(contender, some)
        batches[name] = list(islice(cycle(keys), max(1, round(plan.turn / _SHORTER * 1e9 * len(some) / max(1, took)))))
    settle()
    for name in plan.turns(contenders, column):
        # While others have their turns for seconds an idle cache's trust lapses; one call renews it.
        await timer(contenders[name], keys[:3])
        table.add(column, name, await timer(contenders[name], batches[name]) / len(batches[name]))


def _without_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing: blocking callers are measured where no event loop runs."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("the coroutine waits for something")


# -- benchmarks -------------------------------------------------------------------------------------------------


def async_hits(plan: Plan) -> Table:
    """Return nanoseconds for a hit of a decorated coroutine function or method."""
    table = Table("l1-async", "L1 hit, decorated async function", "ns", less_is_better=True, notes=[*_NOTES])
    asyncio.run(_async_hits(plan, table))
    return table


async def _async_hits(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(AsyncCacheManager(redis_url=plan.url, prefix=PREFIX))
        for column, make in _VALUES.items():
            contenders = async_functions(manager, table, Case(column, make))
            if column == "dict":
                contenders[SHARED] = async_functions(manager, table, Case("shared", make, share=True))[OURS]
            for name, function in contenders.items():
                expected = _ONE[0] if name == "(no cache)" else make(_ONE[0])
                checked(await function(_ONE[0]), expected, name)
                checked(await function(_ONE[0]), expected, name)
            await _compare(plan, table, column, contenders, _await, _ONE)
        thousand = async_functions(manager, table, Case("thousand", _quote))
        await _compare(plan, table, "1,000 keys", thousand, _await, _THOUSAND)
        made = async_methods(manager, table, Case("method", _quote))
        await _compare(plan, table, "method", made, _await_method, _THOUSAND)
        keyed = async_functions(manager, table, Case("key-func", _quote, key_func=True))
        await _compare(plan, table, "key_func", keyed, _await, _THOUSAND)


def blocking_hits(plan: Plan) -> Table:
    """Return nanoseconds for a hit of a decorated function or method."""
    table = Table("l1-sync", "L1 hit, decorated function", "ns", less_is_better=True, notes=[*_NOTES])
    table.note("cachetools has a lock, as its documentation demands for threads.")
    _without_loop(_blocking_hits(plan, table))
    return table


async def _blocking_hits(plan: Plan, table: Table) -> None:
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        for column, make in _VALUES.items():
            contenders = functions(manager, table, Case(column, make))
            if column == "dict":
                contenders[SHARED] = functions(manager, table, Case("shared", make, share=True))[OURS]
            for name, function in contenders.items():
                checked(function(_ONE[0]), make(_ONE[0]), name)
                checked(function(_ONE[0]), make(_ONE[0]), name)
            await _compare(plan, table, column, contenders, _call, _ONE)
        thousand = functions(manager, table, Case("thousand", _quote))
        await _compare(plan, table, "1,000 keys", thousand, _call, _THOUSAND)
        made = methods(manager, table, Case("method", _quote))
        await _compare(plan, table, "method", made, _call_method, _THOUSAND)
        keyed = functions(manager, table, Case("key-func", _quote, key_func=True))
        await _compare(plan, table, "key_func", keyed, _call, _THOUSAND)


# -- other kinds of calls ---------------------------------------------------------------------------------------

_KINDS: Final = [
    f"{callers} {kind}" for callers in ("async", "sync") for kind in ("two arguments", "keyword", "template", "get")
]


def call_kinds(plan: Plan) -> Table:
    """Return nanoseconds for a hit by kinds of calls beyond those of one argument; `benchmarks.hits` has all."""
    table = Table("l1-kinds", "L1 hit of a string by other kinds of calls", "ns", less_is_better=True)
    table.note("get: manager.get, beside a decorated function of the peer. Of a thousand entries, without Redis.")
    with if_installed(table, "async-lru or cachetools"):
        from benchmarks.hits import measure

        # It prints each row of its own.
        with redirect_stdout(io.StringIO()):
            rows = measure(rounds=plan.rounds, sizes=[len(_THOUSAND)], kinds=_KINDS, values=["str"])
        for row in rows:
            for contender, samples in ((OURS, row.ours), (row.peer_name, row.peer)):
                for sample in samples:
                    table.add(row.kind, contender, sample)
    return table


# -- a large cache ----------------------------------------------------------------------------------------------


def large_hits(plan: Plan) -> Table:
    """Return nanoseconds for a hit of a decorated function among many entries."""
    table = Table("l1-large", f"L1 hit among {plan.large:,} entries", "ns", less_is_better=True)
    table.note("zipf: some keys are read a thousand times as often as others. even: all alike, at random.")
    keys = [f"user:{number:08}" for number in range(plan.large)]
    asyncio.run(_large_async_hits(plan, table, keys))
    _without_loop(_large_blocking_hits(plan, table, keys))
    return table


async def _large_async_hits(plan: Plan, table: Table, keys: list[str]) -> None:
    async with AsyncCacheManager(redis_url=plan.url, prefix=PREFIX, **_room(keys)) as manager:
        made = async_functions(manager, table, Case("large", _quote, 2 * len(keys)))
        names = (OURS, "async-lru", "cachebox", "theine")
        contenders: dict[str, AsyncFunction] = {name: made[name] for name in names if name in made}
        for values in _values(plan, contenders[OURS], keys):
            assert await manager.set_many(Namespace("async-large", ttl=3600), values), "not all values were stored"
        await _fill(plan, contenders, _await, keys)
        for draw, drawn in _draws(keys).items():
            await _compare(plan, table, f"async, {plan.large:,}, {draw}", contenders, _await, drawn)
        await manager.clear(Namespace("async-large"))


async def _large_blocking_hits(plan: Plan, table: Table, keys: list[str]) -> None:
    with CacheManager(redis_url=plan.url, prefix=PREFIX, **_room(keys)) as manager:
        made = functions(manager, table, Case("large", _quote, 2 * len(keys)))
        names = (OURS, "cachetools", "functools.lru_cache", "cachebox", "theine")
        contenders: dict[str, Function] = {name: made[name] for name in names if name in made}
        for values in _values(plan, contenders[OURS], keys):
            assert manager.set_many(Namespace("sync-large", ttl=3600), values), "not all values were stored"
        await _fill(plan, contenders, _call, keys)
        for draw, drawn in _draws(keys).items():
            await _compare(plan, table, f"sync, {plan.large:,}, {draw}", contenders, _call, drawn)
        manager.clear(Namespace("sync-large"))


def _room(keys: Sequence[str]) -> dict[str, Any]:
    return {"l1_max_entries": 2 * len(keys), "l1_max_bytes": 4_000 * len(keys)}


def _draws(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys to read, by how they are drawn: as programs do, or evenly over all."""
    chance = Random(1)
    shuffled = chance.sample(keys, len(keys))
    weights = list(accumulate(1 / rank for rank in range(1, len(keys) + 1)))
    return {
        "zipf": chance.choices(shuffled, cum_weights=weights, k=_SAMPLE),
        "even": chance.choices(shuffled, k=_SAMPLE),
    }


def _values(plan: Plan, function: Any, keys: list[str]) -> Iterator[dict[str, str]]:
    """Yield a function's values by their keys, for `set_many`: a load of each would take minutes."""
    for start in range(0, len(keys), _STEP):
        plan.progress(f"filling {OURS}: {start:,} of {len(keys):,}")
        yield {function.cache_key(key): _quote(key) for key in keys[start : start + _STEP]}


async def _fill(plan: Plan, contenders: Mapping[str, Any], timer: Timer, keys: list[str]) -> None:
    """Load all keys into the other contenders; have ours, which are stored, found once, as they were in use."""
    for name, contender in contenders.items():
        plan.progress(f"filling {name}")
        await timer(contender, keys)
