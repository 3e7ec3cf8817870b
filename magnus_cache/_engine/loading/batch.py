"""Loading many keys at once: one call of a batch loader for those that nobody else is loading.

Each key has a flight of its own, so that single and batch callers share loads, in this process and in the fleet. What
a batch adds is that its flights, once each of them has been claimed, joined or found to be somebody else's, hand their
keys to one call of the loader.
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
from magnus_cache._engine.loading.results import JudgedValue
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.records import MISS
from magnus_cache.errors import CacheTypeError

__all__ = ["Batch", "CallLoader"]

CallLoader = Callable[[Sequence[Any], Sequence[Flight]], Awaitable[Any]]
"""Calls the batch loader with some keys, as part of the loads of these keys, wherever it is to run."""

_STARTED: Final = 50
"""Keys whose flights are begun in one turn of the loop."""

_AT_ONCE: Final = 500
"""Keys handed to one call of the loader at most, and handled by one batch."""


class _PendingKey:
    """A key that this batch has claimed, and the future of what the loader says: its value or its error."""

    __slots__ = ("answer", "flight", "wanted")

    def __init__(self, wanted: BatchItem, flight: Flight) -> None:
        self.wanted = wanted
        self.flight = flight
        self.answer: asyncio.Future[tuple[BaseException | None, Any]] = asyncio.get_running_loop().create_future()

    def tell(self, error: BaseException | None, value: Any = None) -> None:
        """Answer, unless there is an answer, or nobody waits any more."""
        if not self.answer.done():
            # Not as the future's exception: it could not be a StopIteration.
            self.answer.set_result((error, value))


class _Call:
    """One call of the loader: it goes on for as long as anybody waits for one of its keys."""

    __slots__ = ("left", "orders", "task")

    def __init__(
        self, orders: list[_PendingKey], load: Callable[[list[_PendingKey]], Coroutine[Any, Any, None]]
    ) -> None:
        self.orders = orders
        self.left = len(orders)
        self.task = loop_task(load(orders))
        # Also for a task that is cancelled before its first step.
        self.task.add_done_callback(self._ended)
        for order in orders:
            order.answer.add_done_callback(self._gone)

    def _gone(self, answer: asyncio.Future[Any]) -> None:
        self.left -= 1
        if not self.left:
            self.task.cancel()

    def _ended(self, task: asyncio.Future[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for order in self.orders:
            order.tell(error or asyncio.CancelledError())


class Batch:
    """One call for many keys.

    :param request: what is wanted of it.
    :param call: calls the batch loader.
    :param source: what the batch loader is told apart from others by.
    """

    def __init__(self, loads: Loads, request: BatchRequest, call: CallLoader, source: object) -> None:
        self._loads = loads
        self._request = request
        self._call = call
        self._source = source
        self._undecided = 0
        self._sealed = False
        self._orders: list[_PendingKey] = []
        self._calls: set[_Call] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, wanted: Sequence[BatchItem]) -> tuple[dict[bytes, Any], dict[Any, Exception]]:
        """Return the values by name, without those that the loader did not answer, and the errors by key."""
        values: dict[bytes, Any] = {}
        errors: dict[Any, Exception] = {}
        self._loop = asyncio.get_running_loop()
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            for item, outcome in zip(some, await self._some(some), strict=True):
                if isinstance(outcome, Exception):
                    errors[item.key] = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
                elif outcome is not MISS:
                    values[item.ref.name] = outcome
        return values, errors

    async def _some(self, some: Sequence[BatchItem]) -> list[Any]:
        self._sealed = False
        tasks: list[asyncio.Task[Any]] = []
        try:
            for item in some:
                tasks.append(loop_task(self._one(item)))
                if len(tasks) % _STARTED == 0:
                    await asyncio.sleep(0)
            # One turn for the tasks to join, and one for the flights that they lead to begin.
            for _ in range(2):
                await asyncio.sleep(0)
            self._all_started()
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            cancel(*tasks)
            # Cancelled before, others may have joined the flights: the loader is called for them.
            self._all_started()

    def _all_started(self) -> None:
        """Note that all keys have been begun; from now on, the loader is called as soon as all are decided."""
        self._sealed = True
        self._decided(0)

    async def _one(self, wanted: BatchItem) -> Any:
        ref, loads = wanted.ref, self._loads
        request = self._request.of_key(wanted, self._source)

        async def lead(flight: Flight) -> LoadedValue[Any]:
            self._undecided += 1
            flight.loader = self._source
            decided = _OneShot(self._decided)
            try:
                got = await loads.acquirer.acquire(request._replace(on_wait=decided.tell), flight)
                opened = await loads.open(ref, got, flight)
                fence = loads.to_load(request, flight, got, opened)
                if isinstance(fence, LoadedValue):
                    return fence
                return await self._ordered(wanted, request, fence, decided)
            finally:
                decided.tell()

        caller = loads.joining.caller(request, self._source)
        await loads.joining.confirm(request, caller)
        loaded = await loads.flights.run(
            ref.name, lead, wait_timeout=loads.wait_timeout, namespace=str(ref.namespace), caller=caller
        )
        return await loaded.taken(strict=request.strict)

    async def _ordered(
        self, wanted: BatchItem, request: LoadRequest[Any], fence: Fence, decided: "_OneShot"
    ) -> LoadedValue[Any]:
        """Have the loader called for a key that was claimed, and store its value."""
        flight = fence.flight
        order = _PendingKey(wanted, flight)
        try:
            self._orders.append(order)
            flight.began, started = self._loads.clock(), monotonic()
            if not decided.tell():
                # It had to wait for somebody else's load, and nobody waits for it any more.
                self._decided(0)
            error, value = await order.answer
            if error is not None:
                if isinstance(error, Exception):
                    await self._loads.record_failure(request, error, started, fence)
                raise error
            if value is MISS:
                # An answer for callers with the same loader; others who joined ask their own.
                flight.look.left_out_by = self._source
                flight.look.tags = wanted.tags
                return LoadedValue(MISS, None)
            cost = self._loads.count_load(wanted.ref, started)
            if isinstance(value, JudgedValue):
                return await self._loads.stored(request, value, cost, fence)
            return await self._loads.store_result(request, value, cost, fence)
        finally:
            cancel(order.answer)
            fence.close()

    def _decided(self, count: int) -> None:
        """Note that so many keys need not be waited for any more, and call the loader if that was the last."""
        self._undecided -= count
        if self._sealed and not self._undecided and self._orders:
            loop = running_loop()
            # If the loop was closed, the collector ends the batch, perhaps in a turn of another loop.
            if loop is not None and loop is self._loop:
                # In the next turn: others that were granted in the same batch of answers come along.
                loop.call_soon(self._start)

    def _start(self) -> None:
        orders, self._orders = [order for order in self._orders if not order.answer.done()], []
        if orders:
            call = _Call(orders, self._load)
            self._calls.add(call)
            call.task.add_done_callback(lambda _: self._calls.discard(call))

    async def _load(self, orders: list[_PendingKey]) -> None:
        try:
            # A loader of many keys replaces no single value, also within the load of one.
            with as_current_load(CurrentLoad()):
                answers = await self._call([order.wanted.key for order in orders], [order.flight for order in orders])
            if not isinstance(answers, Mapping):
                kind = type(answers).__name__
                raise CacheTypeError("batch_loader", f"it has to return a mapping of keys to values, not {kind}")
        except Exception as error:  # noqa: BLE001  # it goes to everybody who waits for one of the keys
            for order in orders:
                order.tell(error)
            return
        portion = Step()
        for order in orders:
            if portion.done():
                # Each of them wakes a task that encodes and stores its value.
                await asyncio.sleep(0)
                await turn()
            try:
                answer = answers.get(order.wanted.key, MISS)
            except Exception as error:  # noqa: BLE001  # the mapping is the loader's own
                answer = error
            # A loader may fail for some keys only: it gives their exceptions for values.
            if isinstance(answer, Exception):
                order.tell(answer)
            else:
                order.tell(None, answer)


class _OneShot:
    """Tells a batch once that a key is decided."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._callback: Callable[[int], None] | None = callback

    def tell(self) -> bool:
        """Tell it; return whether this was the first time."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(1)
        return callback is not None
