"""One life of the background event loop: its thread, its inbox that wakes it once for many calls, and who waits.

A caller leaves its request in a deque and wakes the loop unless the wake of another thread is still on its way; the
loop then serves all that has come.
"""

import asyncio
import concurrent.futures.thread
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from magnus_cache._engine.runtime.critical import check_waiting
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.portal_waiter import Waiter
from magnus_cache.errors import CacheClosedError, CacheDeadlockError, CacheError, CacheUnavailableError

__all__ = ["THREAD_NAME", "NoThreadError", "PortalThread", "Request", "check_files", "closed_error", "deadlock_error"]

T = TypeVar("T")

THREAD_NAME: Final = "magnus-cache-portal"

Request: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]
"""A callback and its arguments."""


_IMPORTED: Final = concurrent.futures.thread
"""While the program ends it cannot be imported for the first time, as redis-py does."""

_FILES: Final = 8
"""Files that an event loop opens, and a few to work with."""


class NoThreadError(CacheUnavailableError, RuntimeError):
    """There is no background loop, and none can be started; callers get the fallback, as when Redis is away.

    A `RuntimeError` like the one that Python raises for it.
    """


class PortalThread:
    """One life of the loop: its thread, its inbox, and who waits for it.

    :param early: what is to be called first of all.
    """

    def __init__(self, early: deque[Request]) -> None:
        self._early = early
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        # Whoever waits for the end in `aclose` may be cancelled, the end itself may not.
        self.ended.set_running_or_notify_cancel()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.over = False
        # A context of its own: what the loop starts for everybody must not run as part of the caller who came first.
        self._context = Context()
        self.thread = threading.Thread(
            target=partial(self._context.copy().run, self._serve), name=THREAD_NAME, daemon=True
        )
        self._inbox: deque[Request] = deque()
        self._stop: asyncio.Future[None] | None = None
        self._tasks: dict[Waiter[Any], asyncio.Task[None]] = {}
        self._waiting: set[Waiter[Any]] = set()
        # The wake of the loop that is on its way, with the thread that is about to send it.
        self._wake: list[int] | None = None
        self.starter = threading.get_ident()

    def start(self) -> None:
        """Start the thread and return when its loop runs.

        :raises CacheClosedError: if it was to end meanwhile.
        :raises NoThreadError: if the system, or the end of the interpreter, allows no more threads or open files.
        """
        try:
            if self.over:
                raise closed_error()
            self.thread.start()
            self.ready.result()
        except BaseException as error:
            # An interrupted start leaves no thread behind, nor anybody who waits for it.
            self.give_up(error)
            if not isinstance(error, RuntimeError | OSError) or isinstance(error, RecursionError | CacheError):
                raise
            raise NoThreadError("no_thread", f"the cache's background thread cannot be started ({error})") from error

    def give_up(self, error: BaseException) -> None:
        """End before or while it starts, and tell those who wait for that."""
        self.end()
        self._ready(error)

    def _ready(self, error: BaseException | None) -> None:
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.ready.set_result(None)
            else:
                self.ready.set_exception(error)

    def end(self) -> None:
        """Refuse what comes from now on, and ask the loop to end; its thread follows."""
        self.over = True
        if self.loop is not None and self._stop is not None:
            call_on_loop(self.loop, _finish, self._stop)

    # -- in the callers' threads ------------------------------------------------------------------------------

    def exchange(
        self, waiter: Waiter[T], callback: Callable[..., object], args: tuple[Any, ...], timeout: float | None
    ) -> T:
        """Run a callback on the loop and wait for what the waiter is told."""
        if threading.get_ident() == self.thread.ident:
            raise deadlock_error()
        check_waiting()
        try:
            self._waiting.add(waiter)
            self.post(callback, args)
            return waiter.wait(timeout)
        except BaseException:
            # Too late, or interrupted (Ctrl-C): nobody wants the answer any more.
            if waiter.give_up():
                with contextlib.suppress(CacheClosedError):
                    self.post(self._cancel, (waiter,))
            raise
        finally:
            self._waiting.discard(waiter)

    def post(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Leave a callback in the inbox; wake the loop unless a wake is on its way.

        :raises CacheClosedError: if the loop is ending; the callback may or may not run.
        """
        self._inbox.append((callback, args))
        # After the append and after the caller joined `_waiting`: whoever passes here before the end began is seen by
        # `_reject_waiting`, whoever comes later sees the flag.
        if self.over or self.loop is None:
            raise closed_error()
        me, wake = threading.get_ident(), self._wake
        # One that this thread has not sent yet does not count: a signal handler, or a finalizer, has come in between.
        if wake is None or me in wake:
            try:
                self._wake = wake = [me]
                self.loop.call_soon_threadsafe(self._drain, context=self._context)
                wake.clear()
            except BaseException as error:
                # Interrupted in between (Ctrl-C), the wake may be lost: the next caller has to make its own.
                self._wake = None
                # Not every RuntimeError says so: one is the RecursionError of a caller deep in its stack.
                if isinstance(error, RuntimeError) and self.loop.is_closed():
                    raise closed_error() from error
                raise

    # -- on the loop ------------------------------------------------------------------------------------------

    def begin(
        self, waiter: Waiter[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], context: Context
    ) -> None:
        """Start a caller's coroutine function as a task in its caller's context."""
        if waiter.done():
            return
        if self.over:
            waiter.set_exception(closed_error())
            return
        task = asyncio.get_running_loop().create_task(self._run(waiter, fn, args), context=context)
        if not task.done():  # an eager task may have ended at once
            self._tasks[waiter] = task

    def ask(self, waiter: Waiter[T], start: Callable[[Waiter[T]], object]) -> None:
        """Start a caller's request."""
        try:
            if self.over:
                raise closed_error()
            if not waiter.done():
                start(waiter)
        except BaseException as error:  # noqa: BLE001  # the caller's, in the caller's thread
            waiter.set_exception(error)

    async def _run(self, waiter: Waiter[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            waiter.set_result(await fn(*args))
        except asyncio.CancelledError as error:
            waiter.set_exception(closed_error() if self.over else error)
        except BaseException as error:  # noqa: BLE001  # the caller's, in the caller's thread
            # Also SystemExit: it is meant for the thread that called, not for the loop that everybody shares.
            waiter.set_exception(error)
        finally:
            self._tasks.pop(waiter, None)

    def _cancel(self, waiter: Waiter[Any]) -> None:
        task = self._tasks.get(waiter)
        if task is not None:
            task.cancel()
            # A task that never began does not reach the end of `_run`.
            task.add_done_callback(lambda _: self._tasks.pop(waiter, None))

    def _drain(self) -> None:
        # In this order: what arrives after the flag is down brings a wake of its own.
        self._wake = None
        for _ in range(len(self._inbox)):
            self._serve_one(*self._inbox.popleft())

    def _serve_one(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001  # one callback's failure is not the others'
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a callback on the cache's background loop failed", "exception": error}
            )

    # -- the thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            check_files()
            # Leaving the runner cancels what is left, waits for it and closes the loop.
            with asyncio.Runner() as runner:
                try:
                    runner.run(self._main())
                finally:
                    self.over = True
        except BaseException as error:
            if not self.ready.done():
                self._ready(error)
            elif isinstance(error, Exception):
                raise
        finally:
            self.over = True  # also if there never was a loop
            self._reject_waiting()
            self.ended.set_result(None)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = self.loop.create_future()
        self.serve_early()
        self._ready(None)
        # Asked for after the loop is known: whoever ends this sees the one or is seen here.
        if not self.over:
            await self._stop

    def serve_early(self) -> None:
        """Call what could not be asked for when there was no loop."""
        while self._early:
            self._serve_one(*self._early.popleft())

    def _reject_waiting(self) -> None:
        self._inbox.clear()
        for waiter in list(self._waiting):
            waiter.set_exception(closed_error())


def check_files() -> None:
    """Check that a loop can open its files: asyncio reports one that failed half-way when it is collected.

    :raises OSError: if it cannot.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(_FILES // 2):
            for end in socket.socketpair():
                stack.enter_context(end)


def deadlock_error() -> CacheDeadlockError:
    """Return the error of a blocking call on the loop's own thread."""
    return CacheDeadlockError(
        "a blocking cache call inside the cache's own event loop would wait for itself; "
        "await the same call on the async manager (`cache.aio`) instead"
    )


def closed_error() -> CacheClosedError:
    """Return the error of a call after the end."""
    return CacheClosedError("this cache was closed; make a new manager")


def _finish(stop: "asyncio.Future[None]") -> None:
    if not stop.done():
        stop.set_result(None)
