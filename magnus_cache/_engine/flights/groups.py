"""Loads of many keys that one task runs for one call.

Each key has a flight of its own, which others find and join, and which is detached by a delete of its key alone. What
the flights of a group share is the task and the caller: a task, a future and a turn of the loop for each would cost
more than the load itself.

The caller waits for all of them, through a `Seat` in each. When it leaves early, the flights that have no other waiter
leave the registry. The task is cancelled when no flight is left that anyone waits for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from magnus_cache._engine.flights.callers import Look
from magnus_cache._engine.flights.cycles import enclosing_loads
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.flights.joins import Joins, cancel_task, closed_error
from magnus_cache._engine.runtime.loop_end import end_with_loop
from magnus_cache._engine.runtime.waiters import Abandoned, Failed, LoopWaiter, Outcome, wake
from magnus_cache._engine.runtime.workers import JOB, Job

__all__ = ["TAKEN", "FlightGroup", "Groups", "Seat"]

TAKEN: Final = Abandoned(asyncio.CancelledError())
"""In place of an outcome: the caller has the value itself, see `FlightGroup.values`."""


class Seat(LoopWaiter):
    """The place of a group's caller among those who wait for one of its flights."""

    __slots__ = ("_group", "place")

    def __init__(self, group: "FlightGroup", place: int) -> None:
        self.loop = group.loop
        self._group = group
        self.place = place

    def tell(self, outcome: Outcome) -> None:
        """Note the outcome; the first one counts."""
        self._group.told(self.place, outcome)


