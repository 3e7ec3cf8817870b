"""Reads of some values of one call: requested, judged, kept in memory and answered together.

A portion is one part of an MGET, one future, and one look at what its values are judged by. As in `batches`, a few
comparisons only ever say that a value is valid; all others go the readable way, through `Reads.received`. Unlike there,
values are also kept in memory: their placeholders are reserved before the request leaves, and all that a step of the
reply has brought is stored under one lock. An invalidation until then has voided the placeholder of its value.
"""

import asyncio
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from magnus_cache._engine.codec.envelope import (
    HEADER_BYTES,
    HEADER_FIELDS,
    PREFIX,
    SMALL_VALUE,
    SUMMED_FROM,
    TAGGED,
    head_of,
)
from magnus_cache._engine.codec.header_times import LONGEST_LIFE
from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.epochs import SMALL_BYTES
from magnus_cache._engine.memory.entry import Entry, pack_facts
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.exchange import ReadBatch
from magnus_cache._engine.store.batch_keys import trust_by_slot
from magnus_cache._engine.store.batches import LEAST_LIFE, NEVER, bounds
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.errors import CacheError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Answer", "Portion"]

Answer: TypeAlias = Entry | CacheError | None
"""An entry, the error that its read has met, or None for no value."""

_Evidence: TypeAlias = tuple[int, int, int, bytes, bool]
"""The lowest epochs of valid values without and with their function's tag, the most bytes of a value, how one with the
tag begins, and whether values are known to be small."""

_UNANSWERED: Final = CacheUnavailableError("lost", "the read of a value was given up")


