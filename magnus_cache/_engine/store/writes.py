"""Writes: to Redis and near, and what becomes of them while Redis is away.

Nothing here raises because Redis is away: a value stays in this process, and what Redis missed is recorded, to be
told on its return before anything it says about those keys is believed.
"""

import asyncio
import contextlib
import math
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import LocalTrust, Trust
from magnus_cache._engine.coordination.generations import OfflineTrust
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.memory.footprint import footprint, has_room, payload_kept
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.retries import twice
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.turns import Step, at_once, in_turns, turn
from magnus_cache._engine.store.judge import judge
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.local_writes import LocalWrites
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.reads_many import MANY
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.freshness import lifetime

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Writes", "milliseconds"]

T = TypeVar("T")

_Send = Callable[[bytes, int, "Callable[[bool, Connection, float], bool]"], Awaitable[bool]]

_COMPRESS_HERE: Final = 32_768
"""Bytes that may be compressed on the event loop itself: about a millisecond."""

_COMPRESSING: Final = 2
"""Values of one loop that are compressed or decompressed in threads at a time."""

_SAMPLED: Final = 3.0
"""Seconds for which Redis' time is known well enough for a write."""

_REMOVED: Final = 200
"""Values removed at a time by one call; each name is looked up some times on the way, in one step."""


class _Sent(NamedTuple):
    ref: KeyRef
    fill: Placeholder | None
    held: Record
    times: tuple[int, float]


