"""Reads: from memory, from Redis, or, while that is away, from what this process still has.

Coroutines read on their own loop's connection. A blocking caller reads through the lane in its own thread, or else is
queued on the background loop's connection, without a task of its own. A connection's reply is judged, and kept if it
may be, inside its reader.
"""

import asyncio
import math
from asyncio import Future
from collections.abc import Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Final, TypeAlias

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.coherence.epochs import LARGE_BYTES, SMALL_BYTES
from magnus_cache._engine.coherence.tag_stamps import room
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.epoch_sync import JUDGEMENTS, UnsettledError
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import PLAIN, TAGGED, Entry, ReferenceEntry, pack_facts, pack_windows
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.redis.lane_tickets import LongWay
from magnus_cache._engine.redis.retries import ATTEMPTS
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.store.batches import PAYLOAD, ValueBatches
from magnus_cache._engine.store.fallback import Fallback
from magnus_cache._engine.store.judge import Verdict, verdict
from magnus_cache._engine.store.key_refs import KeyRefs
from magnus_cache._engine.store.lane_reads import LaneReads
from magnus_cache._engine.store.records import KeyRef, Lifespan, Record, TagState
from magnus_cache._engine.store.revalidation import comparable, head_size, recognized, tags_of
from magnus_cache._engine.store.settled_reads import JointReads, SettledReads
from magnus_cache._engine.store.values import may_have
from magnus_cache.errors import CacheDecodeError, CacheError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY, early_by

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.coherence.known_epochs import KnownEpochs
    from magnus_cache._engine.redis.client import Comparison
    from magnus_cache._engine.redis.exchange import Connection, Waiter

__all__ = ["Reads"]

_UNKNOWN: Final = Verdict.UNKNOWN

_FOREVER: Final = math.inf

_TINY: Final = 512
"""Bytes of a value in memory up to which a thread reads it anew by itself: to compare it would take hardly less."""

_Answer: TypeAlias = "tuple[Connection, float, int]"
"""Where an answer came from, the monotonic second when its request left, and the memory's generation from before the
answer was looked at."""


def _has_epochs(known: "KnownEpochs", names: "EpochNames") -> bool:
    """Return whether the epochs of plain values are known, and not for a limited time: then `prepare` does nothing."""
    return names.ready in known.ready and known.deadline == _FOREVER and not known.lent


