"""Loading an object of a local namespace: one load per process, with a lease that Redis does not know.

Other processes have their own objects, so none waits for this load. Every invalidation that could overtake it raises an
epoch: of its namespace, of one of its tags, or of the hidden tag of its key. So callers may join it for as long as it
takes, whatever happens to the connection.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from magnus_cache._engine.coordination.leases import Fence, Snapshot
from magnus_cache._engine.coordination.local_lease import LocalLease
from magnus_cache._engine.flights.context import PreviousValue
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.store.local_values import LocalValues
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import MISS, KeyRef

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LocalAcquirer"]


class LocalAcquirer:
    """Acquires keys of local namespaces for the loads of one cache."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._state = reads.state
        self._local: LocalValues = reads.local

    async def acquire(self, wire: "Connection", request: LoadRequest[Any], flight: Flight) -> Fence | Entry:
        """Return the right to load a key; or, unless the request is fresh, the entry of the existing object.

        :raises CacheUnavailableError: if Redis cannot say what was invalidated.
        """
        state, ref = self._state, request.ref
        state.local_namespaces.add(str(ref.namespace))
        await self._reads.caught_up(wire, ref)
        # Also if all epochs are known: from now on the connection sends heartbeats.
        await wire.renew()
        await self._reads.epoch_sync.settled(wire, ref.epoch_names, request.tags)
        flight.look.since = state.epochs.moment()
        entry = None if request.fresh else await self._local.read(wire, ref)
        if entry is not None and entry.version != request.unwanted and self._is_good(ref, entry):
            return entry
        # In this order: if Redis comes back in between, its return has ended this trust.
        offline = state.generations.offline_of(ref.name)
        # No await from here on: the caller that gets the fence has to close it.
        watch = LocalLease(state.leases, wire, ref.name, flight, state.memory)
        known = Snapshot(state.epochs.highest, state.epochs.moment(), state.outbox.position, state.clock())
        fence = Fence(flight, watch, known, fresh=request.fresh, offline=offline)
        flight.look.known = wire.known
        if entry is not None and not entry.negative:
            fence.previous = PreviousValue(partial(self._reads.opened_anyway, ref, entry), None)
        state.leases.take(watch)
        return fence

    def _is_good(self, ref: KeyRef, entry: Entry) -> bool:
        if entry.negative:
            return self._reads.error(ref, entry) is not None
        return self._reads.opened(ref, entry) is not MISS
