"""Calls about many keys: what a key costs, and for how long the whole call holds up its event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any, Final

import msgpack

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.redis_peers import aiocache_client, cashews_client, connected
from benchmarks.stalls import lateness
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, Namespace

__all__ = ["many_keys"]

_NEAR: Final = Namespace("many", ttl=600)
_FAR: Final = Namespace("many", ttl=600, l1=False)
_STEP: Final = 1000
_TTL: Final = 600

Keys = Sequence[str]
Call = Callable[[Keys], Awaitable[object]]
Values = dict[str, dict[str, object]]


def many_keys(plan: Plan) -> tuple[Table, Table]:
    """Return the microseconds of CPU time for each key, and the milliseconds for which the loop was held up."""
    title = f"One call about {plan.many:,} keys: CPU time a key"
    cost = Table("many", title, "us", less_is_better=True)
    cost.note("Of this process, the server's not counted. redis.asyncio: MGET, pipelines of SET, UNLINK of 1,000 keys.")
    cost.note("get_many, first: right after set_many, from memory; get_many, memory: from the third call on.")
    cost.note("get_or_set_many and warm_cache find nothing; their loaders cost nothing.")
    title = f"One call about {plan.many:,} keys: the loop held up at most"
    stalls = Table("many-stalls", title, "ms", less_is_better=True)
    asyncio.run(_measure(plan, cost, stalls))
    return cost, stalls


async def _measure(plan: Plan, cost: Table, stalls: Table) -> None:
    async with AsyncExitStack() as stack:
        contenders: dict[str, Mapping[str, Call]] = {OURS: await stack.enter_async_context(_ours(plan))}
        for name, offer in {"aiocache": _aiocache, "cashews": _cashews}.items():
            with if_installed(cost, name):
                contenders[name] = await stack.enter_async_context(offer(plan))
        contenders["redis.asyncio"] = await stack.enter_async_context(_redis_py(plan))
        fresh = _fresh_keys(plan.many)
        for name, calls in contenders.items():
            await _try_out(name, calls, next(fresh)[:10])
        settle()
        for name in plan.turns(contenders, "", max(1, plan.rounds // 2)):
            calls = contenders[name]
            # Those that write come first: the others find what they wrote.
            keys = next(fresh)
            for call in ("set_many", "get_many", "get_many, first", "get_many, memory", "delete_many"):
                await _add(cost, stalls, name, calls, call, keys)
            for call in ("warm_cache", "get_or_set_many"):
                await _add(cost, stalls, name, calls, call, next(fresh))


def _fresh_keys(many: int) -> Iterator[list[str]]:
    # From the clock: no key of an earlier run is met.
    for number in count(time.time_ns()):
        yield [f"{PREFIX}:{number}:{key}" for key in range(many)]


async def _try_out(name: str, calls: Mapping[str, Call], keys: Keys) -> None:
    await calls["set_many"](keys)
    checked(await calls["get_many"](keys), dict.fromkeys(keys, SMALL_DICT), name)


async def _add(cost: Table, stalls: Table, name: str, calls: Mapping[str, Call], column: str, keys: Keys) -> None:
    if column not in calls:
        return
    if column == "get_many, memory":
        await calls[column](keys)
    spent = 0

    async def call() -> None:
        nonlocal spent
        start = time.process_time_ns()
        await calls[column](keys)
        spent = time.process_time_ns() - start

    late = await lateness(call)
    cost.add(column, name, spent / len(keys) / 1000)
    stalls.add(column, name, late)


# -- the contenders -------------------------------------------------------------------------------------------


def _values(keys: Keys) -> Values:
    return dict.fromkeys(keys, SMALL_DICT)


@asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[Mapping[str, Call]]:
    room = 20 * plan.many
    async with (
        AsyncCacheManager(redis_url=plan.url, prefix=PREFIX, l1_max_entries=room, l1_max_bytes=2_000 * room) as manager,
        # Not the same manager: its memory has what `_NEAR` has stored under the same names.
        AsyncCacheManager(redis_url=plan.url, prefix=PREFIX, l1_max_entries=0) as far,
    ):

        async def load(keys: list[str]) -> Values:
            return _values(keys)

        yield {
            "get_many": lambda keys: far.get_many(_FAR, keys),
            "get_many, first": lambda keys: manager.get_many(_NEAR, keys),
            "get_many, memory": lambda keys: manager.get_many(_NEAR, keys),
            "set_many": lambda keys: manager.set_many(_NEAR, _values(keys)),
            "delete_many": lambda keys: manager.delete_many(_NEAR, keys),
            "warm_cache": lambda keys: manager.warm_cache(_NEAR, lambda _: SMALL_DICT, keys, progress=False),
            "get_or_set_many": lambda keys: manager.get_or_set_many(_NEAR, keys, load),
        }


@asynccontextmanager
async def _aiocache(plan: Plan) -> AsyncIterator[Mapping[str, Call]]:
    async with aiocache_client(plan) as cache:

        async def get_many(keys: Keys) -> dict[str, Any]:
            return dict(zip(keys, await cache.multi_get(keys), strict=True))

        yield {
            "get_many": get_many,
            "set_many": lambda keys: cache.multi_set([(key, SMALL_DICT) for key in keys], ttl=_TTL),
        }


@asynccontextmanager
async def _cashews(plan: Plan) -> AsyncIterator[Mapping[str, Call]]:
    async with cashews_client(plan) as cache:

        async def get_many(keys: Keys) -> dict[str, Any]:
            return dict(zip(keys, await cache.get_many(*keys), strict=True))

        yield {
            "get_many": get_many,
            "set_many": lambda keys: cache.set_many(_values(keys), expire=_TTL),
            "delete_many": lambda keys: cache.delete_many(*keys),
        }


@asynccontextmanager
async def _redis_py(plan: Plan) -> AsyncIterator[Mapping[str, Call]]:
    async with connected(plan) as client:

        async def get_many(keys: Keys) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for some in _steps(keys):
                payloads = await client.mget(some)
                found |= {key: msgpack.unpackb(raw) for key, raw in zip(some, payloads, strict=True) if raw is not None}
            return found

        async def set_many(keys: Keys) -> None:
            for some in _steps(keys):
                async with client.pipeline(transaction=False) as pipeline:
                    for key in some:
                        pipeline.set(key, msgpack.packb(SMALL_DICT), ex=_TTL)
                    await pipeline.execute()

        async def delete_many(keys: Keys) -> None:
            for some in _steps(keys):
                await client.unlink(*some)

        async def get_or_set_many(keys: Keys) -> dict[str, Any]:
            found = await get_many(keys)
            missing = [key for key in keys if key not in found]
            await set_many(missing)
            return {**found, **_values(missing)}

        yield {
            "get_many": get_many,
            "set_many": set_many,
            "delete_many": delete_many,
            "warm_cache": set_many,
            "get_or_set_many": get_or_set_many,
        }


def _steps(keys: Keys) -> Iterator[Keys]:
    return (keys[start : start + _STEP] for start in range(0, len(keys), _STEP))