class Portion:
    """Reads of some values that are answered together: the `ValueReceiver` of their batch, and its only `Waiter`.

    :ivar answered: done when each read has its answer or its error.
    """

    __slots__ = ("_answers", "_error", "_left", "_placeholders", "_reads", "_refs", "answered")

    def __init__(self, reads: Reads, refs: Sequence[KeyRef], loop: asyncio.AbstractEventLoop) -> None:
        self._reads = reads
        self._refs = refs
        self._left = len(refs)
        self._answers: list[Answer] = [_UNANSWERED] * len(refs)
        self._placeholders: list[Placeholder] | None = None
        self._error: CacheError = _UNANSWERED
        self.answered: asyncio.Future[list[Answer]] = loop.create_future()

    def request(self, connection: "Connection") -> None:
        """Queue the reads, with their names reserved in memory.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        refs, memory = self._refs, self._reads.state.memory
        batch = ReadBatch(self)
        batch.wanted += refs
        batch.places += range(len(refs))
        batch.waiters += [self] * len(refs)
        reserved: list[Placeholder] = []
        try:
            if refs[0].namespace.l1:
                memory.reserve_many([ref.name for ref in refs], reserved)
                self._placeholders = reserved
            connection.read_batch(batch)
        except BaseException:
            memory.release_many(reserved)
            raise

    # -- as a waiter ------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Return whether the error is known already, which the reads without an answer have in common."""
        return self._error is not _UNANSWERED

    def set_result(self, result: Any, /) -> None:
        """Not called: `received` takes the answers."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the reason why some reads get no answer."""
        if isinstance(exception, CacheError):
            self._error = exception

    # -- as a receiver ----------------------------------------------------------------------------------------

    def unanswered(self, batch: ReadBatch, part: slice) -> None:
        """Release what was reserved for reads that get no answer."""
        places = batch.places[part]
        for place in places:
            self._answers[place] = self._error
        self._end(places)

    def received(
        self, batch: ReadBatch, part: slice, values: Sequence[bytes | None], connection: "Connection", sent: float
    ) -> None:
        """Judge a part of the answers, and keep those that are valid. Runs inside the reader."""
        places = batch.places[part]
        kept, gone = self._judged(batch.wanted[part], places, values[part], connection, sent)
        placeholders, answers = self._placeholders, self._answers
        if placeholders is not None:
            memory = self._reads.state.memory
            if kept:
                entries: list[Any] = [answers[place] for place in kept]
                found = (self._refs[place] for place in kept)
                stored = ((ref.name, ref.epoch_names, entry) for ref, entry in zip(found, entries, strict=True))
                trust_by_slot(self._reads.state.topology, stored, connection, sent)
                memory.fill_many([placeholders[place] for place in kept], entries)
            if gone:
                # Or the next outage would bring back what is still here of them.
                memory.drop_many([placeholders[place] for place in gone])
        self._end(places)

    def _judged(
        self, refs: Sequence[KeyRef], places: Sequence[int], values: Sequence[bytes | None], connection: "Connection",
        sent: float,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """Note the answers; return the places of entries for memory to keep, and of values that Redis does not have."""
        reads, answers, time = self._reads, self._answers, connection.time
        state, now = reads.state, reads.state.clock()
        doubtful = state.outbox.pending or sent < state.outbox.confirmed_at
        past, horizon = time.past(now), time.horizon
        # Before the epochs are looked at, as in `Reads.received`.
        generation = state.memory.generation
        judged_by: tuple[object, ...] = ()
        found: dict[EpochNames, _Evidence] = {}
        minimum = minimum_tagged = largest = NEVER
        head, kept, gone, is_small = b"", list[int](), list[int](), False
        trust, end = reads.trust(connection, sent, refs[0]), time.end
        # Looked up once: the loop is the cost of a read through Redis.
        small, prefix, fields, crc = SMALL_VALUE, PREFIX, HEADER_FIELDS.unpack_from, zlib.crc32
        for ref, place, raw in zip(refs, places, values, strict=True):
            names = ref.epoch_names
            by = names, ref.namespace, ref.freshness
            if by != judged_by:
                # On a cluster, the values of one call have epochs by their groups; all else they have in common.
                evidence = found.get(names) if by[1:] == judged_by[1:] else None
                judged_by = by
                if evidence is None:
                    evidence = found[names] = self._evidence(ref, connection, doubtful=bool(doubtful))
                minimum, minimum_tagged, largest, head, is_small = evidence
            if raw is None:
                if is_small:
                    answers[place] = None
                    gone.append(place)
                    continue
            elif HEADER_BYTES <= len(raw) < small and raw[:3] == prefix:
                checksum, flags, version, fresh_until, epoch, _, life, size = fields(raw)
                if (
                    fresh_until > past and epoch <= horizon and life >= LEAST_LIFE and size <= largest
                    and size == len(raw) - HEADER_BYTES and crc(raw[SUMMED_FROM:]) == checksum
                ):  # fmt: skip
                    deadline = end(fresh_until, life, now)
                    # `header_times.as_of`, written out.
                    began = fresh_until - int(life * 1e6) if life < LONGEST_LIFE else 0
                    if began < 0:
                        began = 0
                    if not flags and epoch >= minimum:
                        answers[place] = Entry(
                            None, raw[HEADER_BYTES:], deadline, trust, size, pack_facts(version, 0, began)
                        )
                        kept.append(place)
                        continue
                    if flags == TAGGED and epoch >= minimum_tagged and raw.startswith(head, HEADER_BYTES):
                        payload = raw[HEADER_BYTES + len(head) :]
                        record = Record(None, payload, len(payload), version, epoch, names.tags)
                        known = generation, names.stamps
                        answers[place] = reads.entry(ref, record, trust, (deadline, sent, began), known)
                        kept.append(place)
                        continue
            answers[place] = self._readable(ref, place, raw, connection, sent)
        return kept, gone

    def _evidence(self, ref: KeyRef, connection: "Connection", *, doubtful: bool) -> "_Evidence":
        """Return what values are judged by that have the namespace, the policy and the epochs of this one."""
        reads, names = self._reads, ref.epoch_names
        minimum, tagged, largest = bounds(reads.state, ref, reads.limit(ref), connection, doubtful=doubtful)
        if ref.freshness is not NO_POLICY or ref.namespace.l1_ttl is not None or ref.namespace.seal:
            minimum = tagged = NEVER
        is_small = 0 < names.value_bytes <= SMALL_BYTES
        reads.bound_entries(ref)
        return minimum, tagged, largest, head_of(names.tags), is_small

    def _readable(self, ref: KeyRef, place: int, raw: bytes | None, connection: "Connection", sent: float) -> Answer:
        """Judge one value the readable way, which also keeps it."""
        placeholder = self._placeholders[place] if self._placeholders is not None else None
        try:
            return self._reads.received(ref, placeholder, raw, connection, sent)
        except CacheError as error:
            return error
        # A fault in one value's handling must not take the connection from all the others.
        except Exception:  # noqa: BLE001  # it is told to whom it concerns
            return CacheUnavailableError("protocol", "Redis gave an answer to MGET that makes no sense")

    def _end(self, places: Sequence[int]) -> None:
        """Release the placeholders of answered reads; with the last ones, answer the call."""
        if self._placeholders is not None:
            self._reads.state.memory.release_many([self._placeholders[place] for place in places])
        self._left -= len(places)
        if not self._left and not self.answered.done():
            try:
                self.answered.set_result(self._answers)
            except RuntimeError:
                # The future of a closed loop: its task has ended, and cannot be woken.
                if not self.answered.get_loop().is_closed():
                    raise
