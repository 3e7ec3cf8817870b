"""Loading many keys at once: one call of a batch loader for all keys that no other caller is loading.

Each key has its own flight, so single and batch callers share loads, in this process and in the fleet. A key of a batch
is *decided* once the batch has its lease, has joined another flight, or waits for another process. When all keys are
decided, one call of the loader gets all those that the batch has to load itself.

Most keys of most batches are loaded by no one else. These are loaded together (`batch_loads`): their leases and fills
travel some dozens at a time. All others, and those that turn out to be special, are loaded one by one here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.batch_loads import REFUSED, STARTS_PER_TURN, LoadsTogether, PendingKeys, by_server
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.money import count_load
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, LoadRequest
from magnus_cache._engine.loading.results import PreparedValue
from magnus_cache._engine.loading.spend_gate import give_back
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.records import MISS, KeyRef
from magnus_cache._engine.store.stamps import Note
from magnus_cache.errors import CacheBudgetError, CacheTypeError, RetryLater

__all__ = ["Batch", "CallLoader"]

CallLoader = Callable[[Sequence[Any], Sequence[Flight]], Awaitable[Any]]
"""Calls the batch loader with some keys, as part of the loads of these keys, on the right loop or thread."""

_MOST_KEYS: Final = 500
"""Keys that one call of the loader gets at most."""


class _PendingKey:
    """A key that this batch has to load, and the future of its value or error."""

    __slots__ = ("answer", "flight", "item")

    def __init__(self, item: BatchItem, flight: Flight) -> None:
        self.item = item
        self.flight = flight
        self.answer: asyncio.Future[tuple[BaseException | None, Any]] = asyncio.get_running_loop().create_future()

    def wanted(self) -> tuple[list[Any], list[Flight]]:
        """Return the keys that are still to be loaded, and their flights."""
        return ([], []) if self.answer.done() else ([self.item.key], [self.flight])

    def resolve(self, error: BaseException | None, value: Any = None) -> None:
        """Set the answer, unless it is set or cancelled."""
        if not self.answer.done():
            # Not as the future's exception: it could not be a StopIteration.
            self.answer.set_result((error, value))


class _Call:
    """One call of the loader; it is cancelled when no caller waits for any of its keys."""

    __slots__ = ("pending", "task", "unanswered")

    def __init__(self, pending: "_Pending", load: Callable[["_Pending"], Coroutine[Any, Any, None]]) -> None:
        self.pending = pending
        self.unanswered = len(pending)
        self.task = loop_task(load(pending))
        # Also for a task that is cancelled before its first step.
        self.task.add_done_callback(self._ended)
        for wanted in pending:
            wanted.answer.add_done_callback(self._answered)

    def _answered(self, _: asyncio.Future[Any]) -> None:
        self.unanswered -= 1
        if not self.unanswered:
            self.task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for wanted in self.pending:
            wanted.resolve(error or asyncio.CancelledError())


_Pending = list[_PendingKey | PendingKeys]


class Batch:
    """One call for many keys.

    :param request: the keys, and how to load them.
    :param call: calls the batch loader.
    :param source: identifies the batch loader.
    """

    def __init__(self, loads: Loads, request: BatchRequest, call: CallLoader, source: object) -> None:
        self._loads = loads
        self._request = request
        self._call = call
        self._source = source
        self._undecided = 0
        self._sealed = False
        self._pending: _Pending = []
        self._calls: set[_Call] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ref: KeyRef | None = None
        self._began = 0.0

    async def run(self, items: Sequence[BatchItem]) -> tuple[dict[bytes, Any], dict[Any, Exception]]:
        """Return the values by name, without keys that the loader omitted, and the errors by key."""
        values: dict[bytes, Any] = {}
        errors: dict[Any, Exception] = {}
        self._loop = asyncio.get_running_loop()
        self._ref, self._began = items[0].ref if items else None, monotonic()
        for start in range(0, len(items), _MOST_KEYS):
            part = items[start : start + _MOST_KEYS]
            for item, outcome in zip(part, await self._load_part(part), strict=True):
                if isinstance(outcome, Exception):
                    errors[item.key] = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
                elif outcome is not MISS:
                    values[item.ref.name] = outcome
        return values, errors

    async def _load_part(self, part: Sequence[BatchItem]) -> list[Any]:
        """Return the value or the error of each key; MISS for one that the loader omitted."""
        self._sealed = False
        outcomes: list[Any] = [MISS] * len(part)
        groups: list[LoadsTogether] = []
        tasks: dict[int, asyncio.Task[Any]] = {}
        try:
            alone = list[int]()
            for places in by_server(self._loads, part):
                groups.append(LoadsTogether(self._loads, self._request, part, self._source))
                alone += await groups[-1].lead(places)
            await self._start_alone(part, sorted(alone), tasks)
            started = [together for together in groups if together.places]
            self._undecided += len(started)
            for together in started:
                together.start(self)
            for together in started:
                await together.acquired()
            self._all_started()
            for together in groups:
                await together.outcomes(outcomes)
            found = await asyncio.gather(*tasks.values(), return_exceptions=True)
            for place, outcome in zip(tasks, found, strict=True):
                outcomes[place] = outcome
        finally:
            for together in groups:
                together.leave()
            cancel(*tasks.values())
            # If this call was cancelled before, other callers may have joined its flights: they need the loader.
            self._all_started()
        return outcomes

    async def _start_alone(
        self, part: Sequence[BatchItem], places: Sequence[int], tasks: dict[int, asyncio.Task[Any]]
    ) -> None:
        """Start the loads of some keys, each by itself, and return when it is known which of them need the loader."""
        if not places:
            return
        for number, place in enumerate(places, 1):
            tasks[place] = loop_task(self._load_key(part[place]))
            if number % STARTS_PER_TURN == 0:
                await asyncio.sleep(0)
        # One turn for the tasks to join flights, and one for the flights that they lead to start.
        for _ in range(2):
            await asyncio.sleep(0)

    def _all_started(self) -> None:
        """Allow the loader to be called, as soon as all keys are decided."""
        self._sealed = True
        self.decided(0)

    def pend(self, items: Sequence[BatchItem], flights: Sequence[Flight]) -> PendingKeys:
        """Add keys to the next call of the loader."""
        pending = PendingKeys(items, flights, self._loads.flights.wanted)
        self._pending.append(pending)
        self.decided(0)
        return pending

    async def _load_key(self, item: BatchItem) -> Any:
        ref, loads = item.ref, self._loads
        request = self._request.of_key(item, self._source)
        caller = loads.joining.caller(request, self._source)
        await loads.joining.confirm(request, caller)
        lead = partial(self.lead, item)
        loaded = await loads.flights.run(
            ref.name, lead, wait_timeout=loads.wait_timeout, namespace=str(ref.namespace), caller=caller
        )
        if self._request.notes is not None:
            self._request.notes[ref.name] = note = Note()
            note.loaded(loaded.began)
        return await loaded.taken(strict=request.strict)

    async def lead(self, item: BatchItem, flight: Flight) -> LoadedValue[Any]:
        """Load a key alone, in its flight's own task; its value still comes from a call for all pending keys."""
        self._undecided += 1
        flight.loader, loads = self._source, self._loads
        request = self._request.of_key(item, self._source)
        decided = _OneShot(self.decided)
        try:
            got = await loads.acquirer.acquire(request._replace(on_wait=decided), flight)
            opened = await loads.open(item.ref, got, flight)
            fence = loads.to_load(request, flight, got, opened)
            if isinstance(fence, LoadedValue):
                return fence
            return await self._load_in_call(item, request, fence, decided)
        finally:
            decided()

    async def _load_in_call(
        self, item: BatchItem, request: LoadRequest[Any], fence: Fence, decided: "_OneShot"
    ) -> LoadedValue[Any]:
        """Add a key to the next call of the loader, and store its value."""
        flight = fence.flight
        key = _PendingKey(item, flight)
        try:
            self._pending.append(key)
            flight.began, started = self._loads.clock(), monotonic()
            if not decided():
                # The key waited for another process and was decided before it could be loaded.
                self.decided(0)
            error, value = await key.answer
            if error is not None:
                if isinstance(error, Exception) and value is not REFUSED:
                    await self._loads.record_failure(request, error, started, fence)
                raise error
            if value is MISS:
                # Valid for callers with the same loader; others that joined this flight ask their own.
                flight.look.left_out_by = self._source
                flight.look.tags = item.tags
                give_back(self._loads.reads.state, item.ref, request.options, (flight,))
                return LoadedValue(MISS, None)
            cost = count_load(self._loads.reads.state, request, started)
            if isinstance(value, PreparedValue):
                return await self._loads.stored(request, value, cost, fence)
            return await self._loads.store_result(request, value, cost, fence)
        finally:
            cancel(key.answer)
            fence.close()

    def decided(self, count: int) -> None:
        """Count keys as decided, and call the loader if none is undecided."""
        self._undecided -= count
        if self._sealed and not self._undecided and self._pending:
            loop = running_loop()
            # After the loop was closed, the garbage collector ends the batch, perhaps while another loop runs.
            if loop is not None and loop is self._loop:
                # In the next turn: keys whose leases came in the same batch of answers join this call.
                loop.call_soon(self._start)

    def _start(self) -> None:
        pending: _Pending = [wanted for wanted in self._pending if not wanted.answer.done()]
        self._pending = []
        if pending:
            call = _Call(pending, self._load)
            self._calls.add(call)
            call.task.add_done_callback(lambda _: self._calls.discard(call))

    async def _permitted(self, keys: Sequence[Any], flights: Sequence[Flight]) -> Any:
        """Call the loader, once its source may be asked: again after a pause that it has asked for."""
        permits, ref = self._loads.permits, self._ref
        while True:
            if ref is not None and permits.limits(ref):
                try:
                    await permits.enter_batch(self._request, ref, flights, self._began)
                except CacheBudgetError as error:
                    raise _RefusedError(error) from None
            try:
                return await self._call(keys, flights)
            except RetryLater as later:
                if ref is None:
                    raise
                try:
                    await permits.paused_batch(self._request, ref, flights, later, self._began)
                except CacheBudgetError as error:
                    raise _RefusedError(error) from None

    async def _load(self, pending: _Pending) -> None:
        try:
            keys, flights = list[Any](), list[Flight]()
            for wanted in pending:
                some, their = wanted.wanted()
                keys += some
                flights += their
            now = self._loads.clock()
            for flight in flights:
                # The time spent waiting for other keys does not count as load time.
                flight.began = now
            # A batch loader replaces no single value, even if it runs within the load of one.
            with as_current_load(CurrentLoad()):
                answers = await self._permitted(keys, flights) if keys else {}
            if not isinstance(answers, Mapping):
                kind = type(answers).__name__
                raise CacheTypeError("batch_loader", f"it has to return a mapping of keys to values, not {kind}")
        except _RefusedError as refused:
            for wanted in pending:
                wanted.resolve(refused.error, REFUSED)
            return
        except Exception as error:  # noqa: BLE001  # raised by all callers that wait for one of the keys
            for wanted in pending:
                wanted.resolve(error)
            return
        step = Step()
        for key in pending:
            if isinstance(key, PendingKeys):
                key.resolve(None, answers)
                continue
            if step.done():
                # Each answer wakes a task that encodes and stores a value.
                await asyncio.sleep(0)
                await turn()
            try:
                answer = answers.get(key.item.key, MISS)
            except Exception as error:  # noqa: BLE001  # raised by the loader's own mapping class
                answer = error
            # A loader may fail for some keys only: an exception as a value marks such a key.
            if isinstance(answer, Exception):
                key.resolve(answer)
            else:
                key.resolve(None, answer)


class _RefusedError(Exception):
    """The loader was not called. What a loader raises itself may be a `CacheBudgetError` as well, of another cache."""

    def __init__(self, error: CacheBudgetError) -> None:
        super().__init__()
        self.error = error


class _OneShot:
    """Counts a key as decided, once; call it to do so."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._callback: Callable[[int], None] | None = callback

    def __call__(self) -> bool:
        """Count the key; return whether this was the first call."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(1)
        return callback is not None
