"""One run of the background event loop: its thread, its inbox that wakes it once for many calls, and its waiters.

A caller puts its request into a deque and wakes the loop, unless another thread's wake is still on its way. The loop
then serves all requests in the deque.
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
"""Imported early: redis-py imports it late, and a first import fails while the program ends."""

_FILES: Final = 8
"""Files that an event loop opens, and a few to work with."""


class NoThreadError(CacheUnavailableError, RuntimeError):
    """The background loop cannot be started; callers get the fallback, as when Redis is away.

    A `RuntimeError`, like the one that Python raises.
    """


class PortalThread:
    """One run of the loop: its thread, its inbox, and its waiters.

    :param early: the calls to make first.
    """

    def __init__(self, early: deque[Request]) -> None:
        self._early = early
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        # A caller that waits in `aclose` may be cancelled; the end itself may not.
        self.ended.set_running_or_notify_cancel()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.over = False
        # Its own context: what the loop starts for all callers must not run in the context of the first one.
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

        :raises CacheClosedError: if `end` was called meanwhile.
        :raises NoThreadError: if the system, or the end of the interpreter, allows no more threads or open files.
        """
        try:
            if self.over:
                raise closed_error()
            self.thread.start()
            self.ready.result()
        except BaseException as error:
            # An interrupted start leaves neither a thread nor a waiting caller behind.
            self.give_up(error)
            if not isinstance(error, RuntimeError | OSError) or isinstance(error, RecursionError | CacheError):
                raise
            raise NoThreadError("no_thread", f"the cache's background thread cannot be started ({error})") from error

    def give_up(self, error: BaseException) -> None:
        """End before or during the start, and raise the error in the callers that wait for it."""
        self.end()
        self._ready(error)

    def _ready(self, error: BaseException | None) -> None:
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.ready.set_result(None)
            else:
                self.ready.set_exception(error)

    def end(self) -> None:
        """Refuse new requests, and ask the loop to end; its thread follows."""
        self.over = True
        if self.loop is not None and self._stop is not None:
            call_on_loop(self.loop, _finish, self._stop)

    # -- in the callers' threads ------------------------------------------------------------------------------

    def call(
        self, waiter: Waiter[T], callback: Callable[..., object], args: tuple[Any, ...], timeout: float | None
    ) -> T:
        """Run a callback on the loop, and return the answer that the waiter gets."""
        if threading.get_ident() == self.thread.ident:
            raise deadlock_error()
        check_waiting()
        try:
            self._waiting.add(waiter)
            self.post(callback, args)
            return waiter.wait(timeout)
        except BaseException:
            # Too late, or interrupted (Ctrl-C): the answer is not needed any more.
            if waiter.give_up():
                with contextlib.suppress(CacheClosedError):
                    self.post(self._cancel, (waiter,))
            raise
        finally:
            self._waiting.discard(waiter)

    def post(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Put a callback into the inbox; wake the loop unless a wake is on its way.

        :raises CacheClosedError: if the loop is ending; the callback may or may not run.
        """
        self._inbox.append((callback, args))
        # After the append and after the caller joined `_waiting`: `_reject_waiting` sees callers that pass here before
        # the end began, and later callers see the flag.
        if self.over or self.loop is None:
            raise closed_error()
        me, wake = threading.get_ident(), self._wake
        # A wake that this thread has not sent yet does not count: this is a signal handler or a finalizer in between.
        if wake is None or me in wake:
            try:
                self._wake = wake = [me]
                self.loop.call_soon_threadsafe(self._drain, context=self._context)
                wake.clear()
            except BaseException as error:
                # Interrupted in between (Ctrl-C), the wake may be lost: the next caller has to send its own.
                self._wake = None
                # Not every RuntimeError means that: one is the RecursionError of a caller deep in its stack.
                if isinstance(error, RuntimeError) and self.loop.is_closed():
                    raise closed_error() from error
                raise

    # -- on the loop ------------------------------------------------------------------------------------------

    def start_task(
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

    def start_request(self, waiter: Waiter[T], start: Callable[[Waiter[T]], object]) -> None:
        """Start a caller's request."""
        try:
            if self.over:
                raise closed_error()
            if not waiter.done():
                start(waiter)
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            waiter.set_exception(error)

    async def _run(self, waiter: Waiter[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            waiter.set_result(await fn(*args))
        except asyncio.CancelledError as error:
            waiter.set_exception(closed_error() if self.over else error)
        except BaseException as error:  # noqa: BLE001  # the caller's, in the caller's thread
            # Also SystemExit: it is for the calling thread, not for the loop that all callers share.
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
        # In this order: a request that arrives after the reset sends its own wake.
        self._wake = None
        for _ in range(len(self._inbox)):
            self._serve_one(*self._inbox.popleft())

    def _serve_one(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001  # a failed callback must not affect others
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a callback on the cache's background loop failed", "exception": error}
            )

    # -- the thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            check_files()
            # Leaving the runner cancels the remaining tasks, waits for them and closes the loop.
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
            self.over = True  # also if the loop never ran
            self._reject_waiting()
            self.ended.set_result(None)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = self.loop.create_future()
        self.serve_early()
        self._ready(None)
        # Read after the loop is set: a caller of `end` either sees the loop or is seen here.
        if not self.over:
            await self._stop

    def serve_early(self) -> None:
        """Make the calls that were deferred before the loop ran."""
        while self._early:
            self._serve_one(*self._early.popleft())

    def _reject_waiting(self) -> None:
        self._inbox.clear()
        for waiter in list(self._waiting):
            waiter.set_exception(closed_error())


def check_files() -> None:
    """Check that a loop can open its files: asyncio reports a half-opened loop when it is collected.

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
    """Return the error of a call after closing."""
    return CacheClosedError("this cache was closed; make a new manager")


def _finish(stop: "asyncio.Future[None]") -> None:
    if not stop.done():
        stop.set_result(None)
