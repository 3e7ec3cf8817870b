"""Reads of blocking callers through the lane: which may go that way, and what becomes of their answers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from magnus_cache._engine.coherence.epochs import SMALL_BYTES
from magnus_cache._engine.coordination.epoch_sync import UnsettledError
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.lane_tickets import LONG_WAY, Judged, LongWay, Ticket
from magnus_cache._engine.store.batches import PAYLOAD, ValueBatches
from magnus_cache._engine.store.records import KeyRef

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LaneReads"]

_DEAD: Final = float("-inf")

_MOST_TAGS: Final = 8
"""Further tags whose epochs are requested along with each value of a namespace or function."""

_Judge: TypeAlias = "Callable[[KeyRef, Placeholder | None, bytes | None, Connection, float], Entry | None]"
"""What judges an answer and keeps it, on whatever way it came; see `Reads.received`."""


class LaneReads:
    """The reads of one `State` that threads make themselves.

    :param judge: judges what came.
    :param batches: judges what came for several threads, where only payloads are wanted.
    """

    __slots__ = ("_batches", "_judge", "_state")

    def __init__(self, state: State, judge: _Judge, batches: ValueBatches) -> None:
        self._state = state
        self._judge = judge
        self._batches = batches

    def read(self, ref: KeyRef, placeholder: Placeholder | None) -> Entry | bytes | LongWay | None:
        """Return the entry of a value in Redis, or None for none; `LONG_WAY` if the background loop has to be asked.

        Of a value that is never kept it may be the payload alone.

        :param placeholder: its place in memory, reserved before; None for a value that is not kept.
        :raises CacheUnavailableError: an `UnsettledError` for a value whose epochs are not known.
        """
        names, tags = ref.epoch_names, ref.epoch_names.value_tags
        try:
            return self._read(ref, placeholder, tags)
        except UnsettledError as error:
            if set(error.tags) <= {*tags, *names.tags}:
                raise
            # The next ones most likely have them, too. In this order: those of this value must come along.
            most = max(_MOST_TAGS, len(error.tags))
            names.value_tags = tuple(dict.fromkeys((*error.tags, *tags)))[:most]
            answer = self._read(ref, placeholder, names.value_tags)
            if isinstance(answer, LongWay):
                raise
            return answer

    def _read(
        self, ref: KeyRef, placeholder: Placeholder | None, tags: tuple[str, ...]
    ) -> Entry | bytes | LongWay | None:  # fmt: skip
        """Do what `read` does, with the epochs of some further tags."""
        state, epoch_names = self._state, ref.epoch_names
        wire = state.topology.connection_on(state.portal.loop)
        if wire is None or not wire.up or epoch_names.ready not in wire.known.ready:
            return LONG_WAY
        # Large ones would hold up all others; of the first one, nothing is known.
        if not 0 < epoch_names.value_bytes <= SMALL_BYTES:
            return LONG_WAY
        receiver = self._batches if ref.is_far else None
        near = placeholder is not None
        answer = state.lane.ask(Ticket(ref, near=near, receiver=receiver, place=PAYLOAD, tags=tags), wire)
        if isinstance(answer, LongWay):
            return answer
        if isinstance(answer, Judged):
            if answer.error is not None:
                raise answer.error
            judged: Entry | bytes | None = answer.result
            return judged
        raw, source, sent = answer
        if receiver is not None and raw is not None:
            payload = receiver.payload(ref, raw, source, sent)
            if payload is not None:
                return payload
        if placeholder is None or source.trust.deadline == _DEAD:
            # What the wire does not hear of any more is served, as it came with its epochs, but not kept.
            return self._judge(ref, None, raw, source, sent)
        entry = self._judge(ref, placeholder, raw, source, sent)
        # Another thread was answered before or after this one, and what it has kept, or is about to, may be older than
        # what is returned here: its announcement may still be on the way to the wire. Nobody is to go back in time.
        memory = state.memory
        if raw is None:
            memory.invalidate(ref.name)
        elif entry is not None:
            kept = memory.get_stale(ref.name, trusted=False)
            if kept is not entry and (kept is None or kept.version != entry.version):
                memory.invalidate(ref.name)
        return entry
