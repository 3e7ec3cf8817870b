"""One load per key in this process, shared by all who want its result: tasks, threads and event loops alike.

The first caller of a key leads. An async leader's load runs in a task of its own, so that no caller's cancellation
harms the others; a blocking leader's load runs in its own thread. If a leader vanishes without an outcome (its loop
shuts down, Ctrl-C), the flight is *abandoned* and one of those who waited leads the next.

What the loads wait for is kept as a graph, so that a circle of loads is an error instead of a standstill. It sees
waits that carry the context on: awaiting, tasks, `asyncio.to_thread`, the background loop. Where it cannot see
(a plain thread started by a loader), the bound on every wait ends the standstill.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from magnus_cache._engine.flights.background import MOST_UNATTENDED, BackgroundLoads, WaitExpiredError
from magnus_cache._engine.flights.callers import ANY_CALLER, Caller
from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.flights.joins import Joins, Ticket, cancel_task, closed_error
from magnus_cache._engine.runtime.clock import Clock, monotonic
from magnus_cache._engine.runtime.critical import check_waiting, section
from magnus_cache._engine.runtime.loop_end import end_with_loop
from magnus_cache._engine.runtime.waiters import (
    Abandoned,
    Expired,
    Failed,
    Loaded,
    LoopWaiter,
    ThreadWaiter,
    running_loop,
)
from magnus_cache._engine.runtime.workers import JOB

__all__ = ["Flights"]

T = TypeVar("T")


class Flights(Joins):
    """The flights of one cache. All methods may be called from any thread.

    :param most_unattended: how many loads of one namespace may go on at a time that nobody waits for.
    :param clock: what the age of loads is told by.
    """

    def __init__(self, most_unattended: int = MOST_UNATTENDED, clock: Clock = monotonic) -> None:
        super().__init__(BackgroundLoads(most_unattended), clock)

    # -- the two ways in --------------------------------------------------------------------------------------

    async def run(
        self, key: bytes, load: Callable[[Flight], Awaitable[T]], *, wait_timeout: float, namespace: str = "",
        caller: Caller = ANY_CALLER,
    ) -> T:  # fmt: skip
        """Return what `load` returns, or what another caller's load of the same key does.

        :param load: called in a task of its own, in a copy of this caller's context; cancelled only when all who
            wait are gone.
        :param wait_timeout: seconds to wait for another caller's load; then this caller loads for itself, with a
            flight that is detached.
        :param namespace: whose places the load takes if it goes on when nobody waits.
        :param caller: says how long to wait, and judges what another's load brings: what is not good for it is loaded
            again.
        :raises WaitExpiredError: after its `max_wait`.
        :raises CacheRecursionError: if the load of this key, directly or through others, needs this key.
        :raises CacheClosedError: after `aclose`.
        """
        loop = asyncio.get_running_loop()
        deadline = monotonic() + wait_timeout
        max_wait = caller.max_wait
        end = math.inf if max_wait is None else monotonic() + max_wait
        alone = False
        while True:
            caller.prepare()
            waiter = LoopWaiter(loop)
            seat = Ticket(waiter, caller.blocks)
            try:
                flight = self._board(seat, key, loop, namespace, alone=alone, for_nobody=max_wait == 0)
                if seat.leads:
                    self._take_off(flight, load, loop)
                limit = min(end, math.inf if seat.leads else deadline)
                outcome = await waiter.wait(None if limit == math.inf else limit - monotonic())
                if isinstance(outcome, Expired) and limit == end:
                    crowded = not self._let_go_on(flight)
                    raise WaitExpiredError(crowded=crowded, given_up=crowded and seat.leads)
            finally:
                try:
                    self._leave(seat)
                except BaseException:
                    # Interrupted (Ctrl-C): what was not done yet is done now.
                    self._leave(seat)
                    raise
            if isinstance(outcome, Expired):
                alone = not self._dropped(flight)
            elif seat.leads or not isinstance(outcome, Abandoned):
                if not seat.leads and not caller.accepts(flight.look):
                    alone = monotonic() >= deadline
                    continue
                try:
                    return cast("T", outcome.unwrap())
                finally:
                    # An error's traceback refers to this frame: the two would keep each other alive.
                    del outcome, waiter, seat

    def run_blocking(
        self, key: bytes, load: Callable[[Flight], T], *, wait_timeout: float, caller: Caller = ANY_CALLER
    ) -> T:
        """Do what `run` does, for a thread; a leader's `load` is called in this very thread.

        :param wait_timeout: seconds to wait for another caller's load; then this caller loads for itself, with a
            flight that is detached.
        :param caller: judges what another's load brings; what is not good for it is loaded again.
        :raises CacheRecursionError: if the load of this key, directly or through others, needs this key.
        :raises CacheDeadlockError: in a thread whose event loop, held up by this call, would have to run the load; and
            in a signal handler or finalizer that has interrupted a critical section.
        :raises CacheClosedError: after `aclose`.
        """
        check_waiting()
        blocks = running_loop()
        deadline = monotonic() + wait_timeout
        alone = False
        while True:
            caller.prepare()
            waiter = ThreadWaiter()
            seat = Ticket(waiter, blocks)
            try:
                flight = self._board(seat, key, None, "", alone=alone)
                if seat.leads:
                    return self._fly_here(flight, load)
                outcome = waiter.wait(deadline - monotonic())
            finally:
                try:
                    self._leave(seat)
                except BaseException:
                    # Interrupted (Ctrl-C): what was not done yet is done now.
                    self._leave(seat)
                    raise
            if isinstance(outcome, Expired):
                alone = not self._dropped(flight)
            elif not isinstance(outcome, Abandoned):
                if not caller.accepts(flight.look):
                    alone = monotonic() >= deadline
                    continue
                try:
                    return cast("T", outcome.unwrap())
                finally:
                    del outcome

    def launch(self, key: bytes, load: Callable[[Flight], Awaitable[object]], namespace: str = "") -> bool:
        """Begin to load a key, on the running loop and for nobody; return whether that was done.

        It is not if the key is being loaded already, or too many loads go on unattended, or after `aclose`.
        """
        loop = asyncio.get_running_loop()
        self._sweep(namespace)
        with self._lock:
            if self._closed or self._joinable(key) is not None:
                return False
            flight = self._new(key, loop, namespace)
            # Whoever causes it does not wait for it.
            flight.outer = None
            if not self._unattended.add(flight):
                return False
            replaced = self._enter(flight)
        try:
            self._cancel_unwanted(replaced)
            self._take_off(flight, load, loop)
        except BaseException as error:
            if flight.task is None:
                self._settle(flight, Abandoned(error))
            raise
        return True

    def _let_go_on(self, flight: Flight) -> bool:
        """Have a load go on when nobody waits for it, if there are not too many of these."""
        self._sweep(flight.namespace)
        with self._lock:
            # One that was replaced ends with the last who waits for it.
            return flight.loop is None or flight.done or flight.overdue or self._unattended.add(flight)

    @contextlib.contextmanager
    def joint(self, flights: Sequence[Flight]) -> Generator[None]:
        """Treat what is run within as part of all these loads, whose one loader it is."""
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
        """Cancel the loads that run in tasks and take no more. Their callers get `CacheClosedError`.

        Tasks of the running loop have ended when this returns; those of other loops end as soon as these turn.
        Loads in threads run on and serve whoever waits.
        """
        here = asyncio.get_running_loop()
        ended = self.end()
        ours = [task for task, flight in ended if flight.loop is here and task is not asyncio.current_task()]
        if ours:
            await asyncio.wait(ours)

    def end(self) -> list[tuple[asyncio.Task[None], Flight]]:
        """Begin to do what `aclose` does, from any thread, and return the tasks that were cancelled."""
        with self._lock:
            self._closed = True
        tasks = list(self._tasks.items())
        for task, flight in tasks:
            self._call_off(task, flight)
        return tasks

    def reset(self) -> None:
        """Forget everything, in a forked child, where nobody works on the parent's loads."""
        self._lock = section()
        for flight in self._flights.values():
            # A load that forked and returns in the child must not wake waiters that live in the parent.
            flight.done, flight.detached, flight.crew = True, True, set()
        self._flights, self._blocked = {}, {}
        self._tasks = {}
        self._unattended.clear()
        self.joined = 0

    # -- the load ---------------------------------------------------------------------------------------------

    def _take_off(
        self, flight: Flight, load: Callable[[Flight], Awaitable[Any]], loop: asyncio.AbstractEventLoop
    ) -> None:
        coroutine = self._fly(flight, load)
        try:
            task = loop.create_task(coroutine)
        except BaseException as error:
            coroutine.close()
            self._settle(flight, Abandoned(error))
            raise
        flight.task = task
        if not task.done():  # an eager task may have ended at once
            end_with_loop(task)
            self._tasks[task] = flight
            task.add_done_callback(partial(self._land, flight))
            if self._closed:  # between boarding and here, by another thread
                self._call_off(task, flight)

    async def _fly(self, flight: Flight, load: Callable[[Flight], Awaitable[Any]]) -> None:
        LOADING.set(flight)  # in this task's own context
        JOB.set(None)
        try:
            value = await load(flight)
        except Exception as error:  # noqa: BLE001  # raised by every caller, the leader included
            if not flight.crew and not flight.adrift:
                self.unheard(flight, error)
            self._settle(flight, Abandoned(error) if flight.adrift else Failed(error, error.__traceback__))
        except SystemExit as error:
            # It is the leader's, in its own task or thread. Raised by this one, it would end the whole loop also where
            # that is the background loop, which is not the leader's to end.
            if not flight.crew:
                self.unheard(flight, error)
            self._settle(flight, Abandoned(error))
        except BaseException as error:
            self._settle(flight, Abandoned(error))
            raise
        else:
            self._settle(flight, Loaded(value))
        finally:
            if flight.adrift and flight.task is not None:
                # The task's callbacks will not be called.
                self._tasks.pop(flight.task, None)

    def _call_off(self, task: "asyncio.Task[None]", flight: Flight) -> None:
        self._settle(flight, Failed(closed_error(), None))
        cancel_task(task, task.get_loop())

    def _land(self, flight: Flight, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        # Cancelled before its first step, a task runs none of `_fly`.
        self._settle(flight, Abandoned(asyncio.CancelledError()))
        if not task.cancelled():
            task.exception()  # delivered already; asyncio need not complain that nobody asked

    def _fly_here(self, flight: Flight, load: Callable[[Flight], T]) -> T:
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
