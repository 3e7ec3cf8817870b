"""One load per key in this process, shared by all its callers: tasks, threads and event loops alike.

The first caller of a key leads. An async leader's load runs in its own task, so that no caller's cancellation affects
the others; a blocking leader's load runs in its own thread. If a leader disappears without an outcome (its loop shuts
down, Ctrl-C), the flight is *abandoned* and one of the waiting callers leads the next one.

A graph records which loads wait for which, so that a cycle of loads is an error instead of a deadlock. It covers waits
that carry the context along: awaiting, tasks, `asyncio.to_thread`, the background loop. Where it cannot see (a plain
thread that a loader started), the bound on every wait ends the deadlock.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from magnus_cache._engine.flights.background import MOST_BACKGROUND, BackgroundLoads, WaitExpiredError
from magnus_cache._engine.flights.callers import ANY_CALLER, Caller
from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.flights.groups import Groups
from magnus_cache._engine.flights.joins import Ticket
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import check_waiting, section
from magnus_cache._engine.runtime.loop_end import end_with_loop
from magnus_cache._engine.runtime.waiters import (
    Abandoned,
    Expired,
    Failed,
    Loaded,
    LoopWaiter,
    Outcome,
    ThreadWaiter,
    running_loop,
)
from magnus_cache._engine.runtime.workers import JOB

__all__ = ["Flights"]

T = TypeVar("T")


class Flights(Groups):
    """The flights of one cache. All methods may be called from any thread.

    :param most_background: how many loads of one namespace may run at a time without a waiting caller.
    :param clock: the clock that measures the age of loads.
    """

    def __init__(self, most_background: int = MOST_BACKGROUND, clock: Clock = monotonic) -> None:
        super().__init__(BackgroundLoads(most_background), clock)

    # -- joining and running --------------------------------------------------------------------------------------

    async def run(
        self, key: bytes, load: Callable[[Flight], Awaitable[T]], *, wait_timeout: float, namespace: str = "",
        caller: Caller = ANY_CALLER,
    ) -> T:  # fmt: skip
        """Return the result of `load`, or of another caller's load of the same key.

        :param load: called in its own task, in a copy of this caller's context; cancelled only when no caller waits
            any more.
        :param wait_timeout: seconds to wait for another caller's load; then this caller loads for itself, with a
            detached flight.
        :param namespace: the namespace whose limit counts the load if it continues without a waiting caller.
        :param caller: sets how long to wait, and decides whether to accept the outcome of another caller's load; if
            not, the key is loaded again.
        :raises WaitExpiredError: after the caller's `max_wait`.
        :raises CacheRecursionError: if the load of this key, directly or through others, needs this key.
        :raises CacheClosedError: after `aclose`.
        """
        loop = asyncio.get_running_loop()
        deadline = monotonic() + wait_timeout
        max_wait = caller.max_wait
        end = math.inf if max_wait is None else monotonic() + max_wait
        private = False
        while True:
            caller.prepare(under_way=key in self._flights)
            waiter = LoopWaiter(loop)
            ticket = Ticket(waiter, caller.blocks)
            try:
                flight = self._join(ticket, key, loop, namespace, private=private, in_background=max_wait == 0)
                if ticket.leads:
                    self._start(flight, load, loop)
                limit = min(end, math.inf if ticket.leads else deadline)
                outcome = await (waiter.told if limit == math.inf else waiter.wait(limit - monotonic()))
                if isinstance(outcome, Expired) and limit == end:
                    limit_reached = not self._keep_in_background(flight)
                    raise WaitExpiredError(limit_reached=limit_reached, given_up=limit_reached and ticket.leads)
            finally:
                try:
                    self._leave(ticket)
                except BaseException:
                    # Interrupted (Ctrl-C): this does the rest.
                    self._leave(ticket)
                    raise
            final, private = self._is_final(outcome, ticket, caller, deadline, end)
            if final:
                try:
                    return cast("T", outcome.unwrap())
                finally:
                    # An error's traceback refers to this frame: the two would keep each other alive.
                    del outcome, waiter, ticket

    def run_blocking(
        self, key: bytes, load: Callable[[Flight], T], *, wait_timeout: float, caller: Caller = ANY_CALLER
    ) -> T:
        """Return the same result as `run`, for a blocking caller; a leader calls `load` in its own thread.

        :param wait_timeout: seconds to wait for another caller's load; then this caller loads for itself, with a
            detached flight.
        :param caller: decides whether to accept the outcome of another caller's load; if not, the key is loaded again.
        :raises CacheRecursionError: if the load of this key, directly or through others, needs this key.
        :raises CacheDeadlockError: in a thread whose event loop, blocked by this call, would have to run the load; and
            in a signal handler or finalizer that has interrupted a critical section.
        :raises CacheClosedError: after `aclose`.
        """
        check_waiting()
        blocks = running_loop()
        deadline = monotonic() + wait_timeout
        private = False
        while True:
            caller.prepare(under_way=key in self._flights)
            waiter = ThreadWaiter()
            ticket = Ticket(waiter, blocks)
            try:
                flight = self._join(ticket, key, None, "", private=private)
                if ticket.leads:
                    return self._run_here(flight, load)
                outcome = waiter.wait(deadline - monotonic())
            finally:
                try:
                    self._leave(ticket)
                except BaseException:
                    # Interrupted (Ctrl-C): this does the rest.
                    self._leave(ticket)
                    raise
            final, private = self._is_final(outcome, ticket, caller, deadline)
            if final:
                try:
                    return cast("T", outcome.unwrap())
                finally:
                    del outcome

    def _is_final(
        self, outcome: Outcome | Expired, ticket: Ticket, caller: Caller, deadline: float, end: float = math.inf
    ) -> tuple[bool, bool]:
        """Return whether a caller takes an outcome; if not, whether its next attempt has a private flight.

        :param deadline: when the caller stops waiting for other callers' loads, in monotonic seconds.
        :param end: when the caller stops waiting for any load, in monotonic seconds.
        :raises WaitExpiredError: after `end`, if the caller rejects the outcome.
        """
        flight = ticket.flight
        assert flight is not None
        if isinstance(outcome, Expired):
            return False, not self._dropped(flight)
        if ticket.leads:
            return True, False
        if isinstance(outcome, Abandoned):
            return False, False
        if caller.accepts(flight.look):
            return True, False
        now = monotonic()
        if now >= end:
            # Short loads, one after the other, may have left this caller no moment at which its wait could expire.
            raise WaitExpiredError
        return False, now >= deadline

    def start_background(self, key: bytes, load: Callable[[Flight], Awaitable[object]], namespace: str = "") -> bool:
        """Start a background load of a key on the running loop; return whether it was started.

        It is not started if the key is being loaded already, at the limit of background loads, or after `aclose`.
        """
        loop = asyncio.get_running_loop()
        self._sweep(namespace)
        with self._lock:
            if self._closed or self._joinable(key) is not None:
                return False
            flight = self._new(key, loop, namespace)
            # The caller that causes it does not wait for it.
            flight.outer = None
            if not self._background.add(flight):
                return False
            replaced = self._enter(flight)
        try:
            self._cancel_unwanted(replaced)
            self._start(flight, load, loop)
        except BaseException as error:
            if flight.task is None:
                self._settle(flight, Abandoned(error))
            raise
        return True

    def _keep_in_background(self, flight: Flight) -> bool:
        """Let a load continue without a waiting caller; return False at the limit of background loads."""
        self._sweep(flight.namespace)
        with self._lock:
            # A load that was replaced ends with its last waiting caller.
            return flight.loop is None or flight.done or flight.hung or self._background.add(flight)

    @contextlib.contextmanager
    def as_part_of(self, flights: Sequence[Flight]) -> Generator[None]:
        """Run the ``with`` block as part of all these loads, which share one loader."""
        if not flights:
            yield
            return
        *others, last = flights
        for inner, outer in zip(flights[1:], others, strict=True):
            inner.outer = outer
        with self._lock:
            for flight in others:
                flight.needs.append(last)
        token = LOADING.set(last)
        try:
            yield
        finally:
            LOADING.reset(token)
            with self._lock:
                for flight in others:
                    flight.needs.remove(last)

    # -- the end -----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Cancel the loads that run in tasks, and refuse new ones. Their callers get `CacheClosedError`.

        Tasks of the running loop have ended when this returns; those of other loops end at these loops' next turn.
        Loads in threads continue and serve their waiting callers.
        """
        here = asyncio.get_running_loop()
        ended = self.end()
        ours = [task for task in ended if task.get_loop() is here and task is not asyncio.current_task()]
        if ours:
            await asyncio.wait(ours)

    def end(self) -> list[asyncio.Task[None]]:
        """Start closing, from any thread and without waiting, and return the cancelled tasks; see `aclose`."""
        with self._lock:
            self._closed = True
        tasks = list(self._tasks.items())
        for task, flights in tasks:
            self._cancel(task, flights)
        return [task for task, _ in tasks]

    def reset(self) -> None:
        """Forget everything, in a forked child, which does not run the parent's loads."""
        self._lock = section()
        for flight in self._flights.values():
            # A load that forked and returns in the child must not wake waiters that live in the parent.
            flight.done, flight.detached, flight.waiters = True, True, set()
        self._flights, self._blocked = {}, {}
        self._tasks = {}
        self._background.clear()
        self.joined = 0

    # -- the load ---------------------------------------------------------------------------------------------

    def _start(self, flight: Flight, load: Callable[[Flight], Awaitable[Any]], loop: asyncio.AbstractEventLoop) -> None:
        coroutine = self._run(flight, load)
        try:
            task = loop.create_task(coroutine)
        except BaseException as error:
            coroutine.close()
            self._settle(flight, Abandoned(error))
            raise
        if task.done():  # an eager task may have ended at once
            return
        flight.task = task
        end_with_loop(task)
        self._tasks[task] = (flight,)
        task.add_done_callback(partial(self._finished, flight))
        if self._closed:  # by another thread, between joining and here
            self._cancel(task, (flight,))

    async def _run(self, flight: Flight, load: Callable[[Flight], Awaitable[Any]]) -> None:
        LOADING.set(flight)  # in this task's own context
        JOB.set(None)
        try:
            value = await load(flight)
        except Exception as error:  # noqa: BLE001  # raised by every caller, the leader included
            if not flight.waiters and not flight.loop_stopped:
                self.on_unheard_error(flight, error)
            self._settle(flight, Abandoned(error) if flight.loop_stopped else Failed(error, error.__traceback__))
        except SystemExit as error:
            # It is for the leader, in its own task or thread. Raised by this task, it would end the whole loop, even
            # the background loop, which does not belong to the leader.
            if not flight.waiters:
                self.on_unheard_error(flight, error)
            self._settle(flight, Abandoned(error))
        except BaseException as error:
            self._settle(flight, Abandoned(error))
            raise
        else:
            self._settle(flight, Loaded(value))
        finally:
            if flight.loop_stopped and flight.task is not None:
                # The task's callbacks will not run.
                self._tasks.pop(flight.task, None)

    def _finished(self, flight: Flight, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        # The task's context refers to the flight: the two would wait for the collector.
        flight.task = None
        if not flight.done or flight.waiters:
            # Cancelled before its first step, a task runs none of `_run`.
            self._settle(flight, Abandoned(asyncio.CancelledError()))
        if not task.cancelled():
            task.exception()  # delivered already; asyncio must not report it as never retrieved

    def _run_here(self, flight: Flight, load: Callable[[Flight], T]) -> T:
        try:
            value = load(flight)
            self._settle(flight, Loaded(value))
        except Exception as error:
            self._settle(flight, Failed(error, error.__traceback__))
            raise
        except BaseException as error:
            self._settle(flight, Abandoned(error))
            raise
        return value
