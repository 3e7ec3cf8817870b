"""Fills of many values: what one load returned for many keys, stored some at a time.

As in `writes_many`, some dozens of small values are one command, one future and one look at what they are judged by.
Redis stores each only if its lease still has the token of the load, and tells for each what became of it. A value that
is not stored because its load was overtaken is left out. What is neither stored nor overtaken (a refusal, a lost
connection) is left to `Writes.fill`, value by value, which knows what to do about it.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coordination.lease_batch import BatchLease, LeaseBatch
from magnus_cache._engine.coordination.leases import Snapshot
from magnus_cache._engine.redis.client_many import Filled
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.loop_end import cancel
from magnus_cache._engine.runtime.observers import FillRefused
from magnus_cache._engine.store.lives import CalendarLife
from magnus_cache._engine.store.transactions import Transaction, ValuesToWrite
from magnus_cache._engine.store.writes import NOT_STORED, SAMPLED, milliseconds
from magnus_cache._engine.store.writes_many import ManyWrites
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["FillOrigin", "Filling", "ManyFills"]


class FillOrigin(NamedTuple):
    """What is known of the load whose values are stored.

    :ivar batch: its leases.
    :ivar known: what this process knew when it began.
    :ivar cost: the seconds that it took.
    :ivar fresh: whether it replaces values even if they are valid.
    """

    batch: LeaseBatch
    known: Snapshot
    cost: float
    fresh: bool


class Filling:
    """Loaded values on their way to Redis.

    :ivar leases: the lease of each.
    :ivar open: the places of those without an answer.
    :ivar stored: the places of those that are stored.
    :ivar refused: the places of those that Redis has refused.
    """

    __slots__ = ("leases", "open", "origin", "raws", "refused", "stored", "transaction")

    def __init__(self, transaction: Transaction, leases: Sequence[BatchLease], origin: FillOrigin) -> None:
        self.transaction = transaction
        self.leases = leases
        self.origin = origin
        self.raws: list[bytes] = []
        self.open = set(range(len(leases)))
        self.stored: list[int] = []
        self.refused: list[int] = []


class ManyFills(ManyWrites):
    """The writes of one `State`, with the fills of many loaded values."""

    async def begin_fill(
        self, values: ValuesToWrite, leases: Sequence[BatchLease], origin: FillOrigin
    ) -> Filling | None:  # fmt: skip
        """Queue the fill of some small values of one namespace; return None if they are to be filled one by one.

        :param leases: the lease of each, which is not void.
        """
        wire = self.state.client.connection(values.names[0])
        if wire is None:
            return None
        known, token = origin.known, origin.batch.token
        transaction = Transaction(values, wire, known.outbox_position, known.since, known.epoch, origin.cost)
        try:
            for ref in transaction.alike:
                self.reads.epoch_sync.prepare(wire, ref.epoch_names, values.tags)
            if not wire.up or self._clock() - wire.time.sampled > SAMPLED:
                # For the same reasons as in `Writes`.
                await wire.renew()
        except CacheUnavailableError:
            return None
        if isinstance(values.ttl, CalendarLife):
            await self.reads.lives.ready(values.ttl, values.names[0], wire)
        transaction.steps = wire.time.steps
        filling = Filling(transaction, leases, origin)
        try:
            filling.raws, expiries = self._packed(transaction)
            receive = partial(self._filled, filling)
            self.state.client.fill_many(values.names, token, filling.raws, expiries, receive, transaction.waiter)
        except CacheUnavailableError as error:
            transaction.waiter.set_exception(error)
        except BaseException:
            self.give_up_fill(filling)
            raise
        return filling

    def _filled(self, filling: Filling, filled: Filled, connection: "Connection", sent: float) -> Filled:
        """Keep stored values in memory, and end the leases. Runs inside the reader."""
        transaction = filling.transaction
        names = transaction.part.names
        places = range(len(names)) if filled.places is None else filled.places
        filling.open.difference_update(places)
        filling.stored += filled.stored
        filling.refused += filled.refused
        if filled.stored:
            good = filled.present and bool(transaction.placeholders)
            if not (good and self._kept(transaction, filled.stored, connection, sent)):
                # A read on another loop may have brought old values into memory since the command was sent.
                self._memory.invalidate_many([names[place] for place in filled.stored])
        # Here, not when the load wakes: a renewal that is answered meanwhile finds no lease, and that is as it should.
        ended = filling.leases
        if filled.refused or len(places) < len(ended):
            ended = [filling.leases[place] for place in set(places).difference(filled.refused)]
        filling.origin.batch.close(ended, filled=True)
        return filled

    async def end_fill(self, filling: Filling) -> Sequence[int]:
        """Wait for Redis; return the places of the values that are to be filled one by one.

        A caller that is cancelled meanwhile calls `give_up_fill`.
        """
        transaction = filling.transaction
        part, wire, names = transaction.part, transaction.wire, transaction.part.names
        with contextlib.suppress(CacheUnavailableError):
            try:
                await transaction.waiter
            finally:
                self._release(transaction)
        if len(filling.open) == len(names):
            return range(len(names))
        refused = [*filling.refused, *sorted(filling.open)]
        stored = [names[place] for place in filling.stored] if len(filling.stored) < len(names) else names
        if wire.time.steps != transaction.steps:
            await self._correct(filling, filling.stored)
        self.state.leases.notify_many(names)
        if stored:
            if self.state.outbox.pending:
                for name in stored:
                    self.state.outbox.overwritten(name, transaction.position)
            part.refs.counters.stores += len(stored)
            self.tell_all_stored(transaction, filling.stored, loaded=True)
        overtaken = len(names) - len(stored) - len(refused)
        self.state.stats.fenced_loads += overtaken
        if overtaken:
            known = {*stored, *(names[place] for place in refused)}
            self.overtaken(part.refs.namespace, [name for name in names if name not in known])
        return refused

    def overtaken(self, namespace: str, names: Sequence[bytes]) -> None:
        """Note that loaded values were returned to their callers only, as their loads were overtaken."""
        self.state.recorder.add_many(names, NOT_STORED, None, "overtaken")
        self.tell_many(FillRefused, namespace, "overtaken", len(names))
        self.state.changes.refused(names, "overtaken")

    async def _correct(self, filling: Filling, stored: Sequence[int]) -> None:
        """Store values again whose ends are wrong: the answer shows that the server's clock was set meanwhile."""
        transaction = filling.transaction
        part, now = transaction.part, transaction.wire.time.at(self._clock())
        names, ttls, as_of = part.names, transaction.times[1], min(now, part.began.told(transaction.wire.time))
        self._memory.invalidate_many([names[place] for place in stored])
        try:
            for place in stored:
                raw, ttl = filling.raws[place], ttls[place]
                until, life = header_times.lived(as_of, now + int(ttl * MICROSECONDS))
                again = envelope.renewed(raw, version=new_version(), fresh_until=until, life=life)
                expiry = milliseconds(ttl + part.refs.freshness.grace)
                await self.state.client.replace(names[place], raw[: envelope.HEADER_BYTES], again, expiry)
        except CacheUnavailableError:
            return  # As in `Writes`: they end at another time than they should.

    def give_up_fill(self, filling: Filling) -> None:
        """Leave an interrupted fill: Redis may have these values or not."""
        transaction = filling.transaction
        cancel(transaction.waiter)
        if filling.origin.fresh:
            self._distrust(transaction.part.names)
        self._release(transaction)

    def _release(self, transaction: Transaction) -> None:
        placeholders, transaction.placeholders = transaction.placeholders, []
        self._memory.release_many(placeholders)
