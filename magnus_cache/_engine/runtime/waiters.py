"""The outcomes of a load, and the waiters that get them: tasks of any loop, or threads.

A flight passes its outcome to the waiters and does not keep it: the traceback of an error refers to frames that refer
to the flight, and the two would keep each other alive.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from magnus_cache._engine.runtime.loop_end import call_on_loop

__all__ = [
    "Abandoned",
    "Expired",
    "Failed",
    "Loaded",
    "LoopWaiter",
    "Outcome",
    "ThreadWaiter",
    "Waiter",
    "running_loop",
    "wake",
]


class Outcome(Protocol):
    """The outcome of a load."""

    def unwrap(self) -> Any:
        """Return the value or raise the error."""


class Loaded(NamedTuple):
    """The load returned a value."""

    value: Any

    def unwrap(self) -> Any:
        """Return the value."""
        return self.value


class Failed(NamedTuple):
    """The load raised an error, the same object for all callers."""

    error: BaseException
    traceback: TracebackType | None

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        try:
            # The original traceback for each caller; otherwise it would grow with every caller.
            raise self.error.with_traceback(self.traceback)
        finally:
            del self


class Abandoned(NamedTuple):
    """The load has no outcome: waiting callers try again; only the leader gets the cause."""

    cause: BaseException

    def unwrap(self) -> NoReturn:
        """Raise what ended the load."""
        try:
            raise self.cause
        finally:
            del self


class Expired:
    """The waiter's time is up."""

    def unwrap(self) -> NoReturn:
        """Raise `TimeoutError`."""
        raise TimeoutError


class LoopWaiter:
    """A waiting task; `tell` is called on its own loop only.

    :ivar told: to be awaited for the outcome, without a time limit.
    """

    __slots__ = ("loop", "told")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.told: asyncio.Future[Outcome] = loop.create_future()

    def tell(self, outcome: Outcome) -> None:
        """Wake the task; the first outcome counts."""
        if not self.told.done():
            self.told.set_result(outcome)

    async def wait(self, timeout: float) -> Outcome:
        """Return the outcome; `Expired` after `timeout` seconds."""
        timer = self.loop.call_later(max(0.0, timeout), self.tell, Expired())
        try:
            return await self.told
        finally:
            timer.cancel()


class ThreadWaiter:
    """A thread that waits, on a bare lock: cheaper than an event or a `concurrent.futures.Future`."""

    __slots__ = ("_lock", "_outcome", "_told")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._told = False
        self._outcome: Outcome = Expired()

    def tell(self, outcome: Outcome) -> None:
        """Wake the thread; the first outcome counts."""
        if not self._told:
            self._told = True
            self._outcome = outcome
            self._lock.release()

    def wait(self, timeout: float) -> Outcome:
        """Return the outcome; `Expired` after `timeout` seconds."""
        self._lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))
        # Cleared, because an error's traceback refers back to here.
        outcome, self._outcome = self._outcome, Expired()
        return outcome


Waiter = LoopWaiter | ThreadWaiter


def wake(waiters: Iterable[Waiter], outcome: Outcome) -> None:
    """Give all waiters the outcome, from any thread, with one wake for each loop."""
    tasks: dict[asyncio.AbstractEventLoop, list[LoopWaiter]] = {}
    for waiter in waiters:
        if isinstance(waiter, ThreadWaiter):
            waiter.tell(outcome)
        else:
            tasks.setdefault(waiter.loop, []).append(waiter)
    here = running_loop() if tasks else None
    for loop, waiters in tasks.items():
        if loop is here:
            _tell(waiters, outcome)
        else:
            # No task waits on a closed loop.
            call_on_loop(loop, _tell, waiters, outcome)


def _tell(waiters: list[LoopWaiter], outcome: Outcome) -> None:
    for waiter in waiters:
        waiter.tell(outcome)


running_loop: Final[Callable[[], asyncio.AbstractEventLoop | None]] = asyncio._get_running_loop
"""Returns the event loop that runs in this thread, or None."""
