"""Loads, which follow a miss: one loader runs for all concurrent callers of a key, and its value is stored.

The rules are the same for coroutines, whose load runs in its own task, and for threads, where the first caller loads.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeGuard, TypeVar, cast

from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.background import WaitExpiredError
from magnus_cache._engine.flights.context import (
    CURRENT,
    CurrentLoad,
    as_current_load,
    modified,
)
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.loading.failures import LoadFailures, loader_name
from magnus_cache._engine.loading.joining import JoinRules
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.money import count_load
from magnus_cache._engine.loading.own_loop import wait_for
from magnus_cache._engine.loading.permits import Permits
from magnus_cache._engine.loading.remembered import error_record
from magnus_cache._engine.loading.request import BatchRequest, LoadRequest
from magnus_cache._engine.loading.results import PreparedValue, ResultPreparer
from magnus_cache._engine.loading.spend_gate import give_back
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.loading.uncached import uncached
from magnus_cache._engine.loading.unstorable import Unstorable
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyLoader
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.critical import check_waiting
from magnus_cache._engine.runtime.observers import NO_SPAN, ErrorServed, LoadSpan
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import at_once, in_turns
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache._engine.store.fills_many import ManyFills
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import MISS, Began, KeyRef
from magnus_cache._engine.store.revalidation import tags_of
from magnus_cache.errors import CacheBudgetError, CacheTimeoutError, RetryLater
from magnus_cache.freshness import NO_POLICY

__all__ = ["LoadedValue", "Loads"]

T = TypeVar("T")


class Loads:
    """Loads of one cache. `load` runs on any event loop, `load_blocking` in any thread."""

    def __init__(self, reads: Reads, writes: ManyFills) -> None:
        self.reads = self._reads = reads
        self.writes = self._writes = writes
        self._state = reads.state
        self.acquirer = LeaseAcquirer(reads)
        self.joining = JoinRules(reads)
        self.preparer = ResultPreparer(reads, writes, self._hold_back)
        self.flights = reads.state.flights
        self.clock = reads.state.clock
        self.throttle = RetryThrottle(reads.state.clock)
        self.permits = Permits(reads.state, self.throttle)
        self._failures = LoadFailures(reads.state.notices)
        self.flights.on_unheard_error = self._failures.report
        self.unstorable = Unstorable(reads.state.flights, writes)

    @property
    def wait_timeout(self) -> float:
        """Seconds that a caller waits for another caller's load."""
        return self._state.settings.wait_timeout

    async def load(self, request: LoadRequest[T]) -> T:
        """Return the loader's value, from here or from another caller's load of the same key; store it.

        :raises Exception: what the loader raises, the same for all waiting callers; a `WaitExpiredError` after the
            request's `max_wait`, while the load continues in the background.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises CacheEncodeError: if the value cannot be stored, and the request is strict.
        """
        loaded = await self.outcome(request)
        if request.note is not None:
            request.note.loaded(loaded.began)
        return await loaded.taken(strict=loaded.refusal is not None and request.strict)

    async def outcome(self, request: LoadRequest[T]) -> LoadedValue[T]:
        """Return the outcome of a load; see `load`.

        :raises Exception: as `load` does, except for values that cannot be stored.
        """
        state, ref = self._state, request.ref
        mode = state.mode if state.special else Mode.NORMAL
        if mode is Mode.DISABLED:
            began = Began(self.clock())
            with as_current_load(CurrentLoad()):
                return LoadedValue(modified(await self.call(request.loader, str(ref.namespace))), None, began=began)
        request = self._completed(request, mode)
        caller = self.joining.caller(request)
        if ref.namespace.local or self.flights.current(ref.name) is not None:
            # Else there is nothing to confirm.
            await self.joining.confirm(request, caller)
        return await self.flights.run(
            ref.name, partial(self.lead, request),
            wait_timeout=self.wait_timeout, namespace=str(ref.namespace), caller=caller,
        )  # fmt: skip

    def _completed(self, request: LoadRequest[T], mode: Mode = Mode.NORMAL) -> LoadRequest[T]:
        """Return a request with all tags that are known before the load; it is fresh in the mode `BYPASS`."""
        fresh, tags = request.fresh or mode is Mode.BYPASS, request.tags
        if request.ref.namespace.local:
            tags = tagged(request.ref, tags)
        if fresh is request.fresh and tags is request.tags:
            return request
        return request._replace(fresh=fresh, tags=tags)

    async def lead(self, request: LoadRequest[T], flight: Flight) -> LoadedValue[T]:
        """Load a value for all waiting callers, or return one that another process has just stored."""
        flight.loader = request.loader
        got = await self.acquirer.acquire(request, flight)
        opened = await self.open(request.ref, got, flight)
        fence = self.to_load(request, flight, got, opened)
        if isinstance(fence, LoadedValue):
            return fence
        ref, load, began = request.ref, CurrentLoad(fence.previous), monotonic()
        try:
            while True:
                if ref.namespace.limited or self._state.sources.active:
                    await self.permits.enter(request, flight, began)
                started = monotonic()
                try:
                    # In the context of the flight's own task.
                    before = CURRENT.set(load)
                    try:
                        with self.span(request, flight):
                            value = await self.call(request.loader, str(ref.namespace))
                    finally:
                        CURRENT.reset(before)
                except RetryLater as later:
                    await self.permits.paused(request, flight, later, began)
                    continue
                except Exception as error:
                    await self.record_failure(request, error, started, fence)
                    raise
                break
            return await self.store_result(request, value, count_load(self._state, request, started), fence, load)
        finally:
            fence.close()

    def to_load(
        self, request: LoadRequest[Any], flight: Flight, got: Fence | Entry, opened: Any
    ) -> "Fence | LoadedValue[Any]":
        """Return the fence to load under, or the value that another process has just stored.

        :param got: the result of the acquisition.
        :param opened: the value of an entry, see `open`.
        :raises Exception: if the entry is a remembered error.
        """
        if isinstance(got, Entry):
            found = self._from_entry(request.ref, got, opened, flight)
            if found is not None:
                return found
            got = self.acquirer.without_lease(flight, fresh=request.fresh)
        look, rule = flight.look, request.options.tags
        look.since, look.found = got.since, False
        # If the load fails, the tags that depend on its value are unknown.
        look.tags = request.tags if rule is None or rule.of_value is None else None
        # The time spent waiting for the lease does not count as load time.
        flight.began = self.clock()
        return got

    def begin(self, request: LoadRequest[Any]) -> bool:
        """Start a background load; return whether it was started."""
        self.joining.detach_unjoinable(request.ref, fresh=False)
        lead = partial(self.lead, self._completed(request))
        return self.flights.start_background(request.ref.name, lead, str(request.ref.namespace))

    def load_blocking(self, request: LoadRequest[T]) -> T:
        """Return the same as `load`, for a blocking caller; a coroutine function runs on the background loop.

        The wait has no limit.

        :raises Exception: as `load` does.
        :raises CacheDeadlockError: if the load that this call waits for could only run in this thread.
        """
        mode, note = self._state.mode, request.note
        if mode is Mode.DISABLED:
            if note is not None:
                note.loaded(Began(self.clock()))
            with as_current_load(CurrentLoad()):
                return modified(self.called_blocking(request.loader))
        check_waiting()
        request = self._completed(request, mode)
        caller = self.joining.caller(request)
        if self.joining.must_confirm(request):
            try:
                self._state.portal.call(partial(self.joining.confirm, request, caller))
            except NoThreadError:
                self.flights.detach(request.ref.name)
        loaded = self.flights.run_blocking(
            request.ref.name, partial(self._lead_blocking, request), wait_timeout=self.wait_timeout, caller=caller
        )
        if note is not None:
            note.loaded(loaded.began)
        return loaded.take(strict=request.strict)

    def _lead_blocking(self, request: LoadRequest[T], flight: Flight) -> LoadedValue[T]:
        """Return the same as `lead`, in a thread."""
        ref, loader, call = request.ref, request.loader, self._state.portal.call
        flight.loader = loader
        fences: list[Fence] = []
        try:
            try:
                got: Fence | Entry = call(self._acquired, request, flight, fences)
            except NoThreadError as error:
                called = partial(self.called_blocking, loader)
                alone = partial(uncached, self.acquirer, request, flight, called, error)
                with self.span(request, flight):
                    return self.permits.called_alone(request, ref, (flight,), alone)
            opened = self._opened(ref, got, flight)
            fence = self.to_load(request, flight, got, opened)
            if isinstance(fence, LoadedValue):
                return fence
            load, began = CurrentLoad(fence.previous), monotonic()
            while True:
                if self.permits.limits(ref):
                    call(self.permits.enter, request, flight, began)
                started = monotonic()
                try:
                    with as_current_load(load), self.span(request, flight):
                        value = self.called_blocking(loader)
                except RetryLater as later:
                    call(self.permits.paused, request, flight, later, began)
                    continue
                except Exception as error:
                    call(self.record_failure, request, error, started, fence)
                    raise
                break
            cost = count_load(self._state, request, started)
            # Encoded in this thread: all threads share the loop.
            prepared = at_once(self.preparer.steps(request, value, load))
            return call(self.stored, request, prepared, cost, fence, load)
        finally:
            for fence in fences:
                fence.close()

    async def _acquired(self, request: LoadRequest[Any], flight: Flight, fences: list[Fence]) -> Fence | Entry:
        got = await self.acquirer.acquire(request, flight)
        if isinstance(got, Fence):
            # On the loop: Ctrl-C may interrupt the thread before it has the fence.
            fences.append(got)
            if flight.done:
                got.close()
        return got

    def expired(self, ref: KeyRef, allowed: float, error: WaitExpiredError) -> CacheBudgetError | CacheTimeoutError:
        """Return the error for a caller whose time is over: its load is held back, or takes too long.

        :param allowed: seconds that it might wait.
        """
        held_back = self.permits.budgets.expired(ref.name)
        if held_back is not None:
            return held_back
        return CacheTimeoutError(ref.namespace, allowed, goes_on=not error.limit_reached)

    def span(self, request: LoadRequest[Any], flight: Flight | None) -> AbstractContextManager[None]:
        """Return a context manager for the call of a loader, which tells observers of the load."""
        observers, ref = self._state.observers, request.ref
        if not observers.active:
            return NO_SPAN
        # A thread that runs the load itself is not counted as waiting.
        background = request.background or (
            flight is not None and flight.loop is not None and not flight.waiter_count
        )  # fmt: skip
        function = loader_name(request.options, request.loader)
        return LoadSpan(observers, ref.namespace, ref.name, function, background=background)

    def span_many(self, request: BatchRequest, flights: Sequence[Flight]) -> AbstractContextManager[None]:
        """Return the same for the call of a batch loader.

        :param flights: the loads of its keys.
        """
        observers = self._state.observers
        if not observers.active or not flights:
            return NO_SPAN
        function = loader_name(request.options, request.function or request.loader)
        return LoadSpan(observers, flights[0].namespace, None, function, count=len(flights))

    def called_blocking(self, loader: AnyLoader[T]) -> T:
        """Return the loader's value: a function runs in this thread, a coroutine function on the background loop."""
        if is_async(loader):
            return wait_for(self._state.portal.loaders, cast("Callable[[], Awaitable[T]]", loader))
        value: Any = loader()
        if inspect.isawaitable(value):
            # A lambda around a coroutine function does not look like one until it is called.
            value = wait_for(self._state.portal.loaders, _awaited, value)
        loaded: T = value
        return loaded

    async def open(self, ref: KeyRef, got: Fence | Entry, flight: Flight) -> Any:
        """Return the value of the entry if the acquisition found one; else MISS."""
        return await self._reads.open(ref, got) if self._is_found(got, flight) else MISS

    def _opened(self, ref: KeyRef, got: Fence | Entry, flight: Flight) -> Any:
        """Return the same as `open`, in a thread."""
        return self._reads.opened(ref, got) if self._is_found(got, flight) else MISS

    def _is_found(self, got: Fence | Entry, flight: Flight) -> TypeGuard[Entry]:
        """Return whether an acquisition found an entry; if so, detach the flight."""
        if not isinstance(got, Entry):
            return False
        flight.look.tags, flight.look.found = tags_of(got), True
        # Without a lease, the flight would not learn that the value was deleted, and decoding it may take long.
        self.flights.detach_flight(flight)
        return True

    def _from_entry(self, ref: KeyRef, entry: Entry, opened: Any, flight: Flight) -> LoadedValue[Any] | None:
        """Return a value that was stored between this caller's miss and its turn to load; None if it cannot be decoded.

        :param opened: the entry's value, or MISS.
        :raises Exception: if it is a remembered error.
        """
        if (error := self._reads.error(ref, entry)) is not None:
            ref.counters.negative_hits += 1
            if self._state.observers.active:
                self._state.observers.about(ErrorServed, ref)
            raise error
        if opened is MISS:
            return None
        payload = entry.payload
        # A thread that runs the load itself is not counted as waiting.
        if payload is None and entry.shared and flight.waiter_count > (flight.loop is not None):
            # The other callers may have another policy than this one.
            payload = at_once(self._reads.payload_steps(entry))
        return LoadedValue(opened, payload, user_codec=ref.namespace.codec, began=Began.elsewhere(entry.as_of))

    def call(self, loader: AnyLoader[T], namespace: str) -> Awaitable[T]:
        """Return a loader's value, to be awaited: of a coroutine function, or of a function that runs in a thread.

        :raises Exception: what it raises.
        """
        return self._state.workers.call(loader, namespace)

    async def record_failure(self, request: LoadRequest[Any], error: Exception, started: float, fence: Fence) -> None:
        """Remember a loader's error if the policy says so; else pause the loads of the key."""
        ref, freshness = request.ref, request.ref.freshness
        self._state.recorder.add_call(ref.name, "load failed", request.options.function, type(error).__name__)
        ref.counters.load_errors += 1
        give_back(self._state, ref, request.options, (fence.flight,))
        if freshness is NO_POLICY or fence.flight.loop_stopped or isinstance(error, CacheBudgetError):
            return
        ttl = freshness.negative_ttl(error)
        if ttl is None:
            self._hold_back(ref, error)
        elif (found := error_record(self._reads, request, error, fence)) is not None:
            record = found[0]._replace(cost=monotonic() - started, began=Began(fence.flight.began))
            await self._writes.fill(ref, record, found[1], ttl, fence)

    def _hold_back(self, ref: KeyRef, error: Exception) -> None:
        """Pause the loads of a key after an error, if a stale value can be served meanwhile."""
        freshness = ref.freshness
        if not freshness.grace and not freshness.early:
            # Without stale values, waiting callers get the error, and the next call tries again.
            return
        self.throttle.failed(ref.name, freshness.retry)
        then = f"; a stale value is served if there is one, and the next attempt is in {freshness.retry:g} s"
        self._failures.report_current(ref.name, ref.namespace, error, then)

    async def store_result(
        self, request: LoadRequest[T], value: T, cost: float, fence: Fence, load: CurrentLoad | None = None
    ) -> LoadedValue[T]:
        """Store a loaded value if its options say so; return it for the waiting callers."""
        prepared = await in_turns(self.preparer.steps(request, value, load))
        return await self.stored(request, prepared, cost, fence, load)

    async def stored(
        self, request: LoadRequest[Any], prepared: PreparedValue, cost: float, fence: Fence,
        load: CurrentLoad | None = None,
    ) -> LoadedValue[Any]:  # fmt: skip
        """Store a prepared value if it has a record; return it for the waiting callers.

        :raises Exception: if its preparation failed.
        """
        if request.ref.namespace.spending is not None:
            # Before the value is stored: what was spent is known even if this process dies now.
            self._state.spending.report()
        if prepared.error is not None:
            raise prepared.error
        ref, rule = request.ref, request.options.tags
        value, payload, tags, record = prepared.value, prepared.payload, prepared.tags, prepared.record
        look, local, began = fence.flight.look, ref.namespace.local, Began(fence.flight.began)
        look.tags = tags
        if rule is not None and rule.of_value is not None:
            await self.acquirer.register_tags(tags, fence)
        if payload is not None and record is not None:
            validator = load.validator if load is not None else None
            record = record._replace(epoch=fence.epoch, cost=cost, validator=validator, began=began)
            await self._writes.fill(ref, record, payload, prepared.ttl, fence)
        if (refusal := prepared.refusal) is not None:
            refusal = await self.unstorable.refused(request, value, refusal, fence)
        if refusal is None or fence.flight.waiter_count or fence.flight.loop is None:
            if ref.freshness is not NO_POLICY:
                self.throttle.succeeded(ref.name)
        else:
            # A background load without a waiting caller only fills the cache, and would fail again.
            self.throttle.failed(ref.name, ref.freshness.retry)
        stored_or_shared = local or payload is not None
        copies = [] if stored_or_shared else await self.unstorable.copies(value, request.options, fence.flight)
        look.overtaken = bool(tags) and await self.acquirer.overtaken(ref, tags, prepared.known, fence)
        codec = ref.namespace.codec
        return LoadedValue(value, None if local else payload, refusal, copies, user_codec=codec, began=began)


async def _awaited(value: Awaitable[T]) -> T:
    return await value
