"""`add` and `incr`: writes that depend on the value that is there, in one step of the server. `update` is in `updates`.

What counts as a value
----------------------
What `get` would serve fresh, and nothing else. The server cannot judge that, so it hands over what it has, the judge
decides, and the request is repeated with the header of what counts as nothing. The server writes only if it still has
exactly that, or nothing.

A counter is different, because the server changes it before it was judged, by the epochs of its namespace that were
known when the request left. It keeps its epoch and its tags, so what invalidated the old number invalidates the new
one. If the judge finds that, the increment has changed something that no caller gets, and it is made again, on nothing.

A sealed counter cannot be changed by the server. It is read, opened and replaced if it is still the same, as `update`
does it. Of the callers of one process, one tries at a time.

What may be repeated
--------------------
An increment whose answer was lost may have been counted. It is not repeated: the caller gets the error. A write in
place of a certain value can be repeated once as it is. Each write has a version of its own, so a stored value with that
version is the first attempt's. If there is another value, the caller of `update` gets the error.
"""

import asyncio
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.envelope import HEADER_BYTES, VERSION_AT
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.coordination.epoch_sync import UnsettledError
from magnus_cache._engine.redis.client_atomic import Attempt, Increment, Swap
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.key_queues import KeyQueues
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache._engine.store.atomic_memory import AtomicMemory
from magnus_cache._engine.store.fills_many import ManyFills
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.orders import Order
from magnus_cache._engine.store.records import MISS, Began, KeyRef, Record
from magnus_cache._engine.store.stored_values import StoredValue, judged, opened, settled, still_valid, stored_value
from magnus_cache._engine.store.writes import SAMPLED, milliseconds
from magnus_cache.errors import CacheConflictError, CacheMissingError, CacheTypeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.memory.placeholder import Placeholder
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.store.reads import Reads

__all__ = ["ATTEMPTS", "AtomicWrites", "Change", "Swapped", "counted", "maybe_done", "pause"]

ATTEMPTS: Final = 100
"""Times that a write in place of a certain value is tried. In each round of competing processes, one succeeds."""

_FIRST_PAUSE: Final = 0.001
"""Seconds, about, before the second repetition; doubled each time."""

_LONGEST_PAUSE: Final = 0.016

_DOUBLINGS: Final = 4

_UNSURE: Final = frozenset({"lost", "timeout", "closed", "protocol"})
"""Reasons after which the server may have executed a command."""


class Change(NamedTuple):
    """A change of a counter."""

    delta: int
    initial: int
    """The number that a new counter starts from."""
    ttl: Life
    """How long a new counter lives."""
    create: bool
    """Whether to create a counter if there is none."""
    local: bool
    """Whether to count in this process while Redis is away."""


class Swapped(NamedTuple):
    """The outcome of a write in place of a certain value."""

    done: bool
    found: bytes | None
    """What the server has instead."""
    unsure: bool
    """Whether an earlier attempt may have been done, and its value replaced since."""


