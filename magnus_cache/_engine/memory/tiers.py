"""The two tiers of a local cache: a hot table of entries, and behind it, if it may grow large, a cold store of records.

The idea
--------
An entry is an object, which the garbage collector walks: a million of them stop the process for 700 ms. So at most
`HOT` entries are objects. Where more fit, the eviction policy of the hot table says which entry is *demoted*: packed
into a record (see `records`) and put into the cold store. A read that finds a record *promotes* it: makes an entry of
it again. The order of the cold store is the order of demotion, so it evicts first what was not used for the longest
time.

A name is in one tier at a time. Only `_promote`, `_demote`, `_put` and the removals change the tables, with the lock
held. An entry that is demoted is dead for everyone who still holds it, as one that is removed.

The races that this excludes
----------------------------
- A clear comes between demotion and promotion. The record carries the generation in which its entry was last checked,
  and is checked when it is promoted, before any reader gets the entry.
- The collector has visited a part, and an entry unvisited so far moves there. It is checked as it moves, so it counts
  as visited.
- A tag is invalidated while no hot entry has it. The basis of the records keeps the tag's stamp alive, see `records`.
- A connection is lost, and its trust killed. Records have the trust by their basis.
- A signal handler removes a name in the midst of a move. Each check is followed by the move without a call in between.
- A signal handler reads a record while a section of its thread is interrupted. It must not move anything there, so it
  finds nothing.
"""

import itertools
from itertools import islice
from typing import Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.clear_log import ClearLog
from magnus_cache._engine.memory.cold import COLD_OVERHEAD, ColdStore
from magnus_cache._engine.memory.entry import DEAD, OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.limits import CHANCES, Limited, head_of
from magnus_cache._engine.memory.placeholder import Reservations
from magnus_cache._engine.memory.policy import POLICIES, Policy, PolicyName
from magnus_cache._engine.memory.records import OBJECT
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import engaged

__all__ = ["HOT", "Tiers"]

HOT: Final = 16_384
"""Entries that are kept as objects. CPython collects those, and rebuilds a dictionary of them, in 2 ms."""

_Name = bytes
"""A value's full name in Redis. `Tiers` has a property `bytes`, so that within it the type needs another name."""

_EVICTIONS: Final = 2_048
"""Evictions at most for one write; later writes free the rest."""

_RECORD: Final = 60
"""Bytes that the shortest name and record take together."""


