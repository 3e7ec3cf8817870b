"""Slots that limit how many blocking loaders run: of one namespace on one event loop, and of all together.

A namespace may take another slot while it has fewer than are left for all. Network switches share their memory among
ports by this rule ("dynamic thresholds", Choudhury and Hahne). One hanging source gets its full number of threads. The
more sources hang, the fewer threads each gets, and one is always left for a working source.
"""

import asyncio
import contextlib
import weakref
from collections import deque
from typing import Final

from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop

__all__ = ["MOST", "MOST_OF_ALL", "Lane", "LoaderSlots"]

MOST: Final = 40
"""Threads for one namespace on one event loop; anyio and others have as many in total."""

MOST_OF_ALL: Final = 256
"""Threads of one cache, whatever the number of its namespaces and event loops."""


class _Waiter:
    """A loader in the queue for a slot."""

    __slots__ = ("future", "granted", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.granted = False

    def grant(self) -> bool:
        """Grant a slot; return False if the loader's loop is closed. From any thread."""
        self.granted = True
        return call_on_loop(self.loop, self._grant)

    def _grant(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Lane:
    """The loaders of one namespace on one event loop.

    :ivar running: how many have a slot.
    :ivar waiting: the queue.
    """

    __slots__ = ("namespace", "running", "waiting")

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.running = 0
        self.waiting: deque[_Waiter] = deque()


class LoaderSlots:
    """The slots of one cache. All methods but `acquire` can be called from any thread.

    :param most: slots of one namespace on one event loop.
    :param most_of_all: slots of all namespaces on all event loops.
    :ivar running: how many are taken.
    """

    def __init__(self, most: int = MOST, most_of_all: int = MOST_OF_ALL) -> None:
        self._most = most
        self._most_of_all = most_of_all
        self.reset()

    def reset(self) -> None:
        """Start empty, as in a forked child, which has none of the threads."""
        self.running = 0
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Lane]] = weakref.WeakKeyDictionary()
        self._queue: deque[Lane] = deque()

    def lane(self, loop: asyncio.AbstractEventLoop, namespace: str) -> Lane | None:
        """Return the loaders of a namespace on a loop; None without any."""
        return self._lanes.get(loop, {}).get(namespace)

    async def acquire(self, namespace: str) -> None:
        """Wait for a slot on the running loop, to be given back through `release`."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop)
        with section():
            lane = self._lane(loop, namespace)
            if not lane.waiting and self._has_room(lane):
                self._take(lane)
                return
            lane.waiting.append(waiter)
            if len(lane.waiting) == 1:
                self._queue.append(lane)
        try:
            await waiter.future
        except BaseException:
            with section():
                if waiter.granted:
                    # It was granted just when the wait ended.
                    self.release(loop, namespace)
                else:
                    lane.waiting.remove(waiter)
                    self._forget(loop, lane)
            raise

    def release(self, loop: asyncio.AbstractEventLoop, namespace: str) -> None:
        """Release a slot for another loader."""
        with section():
            lane = self.lane(loop, namespace)
            if lane is not None and lane.running:
                lane.running -= 1
                self.running -= 1
                self._forget(loop, lane)
                self._hand_out()

    def acquire_now(self, loop: asyncio.AbstractEventLoop, namespace: str) -> None:
        """Take a released slot back at once: for a moment there may be more loaders than slots."""
        with section():
            self._take(self._lane(loop, namespace))

    # -- within the section ---------------------------------------------------------------------------------

    def _lane(self, loop: asyncio.AbstractEventLoop, namespace: str) -> Lane:
        return self._lanes.setdefault(loop, {}).setdefault(namespace, Lane(namespace))

    def _take(self, lane: Lane) -> None:
        lane.running += 1
        self.running += 1

    def _has_room(self, lane: Lane) -> bool:
        return lane.running < min(self._most, self._most_of_all - self.running)

    def _hand_out(self) -> None:
        """Visit each lane once: one slot has become free, so no lane gets more than one."""
        for _ in range(len(self._queue)):
            lane = self._queue.popleft()
            while lane.waiting and self._has_room(lane):
                if lane.waiting.popleft().grant():
                    self._take(lane)
                    break
            if lane.waiting:
                self._queue.append(lane)

    def _forget(self, loop: asyncio.AbstractEventLoop, lane: Lane) -> None:
        """Remove an empty lane, because the number of namespaces is not bounded."""
        if not lane.running and not lane.waiting:
            lanes = self._lanes.get(loop, {})
            if lanes.get(lane.namespace) is lane:
                del lanes[lane.namespace]
            with contextlib.suppress(ValueError):
                self._queue.remove(lane)
