"""Acquiring many keys for one load: their leases, in one exchange with Redis for each hundred of them.

Only one answer counts here: the lease is ours, and no value is stored that a caller may have instead. Whatever else
Redis answers about a key (another process holds the lease, a value has come meanwhile, an error) is for
`LeaseAcquirer`, which asks again about that key alone.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coordination.epoch_sync import UnsettledError
from magnus_cache._engine.coordination.lease_batch import BatchLease, LeaseBatch
from magnus_cache._engine.coordination.leases import Fence, Snapshot, new_token
from magnus_cache._engine.flights.callers import Look
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.redis.client_many import LeasesReply
from magnus_cache._engine.runtime.loop_end import cancel
from magnus_cache._engine.runtime.turns import turn
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import MISS, KeyRef
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["ManyAcquirer"]

_TOGETHER: Final = 100
"""Leases that one transaction requests: some hundred microseconds of the server's time."""

_REPLY_BYTES: Final = 2_000_000
"""Bytes that the values in one answer should not exceed."""


class _Chunk(NamedTuple):
    """Leases that are requested together; `start` is the place of the first one, `open` has those without an answer."""

    refs: Sequence[KeyRef]
    flights: Sequence[Flight]
    start: int
    open: set[int]


class ManyAcquirer:
    """Acquires keys that differ in nothing but their names, for the loads of one call.

    On a cluster, they are those of one node, and also differ in the group of slots that their epochs are of.

    :param wire: the connection to their server.
    :param ref: the reference of one of them.
    :param tags: the tags of each.
    :param fresh: whether to take the leases from any holder, even if values are stored.
    :ivar look: when the loads looked, as all of them see it.
    :ivar batch: the leases.
    """

    __slots__ = ("_fresh", "_kinds", "_known", "_offline", "_over", "_reads", "_ref", "_tags", "batch", "look", "wire")

    def __init__(
        self, reads: Reads, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], *, fresh: bool
    ) -> None:  # fmt: skip
        state = reads.state
        self._reads = reads
        self.wire = wire
        self._ref = ref
        self._kinds: Sequence[EpochNames] = (ref.epoch_names,)
        self._tags = tags
        self._fresh = fresh
        self._over = False
        self._known = Snapshot(0, 0, 0, 0.0)
        self._offline = state.generations.offline_of(ref.name)
        self.look = Look()
        self.look.tags = tags
        self.batch = LeaseBatch(state.leases, wire, new_token(), state.settings.lease)

    async def acquire(self, refs: Sequence[KeyRef], flights: Sequence[Flight]) -> list[BatchLease | None]:
        """Return the lease of each key to be loaded; None for a key that `LeaseAcquirer` has to acquire alone.

        :raises CacheUnavailableError: if Redis does not say which epochs are valid; then there are no leases.
        """
        state, wire = self._reads.state, self.wire
        leases: list[BatchLease | None] = [None] * len(refs)
        asked: list[asyncio.Future[None]] = []
        try:
            # As in `LeaseAcquirer.refresh_epochs`.
            tags, epochs = self._tags, state.epochs
            if state.topology.is_cluster:
                self._kinds = list(dict.fromkeys([ref.epoch_names for ref in refs]))
            await self._settle_epochs(
                [names for names in self._kinds if epochs.lowest_valid_seen(names, tags) is not None]
            )
            self.look.since = epochs.moment()
            outbox_position, at = state.outbox.position, state.clock()
            self._offline = state.generations.offline_of(refs[0].name)
            largest = max([names.value_bytes for names in self._kinds])
            size = max(1, min(_TOGETHER, int(_REPLY_BYTES / (largest or 1))))
            for start in range(0, len(refs), size):
                chunk = slice(start, start + size)
                some = refs[chunk]
                asked.append(self._request(_Chunk(some, flights[chunk], start, set(range(len(some)))), leases))
                await turn()
            for answer in asked:
                try:
                    await answer
                except CacheUnavailableError as error:
                    self._reads.failed(self._ref, error)
            if any(leases):
                await self._settle_epochs(self._kinds)
            # Now, right before the load, as in `LeaseAcquirer.with_epochs`.
            self._known = Snapshot(epochs.highest, epochs.moment(), outbox_position, at)
            self.look.since, self.look.known = self._known.since, wire.known
        except BaseException:
            self._over = True
            cancel(*asked)
            self.batch.close([lease for lease in leases if lease is not None])
            raise
        return leases

    async def _settle_epochs(self, kinds: Sequence[EpochNames]) -> None:
        tags, epochs, sync, wire = self._tags, self._reads.state.epochs, self._reads.epoch_sync, self.wire
        unknown = [names for names in kinds if epochs.lowest_valid(wire.known, names, tags) is None]
        for names in unknown:
            # All of them in one exchange, and then the wait for each.
            sync.prepare(wire, names, tags)
        for names in unknown:
            await sync.settled(wire, names, tags)

    def _request(self, chunk: _Chunk, leases: list[BatchLease | None]) -> "asyncio.Future[None]":
        """Queue the request for some leases; return the future of the answer."""
        state, wire = self._reads.state, self.wire
        names, token = [ref.name for ref in chunk.refs], self.batch.token
        waiter: asyncio.Future[None] = wire.loop.create_future()
        waiter.add_done_callback(partial(self._abandon, chunk))
        try:
            for kind in self._kinds:
                self._reads.epoch_sync.prepare(wire, kind, self._tags)
            receive = partial(self._received, chunk, leases)
            life = round(state.settings.lease * 1000)
            state.client.acquire_many(names, token, life, receive, waiter, force=self._fresh)
        except CacheUnavailableError as error:
            # Nothing was sent, so nothing has to be released. To release it all the same does no harm.
            waiter.set_exception(error)
        return waiter

    def _abandon(self, chunk: _Chunk, waiter: "asyncio.Future[None]") -> None:
        """Have leases released that Redis may have granted without our knowing it."""
        error = None if waiter.cancelled() else waiter.exception()
        if waiter.cancelled() or (isinstance(error, CacheUnavailableError) and not error.refused):
            for place in chunk.open:
                self._reads.state.leases.abandoned(chunk.refs[place].name, self.batch.token)

    def _received(
        self, chunk: _Chunk, leases: list[BatchLease | None], reply: LeasesReply, source: "Connection", sent: float
    ) -> None:
        """Take the answer. Runs inside the reader: the leases are registered before the next announcement."""
        held, token, (refs, flights, start, left) = self._reads.state.leases, self.batch.token, chunk
        places = range(len(refs)) if reply.places is None else reply.places
        left.difference_update(places)
        if self._over:
            for place in places:
                held.answered(refs[place].name, token)
        for place, error in reply.errors.items():
            if isinstance(error, CacheUnavailableError) and not error.refused:
                held.abandoned(refs[place].name, token)
        granted = reply.granted
        taken = self.batch.hold([refs[place].name for place in granted], [flights[place] for place in granted])
        unneeded: list[BatchLease] = []
        # Another node announces what becomes of its leases on another connection than that of the others.
        gives_back = self._over or source is not self.wire
        for place, lease in zip(granted, taken, strict=True):
            raw = reply.values[place] if reply.values else None
            if gives_back or (raw is not None and not self._is_unusable(refs[place], raw, source, sent)):
                unneeded.append(lease)
            else:
                leases[start + place] = lease
        if unneeded:
            self.batch.close(unneeded)

    def _is_unusable(self, ref: KeyRef, raw: bytes, source: "Connection", sent: float) -> bool:
        """Return whether a stored value is no reason not to load. If in doubt, `LeaseAcquirer` looks at it again."""
        try:
            entry = self._reads.received(ref, None, raw, source, sent)
        except UnsettledError:
            return False
        if entry is None:
            return True
        value = MISS if entry.negative else self._reads.opened_here(ref, entry)
        return value is MISS and self._reads.error(ref, entry) is None

    @property
    def known(self) -> Snapshot:
        """What this process knew right before the load, once the leases are acquired."""
        return self._known

    def fence(self, flight: Flight, lease: BatchLease) -> Fence:
        """Return the fence of one of the loads, by which its value is stored alone."""
        return Fence(flight, lease, self._known, fresh=self._fresh, offline=self._offline)
