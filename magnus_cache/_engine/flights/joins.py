"""How callers join a load and leave it, so that nothing is left behind wherever one of them is interrupted.

What a caller registers is noted in its `Ticket`, in the same step: CPython delivers Ctrl-C where something is called,
so there is no call between the two. `_leave` takes back what the seat knows of, also if it is called once more.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from magnus_cache._engine.flights.background import BackgroundLoads, WaitExpiredError
from magnus_cache._engine.flights.cycles import check_cycle, enclosing_load
from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.flights.registry import FlightRegistry
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.waiters import Abandoned, Outcome, Waiter, running_loop, wake
from magnus_cache._engine.runtime.workers import JOB, Job
from magnus_cache.errors import CacheClosedError, CacheDeadlockError

__all__ = ["Joins", "Ticket", "cancel_task", "closed_error"]


class Ticket:
    """What one caller has registered with a flight, so that it can be taken back; made before anything is.

    :ivar holds_up: the event loop that the caller holds up.
    :ivar flight: what it waits for, or leads.
    :ivar outer: the load that its thread was part of before it led this one.
    :ivar inner: the load that it is part of, which is noted to need the flight.
    :ivar blocks: the event loop that is noted to wait for the flight.
    :ivar job: the thread that waits with the caller, whose place another loader has meanwhile.
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
    """The callers of one cache's loads. What begins with an underscore is for `Flights`."""

    def __init__(self, unattended: BackgroundLoads, clock: Clock) -> None:
        super().__init__(unattended, clock)
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        # Which flights a blocking call keeps an event loop waiting for: nothing else on that loop can move.
        self._blocked: dict[asyncio.AbstractEventLoop, list[Flight]] = {}
        self._closed = False
        self.unheard: Callable[[Flight, BaseException], object] = _ignore
        """Called with what a load raised while no caller was there to get it."""
        self.joined = 0
        """How many callers found a load of their key under way."""

    def _board(
        self, seat: Ticket, key: bytes, loop: asyncio.AbstractEventLoop | None, namespace: str, *, alone: bool,
        for_nobody: bool = False,
    ) -> Flight:  # fmt: skip
        """Join the flight of a key or open one: on `loop` if an async caller would lead it.

        The seat knows of each thing that is registered, in the same step: `_leave` takes back what there is.

        :param for_nobody: whether it would have to go on without the caller at once.
        :raises WaitExpiredError: if it would, and too many do already.
        """
        inner, blocks, outer = enclosing_load(self, key), seat.holds_up, LOADING.get()
        present = self._flights.get(key)
        if present is not None and present.loop is not None and present.loop.is_closed():
            self._dropped(present)
        if for_nobody:
            self._sweep(namespace)
        replaced: Flight | None = None
        with self._lock:
            if self._closed:
                raise closed_error()
            flight = None if alone else self._joinable(key)
            leads = flight is None
            if flight is None:
                flight = self._new(key, loop, namespace, alone=alone)
                seat.flight, seat.leads, seat.outer = flight, True, outer
                if loop is None:
                    # Before anybody can join: a signal handler of this thread is not to wait for its own thread.
                    LOADING.set(flight)
                if for_nobody and not alone and not self._unattended.add(flight):
                    raise WaitExpiredError(crowded=True)
                if not alone:
                    replaced = self._enter(flight)
            else:
                check_cycle(flight, inner, blocks, self._blocked)
                if loop is None and flight.served_by == threading.get_ident():
                    raise CacheDeadlockError(
                        "a signal handler or a finalizer needs what its own thread is about to load for a batch"
                    )
                seat.flight = flight
                self.joined += 1
            if loop is not None or not leads:
                flight.crew.add(seat.waiter)
            held = self._blocked.get(blocks, []) if blocks is not None else []
            # No call from here on: what is registered, and that it is, is one step for Ctrl-C.
            if inner is not None:
                inner.needs = [*inner.needs, flight]
                seat.inner = inner
            if blocks is not None:
                self._blocked[blocks] = [*held, flight]
                seat.blocks = blocks
        self._cancel_unwanted(replaced)
        # A thread that leads has its loader to run; any other of ours that comes here only waits.
        job = None if leads and loop is None else JOB.get()
        if job is not None:
            job.pause()
            seat.job = job
        return flight

    def _cancel_unwanted(self, flight: Flight | None) -> None:
        """Cancel a flight that was replaced, unless somebody waits for it, who does without a time limit then."""
        if flight is not None and not flight.crew and flight.task is not None and flight.loop is not None:
            cancel_task(flight.task, flight.loop)

    def _leave(self, seat: Ticket) -> None:
        """Take back what a caller has registered, as far as it got. Once done, doing it again changes nothing."""
        flight = seat.flight
        if seat.job is not None:
            job, seat.job = seat.job, None
            job.resume()
        if flight is None:
            return
        if seat.leads and flight.loop is None:
            LOADING.set(seat.outer)
        if seat.leads and (flight.loop is None or flight.task is None):
            # Only after Ctrl-C in the wrong moment is this the first to tell those who wait.
            self._settle(flight, Abandoned(KeyboardInterrupt()))
        if flight.done and seat.inner is None and seat.blocks is None:
            return
        unwanted = False
        with self._lock:
            if seat.inner is not None:
                needs = _without(seat.inner.needs, flight)
                seat.inner.needs, seat.inner = needs, None
            if seat.blocks is not None:
                self._unblock(seat, flight)
            flight.crew.discard(seat.waiter)
            if not flight.done and not flight.crew and flight.loop is not None and flight not in self._unattended:
                # Out of the registry in the same step: who comes now starts anew instead of joining the cancelled.
                self._forget(flight)
                unwanted = flight.detached = True
        if unwanted and flight.task is not None and flight.loop is not None:
            cancel_task(flight.task, flight.loop)

    def _unblock(self, seat: Ticket, flight: Flight) -> None:
        loop = seat.blocks
        assert loop is not None
        held = _without(self._blocked.get(loop, []), flight)  # not there after a `reset` in between
        self._blocked[loop], seat.blocks = held, None
        if not held:
            del self._blocked[loop]

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        """Make an outcome known, once; the flight leaves the registry before anybody wakes.

        Interrupted (Ctrl-C), it is called again, and tells those who were not told yet.
        """
        with self._lock:
            if flight.done and not flight.crew:
                return
            flight.detached = flight.detached or isinstance(outcome, Abandoned)
            self._unattended.discard(flight)
            self._forget(flight)
            flight.done = True
            crew = list(flight.crew)
        wake(crew, outcome)
        flight.crew = set()
        # Contexts that outlive the load keep the flight, which is not to keep the arguments of the call.
        flight.loader = None

    def _sweep(self, namespace: str) -> None:
        with self._lock:
            lost = self._unattended.lost(namespace)
        for flight in lost:
            self._dropped(flight)

    def _dropped(self, flight: Flight) -> bool:
        """Abandon a flight whose loop does not run (any more), and return whether that is so."""
        if flight.loop is None or flight.loop.is_running():
            return False
        self._settle(flight, Abandoned(asyncio.CancelledError()))
        if flight.task is not None:
            self._tasks.pop(flight.task, None)
        return True


def _ignore(_flight: Flight, _error: BaseException) -> None:
    """Do nothing."""


def _without(flights: list[Flight], flight: Flight) -> list[Flight]:
    """Return a list without one occurrence of a flight, if it has any."""
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
    """Return the error of a call after the end."""
    return CacheClosedError("this cache was closed; make a new manager")
