"""The local cache (L1): the values of this process that were used lately, bounded by entries and by bytes.

Three things end an entry: its deadline, its connection's `Trust`, and a clear. None of them needs a timer, or a scan
while a caller waits. A read detects an entry that is dead by deadline or clear. Later writes collect, in small steps,
the dead entries that are never read, see `collector`. An entry that may be served stale after its deadline is kept
until its end, but is no longer a hit. What is evicted when there is no room is the choice of a `policy`. Entries of a
large cache are in two tiers, see `tiers`.

A hit of a hot entry takes no lock and moves nothing: it is a few C calls, each atomic under the GIL, and marks the
entry as seen. Everything that changes the tables takes the lock for a bounded time. The lock is reentrant, because a
value's finalizer or a signal handler may call the cache in the thread that holds it, but only to remove entries (see
`runtime/critical`). So each check is followed by its action without a call in between, and each change of a table is
counted once, by the code that made it.

An entry that leaves the hot table is dead for everyone who still holds it: every removal, replacement and demotion
first sets its trust to `DEAD`. So code that has got an entry from `hit` may keep it and serve it again without a
look-up, as decorated functions do. In this order: read the value and the payload; check that ``now < entry``, that
``entry.generation is memory.generation`` and that ``now < entry.trust.deadline``; set ``entry.seen``. If one of the
checks fails, or where `marked` is False, ask `hit`. Only what `hit` returned may be kept so: an entry whose fill was
refused was never in the table, so no removal reaches it. To keep it in a dictionary, use `remember`: the entry is
removed from there as it leaves the hot table, so that nothing keeps its value alive.
"""

from collections.abc import Callable
from typing import Any, Final

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.memory.clear_log import Clear, Scope
from magnus_cache._engine.memory.collector import Collecting
from magnus_cache._engine.memory.entry import DEAD, OVERHEAD, Calls, Entry, TaggedEntry
from magnus_cache._engine.memory.limits import Limited
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.policy import PolicyName
from magnus_cache._engine.memory.tiers import HOT
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import engaged, section

__all__ = ["LocalCache"]

_Name = bytes
"""A value's full name in Redis. `LocalCache` has a field `bytes`, so that within it the type needs another name."""

_CALLS: Final = 1_024
"""Dictionaries that may remember one entry; when there are more, remembering it starts over."""

_ADDED: Final = 8
"""Dictionaries that are added at least before the chain of an entry is searched again."""

_CLEAR_STEPS: Final = 2_048
"""Entries up to which a clear visits all itself, so that small caches drop the cleared entries at once."""

_CLEAR_SHARE: Final = 512
"""Steps of the collector that a clear of a larger cache takes itself."""


