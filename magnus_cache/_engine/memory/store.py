"""The near cache (L1): least recently used values of this process, bounded by entries and by bytes.

Three things end an entry's life, and none of them needs a timer or a scan while somebody waits: its deadline, its
connection's `Trust`, and a clear. An entry dead by deadline or clear is found out when it is asked for; what nobody
asks for is collected in small steps by the writes that follow. The collector goes round a queue of names, one for
each entry, as Redis' own expiry cycle goes round its keys: a few steps for each write, more where many turn out to
be dead. Names whose entry went another way leave the queue when their turn comes. What may be of use after its deadline
is kept until its end, but is no hit.

A hit takes no lock: it is a few C calls, each atomic under the GIL, and an entry that another thread evicts in
between is served for the last time. Everything that changes the table takes the lock for a bounded time. The lock
is reentrant, because a value's finalizer or a signal handler may call the cache in the thread that holds it: to
remove things, no more (see `sections`). So what is looked at and acted upon stands next to each other, without a call
in between, and each change of the table is counted once, by whoever has made it.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.memory.clear_log import Clear, ClearLog, Scope, covers
from magnus_cache._engine.memory.entry import OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.lru import Table, make_lru
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import section

__all__ = ["LocalCache"]

_Name = bytes
"""A value's full name in Redis. `LocalCache` has a field `bytes`, so that within it the type needs another name."""

_BATCH: Final = 16
"""Steps that the collector goes at a time."""

_STEPS: Final = 2
"""Steps owed for each write. More than one, or the queue would grow without end under writes and removals in turn."""

_BATCHES: Final = 16
"""Batches in a row at most, while a quarter of each turns out to be dead."""

_CLEAR_STEPS: Final = 2048
"""Steps that a clear goes itself, so that small caches are free of what was cleared at once."""

_EVICTIONS: Final = 4096
"""Evictions at most for one write. They free a megabyte at least; what more is needed is freed by later writes."""

_RESERVED: Final = 1024  # placeholders that a clear tells apart by name; if there are more, it voids all of them


