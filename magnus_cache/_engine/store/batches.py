"""Answers to batches of reads: judged together, and handed out together.

A reply has up to 256 values, most of them alike: small, without flags, fresh, of one namespace or function. What such a
value is judged by is the same for all of them, and is collected once: the outbox, the clock, the minimum of the epochs.
Then a value takes a few comparisons, written out in `ValueBatches.received`, which *only ever say that a value is
valid*. Whatever is in doubt (an unknown epoch, a value at its end, unusual flags, tags of its own, a large value, an
invalidation that waits) goes the readable way, through `Reads.received` to `judge`. So there are no two sets of rules:
a value that is accepted here is one that `judge` would call fresh, and a property test holds the two to each other.

The order of the evidence is that of `judge`: the outbox first, then the epochs. The evidence is as old as the step of
the reply that it is used for, a millisecond at most. An invalidation by another thread within that time is concurrent
with the reads, which began before it: they may return what was there. They keep nothing: a value that goes to memory
takes the readable way, where its placeholder and the memory's generation are looked at.
"""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from magnus_cache._engine.codec.envelope import (
    HEADER_BYTES,
    JUDGED_FIELDS,
    PREFIX,
    SMALL_VALUE,
    SUMMED_FROM,
    TAGGED,
    head_of,
)
from magnus_cache._engine.coherence.epochs import SMALL_BYTES
from magnus_cache._engine.coordination.epoch_sync import UnsettledError
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.redis.exchange import Connection, ReadBatch

    _Reply = tuple[Connection, float, bool]
    """Where a reply came from, when its request was sent, and whether an invalidation may wait that covers it."""

__all__ = ["LEAST_LIFE", "NEVER", "PAYLOAD", "ValueBatches", "bounds"]

PAYLOAD: Final = object()
"""In place of a placeholder: nothing is kept of the value, and the caller takes its payload where that is all there is
to it. It gets an entry, or None, in all other cases."""

NEVER: Final = 1 << 64
"""A minimum that no epoch reaches."""

LEAST_LIFE: Final = 0.001
"""Seconds. A shorter life could be lost in rounding when it is added to the clock."""


def bounds(
    state: State, ref: KeyRef, largest: int, connection: "Connection", *, doubtful: bool
) -> tuple[int, int, int]:
    """Return the lowest epoch of a valid value, that of one with its function's tag, and the most bytes of a value.

    An epoch that none reaches stands for one that is not known here, so that the readable way looks at it.
    """
    names = ref.epoch_names
    if doubtful or not 0 < names.value_bytes <= SMALL_BYTES:
        return NEVER, NEVER, largest
    epochs, known = state.epochs, connection.known
    minimum = epochs.lowest_valid(known, names)
    tagged = epochs.lowest_valid(known, names, names.tags) if names.tags else None
    return NEVER if minimum is None else minimum, NEVER if tagged is None else tagged, largest


class _Judge(Protocol):
    """The readable way; see `Reads`."""

    def received(
        self, ref: KeyRef, placeholder: Placeholder | None, raw: bytes | None, connection: "Connection", sent: float
    ) -> Entry | None: ...

    def limit(self, ref: KeyRef) -> int: ...


