"""The cold store: records of the entries that the hot table of a large local cache has no room for.

Names and records are bytes in many small dictionaries. The collector does not walk them, and none is so large that its
rebuilding, when it grows, would stall a caller. A dictionary keeps the order in which its names came: so the first ones
are those that were demoted longest ago and not used since, and are evicted first.

An entry that cannot be packed (an object of a local namespace, or one decoded value whose payload is not known) stays
an object, in a dictionary beside its shard, with its trust. Until it is promoted its own trust is `DEAD`, so that code
that remembers it asks the cache, and the cache learns of the use. The collector walks those objects.

CPython 3.11 to 3.13 do not track a dictionary of atoms at all. From 3.14 on they track each dictionary, and walk it.
"""

from itertools import islice
from typing import Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import OVERHEAD, Entry
from magnus_cache._engine.memory.records import Bases, basis_of, pack, unpack

__all__ = ["COLD_OVERHEAD", "ColdStore"]

COLD_OVERHEAD: Final = 125
"""Bytes that a record takes beyond its name and itself: two headers of `bytes`, and its place in a dictionary."""

_SHARD: Final = 5_000
"""Names in each dictionary, give or take the unevenness of hashing. A third of 16,384, less that: so CPython rebuilds
it, in half a millisecond, at the size it has already."""

_AHEAD: Final = 32
"""Names to evict that are looked up at a time: CPython finds the first name of a dictionary by walking past removed
ones."""


class ColdStore:
    """Records by name. All but `get` are called with the lock of the local cache held.

    :ivar shards: the dictionaries; a name's hash selects one.
    :ivar objects: the entries that stay objects and their trusts, for each dictionary.
    :ivar count: how many names there are.
    :ivar size: bytes that they take, with names and overheads.
    :ivar bases: what the records depend on.
    """

    __slots__ = ("_ahead", "_next", "bases", "count", "objects", "shards", "size")

    def __init__(self, entries: int) -> None:
        count = -(-entries // _SHARD)
        self.shards: tuple[dict[bytes, bytes], ...] = tuple({} for _ in range(count))
        self.objects: tuple[dict[bytes, tuple[Entry, Trust]], ...] = tuple({} for _ in range(count))
        self.bases = Bases()
        self._ahead: list[list[tuple[bytes, bytes]]] = [[] for _ in range(count)]
        self.count = self.size = self._next = 0

    def place(self, name: bytes) -> int:
        """Return the number of a name's shard."""
        return hash(name) % len(self.shards)

    def __contains__(self, name: bytes) -> bool:
        return name in self.shards[hash(name) % len(self.shards)]

    def pack(self, entry: Entry) -> bytes:
        """Return the record of an entry, `OBJECT` for one that stays an object."""
        return pack(entry, self.bases)

    def entry(self, name: bytes) -> tuple[bytes, Entry] | None:
        """Return a name's record, and the entry that it stands for; None if there is none."""
        place = hash(name) % len(self.shards)
        record = self.shards[place].get(name)
        if record is None:
            return None
        if record:
            return record, unpack(record, self.bases)
        kept = self.objects[place].get(name)
        return None if kept is None else (record, kept[0])

    def charge(self, name: bytes, record: bytes, entry: Entry | None) -> int:
        """Return the bytes that a name counts for.

        :param entry: that of an object.
        """
        if record:
            return len(name) + len(record) + COLD_OVERHEAD
        return len(name) + OVERHEAD + COLD_OVERHEAD + (0 if entry is None else entry.size)

    def added(self, name: bytes, record: bytes, entry: Entry) -> None:
        """Count a name that was just put into its shard."""
        # Before it is added: a signal handler may change the sum during the call.
        charge = self.charge(name, record, entry)
        self.count += 1
        self.size += charge
        if record:
            self.bases.uses[basis_of(record)] += 1

    def left(self, name: bytes, record: bytes, entry: Entry | None) -> None:
        """Count a name no more that was just taken from its shard."""
        charge = self.charge(name, record, entry)
        self.count -= 1
        self.size -= charge
        if record:
            self.bases.uses[basis_of(record)] -= 1
        else:
            # It may be back, as the last one, before its turn. `oldest` knows a record by its identity, but not this.
            ahead = self._ahead[hash(name) % len(self.shards)]
            ahead[:] = [pair for pair in ahead if pair[0] != name]

    def discard(self, name: bytes) -> bool:
        """Remove a name; return whether it was there."""
        place = hash(name) % len(self.shards)
        shard, objects = self.shards[place], self.objects[place]
        entry: Entry | None = None
        # No call between the checks and the removal: a signal handler may remove the name.
        if name not in shard:
            return False
        record = shard[name]
        if not record and name in objects:
            entry = objects[name][0]
            del objects[name]
        del shard[name]
        self.left(name, record, entry)
        return True

    def oldest(self) -> bytes | None:
        """Return the name in the next shard that came first and is to be evicted; None if there is none."""
        for _ in self.shards:
            self._next = place = (self._next + 1) % len(self.shards)
            shard, ahead = self.shards[place], self._ahead[place]
            while shard:
                if not ahead:
                    ahead.extend(reversed(list(islice(shard.items(), _AHEAD))))
                try:
                    name, record = ahead.pop()
                except IndexError:
                    break  # Taken by a signal handler in between.
                # A name that was used and demoted again meanwhile has another record, and is at the end.
                if shard.get(name) is record:
                    return name
        return None

    def record(self, name: bytes) -> bytes | None:
        """Return the record of a name, or None."""
        return self.shards[hash(name) % len(self.shards)].get(name)

    def trust(self, name: bytes) -> Trust | None:
        """Return the trust that a name's record depends on; None if there is none."""
        place = hash(name) % len(self.shards)
        record = self.shards[place].get(name)
        if record is None:
            return None
        if record:
            return self.bases.known[basis_of(record)].trust
        kept = self.objects[place].get(name)
        return None if kept is None else kept[1]

    def some(self, limit: int) -> list[bytes]:
        """Return some names, at most `limit`."""
        names: list[bytes] = []
        for shard in self.shards:
            if len(names) >= limit:
                break
            names.extend(islice(shard, limit - len(names)))
        return names

    def names(self, place: int) -> list[bytes]:
        """Return the names of one shard."""
        return list(self.shards[place])

    def clear(self) -> None:
        """Remove everything."""
        for objects in self.objects:
            objects.clear()
        for shard, ahead in zip(self.shards, self._ahead, strict=True):
            shard.clear()
            ahead.clear()
        self.bases.clear()
        self.count = self.size = 0
