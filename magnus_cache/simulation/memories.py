"""The memory of one simulated process: the engine's own local cache, or a plain one with another rule of eviction.

The engine's policies run in the engine's own `LocalCache`, with its two tiers, its limits of namespaces, and its
bounds, on the clock of the replay. The rules that it does not have are here, for comparison:

- ``lfu``: the least frequently used entry; of several, the one that was so for longest.
- ``tinylfu``: W-TinyLFU (Einziger, Friedman, Manes: TinyLFU: A Highly Efficient Cache Admission Policy, 2017): a
  window of 1 %, and behind it a segmented LRU that a newcomer enters only if it was asked for more often lately.
- ``optimum``: Belady's: what is used again last goes first, by what the recording shows of the future. No rule can
  know that, so it is a bound for all, as far as entries have the same size.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, get_args

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.policy import PolicyName
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.memory.tiers import HOT

__all__ = ["ENGINE_RULES", "OPTIMUM", "RULES", "TRUST", "EngineMemory", "Memory", "Time", "make_memory"]

ENGINE_RULES: Final[tuple[str, ...]] = get_args(PolicyName)
OPTIMUM: Final = "optimum"
RULES: Final = (*ENGINE_RULES, "lfu", "tinylfu", OPTIMUM)
"""The names of all rules of eviction."""

TRUST: Final = Trust(float("inf"), 0)
"""Of all entries: in a recording, no connection is lost."""


class Time:
    """The clock of a replay: the time of the record that is replayed."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return seconds."""
        return self.now


class Memory(Protocol):
    """The memory of one process.

    :ivar hit: returns the entry of a name if it may be served without a refresh.
    :ivar next_use: when the name at hand is used next in this process; only the optimum needs it.
    """

    hit: Callable[[bytes], Entry | None]
    next_use: float

    @property
    def evictions(self) -> int:
        """Entries that were removed to make room."""
        ...

    def stale(self, name: bytes) -> Entry | None:
        """Return the entry of a name, fresh or stale, until its end."""
        ...

    def keep(self, name: bytes, entry: Entry, tags: Sequence[int] = ()) -> None:
        """Store an entry.

        :param tags: those by which `end_tags` may remove it.
        """
        ...

    def end_tags(self, tags: Iterable[int], names: Iterable[bytes]) -> None:
        """Remove the entries that have one of some tags.

        :param names: all that may have one.
        """
        ...

    def invalidate(self, name: bytes) -> None:
        """Remove an entry."""
        ...

    def clear(self, prefix: bytes) -> None:
        """Remove all entries whose names have a prefix."""
        ...

    def limit(self, prefix: bytes, most: int | None) -> None:
        """Keep at most so many entries of a namespace."""
        ...


def make_memory(rule: str, entries: int, size: int, clock: Time, *, scale: float = 1.0) -> Memory:
    """Return an empty memory.

    :param size: bytes at most.
    :param scale: one by the share of keys that is simulated: bounds are divided by it, as in SHARDS.
    """
    bounds = (max(1, round(entries / scale)) if entries else 0), int(size / scale)
    if rule in ENGINE_RULES:
        return EngineMemory(rule, bounds, clock, hot=max(1, round(HOT / scale)))
    rules: dict[str, Callable[[int], _Rule]] = {"lfu": _Lfu, "tinylfu": _TinyLfu, OPTIMUM: _Optimum}
    return _PlainMemory(rules[rule](max(1, bounds[0])), bounds, clock)