class AtomicWrites(ManyFills):
    """The writes of one `State`, with those that depend on the value that is there.

    :ivar queues: the queues of callers that compete for a key in this process.
    """

    def __init__(self, reads: "Reads") -> None:
        super().__init__(reads)
        self.queues = KeyQueues()
        self.here = AtomicMemory(self)

    # -- add ------------------------------------------------------------------------------------------------

    async def add(self, ref: KeyRef, value: Any, payload: bytes, ttl: Life, tags: tuple[str, ...]) -> bool:
        """Store a value if there is none; return whether it is stored.

        :param ttl: seconds, or until a moment of a calendar.
        """
        if ref.others:
            for other in ref.others[1:]:
                if await self.reads.look(other) is not None:
                    return False
            ref = ref.others[0]
        began, wire = Began(self._clock()), self.state.client.connection(ref.name)
        ttl = await self.reads.lives.shortened(ttl, ref)
        if wire is not None and not ref.namespace.local:
            record = at_once(self.record_steps(ref, value, payload, tags))._replace(began=began)
            try:
                return await self._add(ref, record, payload, ttl)
            except CacheUnavailableError as error:
                self.state.check_open()
                self.reads.failed(ref, error)
                if self.state.reaches(ref.name):
                    # Whether there is a value is unknown.
                    self.state.notices.warn(f"refused:{error.reason}", f"{error}; nothing was added")
                    return False
        try:
            for _ in range(ATTEMPTS):
                found = await self.here.find(ref, wire)
                try:
                    if found.value is not MISS:
                        return False
                    if await self.here.store(ref, found, value, payload, ttl, tags):
                        return True
                finally:
                    self.here.done(found)
        except CacheUnavailableError as error:
            self.state.stats.failed(error.reason)
        return False

    async def _add(self, ref: KeyRef, record: Record, payload: bytes, ttl: Life) -> bool:
        expected = b""
        for _ in range(ATTEMPTS):
            wire = self.state.client.current_connection(ref.name)
            await settled(self, wire, ref, record.tags)
            asked = self._clock()
            record = record._replace(epoch=self.state.epochs.highest)
            swapped = await self.swapped(wire, ref, (record, payload, ttl), expected, absent=True)
            if swapped.done and await still_valid(self, wire, ref, record):
                return True
            if swapped.done:
                record = record._replace(version=new_version())
            elif swapped.found is not None:
                there = (await judged(self, ref, swapped.found, asked)).value
                if await opened(self, ref, there) is not MISS:
                    return False
                expected = swapped.found[:HEADER_BYTES]
        return False

    async def swapped(
        self, wire: "Connection", ref: KeyRef, write: tuple[Record, bytes, Life], expected: bytes, *, absent: bool
    ) -> Swapped:
        """Store a value in place of a certain one, and keep it in memory; ask once more if the connection was lost.

        :param write: the record of the value, its payload, and how long it is to live.
        :param expected: the header of the value that may be replaced; empty for none.
        :param absent: whether there may be no value.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        record, payload, ttl = write
        found: bytes | None = None

        async def send(raw: bytes, life: int, receive: Any) -> bool:
            def took(attempt: Attempt, connection: "Connection", sent: float) -> bool:
                nonlocal found
                found = attempt.raw
                done: bool = receive(attempt.done, connection, sent)
                return done

            done: bool = await self.state.client.swap(ref.name, Swap(expected, raw, life, absent), took)
            return done

        done, lost, order = False, False, Order(send, self.state.epochs.moment())
        try:
            done = await self._send(wire, ref, record, payload, ttl, order)
        except CacheUnavailableError as error:
            if error.reason != "lost":
                raise
            lost = True
        if lost:
            done = await self._send(wire, ref, record, payload, ttl, order)
            if not done and found is not None:
                version = record.version.to_bytes(8, "big")
                done = found[VERSION_AT : VERSION_AT + 8] == version
        if done:
            self.written(ref, record, ttl)
        return Swapped(done, found, unsure=lost and not done)

    def written(self, ref: KeyRef, record: Record | None = None, life: Life = 0.0) -> None:
        """Count and tell of a value that was written, and void its loads."""
        self.void_loads(ref)
        ref.counters.stores += 1
        self.tell_stored(ref, "redis", record, life)

    # -- incr -----------------------------------------------------------------------------------------------

    async def increment(self, ref: KeyRef, change: Change) -> int:
        """Change a counter, and return its new number.

        :raises CacheTypeError: if there is another value than an int.
        :raises CacheMissingError: if there is no counter, and `change` does not create one.
        :raises CacheUnavailableError: when Redis is away and `change` does not allow to count here.
        :raises CacheConflictError: if the value changes all the time.
        """
        if ref.others:
            ref = await self.place_of(ref)
        wire = self.state.client.connection(ref.name)
        if wire is None or ref.namespace.local:
            return await self._count_here(ref, wire, change)
        try:
            return await (self._count_sealed if ref.namespace.seal else self._count)(ref, change)
        except CacheUnavailableError as error:
            self.state.check_open()
            self.reads.failed(ref, error)
            if not change.local or (error.refused and self.state.reaches(ref.name)):
                raise maybe_done(error, "incr", "counted") from error
        if self.state.reaches(ref.name):
            # Only the answer was lost. What is counted here would be forgotten at once, so Redis' number is the base.
            try:
                there = await stored_value(self, ref)
                value = await opened(self, ref, there)
            except CacheUnavailableError as error:
                self.reads.failed(ref, error)
            else:
                if value is MISS and not change.create:
                    raise CacheMissingError(ref.namespace)
                return (change.initial if value is MISS else counted(ref, value)) + change.delta
        return await self._count_here(ref, wire, change)

    async def _count(self, ref: KeyRef, change: Change) -> int:
        reject, stored = b"", None
        for tries in range(ATTEMPTS):
            wire = self.state.client.current_connection(ref.name)
            lowest = await settled(self, wire, ref)
            if not wire.up or self._clock() - wire.time.sampled > SAMPLED:
                await wire.renew()
            asked = self._clock()
            attempt = await self._increment(wire, ref, change, reject, lowest)
            if attempt.raw is None:
                if not change.create:
                    raise CacheMissingError(ref.namespace)
                continue  # it was removed in between
            try:
                stored, invalidated, ended = await judged(self, ref, attempt.raw, asked)
            except CacheUnavailableError:
                if not attempt.done:
                    raise
                # It was counted; what became of the number since is not known.
                invalidated = ended = False
            if attempt.done and not (invalidated or ended):
                self.written(ref)
                number: int = codec.decode(envelope.unpack(attempt.raw, self.reads.limit(ref))[4])
                return number
            reject = attempt.raw[:HEADER_BYTES]
            if attempt.done or stored is None or (value := await opened(self, ref, stored)) is MISS:
                continue
            # A number that is not exact in Lua, or that is stored in another form, such as with a validator.
            number = counted(ref, value) + change.delta
            if await self._replaced(wire, ref, stored, number):
                return number
            reject = b""
            await pause(tries)
        raise CacheConflictError("incr", ref.namespace, ATTEMPTS)

    async def _count_sealed(self, ref: KeyRef, change: Change) -> int:
        """Change a sealed counter: the server cannot read it, so it is replaced by the changed one, or not at all."""
        turn = await self.queues.turn(ref.name)
        try:
            for tries in range(ATTEMPTS):
                wire = self.state.client.current_connection(ref.name)
                await settled(self, wire, ref)
                epoch, asked = self.state.epochs.highest, self._clock()
                raw = await ask_twice(partial(self.state.client.get, ref.name))
                stored = None if raw is None else (await judged(self, ref, raw, asked)).value
                value = await opened(self, ref, stored)
                if stored is not None and value is not MISS:
                    number = counted(ref, value) + change.delta
                    done = await self._replaced(wire, ref, stored, number)
                else:
                    number = change.initial + change.delta
                    done = await self._created(wire, ref, (number, change.ttl, epoch), raw)
                if done:
                    return number
                await pause(tries)
        finally:
            turn.end()
        raise CacheConflictError("incr", ref.namespace, ATTEMPTS)

    async def _created(
        self, wire: "Connection", ref: KeyRef, counter: tuple[int, Life, int], raw: bytes | None
    ) -> bool:  # fmt: skip
        """Store a new counter in place of what counts as nothing; return whether it is stored.

        :param counter: its number, how long it lives, and its epoch.
        """
        number, ttl, epoch = counter
        payload = codec.encode(number)
        record = at_once(self.record_steps(ref, number, payload, ()))._replace(epoch=epoch)
        write = record, payload, await self.reads.lives.shortened(ttl, ref)
        swapped = await self.swapped(wire, ref, write, (raw or b"")[:HEADER_BYTES], absent=True)
        if swapped.unsure:
            raise CacheUnavailableError("lost", "the connection was lost")
        return swapped.done

    async def place_of(self, ref: KeyRef) -> KeyRef:
        """Return the reference by which a sealed value is stored; the first if there is none, or Redis is away."""
        for other in ref.others:
            if self.state.client.connection(other.name) is None:
                break
            try:
                if await ask_twice(partial(stored_value, self, other)) is not None:
                    return other
            except CacheUnavailableError:
                break
        return ref.each()[0]

    async def _increment(self, wire: "Connection", ref: KeyRef, change: Change, reject: bytes, lowest: int) -> Attempt:
        """Send an increment, once."""
        given, at = await self.reads.lives.shortened(change.ttl, ref), self._clock()
        ttl, now = given.left_from(wire.time, at) if isinstance(given, CalendarLife) else given, wire.time.at(at)
        until, lives = header_times.lived(now, now + int(ttl * MICROSECONDS))
        created = b"" if not change.create else envelope.pack(
            codec.encode(change.initial + change.delta), version=new_version(), epoch=self.state.epochs.highest,
            fresh_until=until, life=lives,
        )  # fmt: skip
        life = milliseconds(ttl + ref.freshness.grace)
        request = Increment(reject, created, life, lowest, change.delta, new_version())
        # A read that was queued before would store the old number after this. The entry itself stays until Redis
        # answers: if Redis goes away instead, it is the number to count from here.
        self._memory.void(ref.name)
        placeholder = self.reads.expect(ref)
        try:
            receive = partial(self._incremented, ref, placeholder)
            attempt: Attempt = await self.state.client.increment(ref.name, request, receive)
        except asyncio.CancelledError:
            # Whether it was counted is unknown.
            self._memory.invalidate(ref.name)
            raise
        finally:
            self.reads.settle(placeholder)
        return attempt

    def _incremented(
        self, ref: KeyRef, placeholder: "Placeholder | None", attempt: Attempt, connection: "Connection", sent: float
    ) -> Attempt:
        """Keep a counted number in memory unless its key was touched. Runs inside the reader."""
        kept = False
        if attempt.done:
            try:
                entry = self.reads.received(ref, None, attempt.raw, connection, sent)
            except UnsettledError:
                entry = None
            if entry is not None and placeholder is not None:
                kept = self._memory.fill(placeholder, entry)
            if not kept:
                self._memory.invalidate(ref.name)
        return attempt

    async def _replaced(self, wire: "Connection", ref: KeyRef, stored: StoredValue, number: int) -> bool:
        left = wire.time.end(stored.fresh_until, stored.life, self._clock()) - self._clock()
        if left <= 0:
            return False
        payload = codec.encode(number)
        # As old as it was: a counter is as of when it was created.
        began = Began.elsewhere(header_times.as_of(stored.fresh_until, stored.life))
        record = at_once(self.record_steps(ref, number, payload, stored.tags))._replace(epoch=stored.epoch, began=began)
        swapped = await self.swapped(wire, ref, (record, payload, left), stored.raw[:HEADER_BYTES], absent=False)
        if swapped.unsure:
            raise CacheUnavailableError("lost", "the connection was lost")
        return swapped.done

    async def _count_here(self, ref: KeyRef, wire: "Connection | None", change: Change) -> int:
        """Change a counter in this process alone.

        Redis is not told of numbers counted while it was away: it continues from its own.
        """
        for _ in range(ATTEMPTS):
            found = await self.here.find(ref, wire)
            try:
                begins = found.value is MISS
                if begins and not change.create:
                    raise CacheMissingError(ref.namespace)
                number = (change.initial if begins else counted(ref, found.value)) + change.delta
                payload = b"" if ref.namespace.local else codec.encode(number)
                if await self.here.store(ref, found.as_old(), number, payload, change.ttl if begins else None):
                    return number
            finally:
                self.here.done(found)
        raise CacheConflictError("incr", ref.namespace, ATTEMPTS)


async def pause(tries: int) -> None:
    """Return at once the first time; then after a random time that grows with the attempts that were in vain."""
    if tries:
        await asyncio.sleep(random() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(tries, _DOUBLINGS)))


def counted(ref: KeyRef, value: Any) -> int:
    """Return a value that can be counted.

    :raises CacheTypeError: for anything but an int.
    """
    if type(value) is not int:
        kind = type(value).__name__
        raise CacheTypeError("key", f"the value in namespace {str(ref.namespace)!r} is of type {kind}, not a counter")
    return value


def maybe_done(
    error: CacheUnavailableError, operation: str, done: str, *, sent: bool = True
) -> CacheUnavailableError:  # fmt: skip
    """Return the error for callers: what failed, and whether it may have been done.

    :param sent: whether the write was given to the connection.
    """
    unsure = sent and error.reason in _UNSURE and not error.refused
    outcome = f"it may have been {done}, and is not repeated" if unsure else f"nothing was {done}"
    problem = f"{operation}: {error.problem}; {outcome}"
    return CacheUnavailableError(error.reason, problem, refused=error.refused)
