"""The background event loop for blocking callers: one thread, and an inbox that wakes it once for many calls.

A caller leaves its request in a deque and wakes the loop only if nobody else's wake is still on its way; the loop
then serves all that has come. The caller sleeps on a bare lock, which costs less than a `concurrent.futures.Future`.

The thread is this module's own. `anyio.from_thread.start_blocking_portal` would suit otherwise, but a script that
ends without closing it hangs: its context manager, collected by the dying interpreter, calls into a thread that is
already frozen. A daemon thread with an `asyncio.Runner` needs nothing at exit, so what the program registered with
`atexit` can use the cache to the last.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Generic, TypeVar

from magnus_cache.clock import monotonic
from magnus_cache.errors import CacheClosedError, CacheDeadlockError

__all__ = ["CLOSE_TIMEOUT", "THREAD_NAME", "Portal", "Waiter"]

T = TypeVar("T")

THREAD_NAME: Final = "magnus-cache-portal"

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing waits for tasks which take their time to end."""


class Waiter(Generic[T]):
    """Where a blocked thread waits for what the loop will say: the part of `asyncio.Future` that an answer needs.

    `set_result` and `set_exception` are called on the loop only. The first one counts; once the thread has given up,
    none does.
    """

    __slots__ = ("_done", "_error", "_lock", "_result")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._done = False
        self._error: BaseException | None = None
        self._result: Any = None

    def done(self) -> bool:
        """Return whether an answer would come too late: there is one, or the thread waits no more."""
        return self._done

    def set_result(self, result: T, /) -> None:
        """Let the thread return this."""
        if not self._done:
            self._done = True
            self._result = result
            self._lock.release()

    def set_exception(self, exception: BaseException, /) -> None:
        """Let the thread raise this."""
        if not self._done:
            self._done = True
            self._error = exception
            self._lock.release()

    def give_up(self) -> bool:
        """Ignore all answers from now on, and return whether there was none yet."""
        pending, self._done = not self._done, True
        return pending

    def wait(self, timeout: float | None = None) -> T:
        """Block until there is an answer, and return or raise it; for one thread, once.

        :param timeout: seconds; None waits as long as it takes.
        :raises TimeoutError: if there was no answer in time.
        """
        seconds = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=seconds):
            raise TimeoutError(f"no answer from the cache's background loop within {timeout:g} seconds")
        error, self._error = self._error, None
        if error is None:
            result: T = self._result
            return result
        try:
            raise error
        finally:
            # The traceback refers to this frame: without the deletion the two would keep each other alive.
            del error


