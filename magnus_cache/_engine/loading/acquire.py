"""Acquiring a key for a load: a miss gets a lease, or the value that another process has just stored."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.envelope import HEADER_BYTES
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.coordination.leases import Fence, Lease, Snapshot, new_token
from magnus_cache._engine.flights.context import PreviousValue
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire_local import LocalAcquirer
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.client import LeaseReply, LeaseRequest
from magnus_cache._engine.redis.retries import ATTEMPTS
from magnus_cache._engine.runtime.backoff import Pace, pause
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache._engine.store.settled_reads import Received
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LeaseAcquirer"]

_REJECTIONS: Final = 8
"""Unusable values in a row that an acquisition rejects before it loads without a lease."""

_LONGEST_PAUSE: Final = 0.05
"""Longest pause between two requests for a value that is announced over and over, seconds."""


class _Rejected(NamedTuple):
    """A value in Redis that the load must not return.

    :ivar entry: the value, if it is valid apart from being stale or unwanted; else None.
    """

    raw: bytes
    entry: Entry | None


class _Unopened(NamedTuple):
    """A fresh value that takes too long to be decoded inside the reader."""

    raw: bytes
    entry: Entry


class _Waiting(NamedTuple):
    """Another process holds the lease.

    :ivar seconds: longest time until the next request.
    """

    seconds: float


class _ChangeWait:
    """Waits for a change of the value or the lease, announced or not."""

    __slots__ = ("_count", "_pace", "_wire")

    def __init__(self, wire: "Connection") -> None:
        self._wire = wire
        self._pace = Pace(_LONGEST_PAUSE)
        self._count = 0

    async def wait(self, changed: asyncio.Event, seconds: float, left: float) -> None:
        """Return when it is time to ask again: after a change, or after `seconds`.

        Announcements that come too fast are answered at a limited rate.

        :param left: seconds until the acquisition's own deadline.
        """
        tracking = self._wire.tracking
        if not tracking:
            # Redis does not announce what other processes do.
            seconds = min(seconds, pause(self._count))
            self._count += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        # A server without room in its tracking table announces each key right after it was read.
        delay = min(left, self._pace.delay(self._wire.loop.time())) if tracking else 0.0
        if delay > 0:
            await asyncio.sleep(delay)


_Answer: TypeAlias = "Fence | Entry | _Rejected | _Unopened | _Waiting | None"


class LeaseAcquirer:
    """Acquires keys for the loads of one cache."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._state = reads.state
        self._local = LocalAcquirer(reads)

    async def acquire(self, request: LoadRequest[Any], flight: Flight) -> Fence | Entry:
        """Return the right to load a key; or, unless the request is fresh, the entry of an existing value.

        Waits up to `wait_timeout` while another process holds the lease. After that, the value may be loaded but not
        stored. While Redis is unavailable, each process may load for itself.
        """
        ref, wire = request.ref, self._state.client.connection(request.ref.name)
        flight.look.since, flight.look.tags = self._state.epochs.moment(), request.tags
        flight.look.local = ref.namespace.local
        if flight.private:
            return self.without_lease(flight, fresh=request.fresh)
        if wire is None:
            return await self._acquire_here(request, flight, partial(self._state.memory.hit, ref.name))
        try:
            if ref.namespace.local:
                return await self._local.acquire(wire, request, flight)
            changed = self._state.leases.listen(ref.name)
            try:
                return await _Acquisition(self, wire, request, flight).run(changed)
            finally:
                self._state.leases.stop_listening(ref.name, changed)
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
            fence = await self._acquire_here(request, flight, partial(self._reads.fallback, ref))
            if isinstance(fence, Fence):
                fence.refusal = error if error.refused else None
            return fence

    async def _acquire_here(
        self, request: LoadRequest[Any], flight: Flight, find: Callable[[], Entry | None]
    ) -> Fence | Entry:
        """Return the right to load a key without Redis; or, unless the request is fresh, the entry that is found."""
        # Under the lock, a write of another task has ended: if Redis did not take it, memory has its value now.
        async with self._state.key_locks.hold(request.ref.name):
            flight.look.since = self._state.epochs.moment()
            entry = None if request.fresh else find()
            if entry is not None and entry.version != request.unwanted:
                return entry
            return self.without_lease(flight, fresh=request.fresh)

    def without_lease(self, flight: Flight, *, fresh: bool) -> Fence:
        """Return the fence of a load without a lease: Redis does not announce that such a load was overtaken."""
        fence = self.fence(None, flight, fresh=fresh)
        flight.joinable_until = fence.at + self._state.settings.max_staleness
        return fence

    def fence(self, lease: Lease | None, flight: Flight, *, fresh: bool) -> Fence:
        """Return the fence of a load that begins now, with or without a lease."""
        epochs, outbox_position = self._state.epochs, self._state.outbox.position
        # In this order: if Redis comes back in between, its return has ended this trust.
        offline = self._state.generations.offline_of(flight.key)
        unannounced = lease is None and self._state.reaches(flight.key)
        known = Snapshot(epochs.highest, epochs.moment(), outbox_position, self._state.clock())
        return Fence(flight, lease, known, fresh=fresh, offline=None if unannounced else offline)

    async def refresh_epochs(self, wire: "Connection", request: LoadRequest[Any]) -> None:
        """Return once the epochs that this process knew before are current.

        An epoch that rises, or that is issued again after Redis lost it, voids the leases of its keys. That must happen
        before this load gets its lease.
        """
        ref, tags, epochs = request.ref, request.tags, self._state.epochs
        known = epochs.lowest_valid(wire.known, ref.epoch_names, tags) is not None
        if not known and epochs.lowest_valid_seen(ref.epoch_names, tags) is not None:
            await self._reads.epoch_sync.settled(wire, ref.epoch_names, tags)

    async def with_epochs(self, wire: "Connection", request: LoadRequest[Any], fence: Fence) -> Fence:
        """Return a fence with the current epochs, by which its value will be judged."""
        ref, tags, epochs = request.ref, request.tags, self._state.epochs
        if epochs.lowest_valid(wire.known, ref.epoch_names, tags) is None:
            try:
                await self._reads.epoch_sync.settled(wire, ref.epoch_names, tags)
            except BaseException:
                fence.close()
                raise
        # Now, right before the load. The first epoch of a namespace may have come in the same bytes as the lease. A
        # value with an older epoch would be invalid at once.
        fence.epoch, fence.since = epochs.highest, epochs.moment()
        fence.flight.look.known = wire.known
        return fence

    async def await_answer(self, name: bytes, token: bytes, waiter: "asyncio.Future[_Answer]") -> "_Answer":
        """Return the answer. If the caller was cancelled, a lease that is granted meanwhile is released."""
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._state.leases.abandoned(name, token)
            _release(waiter)
            raise
        except CacheUnavailableError as error:
            if not error.refused:
                self._state.leases.abandoned(name, token)
            raise

    async def register_tags(self, tags: tuple[str, ...], fence: Fence) -> None:
        """Register the tags of a loaded value, with the load's epoch if they were not invalidated since."""
        if fence.lease is not None and not fence.lease.void:
            try:
                # Not the lease's connection: a blocking load may end on another loop than it began on.
                connection = self._state.client.current_connection(fence.lease.name)
                await self._reads.epoch_sync.adopt(connection, tags, fence.epoch, fence.lease.name)
            except CacheUnavailableError as error:
                self._state.stats.failed(error.reason)

    async def overtaken(self, ref: KeyRef, tags: tuple[str, ...], known: tuple[str, ...], fence: Fence) -> bool:
        """Whether Redis reports an invalidation since the load began whose time is unknown.

        Invalidations that were announced do not count: `Epochs.overtaken` knows their time.

        :param known: the tags that were known before the load. Redis announces their invalidation, unless the
            connection was replaced meanwhile.
        """
        if fence.lease is None:
            return False
        epochs, announced = self._state.epochs, tuple[str, ...]()
        try:
            wire = self._state.client.current_connection(ref.name)
            lowest_valid = epochs.lowest_valid(wire.known, ref.epoch_names, tags)
            if lowest_valid is not None and lowest_valid <= fence.epoch and wire.known.deadline == math.inf:
                # All of them are known, and none has risen: what follows would say the same.
                return False
            announced = known if wire.tracking and wire.known is fence.flight.look.known else ()
            await self._reads.epoch_sync.settled(wire, ref.epoch_names, tags)
        except CacheUnavailableError:
            return not set(tags) <= set(announced)
        lowest_valid = epochs.lowest_valid_seen(ref.epoch_names)
        if lowest_valid is None or fence.epoch < lowest_valid:
            return True
        risen = [tag for tag in tags if fence.epoch < epochs.latest(epochs.tag_name(tag))]
        return not all(tag in announced and epochs.overtaken((tag,), fence.since) for tag in risen)


