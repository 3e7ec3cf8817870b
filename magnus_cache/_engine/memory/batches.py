"""Many names at once in the local cache: the same as name by name, with the lock taken once.

The caller bounds how many names there are. An interrupt (Ctrl-C) between two of them leaves those before it done and
those after it undone, as between two calls.
"""

from collections.abc import Iterable, Sequence

from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.store import LocalCache

__all__ = ["BatchCache"]


class BatchCache(LocalCache):
    """A `LocalCache` with operations on many names."""

    __slots__ = ()

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
        """Store entries whose names nothing has changed since, as `fill` does; return for each whether it is stored."""
        fill = self.fill
        with self._lock:
            return [fill(placeholder, entry) for placeholder, entry in zip(placeholders, entries, strict=True)]

    def drop_many(self, placeholders: Iterable[Placeholder]) -> None:
        """Remove the entries of names whose values no longer exist, as `drop` does."""
        drop = self.drop
        with self._lock:
            for placeholder in placeholders:
                drop(placeholder)

    def invalidate_many(self, names: Sequence[bytes]) -> None:
        """Remove the entries of names and void their placeholders, as `invalidate` does."""
        table, cold = self._table, self._cold
        with self._lock:
            for name in names:
                self._pending.pop(name, None)
                # As in `_forget`: most names have nothing here.
                if (name in table or (cold is not None and name in cold)) and self._forget(name):
                    self._collect()