class LocalCache:
    """A thread-safe LRU store of entries by name, which is the value's full name in Redis.

    `len` and `bytes` count what takes up room: also dead entries that have not been collected yet.

    :ivar hit: ``hit(name)`` returns the entry of a name if it may be served, else None. Takes no lock.
    :ivar bytes: sizes of all entries with their names and `OVERHEAD`; never more than `max_bytes`.
    :ivar evictions: entries removed to make room.
    :ivar expirations: entries removed after their deadline.
    :ivar fenced: fills refused because their name was touched after it was reserved.
    :ivar steps: names that the collector has looked at.
    """

    __slots__ = (
        "__weakref__", "_clock", "_floors", "_generation", "_lap", "_left", "_lock", "_owed", "_pending", "_queue",
        "_table", "bytes", "evictions", "expirations", "fenced", "hit", "max_bytes", "max_entries", "steps",
    )  # fmt: skip

    def __init__(self, max_entries: int, max_bytes: int, clock: Clock = monotonic) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._clock = clock
        self._table: Table[Entry] = make_lru(max_entries)
        self._floors = ClearLog()
        self._queue: deque[_Name] = deque()
        self._generation = self._lap = 0
        self.hit: Final = self._make_hit()
        self.reset()

    def reset(self) -> None:
        """Forget everything, in place and without waiting for the lock: a forked child's may be held for ever."""
        self._lock = section()
        self._table.clear()
        self._pending: dict[_Name, Placeholder] = {}
        self._queue.clear()
        self._floors.reset()
        self._left = self._owed = 0
        self.bytes = self.evictions = self.expirations = self.fenced = self.steps = 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def generation(self) -> int:
        """How many clears and outdated marks there were; it only grows."""
        return self._generation

    @property
    def pending(self) -> int:
        """How many names are reserved now."""
        return len(self._pending)

    # -- read -----------------------------------------------------------------------------------------------

    def _make_hit(self) -> Callable[[_Name], Entry | None]:
        # A closure: a method would spend 40 ns of 150 on finding these three through `self`.
        get, move_to_end, clock = self._table.get, self._table.move_to_end, self._clock

        def hit(name: _Name) -> Entry | None:
            entry = get(name)
            if entry is None:
                return None
            now = clock()
            trust = entry.trust
            if now < entry and (entry.stamp is self._generation or self._stands(name, entry)):
                if now < trust.deadline:
                    trust.used = True
                    try:
                        move_to_end(name)
                    except KeyError:
                        pass  # Evicted this very moment. Not `suppress`, which would cost as much as all the rest.
                    return entry
            else:
                self._bury(name, entry, now)
            return None

        return hit

    def peek(self, name: _Name) -> Entry | None:
        """Return the entry of a name whether it can be trusted or not: fresh, if due for a refresh, and uncleared."""
        entry = self._table.get(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.fresh_until and self._stands(name, entry)):
            self._bury(name, entry, now)
            return None
        try:
            self._table.move_to_end(name)
        except KeyError:
            pass
        return entry

    def past(self, name: _Name, *, trusted: bool) -> Entry | None:
        """Return the entry of a name, also one that is past its deadline and still of use; not one that was cleared.

        :param trusted: whether what it stands on has to stand.
        """
        entry = self._table.get(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.end and self._stands(name, entry)):
            self._bury(name, entry, now)
            return None
        return entry if now < entry.trust.deadline or not trusted else None

    def _stands(self, name: _Name, entry: Entry) -> bool:
        """Return whether no clear has covered an entry; asks the floors once for each generation."""
        # In this order: a clear lays its floor first and opens its generation then.
        generation = self._generation
        if entry.stamp is generation:
            return True
        if self._floors.cleared(name, entry.stamp):
            return False
        if isinstance(entry, TaggedEntry):
            for mark in entry.marks:
                if mark.generation > entry.stamp:
                    return False
        entry.stamp = generation
        return True

    def _bury(self, name: _Name, entry: Entry, now: float) -> None:
        """Remove a dead entry, unless it is of use after its deadline, or a newer one has taken its place."""
        with self._lock:
            if not (now < entry.end and self._stands(name, entry)) and self._remove(name, entry):
                self.expirations += now >= entry

    # -- fill -----------------------------------------------------------------------------------------------

    def reserve(self, name: _Name, *, anew: bool = False) -> Placeholder:
        """Return the placeholder of a name, to be taken before its value is asked for; requests may share one.

        Each call is to be answered by one of `release`, also after `fill`.

        :param anew: void the present placeholder, for a value that supersedes whatever is being asked for.
        """
        held: Placeholder | None = None
        try:
            with self._lock:
                pending, new = self._pending, Placeholder(name)
                fill = pending[name] if name in pending else None  # noqa: SIM401  # no call
                if fill is None or anew:
                    pending[name] = fill = held = new
                else:
                    fill.holders += 1
                    held = fill
                return fill
        except BaseException:
            # Interrupted (Ctrl-C) in between: the caller does not know of it.
            if held is not None:
                self.release(held)
            raise

    def fill(self, fill: Placeholder, entry: Entry) -> bool:
        """Store an entry if nothing touched its name since it was reserved; return whether it is stored.

        The first of several holders fills; what the others bring is refused and the entry stays.
        """
        with self._lock:
            if self._pending.get(fill.name) is fill:
                stored = self._store(fill.name, entry, fill)
                if fill.filled:
                    return stored
            self.fenced += not fill.filled
            return False

    def drop(self, fill: Placeholder) -> None:
        """Remove the entry of a name, if nothing has touched that since it was reserved: there is no value any more."""
        with self._lock:
            if self._pending.get(fill.name) is fill and (entry := self._table.get(fill.name)) is not None:
                self._remove(fill.name, entry)

    def release(self, fill: Placeholder) -> None:
        """Give up a placeholder; with its last holder it is gone. Nothing happens if it is void already."""
        with self._lock:
            name, pending = fill.name, self._pending
            fill.holders -= 1
            if fill.holders <= 0 and name in pending and pending[name] is fill:
                del pending[name]

    # -- write ----------------------------------------------------------------------------------------------

    def replace(self, name: _Name, old: Entry, entry: Entry) -> bool:
        """Store an entry in place of this very one, if that is still there and was not cleared.

        Return whether it is stored. A placeholder of the name stays: what it will bring is newer.
        """
        with self._lock:
            generation = self._generation
            return self._stands(name, old) and self._store(name, entry, instead=(old, generation))

    def void(self, name: _Name) -> None:
        """Void a name's placeholder and keep its entry."""
        with self._lock:
            self._pending.pop(name, None)

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
        """Remove all names with a prefix, or that a pattern matches in full, as `clear` does."""
        with self._lock:
            while True:
                generation = self._generation + 1
                floor = self._floors.add(Clear(scope, generation))
                # Else a signal handler has opened one meanwhile, and an entry may be stamped with that.
                if self._generation == generation - 1:
                    self._generation = generation
                    break
            # Now that it is there: what a signal handler has the collector look at in between is not counted.
            self._floors.end(floor, self.steps + len(self._queue))
            self._void(scope)
            self._advance(self._floors.bounded(_CLEAR_STEPS))

    def outdate(self, mark: TagStamp) -> None:
        """Remove all entries that have a tag, in constant time."""
        with self._lock:
            # In this order: whoever sees the new generation must see the mark.
            mark.generation = self._generation + 1
            self._generation += 1

    def sweep(self, limit: int = 1000) -> int:
        """Look at some names for dead entries, and return how many were removed. For callers with time to spare."""
        with self._lock:
            return self._advance(limit)

    def shrink(self, limit: int = 1000) -> bool:
        """Forget some entries, and return whether there are more: `reset` in steps, for a table that is large."""
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
        self, name: _Name, entry: Entry, fill: Placeholder | None = None, instead: tuple[Entry, int] | None = None
    ) -> bool:
        """Store an entry.

        :param fill: only if this is still the name's placeholder; notes there that it is used.
        :param instead: only if the name has this entry, and no clear came after this generation.
        """
        size = entry.size + len(name) + OVERHEAD
        fits = size <= self.max_bytes and self.max_entries > 0
        if not isinstance(entry, TaggedEntry):
            entry.stamp = self._generation
        old, table, pending = self._table.get(name), self._table.part(name), self._pending
        # No call from here to the end of this step: what a signal handler removes has either been there before, with
        # the placeholder, or finds the new entry.
        if instead is not None and (
            name not in table or table[name] is not instead[0] or self._generation != instead[1]
        ):
            return False
        if fill is not None:
            if name not in pending or pending[name] is not fill:
                return False
            del pending[name]
            fill.filled = True
        if fits:
            old = table[name] if name in table else None  # noqa: SIM401  # no call
            # In place, so that the table keeps the very name that is in the queue.
            table[name] = entry
            self._table.count += old is None
        # The end of the step.
        if not fits:
            # The old value goes all the same: it has been superseded.
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
            pass  # Removed this very moment, by a signal handler or, for a hit, by another thread.

    def _over(self) -> bool:
        return self.bytes > self.max_bytes or len(self._table) > self.max_entries

    def _evict(self, name: _Name, entry: Entry) -> None:
        """Make room for a new entry within a bounded number of evictions; failing that, give it up."""
        for _ in range(_EVICTIONS):
            oldest = self._table.oldest()
            if oldest is not None and self._remove(*oldest):
                self.evictions += 1
            if not self._over():
                return
        self._remove(name, entry)

    def _remove(self, name: _Name, entry: Entry) -> bool:
        """Remove an entry if it is the present one of its name; return whether it was."""
        size = entry.size + len(name) + OVERHEAD
        if not self._table.take(name, entry):
            return False
        self.bytes -= size
        return True

    def _void(self, scope: Scope) -> None:
        if len(self._pending) > _RESERVED:
            self._pending = {}
        for name in list(self._pending):
            if covers(scope, name):
                self._pending.pop(name, None)

    def _collect(self) -> None:
        """Let the collector go the steps that a write owes, and more where it finds much."""
        self._owed += _STEPS
        if self._owed >= _BATCH:
            self._owed = 0
            for _ in range(self._floors.bounded(_BATCHES)):
                if self._advance(_BATCH) * 4 < _BATCH:
                    break

    def _advance(self, limit: int) -> int:
        """Let the collector look at some names; return how many entries it removed."""
        queue, get, now, removed = self._queue, self._table.get, self._clock(), 0
        for _ in range(min(limit, len(queue))):
            if self._left <= 0:
                left = len(queue)
                self._lap, self._left = self._lap + 1, left
            if not queue:
                break
            name = queue[0]
            self._left -= 1
            self.steps += 1
            entry = get(name)
            # Met before in this lap: a name that was removed and came back is in the queue twice.
            if entry is not None and entry.lap != self._lap and now < entry.end and self._stands(name, entry):
                entry.lap = self._lap
                if queue and queue[0] is name:
                    queue.rotate(-1)
                continue
            if queue and queue[0] is name:
                queue.popleft()
            if entry is not None and entry.lap != self._lap and self._remove(name, entry):
                self.expirations += now >= entry
                removed += 1
            # Its value's finalizer may call the cache, so it had better run here, where everything is in order.
            del entry
        self._floors.prune(self.steps)
        return removed
