"""Reads of blocking callers through the lane: which may go that way, and what becomes of their answers."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from magnus_cache._engine.coherence.epochs import SMALL_BYTES
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.lane_tickets import LONG_WAY, Judged, LongWay, Ticket
from magnus_cache._engine.store.batches import PAYLOAD, ValueBatches
from magnus_cache._engine.store.records import KeyRef

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection, Waiter

__all__ = ["LaneReads"]

_DEAD: Final = float("-inf")

_Judge: TypeAlias = "Callable[[KeyRef, Placeholder | None, bytes | None, Connection, float], Entry | None]"
"""What judges an answer and keeps it, on whatever way it came; see `Reads.received`."""

_Ask: TypeAlias = "Callable[[KeyRef, Placeholder | None, Waiter], None]"
"""Queues a read on the background loop; see `Portal.request`."""


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

    def answer(self, ref: KeyRef, placeholder: Placeholder | None, ask: "_Ask") -> Entry | bytes | None:
        """Return what `read` does, or what the background loop finds.

        :param ask: queues the read there.
        :raises CacheUnavailableError: when Redis does not answer, and as `read` does.
        :raises CacheClosedError: if the cache is closed meanwhile.
        """
        answer = self.read(ref, placeholder)
        if not isinstance(answer, LongWay):
            return answer
        entry: Entry | None = self._state.portal.request(partial(ask, ref, placeholder))
        return entry

    def read(self, ref: KeyRef, placeholder: Placeholder | None) -> Entry | bytes | LongWay | None:
        """Return the entry of a value in Redis, or None for none; `LONG_WAY` if the background loop has to be asked.

        Of a value that is never kept it may be the payload alone.

        :param placeholder: its place in memory, reserved before; None for a value that is not kept.
        :raises CacheUnavailableError: an `UnsettledError` for a value whose epochs are not known.
        """
        state, epoch_names = self._state, ref.epoch_names
        wire = state.topology.connection_on(state.portal.loop)
        if wire is None or not wire.up or epoch_names.ready not in wire.known.ready:
            return LONG_WAY
        # Large ones would hold up all others; of the first one, nothing is known.
        if not 0 < epoch_names.value_bytes <= SMALL_BYTES:
            return LONG_WAY
        receiver = self._batches if ref.is_far else None
        answer = state.lane.ask(Ticket(ref, near=placeholder is not None, receiver=receiver, place=PAYLOAD), wire)
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
