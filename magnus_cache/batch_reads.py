"""Reads of many values at once: what is near at once, the others in one or a few exchanges with Redis."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from magnus_cache.addresses import Address
from magnus_cache.entries import Entry
from magnus_cache.epoch_reads import JUDGEMENTS, UnsettledError
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.reads import Reads

if TYPE_CHECKING:
    from magnus_cache.redis.wire import Wire

__all__ = ["MANY", "look_many"]

MANY: Final = 500
"""Values asked for, or written, at a time by one call: a few milliseconds of the loop."""


async def look_many(reads: Reads, addresses: Sequence[Address]) -> list[tuple[Entry | None, bool]]:
    """Return the entries of many values, each with whether it was near; Redis is asked for the others at once."""
    hit = reads.state.memory.hit
    found = [(hit(address.name), True) for address in addresses]
    missing = [index for index, (entry, _) in enumerate(found) if entry is None]
    for start in range(0, len(missing), MANY):
        step = missing[start : start + MANY]
        entries = await _read_many(reads, [addresses[index] for index in step])
        for index, entry in zip(step, entries, strict=True):
            found[index] = (entry, False)
    return found


async def _read_many(reads: Reads, addresses: Sequence[Address]) -> list[Entry | None]:
    """Do what `read` does for some values at once: queued together, they are one or a few MGETs."""
    wire = reads.state.wire()
    if wire is None or not wire.up:
        # The first one sees to it that the wire is up, if it can be.
        first, rest = await reads.read(addresses[0]), addresses[1:]
        if wire is None or not wire.up:
            return [first, *[await reads.read(address) for address in rest]]
        return [first, *(await _read_many(reads, rest) if rest else ())]
    if reads.state.recovery.pending:
        covered = [address for address in addresses if reads.state.recovery.covers(address.name)]
        with contextlib.suppress(CacheUnavailableError):
            for address in covered[:1]:
                await reads.caught_up(wire, address)
    answers: list[Entry | Exception | None] = [UnsettledError()] * len(addresses)
    tags: set[str] = set()
    for attempt in range(JUDGEMENTS):
        open_ = [index for index, answer in enumerate(answers) if isinstance(answer, UnsettledError)]
        if not open_:
            break
        wanted = [addresses[index] for index in open_]
        for index, answer in zip(open_, await _ask_many(reads, wire, wanted, tags, again=attempt > 0), strict=True):
            answers[index] = answer
            if isinstance(answer, UnsettledError):
                tags.update(answer.tags)
    # What was lost on the way goes the long way round.
    return [
        await reads.read(address) if isinstance(answer, Exception) else answer
        for answer, address in zip(answers, addresses, strict=True)
    ]


async def _ask_many(
    reads: Reads, wire: "Wire", addresses: Sequence[Address], tags: Iterable[str], *, again: bool
) -> list[Entry | Exception | None]:
    """Ask for some values, and for the epochs of tags that they turned out to have.

    :param again: whether they have come once before their epochs were known; see `EpochReads.prepare`.
    """
    waiters: list[asyncio.Future[Entry | None]] = []
    with contextlib.ExitStack() as fills:
        try:
            reads.epochs.prepare(wire, addresses[0].realm, tuple(tags), again=again)
            for address in addresses:
                waiter, fill = reads.request(wire, address, None if again else reads.held(address))
                waiters.append(waiter)
                fills.callback(reads.settle, fill)
        except CacheUnavailableError as error:
            refused: list[Exception] = [error] * (len(addresses) - len(waiters))
        else:
            refused = []
        try:
            answers = await asyncio.gather(*waiters, return_exceptions=True)
        finally:
            # Cancelled half-way, nobody is left to look at the rest.
            for waiter in waiters:
                waiter.cancel()
    return [*(_no_cancellation(answer) for answer in answers), *refused]


def _no_cancellation(answer: Entry | BaseException | None) -> Entry | Exception | None:
    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
        raise answer
    return answer
