"""Which entry leaves a full table: the choices of `l1_policy`.

A policy keeps the order of the names in a table and decides which one goes next. All but the exact LRU learn of a hit
by one bit, `Entry.seen`, so that a hit takes no lock and moves nothing. They keep names in FIFO queues. A name whose
entry was removed otherwise stays in its queue until its turn; the entry's `place` says which queue is the right one.

- `Car`, the default: CLOCK with Adaptive Replacement (Bansal and Modha, FAST 2004). New entries wait in a queue of
  their own, and enter the main queue only if they are used there. So a scan, or a large `warm_cache`, passes through
  without evicting what is in use. The names of evicted entries are remembered: a miss of one of them tells which queue
  was too short, and the share of the queues adapts. Where recency is all that counts, it behaves as an LRU.
- `Lru`: exactly the least recently used entry. Hits take longer, and cannot be remembered outside of the table.
- `Clock`: second chance. Close to an LRU.
- `Sieve`: NSDI 2024. Very good on skewed traffic, and slow to forget when the traffic moves on.
- `S3Fifo`: SOSP 2023, with one bit instead of a counter. As `Car` with a fixed share; likewise slow to forget.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Literal, Protocol

from magnus_cache._engine.memory.entry import Entry

__all__ = ["POLICIES", "Car", "Clock", "Lru", "Policy", "PolicyName", "S3Fifo", "Sieve"]

PolicyName = Literal["car", "lru", "clock", "sieve", "s3fifo"]

_CHANCES: Final = 1_024
"""Second chances at most for one eviction: where all entries are in use, one of them goes."""

_SLACK: Final = 64
"""Names of removed entries that a queue may hold beyond the number of its entries."""


class Policy(Protocol):
    """Decides which entry of a table is evicted. The caller serializes all calls but `used`.

    :ivar marked: whether ``entry.seen = True`` is all that a hit has to note; if not, it calls `used`.
    """

    marked: bool

    def added(self, name: bytes, entry: Entry) -> None:
        """Note an entry that was added to the table."""
        ...

    def replaced(self, name: bytes, old: Entry, entry: Entry) -> None:
        """Note an entry that has replaced another of the same name, which counts as a use."""
        ...

    def used(self, name: bytes) -> None:
        """Note a hit; needs no lock, and may come too late for the entry."""
        ...

    def removed(self, name: bytes, entry: Entry) -> None:
        """Note that an entry is not in the table any more."""
        ...

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the name and the entry to evict next, which the caller removes; None if no entry was added."""
        ...

    def clear(self) -> None:
        """Forget all names."""
        ...