class _Session:
    """One life of the loop: its thread, its inbox, and who waits for it."""

    def __init__(self) -> None:
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
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._stop: asyncio.Future[None] | None = None
        self._tasks: dict[Waiter[Any], asyncio.Task[None]] = {}
        self._waiting: set[Waiter[Any]] = set()
        self._woken = False

    def start(self) -> None:
        """Start the thread and return when its loop runs."""
        self.thread.start()
        try:
            self.ready.result()
        except BaseException:
            # An interrupted start leaves no thread behind either.
            self.ready.add_done_callback(lambda _: self.end())
            raise

    def end(self) -> None:
        """Refuse what comes from now on, and ask the loop to end; its thread follows."""
        self.over = True
        if self.loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(_finish, self._stop)

    # -- in the callers' threads ------------------------------------------------------------------------------

    def exchange(
        self, waiter: Waiter[T], callback: Callable[..., object], args: tuple[Any, ...], timeout: float | None
    ) -> T:
        """Run a callback on the loop and wait for what the waiter is told."""
        if threading.get_ident() == self.thread.ident:
            raise _deadlock()
        self._waiting.add(waiter)
        try:
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
            raise _closed()
        if not self._woken:
            try:
                self._woken = True
                self.loop.call_soon_threadsafe(self._drain, context=self._context)
            except BaseException as error:
                # Interrupted in between (Ctrl-C), the wake may be lost: the next caller has to make its own.
                self._woken = False
                if isinstance(error, RuntimeError):
                    raise _closed() from error
                raise

    # -- on the loop ------------------------------------------------------------------------------------------

    def begin(
        self, waiter: Waiter[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], context: Context
    ) -> None:
        """Start a caller's coroutine function as a task in its caller's context."""
        if waiter.done():
            return
        if self.over:
            waiter.set_exception(_closed())
            return
        task = asyncio.get_running_loop().create_task(self._run(waiter, fn, args), context=context)
        if not task.done():  # an eager task may have ended at once
            self._tasks[waiter] = task

    def ask(self, waiter: Waiter[T], start: Callable[[Waiter[T]], object]) -> None:
        """Start a caller's request."""
        try:
            if self.over:
                raise _closed()
            if not waiter.done():
                start(waiter)
        except BaseException as error:  # noqa: BLE001  # the caller's, in the caller's thread
            waiter.set_exception(error)

    async def _run(self, waiter: Waiter[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            waiter.set_result(await fn(*args))
        except asyncio.CancelledError as error:
            waiter.set_exception(_closed() if self.over else error)
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
        self._woken = False
        for _ in range(len(self._inbox)):
            callback, args = self._inbox.popleft()
            try:
                callback(*args)
            except Exception as error:  # noqa: BLE001  # one callback's failure is not the others'
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a callback on the cache's background loop failed", "exception": error}
                )

    # -- the thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            # Leaving the runner cancels what is left, waits for it and closes the loop.
            with asyncio.Runner() as runner:
                try:
                    runner.run(self._main())
                finally:
                    self.over = True
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(error)
            elif isinstance(error, Exception):
                raise
        finally:
            self.over = True  # also if there never was a loop
            self._reject_waiting()
            self.ended.set_result(None)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = self.loop.create_future()
        self.ready.set_result(None)
        await self._stop

    def _reject_waiting(self) -> None:
        self._inbox.clear()
        for waiter in list(self._waiting):
            waiter.set_exception(_closed())


class Portal:
    """The way of blocking callers to an event loop; one a cache, started by the first call, for any thread.

    Without `close` the thread ends with the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._closed = False
        self._replaced: list[_Session] = []
        self._relics: list[_Session] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, or None while there is no thread."""
        return self._session.loop if self._session is not None else None

    @property
    def running(self) -> bool:
        """Whether calls are being served by a thread."""
        session = self._session
        return session is not None and session.loop is not None and not session.over

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any, timeout: float | None = None) -> T:
        """Run ``await fn(*args)`` on the loop, in a copy of this thread's context, and return its result.

        If this thread is interrupted or runs out of time, the coroutine is cancelled.

        :param timeout: seconds; None waits for as long as `fn` takes.
        :raises TimeoutError: if it took longer than `timeout`.
        :raises CacheDeadlockError: on the loop's own thread.
        :raises CacheClosedError: after `close`, and if `close` cuts the call short.
        """
        session = self._open()
        waiter: Waiter[T] = Waiter()
        return session.exchange(waiter, session.begin, (waiter, fn, args, copy_context()), timeout)

    def request(self, start: Callable[[Waiter[T]], object], timeout: float | None = None) -> T:
        """Run ``start(waiter)`` on the loop and return what the waiter is told there, then or later.

        There is no coroutine and no task: the cheapest way to the loop and back. `start` must not block, runs in a
        context of the loop's own, and may raise. Whoever answers late, after a timeout, is ignored.

        :param timeout: seconds; None relies on the waiter being told.
        :raises TimeoutError: if the waiter was told nothing within `timeout`.
        :raises CacheDeadlockError: on the loop's own thread.
        :raises CacheClosedError: after `close`, and if `close` comes before the answer.
        """
        session = self._open()
        waiter: Waiter[T] = Waiter()
        return session.exchange(waiter, session.ask, (waiter, start), timeout)

    def check_thread(self) -> None:
        """Check that a call may block here.

        :raises CacheDeadlockError: on the loop's own thread.
        """
        session = self._session
        if session is not None and threading.get_ident() == session.thread.ident:
            raise _deadlock()

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called on the loop soon, from any thread; what it raises goes to the loop's handler.

        :raises CacheClosedError: after `close`.
        """
        self._open().post(fn, args)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Cancel what runs, close the loop and end the thread. Blocked callers get `CacheClosedError`. Idempotent.

        :param timeout: seconds to wait for tasks that take their time to end.
        :raises TimeoutError: if the thread still runs then.
        :raises CacheDeadlockError: on the loop's own thread.
        """
        deadline = monotonic() + timeout
        for session in self._end():
            session.thread.join(max(0.0, deadline - monotonic()))
            if session.thread.is_alive():
                raise TimeoutError(f"the cache's background loop still runs {timeout:g} seconds after close")

    async def aclose(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Do what `close` does without blocking the running loop.

        :param timeout: seconds to wait for tasks that take their time to end.
        :raises TimeoutError: if the thread still runs then.
        :raises CacheDeadlockError: on the loop's own thread.
        """
        async with asyncio.timeout(timeout):
            for session in self._end():
                await asyncio.wrap_future(session.ended)
                session.thread.join()  # it has nothing left to do

    def end(self) -> None:
        """Begin to do what `close` does, without waiting; also on the loop's own thread. Idempotent."""
        for session in self._last():
            session.end()

    def reset(self) -> None:
        """Forget the thread, in a forked child, where it does not exist; the next call starts another."""
        if self._session is not None:
            # Never collected: closing the loop here would take the parent's sockets out of the epoll set they share.
            self._relics.append(self._session)
        self._lock = threading.Lock()
        self._session, self._replaced = None, []

    def _open(self) -> _Session:
        session = self._session
        if session is not None and not session.over:
            return session
        with self._lock:
            if self._closed:
                raise _closed()
            # One that ended unasked (a SystemExit in somebody's task) is replaced.
            if self._session is None or self._session.over:
                session = _Session()
                session.start()
                if self._session is not None:
                    self._replaced = [*(old for old in self._replaced if old.thread.is_alive()), self._session]
                self._session = session
            return self._session

    def _end(self) -> list[_Session]:
        """Ask all there is to end, and return it."""
        sessions = self._last()
        if threading.get_ident() in {session.thread.ident for session in sessions if session.thread.is_alive()}:
            raise CacheDeadlockError(
                "the cache's event loop cannot wait for its own end; close the cache from another thread or loop"
            )
        for session in sessions:
            session.end()
        return sessions

    def _last(self) -> list[_Session]:
        """Start no more sessions, and return those there are."""
        with self._lock:
            self._closed = True
            return [*self._replaced, *([self._session] if self._session is not None else [])]


def _deadlock() -> CacheDeadlockError:
    return CacheDeadlockError(
        "a blocking cache call inside the cache's own event loop would wait for itself; "
        "await the same call on the async manager (`cache.aio`) instead"
    )


def _closed() -> CacheClosedError:
    return CacheClosedError("this cache was closed; make a new manager")


def _finish(stop: "asyncio.Future[None]") -> None:
    if not stop.done():
        stop.set_result(None)
