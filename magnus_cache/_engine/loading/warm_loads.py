"""Loading many keys one by one, with leases and fills that travel together: the work of `warm_cache`.

Leases are acquired for some keys ahead of their loads, and values are stored as they come, with all others that have
come meanwhile. How many keys are ahead depends on how fast the loader is: a fast one gets some hundred, a slow one no
more than run at a time. So no other process waits for a lease whose load is far from its turn.

A key whose load waits for its turn can be joined. Its load then begins at once, beyond the limit: the caller may be the
loader of another key, which keeps that key from its turn.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, NamedTuple, cast

from magnus_cache._engine.flights.context import CurrentLoad, as_current_load
from magnus_cache._engine.flights.flight import LOADING, Flight
from magnus_cache._engine.loading.batch_loads import LoadsTogether, by_server
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, LoadRequest
from magnus_cache._engine.loading.streamed_keys import Result, StreamedKeys
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import call_on_loop, cancel, loop_task
from magnus_cache._engine.runtime.waiters import Abandoned, Failed, Loaded, Outcome
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache.errors import RetryLater

__all__ = ["WarmLoads", "WarmRequest"]

_MOST: Final = 500
"""Keys whose leases are acquired together at most."""

_SOON: Final = 0.05
"""Seconds in which the loads of one portion should have begun."""

_JOB: Final = 0.002
"""Seconds after which a thread takes no further key, and hands over the values that it has."""


_PATIENCE: Final = 0.001
"""Seconds after which further threads are used if keys still wait."""


class WarmRequest(NamedTuple):
    """What to load, and how.

    :ivar loader: loads the value of one key.
    :ivar concurrency: how many loads run at a time.
    :ivar done: called for each key with the error of its load, or with why its value cannot be stored, or neither.
    """

    loader: Callable[[Any], Any]
    options: LoadOptions
    concurrency: int
    done: Callable[[Any, Exception | None, Exception | None], object]

    def of_key(self, item: BatchItem) -> LoadRequest[Any]:
        """Return the request for one key."""
        return LoadRequest(item.ref, partial(self.loader, item.key), self.options, item.tags, fresh=True)


class _Job:
    """A load that waits for its turn: of a key whose lease was acquired with others, or alone.

    :ivar turn: if it has a task of its own, done when that may go on; `over` is done when it has ended.
    """

    __slots__ = ("_begun", "item", "keys", "number", "over", "task", "turn")

    def __init__(self, item: BatchItem, keys: StreamedKeys | None = None, number: int = 0) -> None:
        self.item = item
        self.keys = keys
        self.number = number
        self.task: asyncio.Task[Any] | None = None
        self.turn: asyncio.Future[None] | None = None
        self.over: asyncio.Future[None] | None = None
        self._begun: list[None] = [None]

    def begin(self) -> bool:
        """Return whether this is the first call; from any thread."""
        try:
            # One call in C.
            self._begun.pop()
        except IndexError:
            return False
        return True

    @property
    def flight(self) -> Flight | None:
        """Its load, if that is entered into the registry already."""
        return None if self.keys is None else self.keys.flights[self.number]


class WarmLoads:
    """The loads of one call of `warm_cache`; `BatchCalls` of all portions of its keys."""

    def __init__(self, loads: Loads, request: WarmRequest) -> None:
        self._loads = loads
        self._request = request
        self._is_async = is_async(request.loader)
        self._outer = LOADING.get()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._left = 0
        self._moved: asyncio.Future[None] | None = None
        self._fault: BaseException | None = None
        self._over = self._is_hiring = False

    # -- for the caller ---------------------------------------------------------------------------------------------

    async def run(self, count: int, items: Callable[[int, int], Sequence[BatchItem]]) -> None:
        """Load keys, and return when all loads have ended.

        :param items: returns those from one place to another; some hundred at a time are asked for.
        :raises BaseException: what a loader raised that is not an `Exception`.
        """
        parts: list[LoadsTogether] = []
        self._left = count
        start, size = 0, self._request.concurrency
        batch = BatchRequest((), _no_location, _no_loader, self._request.options, self._request.loader, fresh=True)
        try:
            while start < count:
                began, part = monotonic(), items(start, min(start + size, count))
                start += len(part)
                begun = list[LoadsTogether]()
                for places in by_server(self._loads, part):
                    together = LoadsTogether(self._loads, batch, part, self._request.loader)
                    together.on_outcome(partial(self._heard, together, part))
                    parts.append(together)
                    for place in await together.lead(places):
                        self._queue.append(_Job(part[place]))
                    if together.places:
                        together.start(self)
                        begun.append(together)
                for together in begun:
                    await together.acquired()
                self._hire()
                await self._until(lambda: len(self._queue) < self._request.concurrency)
                is_fast = monotonic() - began < _SOON
                size = min(_MOST, 2 * size) if is_fast else max(self._request.concurrency, size // 2)
                for ended in [each for each in parts if each.is_over]:
                    ended.leave()
                    parts.remove(ended)
            await self._until(lambda: not self._left)
        finally:
            self._over = True
            for together in parts:
                together.leave()
            waiting, self._queue = self._queue, deque()
            for job in waiting:
                if self._is_wanted(job):
                    self._queue.append(job)
                elif job.keys is not None:
                    job.keys.drop()
            for job in list(self._running):
                # Loads that others have joined go on, and so do those that a thread runs.
                if job.task is not None and self._is_async and not self._is_wanted(job):
                    cancel(job.task)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self._fault is None and not condition():
            self._moved = self._loop.create_future()
            await self._moved
        if self._fault is not None:
            raise self._fault

    def _move(self) -> None:
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    def _fail(self, fault: BaseException) -> None:
        self._fault = fault
        self._move()

    def _heard(self, together: LoadsTogether, part: Sequence[BatchItem], number: int) -> None:
        """Take the outcome of a load."""
        item = part[together.places[number]]
        outcome: Outcome | None = together.outcome(number)
        if isinstance(outcome, Failed) and isinstance(outcome.error, Exception):
            self._done(item, outcome.error)
        elif isinstance(outcome, Loaded):
            self._done(item, None, cast("LoadedValue[Any]", outcome.value).refusal)
        elif isinstance(outcome, Abandoned) and not together.is_taken(number):
            self._fail(outcome.cause)
        else:
            self._done(item)

    def _done(self, item: BatchItem, error: Exception | None = None, refusal: Exception | None = None) -> None:
        self._left -= 1
        if not self._over:
            self._request.done(item.key, error, refusal)
        if not self._left:
            self._move()

    # -- as `BatchCalls` --------------------------------------------------------------------------------------------

    def pend(self, items: Sequence[BatchItem], flights: Sequence[Flight]) -> StreamedKeys:
        """Queue the loads of some keys whose leases are acquired."""
        keys = StreamedKeys(items, flights)
        for number, (item, flight) in enumerate(zip(items, flights, strict=True)):
            job = _Job(item, keys, number)
            self._wait_for_turn(job, flight)
        self._hire()
        return keys

    def _wait_for_turn(self, job: _Job, flight: Flight) -> None:
        self._queue.append(job)
        flight.urge = partial(self._urge, job)
        # In this order: a caller joins first, and looks for `urge` then.
        if flight.waiter_count > 1:
            flight.urge = None
            self._urge(job)

    def decided(self, count: int) -> None:
        """Do nothing: no call of the loader waits for other keys."""

    async def lead(self, item: BatchItem, flight: Flight) -> LoadedValue[Any]:
        """Load a key in its flight's own task, when its turn comes."""
        job = _Job(item)
        job.turn, job.over = self._loop.create_future(), self._loop.create_future()
        self._wait_for_turn(job, flight)
        self._hire()
        try:
            await job.turn
            return await self._loads.lead(self._request.of_key(item), flight)
        finally:
            job.begin()
            cancel(job.over)

    # -- the loads --------------------------------------------------------------------------------------------------

    def _urge(self, job: _Job) -> None:
        """Begin a load now that waits for its turn, because it was joined; on the loop."""
        if job.begin():
            self._employ(self._do(job))

    def _hire(self) -> None:
        """Have more workers begin the loads that wait: for threads a few at first, as one may be fast enough."""
        room = min(self._request.concurrency - len(self._workers), len(self._queue))
        if self._is_async:
            more = room
        elif self._is_hiring:
            return
        else:
            more = min(room, len(self._workers) or 1)
        for _ in range(more):
            self._employ(self._work())
        if more < room:
            self._is_hiring = True
            self._loop.call_later(_PATIENCE, self._hire_more)

    def _hire_more(self) -> None:
        self._is_hiring = False
        self._hire()

    def _employ(self, work: Any) -> None:
        task = loop_task(work)
        self._workers.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._workers.discard(task)
        if not task.cancelled():
            if (fault := task.exception()) is not None:
                self._fail(fault)
            elif self._queue:
                # Queued when it had found none any more, and still counted as a worker.
                self._hire()
        self._move()

    def _next(self) -> _Job | None:
        """Return the next load to begin; from any thread."""
        while True:
            try:
                job = self._queue.popleft()
            except IndexError:
                return None
            if not self._is_wanted(job):
                if job.begin() and job.keys is not None:
                    call_on_loop(self._loop, job.keys.drop)
            elif job.begin():
                return job

    def _is_wanted(self, job: _Job) -> bool:
        flight = job.flight
        if flight is None:
            return job.turn is not None or not self._over
        return bool(flight.waiters) and not flight.done

    async def _work(self) -> None:
        while (job := self._next()) is not None:
            await self._do(job)
            if len(self._queue) < self._request.concurrency:
                self._move()

    async def _do(self, job: _Job) -> None:
        job.task = asyncio.current_task()
        self._running.add(job)
        try:
            if job.turn is not None and job.over is not None:
                cancelled = job.over
                if not job.turn.done():
                    job.turn.set_result(None)
                await asyncio.wait([cancelled])
            elif job.keys is None:
                await self._load_alone(job)
            elif self._is_async or self._loads.permits.limits(job.item.ref):
                await self._load(job)
            else:
                await self._load_in_thread(job)
        except asyncio.CancelledError as error:
            if not self._over:
                self._fail(error)
            elif job.keys is not None:
                job.keys.drop()
        except BaseException as error:  # noqa: BLE001  # raised by `run`, not by the loop
            self._fail(error)
        finally:
            self._running.discard(job)

    async def _load_alone(self, job: _Job) -> None:
        LOADING.set(self._outer)  # in this task's own context
        try:
            outcome = await self._loads.outcome(self._request.of_key(job.item))
        except Exception as error:  # noqa: BLE001  # a key that fails does not stop the others
            self._done(job.item, error)
        else:
            self._done(job.item, None, outcome.refusal)

    async def _load(self, job: _Job) -> None:
        started, value, error = monotonic(), None, None
        assert job.keys is not None
        LOADING.set(self._enter(job))  # in this task's own context
        request, flight = self._request.of_key(job.item), job.keys.flights[job.number]
        call = partial(self._loads.call, request.loader, str(request.ref.namespace))
        try:
            with as_current_load(CurrentLoad()):
                started, value = await self._loads.permits.warmed(request, flight, call, partial(self._span, job))
        except Exception as failure:  # noqa: BLE001  # raised by all callers of this key
            error = failure
        self._put(job, error, value, started)

    async def _load_in_thread(self, job: _Job) -> None:
        """Have a thread load a key, and further keys while that is fast: to go to a thread costs more than they do."""
        namespace = str(job.item.ref.namespace)
        for loaded, error, value, started in await self._loads.call(partial(self._called, job), namespace):
            if isinstance(error, RetryLater) and (flight := loaded.flight) is not None:
                await self._loads.permits.paused_warm(self._request.of_key(loaded.item), flight, error)
                await self._load(loaded)
                continue
            if error is None and inspect.isawaitable(value):
                # A lambda around a coroutine function does not look like one until it is called.
                error, value = await self._awaited(loaded, value)
            self._put(loaded, error, value, started)

    async def _awaited(self, job: _Job, value: Any) -> tuple[Exception | None, Any]:
        LOADING.set(job.flight)  # in this task's own context

        async def result() -> Any:
            return await value

        try:
            with as_current_load(CurrentLoad()), self._span(job):
                return None, await self._loads.call(result, str(job.item.ref.namespace))
        except Exception as failure:  # noqa: BLE001  # as in `_load`
            return failure, None

    def _called(self, first: _Job) -> list[tuple[_Job, Exception | None, Any, float]]:
        """Return what the loader returns for one key, and for those that follow; in a thread."""
        until, done = monotonic() + _JOB, list[tuple[_Job, Exception | None, Any, float]]()
        job: _Job | None = first
        while job is not None:
            started, value, error = monotonic(), None, None
            LOADING.set(self._enter(job))  # in this call's own context
            try:
                with as_current_load(CurrentLoad()), self._span(job):
                    value = self._request.loader(job.item.key)
            except Exception as failure:  # noqa: BLE001  # as in `_load`
                error = failure
            done.append((job, error, value, started))
            if inspect.isawaitable(value) or isinstance(error, RetryLater) or monotonic() > until:
                break
            job = self._next_together()
        return done

    def _next_together(self) -> _Job | None:
        """Return the next load if it is one that a thread may take; from any thread."""
        job = self._next()
        if job is None or job.keys is not None:
            return job
        # For a worker on the loop: a job like it, as this one counts as begun.
        again = _Job(job.item)
        again.turn, again.over = job.turn, job.over
        self._queue.appendleft(again)
        return None

    def _span(self, job: _Job) -> AbstractContextManager[None]:
        return self._loads.span(self._request.of_key(job.item), job.flight)

    def _enter(self, job: _Job) -> Flight | None:
        flight = job.flight
        if flight is not None:
            flight.urge, flight.began = None, self._loads.clock()
        return flight

    def _put(self, job: _Job, error: Exception | None, value: Any, started: float) -> None:
        assert job.keys is not None
        job.keys.put(Result(job.number, error, value, monotonic() - started))


def _no_location(_: Any) -> BatchItem:
    raise AssertionError("the keys are located already")


def _no_loader(_: list[Any]) -> dict[Any, Any]:
    raise AssertionError("each key is loaded by itself")
