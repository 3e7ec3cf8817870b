"""Reads and writes of a value in memory in one step: without Redis, in an outage, and for objects of local namespaces.

There is no lock. A caller looks at the entry, makes another one, and stores it only if the entry is still the same; if
there was none, only if its placeholder still stands. So of several threads and loops one wins, and the others look
again, see `LocalCache.replace` and `placeholder`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.generations import OfflineTrust
from magnus_cache._engine.memory.entry import Entry, TaggedEntry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache._engine.store.lives import CalendarLife, Life
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.records import MISS, Began, KeyRef
from magnus_cache._engine.store.revalidation import tags_of
from magnus_cache._engine.store.values import may_have
from magnus_cache._engine.store.writes import Writes
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["AtomicMemory", "Found"]


class Found(NamedTuple):
    """What memory has of a key, to be replaced if nothing else changes it meanwhile.

    :ivar entry: None for no value.
    :ivar place: reserved for a value where there is none; to be given back by `AtomicMemory.done`.
    """

    entry: Entry | None
    value: Any
    """`MISS` for no value."""
    tags: tuple[str, ...]
    known: tuple[int, Sequence[TagStamp]]
    """The memory's generation and the tags' stamps from before the entry was looked at."""
    place: Placeholder
    trust: Trust
    as_of: int | None = None
    """When the load or write of the new value began, in microseconds of Redis' clock; None for now."""

    def as_old(self) -> "Found":
        """Return the same for a new value that is as old as this one."""
        return self if self.entry is None else self._replace(as_of=self.entry.as_of)


class AtomicMemory:
    """The steps of one cache on its memory. None of the methods but `find` waits for anything."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._reads = writes.reads
        self._state = writes.state
        self._memory = writes.state.memory

    async def find(self, ref: KeyRef, wire: "Connection | None") -> Found:
        """Return what memory has of a key and may serve now.

        :param wire: the connection to the server of the key; None without Redis.
        """
        place = self._memory.reserve(ref.name)
        try:
            trust = self._state.local_trust(ref.namespace, ref.name)
            # What a clear or a tag invalidates from here on finds the new entry older than itself.
            entry_before = self._memory.get_untrusted(ref.name)
            tags = tagged(ref, () if entry_before is None else tags_of(entry_before))
            known = self._reads.tag_state(ref, tags)
            if wire is not None and ref.namespace.local:
                entry = await self._reads.look(ref)
                trust = (
                    entry.trust if entry is not None else await self._writes.local.standing(wire, ref, tags) or trust
                )
            else:
                entry = self._memory.get_untrusted(ref.name) if wire is None else self._reads.fallback(ref)
            if entry is not None and (entry.negative or not may_have(ref, entry)):
                entry = None
            value = MISS if entry is None else self._reads.opened_anyway(ref, entry)
            if entry is not None and value is not MISS:
                # Opening it may have replaced it by the same value in another form.
                opened = self._memory.get_untrusted(ref.name)
                if opened is not None and opened.version == entry.version:
                    entry = opened
                return Found(entry, value, tags_of(entry), known, place, trust)
            return Found(None, MISS, (), known, place, trust)
        except BaseException:
            self._memory.release(place)
            raise

    def done(self, found: Found) -> None:
        """Give back what `find` reserved."""
        self._memory.release(found.place)

    async def store(
        self, ref: KeyRef, found: Found, value: Any, payload: bytes, ttl: Life | None, tags: tuple[str, ...] = ()
    ) -> bool:  # fmt: skip
        """Store a value in place of what was found; return False if something has changed it meanwhile.

        :param ttl: seconds, or until a moment of a calendar; None for what the old value has left, or else the
            namespace's.
        :param tags: those of a new value.
        :raises CacheUnavailableError: if memory cannot keep the value.
        """
        old = found.entry
        if ttl is None and old is None:
            ttl = self._reads.life(ref, None)
        if isinstance(ttl, CalendarLife):
            await self._reads.lives.ready(ttl, ref.name)
        now = self._state.clock()
        tags = tagged(ref, tags if old is None else found.tags)
        known = found.known if old is not None else self._reads.tag_state(ref, tags)
        if isinstance(ttl, CalendarLife):
            ttl = self._reads.lives.left(ttl, ref.name, now)
        elif ttl is None:
            ttl = 0.0 if old is None else old.fresh_until - now
            if ttl <= 0:
                return False  # it has just ended
        record = at_once(self._writes.record_steps(ref, value, payload, tags))
        epoch = old.epoch if isinstance(old, TaggedEntry) else self._state.epochs.highest
        record = record._replace(epoch=epoch)
        bounded = ref.namespace.offline is not None and isinstance(found.trust, OfflineTrust)
        if not ref.namespace.l1 or (bounded and found.trust.deadline <= now):
            raise _unkept(ref)
        # No load that began before stores over it.
        self._writes.void_loads(ref)
        as_of = found.as_of
        if as_of is None:
            as_of = Began(now).told(self._state.topology.time_of(ref.name))
        entry = self._reads.entry(ref, record, found.trust, (now + ttl, now, as_of), known)
        if old is not None:
            stored = self._memory.replace(ref.name, old, entry)
            if stored:
                self._memory.void(ref.name)
        else:
            stored = self._memory.fill(found.place, entry)
            if not stored and found.place.filled and self._memory.get_untrusted(ref.name) is None:
                raise _unkept(ref)
        ref.counters.stores += stored
        if stored:
            self._writes.tell_stored(ref, "memory", record, ttl)
            if self._state.changes.active:
                self._state.changes.kept(ref.name)
        return stored


def _unkept(ref: KeyRef) -> CacheUnavailableError:
    what = f"memory keeps nothing of namespace {str(ref.namespace)!r} now"
    return CacheUnavailableError(
        "down", f"{what}, and there is no other place: see its l1 and offline, and l1_max_bytes"
    )
