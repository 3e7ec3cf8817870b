"""`changes`: iterators over what changed in a namespace, for coroutines and for blocking code."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.scanning import keys_by_name
from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.feeds import Change, Feed
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.turns import turn
from magnus_cache.errors import CacheArgumentError, CacheSettingsError, CacheTypeError

__all__ = ["MOST_WAITING", "AsyncChanges", "Changes", "async_changes", "blocking_changes"]

MOST_WAITING: Final = 10_000
"""Changes that wait for a consumer at most, by default: a megabyte or two."""

_LONGEST_WAIT: Final = 3_600.0
"""Seconds of one wait of a thread; then it looks at its clock again."""


class _Consumer:
    """The common part of both iterators.

    :ivar namespace: whose changes it yields.
    """

    def __init__(self, engine: Engine, feed: Feed) -> None:
        # The engine, not only its state: it is closed when it is collected.
        self._engine = engine
        self._feed = feed
        self._entered = False
        self.namespace = feed.namespace

    def __repr__(self) -> str:
        state = "closed" if self.closed else "watching" if self.watching else "not watching"
        return f"<changes of {self.namespace!r}, {state}, {len(self._feed)} waiting>"

    @property
    def watching(self) -> bool:
        """Whether changes of other processes arrive now: False before the start, and while Redis is away."""
        return self._feed.watching

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its cache: then it yields nothing any more."""
        return self._feed.ended

    def _close(self) -> None:
        self._engine.state.changes.remove(self._feed)

    def _enter(self) -> None:
        """Begin to watch, at the first call.

        :raises CacheClosedError: if the cache is closed.
        """
        if not self._entered and not self.closed:
            self._entered = True
            self._engine.state.changes.add(self._feed)

    def _taken(self) -> Change | None:
        """Return the change that waits for longest; None if there is none yet, or none will come.

        :raises CacheUnavailableError: if Redis refuses to announce changes.
        """
        change = self._feed.take()
        if change is None and self.closed and self._feed.error is not None:
            raise self._feed.error.again()
        return change

    def __del__(self) -> None:
        # It may be half made, or the interpreter may be about to end.
        if getattr(self, "_entered", False):
            self._close()


class AsyncChanges(_Consumer):
    """What changed in a namespace, anywhere in the fleet, as an async iterator; see `AsyncCacheManager.changes`.

    ``async with`` returns once it is watching, so what changes from then on is told. It ends when it is closed, or its
    cache is.
    """

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        await self._start()
        # Other tasks get their turn although changes are always waiting.
        await turn()
        while (change := self._taken()) is None:
            if self.closed:
                raise StopAsyncIteration
            await self._wait(started=True)
        return change

    async def aclose(self) -> None:
        """Stop watching. The last consumer of the process closes the connection. Idempotent."""
        self._close()

    async def _start(self) -> None:
        check_loop()
        self._enter()
        while not (self._feed.ready or self.closed):
            await self._wait(started=False)

    async def _wait(self, *, started: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        wake = partial(call_on_loop, loop, _settle, future)
        if self._feed.wait(wake, started=started):
            try:
                await future
            finally:
                self._feed.forget(wake)


class Changes(_Consumer):
    """What changed in a namespace, anywhere in the fleet, as a blocking iterator; see `CacheManager.changes`.

    ``with`` returns once it is watching, so what changes from then on is told. An iteration ends when nothing has
    changed for `timeout` seconds, and another one goes on from there; the last one ends when the iterator is closed, or
    its cache is.
    """

    def __init__(self, engine: Engine, feed: Feed, timeout: float | None) -> None:
        super().__init__(engine, feed)
        self._timeout = math.inf if timeout is None else timeout
        self._clock: Clock = engine.state.clock

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        self._start()
        until = self._clock() + self._timeout
        while (change := self._taken()) is None:
            left = until - self._clock()
            if self.closed or left <= 0:
                raise StopIteration
            self._wait(left, started=True)
        return change

    def close(self) -> None:
        """Stop watching. The last consumer of the process closes the connection. Idempotent."""
        self._close()

    def _start(self) -> None:
        if self._entered and (self._feed.ready or self.closed):
            return
        self._engine.state.portal.check_thread()
        self._enter()
        while not (self._feed.ready or self.closed):
            self._wait(_LONGEST_WAIT, started=False)

    def _wait(self, left: float, *, started: bool) -> None:
        self._engine.state.portal.check_thread()
        # A bare lock: Ctrl-C interrupts the wait for it, and any thread may release it.
        lock = threading.Lock()
        lock.acquire()
        wake = partial(_release, lock)
        if self._feed.wait(wake, started=started):
            try:
                lock.acquire(timeout=min(left, _LONGEST_WAIT))
            finally:
                self._feed.forget(wake)


def async_changes(
    engine: Engine, namespace: str, match: str, keys: Iterable[Any] | None, max_waiting: int
) -> AsyncChanges:
    """Return an iterator for coroutines; see `AsyncCacheManager.changes`.

    :raises CacheArgumentError: as there.
    :raises CacheSettingsError: as there.
    """
    return AsyncChanges(engine, _feed(engine, namespace, match, keys, max_waiting))


def blocking_changes(
    engine: Engine, namespace: str, match: str, keys: Iterable[Any] | None, timeout: Duration | None, max_waiting: int
) -> Changes:
    """Return an iterator for threads; see `CacheManager.changes`.

    :raises CacheArgumentError: as there.
    :raises CacheSettingsError: as there.
    """
    limit = None if timeout is None else seconds(timeout, "timeout", zero=True)
    return Changes(engine, _feed(engine, namespace, match, keys, max_waiting), limit)


def _feed(engine: Engine, namespace: str, match: str, keys: Iterable[Any] | None, max_waiting: int) -> Feed:
    state = engine.state
    state.check_open()
    if state.endpoint is not None and state.settings.tracking == "off":
        raise CacheSettingsError(
            'tracking="off" has Redis announce nothing, so no change can be told; set tracking (MAGNUS_CACHE_TRACKING) '
            'to "keys" or "prefix"'
        )
    if type(max_waiting) is not int or max_waiting < 1:
        raise CacheArgumentError("max_waiting", f"it is a number of changes, 1 or more, not {max_waiting!r}")
    name = check_name(namespace)
    policy = state.namespaces.resolve(namespace)
    key_of = _by_keys(engine, namespace, keys) if keys is not None else keys_by_name(engine, namespace, match)[1]
    if keys is not None and match != "*":
        raise CacheArgumentError("match", "give either keys or match, not both")
    return Feed(name, max_waiting, key_of, local=policy.local)


def _by_keys(engine: Engine, namespace: str, keys: Iterable[Any]) -> Callable[[bytes], Any]:
    if isinstance(keys, str | bytes):
        raise CacheTypeError("keys", "an iterable of keys is needed, not a single text; put it into a list")
    try:
        several = list(keys)
    except TypeError:
        raise CacheTypeError("keys", f"an iterable of keys is needed, not {type(keys).__name__}") from None
    wanted: dict[bytes, Any] = {}
    for key in several:
        try:
            hash(key)
        except TypeError:
            raise CacheTypeError("keys", f"a key to watch must be hashable, unlike {type(key).__name__}") from None
        for ref in engine.reads.ref(namespace, key).each():
            wanted[ref.name] = key
    return wanted.get


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _release(lock: threading.Lock) -> None:
    # Called once at most.
    lock.release()
