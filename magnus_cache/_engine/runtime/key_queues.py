"""Queues by key: callers that would otherwise compete for a key take turns, each for a short time at most.

Not a lock: a turn that takes too long passes to the next caller, and both run. So nothing depends on a turn, and a
caller that hangs in its turn holds up the others for `MOST` only. What the callers do must be right without turns.
"""

import asyncio
from collections import deque
from typing import Final

from magnus_cache._engine.runtime.forks import on_fork_child

__all__ = ["MOST", "KeyQueues", "Turn"]

MOST: Final = 0.1
"""Seconds of the longest turn while others wait."""


class KeyQueues:
    """The queues of one cache, by event loop and key. A queue exists only while a caller has a turn."""

    def __init__(self, most: float = MOST) -> None:
        self._most = most
        self._queues: dict[tuple[asyncio.AbstractEventLoop, bytes], _Queue] = {}
        on_fork_child(self)

    def __len__(self) -> int:
        """Return the number of queues on all loops."""
        return len(self._queues)

    def after_fork(self) -> None:
        """Start empty in a forked child: the tasks that have a turn do not run here."""
        self._queues = {}

    async def turn(self, name: bytes) -> "Turn":
        """Return a turn at a key on the running loop, when it has come; end it with `Turn.end`.

        Cancelling a task that waits has no effect on the others.
        """
        loop = asyncio.get_running_loop()
        key = loop, name
        queue = self._queues.get(key)
        if queue is None:
            # A loop that was closed while its tasks had turns never ends them.
            for other in [other for other in list(self._queues) if other[0].is_closed()]:
                self._queues.pop(other, None)
            queue = self._queues[key] = _Queue(self._most, loop)
        turn = Turn(self, key, queue)
        if queue.current is None:
            queue.current = turn
            return turn
        queue.waiting.append(turn)
        queue.limit()
        try:
            await turn.begun
        except BaseException:
            turn.end()
            raise
        return turn

    def ended(self, key: tuple[asyncio.AbstractEventLoop, bytes], queue: "_Queue") -> None:
        """Forget an empty queue. For `Turn`."""
        if self._queues.get(key) is queue:
            del self._queues[key]


class _Queue:
    """The turns at one key.

    :ivar current: whose turn it is.
    """

    __slots__ = ("_loop", "_most", "_timer", "current", "waiting")

    def __init__(self, most: float, loop: asyncio.AbstractEventLoop) -> None:
        self.current: Turn | None = None
        self.waiting: deque[Turn] = deque()
        self._most = most
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> None:
        """Limit the present turn, because others wait."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._most, self.next)

    def next(self) -> None:
        """Begin the next turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.current = None
        while self.waiting and self.current is None:
            turn = self.waiting.popleft()
            if not turn.begun.done():
                self.current = turn
                turn.begun.set_result(None)
        if self.waiting:
            self.limit()


class Turn:
    """One caller's turn at a key.

    :ivar begun: done when it begins.
    """

    __slots__ = ("_key", "_queue", "_queues", "begun")

    def __init__(self, queues: KeyQueues, key: tuple[asyncio.AbstractEventLoop, bytes], queue: _Queue) -> None:
        self._queues = queues
        self._key = key
        self._queue = queue
        self.begun: asyncio.Future[None] = key[0].create_future()

    @property
    def lasts(self) -> bool:
        """Whether it has not passed on."""
        return self._queue.current is self

    def end(self) -> None:
        """Let the next caller begin; does nothing for a turn that has passed on already. On its loop only."""
        queue = self._queue
        self.begun.cancel()
        if queue.current is self:
            queue.next()
        if queue.current is None:
            self._queues.ended(self._key, queue)
