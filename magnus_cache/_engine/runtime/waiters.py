"""How a flight tells those who wait: the outcomes of a load, and waiters that are tasks of any loop or threads.

An outcome is handed to the waiters and not kept by the flight: the traceback of an error refers to the frames that
know the flight, and the two would keep each other alive.
"""

import asyncio
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

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
    """What became of a load."""

    def unwrap(self) -> Any:
        """Return the value or raise the error."""


class Loaded(NamedTuple):
    """There is a value."""

    value: Any

    def unwrap(self) -> Any:
        """Return the value."""
        return self.value


class Failed(NamedTuple):
    """There is an error, the same object for everybody."""

    error: BaseException
    traceback: TracebackType | None

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        try:
            # Its own traceback again for each caller: without that, it would grow with every one.
            raise self.error.with_traceback(self.traceback)
        finally:
            del self


class Abandoned(NamedTuple):
    """There is no outcome: whoever waits tries anew; the cause is the leader's alone."""

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
    """A task that waits; told on its own loop only."""

    __slots__ = ("_future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._future: asyncio.Future[Outcome] = loop.create_future()

    def tell(self, outcome: Outcome) -> None:
        """Wake the task; the first outcome counts."""
        if not self._future.done():
            self._future.set_result(outcome)

    async def wait(self, timeout: float | None) -> Outcome:
        """Return the outcome; `Expired` after `timeout` seconds (None: never)."""
        if timeout is None:
            return await self._future
        timer = self.loop.call_later(max(0.0, timeout), self.tell, Expired())
        try:
            return await self._future
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
        # Emptied, as an error's traceback leads back to here.
        outcome, self._outcome = self._outcome, Expired()
        return outcome


Waiter = LoopWaiter | ThreadWaiter


def wake(crew: Iterable[Waiter], outcome: Outcome) -> None:
    """Tell all waiters from any thread, with one wake for each loop."""
    tasks: dict[asyncio.AbstractEventLoop, list[LoopWaiter]] = {}
    for waiter in crew:
        if isinstance(waiter, ThreadWaiter):
            waiter.tell(outcome)
        else:
            tasks.setdefault(waiter.loop, []).append(waiter)
    here = running_loop() if tasks else None
    for loop, waiters in tasks.items():
        if loop is here:
            _tell(waiters, outcome)
        else:
            # On a closed loop nobody is left to be told.
            call_on_loop(loop, _tell, waiters, outcome)


def _tell(waiters: list[LoopWaiter], outcome: Outcome) -> None:
    for waiter in waiters:
        waiter.tell(outcome)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that this very thread is running, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
