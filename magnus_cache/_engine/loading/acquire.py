"""Who loads: the way from a miss to a lease, or to the value that somebody else has just stored."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.codec.envelope import HEADER_BYTES
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.coordination.leases import Fence, Lease, new_token
from magnus_cache._engine.flights.context import PreviousValue
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire_local import LocalAcquirer
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.client import LeaseReply, LeaseRequest
from magnus_cache._engine.runtime.backoff import Pace, pause
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LeaseAcquirer"]

_REJECTIONS: Final = 8
"""Unusable values in a row that a claim puts up with; who writes them so fast need not be waited for."""


_LONGEST_REST: Final = 0.05
"""Seconds between two looks at a value that is announced over and over."""


class _Rejected(NamedTuple):
    raw: bytes
    entry: Entry | None
    """What it is, if it is stale, or not wanted, and nothing worse."""


class _Unopened(NamedTuple):
    raw: bytes
    entry: Entry
    """A fresh value that takes too long to be decoded inside the reader."""


class _Waiting(NamedTuple):
    seconds: float


class _Patience:
    """How a claim waits for a change of the value or the lease, which it may hear of, or may not."""

    __slots__ = ("_count", "_pace", "_wire")

    def __init__(self, wire: "Connection") -> None:
        self._wire = wire
        self._pace = Pace(_LONGEST_REST)
        self._count = 0

    async def wait(self, changed: asyncio.Event, seconds: float, left: float) -> None:
        """Return when it is time to look again: after `seconds` at most, and not over and over for nothing.

        :param left: seconds that the claim may take at all.
        """
        tracking = self._wire.tracking
        if not tracking:
            # What another process does is announced to nobody here.
            seconds = min(seconds, pause(self._count))
            self._count += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        # A server that has no room to track what was looked at announces that at once.
        delay = min(left, self._pace.delay(self._wire.loop.time())) if tracking else 0.0
        if delay > 0:
            await asyncio.sleep(delay)


_Answer: TypeAlias = "Fence | Entry | _Rejected | _Unopened | _Waiting | None"


class LeaseAcquirer:
    """LeaseAcquirer keys for the loads of one cache."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._state = reads.state
        self._local = LocalAcquirer(reads)

    async def acquire(
        self, ref: KeyRef, flight: Flight, tags: tuple[str, ...] = (), *, fresh: bool = False,
        unwanted: int | None = None, waiting: Callable[[], object] | None = None,
    ) -> Fence | Entry:  # fmt: skip
        """Return the right to load a key; or, unless it is to be fresh, the entry of a value that is there now.

        Waits while another process holds the lease, for `wait_timeout` at most; past it, the value may be loaded, but
        not kept. Where Redis is away, everybody may load for this process.

        :param unwanted: the version of a value that is not to be returned, as it is what is to be refreshed.
        :param waiting: called when it turns out that another process holds the lease.
        """
        flight.look.since, flight.look.tags = self._state.epochs.moment(), tags
        wire = self._state.client.connection(ref.name)
        if flight.alone:
            return self.unclaimed(flight, fresh=fresh)
        if wire is None:
            held = partial(self._state.memory.hit, ref.name)
            return await self._claimed_here(ref, flight, held, fresh=fresh, unwanted=unwanted)
        try:
            if ref.namespace.local:
                return await self._local.acquire(wire, ref, flight, tags, fresh=fresh, unwanted=unwanted)
            with self._state.leases.listening(ref.name) as changed:
                return await self._claimed(wire, ref, flight, tags, changed, waiting, fresh=fresh, unwanted=unwanted)
        except CacheUnavailableError as error:
            self._reads.failed(ref, error)
            held = partial(self._reads.fallback, ref)
            fence = await self._claimed_here(ref, flight, held, fresh=fresh, unwanted=unwanted)
            if isinstance(fence, Fence):
                fence.refusal = error if error.refused else None
            return fence

    async def _claimed_here(
        self, ref: KeyRef, flight: Flight, held: Callable[[], Entry | None], *, fresh: bool,
        unwanted: int | None,
    ) -> Fence | Entry:  # fmt: skip
        """Return the right to load a key without Redis; or, unless it is to be fresh, what this process has of it."""
        # What another task has in hand, such as a write that Redis did not take, is here when its lock is free.
        async with self._state.key_locks.hold(ref.name):
            flight.look.since = self._state.epochs.moment()
            entry = None if fresh else held()
            if entry is not None and entry.version != unwanted:
                return entry
            return self.unclaimed(flight, fresh=fresh)

    def unclaimed(self, flight: Flight, *, fresh: bool) -> Fence:
        """Return the claim of a load without a lease, of which nobody would announce that it was overtaken."""
        fence = self._claim_with(None, flight, fresh=fresh)
        flight.joinable_until = fence.at + self._state.settings.max_staleness
        return fence

    def _claim_with(self, lease: Lease | None, flight: Flight, *, fresh: bool) -> Fence:
        epochs, mark = self._state.epochs, self._state.outbox.mark
        # In this order: if Redis comes back in between, this is the trust that its coming has killed.
        offline = self._state.generations.offline
        unheard = lease is None and self._state.reachable
        return Fence(
            flight, lease=lease, epoch=epochs.highest, since=epochs.moment(), mark=mark, fresh=fresh,
            offline=None if unheard else offline, at=self._state.clock(),
        )  # fmt: skip

    async def _claimed(
        self, wire: "Connection", ref: KeyRef, flight: Flight, tags: tuple[str, ...], changed: asyncio.Event,
        waiting: Callable[[], object] | None, *, fresh: bool, unwanted: int | None,
    ) -> Fence | Entry:  # fmt: skip
        deadline, token = monotonic() + self._state.settings.wait_timeout, new_token()
        reject: _Rejected | None = None
        rejected, unsettled, lost = 0, 0, 0
        wanted, judged, waited, patience = tags, True, False, _Patience(wire)
        while True:
            changed.clear()
            try:
                await self._reads.caught_up(wire, ref)
                await self._current(wire, ref, tags)
                # Before it is asked: what is invalidated while the answer is on its way is younger than the answer.
                flight.look.since = self._state.epochs.moment()
                if not judged:
                    reject, judged = None, True
                    answer: _Answer = await self._look(wire, ref, wanted, unwanted)
                else:
                    header = b"" if reject is None else reject.raw[:HEADER_BYTES]
                    answer = await self._ask(
                        wire, ref, flight, wanted, header, token, fresh=fresh, unwanted=unwanted, waited=waited
                    )
            except UnsettledError as error:
                unsettled += 1
                wanted, judged = (*tags, *error.tags), False
                if unsettled > JUDGEMENTS:
                    raise
                continue
            except CacheUnavailableError as error:
                lost += 1
                if error.reason != "lost" or lost > 1:
                    raise
                continue
            if isinstance(answer, _Unopened):
                good = await self._reads.open(ref, answer.entry) is not MISS
                answer = answer.entry if good else _Rejected(answer.raw, answer.entry)
            if isinstance(answer, Fence):
                if reject is not None and reject.entry is not None:
                    answer.previous = await self._previous(ref, reject.entry, reject.raw, answer)
                return await self._informed(wire, ref, tags, answer)
            if isinstance(answer, Entry):
                return answer
            if isinstance(answer, _Rejected):
                reject = answer
                rejected += 1
                if rejected > _REJECTIONS:
                    return self.unclaimed(flight, fresh=fresh)
                continue
            if answer is None:
                continue
            if waiting is not None:
                waiting()
            left = deadline - monotonic()
            if left <= 0:
                return self.unclaimed(flight, fresh=fresh)
            await patience.wait(changed, min(left, answer.seconds), left)
            waited = True
            if not wire.up:
                # Without announcements nobody would wake us; the next exchange tells whether Redis is there.
                await wire.renew()

    async def _current(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...]) -> None:
        """Return once epochs are current that were seen before.

        One that rises, or is issued anew as Redis has lost it, voids the leases of what it is about: that is to be over
        before there is one.
        """
        epochs = self._state.epochs
        known = epochs.floor(wire.known, ref.epoch_names, tags) is not None
        if not known and epochs.last_floor(ref.epoch_names, tags) is not None:
            await self._reads.epochs.settled(wire, ref.epoch_names, tags)

    async def _informed(self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], fence: Fence) -> Fence:
        """Return a claim that knows the epochs its value will be judged by; most often it does already."""
        epochs = self._state.epochs
        if epochs.floor(wire.known, ref.epoch_names, tags) is None:
            try:
                await self._reads.epochs.settled(wire, ref.epoch_names, tags)
            except BaseException:
                fence.close()
                raise
        # Now, right before the load. The first epoch of a namespace may have come since the lease was granted, in the
        # same piece: a value that bore an older one would be as good as none to everybody.
        fence.epoch, fence.since = epochs.highest, epochs.moment()
        fence.flight.look.known = wire.known
        return fence

    async def _ask(
        self,
        wire: "Connection",
        ref: KeyRef,
        flight: Flight,
        tags: tuple[str, ...],
        reject: bytes,
        token: bytes,
        *,
        fresh: bool,
        unwanted: int | None,
        waited: bool,
    ) -> "_Answer":
        life = round(self._state.settings.lease * 1000)
        self._reads.epochs.prepare(wire, ref.epoch_names, tags)
        fill = self._reads.expect(ref)
        waiter: asyncio.Future[_Answer] = wire.loop.create_future()
        receive = partial(self._answered, wire, ref, flight, token, fill, fresh, unwanted, waiter)
        request = LeaseRequest(reject, token, life, force=fresh, waited=waited)
        try:
            # If this raises, nothing was asked.
            self._state.client.acquire(ref.name, request, receive, waiter)
            return await self._granted(ref, token, waiter)
        finally:
            self._reads.settle(fill)

    async def _look(
        self, wire: "Connection", ref: KeyRef, tags: tuple[str, ...], unwanted: int | None
    ) -> "Entry | _Rejected | _Unopened | None":
        """Return what Redis has, read together with its epochs: ACQ cannot bring those along."""
        self._reads.epochs.prepare(wire, ref.epoch_names, tags, again=True)
        fill = self._reads.expect(ref)
        waiter: asyncio.Future[Entry | _Rejected | _Unopened | None] = wire.loop.create_future()
        try:
            wire.read(ref.name, partial(self._found, ref, fill, unwanted), waiter)
            return await waiter
        finally:
            self._reads.settle(fill)

    def _found(
        self,
        ref: KeyRef,
        fill: Placeholder | None,
        unwanted: int | None,
        raw: bytes | None,
        source: "Connection",
        sent: float,
    ) -> "Entry | _Rejected | _Unopened | None":
        """Judge a value: is it what the load would be for? Runs inside the reader."""
        entry = self._reads.received(ref, fill, raw, source, sent)
        if raw is None:
            return None
        if entry is None or entry.version == unwanted:
            return _Rejected(raw, entry)
        value = MISS if entry.negative else self._reads.opened_here(ref, entry)
        if value is LARGE:
            return _Unopened(raw, entry)
        # A fresh value, or an error that is to be raised again.
        good = value is not MISS or self._reads.error(ref, entry) is not None
        return entry if good else _Rejected(raw, entry)

    async def _granted(self, ref: KeyRef, token: bytes, waiter: "asyncio.Future[_Answer]") -> "_Answer":
        """Return what was answered; see to it that a lease is given back that is granted when nobody waits any more."""
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._state.leases.unwanted(ref.name, token)
            _give_back(waiter)
            raise
        except CacheUnavailableError as error:
            if not error.refused:
                self._state.leases.unwanted(ref.name, token)
            raise

    def _answered(
        self, wire: "Connection", ref: KeyRef, flight: Flight, token: bytes, fill: Placeholder | None, fresh: bool,
        unwanted: int | None, waiter: "asyncio.Future[Any]", reply: LeaseReply, source: "Connection", sent: float,
    ) -> _Answer:  # fmt: skip
        """Take the answer to ACQ. Runs inside the reader: a lease is in charge before the next announcement."""
        self._state.leases.told(token)
        if reply.value is not None:
            return self._found(ref, fill, unwanted, reply.value, source, sent)
        if reply.unstorable:
            return self.unclaimed(flight, fresh=fresh)
        if not reply.granted:
            return _Waiting(reply.wait)
        lease = self._state.leases.hold(wire, ref.name, token, self._state.settings.lease, flight)
        fence = self._claim_with(lease, flight, fresh=fresh)
        if waiter.done():
            # Cancelled meanwhile: nobody would ever end it.
            fence.close()
        return fence

    async def _previous(self, ref: KeyRef, entry: Entry, raw: bytes, fence: Fence) -> PreviousValue | None:
        """Return what a load is to replace, for its loader to know."""
        if entry.negative:
            return None
        try:
            validator, _ = envelope.read_validator(raw, envelope.read_header(raw))
        except CacheDecodeError:
            return None
        try:
            if await self._reads.open_anyway(ref, entry) is MISS:
                return None
        except BaseException:
            fence.close()
            raise
        return PreviousValue(partial(self._reads.opened_anyway, ref, entry), validator)

    async def adopt(self, tags: tuple[str, ...], fence: Fence) -> None:
        """Have tags that a load has made known to Redis as older than the load, where that is so."""
        if fence.lease is not None and not fence.lease.void:
            try:
                await self._reads.epochs.adopt(fence.lease.connection, tags, fence.epoch)
            except CacheUnavailableError as error:
                self._state.stats.failed(error.reason)

    async def overtaken(self, ref: KeyRef, tags: tuple[str, ...], known: tuple[str, ...], fence: Fence) -> bool:
        """Whether Redis tells that a value was invalidated since its load was claimed, and nobody knows when.

        What was announced at its time does not count: that is told apart by `Epochs.overtaken`.

        :param known: those of the tags that were known before the load. Redis announces their invalidation, unless the
            connection was another one meanwhile.
        """
        if fence.lease is None:
            return False
        epochs, wire = self._state.epochs, fence.lease.connection
        announced = known if wire.tracking and wire.known is fence.flight.look.known else ()
        try:
            await self._reads.epochs.settled(wire, ref.epoch_names, tags)
        except CacheUnavailableError:
            return not set(tags) <= set(announced)
        floor = epochs.last_floor(ref.epoch_names)
        if floor is None or fence.epoch < floor:
            return True
        risen = [tag for tag in tags if fence.epoch < epochs.latest(epochs.tag_name(tag))]
        return not all(tag in announced and epochs.overtaken((tag,), fence.since) for tag in risen)


def _give_back(waiter: "asyncio.Future[Any]") -> None:
    """Give back a lease that was granted to a load which was cancelled before it learned of it."""
    if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
        answer = waiter.result()
        if isinstance(answer, Fence):
            answer.close()