class Lru:
    """Exactly the least recently used entry."""

    __slots__ = ("_order", "_table", "marked")

    def __init__(self, table: dict[bytes, Entry]) -> None:
        self._table = table
        self._order: OrderedDict[bytes, None] = OrderedDict()
        self.marked = False

    def added(self, name: bytes, entry: Entry) -> None:
        """Make an entry the last one to go."""
        self._order[name] = None
        self.used(name)
        if name not in self._table:
            # Removed by a signal handler in between.
            self._order.pop(name, None)

    def replaced(self, name: bytes, old: Entry, entry: Entry) -> None:
        """Make an entry the last one to go."""
        self.used(name)

    def used(self, name: bytes) -> None:
        """Make an entry the last one to go."""
        try:
            self._order.move_to_end(name)
        except KeyError:
            pass  # Removed at this moment. Not `suppress`, which would cost as much as all the rest.

    def removed(self, name: bytes, entry: Entry) -> None:
        """Forget a name."""
        if name not in self._table:
            self._order.pop(name, None)

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the least recently used entry."""
        while True:
            name = self._first()
            if name is None:
                return None
            entry = self._table.get(name)
            if entry is not None:
                return name, entry
            self._order.pop(name, None)

    def _first(self) -> bytes | None:
        # No call between the iterator and its first step: a signal handler may remove names.
        for name in self._order:
            return name
        return None

    def clear(self) -> None:
        """Forget all names."""
        self._order.clear()


class _Queues:
    """FIFO queues of names, and how many entries of the table each has. Queue 0 stands for "in no queue"."""

    __slots__ = ("_counts", "_queues", "_table", "marked")

    def __init__(self, table: dict[bytes, Entry], queues: int) -> None:
        self._table = table
        self._queues: tuple[deque[bytes], ...] = tuple(deque[bytes]() for _ in range(queues + 1))
        self._counts = [0] * (queues + 1)
        self.marked = True

    def used(self, name: bytes) -> None:
        """Do nothing: the entry's mark tells."""

    def replaced(self, name: bytes, old: Entry, entry: Entry) -> None:
        """Give an entry the place of another, and a mark."""
        table = self._table
        # No call in between, as in `_push`.
        if name in table and table[name] is entry:
            entry.place = old.place
            entry.seen = True
        else:
            self._counts[old.place] -= 1
        old.place = 0

    def removed(self, name: bytes, entry: Entry) -> None:
        """Count an entry no more; its name leaves the queue later."""
        # No call in between: a signal handler may remove entries.
        place = entry.place
        entry.place = 0
        self._counts[place] -= 1

    def clear(self) -> None:
        """Forget all names."""
        for queue in self._queues:
            queue.clear()
        self._counts = [0] * len(self._counts)

    def _push(self, place: int, name: bytes, entry: Entry) -> None:
        """Put an entry at the end of a queue, unless it was removed."""
        table, counts = self._table, self._counts
        # No call between the check and the count: a signal handler that removes the entry runs before or after.
        if name in table and table[name] is entry:
            counts[entry.place] -= 1
            entry.place = place
            counts[place] += 1
        queue = self._queues[place]
        queue.append(name)
        if len(queue) > 2 * counts[place] + _SLACK:
            self._compact(place)

    def _compact(self, place: int) -> None:
        """Drop the names of removed entries from a queue, and all but the last place of each name."""
        queue, get, kept = self._queues[place], self._table.get, dict[bytes, None]()
        for name in reversed(queue):
            entry = get(name)
            if entry is not None and entry.place == place:
                kept[name] = None
        queue.clear()
        queue.extend(reversed(kept))

    def _pop(self, place: int) -> tuple[bytes, Entry] | None:
        """Take the first name from a queue that has an entry there."""
        queue, get = self._queues[place], self._table.get
        while queue:
            try:
                name = queue.popleft()
            except IndexError:
                return None  # Emptied by a signal handler in between.
            entry = get(name)
            if entry is not None and entry.place == place:
                return name, entry
        return None


class Clock(_Queues):
    """Second chance: the first in turn that was not used since its last turn."""

    __slots__ = ()

    def __init__(self, table: dict[bytes, Entry]) -> None:
        super().__init__(table, 1)

    def added(self, name: bytes, entry: Entry) -> None:
        """Put an entry at the end."""
        self._push(1, name, entry)

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the first entry without a mark; each marked one before it loses its mark and goes to the end."""
        found = self._pop(1)
        for _ in range(_CHANCES):
            if found is None or not found[1].seen:
                break
            found[1].seen = False
            self._push(1, *found)
            found = self._pop(1)
        return found


class Sieve(_Queues):
    """One queue with a hand that stays where it is: what survived is behind it, and what is new comes last."""

    __slots__ = ("_ahead",)

    def __init__(self, table: dict[bytes, Entry]) -> None:
        super().__init__(table, 2)
        self._ahead = 1
        """The queue ahead of the hand; the other one is behind it."""

    def added(self, name: bytes, entry: Entry) -> None:
        """Put an entry at the end."""
        self._push(self._ahead, name, entry)

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the first entry from the hand on without a mark; each marked one before it loses its mark."""
        found = self._next()
        for _ in range(_CHANCES):
            if found is None or not found[1].seen:
                break
            found[1].seen = False
            self._push(3 - self._ahead, *found)
            found = self._next()
        return found

    def _next(self) -> tuple[bytes, Entry] | None:
        if (found := self._pop(self._ahead)) is None:
            self._ahead = 3 - self._ahead
            found = self._pop(self._ahead)
        return found


