"""Writes and removals in local namespaces, whose objects stay in this process."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.coordination.local_lease import LocalLease
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.footprint import object_size
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.observers import StoredValue
from magnus_cache._engine.store.judge import judge
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Keep", "LocalWrites", "count_here"]


class Keep(Protocol):
    """Stores a value in memory unless it is overtaken; see `Writes._keep`."""

    def __call__(
        self, ref: KeyRef, record: Record, ttl: Life, overtaken: Callable[[], bool], trust: Trust | None = None, *,
        supersedes: bool = False,
    ) -> bool:  # fmt: skip
        """Return whether the value is stored."""
        ...


class LocalWrites:
    """The writes to the local namespaces of one cache.

    :param keep: stores a value in memory.
    """

    def __init__(self, reads: Reads, keep: Keep) -> None:
        self._reads = reads
        self._state = reads.state
        self._keep = keep

    def record(self, value: Any, tags: tuple[str, ...]) -> Record:
        """Return the record of an object: the object itself, without a payload."""
        return Record(value, None, object_size(value), new_version(), tags=tags, shared=True)

    async def write(
        self, wire: "Connection", ref: KeyRef, record: Record, ttl: Life, overtaken: Callable[[], bool]
    ) -> bool:
        """Keep an object that a caller sets; return whether it is kept."""
        trust = await self.standing(wire, ref, record.tags)
        record = record._replace(epoch=self._state.epochs.highest)
        return self._keep(ref, record, ttl, overtaken, trust, supersedes=True)

    async def standing(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...]) -> Trust | None:
        """Return the trust for an object that a caller sets now; None if Redis cannot be asked."""
        state = self._state
        state.local_namespaces.add(str(ref.namespace))
        try:
            await wire.renew()
            sent = state.clock()
            await self._reads.epoch_sync.settled(wire, ref.epoch_names, tags)
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
            return None
        return self._trust(wire, ref, tags, sent)

    async def fill(self, ref: KeyRef, record: Record, ttl: Life, fence: Fence) -> bool | CacheUnavailableError:
        """Keep a loaded object unless it was invalidated since; return whether it is kept.

        Returns the error if Redis cannot be asked about invalidations.

        :param record: with the highest epoch that was known before the load.
        """
        watch, state = fence.lease, self._state
        assert isinstance(watch, LocalLease)
        try:
            # Not the lease's connection: a blocking load may end on another loop than it began on.
            wire, now = state.client.current_connection(ref.name), state.clock()
            if not wire.up or wire.trust.deadline <= now:
                # The answer comes after all earlier announcements.
                await wire.renew()
            await ask_twice(lambda: self._reads.epoch_sync.settled(wire, ref.epoch_names, record.tags))
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
            return error
        # Read before the verdict: a later invalidation finds an entry older than itself, or voids the placeholder.
        known = state.memory.generation, state.epochs.stamps(record.tags)
        kept = False
        lowest_valid = state.epochs.lowest_valid_seen(ref.epoch_names, record.tags)
        if isinstance(ttl, CalendarLife):
            ttl = self._reads.lives.left(ttl, ref.name, now)
        # What waits in the outbox is older than the load, has voided the placeholder, or has invalidated a tag.
        judged = judge(record, ttl, ref.freshness, lowest_valid, wire.time.horizon, pending=False)
        if judged.serves and not state.epochs.overtaken(record.tags, fence.since):
            trust = self._trust(wire, ref, record.tags, now)
            as_of = 0 if record.began is None else record.began.told(state.topology.time_of(ref.name))
            entry = self._reads.entry(ref, record, trust, (now + ttl, now, as_of), known)
            kept = state.memory.fill(watch.placeholder, entry)
        watch.close(filled=True)
        ref.counters.stores += kept
        state.stats.fenced_loads += not kept
        if kept and state.observers.active:
            state.observers.stored(ref, "memory", StoredValue(record, ttl, True))
        if kept and state.changes.active:
            state.changes.kept(ref.name)
        return kept

    def _trust(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], sent: float) -> Trust:
        """Return the trust of an object: one that has ended if its epochs are in doubt, so the next read judges it."""
        suspect = Trust(float("-inf"), self._state.generations.now(ref.name))
        return self._reads.local.trust(wire, ref, tags, sent) or suspect

    async def remove(self, refs: Sequence[KeyRef]) -> tuple[int, list[bytes]]:
        """Remove objects of local namespaces, in this and the other processes.

        Returns how many this process had, and the names of the values in other namespaces, which it leaves alone.
        """
        local = [ref for ref in refs if ref.namespace.local]
        others = [ref.name for ref in refs if not ref.namespace.local]
        return await self._remove(local) if local else 0, others

    async def _remove(self, refs: Sequence[KeyRef]) -> int:
        state = self._state
        names = [ref.name for ref in refs]
        here = count_here(state.memory, names)
        state.forget_names(names)
        if state.client.connection(names[0]) is None:
            return here
        controls = list({state.epochs.tag_name(tag): None for each in refs for tag in tagged(each, ())})
        try:
            await ask_twice(lambda: state.replayer.bump(controls))
        except asyncio.CancelledError:
            self._unsure(controls)
            raise
        except CacheUnavailableError as error:
            state.stats.failed(error.reason)
            self._unsure(controls)
            if state.reachable:
                state.notices.warn(f"refused:{error.reason}", f"{error}; other processes still use the value")
            await state.journal_written()
        return here

    def _unsure(self, controls: Sequence[bytes]) -> None:
        # The record first, as for every invalidation that Redis may not have: see `Clears`.
        self._state.record_missed(lambda outbox: outbox.record_tags(controls))
        for name in controls:
            self._state.outdated(name)


def count_here(memory: BatchCache, names: Iterable[bytes]) -> int:
    """Return how many of these values this process has, trusted or not. Count before a removal."""
    return memory.count(set(names))