class Writes:
    """The writes of one `State`: store and remove."""

    def __init__(self, reads: Reads) -> None:
        self.state = reads.state
        self.reads = reads
        self._memory = reads.state.memory
        self._clock = reads.state.clock
        self.local = LocalWrites(reads, self._keep)
        self._limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = (
            weakref.WeakKeyDictionary()
        )

    # -- write ----------------------------------------------------------------------------------------------

    async def overwrite(self, ref: KeyRef, value: Any, payload: bytes, ttl: float, tags: tuple[str, ...] = ()) -> bool:
        """Do what `write` does, and void what is being loaded of the value.

        On a loop, not in a blocked thread: that may have interrupted a loop of its own, whose wire holds the lease.
        """
        self.state.touch((ref.name,))
        return await self.write(ref, value, payload, ttl, tags)

    async def write(self, ref: KeyRef, value: Any, payload: bytes, ttl: float, tags: tuple[str, ...] = ()) -> bool:
        """Store a value, in Redis and near; return whether it is stored anywhere.

        :param ttl: seconds.
        """
        since, tags = self.state.epochs.moment(), tagged(ref, tags)
        # An invalidation that is recorded from here on came after this write, and stays.
        mark = self.state.outbox.position
        self._memory.invalidate(ref.name)
        wire = self.state.client.connection(ref.name)
        holding = self.holding(ref, value, payload, tags)
        held = await in_turns(holding) if len(payload) >= codec.LARGE else at_once(holding)
        ttl = lifetime(ttl, ref.freshness.jitter, random)

        def overtaken() -> bool:
            known = map(self.state.epochs.tag_name, tags)
            return self.state.epochs.overtaken(tags, since) or self.state.outbox.covers(ref.name, known, mark)

        if wire is None:
            return self._keep(ref, held, ttl, overtaken, supersedes=True)
        if ref.namespace.local:
            return await self.local.write(wire, ref, held, ttl, overtaken)
        error: CacheUnavailableError | None = None
        kept = False

        async def attempt() -> None:
            nonlocal held
            await self.reads.epochs.settled(wire, ref.epoch_names, tags)
            held = held._replace(epoch=self.state.epochs.highest)
            await self._send(wire, ref, held, payload, ttl, partial(self.state.client.store, ref.name))

        try:
            try:
                await attempt()
            except CacheUnavailableError as first:
                async with self.state.key_locks.hold(ref.name):
                    error = await _again(attempt, first)
                    if error is not None:
                        late = overtaken()
                        mark = self._refused(ref, error)
                        kept = not late and self._keep(ref, held, ttl, overtaken, supersedes=True)
        except asyncio.CancelledError:
            # Sent or not, nobody will learn: what Redis holds of this key is not to be believed.
            self.unsure((ref.name,))
            raise
        if error is not None:
            await self.state.recorded()
            return kept
        self.state.outbox.overwritten(ref.name, mark)
        # Through another connection, a load may have found the old value before this one replaced it.
        self.state.flights.detach(ref.name)
        ref.counters.stores += 1
        return True

    async def fill(self, ref: KeyRef, held: Record, payload: bytes, ttl: float, fence: Fence) -> bool:
        """Store what was loaded, if nothing has overtaken the load; return whether it is stored anywhere.

        :param held: what `holding` returned for it, and whatever else is known of it.
        :param ttl: seconds.
        """
        held, tags = held._replace(epoch=fence.epoch), held.tags
        ttl = lifetime(ttl, ref.freshness.jitter, random)
        lease, wire = fence.lease, self.state.client.connection(ref.name)

        def overtaken() -> bool:
            return fence.overtaken or self.state.epochs.overtaken(tags, fence.since)

        if wire is None or lease is None:
            return await self._keep_loaded(ref, held, ttl, overtaken, fence, fence.refusal)
        if lease.void:
            return False
        if ref.namespace.local:
            outcome = await self.local.fill(ref, held, ttl, fence)
            if isinstance(outcome, bool):
                return outcome
            return await self._keep_loaded(ref, held, ttl, overtaken, fence, outcome if outcome.refused else None)
        try:
            self.reads.epochs.prepare(lease.connection, ref.epoch_names, tags)
            send = partial(self.state.client.fill, ref.name, lease.token)
            stored = await twice(lambda: self._send(lease.connection, ref, held, payload, ttl, send))
        except CacheUnavailableError as error:
            self.reads.failed(ref, error)
            if fence.fresh:
                # What it was to replace may still be there.
                self._distrust((ref.name,))
            lease.close()
            kept = await self._keep_loaded(ref, held, ttl, overtaken, fence, error if error.refused else None)
            await self.state.recorded()
            return kept
        except asyncio.CancelledError:
            if fence.fresh:
                self._distrust((ref.name,))
            raise
        lease.close(filled=True)
        self.state.leases.ring(ref.name)
        if stored:
            self.state.outbox.overwritten(ref.name, fence.mark)
            ref.counters.stores += 1
        else:
            self.state.stats.fenced_loads += 1
        return stored

    def holding(self, ref: KeyRef, value: Any, payload: bytes, tags: tuple[str, ...]) -> Generator[None, None, Record]:
        """Return, in steps, what is to be kept of a value, with a new version."""
        if ref.namespace.local:
            return self.local.held(value, tags)
        version = envelope.new_version()
        immutable = codec.is_immutable(value)
        if immutable or ref.namespace.share:
            # A copy unless it is immutable: its maker may go on to change it.
            large = len(payload) >= codec.LARGE and not immutable
            kept = (yield from codec.decode_steps(payload)) if large else value if immutable else codec.decode(payload)
            encoded = payload_kept(self.state.memory, kept, payload)
            size = footprint(kept, len(payload)) + (0 if encoded is None else len(encoded))
            if has_room(self.state.memory, size):
                return Record(kept, None, size, version, tags=tags, encoded=encoded)
        return Record(None, payload, len(payload), version, tags=tags)

    async def _send(
        self, wire: "Connection", ref: KeyRef, held: Record, payload: bytes, ttl: float,
        send: _Send,
    ) -> bool:  # fmt: skip
        """Send a value to Redis, and keep it near if Redis took it and nothing touched its key meanwhile.

        :param wire: the connection that it is sent through.
        :param send: stores it, given its bytes, their life in milliseconds, and what takes the answer.
        """
        if not wire.up or self._clock() - wire.time.sampled > _SAMPLED:
            # A value's end is told in Redis' time, which is known once the wire is up. While it is used, it is asked
            # again all the time; after a rest, the server's clock may have been set.
            await wire.renew()
        steps, fresh_until = wire.time.steps, wire.time.at(self._clock()) + int(ttl * MICROSECONDS)
        pack = partial(
            envelope.pack, payload, version=held.version, epoch=held.epoch, cost=held.cost,
            life=ttl, tags=held.tags, compress=ref.namespace.compress, validator=held.validator,
            negative=held.negative,
        )  # fmt: skip
        ref.epoch_names.sized(len(payload))
        size = len(payload) if ref.namespace.compress else 0
        raw = await self.off_loop(partial(pack, fresh_until=fresh_until), size)
        # Again, now that the command is about to be queued: a read of this process that was queued before it must
        # not store the old value after it, as Redis does not announce our own writes to us.
        self._memory.invalidate(ref.name)
        fill = self.reads.expect(ref)
        receive = partial(self._stored, _Sent(ref, fill, held, (fresh_until, ttl)))
        life = ttl if held.negative else ttl + ref.freshness.grace
        try:
            stored: bool = await send(raw, milliseconds(life), receive)
        finally:
            self.reads.settle(fill)
        if stored and wire.time.steps != steps:
            # The answer that came along with it says that the server's clock was set: by that, its end was wrong.
            fresh_until = wire.time.at(self._clock()) + int(ttl * MICROSECONDS)
            again = await self.off_loop(partial(pack, fresh_until=fresh_until), size)
            self._memory.invalidate(ref.name)
            with contextlib.suppress(CacheUnavailableError):
                before = raw[: envelope.HEADER_BYTES]
                await self.state.client.replace(ref.name, before, again, milliseconds(life))
        return stored

    async def off_loop(self, work: Callable[[], T], size: int, here: int = _COMPRESS_HERE) -> T:
        """Return what a function returns that compresses or decompresses a value, called in a thread if it is large.

        :param size: bytes of the value.
        :param here: bytes up to which it is called on the event loop.
        """
        if size <= here:
            return work()
        # Not the limit that everybody's threads share: sync loaders that wait for this very value may use it up.
        loop = asyncio.get_running_loop()
        limiter = self._limiters.setdefault(loop, CapacityLimiter(_COMPRESSING))
        return await to_thread.run_sync(work, limiter=limiter)

    def _stored(self, write: "_Sent", stored: bool, source: "Connection", sent: float) -> bool:
        """Keep a value near that Redis has taken, if nothing touched its key meanwhile. Runs inside the reader."""
        ref, fill, held, times = write
        known, kept = self.reads.tag_state(ref, held.tags), False
        # By Redis' time as it is known by now.
        deadline = source.time.end(*times, sent)
        minimum = self.state.epochs.minimum(source.known, ref.epoch_names, held.tags)
        # What waits to be told is older than this value, or has voided its placeholder.
        judged = judge(held, deadline - sent, ref.freshness, minimum, source.time.horizon, pending=False)
        if stored and fill is not None and judged.serves:
            trust = self.reads.trust(source, sent)
            entry = self.reads.entry(ref, held, trust, (deadline, sent, sent), known)
            kept = self._memory.fill(fill, entry)
        if stored and not kept:
            # Another loop's read may have brought the old value since this was sent.
            self._memory.invalidate(ref.name)
        return stored

    def _refused(self, ref: KeyRef, error: CacheUnavailableError) -> int:
        """Note a write that Redis may not have: what it holds of this key is not to be believed. Return the mark."""
        self.reads.failed(ref, error)
        mark = self.unsure((ref.name,))
        if self.state.reachable:
            self._stays_here(ref, error)
        return mark

    def _stays_here(self, ref: KeyRef, error: CacheUnavailableError) -> None:
        ref.counters.refused += 1
        self.state.notices.warn(f"refused:{error.reason}", f"{error}; the value stays in this process for now")

    def unsure(self, names: Sequence[bytes]) -> int:
        """Note a removal or an overwrite that Redis may not have, and let no load of these values be kept any more.

        Returns the mark of the record. Loads that began while Redis was being asked are overtaken as well: they would
        be kept here, after what this call came to.
        """
        mark = self._distrust(names)
        self.state.touch(names)
        return mark

    def _distrust(self, names: Sequence[bytes]) -> int:
        """Believe nothing that Redis says about these values until it has been told that they are gone.

        Returns the mark of the record. Loads continue: this is also used for a load whose value Redis did not take.

        In this order: a read that did not see the record finds its placeholder void.
        """
        mark = self.state.missed(lambda outbox: outbox.record(names))
        for name in names:
            self._memory.invalidate(name)
        return mark

    def _keep(
        self, ref: KeyRef, held: Record, ttl: float, overtaken: Callable[[], bool], trust: Trust | None = None, *,
        supersedes: bool = False,
    ) -> bool:  # fmt: skip
        """Store a value in this process alone, unless something has overtaken it.

        :param supersedes: whether it overtakes what another thread is about to store.
        """
        if not ref.namespace.l1:
            return False
        now, known = self._clock(), self.reads.tag_state(ref, held.tags)
        # Reserved before the question: what another thread does from here on voids the placeholder.
        fill = self._memory.reserve(ref.name, anew=supersedes)
        try:
            if overtaken():
                return False
            trust = trust or self.state.local_trust(ref.namespace)
            if ref.namespace.offline is not None and isinstance(trust, OfflineTrust) and trust.deadline <= now:
                return False
            entry = self.reads.entry(ref, held, trust, (now + ttl, now, now), known)
            kept = self._memory.fill(fill, entry)
        finally:
            self._memory.release(fill)
        ref.counters.stores += kept
        return kept

    async def _keep_loaded(
        self, ref: KeyRef, held: Record, ttl: float, overtaken: Callable[[], bool], fence: Fence,
        refusal: CacheUnavailableError | None,
    ) -> bool:  # fmt: skip
        """Store what was loaded in this process alone, if nobody could have overtaken it unheard.

        :param refusal: why Redis, being there, does not take it: then the staleness bound is its bound.
        """
        offline = self.state.generations.offline
        if fence.offline is offline and not self.state.reachable:
            trust: Trust = self.state.generations.bounded(offline, ref.namespace)
        elif refusal is not None:
            self._stays_here(ref, refusal)
            trust = LocalTrust(fence.at + self.state.settings.max_staleness, self.state.generations.now)
        else:
            return False
        # After what another task has in hand: it may overtake this load.
        async with self.state.key_locks.hold(ref.name):
            return self._keep(ref, held, ttl, overtaken, trust)

    async def write_many(self, items: Sequence[tuple[KeyRef, Any, bytes, float, tuple[str, ...]]]) -> bool:
        """Store many values, each with its address, payload, time to live in seconds, and tags.

        Return whether all of them are stored, in Redis or, while that is away, in this process.
        """
        stored = True
        for start in range(0, len(items), MANY):
            writes: list[asyncio.Task[bool]] = []
            portion = Step()
            try:
                for item in items[start : start + MANY]:
                    self.state.touch((item[0].name,))
                    writes.append(loop_task(self.write(*item)))
                    # Some hundred bytes of a payload are packed in the time that one is decoded in.
                    if portion.done(len(item[2]) >> 4):
                        # One turn for those that were begun to get as far as the queue.
                        await asyncio.sleep(0)
                        await turn()
                stored = all(await asyncio.gather(*writes)) and stored
            except BaseException:
                cancel(*writes)
                raise
        return stored

    # -- remove ---------------------------------------------------------------------------------------------

    async def remove(self, refs: Sequence[KeyRef]) -> int:
        """Remove values everywhere and return how many there were, as far as it can be known."""
        removed = 0
        for start in range(0, len(refs), _REMOVED):
            some = refs[start : start + _REMOVED]
            count, names = await self.local.remove(some)
            removed += count + (await self._remove(names) if names else 0)
            await turn()
        return removed

    async def _remove(self, names: Sequence[bytes]) -> int:
        held = sum(self._memory.get_untrusted(name) is not None for name in set(names))
        self.state.touch(names)
        wire = self.state.client.connection(names[0])
        if wire is None:
            return held
        try:
            return await twice(lambda: self.state.client.remove(names, self.state.touch))
        except asyncio.CancelledError:
            self.unsure(names)
            raise
        except CacheUnavailableError as error:
            self.state.stats.failed(error.reason)
            self.unsure(names)
            if self.state.reachable:
                self.state.notices.warn(f"refused:{error.reason}", f"{error}; this process no longer uses the value")
            await self.state.recorded()
            return held


async def _again(attempt: Callable[[], Awaitable[None]], error: CacheUnavailableError) -> CacheUnavailableError | None:
    """Ask Redis once more if its connection was cut, see `twice`; return why it could not be asked, or None."""
    if error.reason != "lost":
        return error
    try:
        await attempt()
    except CacheUnavailableError as second:
        return second
    return None


def milliseconds(ttl: float) -> int:
    """Return Redis' expiry for a time to live: rounded up, as judging is the envelope's business."""
    return max(1, math.ceil(ttl * 1000))
