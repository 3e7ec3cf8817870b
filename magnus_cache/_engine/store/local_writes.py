"""Keeping and removing objects that stay in this process."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from magnus_cache._engine.codec.envelope import new_version
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.coordination.local_lease import LocalLease
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.store.judge import judge
from magnus_cache._engine.store.local_values import object_size, tagged
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Keep", "LocalWrites"]


class Keep(Protocol):
    """Stores a value in memory unless it is overtaken; see `Writes`."""

    def __call__(
        self, ref: KeyRef, held: Record, ttl: float, overtaken: Callable[[], bool], trust: Trust | None = None, *,
        supersedes: bool = False,
    ) -> bool:  # fmt: skip
        """Store it; return whether it is stored."""
        ...


class LocalWrites:
    """The writes to local namespaces of one cache.

    :param keep: stores in memory.
    """

    def __init__(self, reads: Reads, keep: Keep) -> None:
        self._reads = reads
        self._state = reads.state
        self._keep = keep

    def held(self, value: Any, tags: tuple[str, ...]) -> Record:
        """Return what is to be kept of an object: itself."""
        return Record(value, None, object_size(value), new_version(), tags=tags)

    async def write(
        self, wire: "Connection", ref: KeyRef, held: Record, ttl: float, overtaken: Callable[[], bool]
    ) -> bool:
        """Keep an object that a caller gave; return whether it is kept."""
        state = self._state
        state.local_namespaces.add(str(ref.namespace))
        trust: Trust | None = None
        try:
            await wire.renew()
            sent = state.clock()
            await self._reads.epoch_sync.settled(wire, ref.epoch_names, held.tags)
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
        else:
            trust = self._trust(wire, ref, held.tags, sent)
        held = held._replace(epoch=state.epochs.highest)
        return self._keep(ref, held, ttl, overtaken, trust, supersedes=True)

    async def fill(self, ref: KeyRef, held: Record, ttl: float, fence: Fence) -> bool | CacheUnavailableError:
        """Keep an object that was loaded, unless it was invalidated since; return whether it is kept.

        Returns the error where Redis cannot be asked whether it was.

        :param held: with the epoch that was known before the load.
        """
        watch, state = fence.lease, self._state
        assert isinstance(watch, LocalLease)
        wire, now = watch.connection, state.clock()
        try:
            if not wire.up or wire.trust.deadline <= now:
                # Any answer brings what was announced before.
                await wire.renew()
            await ask_twice(lambda: self._reads.epoch_sync.settled(wire, ref.epoch_names, held.tags))
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
            return error
        # In this order: what is invalidated from here on finds the entry, or its place void.
        known = state.memory.generation, state.epochs.stamps(held.tags)
        kept = False
        minimum = state.epochs.lowest_valid_seen(ref.epoch_names, held.tags)
        # What waits to be told was made before the load, or has voided its place or invalidated one of its tags.
        judged = judge(held, ttl, ref.freshness, minimum, wire.time.horizon, pending=False)
        if judged.serves and not state.epochs.overtaken(held.tags, fence.since):
            trust = self._trust(wire, ref, held.tags, now)
            entry = self._reads.entry(ref, held, trust, (now + ttl, now, None), known)
            kept = state.memory.fill(watch.placeholder, entry)
        watch.close(filled=True)
        ref.counters.stores += kept
        state.stats.fenced_loads += not kept
        return kept

    def _trust(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], sent: float) -> Trust:
        """Return what an object stands on; where its epochs are in doubt, nothing: then the next read judges it."""
        suspect = Trust(float("-inf"), self._state.generations.current)
        return self._reads.local.trust(wire, ref, tags, sent) or suspect

    async def remove(self, refs: Sequence[KeyRef]) -> tuple[int, list[bytes]]:
        """Remove objects of local namespaces, here and in the other processes.

        Returns how many there were here, and the names of the other values, which are not removed.
        """
        local = [ref for ref in refs if ref.namespace.local]
        others = [ref.name for ref in refs if not ref.namespace.local]
        return await self._remove(local) if local else 0, others

    async def _remove(self, refs: Sequence[KeyRef]) -> int:
        state = self._state
        names = [ref.name for ref in refs]
        held = sum(state.memory.get_untrusted(name) is not None for name in set(names))
        state.forget_names(names)
        if state.client.connection(names[0]) is None:
            return held
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
        return held

    def _unsure(self, controls: Sequence[bytes]) -> None:
        # In this order, as for every invalidation that Redis may not have: see `Invalidator`.
        self._state.record_missed(lambda outbox: outbox.record_tags(controls))
        for name in controls:
            self._state.outdated(name)