class EngineMemory:
    """The engine's own cache."""

    def __init__(self, rule: str, bounds: tuple[int, int], clock: Time, *, hot: int) -> None:
        self._cache = LocalCache(*bounds, clock, policy=rule, hot=hot)  # type: ignore[arg-type]  # one of its names
        self._stamps: dict[int, TagStamp] = {}
        self.hit: Callable[[bytes], Entry | None] = self._cache.hit
        self.next_use = 0.0

    @property
    def evictions(self) -> int:
        """See `Memory`."""
        return self._cache.evictions

    def stale(self, name: bytes) -> Entry | None:
        """See `Memory`."""
        return self._cache.get_stale(name, trusted=True)

    def keep(self, name: bytes, entry: Entry, tags: Sequence[int] = ()) -> None:
        """See `Memory`."""
        if tags:
            tagged = TaggedEntry(entry.value, None, entry.deadline, TRUST, entry.size, entry.facts)
            tagged.stamps = [self._stamp(tag) for tag in tags]
            tagged.epoch, tagged.generation = 0, self._cache.generation
            entry = tagged
        placeholder = self._cache.reserve(name)
        self._cache.fill(placeholder, entry)
        self._cache.release(placeholder)

    def _stamp(self, tag: int) -> TagStamp:
        return self._stamps.setdefault(tag, TagStamp(""))

    def end_tags(self, tags: Iterable[int], names: Iterable[bytes]) -> None:
        """See `Memory`."""
        for tag in tags:
            self._cache.invalidate_tag(self._stamp(tag))

    def invalidate(self, name: bytes) -> None:
        """See `Memory`."""
        self._cache.invalidate(name)

    def clear(self, prefix: bytes) -> None:
        """See `Memory`."""
        self._cache.clear(prefix)

    def limit(self, prefix: bytes, most: int | None) -> None:
        """See `Memory`."""
        self._cache.limit(prefix, most)


class _Rule(Protocol):
    """Decides what goes. `next_use` is infinity where nothing is known of the future."""

    def added(self, name: bytes, next_use: float) -> None: ...

    def used(self, name: bytes, next_use: float) -> None: ...

    def removed(self, name: bytes) -> None: ...

    def victim(self) -> bytes: ...


class _PlainMemory:
    """A table with another rule."""

    def __init__(self, rule: _Rule, bounds: tuple[int, int], clock: Time) -> None:
        self._rule = rule
        self._most, self._most_bytes = bounds
        self._clock = clock
        self._table: dict[bytes, Entry] = {}
        self._bytes = 0
        self._limits: dict[bytes, int] = {}
        self.hit: Callable[[bytes], Entry | None] = self._hit
        self.next_use = float("inf")
        self.evictions = 0

    def _hit(self, name: bytes) -> Entry | None:
        entry = self._table.get(name)
        if entry is None:
            return None
        if self._clock.now < entry:
            self._rule.used(name, self.next_use if self.next_use < entry.end else float("inf"))
            return entry
        if self._clock.now >= entry.end:
            self.invalidate(name)
        return None

    def stale(self, name: bytes) -> Entry | None:
        """See `Memory`."""
        entry = self._table.get(name)
        return entry if entry is not None and self._clock.now < entry.end else None

    def end_tags(self, tags: Iterable[int], names: Iterable[bytes]) -> None:
        """See `Memory`."""
        for name in names:
            self.invalidate(name)

    def keep(self, name: bytes, entry: Entry, tags: Sequence[int] = ()) -> None:
        """See `Memory`."""
        size = entry.size + len(name) + OVERHEAD
        self.invalidate(name)
        if size > self._most_bytes or self._most <= 0:
            return
        self._table[name] = entry
        self._bytes += size
        self._rule.added(name, self.next_use if self.next_use < entry.end else float("inf"))
        while len(self._table) > self._most or self._bytes > self._most_bytes:
            self.invalidate(self._rule.victim())
            self.evictions += 1

    def invalidate(self, name: bytes) -> None:
        """See `Memory`."""
        entry = self._table.pop(name, None)
        if entry is not None:
            self._bytes -= entry.size + len(name) + OVERHEAD
            self._rule.removed(name)

    def clear(self, prefix: bytes) -> None:
        """See `Memory`."""
        for name in [name for name in self._table if name.startswith(prefix)]:
            self.invalidate(name)

    def limit(self, prefix: bytes, most: int | None) -> None:
        """See `Memory`; a limit of a single namespace is the engine's own, and not simulated here."""