class _Ghosts:
    """The names of entries evicted lately, as hashes: two generations of half the number each."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._now: set[int] = set()
        self._before: set[int] = set()

    def __len__(self) -> int:
        return len(self._now) + len(self._before)

    def add(self, name: bytes, most: int) -> None:
        """Remember a name, and forget the older half if there are too many."""
        self._now.add(hash(name))
        if len(self._now) > most // 2:
            self._now, self._before = set(), self._now

    def take(self, name: bytes) -> bool:
        """Forget a name; return whether it was remembered."""
        number = hash(name)
        if number in self._now:
            self._now.discard(number)
            return True
        if number in self._before:
            self._before.discard(number)
            return True
        return False

    def clear(self) -> None:
        """Forget all names."""
        self._now, self._before = set(), set()


_SMALL: Final = 10
"""The new entries' queue of `S3Fifo` has a tenth of all."""


class S3Fifo(_Queues):
    """A small queue of new entries, a main one of those that were used, and the names of evicted new ones."""

    __slots__ = ("_ghosts",)

    def __init__(self, table: dict[bytes, Entry]) -> None:
        super().__init__(table, 2)
        self._ghosts = _Ghosts()

    def added(self, name: bytes, entry: Entry) -> None:
        """Put an entry into the small queue, or into the main one if it was evicted too early before."""
        self._push(2 if self._ghosts.take(name) else 1, name, entry)

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the first entry without a mark, of the small queue if that has its share."""
        found: tuple[bytes, Entry] | None = None
        for _ in range(_CHANCES):
            _, small, main = self._counts
            place = 1 if small * _SMALL >= small + main or main <= 0 else 2
            found = self._pop(place) or self._pop(3 - place)
            if found is None:
                return None
            name, entry = found
            if not entry.seen:
                if entry.place == 1:
                    self._ghosts.add(name, small + main)
                return found
            entry.seen = False
            self._push(2, name, entry)
        return self._pop(1) or self._pop(2) or found

    def clear(self) -> None:
        """Forget all names."""
        super().clear()
        self._ghosts.clear()


class Car(_Queues):
    """CLOCK with Adaptive Replacement: queues of new entries and of used ones, whose shares adapt to the misses."""

    __slots__ = ("_new_ghosts", "_share", "_used_ghosts")

    def __init__(self, table: dict[bytes, Entry]) -> None:
        super().__init__(table, 2)
        self._new_ghosts = _Ghosts()
        self._used_ghosts = _Ghosts()
        self._share = -1.0
        """How many entries the queue of new ones should have; from the first eviction on, which begins with half."""

    def added(self, name: bytes, entry: Entry) -> None:
        """Put an entry into the queue of new ones; into that of used ones if it was evicted too early before."""
        new, used, total = self._new_ghosts, self._used_ghosts, len(self._table)
        if new.take(name):
            self._share = min(self._share + max(1.0, len(used) / (len(new) + 1)), total)
            self._push(2, name, entry)
        elif used.take(name):
            self._share = max(self._share - max(1.0, len(new) / (len(used) + 1)), 0.0)
            self._push(2, name, entry)
        else:
            self._push(1, name, entry)

    def victim(self) -> tuple[bytes, Entry] | None:
        """Return the first entry without a mark of the queue that has more than its share."""
        found: tuple[bytes, Entry] | None = None
        for _ in range(_CHANCES):
            _, new, used = self._counts
            if self._share < 0:
                self._share = (new + used) / 2
            place = 1 if new >= max(1.0, min(self._share, new + used)) else 2
            found = self._pop(place) or self._pop(3 - place)
            if found is None:
                return None
            name, entry = found
            if not entry.seen:
                # As many ghosts of either kind as its queue leaves free of all entries.
                ghosts = self._new_ghosts if entry.place == 1 else self._used_ghosts
                ghosts.add(name, max(2, new + used))
                return found
            entry.seen = False
            self._push(2, name, entry)
        return self._pop(1) or self._pop(2) or found

    def clear(self) -> None:
        """Forget all names."""
        super().clear()
        self._new_ghosts.clear()
        self._used_ghosts.clear()
        self._share = -1.0


POLICIES: Final[dict[PolicyName, Callable[[dict[bytes, Entry]], Policy]]] = {
    "car": Car, "lru": Lru, "clock": Clock, "sieve": Sieve, "s3fifo": S3Fifo,
}  # fmt: skip
"""The policies by the names that the setting has."""
