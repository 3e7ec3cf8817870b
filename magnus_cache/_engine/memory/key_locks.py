"""Locks by key: one compound step at a time on what this process holds of a key without Redis.

What the locks protect: a step on the fallback that looks, awaits and stores. A write whose connection was lost has
already removed the old value from memory, and asks Redis once more before it keeps the new one here. A touch, or a
load about to call its loader, that looks in between would find nothing although there is a value before and after. It
waits for the write instead.

What they do not protect: tasks of other loops and threads. Between those, `Memory` decides: a placeholder, or a
compare-and-replace, stores only if nothing else has changed the name since. So no lock is needed for a value to be
valid; it spares a caller a wrong "not there", and a load in vain. Hits take no lock.

Two rules keep them free of deadlocks. A task holds one at a time. None is held across a call into user code: a loader
may ask for any key, also for its own. A task that waits for a lock for too long goes ahead without it.
"""

import asyncio
from types import TracebackType
from typing import Final

from magnus_cache._engine.runtime.forks import watch
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop

__all__ = ["MOST_KEYS", "KeyLocks"]

MOST_KEYS: Final = 10_000
"""Keys of one loop that have a lock of their own at a time; further ones share locks."""

_STRIPES: Final = 64
"""Locks that further keys share."""


class KeyLocks:
    """Asyncio locks by key and event loop. Each exists only while a task holds it or waits for it.

    :param patience: seconds that a task waits for a lock; then it goes ahead without.
    :param most: keys of one loop that have a lock of their own at a time.
    """

    def __init__(self, patience: float, most: int = MOST_KEYS) -> None:
        self.patience = patience
        self._most = most
        self._loops: dict[asyncio.AbstractEventLoop, _LoopLocks] = {}
        watch(self)

    def __len__(self) -> int:
        """Return how many locks there are, on all loops."""
        return sum(len(locks) for locks in list(self._loops.values()))

    def hold(self, name: bytes) -> "_Hold":
        """Return the lock of a key on the running loop, for ``async with``.

        Cancelling a task that waits for it has no effect on the others.
        """
        return _Hold(self, name)

    def enter(self, loop: asyncio.AbstractEventLoop, name: bytes) -> "_Place":
        """Return the lock that stands for a name on a loop, with its count of users raised. For `_Hold`."""
        locks = self._loops.get(loop)
        if locks is None:
            # A loop that was closed while its tasks held locks never gives them back.
            for closed in [other for other in list(self._loops) if other.is_closed()]:
                self._loops.pop(closed, None)
            locks = self._loops[loop] = _LoopLocks()
        place = locks.get(name)
        if place is None:
            stripe = hash(name) % _STRIPES
            # A stripe in use may stand for this very name: also below the limit, it is used until it is free.
            place = locks.get(stripe)
            if place is None:
                key = name if len(locks) < self._most else stripe
                place = locks[key] = _Place(locks, key)
        place.users += 1
        return place

    def leave(self, loop: asyncio.AbstractEventLoop, place: "_Place") -> None:
        """Lower a lock's count of users; with the last one it is gone. For `_Hold`."""
        place.users -= 1
        if not place.users:
            locks = place.locks
            locks.pop(place.key, None)
            if not locks and self._loops.get(loop) is locks:
                del self._loops[loop]

    def after_fork(self) -> None:
        """Begin anew in a forked child: those who hold the parent's locks do not run here."""
        self._loops = {}


class _Place:
    """One lock in use."""

    __slots__ = ("key", "lock", "locks", "users")

    def __init__(self, locks: "_LoopLocks", key: bytes | int) -> None:
        self.lock = asyncio.Lock()
        self.locks = locks
        self.key = key
        self.users = 0


class _LoopLocks(dict[bytes | int, _Place]):
    """The locks of one loop: by name, and, past the limit, by the number of a stripe."""

    __slots__ = ()


class _Hold:
    """One task's use of a lock, for ``async with``."""

    __slots__ = ("_locks", "_loop", "_name", "_place")

    def __init__(self, locks: KeyLocks, name: bytes) -> None:
        self._locks = locks
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._place: _Place | None = None

    async def __aenter__(self) -> None:
        try:
            self._place = place = self._locks.enter(self._loop, self._name)
            if place.users == 1:
                await place.lock.acquire()
                return
            try:
                async with asyncio.timeout(self._locks.patience):
                    await place.lock.acquire()
            except TimeoutError:
                self._leave()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if running_loop() is self._loop:
            self._release()
        else:
            # The task was abandoned, and the collector ends its coroutine in some thread. If the loop is closed, the
            # lock ends with it.
            call_on_loop(self._loop, self._release)

    def _release(self) -> None:
        if self._place is not None:
            self._place.lock.release()
            self._leave()

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._locks.leave(self._loop, place)
