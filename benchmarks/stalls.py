"""How long the loop of coroutines is held up by one call: the longest lateness of a timer of one millisecond.

Lateness beyond the CPU time that the process has used meanwhile is left out: it is the work of other processes.

To compare: the same values encoded or decoded in one step, as a library does that leaves it to its codec.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from benchmarks.plan import PREFIX, Plan, settle
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager
from magnus_cache._engine import codec

__all__ = ["lateness", "stalls"]

_ROWS: Final = 20_000
_SMALL_ROWS: Final = 50
_KEYS: Final = 500
_TTL: Final = 600
_TIMER: Final = 0.001
_AT_ONCE: Final = "codec, in one step"

Call = Callable[[], Awaitable[Any]]


def stalls(plan: Plan) -> Table:
    """Return the milliseconds for which the loop was held up, by call."""
    table = Table("stalls", "Longest time that one call holds up its event loop", "ms", less_is_better=True)
    table.notes.append(f"One value of {_ROWS:,} rows (1.5 MB), or {_KEYS} of {_SMALL_ROWS}; garbage collection is off.")
    asyncio.run(_measure(plan, table))
    return table


async def _measure(plan: Plan, table: Table) -> None:
    async with (
        AsyncCacheManager(redis_url=plan.url, prefix=PREFIX, l1_max_bytes=2**30) as near,
        AsyncCacheManager(redis_url=plan.url, prefix=PREFIX, l1_max_entries=0) as far,
    ):
        large, keys = {"rows": _rows(_ROWS)}, range(_KEYS)
        many = {key: _rows(_SMALL_ROWS) for key in keys}
        await near.set("stalls", "large", large, ttl=_TTL)
        await near.set_many("stalls", many, ttl=_TTL)
        calls: dict[str, Call] = {
            "set": lambda: near.set("stalls", "large", large, ttl=_TTL),
            "get, memory": lambda: near.get("stalls", "large"),
            "get, Redis": lambda: far.get("stalls", "large"),
            "set_many": lambda: near.set_many("stalls", many, ttl=_TTL),
            "get_many, memory": lambda: near.get_many("stalls", keys),
            "get_many, Redis": lambda: far.get_many("stalls", keys),
        }
        payload, payloads = codec.encode(large), [codec.encode(value) for value in many.values()]

        async def encode() -> None:
            codec.encode(large)

        async def decode() -> None:
            codec.decode(payload)

        async def encode_many() -> None:
            for value in many.values():
                codec.encode(value)

        async def decode_many() -> None:
            for one in payloads:
                codec.decode(one)

        at_once: tuple[Call, ...] = (encode, decode, decode, encode_many, decode_many, decode_many)
        settle()
        gc.disable()
        try:
            for _ in range(plan.rounds):
                for (column, call), other in zip(calls.items(), at_once, strict=True):
                    table.add(column, OURS, await lateness(call))
                    table.add(column, _AT_ONCE, await lateness(other))
        finally:
            gc.enable()


def _rows(count: int) -> list[dict[str, Any]]:
    moment = datetime(2025, 1, 1, tzinfo=UTC)
    return [{"id": number, "price": Decimal("12.34"), "at": moment, "text": "x" * 20} for number in range(count)]


async def lateness(call: Call) -> float:
    """Return by how many milliseconds a timer was late at most while a call was awaited, by work of this process."""
    worst, over = 0.0, False

    async def timer() -> None:
        nonlocal worst
        last, used = time.perf_counter(), time.process_time()
        while not over:
            await asyncio.sleep(_TIMER)
            now, cpu = time.perf_counter(), time.process_time()
            worst = max(worst, min(now - last - _TIMER, cpu - used))
            last, used = now, cpu

    task = asyncio.ensure_future(timer())
    await asyncio.sleep(10 * _TIMER)
    worst = 0.0
    await call()
    over = True
    await task
    return worst * 1000
