"""Reads of many values: from memory at once, and the others in one or a few exchanges with Redis."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from magnus_cache._engine.coherence.epochs import LARGE_BYTES
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.store.batch_keys import KeyNames, RefMaker, places_by_server
from magnus_cache._engine.store.portions import Answer, Portion
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache._engine.store.values import may_have
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = [
    "MANY",
    "Stamp",
    "found_many",
    "found_many_blocking",
    "look_many",
    "look_many_blocking",
    "names_of",
    "weight",
]

MANY: Final = 250
"""Values that are requested together: with their epochs, they are one MGET."""

_AHEAD: Final = 2
"""Requests on their way while the values of an earlier one are decoded."""

_STEP: Final = 64
"""Keys handled in one step of the event loop, whatever their values: some hundred microseconds."""

_ASKED: Final = 1000
"""Values for which a blocked thread waits at a time."""

_NOT_ASKED: Final = CacheUnavailableError("lost", "the value was not asked for")
"""In place of the answer of a server without a connection: the value is read by itself, which makes one."""

Stamp: TypeAlias = Callable[[KeyRef, Any, Entry, bool], Any]
"""Makes what a caller gets of a value, its entry, and whether that was in memory."""

_Look = tuple[Entry | None, bool]
"""An entry or None, and whether it was in memory."""


async def names_of(refs: RefMaker, keys: Sequence[Any]) -> list[bytes]:
    """Return the names of many values.

    :raises CacheArgumentError: for a key that cannot be used.
    """
    names: list[bytes] = []
    for start in range(0, len(keys), MANY):
        names += map(refs.name, keys[start : start + MANY])
        await turn()
    return names


async def found_many(
    reads: Reads, refs: RefMaker, keys: Sequence[Any], names: Sequence[bytes], stamp: Stamp | None = None
) -> dict[Any, Any]:
    """Return the stored values by key.

    :param stamp: makes what is returned of each; None for the values themselves.
    :raises CacheArgumentError: for keys that are equal in Python but stored separately.
    """
    found: dict[Any, Any] = {}
    distinct, portion = KeyNames(), Step()
    ahead: deque[tuple[Sequence[Any], _Search]] = deque()
    many = MANY * reads.state.topology.spread
    for start in range(0, len(keys) + _AHEAD * many, many):
        if start < len(keys):
            some = keys[start : start + many]
            wanted = list(map(refs.ref, names[start : start + many]))
            distinct.add(some, wanted)
            search = _Search(reads, wanted)
            search.begin()
            ahead.append((some, search))
            await turn()
        if ahead and (len(ahead) > _AHEAD or start >= len(keys)):
            some, search = ahead.popleft()
            hits = near_hits = 0
            looked = await search.looked()
            for key, ref, (entry, near) in zip(some, search.refs, looked, strict=True):
                value = reads.opened_here(ref, entry)
                if value is LARGE:
                    value = await reads.open(ref, entry)
                if value is not MISS:
                    found[key] = value if stamp is None or entry is None else stamp(ref, value, entry, near)
                    hits += 1
                    near_hits += near
                if portion.done(weight(entry)):
                    await turn()
            refs.counters.count_many(len(some), hits, near_hits)
            if reads.state.observers.active:
                each = partial(_each, found, some, search.refs, looked)
                reads.state.observers.looked(refs.namespace, len(some), hits, near_hits, each)
    return found


def _each(
    found: Mapping[Any, Any], keys: Sequence[Any], refs: Sequence[KeyRef], looked: Sequence[tuple[Entry | None, bool]]
) -> Iterator[tuple[KeyRef, bool, bool]]:
    """Yield for each look-up its reference, whether it was a hit, and whether in memory."""
    for key, ref, (_, near) in zip(keys, refs, looked, strict=True):
        yield ref, key in found, near


def found_many_blocking(
    reads: Reads, refs: RefMaker, keys: Sequence[Any], names: Sequence[bytes], stamp: Stamp | None = None
) -> dict[Any, Any]:
    """Return the stored values by key, as `found_many`, in a blocked thread.

    The thread decodes the values itself, so that the loop stays free for all threads.

    :raises CacheArgumentError: as `found_many` does.
    """
    found: dict[Any, Any] = {}
    distinct = KeyNames()
    for start in range(0, len(keys), _ASKED):
        some, wanted = keys[start : start + _ASKED], list(map(refs.ref, names[start : start + _ASKED]))
        distinct.add(some, wanted)
        hits = near_hits = 0
        looked = look_many_blocking(reads, wanted)
        for key, ref, (entry, near) in zip(some, wanted, looked, strict=True):
            value = reads.opened(ref, entry)
            if value is not MISS:
                found[key] = value if stamp is None or entry is None else stamp(ref, value, entry, near)
                hits += 1
                near_hits += near
        refs.counters.count_many(len(some), hits, near_hits)
        if reads.state.observers.active:
            each = partial(_each, found, some, wanted, looked)
            reads.state.observers.looked(refs.namespace, len(some), hits, near_hits, each)
    return found


def weight(entry: Entry | None) -> int:
    """Return the bytes to decode when an entry is opened."""
    payload = entry.payload if entry is not None else None
    return len(payload) if payload is not None else 0


class _Search:
    """The search for some values of one call: in memory at once, then in Redis for the others.

    :ivar refs: the references of the values.
    """

    __slots__ = ("_found", "_missing", "_portions", "_reads", "refs")

    def __init__(self, reads: Reads, refs: Sequence[KeyRef]) -> None:
        self._reads = reads
        self.refs = refs
        self._found, self._missing = _near(reads, refs)
        self._portions: list[tuple[Sequence[int], Portion]] = []

    def begin(self) -> None:
        """Queue the requests for values that are not in memory, if nothing has to be done before."""
        reads, missing = self._reads, self._missing
        if not missing:
            return
        wanted = [self.refs[place] for place in missing]
        if wanted[0].namespace.local or reads.state.outbox.pending:
            return
        # Mostly memory has none of them, which takes no call for each to know.
        has_any = wanted[0].namespace.l1 and reads.state.memory.has_any([ref.name for ref in wanted])
        if has_any and any(reads.entry_here(ref) is not None for ref in wanted):
            # To be compared with what Redis has, see `_ask_many`.
            return
        for wire, places in _by_server(reads, wanted):
            if wire is None or not wire.up:
                continue
            some = wanted if len(places) == len(wanted) else [wanted[place] for place in places]
            with contextlib.suppress(CacheUnavailableError):
                self._portions.append((places, _requested(reads, wire, some)))

    async def looked(self) -> list[_Look]:
        """Return the entries, each with whether it was in memory."""
        reads, found, missing = self._reads, self._found, self._missing
        if not missing:
            return found
        wanted = [self.refs[place] for place in missing]
        if not self._portions:
            entries = await _read_many(reads, wanted)
        elif len(self._portions[0][0]) == len(wanted):
            entries = await _settled(reads, wanted, await self._portions[0][1].answered)
        else:
            answers: list[Answer] = [_NOT_ASKED] * len(wanted)
            for places, portion in self._portions:
                for place, answer in zip(places, await portion.answered, strict=True):
                    answers[place] = answer
            entries = await _settled(reads, wanted, answers)
        if wanted[0].others:
            # Under their other names.
            pairs = zip(wanted, entries, strict=True)
            entries = [await reads.read(ref) if entry is None else entry for ref, entry in pairs]
        _note(found, missing, entries)
        return found


async def look_many(reads: Reads, refs: Sequence[KeyRef]) -> list[_Look]:
    """Return the entries of many values, each with whether it was in memory; Redis gets one request for the others."""
    search = _Search(reads, refs)
    search.begin()
    return await search.looked()


def look_many_blocking(reads: Reads, refs: Sequence[KeyRef]) -> list[_Look]:
    """Return the entries of many values, as `look_many`, in a blocked thread."""
    found, missing = _near(reads, refs)
    if not missing:
        return found
    wanted = [refs[place] for place in missing]
    try:
        entries = reads.state.portal.call(partial(_read_all, reads, wanted))
    except NoThreadError as error:
        entries = [reads.without_loop(ref, error) for ref in wanted]
    _note(found, missing, entries)
    return found


async def _read_all(reads: Reads, refs: Sequence[KeyRef]) -> list[Entry | None]:
    """Return the entries of values that are not in memory, with several requests on their way at a time."""
    searches: list[_Search] = []
    many = MANY * reads.state.topology.spread
    for start in range(0, len(refs), many):
        search = _Search(reads, refs[start : start + many])
        search.begin()
        searches.append(search)
        await turn()
    return [entry for search in searches for entry, _ in await search.looked()]


def _near(reads: Reads, refs: Sequence[KeyRef]) -> tuple[list[_Look], list[int]]:
    """Return the entries in memory, and the indexes of the values that are not, or not for these callers."""
    found: list[_Look] = [(entry, True) for entry in reads.state.memory.hits([ref.name for ref in refs])]
    return found, [
        index for index, (entry, _) in enumerate(found)
        if entry is None or (entry.shared and not may_have(refs[index], entry))
    ]  # fmt: skip


def _note(found: list[_Look], places: Sequence[int], entries: Sequence[Entry | None]) -> None:
    for place, entry in zip(places, entries, strict=True):
        found[place] = (entry, False)


def _requested(
    reads: Reads, connection: "Connection", refs: Sequence[KeyRef], tags: Iterable[str] = (), *, again: bool = False
) -> Portion:
    """Queue the reads of values that are not in memory at all, with the epochs that they are judged by.

    :param tags: tags that an earlier answer showed.
    :param again: whether the values came once before their epochs were known; see `EpochSync.prepare`.
    :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
    """
    kinds = {ref.epoch_names.ready: ref.epoch_names for ref in refs}.values()
    if any(names.value_bytes >= LARGE_BYTES for names in kinds):
        connection = reads.state.client.connection_for_large(refs[0].name) or connection
    for names in kinds:
        reads.epoch_sync.prepare(connection, names, tuple(tags), again=again)
    portion = Portion(reads, refs, connection.loop)
    portion.request(connection)
    return portion


async def _read_many(reads: Reads, refs: Sequence[KeyRef]) -> list[Entry | None]:
    """Return the entries of values that are not in memory, as `Reads.read`; together they are one or a few MGETs."""
    if refs[0].namespace.local:
        return [await reads.read(ref) for ref in refs]
    if reads.state.topology.is_cluster:
        # Each joins the batch of its own server.
        return list(await asyncio.gather(*map(reads.read, refs)))
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
    return await _settled(reads, refs, [UnsettledError()] * len(refs), first=True)


def _by_server(
    reads: Reads, refs: Sequence[KeyRef]
) -> "Iterable[tuple[Connection | None, Sequence[int]]]":  # fmt: skip
    """Return the places of some values, grouped by their servers, each with the connection to it."""
    connection = reads.state.client.connection
    if not reads.state.topology.is_cluster:
        return ((connection(refs[0].name), range(len(refs))),)
    return places_by_server(connection, (ref.name for ref in refs)).items()


async def _settled(
    reads: Reads, refs: Sequence[KeyRef], answers: Sequence[Answer], *, first: bool = False
) -> list[Entry | None]:
    """Return the entries of values, with those requested again whose epochs were not known.

    :param first: whether nothing was requested yet.
    """
    if not any(isinstance(answer, Exception) for answer in answers):
        return [answer if not isinstance(answer, Exception) else None for answer in answers]
    if reads.state.topology.is_cluster:
        return await _settled_each(reads, refs, answers)
    settled: list[Answer] = list(answers)
    tags = {tag for answer in answers if isinstance(answer, UnsettledError) for tag in answer.tags}
    for attempt in range(JUDGEMENTS):
        open_ = [index for index, answer in enumerate(settled) if isinstance(answer, UnsettledError)]
        wire = reads.state.client.connection(refs[0].name)
        if not open_ or wire is None:
            break
        wanted = [refs[index] for index in open_]
        again = attempt > 0 or not first
        for index, answer in zip(open_, await _ask_many(reads, wire, wanted, tags, again=again), strict=True):
            settled[index] = answer
            if isinstance(answer, UnsettledError):
                tags.update(answer.tags)
    # read() retries what failed, and falls back.
    return [
        await reads.read(ref) if isinstance(answer, Exception) else answer
        for answer, ref in zip(settled, refs, strict=True)
    ]


async def _settled_each(reads: Reads, refs: Sequence[KeyRef], answers: Sequence[Answer]) -> list[Entry | None]:
    """Do what `_settled` does on a cluster: each value joins the batch of its own server."""
    failed = {place: answer for place, answer in enumerate(answers) if isinstance(answer, Exception)}
    unsettled = {place: error.tags for place, error in failed.items() if isinstance(error, UnsettledError)}
    again = await asyncio.gather(*[
        reads.read(refs[place], unsettled.get(place, ()), again=place in unsettled) for place in failed
    ])  # fmt: skip
    entries = [answer if not isinstance(answer, Exception) else None for answer in answers]
    for place, entry in zip(failed, again, strict=True):
        entries[place] = entry
    return entries


async def _ask_many(
    reads: Reads, wire: "Connection", refs: Sequence[KeyRef], tags: Iterable[str], *, again: bool
) -> list[Answer]:
    """Request values, together with the epochs of tags that an earlier answer showed.

    What is in memory, but not trusted any more, is compared with what Redis has; the other values are portions.

    :param again: whether the values came once before their epochs were known; see `EpochSync.prepare`.
    """
    answers: list[Answer] = [UnsettledError()] * len(refs)
    here = [None if again else reads.entry_here(ref) for ref in refs]
    compared = [place for place, entry in enumerate(here) if entry is not None]
    others = [place for place, entry in enumerate(here) if entry is None]
    portions: list[tuple[Sequence[int], Portion]] = []
    waiters: list[asyncio.Future[Entry | None]] = []
    with contextlib.ExitStack() as placeholders:
        try:
            try:
                for start in range(0, len(others), MANY):
                    places = others[start : start + MANY]
                    portions.append(
                        (places, _requested(reads, wire, [refs[place] for place in places], tags, again=again))
                    )
                    await turn()
                if compared:
                    reads.epoch_sync.prepare(wire, refs[compared[0]].epoch_names, tuple(tags))
                for count, place in enumerate(compared, 1):
                    waiter, placeholder = reads.request(wire, refs[place], here[place])
                    waiters.append(waiter)
                    placeholders.callback(reads.settle, placeholder)
                    if count % _STEP == 0:
                        await turn()
            except CacheUnavailableError as error:
                # Of those that were not requested; the others get theirs below.
                answers = [error] * len(refs)
            for asked, portion in portions:
                for place, answer in zip(asked, await portion.answered, strict=True):
                    answers[place] = answer
            outcomes = await asyncio.gather(*waiters, return_exceptions=True)
            for place, outcome in zip(compared, outcomes, strict=False):
                answers[place] = _no_cancellation(outcome)
        finally:
            # After a cancellation, no one reads the other answers.
            for waiter in waiters:
                waiter.cancel()
    return answers


def _no_cancellation(answer: Entry | BaseException | None) -> Answer:
    if answer is None or isinstance(answer, Entry | CacheError):
        return answer
    raise answer
