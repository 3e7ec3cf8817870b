"""Reads: from the near cache, from Redis, or, while that is away, from what this process still holds.

Coroutines read on their own loop's wire; a blocking caller's read is queued on the background loop's, without a
task of its own. Either way a reply is judged, and kept if it may be, inside the wire's reader.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import SMALL_BYTES
from magnus_cache._engine.coherence.tag_stamps import room
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.versions import version_suffix
from magnus_cache._engine.memory.entry import Entry, ReferenceEntry, TaggedEntry, pack_facts, pack_windows
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.redis.retries import ATTEMPTS
from magnus_cache._engine.runtime.durations import LONGEST
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.judge import Verdict, judge_offline, verdict
from magnus_cache._engine.store.records import KeyRef, Lifespan, Record, TagState
from magnus_cache._engine.store.revalidation import comparable, head_size, recognized, tags_of
from magnus_cache._engine.store.values import Coding
from magnus_cache.errors import CacheDecodeError, CacheError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY, FreshnessOptions, early_by, merged

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Comparison
    from magnus_cache._engine.redis.exchange import Connection, Waiter

__all__ = ["Reads"]

_UNKNOWN: Final = Verdict.UNKNOWN


_Answer: TypeAlias = "tuple[Connection, float, int]"
"""Where an answer came from, the monotonic second when its request left, and the memory's generation from before the
answer was looked at."""


class Reads(Coding):
    """The reads of one `State`, and the making of entries."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._memory = state.memory
        self._compares = True
        self.epochs = state.epoch_reads
        self._connection = state.client.connection

    def ref(self, namespace: str, key: Any, options: FreshnessOptions | None = None) -> KeyRef:
        """Return where a value lives.

        :param options: what a single call says about freshness.
        :raises CacheArgumentError: naming `namespace`, `key` or an option, for one that cannot be used.
        """
        state = self.state
        policy = state.namespaces.resolve(namespace)
        return self.address_of(policy, key, state.stats.of(policy), options)

    def address_of(
        self, namespace: Namespace, key: Any, counters: Counters, options: FreshnessOptions | None = None, tag: str = ""
    ) -> KeyRef:
        """Return where a value lives, to be counted in counters of its own.

        :param tag: what all values of the cached function have that makes this one.
        """
        state, freshness = self.state, namespace.freshness
        if options:
            freshness = merged(freshness, options)
        name = state.keyspace.value_name(namespace, key)
        if namespace.version is not None:
            name += version_suffix(namespace.version, "n").encode()
        epoch_names = state.epochs.function_realm(namespace, tag) if tag else state.epochs.epoch_names(namespace)
        return KeyRef(namespace, name, counters, epoch_names, freshness)

    def ttl(self, ref: KeyRef) -> float:
        """Return a namespace's time to live in seconds."""
        return ref.namespace.ttl or self._settings.default_ttl

    # -- read -----------------------------------------------------------------------------------------------

    async def read(self, ref: KeyRef, tags: tuple[str, ...] = (), *, again: bool = False) -> Entry | None:
        """Return the entry of a value that the near cache could not serve: from Redis, or in an outage from here.

        :param tags: those that the value is known to have; their epochs are asked for with it.
        :param again: whether it has come once before its epochs were known.
        """
        wire = self._connection(ref.name)
        if wire is None:
            return self._memory.get_untrusted(ref.name)
        if ref.namespace.local:
            try:
                return await self.local.read(wire, ref)
            except CacheUnavailableError as error:
                self.failed(ref, error)
                return self.fallback(ref)
        outbox, lost = self.state.outbox, 0
        for _ in range(JUDGEMENTS):
            try:
                if outbox.pending:
                    await self.caught_up(wire, ref)
                held = self.held(ref)
                if held is not None and held.trust is wire.trust and self._clock() < held:
                    # Its trust has lapsed for want of talk: any answer on its wire renews that.
                    await wire.renew()
                    if (entry := self._memory.hit(ref.name)) is not None:
                        return entry
                self.epochs.prepare(wire, ref.epoch_names, tags, again=again)
                # In one reply with its epochs, whatever announcements come before and after it.
                waiter, fill = self.request(wire, ref, None if again else held)
                try:
                    return await waiter
                finally:
                    if fill is not None:
                        self.settle(fill)
            except UnsettledError as error:
                tags, again = error.tags, True
            except CacheUnavailableError as error:
                self.failed(ref, error)
                if error.reason == "noperm" and self._compares:
                    # Perhaps it was the script; what is not permitted has to be read in full.
                    self._compares = False
                    continue
                lost += 1
                if error.reason != "lost" or lost == ATTEMPTS:
                    break
        return self.fallback(ref)

    async def caught_up(self, wire: "Connection", ref: KeyRef) -> None:
        """Return once Redis knows of this process's invalidations of a value, if that comes soon.

        :raises CacheUnavailableError: when it went away again.
        """
        outbox = self.state.outbox
        if outbox.pending and outbox.covers(ref.name):
            await self.state.replayer.done(wire)

    # -- asking ---------------------------------------------------------------------------------------------

    def held(self, ref: KeyRef) -> Entry | None:
        """Return what is here, trusted or not, and may be near."""
        return self._memory.get_untrusted(ref.name) if ref.namespace.l1 else None

    def request(
        self, wire: "Connection", ref: KeyRef, held: Entry | None
    ) -> tuple[asyncio.Future[Entry | None], Placeholder | None]:
        """Queue a read; the second item of the answer is to be settled when the first is there.

        :param held: what is here, see `held`; None has Redis send the value in any case.
        """
        waiter: asyncio.Future[Entry | None] = wire.loop.create_future()
        fill: Placeholder | None = None
        try:
            fill = self.expect(ref)
            if held is None or not self._compares or not comparable(held, wire):
                wire.read(ref.name, partial(self.received, ref, fill), waiter, ref.epoch_names.value_bytes)
            else:
                tags = tags_of(held)
                self.epochs.prepare(wire, ref.epoch_names, tags)
                receive = partial(self.compared, ref, fill, held)
                self.state.client.compare(ref.name, held.version, head_size(tags), receive, waiter)
        except BaseException:
            self.settle(fill)
            raise
        return waiter, fill

    def read_blocking(self, ref: KeyRef) -> Entry | None:
        """Do what `read` does, for a thread: through the background loop, but without a task of its own there.

        :raises CacheDeadlockError: where the thread must not wait, see `Portal.check_thread`.
        """
        portal, state = self.state.portal, self.state
        state.check_open()
        portal.check_thread()
        if state.endpoint is None:
            return self._memory.get_untrusted(ref.name)
        if (local := ref.namespace.local) and self._memory.get_stale(ref.name, trusted=False) is None:
            return None
        tags: tuple[str, ...] = ()
        again = False
        if not local and not state.outbox.pending and self.held(ref) is None:
            fill: Placeholder | None = None
            try:
                fill = self.expect(ref)
                entry: Entry | None = portal.request(partial(self._ask_for, ref, fill))
            except UnsettledError as error:
                tags, again = error.tags, True
            except NoThreadError as error:
                return self.without_loop(ref, error)
            except CacheUnavailableError as error:
                # read() retries and falls back.
                self.failed(ref, error)
            else:
                return entry
            finally:
                try:
                    self.settle(fill)
                except BaseException:
                    # Interrupted (Ctrl-C), perhaps before it had begun. Once too often only costs another its place.
                    self.settle(fill)
                    raise
        try:
            return portal.call(partial(self.read, ref, tags, again=again))
        except NoThreadError as error:
            return self.without_loop(ref, error)

    def without_loop(self, ref: KeyRef, error: CacheUnavailableError) -> Entry | None:
        """Count a read that had no background loop to go to, and return what this process has."""
        ref.counters.errors += 1
        self.state.without_loop(error)
        return self.fallback(ref)

    def _ask_for(self, ref: KeyRef, fill: Placeholder | None, waiter: "Waiter") -> None:
        """Queue a blocked thread's read; runs on the background loop."""
        try:
            wire = self._connection(ref.name)
            assert wire is not None
            self.epochs.prepare(wire, ref.epoch_names)
            wire.read(ref.name, partial(self.received, ref, fill), waiter, ref.epoch_names.value_bytes)
        except CacheError as error:
            waiter.set_exception(error)

    def fallback(self, ref: KeyRef) -> Entry | None:
        """Return the fresh value that this process still holds, if Redis is away; if it is not, nothing."""
        return None if self.state.reachable else self._still_served(ref, self._memory.get_untrusted(ref.name))

    def last(self, ref: KeyRef) -> Entry | None:
        """Return what this process still holds of a value, be it stale, if Redis is away; if it is not, nothing.

        It need not be trusted, but must have been until the outage.
        """
        if self.state.reachable:
            return None
        return self._still_served(ref, self._memory.get_stale(ref.name, trusted=False))

    def _still_served(self, ref: KeyRef, entry: Entry | None) -> Entry | None:
        return entry if entry is not None and self.offline_verdict(ref, entry).serves else None

    def offline_verdict(self, ref: KeyRef, entry: Entry) -> Verdict:
        """Return whether memory may serve what it holds although Redis cannot confirm it, and if not, why."""
        generations, offline, now = self.state.generations, ref.namespace.offline, self._clock()
        # Whoever brought it near may have asked for another grace than this caller.
        grace = min(ref.freshness.grace, entry.end - entry.fresh_until)
        allowed = math.inf if offline is None else generations.ends(entry.trust, offline) - now
        return judge_offline(
            entry.fresh_until - now, grace, reachable=self.state.reachable,
            heard=entry.trust.generation == generations.now, allowed=allowed,
        )  # fmt: skip

    async def look(self, ref: KeyRef) -> Entry | None:
        """Return the entry of a value from wherever it is: near, in Redis, or in an outage from here."""
        entry = self._memory.hit(ref.name) or await self.read(ref)
        good = entry is not None and not entry.negative and self._clock() < entry.fresh_until
        return entry if good else None

    def expect(self, ref: KeyRef) -> Placeholder | None:
        """Reserve the value's place in the near cache, before it is asked for."""
        return self._memory.reserve(ref.name) if ref.namespace.l1 else None

    def settle(self, fill: Placeholder | None) -> None:
        """Give back a place that was reserved, used or not."""
        if fill is not None:
            self._memory.release(fill)

    def received(
        self, ref: KeyRef, fill: Placeholder | None, raw: bytes | None, source: "Connection", sent: float
    ) -> Entry | None:
        """Judge what Redis answered, and keep it if nothing touched the key meanwhile. Runs inside the reader.

        :raises UnsettledError: for a value whose epochs are not known on this connection.
        """
        size, epoch_names = len(raw) if raw is not None else 0, ref.epoch_names
        if size > SMALL_BYTES or not 0 < epoch_names.value_bytes <= SMALL_BYTES:
            epoch_names.sized(size)
        if raw is None:
            self._gone(fill)
            return None
        # Read before the epochs are looked at: what is invalidated from here on finds the entry older than itself.
        generation = self._memory.generation
        try:
            version, fresh_until, epoch, tags, payload, cost, negative, life = envelope.unpack(raw, self.limit(ref))
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            self._gone(fill)
            return None
        held = Record(None, payload, len(payload), version, epoch, tags, cost, negative)
        return self._judged(ref, fill, held, (fresh_until, life), (source, sent, generation))

    def compared(
        self, ref: KeyRef, fill: Placeholder | None, near: Entry, reply: "Comparison", source: "Connection", sent: float
    ) -> Entry | None:
        """Judge what is here anew, if Redis still has it; else what it has. Runs inside the reader.

        :raises UnsettledError: for a value whose epochs are not known on this connection.
        """
        generation = self._memory.generation
        try:
            held, fresh_until, life, raw = recognized(near, reply)
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            self._gone(fill)
            return None
        if held is None:
            return self.received(ref, fill, raw, source, sent)
        return self._judged(ref, fill, held, (fresh_until, life), (source, sent, generation))

    def _judged(
        self, ref: KeyRef, fill: Placeholder | None, held: Record, times: tuple[int, float], answer: "_Answer"
    ) -> Entry | None:
        """Return the entry of what Redis has, if it is still of use, and keep it.

        :param times: its fresh-until and its life, as its header has them.
        """
        source, sent, generation = answer
        (fresh_until, life), now = times, self._clock()
        deadline = source.time.end(fresh_until, life, now)
        stamps = self.state.epochs.stamps(held.tags, ref.epoch_names) if held.tags else ()
        judged = verdict(self.state, ref, held, deadline - now, source, sent)
        if not judged.serves:
            if judged is _UNKNOWN:
                source.known.ready.discard(ref.epoch_names.ready)
                raise UnsettledError(tuple(held.tags))
            if fill is not None and (judged.is_invalidated or self._is_replaced(fill, held)):
                self._memory.drop(fill)
            return None
        born, trust = deadline - life if 0 < life < LONGEST else None, self.trust(source, sent)
        entry = self.entry(ref, held, trust, (deadline, sent, born), (generation, stamps))
        if fill is not None:
            self._memory.fill(fill, entry)
        return entry

    def _gone(self, fill: Placeholder | None) -> None:
        """Let go of what is still here of a value that Redis has no more, or the next outage would bring it back."""
        if fill is not None:
            self._memory.drop(fill)

    def _is_replaced(self, fill: Placeholder, held: Record) -> bool:
        """Return whether what is here is not what Redis has, which is of no use to this caller."""
        near = self._memory.get_stale(fill.name, trusted=False)
        return near is not None and near.version != held.version

    def trust(self, source: "Connection", sent: float) -> Trust:
        """Return what an answer stands on: its connection; without tracking, a moment since it or its epochs left."""
        if source.tracking:
            return source.trust
        return Trust(min(sent + self._settings.max_staleness, source.known.deadline), self.state.generations.now)

    def tag_state(self, ref: KeyRef, tags: Sequence[str]) -> TagState:
        """Return what is known of tags now, to be read before it is known whether one of them is invalid."""
        return self._memory.generation, self.state.epochs.stamps(tags, ref.epoch_names)

    def entry(self, ref: KeyRef, held: Record, trust: Trust, span: Lifespan, known: TagState) -> Entry:
        """Make an entry, with the state of its tags from before its value was judged."""
        deadline, since, born = span
        generation, stamps = known
        freshness, more = ref.freshness, 0
        if freshness is not NO_POLICY:
            # Not earlier than now, however eager.
            most = max(0.0, deadline - since)
            early = 0.0 if held.negative else min(most, early_by(held.cost, freshness.early, random))
            more = pack_windows(early, 0.0 if held.negative else freshness.grace, negative=held.negative)
            deadline -= early
        if (cap := ref.namespace.l1_ttl) is not None and since + cap < deadline:
            deadline, more = since + cap, more & 1
        facts = pack_facts(held.version, more, born)
        if not held.tags:
            plain = Entry(held.value, held.payload, deadline, trust, held.size, facts)
            plain.encoded = held.encoded
            return plain
        size = held.size + room(stamps)
        kind = ReferenceEntry if ref.namespace.local else TaggedEntry
        entry = kind(held.value, held.payload, deadline, trust, size, facts)
        entry.stamps, entry.epoch, entry.generation = stamps, held.epoch, generation
        entry.encoded = held.encoded
        return entry

    def failed(self, ref: KeyRef, error: CacheUnavailableError) -> None:
        """Count an exchange with Redis that failed."""
        ref.counters.errors += 1
        self.state.stats.failed(error.reason)