class Reads(Fallback):
    """The reads of one `State`, and the making of entries.

    :ivar ref: returns where a value lives, see `KeyRefs.ref`.
    :ivar address_of: returns the same, with counters and a tag of its own, see `KeyRefs.address_of`.
    :ivar again: reads values that have arrived once before their epochs were known.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._compares = True
        # On a cluster, what a value stands on depends on its slot, too.
        self._trust_by_key = state.topology.trust_by_key
        self.again = (SettledReads if state.topology.is_cluster else JointReads)(state, self)
        self.epoch_sync = state.epoch_sync
        self._connection = state.client.connection
        self._for_large = state.client.connection_for_large
        self._batches = ValueBatches(state, self)
        refs = KeyRefs(state)
        self.ref, self.address_of = refs.ref, refs.address_of
        self._lane = LaneReads(state, self.received, self._batches)

    # -- read -----------------------------------------------------------------------------------------------

    async def read(
        self, ref: KeyRef, tags: tuple[str, ...] = (), *, again: bool = False, lost: int = 0
    ) -> Entry | None:
        """Return the entry of a value that memory could not serve: from Redis, or in an outage from memory.

        :param tags: those that the value is known to have; their epochs are requested with it.
        :param again: whether it has arrived once before its epochs were known.
        :param lost: how many requests for it were lost with their connection.
        """
        if ref.others:
            return await self._read_each(ref, tags)
        connection = self._connection(ref.name)
        if connection is None:
            return self._memory.get_untrusted(ref.name)
        if ref.namespace.local:
            try:
                return await self.local.read(connection, ref)
            except CacheUnavailableError as error:
                self.failed(ref, error)
                return self.fallback(ref)
        outbox = self.state.outbox
        for _ in range(JUDGEMENTS):
            try:
                if outbox.pending:
                    await self.caught_up(connection, ref)
                entry_here = self.entry_here(ref)
                if entry_here is not None and connection.trust.has(entry_here.trust) and self._clock() < entry_here:
                    # Its trust has lapsed because nothing was asked; the answer to a heartbeat renews it, see `Trust`.
                    await connection.renew()
                    if (entry := self._memory.hit(ref.name)) is not None:
                        return entry
                source, here = connection, None if again else entry_here
                if ref.epoch_names.value_bytes >= LARGE_BYTES and here is None:
                    source = self._for_large(ref.name) or connection
                if again:
                    return await self.again.read(source, ref, tags)
                if tags or not _has_epochs(source.known, ref.epoch_names):
                    self.epoch_sync.prepare(source, ref.epoch_names, tags)
                waiter, placeholder = self.request(source, ref, here)
                try:
                    return await waiter
                finally:
                    if placeholder is not None:
                        self.settle(placeholder)
            except UnsettledError as error:
                tags, again = error.tags, True
                connection = self._owner(ref, connection)
            except CacheUnavailableError as error:
                self.failed(ref, error)
                connection = self._owner(ref, connection)
                if error.reason == "noperm" and self._compares:
                    # Perhaps it was the script; what is not permitted has to be read in full.
                    self._compares = False
                    continue
                lost += 1
                if error.reason != "lost" or lost == ATTEMPTS:
                    break
        return self.fallback(ref)

    async def _read_each(self, ref: KeyRef, tags: tuple[str, ...]) -> Entry | None:
        """Return the entry of a sealed value, by the first of its names that has one."""
        for each in ref.others:
            entry = self._memory.hit(each.name) or await self.read(each, tags)
            if entry is not None:
                return entry
        return None

    def _owner(self, ref: KeyRef, connection: "Connection") -> "Connection":
        """Return the connection for another attempt: on a cluster, the value may have moved."""
        return connection if self._trust_by_key is None else self.state.client.current_connection(ref.name)

    async def caught_up(self, connection: "Connection", ref: KeyRef) -> None:
        """Return once Redis knows of this process's invalidations of a value, if that comes soon.

        :raises CacheUnavailableError: when it went away again.
        """
        outbox = self.state.outbox
        if outbox.pending and outbox.covers(ref.name):
            await self.state.replayer.done(connection, ref.name)

    # -- asking ---------------------------------------------------------------------------------------------

    def ask(self, ref: KeyRef) -> "asyncio.Future[bytes | Entry | None] | None":
        """Queue the read of a value that memory never holds; return None if the connection or its epochs are not ready.

        The result is the payload of a plain valid value. All else gives what `read` gives, or an error; then call
        `read_again`.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        names = ref.epoch_names
        connection = (self._connection if names.value_bytes < LARGE_BYTES else self._for_large)(ref.name)
        if connection is None or not connection.up or not _has_epochs(connection.known, names):
            return None
        # Not `create_future`, which is one call more.
        waiter: asyncio.Future[bytes | Entry | None] = Future(loop=connection.loop)
        connection.read_value(self._batches, ref, PAYLOAD, waiter)
        return waiter

    async def read_again(self, ref: KeyRef, error: CacheUnavailableError) -> Entry | None:
        """Return the entry of a value that `ask` could not read: from Redis, or in an outage from memory."""
        if isinstance(error, UnsettledError):
            return await self.read(ref, error.tags, again=True)
        self.failed(ref, error)
        return await self.read(ref, lost=1) if error.reason == "lost" else self.fallback(ref)

    def entry_here(self, ref: KeyRef) -> Entry | None:
        """Return the entry in memory, trusted or not; None if there is none or the caller may not have it."""
        if not ref.namespace.l1:
            return None
        entry = self._memory.get_untrusted(ref.name)
        return entry if entry is not None and may_have(ref, entry) else None

    def request(
        self, connection: "Connection", ref: KeyRef, entry_here: Entry | None
    ) -> tuple[asyncio.Future[Entry | None], Placeholder | None]:
        """Queue a read; the second item of the answer is to be settled when the first is there.

        :param entry_here: see the method of this name; None has Redis send the value in any case.
        """
        waiter: asyncio.Future[Entry | None] = connection.loop.create_future()
        placeholder: Placeholder | None = None
        try:
            placeholder = self.expect(ref)
            if (
                entry_here is None or not self._compares or not comparable(entry_here, connection)
                or ref.namespace.seal  # what tells of the same version has to be opened, too
            ):  # fmt: skip
                connection.read_value(self._batches, ref, placeholder, waiter)
                placeholder = None  # it is released with the answer, whether or not the caller still waits
            else:
                tags = tags_of(entry_here)
                self.epoch_sync.prepare(connection, ref.epoch_names, tags)
                receive = partial(self.compared, ref, placeholder, entry_here)
                self.state.client.compare(ref.name, entry_here.version, head_size(tags), receive, waiter)
        except BaseException:
            self.settle(placeholder)
            raise
        return waiter, placeholder

    def read_blocking(self, ref: KeyRef) -> Entry | bytes | None:
        """Return, for a thread, what `read` returns, or a payload alone where that is enough (`KeyRef.is_far`).

        :raises CacheDeadlockError: where the thread must not wait, see `Portal.check_thread`.
        """
        if ref.others:
            each = (self._memory.hit(other.name) or self.read_blocking(other) for other in ref.others)
            return next((entry for entry in each if entry is not None), None)
        portal, state = self.state.portal, self.state
        state.check_open()
        portal.check_thread()
        if state.endpoint is None:
            return self._memory.get_untrusted(ref.name)
        if (local := ref.namespace.local) and self._memory.get_stale(ref.name, trusted=False) is None:
            return None
        tags, again, entry_here = tuple[str, ...](), False, self.entry_here(ref)
        if (
            not local and not (state.outbox.pending and state.outbox.covers(ref.name))
            and (entry_here is None or entry_here.size <= _TINY)
        ):  # fmt: skip
            placeholder: Placeholder | None = None
            try:
                placeholder = self.expect(ref)
                answer = self._lane.read(ref, placeholder)
                # What is here need only be compared with what Redis has; see `read`.
                if isinstance(answer, LongWay) and entry_here is None:
                    answer = portal.request(partial(self._ask_for, ref, placeholder))
            except UnsettledError as error:
                tags, again = error.tags, True
            except NoThreadError as error:
                return self.without_loop(ref, error)
            except CacheUnavailableError as error:
                # read() retries and falls back.
                self.failed(ref, error)
            else:
                if not isinstance(answer, LongWay):
                    return answer
            finally:
                try:
                    self.settle(placeholder)
                except BaseException:
                    # Interrupted (Ctrl-C), perhaps before it had begun. Once too often only costs another its place.
                    self.settle(placeholder)
                    raise
        try:
            return portal.call(partial(self.read, ref, tags, again=again))
        except NoThreadError as error:
            return self.without_loop(ref, error)

    def _ask_for(self, ref: KeyRef, placeholder: Placeholder | None, waiter: "Waiter") -> None:
        """Queue a blocked thread's read; runs on the background loop."""
        try:
            connection = self._connection(ref.name)
            assert connection is not None
            self.epoch_sync.prepare(connection, ref.epoch_names)
            connection.read(ref.name, partial(self.received, ref, placeholder), waiter, ref.epoch_names.value_bytes)
        except CacheError as error:
            waiter.set_exception(error)

    async def look(self, ref: KeyRef) -> Entry | None:
        """Return the entry of a value: from memory, from Redis, or in an outage from what memory still has."""
        entry = self._memory.hit(ref.name) or await self.read(ref)
        return entry if self.is_fresh(entry) else None

    def expect(self, ref: KeyRef) -> Placeholder | None:
        """Reserve the value's place in memory, before it is requested."""
        return self._memory.reserve(ref.name) if ref.namespace.l1 else None

    def settle(self, placeholder: Placeholder | None) -> None:
        """Give back a place that was reserved, used or not."""
        if placeholder is not None:
            self._memory.release(placeholder)

    def received(
        self, ref: KeyRef, placeholder: Placeholder | None, raw: bytes | None, connection: "Connection", sent: float
    ) -> Entry | None:
        """Judge what Redis answered, and keep it if nothing touched the key meanwhile. Runs inside the reader.

        :raises UnsettledError: for a value whose epochs are not known on this connection.
        """
        size, epoch_names = len(raw) if raw is not None else 0, ref.epoch_names
        if size > SMALL_BYTES or not 0 < epoch_names.value_bytes <= SMALL_BYTES:
            epoch_names.sized(size)
        if raw is None:
            # As `_gone` does it, without a call on the way of each miss.
            if placeholder is not None:
                self._memory.drop(placeholder)
            return None
        # Read before the epochs are looked at: what is invalidated from here on finds the entry older than itself.
        generation = self._memory.generation
        try:
            if ref.namespace.seal:
                raw = self.plain(ref, raw)
            version, fresh_until, epoch, tags, payload, cost, negative, life, paid = envelope.unpack(
                raw, self.limit(ref)
            )
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            self._gone(placeholder)
            return None
        record = Record(None, payload, len(payload), version, epoch, tags, cost, negative, paid=paid)
        return self._judged(ref, placeholder, record, (fresh_until, life), (connection, sent, generation))

    def compared(
        self,
        ref: KeyRef,
        placeholder: Placeholder | None,
        near: Entry,
        reply: "Comparison",
        connection: "Connection",
        sent: float,
    ) -> Entry | None:
        """Judge what is here anew, if Redis still has it; else what it has. Runs inside the reader.

        :raises UnsettledError: for a value whose epochs are not known on this connection.
        """
        generation = self._memory.generation
        try:
            record, fresh_until, life, raw = recognized(near, reply)
        except CacheDecodeError as error:
            self.unreadable(ref, error)
            self._gone(placeholder)
            return None
        if record is None:
            return self.received(ref, placeholder, raw, connection, sent)
        return self._judged(ref, placeholder, record, (fresh_until, life), (connection, sent, generation))

    def _judged(
        self, ref: KeyRef, placeholder: Placeholder | None, record: Record, times: tuple[int, float], answer: "_Answer"
    ) -> Entry | None:
        """Return the entry of what Redis has, if it is still of use, and keep it.

        :param times: its fresh-until and its life, as its header has them.
        """
        connection, sent, generation = answer
        (fresh_until, life), now = times, self._clock()
        deadline = connection.time.end(fresh_until, life, now)
        stamps = self.state.epochs.stamps(record.tags, ref.epoch_names) if record.tags else ()
        judged = verdict(self.state, ref, record, deadline - now, connection, sent)
        if not judged.serves:
            if judged is _UNKNOWN:
                connection.known.ready.discard(ref.epoch_names.ready)
                raise UnsettledError(tuple(record.tags))
            if placeholder is not None and (judged.is_invalidated or self._is_replaced(placeholder, record)):
                self._memory.drop(placeholder)
            return None
        began, trust = header_times.as_of(fresh_until, life), self.trust(connection, sent, ref)
        entry = self.entry(ref, record, trust, (deadline, sent, began), (generation, stamps))
        if placeholder is not None:
            self._memory.fill(placeholder, entry)
        return entry

    def trust(self, connection: "Connection", sent: float, ref: KeyRef) -> Trust:
        """Return what an answer stands on: its connection; without tracking, a moment since it or its epochs left."""
        if self._trust_by_key is not None:
            return self._trust_by_key(ref.name, ref.epoch_names, connection, sent)
        if connection.tracking:
            return connection.trust
        return Trust(
            min(sent + self._settings.max_staleness, connection.known.deadline), self.state.generations.current
        )

    def tag_state(self, ref: KeyRef, tags: Sequence[str]) -> TagState:
        """Return what is known of tags now, to be read before it is known whether one of them is invalid."""
        return self._memory.generation, self.state.epochs.stamps(tags, ref.epoch_names)

    def bound_entries(self, ref: KeyRef) -> None:
        """Have memory keep the limit of a namespace, if it has one, when its next value is stored."""
        most = ref.namespace.l1_max_entries
        if most is not None or self._memory.limits:
            self._memory.limit(self.state.keyspace.namespace_prefix(ref.namespace), most)

    def entry(self, ref: KeyRef, record: Record, trust: Trust, span: Lifespan, known: TagState) -> Entry:
        """Make an entry that is to be stored now, with the state of its tags from before its value was judged."""
        self.bound_entries(ref)
        deadline, since, as_of = span
        generation, stamps = known
        freshness, more = ref.freshness, 0
        if freshness is not NO_POLICY:
            # Not earlier than now, however eager.
            most = max(0.0, deadline - since)
            early = 0.0 if record.negative else min(most, early_by(record.cost, freshness.early, random))
            more = pack_windows(early, 0.0 if record.negative else freshness.grace, negative=record.negative)
            deadline -= early
        if (cap := ref.namespace.l1_ttl) is not None and since + cap < deadline:
            deadline, more = since + cap, more & 1
        facts = pack_facts(record.version, more, as_of, record.paid)
        if not record.tags:
            plain = PLAIN[record.shared](record.value, record.payload, deadline, trust, record.size, facts)
            plain.encoded = record.encoded
            return plain
        size = record.size + room(stamps)
        kind = ReferenceEntry if ref.namespace.local else TAGGED[record.shared]
        entry = kind(record.value, record.payload, deadline, trust, size, facts)
        entry.stamps, entry.epoch, entry.generation = stamps, record.epoch, generation
        entry.encoded = record.encoded
        return entry
