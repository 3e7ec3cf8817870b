"""The local cache (L1): least recently used values of this process, bounded by entries and by bytes.

Three things end an entry: its deadline, its connection's `Trust`, and a clear. None of them needs a timer, or a scan
while a caller waits. A read detects an entry that is dead by deadline or clear. Later writes collect, in small steps,
the dead entries that are never read. The collector cycles through a queue of names, one for each entry, as Redis'
expiry cycle does with its keys: a few steps for each write, more where many entries are dead. Names whose entry was
removed otherwise leave the queue at their turn. An entry that may be served stale after its deadline is kept until its
end, but is no longer a hit.

A hit takes no lock and moves nothing: it is a few C calls, each atomic under the GIL, and marks the entry as seen. An
entry that is to be evicted and was seen gets a second chance, as in CLOCK.

An entry that leaves the table is dead for everyone who still holds it: every removal and every replacement first sets
its trust to `DEAD`. So code that has got an entry from `hit` may keep it and serve it again without a look-up, as
decorated functions do. In this order: read the value and the payload; check that ``now < entry``, that
``entry.generation is memory.generation`` and that ``now < entry.trust.deadline``; set ``entry.seen``. If one of the
checks fails, or where `marked` is False, ask `hit`. Only what `hit` returned may be kept so: an entry whose fill was
refused was never in the table, so no removal reaches it.

Everything that changes the table takes the lock for a bounded time. The lock is
reentrant, because a value's finalizer or a signal handler may call the cache in the thread that holds it, but only to
remove entries (see `runtime/critical`). So each check is followed by its action without a call in between, and each
change of the table is counted once, by the code that made it.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.memory.clear_log import Clear, ClearLog, Scope
from magnus_cache._engine.memory.entry import DEAD, OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.lru import Table, make_lru
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.reservations import Reservations
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["LocalCache"]

_Name = bytes
"""A value's full name in Redis. `LocalCache` has a field `bytes`, so that within it the type needs another name."""

_BATCH: Final = 16
"""Steps that the collector takes at a time."""

_STEPS: Final = 2
"""Steps due for each write. One would let the queue grow without bound under alternating writes and removals."""

_BATCHES: Final = 16
"""Batches in a row at most, while a quarter of each is dead."""

_CLEAR_STEPS: Final = 2048
"""Steps that a clear takes itself, so that small caches drop the cleared entries at once."""

_EVICTIONS: Final = 4096
"""Evictions at most for one write. They free at least a megabyte; later writes free the rest."""

_CHANCES: Final = 1024
"""Second chances at most for one eviction; where all entries are in use, one of them goes."""


