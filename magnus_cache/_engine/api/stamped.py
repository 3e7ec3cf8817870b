"""Stamped reads: `get`, `get_many` and the batch forms, with `stamped=True`. See `store/stamps`.

Each is a path of its own beside the plain one, which so pays nothing for it. What it serves, counts and loads is the
same.
"""

from collections.abc import Sequence
from typing import Any

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.many import load_many, load_many_blocking
from magnus_cache._engine.loading.request import BatchRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.reads_many import found_many, found_many_blocking, names_of
from magnus_cache._engine.store.records import MISS, Began, KeyRef
from magnus_cache._engine.store.stamps import Note, Stamped
from magnus_cache.errors import CacheBatchError

__all__ = [
    "get_many_stamped",
    "get_many_stamped_blocking",
    "get_stamped",
    "get_stamped_blocking",
    "load_many_stamped",
    "load_many_stamped_blocking",
]


async def get_stamped(engine: Engine, namespace: str, key: Any, default: Any) -> Any:
    """Return the stored value with its stamp, or `default` as it is; see `AsyncCache.get`."""
    reads, state = engine.reads, engine.state
    ref = reads.ref(namespace, key).with_entry()
    if state.mode is not Mode.NORMAL:
        return default
    near = state.memory.hit(ref.name)
    entry = await reads.read(ref) if near is None else near
    value = MISS if entry is None else await reads.open(ref, entry)
    return _counted(engine, ref, entry, value, near=near is not None, default=default)


def get_stamped_blocking(engine: Engine, namespace: str, key: Any, default: Any) -> Any:
    """Return the same as `get_stamped`, for a blocking caller."""
    reads, state = engine.reads, engine.state
    ref = reads.ref(namespace, key).with_entry()
    if state.mode is not Mode.NORMAL:
        return default
    near = state.memory.hit(ref.name)
    found = reads.read_blocking(ref) if near is None else near
    # Only a read of what is far gives a payload alone.
    entry = None if isinstance(found, bytes) else found
    return _counted(engine, ref, entry, reads.opened(ref, entry), near=near is not None, default=default)


def _counted(engine: Engine, ref: KeyRef, entry: Entry | None, value: Any, *, near: bool, default: Any) -> Any:
    """Count a look-up, and return its value with a stamp, or the default."""
    hit, observers = entry is not None and value is not MISS, engine.state.observers
    ref.counters.count(hit=hit, near=near)
    if observers.active:
        observers.found(ref, hit=hit, near=near)
    return _stamped(engine, ref, value, entry, near=near) if hit and entry is not None else default


def _stamped(engine: Engine, ref: KeyRef, value: Any, entry: Entry, *, near: bool) -> Stamped[Any]:
    # In an outage it comes from memory, however it was asked for.
    note = Note.of(entry, near=near or not engine.state.reaches(ref.name))
    return note.stamped(value, engine.state, ref.name)


# -- many values ----------------------------------------------------------------------------------------------------


async def get_many_stamped(engine: Engine, namespace: str, keys: Sequence[Any]) -> dict[Any, Stamped[Any]]:
    """Return the stored values with their stamps by key; see `AsyncCache.get_many`."""
    refs = RefMaker(engine.reads, namespace)
    names = await names_of(refs, keys)
    if engine.state.mode is not Mode.NORMAL:
        return {}
    return await found_many(engine.reads, refs, keys, names, lambda *found: _of_many(engine, *found))


def get_many_stamped_blocking(engine: Engine, namespace: str, keys: Sequence[Any]) -> dict[Any, Stamped[Any]]:
    """Return the same as `get_many_stamped`, for a blocking caller."""
    refs = RefMaker(engine.reads, namespace)
    names = list(map(refs.name, keys))
    if engine.state.mode is not Mode.NORMAL:
        return {}
    return found_many_blocking(engine.reads, refs, keys, names, lambda *found: _of_many(engine, *found))


def _of_many(engine: Engine, ref: KeyRef, value: Any, entry: Entry, near: bool) -> Stamped[Any]:
    return _stamped(engine, ref, value, entry, near=near)


async def load_many_stamped(engine: Engine, request: BatchRequest) -> dict[Any, Stamped[Any]]:
    """Return values with their stamps by key, as `load_many` returns the values.

    :raises CacheBatchError: as `load_many` does; it has the values of the others with their stamps.
    :raises Exception: as `load_many` does.
    """
    stamps = _Stamps(engine, request)
    try:
        return stamps.on(await load_many(engine, stamps.request))
    except CacheBatchError as error:
        stamps.on_error(error)
        raise


def load_many_stamped_blocking(engine: Engine, request: BatchRequest) -> dict[Any, Stamped[Any]]:
    """Return the same as `load_many_stamped`, for a blocking caller.

    :raises CacheBatchError: as `load_many_stamped` does.
    :raises Exception: as `load_many` does.
    """
    stamps = _Stamps(engine, request)
    try:
        return stamps.on(load_many_blocking(engine, stamps.request))
    except CacheBatchError as error:
        stamps.on_error(error)
        raise


class _Stamps:
    """The notes of one call for many keys."""

    def __init__(self, engine: Engine, request: BatchRequest) -> None:
        self._engine = engine
        self._began = Began(engine.state.clock())
        self._notes: dict[bytes, Note] = {}
        self.request = request._replace(notes=self._notes)

    def on(self, values: dict[Any, Any]) -> dict[Any, Stamped[Any]]:
        """Return values with their stamps."""
        locate, notes, state = self.request.locate, self._notes, self._engine.state
        stamped: dict[Any, Stamped[Any]] = {}
        for key, value in values.items():
            name = locate(key).ref.name
            note = notes.get(name)
            if note is None:
                # Loaded without the cache.
                note = Note()
                note.loaded(self._began)
            stamped[key] = note.stamped(value, state, name)
        return stamped

    def on_error(self, error: CacheBatchError) -> None:
        """Put stamps on the values that an error has."""
        error.results = self.on(error.results)
