"""`add`, `incr`, `decr` and `update`: operations that read a value and write it in one step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeVar, overload

from magnus_cache._engine.api.documented import documented_by
from magnus_cache._engine.api.life import AsyncLife, BlockingLife
from magnus_cache._engine.policy.calendars import Ttl
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import check_callable
from magnus_cache._engine.policy.tags import check_tags
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.store.atomic_writes import Change
from magnus_cache._engine.store.records import MISS, KeyRef
from magnus_cache._engine.store.updates import Update
from magnus_cache.errors import CacheArgumentError, CacheMissingError, CacheTypeError

__all__ = ["AsyncAtomic", "BlockingAtomic", "Offline"]

T = TypeVar("T")

Offline = Literal["local", "raise"]
"""What `incr` and `update` do while Redis is away: work on this process's memory, or raise."""


@readable
class AsyncAtomic(AsyncLife):
    """The atomic operations of a cache, for coroutines."""

    async def add(
        self, namespace: str, key: Any, value: Any, ttl: Ttl | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Store a value if there is none; return whether it is stored. Of several callers, one gets True.

        A value that has expired or was invalidated is none. While Redis is away, this process's memory decides, and
        what is added there is forgotten when Redis is back.

        :param ttl: seconds, a timedelta, text such as ``"5m"`` or a calendar; None for the namespace's.
        :param tags: names by which it can be invalidated together with other values.
        :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        :raises CacheValueTooLargeError: for a value larger than the namespace allows.
        """
        engine = self._engine
        ref = engine.reads.ref(namespace, key)
        life = engine.reads.life(ref, ttl)
        names, payload = check_tags(tags), await engine.reads.encode(ref, value)
        check_loop()
        self._state.check_open()
        if self._state.mode is Mode.DISABLED:
            return False
        added = await engine.writes.add(ref, value, payload, life, names)
        if added:
            _record(self, ref, "add")
        return added

    async def incr(
        self, namespace: str, key: Any, delta: int = 1, *, initial: int | None = None, ttl: Ttl | None = None,
        create: bool = True, offline: Offline = "raise",
    ) -> int:  # fmt: skip
        """Add a number to a counter and return the new number. Concurrent calls of all processes are all counted.

        A counter is a value that is an int: `get`, `set`, `delete`, `ttl`, `clear` and tags work on it.

        :param delta: what is added; it may be negative or 0.
        :param initial: the number that a counter starts from if there is none; None for 0.
        :param ttl: how long a new counter lives; None for the namespace's. A counter that exists keeps its end.
        :param create: whether to create a counter if there is none.
        :param offline: while Redis is away, ``"raise"`` an error, or count in this process alone (``"local"``): from
            the number that it knows, and only until Redis is back. Redis then continues from its own number.
        :raises CacheArgumentError: for a namespace, key, number, ttl or option that cannot be used.
        :raises CacheTypeError: if there is another value than an int.
        :raises CacheMissingError: if there is no counter, with ``create=False``.
        :raises CacheUnavailableError: if Redis does not answer or refuses. If its answer was lost, the call may have
            been counted; it is never repeated.
        """
        count = _Count(self, namespace, key, (delta, initial, ttl, create), offline)
        number = await _increment(self, count)
        _record(self, count.ref, "incr")
        return number

    async def decr(
        self, namespace: str, key: Any, delta: int = 1, *, initial: int | None = None, ttl: Ttl | None = None,
        create: bool = True, offline: Offline = "raise",
    ) -> int:  # fmt: skip
        """Subtract a number from a counter and return the new number, as `incr` adds one.

        :param delta: what is subtracted.
        :raises CacheArgumentError: as `incr` does.
        :raises CacheTypeError: as `incr` does.
        :raises CacheMissingError: as `incr` does.
        :raises CacheUnavailableError: as `incr` does.
        """
        count = _Count(self, namespace, key, (delta, initial, ttl, create), offline, sign=-1)
        number = await _increment(self, count)
        _record(self, count.ref, "decr")
        return number

    @overload
    async def update(
        self, namespace: str, key: Any, function: Callable[[Any], Awaitable[T]], *, default: Any = None,
        ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T: ...  # fmt: skip
    @overload
    async def update(
        self, namespace: str, key: Any, function: Callable[[Any], T], *, default: Any = None,
        ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T: ...  # fmt: skip
    async def update(
        self, namespace: str, key: Any, function: Callable[[Any], T] | Callable[[Any], Awaitable[T]], *,
        default: Any = None, ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T:  # fmt: skip
        """Change a stored value by a function and return the new value. No change of another caller is lost.

        The function gets the value and returns the new one. If another caller stores a value meanwhile, it is called
        again with that one, so it must not have effects of its own. Nothing is locked while it runs.

        :param function: a coroutine function, or a function, which runs in a worker thread.
        :param default: what the function gets if there is no value.
        :param ttl: the life of the new value; None for what the old one has left, or the namespace's if there is none.
        :param offline: while Redis is away, ``"raise"`` an error, or change what this process has (``"local"``). As
            after a `set` in an outage, Redis is then told that its value is outdated.
        :raises CacheArgumentError: for a namespace, key, function, ttl or option that cannot be used.
        :raises CacheConflictError: if other callers changed the value in each of many attempts.
        :raises CacheEncodeError: for a new value that cannot be stored, naming its type.
        :raises CacheUnavailableError: if Redis does not answer or refuses. If its answer was lost, the new value may be
            stored.
        :raises Exception: what the function raises; then nothing is stored.
        """
        ref, update = _prepared(self, (namespace, key), function, ttl, offline)
        engine, workers = self._engine, self._state.workers
        change: Callable[[Any], Any] = function
        # Threads of its own: a slow function takes none from the loaders of the namespace.
        threads = f"{ref.namespace} update"
        check_loop()
        self._state.check_open()
        if self._state.mode is Mode.DISABLED:
            result: T = await workers.call(partial(change, default), threads)
            await engine.reads.encode(ref, result)
            await engine.writes.remove((ref,))
            return result
        try:
            while True:
                value = await update.current()
                result = await workers.call(partial(change, default if value is MISS else value), threads)
                if await update.store(result, await engine.reads.encode(ref, result)):
                    _record(self, ref, "update")
                    return result
        finally:
            update.close()


@readable
@documented_by(AsyncAtomic)
class BlockingAtomic(BlockingLife):
    """The atomic operations of a cache, for blocking code."""

    def add(self, namespace: str, key: Any, value: Any, ttl: Ttl | None = None, tags: str | Iterable[str] = ()) -> bool:
        """Do what `AsyncAtomic.add` does, in blocking code."""
        engine = self._engine
        ref = engine.reads.ref(namespace, key)
        life = engine.reads.life(ref, ttl)
        names, payload = check_tags(tags), engine.reads.encoded(ref, value)
        self._state.check_open()
        if self._state.mode is Mode.DISABLED:
            return False
        try:
            added = self._state.portal.call(engine.writes.add, ref, value, payload, life, names)
        except NoThreadError as error:
            self._state.without_loop(error)
            return False
        if added:
            _record(self, ref, "add")
        return added

    def incr(
        self, namespace: str, key: Any, delta: int = 1, *, initial: int | None = None, ttl: Ttl | None = None,
        create: bool = True, offline: Offline = "raise",
    ) -> int:  # fmt: skip
        """Do what `AsyncAtomic.incr` does, in blocking code."""
        count = _Count(self, namespace, key, (delta, initial, ttl, create), offline)
        number = self._state.portal.call(_increment, self, count)
        _record(self, count.ref, "incr")
        return number

    def decr(
        self, namespace: str, key: Any, delta: int = 1, *, initial: int | None = None, ttl: Ttl | None = None,
        create: bool = True, offline: Offline = "raise",
    ) -> int:  # fmt: skip
        """Do what `AsyncAtomic.decr` does, in blocking code."""
        count = _Count(self, namespace, key, (delta, initial, ttl, create), offline, sign=-1)
        number = self._state.portal.call(_increment, self, count)
        _record(self, count.ref, "decr")
        return number

    @overload
    def update(
        self, namespace: str, key: Any, function: Callable[[Any], Awaitable[T]], *, default: Any = None,
        ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T: ...  # fmt: skip
    @overload
    def update(
        self, namespace: str, key: Any, function: Callable[[Any], T], *, default: Any = None,
        ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T: ...  # fmt: skip
    def update(
        self, namespace: str, key: Any, function: Callable[[Any], T] | Callable[[Any], Awaitable[T]], *,
        default: Any = None, ttl: Ttl | None = None, offline: Offline = "raise",
    ) -> T:  # fmt: skip
        """Do what `AsyncAtomic.update` does, in blocking code.

        :param function: a function, called in this thread, or a coroutine function, run on the background loop.
        """
        ref, update = _prepared(self, (namespace, key), function, ttl, offline)
        engine, portal = self._engine, self._state.portal
        self._state.check_open()

        def called(value: Any) -> Any:
            return engine.loads.called_blocking(partial(function, value))

        if self._state.mode is Mode.DISABLED:
            result: T = called(default)
            engine.reads.encoded(ref, result)
            engine.deferred.removed((ref,))
            return result
        try:
            while True:
                value = portal.call(update.current)
                result = called(default if value is MISS else value)
                if portal.call(update.store, result, engine.reads.encoded(ref, result)):
                    _record(self, ref, "update")
                    return result
        finally:
            # Not waited for: this thread may have been interrupted, or the cache closed.
            update.abandon()


_Atomic = AsyncAtomic | BlockingAtomic


class _Count:
    """The arguments of one `incr` or `decr`, checked."""

    __slots__ = ("change", "ref")

    def __init__(
        self, cache: _Atomic, namespace: str, key: Any, numbers: tuple[int, int | None, Ttl | None, bool],
        offline: str, *, sign: int = 1,
    ) -> None:  # fmt: skip
        cache._state.check_open()
        reads = cache._engine.reads
        self.ref = reads.ref(namespace, key)
        delta, initial, ttl, create = numbers
        for name, number in (("delta", delta), ("initial", initial)):
            if type(number) is not int and not (number is None and name == "initial"):
                raise CacheTypeError(name, f"an int is needed, not {type(number).__name__}")
        if not isinstance(create, bool):
            raise CacheTypeError("create", f"give True or False, not {type(create).__name__}")
        if not create and initial is not None:
            raise CacheArgumentError("initial", "with create=False no counter is created; leave initial out")
        life = reads.life(self.ref, ttl)
        self.change = Change(sign * delta, initial or 0, life, create, _is_local(offline))


async def _increment(cache: _Atomic, count: _Count) -> int:
    check_loop()
    change = count.change
    if cache._state.mode is Mode.DISABLED:
        # Nothing is stored, but the old number is outdated.
        await cache._engine.writes.remove((count.ref,))
        if not change.create:
            raise CacheMissingError(count.ref.namespace)
        return change.initial + change.delta
    return await cache._engine.writes.increment(count.ref, change)


def _record(cache: _Atomic, ref: KeyRef, operation: str) -> None:
    """Record in the history of a key that the program has changed its value."""
    if cache._state.mode is not Mode.DISABLED:
        cache._state.recorder.add_act(ref.name, "set", operation)


def _prepared(
    cache: _Atomic, place: tuple[str, Any], function: object, ttl: Ttl | None, offline: str
) -> tuple[KeyRef, Update]:  # fmt: skip
    check_callable(function, "function")
    engine = cache._engine
    ref = engine.reads.ref(*place)
    life = None if ttl is None else engine.reads.life(ref, ttl)
    return ref, Update(engine.writes, ref, life, local=_is_local(offline))


def _is_local(offline: object) -> bool:
    """:raises CacheArgumentError: unless it is one of the two words."""
    if offline not in ("local", "raise"):
        raise CacheArgumentError("offline", f'it is "local" or "raise", not {offline!r}')
    return offline == "local"
