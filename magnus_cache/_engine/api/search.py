"""One call for many keys: which of them have values, and which are to be loaded."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Final

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.loading.money import count_saved
from magnus_cache._engine.loading.request import BatchItem
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.costs import Cost
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.store.batch_keys import equal_keys, unhashable_key
from magnus_cache._engine.store.records import MISS
from magnus_cache._engine.store.stamps import Note
from magnus_cache.errors import CacheBatchEncodeError, CacheBatchError, CacheClosedError, CacheEncodeError

__all__ = ["Search"]

_STEP: Final = 64
"""Keys handled in one step of the event loop."""

_LOOKED_FOR: Final = 100
"""Keys that are read at a time."""


class Search:
    """The keys of a call, the values that were found, and the keys that are missing.

    :param saves: what each hit is to count as saved, or None.
    :ivar notes: gets a note of each value that is found, for a stamped call; None for other calls.
    """

    def __init__(self, engine: Engine, saves: Cost | None, *, fresh: bool) -> None:
        self._engine = engine
        self._saves = saves
        self.fresh = fresh or engine.state.mode is Mode.BYPASS
        self.keys: list[Any] = []
        # By name, so that two keys with the same name are loaded once.
        self.missing: dict[bytes, BatchItem] = {}
        self._names: dict[Any, bytes] = {}
        self._values: dict[bytes, Any] = {}
        self.stale: dict[bytes, Entry] = {}
        self.notes: dict[bytes, Note] | None = None

    def add(self, items: Iterable[BatchItem]) -> None:
        """Add keys to the call.

        :raises CacheTypeError: for a key that is not hashable.
        :raises CacheArgumentError: for a key that equals another key but has another name.
        """
        for item in items:
            name = item.ref.name
            self.keys.append(item.key)
            self.missing.setdefault(name, item)
            try:
                known = self._names.setdefault(item.key, name)
            except TypeError:
                raise unhashable_key() from None
            if known != name:
                raise equal_keys(item.key, sealed=item.ref.namespace.seal)

    def steps(self) -> Iterator[list[BatchItem]]:
        """Yield the items to read, some at a time."""
        wanted = [] if self.fresh else list(self.missing.values())
        for start in range(0, len(wanted), _LOOKED_FOR):
            yield wanted[start : start + _LOOKED_FOR]

    def found(self, item: BatchItem, entry: Entry | None, value: Any, *, near: bool) -> None:
        """Record the result for a key: its value, or MISS and the stale entry, if there is one."""
        name = item.ref.name
        item.ref.counters.count(hit=value is not MISS, near=near)
        if self._engine.state.observers.active:
            self._engine.state.observers.found(item.ref, hit=value is not MISS, near=near)
        if value is not MISS:
            if self._saves is not None:
                count_saved(item.ref.counters, self._saves, entry)
            self._values[name] = value
            del self.missing[name]
            if self.notes is not None and entry is not None:
                self._note(item, entry, near=near, stale=False)
        elif entry is not None and not entry.negative:
            self.stale[name] = entry
            if self.notes is not None:
                # If it is served after all; a load notes something else.
                self._note(item, entry, near=near, stale=True)

    def hits(
        self, step: Sequence[BatchItem], found: Sequence[tuple[Entry | None, bool]]
    ) -> Iterator[tuple[BatchItem, Entry | None]]:
        """Yield those of some items that have a value, with their entries."""
        return (
            (item, entry) for item, (entry, _) in zip(step, found, strict=True) if item.ref.name not in self.missing
        )

    def _stale_of(self, item: BatchItem) -> Entry | None:
        """Return the stale entry of a key, in case it is served; a stamped call notes it before that."""
        entry = self.stale.get(item.ref.name)
        if entry is None and self.notes is not None:
            # It was not found when it was looked for, as Redis is away. Afterwards, memory may have another one.
            entry = self._engine.stale.kept(item.ref)
            if entry is not None:
                self._note(item, entry, near=True, stale=entry.fresh_until <= self._engine.state.clock())
        return entry

    def _note(self, item: BatchItem, entry: Entry, *, near: bool, stale: bool) -> None:
        if self.notes is not None:
            self.notes[item.ref.name] = note = Note()
            note.found(entry, near=near or not self._engine.state.reaches(item.ref.name), stale=stale)

    def hold_back(self) -> Generator[None, None, None]:
        """Serve stale values, in steps, for keys whose load has just failed."""
        for count, (name, item) in enumerate(list(self.missing.items()), 1):
            if item.ref.freshness.grace:
                value = self._engine.stale.stale_while_throttled(item.ref, self._stale_of(item))
                if value is not MISS:
                    self._values[name] = value
                    del self.missing[name]
            if count % _STEP == 0:
                yield

    def _was_closed(self, errors: Iterable[Exception]) -> bool:
        """Return whether the keys failed because this cache was closed, not a cache that the loader uses."""
        return self._engine.state.closed and all(isinstance(error, CacheClosedError) for error in errors)

    def results(self, loaded: dict[bytes, Any], errors: dict[Any, Exception]) -> Generator[None, None, dict[Any, Any]]:
        """Return, in steps, the values by key, from the loaded values by name and the errors by key.

        :raises CacheBatchError: if some keys could not be loaded.
        :raises CacheClosedError: if this cache was closed meanwhile.
        :raises Exception: what the loader raised, if it was called for all keys without a value.
        """
        values = self._values | loaded
        for name, item in self.missing.items() if errors and not self.fresh else ():
            yield
            error = errors.get(item.key)
            if error is None:
                continue
            if (value := self._engine.stale.stale_on_error(item.ref, error, self._stale_of(item))) is not MISS:
                values[name] = value
                del errors[item.key]
        results = {key: values[name] for key, name in self._names.items() if name in values}
        if errors:
            first, *rest = errors.values()
            if len(errors) == len(self.missing) and all(error is first for error in rest):
                raise first
            if self._was_closed(errors.values()):
                # The error that one key raises, too. A function that follows the process-wide cache expects it.
                raise first
            if all(isinstance(error, CacheEncodeError) for error in errors.values()):
                raise CacheBatchEncodeError(results, errors) from first
            raise CacheBatchError(results, errors) from first
        return results