class Tiers(Reservations):
    """The tables of a local cache, and what moves entries between them.

    :ivar evictions: entries removed to make room.
    :ivar expirations: entries removed after their deadline.
    :ivar limits: the namespaces that have a limit of their own, by what their names begin with, see `limits`.
    :ivar generation: how many clears and tag invalidations there were; it only grows. An entry that carries this very
        object was checked since the last one.
    """

    __slots__ = (
        "_clears", "_clock", "_cold", "_hot_bytes", "_hot_entries", "_policy", "_table", "evictions", "expirations",
        "generation", "limits", "max_bytes", "max_entries",
    )  # fmt: skip

    def __init__(self, limits: tuple[int, int], clock: Clock, policy: PolicyName, hot: int) -> None:
        """Make empty tables.

        :param limits: entries and bytes at most.
        :param hot: entries that are kept as objects.
        """
        self.max_entries, self.max_bytes = most, size = limits
        self._clock = clock
        self._clears = ClearLog()
        self._table: dict[bytes, Entry] = {}
        self._policy: Policy = POLICIES[policy](self._table)
        self.limits: dict[bytes, Limited] = {}
        self._hot_entries = most
        self._cold: ColdStore | None = None
        if min(most, size // OVERHEAD) > hot:
            self._hot_entries = hot
            self._cold = ColdStore(min(most, size // (COLD_OVERHEAD + _RECORD)))
        self.generation = self.evictions = self.expirations = self._hot_bytes = 0

    def __len__(self) -> int:
        return len(self._table) + (0 if self._cold is None else self._cold.count)

    @property
    def bytes(self) -> int:
        """Sizes of all entries with their names and overheads; never more than `max_bytes`."""
        return self._hot_bytes + (0 if self._cold is None else self._cold.size)

    def names(self) -> list[_Name]:
        """Return the names of all entries, dead ones included, in time that grows with their number."""
        with self._lock:
            cold = self._cold
            packed = () if cold is None else (cold.names(place) for place in range(len(cold.shards)))
            return [*self._table, *itertools.chain.from_iterable(packed)]

    @property
    def tiered(self) -> bool:
        """Whether entries may be packed, so that decoded values are worth keeping with their payload."""
        return self._cold is not None

    # -- look -------------------------------------------------------------------------------------------------

    def _find(self, name: _Name) -> Entry | None:
        """Return the entry of a name, dead or alive; one that was in the cold store is hot from now on."""
        entry = self._table.get(name)
        return self._promote(name) if entry is None else entry

    def trust_of(self, name: _Name) -> Trust | None:
        """Return the trust of a name's entry, dead or alive; None without an entry. It stays in its tier."""
        with self._lock:
            entry = self._table.get(name)
            if entry is not None:
                return entry.trust
            return None if self._cold is None else self._cold.trust(name)

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

    # -- between the tiers ------------------------------------------------------------------------------------

    def _promote(self, name: _Name) -> Entry | None:
        """Make an entry of a record again; None if there is none, or if it was cleared."""
        cold, table = self._cold, self._table
        if cold is None or name not in cold:
            # Again: another thread may just have promoted it.
            return table.get(name)
        if engaged():
            return None
        with self._lock:
            found = cold.entry(name)
            if found is None:
                return table.get(name)
            record, entry = found
            size = entry.size + len(name) + OVERHEAD
            # Before anybody gets it: the collector has perhaps been past, and the clear is not in the log for long.
            if not self._is_current(name, entry):
                self._discard(name)
                return None
            place = cold.place(name)
            shard, objects = cold.shards[place], cold.objects[place]
            # No call from here to the end of this step: a signal handler may remove the name.
            if name not in shard or shard[name] is not record:
                return None
            if not record:
                if name not in objects or objects[name][0] is not entry:
                    return None
                entry.trust = objects[name][1]
                del objects[name]
            # In this order, for those who look without the lock: first in both, then in one.
            table[name] = entry
            del shard[name]
            # The end of the step.
            cold.left(name, record, entry)
            self._hot_bytes += size
            self._make_room(name, entry)
            return entry

    def _demote(self, name: _Name, entry: Entry) -> None:
        """Put a hot entry into the cold store; or remove it, if it is dead."""
        cold, table, now = self._cold, self._table, self._clock()
        assert cold is not None
        if not (now < entry.end and self._is_current(name, entry)):
            removed = self._remove(name, entry)
            self.expirations += removed and now >= entry
            return
        record, place, size = cold.pack(entry), cold.place(name), entry.size + len(name) + OVERHEAD
        shard, objects = cold.shards[place], cold.objects[place]
        # No call from here to the end of this step: a signal handler may remove the name.
        if name not in table or table[name] is not entry:
            return
        if record is OBJECT:
            objects[name] = entry, entry.trust
        entry.trust = DEAD
        shard[name] = record
        del table[name]
        # The end of the step.
        if entry.calls is not None:
            entry.forget_calls()
        cold.added(name, record, entry)
        self._hot_bytes -= size
        self._policy.removed(name, entry)

    # -- in and out -------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        return self.bytes > self.max_bytes or len(self) > self.max_entries

    def _make_room(self, name: _Name, entry: Entry, old: Entry | None = None) -> None:
        """Demote and evict others for an entry that was just put into the table, and tell the policy of it.

        Within a bounded number of evictions. Failing that, the entry itself is removed.

        :param old: the entry that it has replaced.
        """
        if old is not None:
            self._policy.replaced(name, old, entry)
        while len(self._table) > self._hot_entries and self._cold is not None:
            victim = self._policy.victim()
            if victim is None:
                break
            self._demote(*victim)
        if self._over() and not self._evict(entry):
            self._remove(name, entry)
        elif old is None and self._table.get(name) is entry:
            self._policy.added(name, entry)

    def _evict(self, new: Entry) -> bool:
        """Remove entries that are due, but not the new one, until the bounds are kept; return whether they are."""
        cold = self._cold
        for _ in range(_EVICTIONS):
            name = None if cold is None else cold.oldest()
            removed = False
            if cold is not None and name is not None:
                removed = self._discard(name)
            else:
                victim = self._policy.victim()
                if victim is None:
                    break
                if victim[1] is new:
                    self._policy.added(*victim)
                else:
                    removed = self._remove(*victim)
            self.evictions += removed
            if not self._over():
                return True
        return False

    def _remove(self, name: _Name, entry: Entry) -> bool:
        """Remove an entry if it is its name's current one; return whether it was."""
        table, size = self._table, entry.size + len(name) + OVERHEAD
        # First of all, for those who hold it and ask no table.
        entry.trust = DEAD
        if entry.calls is not None:
            entry.forget_calls()
        # No call between the check and the removal: a signal handler may remove the name.
        if name not in table or table[name] is not entry:
            return False
        del table[name]
        self._hot_bytes -= size
        self._policy.removed(name, entry)
        if self.limits:
            self._left(name)
        return True

    def _discard(self, name: _Name) -> bool:
        """Remove a record; return whether it was there."""
        if self._cold is None or not self._cold.discard(name):
            return False
        if self.limits:
            self._left(name)
        return True

    def _forget(self, name: _Name) -> bool:
        """Remove whatever a name has; return whether it had anything."""
        entry = self._table.get(name)
        removed = entry is not None and self._remove(name, entry)
        return self._discard(name) or removed

    def _forget_some(self, limit: int) -> None:
        """Remove some names, whatever they are."""
        names = list(islice(self._table, limit))
        if self._cold is not None and len(names) < limit:
            names += self._cold.some(limit - len(names))
        for name in names:
            self._forget(name)

    def _forget_all(self) -> None:
        """Remove everything, in place."""
        for entry in list(self._table.values()):
            entry.trust = DEAD
            if entry.calls is not None:
                entry.forget_calls()
        self._table.clear()
        self._policy.clear()
        if self._cold is not None:
            self._cold.clear()
        for limited in self.limits.values():
            limited.names.clear()
        self._hot_bytes = 0

    # -- limits of namespaces ---------------------------------------------------------------------------------

    def _left(self, name: _Name) -> None:
        """Note that a name has no entry any more."""
        limited = self.limits.get(head_of(name))
        if limited is not None and name not in self._table:
            limited.names.pop(name, None)

    def _keep_limit(self, name: _Name) -> None:
        """Evict entries of a name's namespace, but not its own, which was just stored, until its limit is kept."""
        limited = self.limits.get(head_of(name))
        if limited is None or name not in self._table:
            return
        limited.names[name] = None
        chances = CHANCES
        while limited.most is not None and len(limited.names) > limited.most:
            victim = limited.first()
            if victim is None:
                return
            entry = self._table.get(victim)
            if victim == name or (entry is not None and entry.seen and chances > 0):
                chances -= 1
                if entry is not None and victim != name:
                    entry.seen = False
                limited.put_off(victim)
                continue
            limited.names.pop(victim, None)
            removed = self._forget(victim)
            self.evictions += removed
            limited.evictions += removed