class ValueBatches:
    """Judges batches of reads; a `ValueReceiver`. Their items are `KeyRef`, their places `Placeholder` or `PAYLOAD`."""

    __slots__ = ("_clock", "_reads", "_release", "_state")

    def __init__(self, state: State, reads: _Judge) -> None:
        self._state = state
        self._clock = state.clock
        self._reads = reads
        self._release = state.memory.release

    def received(
        self, batch: "ReadBatch", part: slice, values: Sequence[bytes | None], connection: "Connection", sent: float
    ) -> None:
        """Judge a part of a batch, and settle its waiters. Runs inside the reader."""
        outbox, time = self._state.outbox, connection.time
        doubtful = outbox.pending or sent < outbox.confirmed_at
        reply: _Reply = (connection, sent, doubtful)
        # Nothing is compared with the time if there are no values.
        past, horizon = time.past(self._clock()) if any(values) else 0, time.horizon
        epoch_names: EpochNames | None = None
        namespace: Any = None
        minimum = minimum_tagged = largest = NEVER
        head = b""
        # Looked up once: the loop is the cost of a read through Redis.
        small, prefix, fields, crc, summed = SMALL_VALUE, PREFIX, JUDGED_FIELDS.unpack_from, zlib.crc32, SUMMED_FROM
        payload_only, start, least = PAYLOAD, HEADER_BYTES, LEAST_LIFE
        for ref, place, waiter, raw in zip(
            batch.wanted[part], batch.places[part], batch.waiters[part], values[part], strict=True
        ):
            if place is payload_only and raw is not None and start <= (length := len(raw)) < small:
                if ref.epoch_names is not epoch_names or ref.namespace is not namespace:
                    epoch_names, namespace = ref.epoch_names, ref.namespace
                    minimum, minimum_tagged, largest = bounds(
                        self._state, ref, self._reads.limit(ref), connection, doubtful=doubtful
                    )
                    head = head_of(ref.epoch_names.tags)
                mark, checksum, flags, fresh_until, epoch, life, size = fields(raw)
                if (
                    size == length - start and mark == prefix and fresh_until > past and epoch <= horizon
                    and life >= least and size <= largest and crc(raw[summed:]) == checksum
                ):  # fmt: skip
                    payload = None
                    if not flags:
                        if epoch >= minimum:
                            payload = raw[start:]
                    elif flags == TAGGED and epoch >= minimum_tagged and raw.startswith(head, start):
                        payload = raw[start + len(head) :]
                    if payload is not None:
                        if not waiter.done():
                            waiter.set_result(payload)
                        continue
            self._settle(ref, place, waiter, raw, reply)

    def payload(self, ref: KeyRef, raw: bytes, connection: "Connection", sent: float) -> bytes | None:
        """Return the payload of one plain valid value; None for what the readable way has to look at.

        These are the comparisons of `received`, for a value that came alone.
        """
        outbox, names, time = self._state.outbox, ref.epoch_names, connection.time
        if (
            outbox.pending or sent < outbox.confirmed_at
            or not HEADER_BYTES <= len(raw) < SMALL_VALUE
        ):  # fmt: skip
            return None
        mark, checksum, flags, fresh_until, epoch, life, size = JUDGED_FIELDS.unpack_from(raw)
        if not (
            mark == PREFIX and fresh_until > time.past(self._clock()) and epoch <= time.horizon and life >= LEAST_LIFE
            and size <= self._reads.limit(ref) and size == len(raw) - HEADER_BYTES
            and zlib.crc32(raw[SUMMED_FROM:]) == checksum and 0 < names.value_bytes <= SMALL_BYTES
        ):  # fmt: skip
            return None
        head, tags = b"", tuple[str, ...]()
        if flags == TAGGED:
            head, tags = head_of(names.tags), names.tags
            if not head or not raw.startswith(head, HEADER_BYTES):
                return None
        elif flags:
            return None
        minimum = self._state.epochs.lowest_valid(connection.known, names, tags)
        return None if minimum is None or epoch < minimum else raw[HEADER_BYTES + len(head) :]

    def _settle(self, ref: KeyRef, place: Any, waiter: Any, raw: bytes | None, reply: "_Reply") -> None:
        """Judge one value the readable way."""
        connection, sent, doubtful = reply
        placeholder: Placeholder | None = None if place is PAYLOAD else place
        problem: CacheError | None = None
        entry: Entry | None = None
        try:
            entry = self._reads.received(ref, placeholder, raw, connection, sent)
        except CacheError as error:
            problem = error
        # A fault in one value's handling must not take the connection from all the others.
        except Exception:  # noqa: BLE001  # it is told to whom it concerns
            problem = CacheUnavailableError("protocol", "Redis gave an answer to MGET that makes no sense")
        finally:
            if placeholder is not None:
                self._release(placeholder)
        if entry is None and doubtful and raw is not None and place is PAYLOAD and problem is None:
            # It was asked for without a look at what Redis has to be told first; `Reads.read` waits for that.
            problem = UnsettledError()
        if waiter.done():
            return
        if problem is None:
            waiter.set_result(entry)
        else:
            waiter.set_exception(problem)

    def unanswered(self, batch: "ReadBatch", part: slice) -> None:
        """Release what was reserved for reads that get no answer."""
        for place in batch.places[part]:
            if place is not PAYLOAD and place is not None:
                self._release(place)
