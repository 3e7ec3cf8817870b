"""`ttl`, `lifetime` and `touch`: the seconds that a stored value has left, its age, and a new TTL for it."""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from magnus_cache._engine.codec import envelope, header_times
from magnus_cache._engine.codec.versions import new_version
from magnus_cache._engine.memory.entry import Entry, pack_windows
from magnus_cache._engine.redis.retries import ask_twice
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.reads_many import look_many
from magnus_cache._engine.store.records import KeyRef, age_of
from magnus_cache._engine.store.stored_values import COPY_HERE, stored_value
from magnus_cache._engine.store.writes import Writes, milliseconds
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Lifetime", "Lifetimes", "Look"]

_REPLACEMENTS: Final = 5
"""Attempts to replace a value. Only a key that is written all the time makes all of them fail."""


class Lifetime(NamedTuple):
    """How old a value is, and how long it will be kept, by the clock of Redis; no host's clock counts.

    :ivar age: seconds since the load or the `set` of the value began, in any process, as the age of a `Stamped`.
    :ivar left: remaining TTL in seconds; below zero for a stale value within its grace.
    """

    age: float
    left: float


class Look(NamedTuple):
    """What a look at a value shows."""

    version: int
    """The unique version of the value."""
    negative: bool
    """Whether it is an error that the cache remembers."""
    lifetime: Lifetime


