"""Many names at once in the local cache: the same as name by name, with the lock taken once.

The caller bounds how many names there are. An interrupt (Ctrl-C) between two of them leaves those before it done and
those after it undone, as between two calls.
"""

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from magnus_cache._engine.memory.cold import ColdStore
from magnus_cache._engine.memory.entry import OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.records import OBJECT, life_of, unpack
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.runtime.critical import engaged

__all__ = ["BatchCache"]

_HEATED: Final = 8
"""Of so many records that are read in calls for many values, one becomes a hot entry."""


class BatchCache(LocalCache):
    """A `LocalCache` with operations on many names."""

    __slots__ = ("_glances",)

    def reset(self) -> None:
        """Start empty, in a forked child too."""
        self._glances = 0
        super().reset()

    def hits(self, names: Sequence[bytes]) -> list[Entry | None]:
        """Return the entry of each name if it may be served, as `hit` does.

        One record in eight becomes hot. The others are read where they are: a call for many values, or a scan, would
        else make all that is in use leave the hot table, and each of its values would cost three times as much.
        """
        hit, cold = self.hit, self._cold
        if cold is None:
            return list(map(hit, names))
        table = self._table
        # These first: a record that becomes hot makes another entry leave.
        found = [hit(name) if name in table else None for name in names]
        missing = [name for name, entry in zip(names, found, strict=True) if entry is None]
        if missing:
            glanced = self._glance(cold, missing)
            for place, name in enumerate(names):
                if found[place] is None:
                    found[place] = glanced[name] if name in glanced else hit(name)
        return found

    def _glance(self, cold: ColdStore, names: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return entries like those that records stand for, which stay records.

        What is not among them is to be looked up.
        """
        found: dict[bytes, Entry] = {}
        if engaged():
            return found
        table, shards, bases, many = self._table, cold.shards, cold.bases, len(cold.shards)
        with self._lock:
            now = self._clock()
            for name in names:
                if name in table:
                    continue
                record = shards[hash(name) % many].get(name)
                if not record:
                    continue
                self._glances += 1
                if self._glances % _HEATED == 0:
                    continue
                entry = unpack(record, bases)
                if not (entry.generation == self.generation or self._is_current(name, entry)):
                    continue
                trust = entry.trust
                if now < entry and now < trust.deadline:
                    trust.used = True
                    found[name] = entry
        return found

    def has_any(self, names: Iterable[bytes]) -> bool:
        """Return whether one of these names has an entry, dead or alive."""
        table, cold = self._table, self._cold
        if cold is None:
            return not table.keys().isdisjoint(names)
        shards, many = cold.shards, len(cold.shards)
        return any(name in table or name in shards[hash(name) % many] for name in names)

    def count(self, names: Iterable[bytes]) -> int:
        """Return how many names have an entry that is fresh and not cleared, trusted or not."""
        cold = self._cold
        if cold is None or engaged():
            return sum(self.get_untrusted(name) is not None for name in names)
        found, now = 0, self._clock()
        with self._lock:
            for name in names:
                entry = self._table.get(name)
                if entry is None and (record := cold.record(name)) is not None:
                    # What is counted is removed next, as a rule. It need not become hot in between.
                    deadline, generation = life_of(record) if record else (-inf, 0)
                    if now < deadline and generation == self.generation:
                        found += 1
                        continue
                    entry = there[1] if (there := cold.entry(name)) is not None else None
                found += entry is not None and now < entry.fresh_until and self._is_current(name, entry)
        return found

    def reserve_many(self, names: Iterable[bytes], reserved: list[Placeholder]) -> None:
        """Add the placeholder of each name to a list, as `reserve` returns it.

        The caller releases what the list has, also after an interrupt.
        """
        add = reserved.append
        with self._lock:
            for name in names:
                new, pending = Placeholder(name), self._pending
                if name in pending:
                    # No call in between: a signal handler may remove it, and then it is void, not lost.
                    placeholder = pending[name]
                    placeholder.holders += 1
                    add(placeholder)
                else:
                    # In this order: a placeholder that an interrupt keeps from the list is not reserved either.
                    add(new)
                    pending[name] = new

    def release_many(self, placeholders: Iterable[Placeholder]) -> None:
        """Release placeholders, as `release` does."""
        with self._lock:
            for placeholder in placeholders:
                name, pending = placeholder.name, self._pending
                placeholder.holders -= 1
                if placeholder.holders <= 0 and name in pending and pending[name] is placeholder:
                    del pending[name]

    def fill_many(self, placeholders: Iterable[Placeholder], entries: Iterable[Entry]) -> list[bool]:
        """Store entries whose names nothing has changed since, as `fill` does; return for each whether it is stored.

        Those that the hot table has no room for are packed at once. Each would make another one leave, which costs
        twice as much, and those that leave are perhaps in use.
        """
        pairs, fill = list(zip(placeholders, entries, strict=True)), self.fill
        if self.limits:
            # Each may make another one of its namespace leave.
            return [fill(*pair) for pair in pairs]
        with self._lock:
            stored = self._added(pairs)
            if self._cold is not None and len(self._table) >= self._hot_entries and len(stored) < len(pairs):
                stored |= self._packed(self._cold, pairs)
            # What is there before, and what there is no room for, is for `fill`.
            return [place in stored or fill(*pair) for place, pair in enumerate(pairs)]

    def _added(self, pairs: Sequence[tuple[Placeholder, Entry]]) -> set[int]:
        """Put new entries into the hot table while it has room; return the places of those that are there."""
        table, pending, cold, stored = self._table, self._pending, self._cold, set[int]()
        # Less than there is, as others may leave meanwhile.
        room, free = min(self._hot_entries - len(table), self.max_entries - len(self)), self.max_bytes - self.bytes
        for place, (placeholder, entry) in enumerate(pairs):
            name = placeholder.name
            size = entry.size + len(name) + OVERHEAD
            if name in table or (cold is not None and name in cold):
                continue
            if len(stored) >= room or size > free:
                break
            if not isinstance(entry, TaggedEntry):
                entry.generation = self.generation
            # No call from here to the end of this step, as in `_store`.
            if name not in pending or pending[name] is not placeholder or name in table:
                continue
            del pending[name]
            placeholder.filled = True
            table[name] = entry
            # The end of the step.
            self._hot_bytes += size
            free -= size
            self._policy.added(name, entry)
            self._collect()
            if table.get(name) is entry:
                stored.add(place)
        return stored

    def _packed(self, cold: ColdStore, pairs: Sequence[tuple[Placeholder, Entry]]) -> set[int]:
        """Put new entries into the cold store; return the places of those that are there."""
        table, pending, shards, stored = self._table, self._pending, cold.shards, set[int]()
        pack, added, most, most_bytes = cold.pack, cold.added, self.max_entries, self.max_bytes
        for place, (placeholder, entry) in enumerate(pairs):
            name = placeholder.name
            if placeholder.filled or name in table or entry.size + len(name) + OVERHEAD > most_bytes:
                continue
            if not isinstance(entry, TaggedEntry):
                entry.generation = self.generation
            record, shard = pack(entry), shards[hash(name) % len(shards)]
            if record is OBJECT:
                continue
            if name in shard:
                cold.discard(name)
            # No call from here to the end of this step: a signal handler may remove the name, and void its placeholder.
            if name not in pending or pending[name] is not placeholder or name in table or name in shard:
                continue
            del pending[name]
            placeholder.filled = True
            shard[name] = record
            # The end of the step.
            added(name, record, entry)
            if cold.count + len(table) > most or self._hot_bytes + cold.size > most_bytes:
                self._evict(entry)
            self._collect()
            if record is shard.get(name):
                stored.add(place)
        return stored

    def drop_many(self, placeholders: Iterable[Placeholder]) -> None:
        """Remove the entries of names whose values no longer exist, as `drop` does."""
        table, cold, pending = self._table, self._cold, self._pending
        with self._lock:
            for placeholder in placeholders:
                name = placeholder.name
                # As in `invalidate_many`.
                if (name in table or (cold is not None and name in cold)) and pending.get(name) is placeholder:
                    self._forget(name)

    def invalidate_many(self, names: Sequence[bytes]) -> None:
        """Remove the entries of names and void their placeholders, as `invalidate` does."""
        table, cold = self._table, self._cold
        with self._lock:
            for name in names:
                self._pending.pop(name, None)
                # As in `_forget`: most names have nothing here.
                if (name in table or (cold is not None and name in cold)) and self._forget(name):
                    self._collect()
