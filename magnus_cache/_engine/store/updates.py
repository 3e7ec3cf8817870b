"""`update`: read a value, let the caller's function change it, and store the result if the value is still the same.

Nothing is held while the function runs: no lock, no lease. If another process stores first, the caller gets its value,
and the function runs again. So callers of one process take turns at a key, each for a short time at most (`KeyQueues`):
otherwise a hundred tasks would all read the same value, and ninety-nine would do so in vain.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.codec.envelope import HEADER_BYTES
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.key_queues import Turn
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.turns import at_once, in_turns
from magnus_cache._engine.store.atomic_memory import Found
from magnus_cache._engine.store.atomic_writes import ATTEMPTS, AtomicWrites, maybe_done, pause
from magnus_cache._engine.store.lives import Life
from magnus_cache._engine.store.records import MISS, Began, KeyRef
from magnus_cache._engine.store.stored_values import StoredValue, judged, opened, settled
from magnus_cache.errors import CacheConflictError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["PATIENCE", "Update"]

PATIENCE: Final = 5.0
"""Seconds that an update tries at least: a process that pauses may lose more often than those that have just won."""


class Update:
    """One `update` on its way. Call `current` and `store` in turn until `store` returns True; `close` in any case.

    All methods are called on one event loop.

    :param ttl: seconds, or until a moment of a calendar; None for what a value has left, or for a new one the
        namespace's.
    :param local: whether to change the value in this process while Redis is away.
    """

    def __init__(self, writes: AtomicWrites, ref: KeyRef, ttl: Life | None, *, local: bool) -> None:
        self._writes = writes
        self._state = writes.state
        self._ref = ref
        self._ttl = ttl
        self._local = local
        self._tries = 0
        self._began = writes.state.clock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: Turn | None = None
        self._found: Found | None = None
        self._away = False
        # What Redis has, if it is known: from a write that another caller has forestalled.
        self._read = False
        self._raw: bytes | None = None
        self._asked = 0.0
        self._base: StoredValue | None = None
        self._epoch = 0

    async def current(self) -> Any:
        """Return the value that is to be changed; `MISS` for none.

        :raises CacheUnavailableError: when Redis is away, and the value may not be changed here.
        :raises CacheConflictError: if others have changed the value each time.
        """
        writes, ref = self._writes, self._ref
        self._state.check_open()
        self._loop = asyncio.get_running_loop()
        now = self._state.clock()
        if self._tries >= ATTEMPTS and (now - self._began >= PATIENCE or self._tries >= 10 * ATTEMPTS):
            raise CacheConflictError("update", ref.namespace, self._tries)
        if ref.others:
            ref = self._ref = await writes.place_of(ref)
        if self._turn is None or not self._turn.lasts:
            # Also for another attempt: without turns, more callers are in vain each time.
            self._turn = await writes.queues.turn(ref.name)
        if self._tries > 1:
            await pause(self._tries - 1)
        self._tries += 1
        wire = self._state.client.connection(ref.name)
        if wire is not None and not ref.namespace.local and not self._away:
            try:
                return await self._from_redis()
            except CacheUnavailableError as error:
                self._failed(error, sent=False)
        self._found = await writes.here.find(ref, wire)
        return self._found.value

    async def _from_redis(self) -> Any:
        writes, ref = self._writes, self._ref
        await settled(writes, self._state.client.current_connection(ref.name), ref)
        if not self._read:
            self._asked = self._state.clock()
            self._raw = await ask_twice(lambda: self._state.client.get(ref.name))
        self._read, self._base = False, None
        # A new value is invalidated by what comes after the answer, and not by a clear that was announced before it.
        await settled(writes, self._state.client.current_connection(ref.name), ref)
        self._epoch = self._state.epochs.highest
        if self._raw is None:
            return MISS
        stored = (await judged(writes, ref, self._raw, self._asked)).value
        value = await opened(writes, ref, stored)
        self._base = None if value is MISS else stored
        return value

    async def store(self, value: Any, payload: bytes) -> bool:
        """Store the changed value; return False if the function has to be called again.

        :raises CacheUnavailableError: when Redis is away, and the value may not be changed here.
        """
        if self._found is not None:
            stored = await self._store_here(self._found, value, payload)
        else:
            try:
                stored = await self._store(self._state.client.current_connection(self._ref.name), value, payload)
            except CacheUnavailableError as error:
                self._failed(error, sent=True)
                return False
        return stored

    async def _store(self, wire: "Connection", value: Any, payload: bytes) -> bool:
        writes, ref, base = self._writes, self._ref, self._base
        if self._ttl is not None or base is None:
            ttl = await writes.reads.lives.shortened(self._ttl or writes.reads.life(ref, None), ref)
        else:
            now = self._state.clock()
            ttl = wire.time.end(base.fresh_until, base.life, now) - now
            if ttl <= 0:
                return False  # it has just ended
        tags = base.tags if base is not None else ()
        steps = writes.record_steps(ref, value, payload, tags)
        record = await in_turns(steps) if len(payload) >= codec.LARGE else at_once(steps)
        # What invalidates the value that was read invalidates the new one.
        epoch = self._epoch if base is None else base.epoch
        record = record._replace(epoch=epoch, began=Began(self._asked))
        expected, asked = (self._raw or b"")[:HEADER_BYTES], self._state.clock()
        swapped = await writes.swapped(wire, ref, (record, payload, ttl), expected, absent=base is None)
        if swapped.unsure:
            raise CacheUnavailableError("lost", "the connection was lost")
        self._read, self._raw, self._asked = True, swapped.found, asked
        return swapped.done

    async def _store_here(self, found: Found, value: Any, payload: bytes) -> bool:
        writes, ref = self._writes, self._ref
        try:
            if self._away:
                # As for a `set`: what Redis has is outdated, and is removed when it is back. First, as always.
                self._state.record_missed(lambda outbox: outbox.record((ref.name,)), (ref.name,))
            stored = await writes.here.store(ref, found, value, payload, self._ttl)
        finally:
            self._found = None
            writes.here.done(found)
        if stored and self._away:
            await self._state.journal_written()
        return stored

    def _failed(self, error: CacheUnavailableError, *, sent: bool) -> None:
        """Continue in memory, if that is allowed.

        :param sent: whether the value may have been stored.
        :raises CacheUnavailableError: if it is not allowed.
        """
        self._state.check_open()
        self._writes.reads.failed(self._ref, error)
        # While Redis can be asked, its value counts, and not what is here.
        if not self._local or self._state.reaches(self._ref.name):
            raise maybe_done(error, "update", "stored", sent=sent) from error
        self._away = True

    def abandon(self) -> None:
        """Call `close` on the loop that the other methods were called on, soon; from any thread."""
        if self._loop is not None:
            call_on_loop(self._loop, self.close)

    def close(self) -> None:
        """Let the next caller of this process begin. Idempotent."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end()
        found, self._found = self._found, None
        if found is not None:
            self._writes.here.done(found)
