"""Times to live of stored values: how much is left, and a new one."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.memory.entry import Entry, pack_windows
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.store.judge import Verdict, settled_verdict
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache._engine.store.writes import Writes, milliseconds
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Lifetimes"]

_REPLACEMENTS: Final = 5
"""Attempts to replace a value. One that loses all of these races has a key that is being written all the time."""

_INFLATE_HERE: Final = 4_096
"""Compressed bytes that may be decompressed on the event loop: at most a thousand times as many come out."""

_COPY_HERE: Final = 1_048_576
"""Plain bytes that may be checked or copied on the event loop: about a millisecond."""


class _Stored(NamedTuple):
    """A value in Redis that is alive."""

    raw: bytes
    fresh_until: int
    life: float
    """Seconds that it was to live in all, as its header has them."""


class Lifetimes:
    """The times to live of one cache's values."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._state = writes.state
        self._reads = writes.reads
        self._memory = writes.state.memory
        self._clock = writes.state.clock

    async def left(self, ref: KeyRef) -> float | None:
        """Return the seconds a value has left to live, or None if there is none."""
        wire = self._state.client.connection(ref.name)
        if ref.namespace.local:
            local = await self._reads.look(ref)
            return None if local is None else local.fresh_until - self._clock()
        if wire is not None:
            try:
                stored = await ask_twice(lambda: self._stored(wire, ref))
            except CacheUnavailableError as error:
                self._reads.failed(ref, error)
            else:
                now = self._clock()
                return None if stored is None else wire.time.end(stored.fresh_until, stored.life, now) - now
        entry = self._here(ref, wire)
        return None if entry is None else entry.fresh_until - self._clock()

    async def prolong(self, ref: KeyRef, ttl: float) -> bool:
        """Give a stored value a new time to live, counted from now; return whether there was one.

        :param ttl: seconds.
        """
        wire = self._state.client.connection(ref.name)
        if wire is not None and ref.namespace.local:
            # Whether it is still valid has to be asked before; what it stands on stays.
            entry = await self._reads.look(ref)
            return entry is not None and self._prolong_here(ref, ttl, wire)
        if wire is not None:
            try:
                return await ask_twice(lambda: self._replace(wire, ref, ttl))
            except CacheUnavailableError as error:
                self._reads.failed(ref, error)
        # What another task has in hand, such as a write that Redis did not take, is here when its lock is free.
        async with self._state.key_locks.hold(ref.name):
            return self._prolong_here(ref, ttl, wire)

    # -- without Redis --------------------------------------------------------------------------------------

    def _here(self, ref: KeyRef, wire: "Connection | None") -> Entry | None:
        """Return the fresh value that this process holds, where Redis is away or none is configured."""
        entry = self._memory.get_untrusted(ref.name) if wire is None else self._reads.fallback(ref)
        # A remembered error is no value, as `get` and Redis have it.
        return None if entry is None or entry.negative else entry

    def _prolong_here(self, ref: KeyRef, ttl: float, wire: "Connection | None") -> bool:
        """Give what this process holds a new end. Between threads, the memory decides: it replaces what was looked at.

        Tags and what they are judged by stay those of the value.
        """
        grace, cap = ref.freshness.grace, ref.namespace.l1_ttl
        if cap is not None and cap < ttl:
            ttl, grace = cap, 0.0
        for _ in range(_REPLACEMENTS):
            # First of all: if Redis comes back from here on, this is the trust that its coming kills.
            offline = self._state.generations.trust_for(self._state.generations.offline, ref.namespace)
            local = ref.namespace.local
            entry = self._memory.get_untrusted(ref.name) if local else self._here(ref, wire)
            if entry is None or entry.negative:
                return False
            trust = entry.trust if local else offline
            longer = entry.until(self._clock() + ttl, trust, pack_windows(0.0, grace))
            if self._memory.replace(ref.name, entry, longer):
                break
        return True

    # -- in Redis -------------------------------------------------------------------------------------------

    async def _stored(self, wire: "Connection", ref: KeyRef) -> _Stored | None:
        """Return a stored value that is alive and can be read; None if there is none."""
        await self._reads.caught_up(wire, ref)
        await self._reads.epoch_sync.settled(wire, ref.epoch_names)
        asked = self._clock()
        raw = await self._state.client.get(ref.name)
        if raw is None:
            return None
        try:
            header, tags = await self._off_loop(partial(_checked, raw, self._reads.limit(ref)), raw)
        except CacheDecodeError as error:
            self._reads.unreadable(ref, error)
            return None
        await self._reads.epoch_sync.settled(wire, ref.epoch_names, tags)
        now, negative = self._clock(), bool(header.flags & envelope.NEGATIVE)
        held = Record(None, None, len(raw), header.version, header.epoch, tags, header.cost, negative)
        left = wire.time.end(header.fresh_until, header.life, now) - now
        # A stale value has no time left, and a remembered error is no value.
        if negative or settled_verdict(self._state, ref, held, left, wire, asked) is not Verdict.FRESH:
            return None
        return _Stored(raw, header.fresh_until, header.life)

    async def _replace(self, wire: "Connection", ref: KeyRef, ttl: float) -> bool:
        # The end of a value's life stands in its envelope, so it is written anew. Another write in between wins, and
        # is read again.
        for _ in range(_REPLACEMENTS):
            stored = await self._stored(wire, ref)
            if stored is None:
                return False
            raw, fresh_until = stored.raw, wire.time.at(self._clock()) + int(ttl * MICROSECONDS)
            version = envelope.new_version()
            renew = partial(envelope.renewed, raw, version=version, fresh_until=fresh_until, life=ttl)
            again = await self._writes.off_loop(renew, len(raw), _COPY_HERE)
            before, life = raw[: envelope.HEADER_BYTES], milliseconds(ttl + ref.freshness.grace)
            # A read that was queued before must not store the old end after it. What is near stays until Redis has
            # answered: if it goes away instead, that is all there is.
            self._memory.void(ref.name)
            try:
                replaced = partial(self._replaced, ref.name)
                if await self._state.client.replace(ref.name, before, again, life, replaced):
                    break
            except asyncio.CancelledError:
                # Sent or not: what is near may have a later end than what Redis has.
                self._memory.invalidate(ref.name)
                raise
        return True

    def _replaced(self, name: bytes, replaced: bool, _source: "Connection", _sent: float) -> bool:
        """Drop the entry in memory: Redis has another end for it now, or another value. Runs inside the reader."""
        self._memory.invalidate(name)
        return replaced

    async def _off_loop(self, check: partial[tuple[envelope.Header, tuple[str, ...]]], raw: bytes) -> Any:
        here = _INFLATE_HERE if envelope.is_compressed(raw) else _COPY_HERE
        return await self._writes.off_loop(check, len(raw), here)


def _checked(raw: bytes, limit: int) -> tuple[envelope.Header, tuple[str, ...]]:
    """Return header and tags of a stored value that can be read in full.

    :raises CacheDecodeError: if it cannot.
    """
    header = envelope.read_header(raw)
    tags, _ = envelope.read_tags(raw, header)
    envelope.open_payload(raw, header, limit)
    return header, tags