class LocalCache(Reservations):
    """A thread-safe LRU store of entries by name, which is the value's full name in Redis.

    `len` and `bytes` include dead entries that have not been collected yet.

    :ivar hit: ``hit(name)`` returns the entry of a name if it may be served, else None; takes no lock.
    :ivar generation: how many clears and tag invalidations there were; it only grows. An entry that carries this very
        object was checked since the last one.
    :ivar marked: whether ``entry.seen = True`` is all that a hit has to note; False for an exact LRU.
    :ivar bytes: sizes of all entries with their names and `OVERHEAD`; never more than `max_bytes`.
    :ivar evictions: entries removed to make room.
    :ivar expirations: entries removed after their deadline.
    :ivar fenced: fills refused because their name was changed after it was reserved.
    :ivar steps: names that the collector has visited.
    """

    __slots__ = (
        "__weakref__", "_clears", "_clock", "_left", "_owed", "_queue", "_round", "_table", "bytes", "evictions",
        "expirations", "fenced", "generation", "hit", "marked", "max_bytes", "max_entries", "steps",
    )  # fmt: skip

    def __init__(self, max_entries: int, max_bytes: int, clock: Clock = monotonic, *, exact: bool = False) -> None:
        """Make an empty cache.

        :param exact: evict exactly the least recently used entry, which makes hits slower.
        """
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.marked = not exact
        self._clock = clock
        self._table: Table[Entry] = make_lru(max_entries)
        self._clears = ClearLog()
        self._queue: deque[_Name] = deque()
        self.generation = self._round = 0
        self.hit: Final = self._make_hit()
        self.reset()

    def reset(self) -> None:
        """Forget everything, in place and without waiting for the lock, which may be held forever in a forked child."""
        self._lock = section()
        self.generation += 1
        for entry in self._table.all():
            entry.trust = DEAD
        self._table.clear()
        self._pending = {}
        self._queue.clear()
        self._clears.reset()
        self._left = self._owed = 0
        self.bytes = self.evictions = self.expirations = self.fenced = self.steps = 0

    def __len__(self) -> int:
        return len(self._table)

    # -- read -----------------------------------------------------------------------------------------------

    def _make_hit(self) -> Callable[[_Name], Entry | None]:
        # A closure: a method would spend 40 ns of 150 on looking up these through `self`.
        get, touch, clock, marked = self._table.get, self._touch, self._clock, self.marked

        def hit(name: _Name) -> Entry | None:
            entry = get(name)
            if entry is None:
                return None
            now = clock()
            trust = entry.trust
            if now < entry and (entry.generation is self.generation or self._is_current(name, entry)):
                if now < trust.deadline:
                    trust.used = True
                    entry.seen = True
                    if not marked:
                        touch(name)
                    return entry
                if trust is DEAD:
                    # Replaced or removed at this moment, by another thread: its successor may be there.
                    with self._lock:
                        successor = get(name)
                    return hit(name) if successor is not None and successor is not entry else None
            else:
                self._drop_dead(name, entry, now)
            return None

        return hit

    def get_untrusted(self, name: _Name) -> Entry | None:
        """Return the entry of a name, trusted or not, if it is fresh and not cleared; it may be due for a refresh."""
        entry = self._table.get(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.fresh_until and self._is_current(name, entry)):
            self._drop_dead(name, entry, now)
            return None
        entry.seen = True
        if not self.marked:
            self._touch(name)
        return entry

    def get_stale(self, name: _Name, *, trusted: bool) -> Entry | None:
        """Return the entry of a name, fresh or stale, until its end; never one that was cleared.

        :param trusted: whether the entry's trust must still be valid.
        """
        entry = self._table.get(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.end and self._is_current(name, entry)):
            self._drop_dead(name, entry, now)
            return None
        return entry if now < entry.trust.deadline or not trusted else None

    def _is_current(self, name: _Name, entry: Entry) -> bool:
        """Return whether no clear and no tag invalidation covers an entry; asks the log once for each generation."""
        # In this order: a clear adds itself to the log first and opens its generation then.
        generation = self.generation
        if entry.generation is generation:
            return True
        if self._clears.cleared(name, entry.generation):
            return False
        if isinstance(entry, TaggedEntry):
            for stamp in entry.stamps:
                if stamp.generation > entry.generation:
                    return False
        entry.generation = generation
        return True

    def _drop_dead(self, name: _Name, entry: Entry, now: float) -> None:
        """Remove a dead entry, unless it may still be served stale, or a newer entry has replaced it."""
        with self._lock:
            if not (now < entry.end and self._is_current(name, entry)) and self._remove(name, entry):
                self.expirations += now >= entry

    # -- fill -----------------------------------------------------------------------------------------------

    def fill(self, placeholder: Placeholder, entry: Entry) -> bool:
        """Store an entry if nothing changed its name since it was reserved; return whether it is stored.

        The first of several holders fills. Fills of the others are refused, and the entry stays.
        """
        with self._lock:
            if self._pending.get(placeholder.name) is placeholder:
                stored = self._store(placeholder.name, entry, placeholder)
                if placeholder.filled:
                    return stored
            self.fenced += not placeholder.filled
            return False

    def drop(self, placeholder: Placeholder) -> None:
        """Remove a name's entry because its value no longer exists, unless the name changed since it was reserved."""
        with self._lock:
            if (
                self._pending.get(placeholder.name) is placeholder
                and (entry := self._table.get(placeholder.name)) is not None
            ):
                self._remove(placeholder.name, entry)

    # -- write ----------------------------------------------------------------------------------------------

    def replace(self, name: _Name, old: Entry, entry: Entry) -> bool:
        """Replace exactly this entry, if it is still there and was not cleared; return whether that was done.

        A placeholder of the name stays, because its value will be newer.
        """
        with self._lock:
            generation = self.generation
            return self._is_current(name, old) and self._store(name, entry, instead=(old, generation))

    def invalidate(self, name: _Name) -> None:
        """Remove a name's entry and void its placeholder."""
        with self._lock:
            self._pending.pop(name, None)
            if (entry := self._table.get(name)) is not None:
                self._remove(name, entry)
                self._collect()

    def clear(self, prefix: _Name = b"") -> None:
        """Remove all names with a prefix, in bounded time, and void their placeholders."""
        self.clear_matching(prefix)

    def clear_matching(self, scope: Scope) -> None:
        """Remove all names with a prefix, or all that a pattern fully matches, as `clear` does."""
        with self._lock:
            while True:
                generation = self.generation + 1
                clear = self._clears.add(Clear(scope, generation))
                # Otherwise a signal handler has opened a generation meanwhile, and an entry may carry it.
                if self.generation == generation - 1:
                    self.generation = generation
                    break
            # Only now that the clear is in the log: steps that a signal handler caused in between do not count.
            self._clears.end(clear, self.steps + len(self._queue))
            self._void(scope)
            self._advance(self._clears.bounded(_CLEAR_STEPS))

    def invalidate_tag(self, stamp: TagStamp) -> None:
        """Remove all entries that have a tag, in constant time."""
        with self._lock:
            # In this order: a reader that sees the new generation must see the stamp.
            stamp.generation = self.generation + 1
            self.generation += 1

    def sweep(self, limit: int = 1000) -> int:
        """Remove dead entries among some names, and return how many were removed. For callers with time to spare."""
        with self._lock:
            return self._advance(limit)

    def shrink(self, limit: int = 1000) -> bool:
        """Forget some entries, and return whether there are more: a `reset` in steps, for a large table."""
        with self._lock:
            for _ in range(limit):
                if not self._queue:
                    return False
                name = self._queue.popleft()
                if (entry := self._table.get(name)) is not None:
                    self._remove(name, entry)
            return True

    # -- with the lock held ---------------------------------------------------------------------------------

    def _store(
        self,
        name: _Name,
        entry: Entry,
        placeholder: Placeholder | None = None,
        instead: tuple[Entry, int] | None = None,
    ) -> bool:
        """Store an entry.

        :param placeholder: store only if this is still the name's placeholder, which is then marked as filled.
        :param instead: store only if the name has this entry, and no clear came after this generation.
        """
        size = entry.size + len(name) + OVERHEAD
        fits = size <= self.max_bytes and self.max_entries > 0
        if not isinstance(entry, TaggedEntry):
            entry.generation = self.generation
        old, table, pending = self._table.get(name), self._table.part(name), self._pending
        # No call from here to the end of this step: a signal handler that removes the name runs either before, and
        # voids the placeholder, or after, and finds the new entry.
        if instead is not None and (
            name not in table or table[name] is not instead[0] or self.generation != instead[1]
        ):
            return False
        if placeholder is not None:
            if name not in pending or pending[name] is not placeholder:
                return False
            del pending[name]
            placeholder.filled = True
        if fits:
            old = table[name] if name in table else None  # noqa: SIM401  # no call
            if old is not None and old is not entry:
                old.trust = DEAD
            # In place, so that the table keeps the same name object that is in the queue.
            table[name] = entry
            self._table.count += old is None
        # The end of the step.
        if not fits:
            # The old value is removed all the same, because it has been superseded.
            if old is not None:
                self._remove(name, old)
            return False
        if old is None:
            self._queue.append(name)
        else:
            size -= old.size + len(name) + OVERHEAD
            self._touch(name)
        self.bytes += size
        if self._over():
            self._evict(name, entry)
        self._collect()
        return self._table.get(name) is entry

    def _touch(self, name: _Name) -> None:
        try:
            self._table.move_to_end(name)
        except KeyError:
            pass  # Removed at this moment, by a signal handler or, for a hit, by another thread.

    def _over(self) -> bool:
        return self.bytes > self.max_bytes or len(self._table) > self.max_entries

    def _evict(self, name: _Name, entry: Entry) -> None:
        """Make room for a new entry within a bounded number of evictions; failing that, remove the new entry."""
        for _ in range(_EVICTIONS):
            victim = self._victim(entry)
            if victim is not None and self._remove(*victim):
                self.evictions += 1
            if not self._over():
                return
        self._remove(name, entry)

    def _victim(self, new: Entry) -> tuple[_Name, Entry] | None:
        """Return what is to be evicted next: the first entry in turn that no hit has marked since its last turn.

        :param new: the entry that needs the room.
        """
        oldest = self._table.oldest()
        for _ in range(_CHANCES if self.marked else 0):
            if oldest is None or not (oldest[1].seen or oldest[1] is new):
                break
            oldest[1].seen = False
            self._touch(oldest[0])
            oldest = self._table.oldest()
        return oldest

    def _remove(self, name: _Name, entry: Entry) -> bool:
        """Remove an entry if it is its name's current one; return whether it was."""
        size = entry.size + len(name) + OVERHEAD
        # First of all, for those who hold it and ask no table.
        entry.trust = DEAD
        if not self._table.take(name, entry):
            return False
        self.bytes -= size
        return True

    def _collect(self) -> None:
        """Let the collector take the steps due for a write, and more where many entries are dead."""
        self._owed += _STEPS
        if self._owed >= _BATCH:
            self._owed = 0
            for _ in range(self._clears.bounded(_BATCHES)):
                if self._advance(_BATCH) * 4 < _BATCH:
                    break

    def _advance(self, limit: int) -> int:
        """Let the collector visit some names; return how many entries it removed."""
        queue, get, now, removed = self._queue, self._table.get, self._clock(), 0
        for _ in range(min(limit, len(queue))):
            if self._left <= 0:
                left = len(queue)
                self._round, self._left = self._round + 1, left
            if not queue:
                break
            name = queue[0]
            self._left -= 1
            self.steps += 1
            entry = get(name)
            # A name that was removed and stored again is in the queue twice; the second turn in a round drops it there.
            if entry is not None and entry.round != self._round and now < entry.end and self._is_current(name, entry):
                entry.round = self._round
                if queue and queue[0] is name:
                    queue.rotate(-1)
                continue
            if queue and queue[0] is name:
                queue.popleft()
            if entry is not None and entry.round != self._round and self._remove(name, entry):
                self.expirations += now >= entry
                removed += 1
            # The value's finalizer may call the cache, so it runs here, where the state is consistent.
            del entry
        self._clears.prune(self.steps)
        return removed