class _Lfu:
    """The least frequently used; see the module."""

    def __init__(self, _: int) -> None:
        self._counts: dict[bytes, int] = {}
        self._by_count: dict[int, OrderedDict[bytes, None]] = {}
        self._newest = b""

    def added(self, name: bytes, next_use: float) -> None:
        self._newest = name
        self._put(name, 1)

    def used(self, name: bytes, next_use: float) -> None:
        count = self._counts[name]
        self.removed(name)
        self._put(name, count + 1)

    def _put(self, name: bytes, count: int) -> None:
        self._counts[name] = count
        self._by_count.setdefault(count, OrderedDict())[name] = None

    def removed(self, name: bytes) -> None:
        count = self._counts.pop(name)
        names = self._by_count[count]
        del names[name]
        if not names:
            del self._by_count[count]

    def victim(self) -> bytes:
        # Not the newcomer while there are others: it would never be used twice.
        least = min(self._by_count)
        if len(self._counts) > 1 and len(self._by_count[least]) == 1 and self._newest in self._by_count[least]:
            least = min(count for count in self._by_count if count > least)
        return next(iter(self._by_count[least]))


_WINDOW_SHARE: Final = 100
_PROTECTED: Final = 0.8
_SAMPLE: Final = 10
_MOST_COUNT: Final = 15


class _TinyLfu:
    """W-TinyLFU; see the module. Frequencies are counted exactly, and halved now and then."""

    def __init__(self, most: int) -> None:
        self._window_size = max(1, most // _WINDOW_SHARE)
        self._protected_size = max(1, int((most - self._window_size) * _PROTECTED))
        self._window: OrderedDict[bytes, None] = OrderedDict()
        self._probation: OrderedDict[bytes, None] = OrderedDict()
        self._protected: OrderedDict[bytes, None] = OrderedDict()
        self._counts: dict[bytes, int] = {}
        self._seen, self._sample = 0, _SAMPLE * most

    def _count(self, name: bytes) -> None:
        self._counts[name] = min(_MOST_COUNT, self._counts.get(name, 0) + 1)
        self._seen += 1
        if self._seen >= self._sample:
            self._seen //= 2
            self._counts = {name: count // 2 for name, count in self._counts.items() if count > 1}

    def added(self, name: bytes, next_use: float) -> None:
        self._count(name)
        self._window[name] = None

    def used(self, name: bytes, next_use: float) -> None:
        self._count(name)
        if name in self._probation:
            del self._probation[name]
            self._protected[name] = None
            if len(self._protected) > self._protected_size:
                self._probation[self._protected.popitem(last=False)[0]] = None
        else:
            (self._window if name in self._window else self._protected).move_to_end(name)

    def removed(self, name: bytes) -> None:
        for queue in (self._window, self._probation, self._protected):
            queue.pop(name, None)

    def victim(self) -> bytes:
        while len(self._window) > self._window_size:
            candidate = self._window.popitem(last=False)[0]
            rival = next(iter(self._probation), None)
            self._probation[candidate] = None
            if rival is not None:
                counts = self._counts
                return rival if counts.get(candidate, 0) > counts.get(rival, 0) else candidate
        for queue in (self._probation, self._protected, self._window):
            if queue:
                return next(iter(queue))
        raise KeyError("there is nothing to evict")


class _Optimum:
    """Belady's rule; see the module."""

    def __init__(self, _: int) -> None:
        self._next: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def added(self, name: bytes, next_use: float) -> None:
        self._next[name] = next_use
        heapq.heappush(self._heap, (-next_use, name))

    used = added

    def removed(self, name: bytes) -> None:
        self._next.pop(name, None)

    def victim(self) -> bytes:
        while self._heap:
            use, name = heapq.heappop(self._heap)
            if self._next.get(name) == -use:
                return name
        raise KeyError("there is nothing to evict")
