"""Writes and removals of many values: some at a time, in one exchange and one step of the event loop.

Most calls for many values write small values of one namespace. Some hundred of them are one transaction, one future and
one look at what they are judged by, and the locks of the memory and of the loads are taken once for all.

A transaction says what became of each value. Everything but "stored" (a refusal, a lost connection, a clock that was
set meanwhile) is left to `Writes.write`, value by value, so there is one set of rules for what is retried, recorded for
Redis, kept in this process and told. The same goes for values that are unusual from the start: large or compressed
ones, and objects of local namespaces. A call for many values is not atomic, but each of its values is: it is stored,
its lease is voided and its change is announced in one step of the server.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.envelope import Origin
from magnus_cache._engine.codec.versions import new_version, new_versions
from magnus_cache._engine.redis.client_many import Stored
from magnus_cache._engine.runtime import observers
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.turns import Step, at_once, turn
from magnus_cache._engine.store.batch_keys import RefMaker, places_by_server, trust_by_slot
from magnus_cache._engine.store.judge import judge
from magnus_cache._engine.store.lives import CalendarLife
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache._engine.store.transactions import Transaction, ValuesToWrite, record_of
from magnus_cache._engine.store.writes import SAMPLED, Writes, milliseconds
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.freshness import lifetime

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["ManyWrites"]

_IN_FLIGHT: Final = 3
"""Transactions that are on their way at a time: the server works on one while the next one is packed."""

_REMOVED: Final = 250
"""Values that one call removes at a time."""


class ManyWrites(Writes):
    """The writes of one `State`, of single values and of many."""

    async def write_many(self, items: ValuesToWrite) -> bool:
        """Return whether all of many values are stored: in Redis or, while Redis is away, in this process.

        :param items: values whose names differ.
        """
        stored = True
        sent: deque[Transaction] = deque()
        try:
            servers = self.state.topology.spread
            for part, together in items.parts(servers):
                for some in self._by_server(part):
                    if together and (transaction := await self._begun(some)) is not None:
                        sent.append(transaction)
                        self._send_together(transaction)
                        if len(sent) >= _IN_FLIGHT * servers:
                            stored = await self._confirmed(sent) and stored
                    else:
                        stored = await self._write_each(some) and stored
                    await turn()
            while sent:
                stored = await self._confirmed(sent) and stored
        finally:
            if sent:
                self._give_up(sent)
        return stored

    def _by_server(self, part: ValuesToWrite) -> Sequence[ValuesToWrite]:
        """Return values in portions, each of one server."""
        if not self.state.topology.is_cluster:
            return (part,)
        places = places_by_server(self.state.client.connection, part.names)
        return [part] if len(places) == 1 else list(map(part.only, places.values()))

    async def _begun(self, part: ValuesToWrite) -> Transaction | None:
        """Return a transaction that may be sent at once; None if the values are to be written one by one."""
        names = part.names
        wire = self.state.client.connection(names[0])
        if wire is None:
            return None
        since = self.state.epochs.moment()
        self.state.forget_names(names)
        transaction = Transaction(part, wire, self.state.outbox.position, since)
        try:
            for ref in transaction.alike:
                await self.reads.epoch_sync.settled(wire, ref.epoch_names, part.tags)
            if not wire.up or self._clock() - wire.time.sampled > SAMPLED:
                # For the same reasons as in `Writes`.
                await wire.renew()
        except CacheUnavailableError:
            return None
        if isinstance(part.ttl, CalendarLife):
            await self.reads.lives.ready(part.ttl, names[0], wire)
        transaction.steps = wire.time.steps
        return transaction

    def _send_together(self, transaction: Transaction) -> None:
        """Queue a transaction. No step of the loop in between, and nothing that it asks for can be stored before."""
        transaction.epoch = self.state.epochs.highest
        raws, expiries = self._packed(transaction)
        receive = partial(self._received, transaction)
        try:
            self.state.client.store_many(transaction.part.names, raws, expiries, receive, transaction.waiter)
        except CacheUnavailableError as error:
            transaction.waiter.set_exception(error)

    def _packed(self, transaction: Transaction) -> tuple[list[bytes], list[int]]:
        """Return the stored form of each value and its expiry in milliseconds, with the names reserved in memory.

        Queue the command right after it: a read that this process queued earlier would store the old value in memory
        after the write, and Redis does not announce our own writes to us.
        """
        part, wire, epoch = transaction.part, transaction.wire, transaction.epoch
        refs, names, payloads = part.refs, part.names, part.payloads
        clock, policy = self._clock(), refs.freshness
        now = wire.time.at(clock)
        ttl = part.ttl.left(wire.time, clock) if isinstance(part.ttl, CalendarLife) else part.ttl
        as_of = min(now, part.began.told(wire.time))
        if policy.jitter:
            ttls = [lifetime(ttl, policy.jitter, random) for _ in names]
            spans = [header_times.lived(as_of, now + int(each * MICROSECONDS)) for each in ttls]
            ends, lives = [end for end, _ in spans], [life for _, life in spans]
            expiries = [milliseconds(each + policy.grace) for each in ttls]
        else:
            end, life = header_times.lived(as_of, now + int(ttl * MICROSECONDS))
            ttls, ends, lives = [ttl] * len(names), [end] * len(names), [life] * len(names)
            expiries = [milliseconds(ttl + policy.grace)] * len(names)
        transaction.times = ends, ttls
        near = refs.namespace.l1
        if near:
            transaction.records = self._records(part, epoch, transaction.cost)
            versions = [record.version for record in transaction.records]
        else:
            versions = new_versions(len(names))
        raws = envelope.pack_many(payloads, versions, ends, lives, Origin(epoch, part.tags, transaction.cost))
        for ref in transaction.alike:
            ref.epoch_names.sized(max(map(len, payloads)))
        self._memory.invalidate_many(names)
        if near:
            self._memory.reserve_many(names, transaction.placeholders)
        return raws, expiries

    def _records(self, part: ValuesToWrite, epoch: int, cost: float) -> list[Record]:
        """Return what memory is to keep of each value."""
        ref, tags, share = part.refs.ref(b""), part.tags, part.refs.namespace.share
        records: list[Record] = []
        for value, payload in zip(part.values, part.payloads, strict=True):
            kind = type(value)
            if (kind is dict or kind is list) and not share:
                # What `record_steps` makes of it, without its steps.
                records.append(Record(None, payload, len(payload), new_version(), epoch, tags, cost))
            else:
                # A small value takes one step.
                record = at_once(self.record_steps(ref, value, payload, tags))
                records.append(record._replace(epoch=epoch, cost=cost))
        return records

    def _received(
        self, transaction: Transaction, stored: Stored, connection: "Connection", sent: float
    ) -> Sequence[int]:
        """Keep stored values in memory; return the places of those that are not stored. Runs inside the reader."""
        good, names = stored.present and not stored.refused and bool(transaction.placeholders), transaction.part.names
        places = range(len(names)) if stored.places is None else stored.places
        if not (good and self._kept(transaction, places, connection, sent)):
            # A read on another loop may have brought old values into memory since the command was sent.
            self._memory.invalidate_many(names if stored.places is None else [names[place] for place in places])
        return stored.refused

    def _kept(
        self, transaction: Transaction, places: Sequence[int], connection: "Connection", sent: float
    ) -> bool:  # fmt: skip
        """Keep some values of a transaction in memory; return False if their epochs or their ends forbid it."""
        if len(transaction.alike) == 1:
            (ref,) = transaction.alike
            return self._kept_alike(transaction, ref, places, connection, sent)
        wanted = set(places)
        some = {ref: [place for place in alike if place in wanted] for ref, alike in transaction.alike.items()}
        return all(self._kept_alike(transaction, ref, found, connection, sent) for ref, found in some.items() if found)

    def _kept_alike(
        self, transaction: Transaction, ref: KeyRef, places: Sequence[int], connection: "Connection", sent: float
    ) -> bool:
        """Keep values in memory that are judged by the same epochs, as `_kept` does."""
        part, memory = transaction.part, self._memory
        names = part.names
        known = self.reads.tag_state(ref, part.tags)
        # By the newest estimate of Redis' clock.
        end, (until, ttls), as_of = connection.time.end, transaction.times, part.began.as_of
        deadlines = [end(until[place], ttls[place], sent) for place in places]
        # As in `Writes`.
        pending = self.state.epochs.overtaken(part.tags, transaction.since)
        lowest_valid = self.state.epochs.lowest_valid(connection.known, ref.epoch_names, part.tags)
        # They are judged alike but for their ends, so the one that ends first is judged for all.
        records, left = transaction.records, min(deadlines) - sent
        judged = judge(records[0], left, ref.freshness, lowest_valid, connection.time.horizon, pending)
        if not judged.serves:
            return False
        trust, make = self.reads.trust(connection, sent, ref), self.reads.entry
        entries = [
            make(ref, records[place], trust, (deadline, sent, as_of), known)
            for place, deadline in zip(places, deadlines, strict=True)
        ]
        kept_for = ((names[place], ref.epoch_names, entry) for place, entry in zip(places, entries, strict=True))
        trust_by_slot(self.state.topology, kept_for, connection, sent)
        kept = memory.fill_many([transaction.placeholders[place] for place in places], entries)
        if not all(kept):
            memory.invalidate_many([names[place] for place, done in zip(places, kept, strict=True) if not done])
        return True

    async def _confirmed(self, sent: "deque[Transaction]") -> bool:
        """Wait for the oldest transaction, and write what it did not store one by one; return whether all is stored."""
        transaction = sent[0]
        part, wire, refused = transaction.part, transaction.wire, transaction.unconfirmed
        try:
            refused = await transaction.waiter
        except CacheUnavailableError:
            pass  # All of them.
        finally:
            self._memory.release_many(transaction.placeholders)
            transaction.placeholders = []
        if wire.time.steps != transaction.steps:
            # The answer shows that the server's clock was set meanwhile, so the ends in the envelopes are wrong.
            refused = range(len(part.names))
        failed = set(refused)
        done = part.only([place for place in range(len(part.names)) if place not in failed]) if failed else part
        transaction.unconfirmed = refused
        if done.names:
            if self.state.outbox.pending:
                for name in done.names:
                    self.state.outbox.overwritten(name, transaction.position)
            # A load through another connection may have read an old value before this write replaced it.
            self.state.flights.detach_many(done.names)
            part.refs.counters.stores += len(done.names)
            self.tell_all_stored(transaction, [each for each in range(len(part.names)) if each not in failed])
        stored = await self._write_each(part.only(refused)) if failed else True
        sent.popleft()
        return stored

    def tell_many(self, kind: type[observers.CacheEvent], namespace: str, *fields: Any) -> None:
        """Tell observers of many values of a namespace, without their keys."""
        if self.state.observers.active:
            self.state.observers.tell(kind, str(namespace), None, *fields)

    def tell_all_stored(self, transaction: Transaction, places: Sequence[int], *, loaded: bool = False) -> None:
        """Tell observers of the values at some places, which are stored in Redis."""
        part = transaction.part
        if (log := self.state.observers.log) is not None:
            for place in places:
                ref, ttl = part.refs.ref(part.names[place]), transaction.times[1][place]
                log.stored(ref, observers.StoredValue(record_of(transaction, place), ttl, loaded))
        self.tell_many(observers.Stored, part.refs.namespace, "redis", loaded, len(places))

    def _give_up(self, sent: "deque[Transaction]") -> None:
        """Record what an interrupted call leaves behind: Redis may have these values or not."""
        for transaction in sent:
            cancel(transaction.waiter)
            names = transaction.part.names
            self.unsure([names[place] for place in transaction.unconfirmed])
            placeholders, transaction.placeholders = transaction.placeholders, []
            self._memory.release_many(placeholders)
        sent.clear()

    async def _write_each(self, items: ValuesToWrite) -> bool:
        """Write values one by one, many at a time; return whether all of them are stored."""
        writes: list[asyncio.Task[bool]] = []
        portion = Step()
        try:
            for item in items.items():
                self.state.forget_names([each.name for each in item[0].each()])
                writes.append(loop_task(self.write(*item)))
                # `Step` counts bytes to decode. Packing takes a small part of that time.
                if portion.done(len(item[2]) >> 4):
                    # In this turn, the writes that were begun reach the queue.
                    await asyncio.sleep(0)
                    await turn()
            return all(await asyncio.gather(*writes))
        except BaseException:
            cancel(*writes)
            raise

    # -- remove ---------------------------------------------------------------------------------------------

    async def remove(self, refs: Sequence[KeyRef]) -> int:
        """Remove values everywhere; return how many there were, as far as this can be known."""
        removed, count = 0, len(refs)
        if refs and refs[0].namespace.seal:
            refs = [each for ref in refs for each in ref.each()]
        for start in range(0, len(refs), _REMOVED):
            some = refs[start : start + _REMOVED]
            here, names = await self.local.remove(some)
            removed += here + (await self.remove_named(names) if names else 0)
            await turn()
        return min(removed, count)

    async def remove_names(self, refs: RefMaker, names: Sequence[bytes]) -> int:
        """Remove values of one namespace by their names, as `remove` does."""
        if refs.namespace.local or refs.namespace.seal:
            return await self.remove(list(map(refs.ref, names)))
        removed = 0
        for start in range(0, len(names), _REMOVED):
            removed += await self.remove_named(names[start : start + _REMOVED])
            await turn()
        return removed