class _Acquisition:
    """Asks Redis for one load until there is a lease, or a value that another process has stored."""

    __slots__ = (
        "_acquirer", "_epochs_unread", "_flight", "_reads", "_reject", "_rejected", "_request", "_state", "_tags",
        "_token", "_unsettled", "_waited", "_wire",
    )  # fmt: skip

    def __init__(self, acquirer: LeaseAcquirer, wire: "Connection", request: LoadRequest[Any], flight: Flight) -> None:
        self._acquirer = acquirer
        self._reads = acquirer._reads
        self._state = acquirer._state
        self._wire = wire
        self._request = request
        self._flight = flight
        self._token = new_token()
        # The known tags of the value that Redis may have.
        self._tags: Sequence[str] = request.tags
        self._reject: _Rejected | None = None
        self._epochs_unread = self._waited = False
        self._rejected = self._unsettled = 0

    async def run(self, changed: asyncio.Event) -> Fence | Entry:
        """Return the right to load the key, or the entry of a value.

        :param changed: set when the value or the lease may have changed.
        """
        request, flight = self._request, self._flight
        deadline, wait, lost = monotonic() + self._state.settings.wait_timeout, None, 0
        while True:
            changed.clear()
            try:
                answer = await self._next()
            except CacheUnavailableError as error:
                # As `ask_twice` does it, without a coroutine around each question.
                lost += 1
                if error.reason != "lost" or lost == ATTEMPTS:
                    raise
                continue
            lost = 0
            if isinstance(answer, Fence):
                if self._reject is not None and self._reject.entry is not None:
                    answer.previous = await self._previous(self._reject.raw, self._reject.entry, answer)
                return await self._acquirer.with_epochs(self._wire, request, answer)
            if isinstance(answer, Entry):
                return answer
            if isinstance(answer, _Rejected):
                self._reject = answer
                self._rejected += 1
                if self._rejected > _REJECTIONS:
                    return self._acquirer.without_lease(flight, fresh=request.fresh)
            elif isinstance(answer, _Waiting):
                if request.on_wait is not None:
                    request.on_wait()
                left = deadline - monotonic()
                if left <= 0:
                    return self._acquirer.without_lease(flight, fresh=request.fresh)
                wait = wait or _ChangeWait(self._wire)
                await wait.wait(changed, min(left, answer.seconds), left)
                self._waited = True
                # On a cluster, the value may have moved meanwhile.
                self._wire = self._state.client.current_connection(request.ref.name)
                if not self._wire.up:
                    # No announcement will come; the next exchange shows whether Redis is available.
                    await self._wire.renew()

    async def _next(self) -> "_Answer":
        """Ask Redis once; return None if the load has to ask again at once."""
        wire, request = self._wire, self._request
        try:
            if self._state.outbox.pending:
                await self._reads.caught_up(wire, request.ref)
            await self._acquirer.refresh_epochs(wire, request)
            # Before the request: an invalidation while the answer is on its way is newer than the answer.
            self._flight.look.since = self._state.epochs.moment()
            if self._epochs_unread:
                self._reject, self._epochs_unread = None, False
                answer: _Answer = await self._read()
            else:
                answer = await self._ask()
        except UnsettledError as error:
            self._unsettled += 1
            self._tags, self._epochs_unread = (*request.tags, *error.tags), True
            self._wire = self._state.client.current_connection(request.ref.name)
            if self._unsettled > JUDGEMENTS:
                raise
            return None
        if isinstance(answer, _Unopened):
            good = await self._reads.open(request.ref, answer.entry) is not MISS
            return answer.entry if good else _Rejected(answer.raw, answer.entry)
        return answer

    async def _ask(self) -> "_Answer":
        """Ask for the lease, or for a value other than the rejected one."""
        wire, request, ref, token = self._wire, self._request, self._request.ref, self._token
        header = b"" if self._reject is None else self._reject.raw[:HEADER_BYTES]
        life = round(self._state.settings.lease * 1000)
        self._reads.epoch_sync.prepare(wire, ref.epoch_names, self._tags)
        # As `expect` and `settle` do it.
        memory = self._state.memory
        placeholder = memory.reserve(ref.name) if ref.namespace.l1 else None
        waiter: asyncio.Future[_Answer] = wire.loop.create_future()
        question = LeaseRequest(header, token, life, force=request.fresh, waited=self._waited)
        try:
            # If this raises, no request was sent.
            self._state.client.acquire(ref.name, question, partial(self._on_reply, placeholder, waiter), waiter)
            return await self._acquirer.await_answer(ref.name, token, waiter)
        finally:
            if placeholder is not None:
                memory.release(placeholder)

    async def _read(self) -> "Entry | _Rejected | _Unopened | None":
        """Return the value in Redis, read together with its epochs, which ACQ cannot return."""
        wire, ref = self._wire, self._request.ref
        received = await self._reads.again.receiver(wire, ref, self._tags)
        placeholder = self._reads.expect(ref)
        waiter: asyncio.Future[Entry | _Rejected | _Unopened | None] = wire.loop.create_future()
        try:
            wire.read(ref.name, partial(self._on_value, placeholder, received=received), waiter)
            return await waiter
        finally:
            self._reads.settle(placeholder)

    def _on_reply(
        self,
        placeholder: Placeholder | None,
        waiter: "asyncio.Future[Any]",
        reply: LeaseReply,
        source: "Connection",
        sent: float,
    ) -> _Answer:
        """Take the answer to ACQ. Runs inside the reader: the lease is registered before the next announcement."""
        leases, flight, fresh = self._state.leases, self._flight, self._request.fresh
        leases.answered(self._request.ref.name, self._token)
        if reply.value is not None:
            return self._on_value(placeholder, reply.value, source, sent)
        if reply.unstorable:
            return self._acquirer.without_lease(flight, fresh=fresh)
        if not reply.granted:
            return _Waiting(reply.wait)
        lease = leases.hold(source, self._request.ref.name, self._token, self._state.settings.lease, flight)
        fence = self._acquirer.fence(lease, flight, fresh=fresh)
        if waiter.done():
            # Cancelled meanwhile: no caller is left to release it.
            fence.close()
        return fence

    def _on_value(
        self, placeholder: Placeholder | None, raw: bytes | None, source: "Connection", sent: float, *,
        received: Received | None = None,
    ) -> "Entry | _Rejected | _Unopened | None":  # fmt: skip
        """Judge a value: may it be returned instead of a load? Runs inside the reader."""
        ref = self._request.ref
        entry = (received or self._reads.received)(ref, placeholder, raw, source, sent)
        if raw is None:
            return None
        if entry is None or entry.version == self._request.unwanted:
            return _Rejected(raw, entry)
        value = MISS if entry.negative else self._reads.opened_here(ref, entry)
        if value is LARGE:
            return _Unopened(raw, entry)
        # A fresh value, or a remembered error to raise again.
        good = value is not MISS or self._reads.error(ref, entry) is not None
        return entry if good else _Rejected(raw, entry)

    async def _previous(self, raw: bytes, entry: Entry, fence: Fence) -> PreviousValue | None:
        """Return the value that the load replaces, for `current_load`."""
        ref = self._request.ref
        if entry.negative:
            return None
        try:
            validator, _ = envelope.read_validator(plain := self._reads.plain(ref, raw), envelope.read_header(plain))
        except CacheDecodeError:
            return None
        try:
            if await self._reads.open_anyway(ref, entry) is MISS:
                return None
        except BaseException:
            fence.close()
            raise
        return PreviousValue(partial(self._reads.opened_anyway, ref, entry), validator)


def _release(waiter: "asyncio.Future[Any]") -> None:
    """Release a lease that was granted to a load after the load was cancelled."""
    if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
        answer = waiter.result()
        if isinstance(answer, Fence):
            answer.close()
