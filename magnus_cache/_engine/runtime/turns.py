"""Turns of an event loop: long work is done in steps, and other tasks on the loop run in between.

A worker thread would not be better: the codec holds the GIL while it works, so a loop would wait for the thread as
long, and for the interpreter's switch interval (5 ms) on top of that. Steps on the loop itself are shorter.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Generator
from typing import Final, TypeVar

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loops import check_loop

__all__ = ["PIECE", "SHARE", "STEP_BYTES", "Step", "at_once", "in_turns", "pieces", "turn"]

T = TypeVar("T")

SHARE: Final = 0.002
"""Seconds of one turn of a loop that all of our steps on it may take together."""

STEP_BYTES: Final = 32_768
"""Bytes of one step of a call for many values: about half a millisecond."""

PIECE: Final = 256
"""Items of a long list that are handled in one step."""

_EACH: Final = 512
"""Bytes that each value counts for beyond its own, for the fixed work."""

_PATIENCE: Final = 8
"""Turns that a step waits for other steps at most, so that none waits without end."""


class _Turn(threading.local):
    """The current turn of the loop that runs in this thread.

    :ivar loop: the loop, from our first step in the turn to its end; else None.
    :ivar until: monotonic seconds at which our share of it is used up.
    """

    loop: asyncio.AbstractEventLoop | None = None
    until = 0.0

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.until = monotonic() + SHARE
        # Callbacks run in order, so this ends our share at the end of the turn.
        loop.call_soon(self.end)

    def end(self) -> None:
        self.loop = None


_turn: Final = _Turn()


async def turn() -> None:
    """Return when there is time for another step: at once, or after other tasks have run.

    All our steps on one loop share the time, however many calls they belong to.

    :raises CacheLoopError: if no event loop of asyncio runs here.
    """
    check_loop()
    loop = asyncio.get_running_loop()
    for _ in range(_PATIENCE):
        if _turn.loop is not loop:
            _turn.begin(loop)
            return
        if monotonic() < _turn.until:
            return
        await asyncio.sleep(0)


async def in_turns(steps: Generator[None, None, T]) -> T:
    """Return the result of a generator of steps, with a turn between two steps.

    No turn precedes the first step: most values take one step, and if thousands of tasks have one step each, the turns
    would cost more than the steps.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await turn()


async def pieces(items: list[T]) -> AsyncGenerator[list[T]]:
    """Yield a long list piece by piece, each for one step, with a turn before each but the first."""
    for start in range(0, len(items), PIECE):
        if start:
            await turn()
        yield items[start : start + PIECE]


def at_once(steps: Generator[None, None, T]) -> T:
    """Return the result of a generator of steps, in a thread, which releases the GIL now and then.

    With the interpreter's switch interval alone, an event loop's thread was seen to wait for all steps together.
    """
    until = monotonic() + SHARE
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if monotonic() > until:
            time.sleep(0)
            until = monotonic() + SHARE


class Step:
    """Counts the bytes that a call has handled, to detect the end of a step."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = STEP_BYTES

    def done(self, size: int = 0) -> bool:
        """Return whether a value of this size was the last of a step; then `turn` is due."""
        self._left -= size + _EACH
        if self._left > 0:
            return False
        self._left = STEP_BYTES
        return True
