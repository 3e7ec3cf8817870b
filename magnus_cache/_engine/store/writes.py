"""Writes to Redis and to memory, and what happens to them while Redis is away.

A write never raises because Redis is away. The value stays in this process, and the outbox records what Redis missed.
When Redis is back, it is told first. Only then does this process believe what Redis says about those keys.
"""

import asyncio
import contextlib
import math
import weakref
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coherence.trust import Trust, UnsharedTrust
from magnus_cache._engine.coordination.generations import OfflineTrust
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.memory.footprint import footprint, has_room, payload_kept
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.redis.retries import ask_again
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.observers import FillRefused, WriteRefused
from magnus_cache._engine.runtime.turns import at_once, in_turns
from magnus_cache._engine.store.judge import judge
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.local_writes import LocalWrites
from magnus_cache._engine.store.orders import Order, Sent
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import Began, KeyRef, Record
from magnus_cache._engine.store.removals import Removals
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["NOT_STORED", "SAMPLED", "Writes", "milliseconds"]

T = TypeVar("T")

_COMPRESS_HERE: Final = 32_768
"""Bytes that are compressed on the event loop itself: about a millisecond."""

_COMPRESSING: Final = 2
"""Values of one loop that threads compress or decompress at a time."""

NOT_STORED: Final = "not stored"
"""What is recorded of a loaded value that is returned to its callers only."""

_MUTABLE: Final = frozenset({dict, list})
"""The types of most values that are not immutable."""

SAMPLED: Final = 3.0
"""Seconds for which an estimate of Redis' clock is exact enough for a write."""


