"""How callers join a load and leave it, so that an interrupt at any point leaves nothing registered.

A caller registers something and notes it in its `Ticket` in the same step. CPython delivers Ctrl-C only where something
is called, so no call stands between the two. `_leave` unregisters what the ticket lists, and may be called again.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from magnus_cache._engine.flights.background import BackgroundLoads, WaitExpiredError
from magnus_cache._engine.flights.cycles import check_cycle, enclosing_load
from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.flights.registry import FlightRegistry
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import Abandoned, Failed, Outcome, Waiter, running_loop, wake
from magnus_cache._engine.runtime.workers import JOB, Job
from magnus_cache.errors import CacheClosedError, CacheDeadlockError

__all__ = ["Joins", "Ticket", "cancel_task", "closed_error"]


class Ticket:
    """What one caller has registered with a flight, so that it can be undone; created before anything is registered.

    :ivar holds_up: the event loop that the caller blocks.
    :ivar flight: the flight that the caller waits for, or leads.
    :ivar outer: the load that its thread was part of before it led this one.
    :ivar inner: the load that the caller is part of, recorded as needing the flight.
    :ivar blocks: the event loop recorded as waiting for the flight.
    :ivar job: the waiting caller's loader thread, whose slot another loader has meanwhile.
    """

    __slots__ = ("blocks", "flight", "holds_up", "inner", "job", "leads", "outer", "waiter")

    def __init__(self, waiter: Waiter, holds_up: asyncio.AbstractEventLoop | None) -> None:
        self.waiter = waiter
        self.holds_up = holds_up
        self.flight: Flight | None = None
        self.leads = False
        self.outer: Flight | None = None
        self.inner: Flight | None = None
        self.blocks: asyncio.AbstractEventLoop | None = None
        self.job: Job | None = None


class Joins(FlightRegistry):
    """The callers of one cache's loads. Methods with an underscore are for `Flights`."""

    def __init__(self, background: BackgroundLoads, clock: Clock) -> None:
        super().__init__(background, clock)
        self._tasks: dict[asyncio.Task[None], Sequence[Flight]] = {}
        # The flights that block an event loop through a blocking call: nothing else on that loop can run.
        self._blocked: dict[asyncio.AbstractEventLoop, list[Flight]] = {}
        self._closed = False
        self.on_unheard_error: Callable[[Flight, BaseException], object] = _ignore
        """Called with the error of a load that no caller waits for."""
        self.joined = 0
        """How many callers joined a load that was under way."""

    def _join(
        self, ticket: Ticket, key: bytes, loop: asyncio.AbstractEventLoop | None, namespace: str, *, private: bool,
        in_background: bool = False,
    ) -> Flight:  # fmt: skip
        """Join the flight of a key or create one: on `loop` if an async caller would lead it.

        The ticket lists each thing in the same step in which it is registered: `_leave` unregisters what it lists.

        :param in_background: whether a new load would have to continue without the caller at once.
        :raises WaitExpiredError: if it would, at the limit of background loads.
        """
        blocks, outer = ticket.holds_up, LOADING.get()
        inner = None if outer is None else enclosing_load(self, key)
        present = self._flights.get(key)
        if present is not None and present.loop is not None and present.loop.is_closed():
            self._dropped(present)
        if in_background:
            self._sweep(namespace)
        replaced: Flight | None = None
        with self._lock:
            if self._closed:
                raise closed_error()
            flight = None if private else self._joinable(key)
            leads = flight is None
            if flight is None:
                flight = Flight(self, key, loop, namespace, self._clock())
                flight.private = flight.detached = private
                ticket.flight, ticket.leads, ticket.outer = flight, True, outer
                if loop is None:
                    # Before any caller can join: a signal handler of this thread must not wait for its own thread.
                    LOADING.set(flight)
                if in_background and not private and not self._background.add(flight):
                    raise WaitExpiredError(limit_reached=True)
                if not private:
                    replaced = self._enter(flight)
            else:
                check_cycle(flight, inner, blocks, self._blocked)
                if loop is None and flight.served_by.thread == threading.get_ident():
                    raise CacheDeadlockError(
                        "a signal handler or a finalizer needs a key that its own thread is about to load for a batch"
                    )
                ticket.flight = flight
                self.joined += 1
            if loop is not None or not leads:
                flight.waiters.add(ticket.waiter)
            blocked = self._blocked.get(blocks, []) if blocks is not None else []
            # No call from here on: registering and noting it in the ticket is one step for Ctrl-C.
            if inner is not None:
                inner.needs = [*inner.needs, flight]
                ticket.inner = inner
            if blocks is not None:
                self._blocked[blocks] = [*blocked, flight]
                ticket.blocks = blocks
        self._cancel_unwanted(replaced)
        if not leads and (urge := flight.urge) is not None and flight.loop is not None:
            # The caller may be what keeps the load from its turn.
            flight.urge = None
            call_on_loop(flight.loop, urge)
        # A thread that leads runs its loader; any other loader thread that gets here only waits.
        job = None if leads and loop is None else JOB.get()
        if job is not None:
            job.yield_slot()
            ticket.job = job
        return flight

    def _cancel_unwanted(self, flight: Flight | None) -> None:
        """Cancel a flight that was replaced, unless a caller waits for it; that caller waits without a time limit."""
        # Looked up once: it is gone when the load has ended, perhaps in another thread.
        task = None if flight is None or flight.waiters else flight.task
        if flight is not None and task is not None:
            with self._lock:
                unwanted = self._is_last(flight)
            if unwanted:
                cancel_task(task, task.get_loop())

    def _is_last(self, flight: Flight) -> bool:
        """Note that no caller waits for a flight any more; return whether its task runs for no other one."""
        group = flight.group
        if group is None:
            return True
        group.discard(flight)
        return not group

    def _leave(self, ticket: Ticket) -> None:
        """Unregister what a caller has registered so far. Idempotent."""
        flight = ticket.flight
        if ticket.job is not None:
            job, ticket.job = ticket.job, None
            job.take_slot()
        if flight is None:
            return
        if ticket.leads and flight.loop is None:
            LOADING.set(ticket.outer)
        if ticket.leads and (flight.loop is None or flight.task is None):
            # Only after a badly timed Ctrl-C is this the first outcome for the waiting callers.
            self._settle(flight, Abandoned(KeyboardInterrupt()))
        if flight.done and ticket.inner is None and ticket.blocks is None:
            return
        unwanted = False
        with self._lock:
            if ticket.inner is not None:
                needs = _without(ticket.inner.needs, flight)
                ticket.inner.needs, ticket.inner = needs, None
            if ticket.blocks is not None:
                self._unblock(ticket, flight)
            flight.waiters.discard(ticket.waiter)
            if not flight.done and not flight.waiters and flight.loop is not None and flight not in self._background:
                # Out of the registry in the same step: new callers start a load instead of joining the cancelled one.
                self._forget(flight)
                flight.detached = True
                unwanted = self._is_last(flight)
        task = flight.task
        if unwanted and task is not None:
            cancel_task(task, task.get_loop())

    def _cancel(self, task: "asyncio.Task[None]", flights: Sequence[Flight]) -> None:
        """End the loads that a task runs, because the cache is closed."""
        for flight in flights:
            self._settle(flight, Failed(closed_error(), None))
        cancel_task(task, task.get_loop())

    def _unblock(self, ticket: Ticket, flight: Flight) -> None:
        loop = ticket.blocks
        assert loop is not None
        blocked = _without(self._blocked.get(loop, []), flight)  # missing after a `reset` in between
        self._blocked[loop], ticket.blocks = blocked, None
        if not blocked:
            del self._blocked[loop]

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        """Deliver an outcome, once; the flight leaves the registry before any waiter wakes.

        After an interrupt (Ctrl-C) it is called again, and delivers to the waiters that have no outcome yet.
        """
        with self._lock:
            if flight.done and not flight.waiters:
                return
            flight.detached = flight.detached or isinstance(outcome, Abandoned)
            self._background.discard(flight)
            self._forget(flight)
            flight.done = True
            if flight.group is not None:
                flight.group.discard(flight)
            waiters = list(flight.waiters)
        wake(waiters, outcome)
        flight.waiters = set()
        # Contexts that outlive the load keep the flight, which must not keep the arguments of the call.
        flight.loader = None

    def _sweep(self, namespace: str) -> None:
        with self._lock:
            lost = self._background.lost(namespace)
        for flight in lost:
            self._dropped(flight)

    def _dropped(self, flight: Flight) -> bool:
        """Abandon a flight whose loop does not run (any more), and return whether it was abandoned."""
        if flight.loop is None or flight.loop.is_running():
            return False
        self._settle(flight, Abandoned(asyncio.CancelledError()))
        task = flight.task
        if task is not None:
            self._tasks.pop(task, None)
        return True


def _ignore(_flight: Flight, _error: BaseException) -> None:
    """Do nothing."""


def _without(flights: list[Flight], flight: Flight) -> list[Flight]:
    """Return a list without one occurrence of a flight."""
    rest = list(flights)
    with contextlib.suppress(ValueError):
        rest.remove(flight)
    return rest


def cancel_task(task: "asyncio.Task[None]", loop: asyncio.AbstractEventLoop) -> None:
    """Cancel a task of any loop, from any thread."""
    if loop is running_loop():
        task.cancel()
    else:
        call_on_loop(loop, task.cancel)


def closed_error() -> CacheClosedError:
    """Return the error of a call after closing."""
    return CacheClosedError("this cache was closed; make a new manager")
