"""What keeping processes of one mind costs: a write until another process notices, and a clear of many values."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import Final

import redis.asyncio

from benchmarks.peer import BARE, CLEARED, CLIENT, HELD, RAW, Peer, key_of, peer
from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.raw import RawPublisher, packed
from benchmarks.redis_peers import connected
from benchmarks.tables import OURS, Table, rotations
from magnus_cache import AsyncCacheManager
from magnus_cache._engine.runtime.clock import monotonic

__all__ = ["clears", "invalidations", "note_round"]

Write = Callable[[str], Awaitable[object]]
Clear = Callable[[], Awaitable[int]]

_EXCHANGES: Final = 2000
"""Writes of each kind for each second of a turn, though they take longer: a p99 needs hundreds."""

_WARM_UP: Final = 0.25
"""What comes before the first round, as a share of a round."""

_WRITES: Final = ("set", "delete")
_NAMES: Final = f"{PREFIX}:{CLEARED}:"

_STEP: Final = 1000
"""Keys written, or removed by hand, at a time: as many as the cache itself removes."""

_LIFE: Final = 3_600_000
"""Milliseconds that the values live which are to be cleared."""


# -- from a write to whoever held the value ---------------------------------------------------------------------


def invalidations(plan: Plan) -> Table:
    """Return the microseconds from just before a write until a process that held the value no longer serves it.

    Beside it, from just before a PUBLISH until that process hears it. All of them take turns, one exchange each.
    """
    table = Table("invalidation", "A write until another process has noticed", "us", less_is_better=True)
    table.notes += [
        "The others are a PUBLISH until it is heard, the same ones beside set and delete: from redis-py's client to",
        "PubSub.listen, from the client to a bare connection of redis-py, and by the least that is possible in Python.",
    ]
    asyncio.run(_measure_invalidations(plan, table))
    return table


async def _measure_invalidations(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(AsyncCacheManager(redis_url=plan.url, prefix=PREFIX))
        writes = await stack.enter_async_context(_writes(plan, manager))
        reader = await stack.enter_async_context(peer("reader", plan.host, plan.port))
        # Each time another key: what was announced of an old one cannot be mistaken for news of this one.
        fresh = map(str, count())
        exchanges = max(2, round(plan.turn * _EXCHANGES))
        measure = partial(_latencies, writes, manager, reader, fresh)
        await measure(max(2, round(exchanges * _WARM_UP)))
        settle()
        for number in range(plan.rounds):
            plan.progress(f"round {number + 1} of {plan.rounds}")
            note_round(table, await measure(exchanges))


async def _latencies(
    writes: Mapping[str, Write], manager: AsyncCacheManager, reader: Peer, fresh: "map[str]", exchanges: int
) -> dict[str, list[float]]:
    """Return the seconds of so many exchanges of each kind."""
    found: dict[str, list[float]] = {kind: [] for kind in writes}
    for kind in rotations(list(writes), exchanges):
        key = next(fresh)
        # Also before a PUBLISH, which has no need of it: all kinds are to find both processes equally awake.
        await manager.set(HELD, key, SMALL_DICT)
        await reader.ask("hold", key)
        start = monotonic()
        await writes[kind](key)
        found[kind].append(float(await reader.told()) - start)
    return found


def note_round(table: Table, latencies: Mapping[str, list[float]]) -> None:
    """Take down medians and 99th percentiles of one round, in microseconds.

    :param latencies: seconds by kind: each of `_WRITES` is ours in columns of its own, all others go beside each.
    """
    for write in _WRITES:
        for kind, found in latencies.items():
            if kind == write or kind not in _WRITES:
                contender = OURS if kind == write else kind
                percentiles = statistics.quantiles(found, n=100, method="inclusive")
                table.add(f"{write} p50", contender, percentiles[49] * 1e6)
                table.add(f"{write} p99", contender, percentiles[98] * 1e6)


@asynccontextmanager
async def _writes(plan: Plan, manager: AsyncCacheManager) -> AsyncIterator[dict[str, Write]]:
    """Yield what makes the reader notice something, by kind."""
    async with (
        # One connection of its own: no turn is spent on waiting for a pool.
        redis.asyncio.Redis(host=plan.host, port=plan.port, single_connection_client=True) as client,
        await RawPublisher.connect(plan.host, plan.port) as raw,
    ):
        yield {
            "set": lambda key: manager.set(HELD, key, SMALL_DICT),
            "delete": lambda key: manager.delete(HELD, key),
            "PUBLISH, redis.asyncio": lambda key: client.publish(CLIENT, key),
            "PUBLISH, bare connection": lambda key: client.publish(BARE, key),
            "PUBLISH, raw": lambda key: raw.publish(RAW, key),
        }


# -- clear ----------------------------------------------------------------------------------------------------


def clears(plan: Plan) -> Table:
    """Return the milliseconds that it takes to clear a namespace, and for how long that holds up the server."""
    title = f"Clear of a namespace of {plan.cleared:,} values"
    table = Table("clear", title, "ms", less_is_better=True)
    table.notes += [
        "near: until another process with some of them in its near cache serves none of these from there.",
        "invisible: until it gets neither these nor some others, its wait for Redis included.",
        "gone: until clear has returned, with none left. worst PING: the longest that a third process waited for PONG.",
    ]
    asyncio.run(_measure_clears(plan, table))
    return table


async def _measure_clears(plan: Plan, table: Table) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(AsyncCacheManager(redis_url=plan.url, prefix=PREFIX))
        client = await stack.enter_async_context(connected(plan))
        reader = await stack.enter_async_context(peer("reader", plan.host, plan.port))
        prober = await stack.enter_async_context(peer("prober", plan.host, plan.port))
        contenders: dict[str, Clear] = {
            OURS: partial(manager.clear, CLEARED),
            "redis.asyncio SCAN, UNLINK": partial(_clear_by_hand, client),
        }
        settle()
        # A third of the rounds: most of the time goes by with writing what is to be cleared.
        for name in plan.turns(contenders, "", max(1, plan.rounds // 3)):
            await _fill(plan, manager, client)
            await _clear(plan, table, name, contenders[name], reader, prober)


async def _clear(plan: Plan, table: Table, name: str, clear: Clear, reader: Peer, prober: Peer) -> None:
    await reader.ask("watch", plan.cleared)
    await prober.ask("begin")
    start = monotonic()
    removed = await clear()
    took = monotonic() - start
    # First: while the reader is looking, it is part of what holds up the server.
    near, invisible = (float(moment) - start for moment in (await reader.told()).split())
    worst = float(await prober.ask("end"))
    checked(removed, plan.cleared, name)
    table.add("near", name, near * 1e3)
    table.add("invisible", name, invisible * 1e3)
    table.add("gone", name, took * 1e3)
    table.add("worst PING", name, worst * 1e3)
    if name == OURS:
        # For as long, with nothing to do: what of it is the machine's.
        await prober.ask("begin")
        await asyncio.sleep(took)
        table.add("worst PING", "(nobody clears)", float(await prober.ask("end")) * 1e3)


async def _clear_by_hand(client: "redis.asyncio.Redis") -> int:
    """Do what `clear` does, as one would with redis-py."""
    removed, batch = 0, list[bytes]()
    async for name in client.scan_iter(f"{_NAMES}*", count=_STEP):
        batch.append(name)
        if len(batch) >= _STEP:
            removed += await client.unlink(*batch)
            batch.clear()
    return removed + (await client.unlink(*batch) if batch else 0)


async def _fill(plan: Plan, manager: AsyncCacheManager, client: "redis.asyncio.Redis") -> None:
    """Write the namespace: the first value by the cache, and its very bytes under all the other names.

    What the cache stores is its own business, and it takes a minute to store a million.
    """
    await manager.set(CLEARED, key_of(0), SMALL_DICT)
    value = await client.get(f"{_NAMES}{key_of(0)}")
    assert isinstance(value, bytes)
    reader, writer = await asyncio.open_connection(plan.host, plan.port)
    try:
        for start in range(1, plan.cleared, _STEP):
            keys = [key_of(number) for number in range(start, min(start + _STEP, plan.cleared))]
            writer.write(b"".join(packed("SET", f"{_NAMES}{key}", value, "PX", _LIFE) for key in keys))
            answers = b"+OK\r\n" * len(keys)
            checked(await reader.readexactly(len(answers)), answers, "the server")
    finally:
        writer.close()
        await writer.wait_closed()