class FlightGroup:
    """The loads of one call that one task runs.

    :param blocks: the event loop that the caller blocks.
    :ivar flights: the loads.
    :ivar outcomes: for each of them, the outcome; None for one that is under way.
    :ivar values: the value of each that has `TAKEN` as its outcome.
    :ivar live: those that the task still runs for.
    :ivar task: the task that runs them.
    :ivar inner: the load that the caller is part of.
    :ivar job: the loader slot that the caller has given up while it waits.
    :ivar heard: called with the place of each outcome; or None.
    :ivar look: when they look, as all of them see it; None for a look of its own for each.
    """

    __slots__ = (
        "_all_told", "_left", "blocks", "flights", "heard", "inner", "job", "live", "look", "loop", "outcomes", "task",
        "values",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, blocks: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop
        self.blocks = blocks
        self.flights: list[Flight] = []
        self.outcomes: list[Outcome | None] = []
        self.values: list[Any] = []
        self.live: set[Flight] = set()
        self.inner: Flight | None = None
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None
        self.look: Look | None = None
        self.heard: Callable[[int], object] | None = None
        self._left = 0
        self._all_told: asyncio.Future[None] = loop.create_future()

    def add(self, flight: Flight) -> None:
        """Add a flight, before anyone can find it."""
        self.flights.append(flight)
        self.outcomes.append(None)
        self.values.append(None)
        self.live.add(flight)
        self._left += 1
        flight.group = self.live
        flight.waiters.add(Seat(self, len(self.flights) - 1))

    def told(self, place: int, outcome: Outcome, value: Any = None) -> None:
        """Note an outcome; the first one counts. On the group's loop."""
        if self.outcomes[place] is None:
            self.outcomes[place] = outcome
            self.values[place] = value
            self._left -= 1
            if self.heard is not None:
                self.heard(place)
            if not self._left and not self._all_told.done():
                self._all_told.set_result(None)

    async def wait(self) -> None:
        """Return when all outcomes are known."""
        if self._left:
            await self._all_told


class Groups(Joins):
    """The groups of one cache's loads."""

    def lead_many(self, group: FlightGroup, keys: Sequence[bytes], namespace: str, began: float) -> list[int]:
        """Enter the loads of some keys into the registry; return the places of those that can be led so.

        The others are being loaded, or would be part of their own load: for these, `run` finds out what to do.

        :raises CacheClosedError: after `aclose`.
        """
        group.inner, around = enclosing_loads(self)
        known, places, leading, look = self._flights, list[int](), list[Flight](), group.look
        for place, key in enumerate(keys):
            if key not in known and key not in around:
                leading.append(Flight(self, key, group.loop, namespace, began, look))
                places.append(place)
        with self._lock:
            if self._closed:
                raise closed_error()
            taken = {flight.key for flight in leading if flight.key in self._flights}
            if taken:
                # By another thread, in between.
                places = [place for place in places if keys[place] not in taken]
                leading = [flight for flight in leading if flight.key not in taken]
            for flight in leading:
                # In this order: what an interrupt (Ctrl-C) leaves behind here, `leave_many` finds.
                group.add(flight)
                self._flights[flight.key] = flight
            if group.inner is not None:
                group.inner.needs = [*group.inner.needs, *leading]
            if group.blocks is not None:
                self._blocked[group.blocks] = [*self._blocked.get(group.blocks, ()), *leading]
        return places

    def start_many(self, group: FlightGroup, load: Callable[[], Awaitable[object]]) -> None:
        """Run the loads of a group in a task of their own, in a copy of this context.

        :param load: settles each flight; it is cancelled when no caller waits for any of them.
        """
        if group.job is None and (job := JOB.get()) is not None:
            job.yield_slot()
            group.job = job
        coroutine = self._run_many(group, load)
        try:
            task = group.task = group.loop.create_task(coroutine)
        except BaseException:
            coroutine.close()
            raise
        for flight in group.flights:
            flight.task = task
        if not task.done():
            end_with_loop(task)
            self._tasks[task] = group.flights
            task.add_done_callback(partial(self._finished_many, group))
            if self._closed:  # by another thread, since they were entered
                self._cancel(task, group.flights)

    def run_alone(self, group: FlightGroup, place: int, load: Callable[[Flight], Awaitable[Any]]) -> None:
        """Let a flight of a group go on in a task of its own; those who wait for it do not notice.

        On the group's loop, in its task.
        """
        flight = group.flights[place]
        with self._lock:
            if flight.done or flight not in group.live:
                return  # Closed, or left by all callers.
            group.live.discard(flight)
            flight.group = flight.task = None
        self._start(flight, load, group.loop)

    def _start(self, flight: Flight, load: Callable[[Flight], Awaitable[Any]], loop: asyncio.AbstractEventLoop) -> None:
        """Run a load in a task of its own."""
        raise NotImplementedError

    async def _run_many(self, group: FlightGroup, load: Callable[[], Awaitable[object]]) -> None:
        JOB.set(None)
        try:
            await load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # as in `Flights._run`
            stopped = not group.loop.is_running()
            is_fault = isinstance(error, Exception) and not stopped
            self._end_many(group, Failed(error, error.__traceback__) if is_fault else Abandoned(error))
        except BaseException as error:
            self._end_many(group, Abandoned(error))
            raise
        else:
            self._end_many(group, Abandoned(asyncio.CancelledError()))
        finally:
            if group.task is not None and not group.loop.is_running():
                # The task's callbacks will not run.
                self._tasks.pop(group.task, None)

    def _finished_many(self, group: FlightGroup, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        # Cancelled before its first step, a task runs none of `_run_many`.
        self._end_many(group, Abandoned(asyncio.CancelledError()))
        if not task.cancelled():
            task.exception()  # delivered already; asyncio must not report it as never retrieved

    def _end_many(self, group: FlightGroup, outcome: Outcome) -> None:
        for flight in group.flights:
            if flight.group is not None and (not flight.done or flight.waiters):
                self._settle(flight, outcome)

    def settle_many(
        self, group: FlightGroup, places: Sequence[int], values: Sequence[Any], shared: Callable[[int], Outcome]
    ) -> None:
        """Deliver the values of some flights, once: to the group's caller as they are, to others as `shared` outcomes.

        On the group's loop.

        :param shared: returns the outcome for the other callers, by place in `values`. The group's caller has the
            value itself.
        """
        flights, known = group.flights, self._flights
        with self._lock:
            for place in places:
                flight = flights[place]
                if flight in self._background:
                    self._background.discard(flight)
                if known.get(flight.key) is flight:
                    # As in `_forget`.
                    known.pop(flight.key, None)
                flight.done = True
                group.live.discard(flight)
        for number, place in enumerate(places):
            flight = flights[place]
            # From here on no one joins it. Threads that leave do so under the lock, and find it done.
            waiters, flight.waiters, flight.loader = flight.waiters, set(), None
            others = [waiter for waiter in waiters if type(waiter) is not Seat]
            if len(others) < len(waiters):
                group.told(place, TAKEN, values[number])
            if others:
                wake(others, shared(number))

    def settle_one(self, group: FlightGroup, place: int, outcome: Outcome) -> None:
        """Deliver the outcome of one flight to all its callers."""
        flight = group.flights[place]
        if isinstance(outcome, Failed) and not flight.waiters and not flight.loop_stopped:
            self.on_unheard_error(flight, outcome.error)
        self._settle(flight, outcome)

    def leave_many(self, group: FlightGroup) -> None:
        """Unregister the group's caller, who waits no longer. Idempotent.

        Flights that have no other waiter leave the registry; with the last one, the task is cancelled.
        """
        if group.job is not None:
            job, group.job = group.job, None
            job.take_slot()
        if group.task is None:
            # Interrupted before it began, or no flight was led.
            self._end_many(group, Abandoned(KeyboardInterrupt()))
        flights, unwanted = group.flights, set[asyncio.Task[None]]()
        if group.inner is None and group.blocks is None and all(flight.done for flight in flights):
            return
        ours = set(flights)
        with self._lock:
            if group.inner is not None:
                group.inner.needs = [flight for flight in group.inner.needs if flight not in ours]
                group.inner = None
            if group.blocks is not None:
                rest = [flight for flight in self._blocked.get(group.blocks, ()) if flight not in ours]
                self._blocked[group.blocks] = rest
                if not rest:
                    del self._blocked[group.blocks]
                group.blocks = None
            for flight in flights:
                if flight.done:
                    continue
                flight.waiters = {waiter for waiter in flight.waiters if type(waiter) is not Seat}
                if not flight.waiters and flight not in self._background:
                    # Out of the registry in the same step: new callers start a load instead of joining this one.
                    self._forget(flight)
                    flight.detached = True
                    if self._is_last(flight) and flight.task is not None:
                        unwanted.add(flight.task)
        for task in unwanted:
            cancel_task(task, group.loop)

    def wanted(self, flights: Iterable[Flight]) -> list[Flight]:
        """Return those flights that some caller waits for, or that continue in the background."""
        return [flight for flight in flights if flight.waiters or flight in self._background]