class LocalCache(Collecting):
    """A thread-safe store of entries by name, which is the value's full name in Redis.

    `len` and `bytes` include dead entries that have not been collected yet.

    :ivar hit: ``hit(name)`` returns the entry of a name if it may be served, else None. It takes no lock, unless the
        entry is in the cold store.
    :ivar marked: whether ``entry.seen = True`` is all that a hit has to note; False for an exact LRU.
    :ivar fenced: fills refused because their name was changed after it was reserved.
    """

    __slots__ = ("__weakref__", "fenced", "hit", "marked")

    def __init__(
        self, max_entries: int, max_bytes: int, clock: Clock = monotonic, *, policy: PolicyName = "car", hot: int = HOT
    ) -> None:
        """Make an empty cache.

        :param policy: what decides which entry is evicted, see `policy`.
        :param hot: entries that are kept as objects; further ones are packed.
        """
        super().__init__((max_entries, max_bytes), clock, policy, hot)
        self.marked = self._policy.marked
        self.hit: Final = self._make_hit()
        self.reset()

    def reset(self) -> None:
        """Forget everything, in place. A forked child has a lock of its own: that of its parent may be held forever."""
        self._lock = section()
        with self._lock:
            self.generation += 1
            self._forget_all()
            self._pending = {}
            self._clears.reset()
            self._start_over()
            self.evictions = self.expirations = self.fenced = 0
            self.limits = {}

    # -- read -----------------------------------------------------------------------------------------------

    def _make_hit(self) -> Callable[[_Name], Entry | None]:
        # A closure: a method would spend 40 ns of 150 on looking up these through `self`.
        get, used, clock, marked, tiered = self._table.get, self._policy.used, self._clock, self.marked, self.tiered

        def hit(name: _Name) -> Entry | None:
            entry = get(name)
            if entry is None and (not tiered or (entry := self._promote(name)) is None):
                return None
            now = clock()
            trust = entry.trust
            if now < entry and (entry.generation is self.generation or self._is_current(name, entry)):
                if now < trust.deadline:
                    trust.used = True
                    entry.seen = True
                    if not marked:
                        used(name)
                    return entry
                if trust is DEAD:
                    # Replaced, packed or removed at this moment, by another thread: its successor or record may be
                    # there. It is there once that thread has left its section.
                    with self._lock:
                        removed = get(name) is entry and entry.trust is DEAD
                    return None if removed else hit(name)
            else:
                self._drop_dead(name, entry, now)
            return None

        return hit

    def get_untrusted(self, name: _Name) -> Entry | None:
        """Return the entry of a name, trusted or not, if it is fresh and not cleared; it may be due for a refresh."""
        entry = self._find(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.fresh_until and self._is_current(name, entry)):
            self._drop_dead(name, entry, now)
            return None
        entry.seen = True
        if not self.marked:
            self._policy.used(name)
        return entry

    def get_stale(self, name: _Name, *, trusted: bool) -> Entry | None:
        """Return the entry of a name, fresh or stale, until its end; never one that was cleared.

        :param trusted: whether the entry's trust must still be valid.
        """
        entry = self._find(name)
        if entry is None:
            return None
        now = self._clock()
        if not (now < entry.end and self._is_current(name, entry)):
            self._drop_dead(name, entry, now)
            return None
        return entry if now < entry.trust.deadline or not trusted else None

    def _drop_dead(self, name: _Name, entry: Entry, now: float) -> None:
        """Remove a dead entry, unless it may still be served stale, or a newer entry has replaced it."""
        with self._lock:
            if not (now < entry.end and self._is_current(name, entry)) and self._remove(name, entry):
                self.expirations += now >= entry

    def remember(self, entry: Entry, calls: dict[Any, Entry], key: Any) -> None:
        """Put an entry into a dictionary, from which it is removed when it leaves the hot table.

        :param key: its hash and its equality must not call user code.
        """
        # A signal handler that has interrupted one of the steps below must not change what they look at.
        if calls.get(key) is entry or engaged():
            return
        with self._lock:
            chain = entry.calls
            left = _ADDED if chain is None else chain[3] - 1
            if left < 0:
                chain, left = _pruned(entry)
            # No call from here to the end of this step: what the dictionary has, the entry knows of.
            calls[key] = entry
            entry.calls = calls, key, chain, left
            # The end of the step. The entry may have left before, or by a signal handler in between.
            if entry.trust is DEAD:
                entry.forget_calls()

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
            if self._pending.get(placeholder.name) is placeholder:
                self._forget(placeholder.name)

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
            # As in `_forget`: a value that was just loaded has replaced nothing here.
            if (name in self._table or (self._cold is not None and name in self._cold)) and self._forget(name):
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
            # Only now that the clear is in the log: a round that a signal handler began in between does not count.
            self._clears.end(clear, self._round + 2)
            self._void(scope)
            limit = self._clears.bounded(_CLEAR_STEPS)
            if len(self) > limit:
                self._advance(self._clears.bounded(_CLEAR_SHARE))
            elif self._visit_all():
                self._clears.end(clear, self._round)
                self._clears.prune(self._round)

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
            self._forget_some(limit)
            return len(self) > 0

    def limit(self, head: _Name, most: int | None) -> None:
        """Keep at most so many entries of a namespace from the next one on that is stored.

        :param head: what the names of its values begin with.
        :param most: None for no limit, in a cache that may have had one for the namespace.
        """
        limited = self.limits.get(head)
        if limited is None:
            if most is None:
                return
            with self._lock:
                limited = Limited()
                # What was stored before, by another policy of the namespace.
                limited.names.update(dict.fromkeys(name for name in self.names() if name.startswith(head)))
                limited = self.limits.setdefault(head, limited)
        limited.most = most

    def limited(self) -> dict[_Name, tuple[int, int | None, int]]:
        """Return for each namespace that has a limit how many entries it has, at most, and lost to its limit."""
        with self._lock:
            return {head: (len(one.names), one.most, one.evictions) for head, one in self.limits.items()}

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
        size, table, pending = entry.size + len(name) + OVERHEAD, self._table, self._pending
        fits = size <= self.max_bytes and self.max_entries > 0
        if not isinstance(entry, TaggedEntry):
            entry.generation = self.generation
        old: Entry | None = None
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
            table[name] = entry
        # The end of the step.
        if not fits:
            # The old value is removed all the same, because it has been superseded.
            self._forget(name)
            return False
        if old is not None:
            size -= old.size + len(name) + OVERHEAD
        self._hot_bytes += size
        if old is None and self._cold is not None:
            self._cold.discard(name)
        if old is not entry:
            if old is not None and old.calls is not None:
                old.forget_calls()
            self._make_room(name, entry, old)
        if self.limits:
            self._keep_limit(name)
        self._collect()
        return self._table.get(name) is entry


def _pruned(entry: Entry) -> tuple[Calls, int]:
    """Return the chain of an entry without the dictionaries that have it no more, and how many may be added to it."""
    kept: Calls = None
    link, count = entry.calls, 0
    while link is not None:
        calls, key, link, _ = link
        if calls.get(key) is entry:
            kept, count = (calls, key, kept, 0), count + 1
    if count >= _CALLS:
        entry.forget_calls()
        return None, _ADDED
    # As many as there are, so that each addition costs the same on average.
    return kept, max(_ADDED, count)
