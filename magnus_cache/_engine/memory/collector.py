"""The collector of dead entries: in small steps, as writes come.

It goes through the names round by round: those of the hot table first, then one shard of the cold store after another.
Of each part it takes the list of names when it comes to it, so what is added later is for the next round. An entry
that moves from a part to another is checked as it moves. So a clear is done with, and leaves the log, at the end of the
first round that has begun after it.
"""

from typing import Final

from magnus_cache._engine.memory.records import life_of
from magnus_cache._engine.memory.tiers import Tiers

__all__ = ["Collecting"]

_BATCH: Final = 16
"""Steps that the collector takes at a time."""

_STEPS: Final = 2
"""Steps due for each write. One would let dead entries pile up under alternating writes and removals."""

_BATCHES: Final = 16
"""Batches in a row at most, while a quarter of each is dead."""


class Collecting(Tiers):
    """The part of a local cache that removes what is dead and was not asked for.

    :ivar steps: names that the collector has visited.
    """

    __slots__ = ("_is_advancing", "_names", "_owed", "_part", "_round", "steps")

    def _start_over(self) -> None:
        """Begin the first round."""
        self._names: list[bytes] = []
        self._part = self._round = self._owed = self.steps = 0
        self._is_advancing = False

    def _collect(self) -> None:
        """Take the steps due for a write, and more where many entries are dead."""
        self._owed += _STEPS
        if self._owed >= _BATCH:
            self._owed = 0
            for _ in range(self._clears.bounded(_BATCHES)):
                if self._advance(_BATCH) * 4 < _BATCH:
                    break

    def _advance(self, limit: int) -> int:
        """Visit some names, each at most once or twice; return how many entries were removed.

        Within another call of it, nothing is done. It is a signal handler or a finalizer that comes in the midst of a
        step: a name that is about to be visited is no longer among the names, and what ended a round here would let a
        clear leave the log before that name's entry was compared with it.
        """
        if self._is_advancing:
            return 0
        self._is_advancing = True
        try:
            return self._visit_some(limit)
        finally:
            self._is_advancing = False

    def _visit_some(self, limit: int) -> int:
        now, removed, steps = self._clock(), 0, 0
        table, shards = self._table.get, () if self._cold is None else self._cold.shards
        # The names taken when this part began may be gone by now, so they come on top of those that are there.
        for _ in range(min(limit, len(self._names) + len(self))):
            if not self._names and not self._next_part():
                break
            try:
                name = self._names.pop()
            except IndexError:
                break  # A signal handler has emptied the memory in between.
            steps += 1
            # As `_visit` does for nearly all: an entry of the present generation that lives, or its record.
            entry = table(name)
            if entry is not None:
                if now < entry and entry.generation is self.generation:
                    continue
            elif shards and (record := shards[hash(name) % len(shards)].get(name)):
                deadline, generation = life_of(record)
                if now < deadline and generation == self.generation:
                    continue
            removed += self._visit(name, now)
        self.steps += steps
        self._clears.prune(self._round)
        return removed

    def _visit_all(self) -> bool:
        """Visit every name at once; return whether that was all, and no signal handler came in between."""
        steps, now = self.steps, self._clock()
        names = list(self._table)
        if self._cold is not None:
            for place in range(len(self._cold.shards)):
                names += self._cold.names(place)
        for name in names:
            self._visit(name, now)
        return steps == self.steps

    def _next_part(self) -> bool:
        """Go to the next part that has names; return whether there is one."""
        cold = self._cold
        parts = 1 if cold is None else 1 + len(cold.shards)
        for _ in range(parts):
            part = self._part
            self._part = (part + 1) % parts
            # The number of the round that begins or goes on with this part; the first round is number 1.
            self._round += part == 0
            if cold is None or part == 0:
                self._names = list(self._table)
            else:
                self._names = cold.names(part - 1)
            if self._names:
                return True
        return False

    def _visit(self, name: bytes, now: float) -> bool:
        """Remove the entry of a name if it is dead; return whether that was done."""
        entry, cold = self._table.get(name), self._cold
        if entry is not None:
            if now < entry.end and self._is_current(name, entry):
                return False
            removed = self._remove(name, entry)
        else:
            found = None if cold is None else cold.record(name)
            if cold is None or found is None:
                return False
            if found:
                deadline, generation = life_of(found)
                if now < deadline and generation == self.generation:
                    return False
            there = cold.entry(name)
            if there is None or (now < there[1].end and self._is_current(name, there[1])):
                return False
            entry = there[1]
            removed = self._discard(name)
        self.expirations += removed and now >= entry
        # The value's finalizer may call the cache. It runs when this returns, where the state is consistent.
        return removed