class Lifetimes:
    """The TTLs of one cache's values."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._state = writes.state
        self._reads = writes.reads
        self._memory = writes.state.memory
        self._clock = writes.state.clock

    async def left(self, ref: KeyRef) -> float | None:
        """Return the seconds that a value has left, or None if there is no value."""
        for other in ref.others:
            if (left := await self.left(other)) is not None:
                return left
        if ref.others:
            return None
        wire = self._state.client.connection(ref.name)
        if ref.namespace.local:
            local = await self._reads.look(ref)
            return None if local is None else local.fresh_until - self._clock()
        if wire is not None:
            try:
                return await ask_twice(lambda: self._left(ref))
            except CacheUnavailableError as error:
                self._reads.failed(ref, error)
        entry = self._here(ref, wire)
        return None if entry is None else entry.fresh_until - self._clock()

    async def _left(self, ref: KeyRef) -> float | None:
        stored = await stored_value(self._writes, ref)
        if stored is None:
            return None
        now, wire = self._clock(), self._state.client.current_connection(ref.name)
        return wire.time.end(stored.fresh_until, stored.life, now) - now

    async def of(self, ref: KeyRef) -> Lifetime | None:
        """Return the age of a value and the TTL that it has left, or None if there is no value."""
        entry = self._memory.hit(ref.name)
        if entry is None or entry.negative:
            entry = await self._reads.read(ref)
        if entry is None or entry.negative:
            return None
        now = self._clock()
        return Lifetime(self._age(ref, entry, now), entry.fresh_until - now)

    async def look(self, refs: Sequence[KeyRef]) -> list[Look | None]:
        """Return the ages and remaining TTLs of some values of one namespace; None for each that has no value.

        What memory has costs nothing; the others are one request. Nothing is counted as a hit or a miss.
        """
        entries = [entry for entry, _ in await look_many(self._reads, refs)]
        ends: dict[int, float] = {}
        if refs and refs[0].namespace.l1_ttl is not None:
            # Memory keeps them for a shorter time, and so does not know their ends.
            ends = await self._ends(refs, [place for place, entry in enumerate(entries) if entry is not None])
        now = self._clock()
        return [
            None if entry is None else Look(entry.version, entry.negative, Lifetime(
                self._age(ref, entry, now), ends.get(place, entry.fresh_until) - now
            ))
            for place, (ref, entry) in enumerate(zip(refs, entries, strict=True))
        ]  # fmt: skip

    def _age(self, ref: KeyRef, entry: Entry, now: float) -> float:
        """Return the age of a value; 0 if it is not known."""
        age = age_of(entry.as_of, self._state.topology.time_of(ref.name), now)
        return 0.0 if age == math.inf else age

    async def _ends(self, refs: Sequence[KeyRef], places: Sequence[int]) -> dict[int, float]:
        """Return the ends of some values in Redis, by their places, in monotonic seconds."""
        wire = self._state.client.connection(refs[0].name)
        if wire is None or refs[0].namespace.local:
            return {}
        try:
            found = await self._state.client.ends([refs[place].name for place in places])
        except CacheUnavailableError:
            return {}
        now = self._clock()
        return {
            place: wire.time.end(end.fresh_until, end.life, now)
            for place, end in zip(places, found, strict=True) if end is not None
        }  # fmt: skip

    async def prolong(self, ref: KeyRef, ttl: Life) -> bool:
        """Give a stored value a new TTL, counted from now; return whether there was a value.

        :param ttl: seconds, or until a moment of a calendar.
        """
        if isinstance(ttl, CalendarLife):
            ttl = await self._reads.lives.ready(ttl, ref.name)
        if ref.others:
            return any([await self.prolong(other, ttl) for other in ref.others])
        wire = self._state.client.connection(ref.name)
        if wire is not None and ref.namespace.local:
            # `look` checks first that the value is still valid. The value keeps its trust.
            entry = await self._reads.look(ref)
            return entry is not None and self._prolong_here(ref, ttl, wire)
        if wire is not None:
            try:
                return await ask_twice(lambda: self._replace(ref, ttl))
            except CacheUnavailableError as error:
                self._reads.failed(ref, error)
        # Another task may be keeping a value here that Redis refused. Its lock is free once the value is here.
        async with self._state.key_locks.hold(ref.name):
            return self._prolong_here(ref, ttl, wire)

    # -- without Redis --------------------------------------------------------------------------------------

    def _here(self, ref: KeyRef, wire: "Connection | None") -> Entry | None:
        """Return the fresh value in this process, if Redis is away or not configured."""
        entry = self._memory.get_untrusted(ref.name) if wire is None else self._reads.fallback(ref)
        # A remembered error is not a value, as for `get`.
        return None if entry is None or entry.negative else entry

    def _prolong_here(self, ref: KeyRef, ttl: Life, wire: "Connection | None") -> bool:
        """Give the entry in memory a new end; return whether there is an entry.

        The memory replaces only the entry that was read, so of several threads one wins and the others try again. The
        tags of the value and their stamps stay.
        """
        grace, cap = ref.freshness.grace, ref.namespace.l1_ttl
        if isinstance(ttl, CalendarLife):
            ttl = self._reads.lives.left(ttl, ref.name, self._clock())
        if cap is not None and cap < ttl:
            ttl, grace = cap, 0.0
        for _ in range(_REPLACEMENTS):
            # Taken first: if Redis comes back from here on, this trust ends.
            generations = self._state.generations
            offline = generations.trust_for(generations.offline_of(ref.name), ref.namespace, ref.name)
            local = ref.namespace.local
            entry = self._memory.get_untrusted(ref.name) if local else self._here(ref, wire)
            if entry is None or entry.negative:
                return False
            trust = entry.trust if local else offline
            longer = entry.until(self._clock() + ttl, trust, pack_windows(0.0, grace))
            if self._memory.replace(ref.name, entry, longer):
                if self._state.changes.active:
                    self._state.changes.kept(ref.name)
                break
        return True

    # -- in Redis -------------------------------------------------------------------------------------------

    async def _replace(self, ref: KeyRef, given: Life) -> bool:
        # The envelope has the end of the value, so the value is written again. If another write comes in between, that
        # write wins, and the next attempt reads its value.
        for _ in range(_REPLACEMENTS):
            stored = await stored_value(self._writes, ref)
            if stored is None:
                return False
            # That of each attempt: on a cluster, the slot may move.
            wire = self._state.client.current_connection(ref.name)
            if isinstance(given, CalendarLife):
                given = await self._reads.lives.ready(given, ref.name, wire)
            now = self._clock()
            ttl = given.left(wire.time, now) if isinstance(given, CalendarLife) else given
            raw, until = stored.raw, wire.time.at(now) + int(ttl * MICROSECONDS)
            # The value is none the younger for it.
            began = header_times.as_of(stored.fresh_until, stored.life)
            until, life = header_times.lived(began, until) if began else (until, 0.0)
            renew: Callable[[], bytes] = partial(
                envelope.renewed, stored.plain, version=new_version(), fresh_until=until, life=life
            )
            if ref.namespace.seal:
                renew = self._writes.sealing(ref, renew)
            again = await self._writes.off_loop(renew, len(raw), COPY_HERE)
            before, expiry = raw[: envelope.HEADER_BYTES], milliseconds(ttl + ref.freshness.grace)
            # A read that was queued before would store the old end in memory after this. The entry itself stays until
            # Redis answers: if Redis goes away instead, the entry is the only copy.
            self._memory.void(ref.name)
            try:
                replaced = partial(self._replaced, ref.name)
                if await self._state.client.replace(ref.name, before, again, expiry, replaced):
                    break
            except asyncio.CancelledError:
                # Whether the command was sent is unknown: the entry may have a later end than the value in Redis.
                self._memory.invalidate(ref.name)
                raise
        return True

    def _replaced(self, name: bytes, replaced: bool, _source: "Connection", _sent: float) -> bool:
        """Return `replaced`; drop the entry, because Redis has another end or value now. Runs inside the reader."""
        self._memory.invalidate(name)
        return replaced
