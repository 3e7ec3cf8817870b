"""Locks by key: one compound step at a time on the local value of a key while Redis is away.

The locks protect a step on the fallback that looks, awaits and stores. A write whose connection was lost has already
removed the old value from memory, and asks Redis once more before it keeps the new one here. A touch, or a load that
is about to call its loader, would find nothing in between, although a value exists before and after. It waits for the
write instead.

The locks do not protect against tasks of other loops or threads. Between those, `LocalCache` decides: a placeholder,
or a compare-and-replace, stores only if nothing else has changed the name since. So values are valid without any lock.
The lock saves a caller a wrong "not there", and a needless load. Hits take no lock.

Two rules prevent deadlocks. A task holds one lock at a time. No lock is held across a call into user code, because a
loader may ask for any key, including its own. A task that waits too long for a lock continues without it.
"""

import asyncio
from types import TracebackType
from typing import Final

from magnus_cache._engine.runtime.forks import on_fork_child
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import running_loop

__all__ = ["MOST_KEYS", "KeyLocks"]

MOST_KEYS: Final = 10_000
"""Keys of one loop that have their own lock at a time; further keys share locks."""

_STRIPES: Final = 64
"""Locks that further keys share."""


class KeyLocks:
    """Asyncio locks by key and event loop. Each exists only while a task holds it or waits for it.

    :param max_wait: seconds that a task waits for a lock; then it continues without it.
    :param most: keys of one loop that have their own lock at a time.
    """

    def __init__(self, max_wait: float, most: int = MOST_KEYS) -> None:
        self.max_wait = max_wait
        self._most = most
        self._loops: dict[asyncio.AbstractEventLoop, _LoopLocks] = {}
        on_fork_child(self)

    def __len__(self) -> int:
        """Return the number of locks on all loops."""
        return sum(len(locks) for locks in list(self._loops.values()))

    def hold(self, name: bytes) -> "_Hold":
        """Return the lock of a key on the running loop, for ``async with``.

        Cancelling a task that waits for it has no effect on the others.
        """
        return _Hold(self, name)

    def enter(self, loop: asyncio.AbstractEventLoop, name: bytes) -> "_Place":
        """Return the lock of a name on a loop, with its count of users raised. For `_Hold`."""
        locks = self._loops.get(loop)
        if locks is None:
            # A loop that was closed while its tasks held locks never releases them.
            for closed in [other for other in list(self._loops) if other.is_closed()]:
                self._loops.pop(closed, None)
            locks = self._loops[loop] = _LoopLocks()
        place = locks.get(name)
        if place is None:
            stripe = hash(name) % _STRIPES
            # A shared lock in use may be this very name's: even below the limit, it is used until it is free.
            place = locks.get(stripe)
            if place is None:
                key = name if len(locks) < self._most else stripe
                place = locks[key] = _Place(locks, key)
        place.users += 1
        return place

    def leave(self, loop: asyncio.AbstractEventLoop, place: "_Place") -> None:
        """Lower a lock's count of users, and remove the lock after the last one. For `_Hold`."""
        place.users -= 1
        if not place.users:
            locks = place.locks
            locks.pop(place.key, None)
            if not locks and self._loops.get(loop) is locks:
                del self._loops[loop]

    def after_fork(self) -> None:
        """Start empty in a forked child: the tasks that hold the parent's locks do not run here."""
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
    """The locks of one loop: by name, and past the limit by the number of a shared lock."""

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
                async with asyncio.timeout(self._locks.max_wait):
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
            # The task was abandoned, and the garbage collector closes its coroutine in some thread. If the loop is
            # closed, the lock ends with it.
            call_on_loop(self._loop, self._release)

    def _release(self) -> None:
        if self._place is not None:
            self._place.lock.release()
            self._leave()

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._locks.leave(self._loop, place)
