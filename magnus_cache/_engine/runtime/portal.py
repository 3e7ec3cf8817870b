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
from concurrent.futures import wait
from contextvars import copy_context
from typing import Any, Final, TypeVar

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.critical import check_waiting, engaged, section
from magnus_cache._engine.runtime.portal_thread import (
    THREAD_NAME,
    NoThreadError,
    PortalThread,
    Request,
    closed_error,
    deadlock_error,
)
from magnus_cache._engine.runtime.portal_waiter import Waiter
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheClosedError, CacheDeadlockError

__all__ = ["CLOSE_TIMEOUT", "THREAD_NAME", "NoThreadError", "Portal", "Waiter"]

T = TypeVar("T")

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing waits for tasks which take their time to end."""


class Portal:
    """The way of blocking callers to an event loop; one a cache, started by the first call, for any thread.

    Without `close` the thread ends with the process.
    """

    def __init__(self) -> None:
        self._lock = section()
        self._session: PortalThread | None = None
        self._closed = False
        self._starting: PortalThread | None = None
        self._replaced: list[PortalThread] = []
        self._relics: list[PortalThread] = []
        # What was left for the loop when nothing could be started.
        self._early: deque[Request] = deque()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, or None while there is no thread."""
        return self._session.loop if self._session is not None else None

    @property
    def running(self) -> bool:
        """Whether calls are being served by a thread."""
        session = self._session
        return session is not None and session.loop is not None and not session.over

    @property
    def started(self) -> bool:
        """Whether there was ever a thread, in this process."""
        return self._session is not None

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any, timeout: float | None = None) -> T:
        """Run ``await fn(*args)`` on the loop, in a copy of this thread's context, and return its result.

        If this thread is interrupted or runs out of time, the coroutine is cancelled.

        :param timeout: seconds; None waits for as long as `fn` takes.
        :raises TimeoutError: if it took longer than `timeout`.
        :raises CacheDeadlockError: on the loop's own thread.
        :raises CacheClosedError: after `close`, and if `close` cuts the call short.
        :raises NoThreadError: if there is no loop, and none can be started.
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
        :raises NoThreadError: if there is no loop, and none can be started.
        """
        session = self._open()
        waiter: Waiter[T] = Waiter()
        return session.exchange(waiter, session.ask, (waiter, start), timeout)

    @property
    def inside(self) -> bool:
        """Whether this is the loop's own thread, be it that the loop is only about to run."""
        me = threading.get_ident()
        return any(session is not None and session.thread.ident == me for session in (self._session, self._starting))

    @property
    def engaged(self) -> bool:
        """Whether this thread must not wait, as it has interrupted a step of the cache that others wait for."""
        starting = self._starting
        return engaged() or (starting is not None and starting.starter == threading.get_ident())

    def check_thread(self) -> None:
        """Check that a call may block here.

        :raises CacheDeadlockError: on the loop's own thread; and in a signal handler or finalizer that has interrupted
            a step of the cache which others wait for.
        :raises CacheClosedError: while the interpreter ends.
        """
        if self.inside:
            raise deadlock_error()
        check_waiting()

    def defer(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called on the loop, without waiting for anything, not even for a thread to start.

        If there is no loop yet, this is the first thing that it does. For signal handlers and finalizers.

        :raises CacheClosedError: after `close`.
        """
        if self._closed:
            raise closed_error()
        self._early.append((fn, args))
        session, here = self._session, running_loop()
        # In this order: a loop that is about to run has either seen the request, or is seen here.
        if session is not None and not session.over:
            session.post(session.serve_early, ())
        elif here is not None:
            here.call_soon_threadsafe(self._start_for_early)

    def _start_for_early(self) -> None:
        with contextlib.suppress(CacheClosedError, CacheDeadlockError, NoThreadError):
            self._open()

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have ``fn(*args)`` called on the loop soon, from any thread; what it raises goes to the loop's handler.

        :raises CacheClosedError: after `close`.
        :raises NoThreadError: if there is no loop, and none can be started.
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
            # Another thread may be about to start it.
            wait([session.ready], max(0.0, deadline - monotonic()))
            if session.thread.ident is not None:
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
                await asyncio.wait([asyncio.wrap_future(session.ready)])
                if session.thread.ident is not None:
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
        self._lock = section()
        self._session, self._starting, self._replaced = None, None, []
        self._early.clear()

    def _open(self) -> PortalThread:
        while True:
            session = self._session
            if session is not None and not session.over:
                return session
            check_waiting()
            ours = PortalThread(self._early)
            try:
                with self._lock:
                    if self._closed:
                        raise closed_error()
                    session, starting = self._session, self._starting
                    if session is not None and not session.over:
                        # Another thread has started it since; a second one would have connections of its own.
                        return session
                    if starting is None or starting.over:
                        # From here on, a signal handler of this thread finds that it must not wait for it.
                        starting = self._starting = ours
                if starting is ours:
                    return self._start(ours)
            except BaseException as error:
                # Interrupted (Ctrl-C) before the start itself: nobody is to wait for it.
                if self._starting is ours:
                    ours.give_up(error)
                    self._starting = None
                raise
            if self.inside:
                raise deadlock_error()
            if starting.starter == threading.get_ident():
                raise CacheDeadlockError(
                    "a signal handler or a finalizer cannot use the cache while its own thread starts the cache"
                )
            wait([starting.ready])

    def _start(self, ours: PortalThread) -> PortalThread:
        """Start a session, without the lock: its thread may need that."""
        try:
            ours.start()
            with self._lock:
                if self._closed:
                    raise closed_error()
                # One that ended unasked (a SystemExit in somebody's task) is replaced.
                if self._session is not None:
                    self._replaced = [*(old for old in self._replaced if old.thread.is_alive()), self._session]
                self._session = ours
        except BaseException:
            if self._session is not ours:
                ours.end()
            raise
        finally:
            self._starting = None
        # Left by a signal handler between the loop's first step and here.
        if self._early:
            ours.post(ours.serve_early, ())
        return ours

    def _end(self) -> list[PortalThread]:
        """Ask all there is to end, and return it."""
        check_waiting()
        sessions = self._last()
        if threading.get_ident() in {session.thread.ident for session in sessions if session.thread.is_alive()}:
            raise CacheDeadlockError(
                "the cache's event loop cannot wait for its own end; close the cache from another thread or loop"
            )
        for session in sessions:
            session.end()
        return sessions

    def _last(self) -> list[PortalThread]:
        """Start no more sessions, and return those there are."""
        with self._lock:
            self._closed = True
            last = [session for session in (self._session, self._starting) if session is not None]
            return [*self._replaced, *last]
