"""Reads of many values: from memory at once, and the others in one or a few exchanges with Redis."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.store.batch_keys import KeyNames
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["MANY", "addressed", "found_many", "found_many_blocking", "look_many", "look_many_blocking", "weight"]

MANY: Final = 500
"""Values that one call requests or writes at a time."""

_STEP: Final = 64
"""Keys handled in one step of the event loop, whatever their values: some hundred microseconds."""

_Look = tuple[Entry | None, bool]
"""An entry or None, and whether it was in memory."""


async def addressed(reads: Reads, namespace: str, keys: Sequence[Any]) -> list[KeyRef]:
    """Return the references of many keys.

    :raises CacheArgumentError: for a namespace or key that cannot be used.
    """
    refs: list[KeyRef] = []
    for start in range(0, len(keys), _STEP):
        refs += [reads.ref(namespace, key) for key in keys[start : start + _STEP]]
        await turn()
    return refs


async def found_many(reads: Reads, keys: Sequence[Any], refs: Sequence[KeyRef]) -> dict[Any, Any]:
    """Return the stored values by key.

    :raises CacheArgumentError: for keys that are equal in Python but stored separately.
    """
    found: dict[Any, Any] = {}
    names, portion = KeyNames(), Step()
    for start in range(0, len(keys), MANY):
        some, step = keys[start : start + MANY], refs[start : start + MANY]
        names.add(some, step)
        hits = near_hits = 0
        for key, ref, (entry, near) in zip(some, step, await look_many(reads, step), strict=True):
            size = weight(entry)
            value = reads.opened_here(ref, entry)
            if value is LARGE:
                value = await reads.open(ref, entry)
            if value is not MISS:
                found[key] = value
                hits += 1
                near_hits += near
            if portion.done(size):
                await turn()
        step[0].counters.count_many(len(some), hits, near_hits)
    return found


def found_many_blocking(reads: Reads, keys: Sequence[Any], refs: Sequence[KeyRef]) -> dict[Any, Any]:
    """Return the stored values by key, as `found_many`, in a blocked thread.

    The thread decodes the values itself, so that the loop stays free for all threads.

    :raises CacheArgumentError: as `found_many` does.
    """
    found: dict[Any, Any] = {}
    names = KeyNames()
    for start in range(0, len(keys), MANY):
        some, step = keys[start : start + MANY], refs[start : start + MANY]
        names.add(some, step)
        hits = near_hits = 0
        for key, ref, (entry, near) in zip(some, step, look_many_blocking(reads, step), strict=True):
            value = reads.opened(ref, entry)
            if value is not MISS:
                found[key] = value
                hits += 1
                near_hits += near
        step[0].counters.count_many(len(some), hits, near_hits)
    return found


def weight(entry: Entry | None) -> int:
    """Return the bytes to decode when an entry is opened."""
    payload = entry.payload if entry is not None else None
    return len(payload) if payload is not None else 0


async def look_many(reads: Reads, refs: Sequence[KeyRef]) -> list[_Look]:
    """Return the entries of many values, each with whether it was in memory; Redis gets one request for the others."""
    found, missing = _near(reads, refs)
    for start in range(0, len(missing), MANY):
        await turn()
        step = missing[start : start + MANY]
        _note(found, step, await _read_many(reads, [refs[index] for index in step]))
    return found


def look_many_blocking(reads: Reads, refs: Sequence[KeyRef]) -> list[_Look]:
    """Return the entries of many values, as `look_many`, in a blocked thread."""
    found, missing = _near(reads, refs)
    for start in range(0, len(missing), MANY):
        step = missing[start : start + MANY]
        asked = partial(_read_many, reads, [refs[index] for index in step])
        try:
            entries = reads.state.portal.call(asked)
        except NoThreadError as error:
            entries = [reads.without_loop(refs[index], error) for index in step]
        _note(found, step, entries)
    return found


def _near(reads: Reads, refs: Sequence[KeyRef]) -> tuple[list[_Look], list[int]]:
    """Return the entries in memory, and the indexes of the values that are not in memory."""
    hit = reads.state.memory.hit
    found: list[_Look] = [(hit(ref.name), True) for ref in refs]
    return found, [index for index, (entry, _) in enumerate(found) if entry is None]


def _note(found: list[_Look], places: Sequence[int], entries: Sequence[Entry | None]) -> None:
    for place, entry in zip(places, entries, strict=True):
        found[place] = (entry, False)


async def _read_many(reads: Reads, refs: Sequence[KeyRef]) -> list[Entry | None]:
    """Return the entries of values that are not in memory, as `Reads.read`; together they are one or a few MGETs."""
    if refs[0].namespace.local:
        return [await reads.read(ref) for ref in refs]
    wire = reads.state.client.connection(refs[0].name)
    if wire is None or not wire.up:
        # The first read brings the wire up, if that is possible.
        first, rest = await reads.read(refs[0]), refs[1:]
        if wire is None or not wire.up:
            return [first, *[await reads.read(ref) for ref in rest]]
        return [first, *(await _read_many(reads, rest) if rest else ())]
    if reads.state.outbox.pending:
        covered = [ref for ref in refs if reads.state.outbox.covers(ref.name)]
        with contextlib.suppress(CacheUnavailableError):
            for ref in covered[:1]:
                await reads.caught_up(wire, ref)
    answers: list[Entry | Exception | None] = [UnsettledError()] * len(refs)
    tags: set[str] = set()
    for attempt in range(JUDGEMENTS):
        open_ = [index for index, answer in enumerate(answers) if isinstance(answer, UnsettledError)]
        if not open_:
            break
        wanted = [refs[index] for index in open_]
        for index, answer in zip(open_, await _ask_many(reads, wire, wanted, tags, again=attempt > 0), strict=True):
            answers[index] = answer
            if isinstance(answer, UnsettledError):
                tags.update(answer.tags)
    # read() retries what failed, and falls back.
    return [
        await reads.read(ref) if isinstance(answer, Exception) else answer
        for answer, ref in zip(answers, refs, strict=True)
    ]


async def _ask_many(
    reads: Reads, wire: "Connection", refs: Sequence[KeyRef], tags: Iterable[str], *, again: bool
) -> list[Entry | Exception | None]:
    """Request values, together with the epochs of tags that an earlier answer showed.

    :param again: whether the values came once before their epochs were known; see `EpochSync.prepare`.
    """
    waiters: list[asyncio.Future[Entry | None]] = []
    refused: list[Exception] = []
    with contextlib.ExitStack() as placeholders:
        try:
            try:
                reads.epoch_sync.prepare(wire, refs[0].epoch_names, tuple(tags), again=again)
                for count, ref in enumerate(refs, 1):
                    waiter, placeholder = reads.request(wire, ref, None if again else reads.entry_here(ref))
                    waiters.append(waiter)
                    placeholders.callback(reads.settle, placeholder)
                    if count % _STEP == 0:
                        await turn()
            except CacheUnavailableError as error:
                refused = [error] * (len(refs) - len(waiters))
            answers = await asyncio.gather(*waiters, return_exceptions=True)
        finally:
            # After a cancellation, no one reads the other answers.
            for waiter in waiters:
                waiter.cancel()
    return [*(_no_cancellation(answer) for answer in answers), *refused]


def _no_cancellation(answer: Entry | BaseException | None) -> Entry | Exception | None:
    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
        raise answer
    return answer
