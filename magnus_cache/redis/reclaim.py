"""Removing many keys from Redis: in bounded steps that end, whatever the server refuses."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from magnus_cache.redis import commands

if TYPE_CHECKING:
    from magnus_cache.redis.wire import Wire

__all__ = ["Covers", "Touch", "remove_matching", "remove_names"]

_STEP = 1_000
"""Keys looked at, or removed, by one command: some hundred microseconds of the server's time."""


Covers = Callable[[bytes], bool]
"""Tells whether a key is meant; SCAN's glob may match more than can be said in a glob."""

Touch = Callable[[list[bytes]], None]
"""Told which keys are about to go, right before the command is queued: Redis does not announce our own writes."""


async def remove_names(wire: "Wire", names: Iterable[bytes], touch: Touch) -> int:
    """Remove these keys and return how many there were.

    :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
    """
    removed, rest = 0, iter(names)
    while step := list(islice(rest, _STEP)):
        touch(step)
        removed += await wire.execute(commands.remove(step))
    return removed


async def remove_matching(wire: "Wire", pattern: bytes, covers: Covers, touch: Touch) -> int:
    """Remove all covered keys among those that match a glob, in one pass of SCAN, and return how many there were.

    One pass sees every key that was there from its beginning to its end, so there is no reason to start over;
    and where UNLINK is refused, the first refusal ends it.

    :raises CacheUnavailableError: when Redis goes away or refuses; what was removed before stays removed.
    """
    removed, cursor = 0, b"0"
    while True:
        cursor, names = await wire.execute(commands.scan(cursor, pattern, _STEP))
        removed += await remove_names(wire, filter(covers, names), touch)
        if cursor == b"0":
            return removed
