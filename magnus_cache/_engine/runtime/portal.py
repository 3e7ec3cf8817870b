"""The background event loop for blocking callers: one thread, and an inbox that wakes it once for many calls.

A caller puts its request into a deque, and wakes the loop only if no other caller's wake is still on its way. The loop
then serves all requests in the deque. The caller sleeps on a bare lock, which costs less than a
`concurrent.futures.Future`.

The thread is this module's own. `anyio.from_thread.start_blocking_portal` would suit otherwise, but a script that ends
without closing it hangs: when the interpreter shuts down and collects its context manager, that calls into a thread
that is already frozen. A daemon thread with an `asyncio.Runner` needs nothing at exit, so `atexit` handlers of the
program can still use the cache.
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
"""Seconds that closing waits for tasks that end slowly."""


class Portal:
    """A background event loop for blocking callers of any thread; one per cache, started by the first call.

    Without `close` the thread ends with the process.
    """

    def __init__(self) -> None:
        self._lock = section()
        self._session: PortalThread | None = None
        self._closed = False
        self._starting: PortalThread | None = None
        self._replaced: list[PortalThread] = []
        self._relics: list[PortalThread] = []
        # Calls deferred at a moment when no loop could be started.
        self._early: deque[Request] = deque()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, or None before the thread runs."""
        return self._session.loop if self._session is not None else None

    @property
    def running(self) -> bool:
        """Whether a thread serves calls."""
        session = self._session
        return session is not None and session.loop is not None and not session.over

    @property
    def started(self) -> bool:
        """Whether a thread was ever started, in this process."""
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
        return session.call(waiter, session.start_task, (waiter, fn, args, copy_context()), timeout)

    def request(self, start: Callable[[Waiter[T]], object], timeout: float | None = None) -> T:
        """Run ``start(waiter)`` on the loop and return the result that the waiter gets there, then or later.

        This uses no coroutine and no task: the cheapest way to the loop and back. `start` must not block, runs in the
        loop's own context, and may raise. A late answer, after a timeout, is ignored.

        :param timeout: seconds; None relies on an answer.
        :raises TimeoutError: if the waiter got no answer within `timeout`.
        :raises CacheDeadlockError: on the loop's own thread.
        :raises CacheClosedError: after `close`, and if `close` comes before the answer.
        :raises NoThreadError: if there is no loop, and none can be started.
        """
        session = self._open()
        waiter: Waiter[T] = Waiter()
        return session.call(waiter, session.start_request, (waiter, start), timeout)

    @property
    def inside(self) -> bool:
        """Whether this thread runs the loop, or is about to run it."""
        # Written out: each read of a blocking caller asks.
        session, starting = self._session, self._starting
        if session is not None and session.thread.ident == threading.get_ident():
            return True
        return starting is not None and starting.thread.ident == threading.get_ident()

    @property
    def engaged(self) -> bool:
        """Whether this thread must not wait, because it has interrupted a step of the cache that others wait for."""
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
        """Call ``fn(*args)`` on the loop, without waiting for anything, not even for a thread to start.

        If the loop does not run yet, it makes this call first. For signal handlers and finalizers.

        :raises CacheClosedError: after `close`.
        """
        if self._closed:
            raise closed_error()
        self._early.append((fn, args))
        session, here = self._session, running_loop()
        # In this order: a loop that is about to run either sees the request, or is seen here.
        if session is not None and not session.over:
            session.post(session.serve_early, ())
        elif here is not None:
            here.call_soon_threadsafe(self._start_for_early)

    def _start_for_early(self) -> None:
        with contextlib.suppress(CacheClosedError, CacheDeadlockError, NoThreadError):
            self._open()

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Call ``fn(*args)`` on the loop soon, from any thread; its exceptions go to the loop's handler.

        :raises CacheClosedError: after `close`.
        :raises NoThreadError: if there is no loop, and none can be started.
        """
        self._open().post(fn, args)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Cancel all calls, close the loop and end the thread. Blocked callers get `CacheClosedError`. Idempotent.

        :param timeout: seconds to wait for tasks that end slowly.
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
        """Close the loop and its thread without blocking the running loop; see `close`.

        :param timeout: seconds to wait for tasks that end slowly.
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
        """Start closing, without waiting; also on the loop's own thread. Idempotent."""
        for session in self._last():
            session.end()

    def reset(self) -> None:
        """Forget the thread, which does not exist in a forked child; the next call starts another."""
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
                        # Another thread has started it since; a second one would open its own connections.
                        return session
                    if starting is None or starting.over:
                        # From here on, a signal handler of this thread finds that it must not wait for it.
                        starting = self._starting = ours
                if starting is ours:
                    return self._start(ours)
            except BaseException as error:
                # Interrupted (Ctrl-C) before the start itself: no thread must wait for it.
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
                # A session that ended by itself (a SystemExit in a task) is replaced.
                if self._session is not None:
                    self._replaced = [*(old for old in self._replaced if old.thread.is_alive()), self._session]
                self._session = ours
        except BaseException:
            if self._session is not ours:
                ours.end()
            raise
        finally:
            self._starting = None
        # Deferred by a signal handler between the loop's first step and here.
        if self._early:
            ours.post(ours.serve_early, ())
        return ours

    def _end(self) -> list[PortalThread]:
        """Ask all sessions to end, and return them."""
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
        """Start no more sessions, and return the existing ones."""
        with self._lock:
            self._closed = True
            last = [session for session in (self._session, self._starting) if session is not None]
            return [*self._replaced, *last]
