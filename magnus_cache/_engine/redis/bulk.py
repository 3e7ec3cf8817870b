"""Bulk removal of keys, in bounded steps; it ends even if the server refuses commands."""

from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.keys.names import lease_name, value_name
from magnus_cache._engine.redis import commands, replies, scripts
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.wire import Wire

__all__ = [
    "RECLAIMED",
    "BeforeRemoval",
    "Reclaimed",
    "reclaim",
    "reclaimable",
    "remove_matching",
    "remove_names",
    "scanned",
]

_STEP = 250
"""Keys that one command scans or removes: some hundred microseconds of the server's time."""
_STEPS = 10_000
"""Steps of a SCAN after which its bound is computed from DBSIZE; a nearly empty table also takes thousands."""
_KEYS_A_STEP = 50
"""A tenth of the keys that a step scans on average."""
_MOST_KEYS = 1 << 32
"""The most keys that a database can have."""
RECLAIMED = 250
"""Values that one script checks: well below a millisecond of the server's time."""

BeforeRemoval = Callable[[list[bytes]], None]
"""Called with the keys of each step right before its command is queued: Redis does not announce our own writes."""


async def remove_names(wire: "Wire", names: Iterable[bytes], before: BeforeRemoval) -> int:
    """Remove these values and their leases, and return how many values there were.

    :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
    """
    removed, rest = 0, iter(names)
    while step := list(islice(rest, _STEP)):
        before(step)
        removed += await wire.execute(commands.remove(step, database=wire.database), partial(_removed, before, step))
    return removed


def _removed(before: BeforeRemoval, names: list[bytes], reply: object, _connection: "Connection", _sent: float) -> int:
    """Call `before` again: a read on another loop may have brought the old value in before the removal."""
    before(names)
    return replies.number(reply, len(names))


async def remove_matching(wire: "Wire", scope: ClearScope, before: BeforeRemoval) -> int:
    """Remove all values within a scope, void the leases of those that are being loaded, and return how many there were.

    One pass sees every key that exists from its beginning to its end, so it is not repeated. If UNLINK is refused, the
    first refusal ends it.

    :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
    """
    async for leases in scanned(wire, lease_name(scope.pattern, wire.database)):
        names = list(filter(scope.covers, map(value_name, leases)))
        await remove_names(wire, names, before)
    removed = 0
    async for names in scanned(wire, scope.pattern):
        removed += await remove_names(wire, filter(scope.covers, names), before)
    return removed


def _untouched(_names: list[bytes]) -> None:
    """Do nothing: no process serves these values any more."""


class Reclaimed(NamedTuple):
    """How many values were removed, and the error that ended the removal early, if any."""

    removed: int
    error: CacheUnavailableError | None


async def reclaim(wire: "Wire", pattern: bytes, epoch: int) -> Reclaimed:
    """Remove the values that match a glob and are older than an epoch.

    They are invalid already, so this only frees memory.
    """
    removed = 0
    try:
        async for some in reclaimable(wire, pattern):
            removed += await wire.execute(scripts.reclaim(some, epoch), partial(_removed, _untouched, some))
    except CacheUnavailableError as error:
        return Reclaimed(removed, error)
    return Reclaimed(removed, None)


async def reclaimable(wire: "Wire", pattern: bytes) -> AsyncGenerator[list[bytes]]:
    """Yield the names that match a glob, as many at a time as one script checks.

    :raises CacheUnavailableError: as `scanned`.
    """
    async for names in scanned(wire, pattern):
        for start in range(0, len(names), RECLAIMED):
            yield names[start : start + RECLAIMED]


async def scanned(wire: "Wire", pattern: bytes) -> AsyncGenerator[list[bytes]]:
    """Yield the names that match a glob.

    :raises CacheUnavailableError: when Redis goes away, refuses, or never ends the SCAN.
    """
    cursor, steps, most = b"0", 0, _STEPS
    while True:
        cursor, names = await wire.execute(commands.scan(cursor, pattern, _STEP), replies.step)
        yield names
        if cursor == b"0":
            return
        steps += 1
        if steps == _STEPS:
            keys = await wire.execute(commands.DB_SIZE, replies.answer)
            most += min(keys, _MOST_KEYS) // _KEYS_A_STEP
        if steps >= most:
            raise CacheUnavailableError("protocol", f"Redis does not end a SCAN after {steps} steps")