class Writes(Removals):
    """The writes of one `State`, value by value; `ManyWrites` has those of many values, and removes."""

    def __init__(self, reads: Reads) -> None:
        super().__init__(reads)
        self.local = LocalWrites(reads, self._keep)
        self._limiters = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter]()

    # -- write ----------------------------------------------------------------------------------------------

    async def overwrite(
        self, ref: KeyRef, value: Any, payload: bytes, ttl: Life, tags: tuple[str, ...] = (), began: Began | None = None
    ) -> bool:  # fmt: skip
        """Store a value as `write` does, and void all loads of the value.

        Call it on a loop, not in a blocked thread, which may have interrupted a loop of its own that holds the lease.
        """
        self.state.forget_names([each.name for each in ref.others] if ref.others else (ref.name,))
        return await self.write(ref, value, payload, ttl, tags, began)

    async def write(
        self, ref: KeyRef, value: Any, payload: bytes, ttl: Life, tags: tuple[str, ...] = (), began: Began | None = None
    ) -> bool:  # fmt: skip
        """Store a value in Redis and in memory; return whether it is stored anywhere.

        :param ttl: seconds, or until a moment of a calendar.
        :param began: when the caller's call began; None for now.
        """
        if ref.others:
            return await self.replaces(ref, self.write(ref.others[0], value, payload, ttl, tags, began))
        began, since, tags = began or Began(self._clock()), self.state.epochs.moment(), tagged(ref, tags)
        # Taken first: an invalidation that is recorded from here on is newer than this write, and stays recorded.
        position = self.state.outbox.position
        self._memory.invalidate(ref.name)
        wire = self.state.client.connection(ref.name)
        steps = self.record_steps(ref, value, payload, tags)
        record = await in_turns(steps) if len(payload) >= codec.LARGE else at_once(steps)
        record = record._replace(began=began)
        if ref.freshness.jitter or isinstance(ttl, CalendarLife):
            ttl = await self.reads.lives.shortened(ttl, ref)

        def overtaken() -> bool:
            known = map(self.state.epochs.tag_name, tags)
            return self.state.epochs.overtaken(tags, since) or self.state.outbox.covers(ref.name, known, position)

        if wire is None:
            return self._keep(ref, record, ttl, overtaken, supersedes=True)
        if ref.namespace.local:
            return await self.local.write(wire, ref, record, ttl, overtaken)
        error: CacheUnavailableError | None = None
        kept = False

        async def attempt() -> None:
            nonlocal record
            await self.reads.epoch_sync.settled(wire, ref.epoch_names, tags)
            record = record._replace(epoch=self.state.epochs.highest)
            await self._send(wire, ref, record, payload, ttl, Order(partial(self.state.client.store, ref.name), since))

        try:
            try:
                await attempt()
            except CacheUnavailableError as first:
                async with self.state.key_locks.hold(ref.name):
                    error = await ask_again(attempt, first)
                    if error is not None:
                        late = overtaken()
                        position = self._refused(ref, error)
                        kept = not late and self._keep(ref, record, ttl, overtaken, supersedes=True)
        except asyncio.CancelledError:
            # Whether the command was sent is unknown, so what Redis has for this key is not trusted.
            self.unsure((ref.name,))
            raise
        if error is not None:
            await self.state.journal_written()
            return kept
        self.state.outbox.overwritten(ref.name, position)
        # A load through another connection may have read the old value before this write replaced it.
        self.state.flights.detach(ref.name)
        ref.counters.stores += 1
        self.tell_stored(ref, "redis", record, ttl)
        return True

    async def fill(self, ref: KeyRef, record: Record, payload: bytes, ttl: float | CalendarTtl, fence: Fence) -> bool:
        """Store a loaded value unless the load was overtaken; return whether it is stored anywhere.

        What a clear or an invalidated tag has overtaken may still be written to Redis, as its lease may stand. It has
        the epoch from before the load, so no reader takes it, and memory does not keep it.

        :param record: what `record_steps` returned, completed with the cost of the load and the validator.
        :param ttl: seconds, or a calendar: when the load began decides.
        """
        stored = await self._fill(ref, record, payload, ttl, fence)
        if not stored:
            reason = self._why_refused(ref, fence)
            self.state.recorder.add(ref.name, NOT_STORED, None, reason)
            self.tell(FillRefused, ref, reason)
            self.state.changes.refused((ref.name,), reason)
        elif ref.others:
            await self.remove_named([each.name for each in ref.others[1:]])
        return stored

    def _why_refused(self, ref: KeyRef, fence: Fence) -> str:
        """Return why a loaded value is not stored, see `FillRefused`."""
        leased, here = fence.lease is not None, self.state.endpoint is None
        if fence.overtaken or here or self.state.reaches(ref.name):
            return "unkept" if here and not ref.namespace.l1 else "overtaken" if leased or here else "unleased"
        return "unconfirmed" if ref.namespace.l1 else "unkept"

    async def _fill(self, ref: KeyRef, record: Record, payload: bytes, life: float | CalendarTtl, fence: Fence) -> bool:
        """Store a loaded value, as `fill` does."""
        if record.epoch != fence.epoch:
            record = record._replace(epoch=fence.epoch)
        tags, ttl = record.tags, CalendarLife(life, fence.at) if isinstance(life, CalendarTtl) else life
        if ref.freshness.jitter or isinstance(ttl, CalendarLife):
            ttl = await self.reads.lives.shortened(ttl, ref)
        lease, wire = fence.lease, self.state.client.connection(ref.name)  # the lease's loop may have been replaced

        def overtaken() -> bool:
            return fence.overtaken or self.state.epochs.overtaken(tags, fence.since)

        if wire is None or lease is None:
            return await self._keep_loaded(ref, record, ttl, overtaken, fence, fence.refusal)
        if lease.void:
            return False
        if ref.namespace.local:
            outcome = await self.local.fill(ref, record, ttl, fence)
            if isinstance(outcome, bool):
                return outcome
            return await self._keep_loaded(ref, record, ttl, overtaken, fence, outcome if outcome.refused else None)
        try:
            self.reads.epoch_sync.prepare(wire, ref.epoch_names, tags)
            order = Order(partial(self.state.client.fill, ref.name, lease.token), fence.since)
            stored: bool | None = None
            try:
                stored = await self._send(wire, ref, record, payload, ttl, order)
            except CacheUnavailableError as error:
                # As `ask_twice` does it, without a coroutine around each fill.
                if error.reason != "lost":
                    raise
            if stored is None:
                stored = await self._send(wire, ref, record, payload, ttl, order)
        except CacheUnavailableError as error:
            self.reads.failed(ref, error)
            if fence.fresh:
                # Redis may still have the value that this refresh was to replace.
                self._distrust((ref.name,))
            lease.close()
            kept = await self._keep_loaded(ref, record, ttl, overtaken, fence, error if error.refused else None)
            await self.state.journal_written()
            return kept
        except asyncio.CancelledError:
            if fence.fresh:
                self._distrust((ref.name,))
            raise
        lease.close(filled=True)
        self.state.leases.notify(ref.name)
        if stored:
            self.state.outbox.overwritten(ref.name, fence.outbox_position)
            ref.counters.stores += 1
            if self.state.observers.active:
                self.tell_stored(ref, "redis", record, ttl, loaded=True)
        else:
            self.state.stats.fenced_loads += 1
        return stored

    def record_steps(
        self, ref: KeyRef, value: Any, payload: bytes, tags: tuple[str, ...]
    ) -> Generator[None, None, Record]:
        """Return, in steps, the record of a value with a new version."""
        if ref.namespace.local:
            return self.local.record(value, tags)
        version = new_version()
        if ref.namespace.codec is not None and codec.is_opaque(payload):
            # What its codec makes of it may be another kind of value; the first reader decodes it.
            return Record(None, payload, len(payload), version, tags=tags)
        immutable = type(value) not in _MUTABLE and codec.is_immutable(value)
        if immutable or ref.namespace.share:
            # A copy unless the value is immutable: the caller may keep changing its own object.
            large = len(payload) >= codec.LARGE and not immutable
            kept = (yield from codec.decode_steps(payload)) if large else value if immutable else codec.decode(payload)
            encoded = payload_kept(self.state.memory, kept, payload)
            size = footprint(kept, len(payload)) + (0 if encoded is None else len(encoded))
            if has_room(self.state.memory, size):
                return Record(kept, None, size, version, tags=tags, encoded=encoded, shared=not immutable)
        return Record(None, payload, len(payload), version, tags=tags)

    async def _send(
        self, wire: "Connection", ref: KeyRef, record: Record, payload: bytes, given: Life, order: Order
    ) -> bool:  # fmt: skip
        """Return whether Redis stored a value; if so, keep the value in memory unless its key was touched meanwhile."""
        if not wire.up or self._clock() - wire.time.sampled > SAMPLED:
            # The envelope has the value's end in Redis' time. A wire in use samples that clock all the time. Before a
            # wire is up, there is no sample; while it was idle, the server's clock may have been set.
            await wire.renew()
        if isinstance(given, CalendarLife):
            given = await self.reads.lives.ready(given, ref.name, wire)
        steps, (ttl, as_of, fresh_until, life) = wire.time.steps, _span(wire, record, given, self._clock())
        pack: Callable[..., bytes] = partial(
            envelope.pack, payload, version=record.version, epoch=record.epoch, cost=record.cost,
            tags=record.tags, compress=ref.namespace.compress, validator=record.validator,
            negative=record.negative, paid=record.paid,
        )  # fmt: skip
        ref.epoch_names.sized(len(payload))
        # To seal, or to copy and to add up, takes about a thirtieth of the time.
        size = len(payload) if ref.namespace.compress else len(payload) >> 5
        if ref.namespace.seal:
            pack = self.sealing(ref, pack)
        if size <= _COMPRESS_HERE:
            raw = pack(fresh_until=fresh_until, life=life)
        else:
            raw = await self.off_loop(partial(pack, fresh_until=fresh_until, life=life), size)
        # Once more, right before the command is queued: a read that this process queued earlier would store the old
        # value in memory after the write, and Redis does not announce our own writes to us.
        self._memory.invalidate(ref.name)
        # As `expect` and `settle` do it.
        placeholder = self._memory.reserve(ref.name) if ref.namespace.l1 else None
        receive = partial(self._stored, Sent(ref, placeholder, record, (fresh_until, ttl), order.since, as_of))
        expiry = milliseconds(ttl if record.negative else ttl + ref.freshness.grace)
        try:
            stored: bool = await order.send(raw, expiry, receive)
        finally:
            if placeholder is not None:
                self._memory.release(placeholder)
        if stored and wire.time.steps != steps:
            # The answer shows that the server's clock was set meanwhile, so the end in the envelope is wrong.
            ttl, _, fresh_until, life = _span(wire, record, given, self._clock())
            expiry = milliseconds(ttl if record.negative else ttl + ref.freshness.grace)
            again = await self.off_loop(partial(pack, fresh_until=fresh_until, life=life), size)
            self._memory.invalidate(ref.name)
            with contextlib.suppress(CacheUnavailableError):
                before = raw[: envelope.HEADER_BYTES]
                await self.state.client.replace(ref.name, before, again, expiry)
        return stored

    def sealing(self, ref: KeyRef, pack: Callable[..., bytes]) -> Callable[..., bytes]:
        """Return a function that seals what another one packs."""
        seals = self.state.seals
        return lambda **fields: seals.sealed(ref.namespace, ref.name, pack(**fields))

    async def off_loop(self, work: Callable[[], T], size: int, here: int = _COMPRESS_HERE) -> T:
        """Return the result of a function that compresses or decompresses a value; a thread calls it for a large one.

        :param size: bytes of the value.
        :param here: bytes up to which the event loop calls the function itself.
        """
        if size <= here:
            return work()
        # A limiter of our own: synchronous loaders that wait for this very value may use up the default one.
        limiter = self._limiters.setdefault(asyncio.get_running_loop(), CapacityLimiter(_COMPRESSING))
        return await to_thread.run_sync(work, limiter=limiter)

    def _stored(self, write: "Sent", stored: bool, source: "Connection", sent: float) -> bool:
        """Return `stored`; keep a stored value in memory unless its key was touched. Runs inside the reader."""
        ref, placeholder, record, times, since, as_of = write
        epochs = self.state.epochs
        # As `tag_state` does it.
        known, kept = (self._memory.generation, epochs.stamps(record.tags, ref.epoch_names)), False
        # By the newest estimate of Redis' clock.
        deadline = source.time.end(*times, sent)
        # In this order, see `judge`. What waits in the outbox is older than this value, or has voided the placeholder;
        # but for tags, which void none. Their epochs tell nothing while no epoch can be issued: on a cluster, the clock
        # may be on a node that is away, and this answer come from another one.
        pending = epochs.overtaken(record.tags, since)
        lowest_valid = epochs.lowest_valid(source.known, ref.epoch_names, record.tags)
        judged = judge(record, deadline - sent, ref.freshness, lowest_valid, source.time.horizon, pending)
        if stored and placeholder is not None and judged.serves:
            trust = self.reads.trust(source, sent, ref)
            entry = self.reads.entry(ref, record, trust, (deadline, sent, as_of), known)
            kept = self._memory.fill(placeholder, entry)
        if stored and not kept:
            # A read on another loop may have brought the old value into memory since the command was sent.
            self._memory.invalidate(ref.name)
        return stored

    def _refused(self, ref: KeyRef, error: CacheUnavailableError) -> int:
        """Record a write that Redis may not have, as `unsure` does; return the position of the record."""
        self.reads.failed(ref, error)
        position = self.unsure((ref.name,))
        if self.state.reaches(ref.name):
            self._stays_here(ref, error)
        return position

    def _stays_here(self, ref: KeyRef, error: CacheUnavailableError) -> None:
        ref.counters.refused += 1
        self.tell(WriteRefused, ref, error.reason)
        self.state.notices.warn(f"refused:{error.reason}", f"{error}; the value stays in this process for now")

    def void_loads(self, ref: KeyRef) -> None:
        """Void the loads of a value that is written: they began before."""
        self.state.flights.detach(ref.name)
        self.state.leases.invalidated_many((ref.name,))
        # Again, as for every invalidation: a load may have begun in between.
        self.state.flights.detach(ref.name)

    def _keep(
        self, ref: KeyRef, record: Record, ttl: Life, overtaken: Callable[[], bool], trust: Trust | None = None, *,
        supersedes: bool = False,
    ) -> bool:  # fmt: skip
        """Store a value in this process alone unless it is overtaken; return whether it is stored.

        :param supersedes: whether the value overtakes one that another thread is about to store.
        """
        if not ref.namespace.l1:
            return False
        now, known = self._clock(), self.reads.tag_state(ref, record.tags)
        if isinstance(ttl, CalendarLife):
            ttl = self.reads.lives.left(ttl, ref.name, now)
        # Reserved before `overtaken` is asked: from here on, an invalidation by another thread voids the placeholder.
        placeholder = self._memory.reserve(ref.name, anew=supersedes)
        try:
            if overtaken():
                return False
            trust = trust or self.state.local_trust(ref.namespace, ref.name)
            if ref.namespace.offline is not None and isinstance(trust, OfflineTrust) and trust.deadline <= now:
                return False
            entry = self.reads.entry(ref, record, trust, (now + ttl, now, self._as_of(ref, record)), known)
            kept = self._memory.fill(placeholder, entry)
        finally:
            self._memory.release(placeholder)
        ref.counters.stores += kept
        if kept:
            self.tell_stored(ref, "memory", record, ttl, loaded=not supersedes)
            if self.state.changes.active:
                self.state.changes.kept(ref.name)
        return kept

    def _as_of(self, ref: KeyRef, record: Record) -> int:
        """Return when the load or write of a value began, in Redis' time as this process knows it."""
        began = record.began
        return 0 if began is None else began.told(self.state.topology.time_of(ref.name))

    async def _keep_loaded(
        self, ref: KeyRef, record: Record, ttl: Life, overtaken: Callable[[], bool], fence: Fence,
        refusal: CacheUnavailableError | None,
    ) -> bool:  # fmt: skip
        """Store a loaded value in this process alone, if no unheard invalidation can have overtaken the load.

        :param refusal: why Redis refuses the value, if it is reachable: the value is then used for `max_staleness`.
        """
        generations = self.state.generations
        offline = generations.offline_of(ref.name)
        if fence.offline is offline and not self.state.reaches(ref.name):
            trust: Trust = generations.trust_for(offline, ref.namespace, ref.name)
        elif refusal is not None:
            self._stays_here(ref, refusal)
            trust = UnsharedTrust(fence.at + self.state.settings.max_staleness, generations.now(ref.name))
        else:
            return False
        # After a write of the key that another task has begun: it may overtake this load.
        async with self.state.key_locks.hold(ref.name):
            return self._keep(ref, record, ttl, overtaken, trust)


def _span(wire: "Connection", record: Record, life: Life, now: float) -> tuple[float, int, int, float]:
    """Return the TTL of a value now, when its load began and when it ends, in Redis' time, and its header's life."""
    server, ttl = wire.time.at(now), life.left(wire.time, now) if isinstance(life, CalendarLife) else life
    as_of = server
    if (began := record.began) is not None:
        if began.at > -math.inf:
            # As `Began.told`, without the call.
            began.as_of = max(0, wire.time.at(began.at))
        as_of = began.as_of = min(server, began.as_of)
    return ttl, as_of, *header_times.lived(as_of, server + int(ttl * MICROSECONDS))


def milliseconds(ttl: float) -> int:
    """Return the expiry of a key in Redis, rounded up: the exact end of the value is in its envelope."""
    return max(1, math.ceil(ttl * 1000))
