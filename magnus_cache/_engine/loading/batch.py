"""Loading many keys at once: one call of a batch loader for all keys that no other caller is loading.

Each key has its own flight, so single and batch callers share loads, in this process and in the fleet. A key of a batch
is *decided* once the batch has its lease, has joined another flight, or waits for another process. When all keys are
decided, one call of the loader gets all those that the batch has to load itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, LoadRequest
from magnus_cache._engine.loading.results import PreparedValue
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.records import MISS
from magnus_cache.errors import CacheTypeError

__all__ = ["Batch", "CallLoader"]

CallLoader = Callable[[Sequence[Any], Sequence[Flight]], Awaitable[Any]]
"""Calls the batch loader with some keys, as part of the loads of these keys, on the right loop or thread."""

_STARTS_PER_TURN: Final = 50
"""Keys whose flights are started in one turn of the loop."""

_MOST_KEYS: Final = 500
"""Keys that one call of the loader gets at most."""


class _PendingKey:
    """A key that this batch has to load, and the future of its value or error."""

    __slots__ = ("answer", "flight", "item")

    def __init__(self, item: BatchItem, flight: Flight) -> None:
        self.item = item
        self.flight = flight
        self.answer: asyncio.Future[tuple[BaseException | None, Any]] = asyncio.get_running_loop().create_future()

    def resolve(self, error: BaseException | None, value: Any = None) -> None:
        """Set the answer, unless it is set or cancelled."""
        if not self.answer.done():
            # Not as the future's exception: it could not be a StopIteration.
            self.answer.set_result((error, value))


class _Call:
    """One call of the loader; it is cancelled when no caller waits for any of its keys."""

    __slots__ = ("keys", "task", "unanswered")

    def __init__(self, keys: list[_PendingKey], load: Callable[[list[_PendingKey]], Coroutine[Any, Any, None]]) -> None:
        self.keys = keys
        self.unanswered = len(keys)
        self.task = loop_task(load(keys))
        # Also for a task that is cancelled before its first step.
        self.task.add_done_callback(self._ended)
        for key in keys:
            key.answer.add_done_callback(self._answered)

    def _answered(self, _: asyncio.Future[Any]) -> None:
        self.unanswered -= 1
        if not self.unanswered:
            self.task.cancel()

    def _ended(self, task: asyncio.Future[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for key in self.keys:
            key.resolve(error or asyncio.CancelledError())


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
        self._pending: list[_PendingKey] = []
        self._calls: set[_Call] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, items: Sequence[BatchItem]) -> tuple[dict[bytes, Any], dict[Any, Exception]]:
        """Return the values by name, without keys that the loader omitted, and the errors by key."""
        values: dict[bytes, Any] = {}
        errors: dict[Any, Exception] = {}
        self._loop = asyncio.get_running_loop()
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
        self._sealed = False
        tasks: list[asyncio.Task[Any]] = []
        try:
            for item in part:
                tasks.append(loop_task(self._load_key(item)))
                if len(tasks) % _STARTS_PER_TURN == 0:
                    await asyncio.sleep(0)
            # One turn for the tasks to join flights, and one for the flights that they lead to start.
            for _ in range(2):
                await asyncio.sleep(0)
            self._all_started()
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            cancel(*tasks)
            # If this call was cancelled before, other callers may have joined its flights: they need the loader.
            self._all_started()

    def _all_started(self) -> None:
        """Allow the loader to be called, as soon as all keys are decided."""
        self._sealed = True
        self._decided(0)

    async def _load_key(self, item: BatchItem) -> Any:
        ref, loads = item.ref, self._loads
        request = self._request.of_key(item, self._source)

        async def lead(flight: Flight) -> LoadedValue[Any]:
            self._undecided += 1
            flight.loader = self._source
            decided = _OneShot(self._decided)
            try:
                got = await loads.acquirer.acquire(request._replace(on_wait=decided), flight)
                opened = await loads.open(ref, got, flight)
                fence = loads.to_load(request, flight, got, opened)
                if isinstance(fence, LoadedValue):
                    return fence
                return await self._load_in_call(item, request, fence, decided)
            finally:
                decided()

        caller = loads.joining.caller(request, self._source)
        await loads.joining.confirm(request, caller)
        loaded = await loads.flights.run(
            ref.name, lead, wait_timeout=loads.wait_timeout, namespace=str(ref.namespace), caller=caller
        )
        return await loaded.taken(strict=request.strict)

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
                self._decided(0)
            error, value = await key.answer
            if error is not None:
                if isinstance(error, Exception):
                    await self._loads.record_failure(request, error, started, fence)
                raise error
            if value is MISS:
                # Valid for callers with the same loader; others that joined this flight ask their own.
                flight.look.left_out_by = self._source
                flight.look.tags = item.tags
                return LoadedValue(MISS, None)
            cost = self._loads.count_load(item.ref, started)
            if isinstance(value, PreparedValue):
                return await self._loads.stored(request, value, cost, fence)
            return await self._loads.store_result(request, value, cost, fence)
        finally:
            cancel(key.answer)
            fence.close()

    def _decided(self, count: int) -> None:
        """Count keys as decided, and call the loader if none is undecided."""
        self._undecided -= count
        if self._sealed and not self._undecided and self._pending:
            loop = running_loop()
            # After the loop was closed, the garbage collector ends the batch, perhaps while another loop runs.
            if loop is not None and loop is self._loop:
                # In the next turn: keys whose leases came in the same batch of answers join this call.
                loop.call_soon(self._start)

    def _start(self) -> None:
        keys, self._pending = [key for key in self._pending if not key.answer.done()], []
        if keys:
            call = _Call(keys, self._load)
            self._calls.add(call)
            call.task.add_done_callback(lambda _: self._calls.discard(call))

    async def _load(self, keys: list[_PendingKey]) -> None:
        try:
            # A batch loader replaces no single value, even if it runs within the load of one.
            with as_current_load(CurrentLoad()):
                answers = await self._call([key.item.key for key in keys], [key.flight for key in keys])
            if not isinstance(answers, Mapping):
                kind = type(answers).__name__
                raise CacheTypeError("batch_loader", f"it has to return a mapping of keys to values, not {kind}")
        except Exception as error:  # noqa: BLE001  # raised by all callers that wait for one of the keys
            for key in keys:
                key.resolve(error)
            return
        step = Step()
        for key in keys:
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
