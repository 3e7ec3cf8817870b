"""Loads: what happens on a miss. One loader runs for all who ask for a key at a time; its value is kept.

The same rules for coroutines, whose load is a task of its own, and for threads, where the first one loads.
"""

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeGuard, TypeVar, cast

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load, is_unmodified, not_modified_error
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.loading.failures import LoadFailures
from magnus_cache._engine.loading.joining import JoinRules
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.own_loop import wait_for
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.loading.results import JudgedValue, Judging
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.loading.uncached import uncached
from magnus_cache._engine.loading.unstorable import Unstorable
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyLoader
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.critical import check_waiting
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import at_once, in_turns
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.negative import encode_error
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import MISS, KeyRef, Record
from magnus_cache._engine.store.revalidation import tags_of
from magnus_cache._engine.store.writes import Writes
from magnus_cache.errors import CacheValueTooLargeError
from magnus_cache.freshness import NO_POLICY

__all__ = ["LoadedValue", "Loads"]

T = TypeVar("T")


class Loads:
    """Loads of one cache. `load` runs on any event loop, `load_blocking` in any thread."""

    def __init__(self, reads: Reads, writes: Writes) -> None:
        self._reads = reads
        self._writes = writes
        self._state = reads.state
        self.acquirer = LeaseAcquirer(reads)
        self.joining = JoinRules(reads)
        self.judging = Judging(reads, writes, self._hold_back)
        self.flights = reads.state.flights
        self.clock = reads.state.clock
        self.throttle = RetryThrottle(reads.state.clock)
        self._failures = LoadFailures(reads.state.notices)
        self.flights.on_unheard_error = self._failures.tell
        self.unstorable = Unstorable(reads.state.flights, writes)

    @property
    def wait_timeout(self) -> float:
        """Seconds that a caller waits for somebody else's load."""
        return self._state.settings.wait_timeout

    async def load(self, request: LoadRequest[T]) -> T:
        """Return the loader's value, from here or from another caller's load of the same key; store it.

        :raises Exception: what the loader raises, the same for all who waited; a `WaitExpiredError` after the request's
            `max_wait`, and the load goes on without the caller.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises CacheEncodeError: if the value cannot be stored, and the request is strict.
        """
        loaded = await self.outcome(request)
        return await loaded.taken(strict=request.strict)

    async def outcome(self, request: LoadRequest[T]) -> LoadedValue[T]:
        """Return what a load came to; see `load`.

        :raises Exception: as `load` does, but for values that cannot be stored.
        """
        mode, ref = self._state.mode, request.ref
        if mode is Mode.DISABLED:
            with as_current_load(CurrentLoad()):
                return LoadedValue(_modified(await self._called(request)), None)
        request = self._completed(request, mode)
        caller = self.joining.caller(request)
        await self.joining.confirm(request, caller)
        return await self.flights.run(
            ref.name, partial(self._lead, request),
            wait_timeout=self.wait_timeout, namespace=str(ref.namespace), caller=caller,
        )  # fmt: skip

    def _completed(self, request: LoadRequest[T], mode: Mode = Mode.NORMAL) -> LoadRequest[T]:
        """Return a request with all tags that its value is known to get, and fresh in a bypass."""
        fresh, tags = request.fresh or mode is Mode.BYPASS, tagged(request.ref, request.tags)
        if fresh is request.fresh and tags is request.tags:
            return request
        return request._replace(fresh=fresh, tags=tags)

    async def _lead(self, request: LoadRequest[T], flight: Flight) -> LoadedValue[T]:
        """Load a value for all who wait, or find that somebody else just has."""
        flight.loader = request.loader
        got = await self.acquirer.acquire(request, flight)
        opened = await self.open(request.ref, got, flight)
        fence = self.to_load(request, flight, got, opened)
        if isinstance(fence, LoadedValue):
            return fence
        load, started = CurrentLoad(fence.previous), monotonic()
        try:
            try:
                with as_current_load(load):
                    value = await self._called(request)
            except Exception as error:
                await self.record_failure(request, error, started, fence)
                raise
            return await self.store_result(request, value, self.count_load(request.ref, started), fence, load)
        finally:
            fence.close()

    def to_load(
        self, request: LoadRequest[Any], flight: Flight, got: Fence | Entry, opened: Any
    ) -> "Fence | LoadedValue[Any]":
        """Return the claim to load under, or what somebody else has just loaded.

        :param got: what asking for a claim came to.
        :param opened: the value of an entry, see `open`.
        :raises Exception: if what somebody else left there is an error.
        """
        if isinstance(got, Entry):
            found = self._from_entry(request.ref, got, opened)
            if found is not None:
                return found
            got = self.acquirer.without_lease(flight, fresh=request.fresh)
        look, rule = flight.look, request.options.tags
        look.since, look.found = got.since, False
        # Should the load fail, nothing tells which tags its value would have had.
        look.tags = request.tags if rule is None or rule.of_value is None else None
        # The time spent waiting for the lease does not count.
        flight.began = self.clock()
        return got

    def begin(self, request: LoadRequest[Any]) -> bool:
        """Begin to load a key for nobody, and return whether that was done."""
        self.joining.detach_unjoinable(request.ref, fresh=False)
        lead = partial(self._lead, self._completed(request))
        return self.flights.start_background(request.ref.name, lead, str(request.ref.namespace))

    def load_blocking(self, request: LoadRequest[T]) -> T:
        """Do what `load` does, in the calling thread; a coroutine function runs on the background loop.

        It waits for as long as it takes.

        :raises Exception: as `load` does.
        :raises CacheDeadlockError: where the load that is waited for could only run in this very thread.
        """
        mode = self._state.mode
        if mode is Mode.DISABLED:
            with as_current_load(CurrentLoad()):
                return _modified(self.called_blocking(request.loader))
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
        return loaded.take(strict=request.strict)

    def _lead_blocking(self, request: LoadRequest[T], flight: Flight) -> LoadedValue[T]:
        """Do what `_lead` does, in a thread."""
        ref, loader, call = request.ref, request.loader, self._state.portal.call
        flight.loader = loader
        fences: list[Fence] = []
        try:
            try:
                got: Fence | Entry = call(self._acquired, request, flight, fences)
            except NoThreadError as error:
                return LoadedValue(*uncached(self.acquirer, ref, flight, partial(self.called_blocking, loader), error))
            opened = self._opened(ref, got, flight)
            fence = self.to_load(request, flight, got, opened)
            if isinstance(fence, LoadedValue):
                return fence
            load, started = CurrentLoad(fence.previous), monotonic()
            try:
                with as_current_load(load):
                    value = self.called_blocking(loader)
            except Exception as error:
                call(self.record_failure, request, error, started, fence)
                raise
            cost = self.count_load(ref, started)
            # Encoded here: the loop is there for all threads.
            judged = at_once(self.judging.steps(request, value, load))
            return call(self.stored, request, judged, cost, fence, load)
        finally:
            for fence in fences:
                fence.close()

    async def _acquired(self, request: LoadRequest[Any], flight: Flight, fences: list[Fence]) -> Fence | Entry:
        got = await self.acquirer.acquire(request, flight)
        if isinstance(got, Fence):
            # Here, not when the thread learns of it: that may be interrupted (Ctrl-C) in between.
            fences.append(got)
            if flight.done:
                got.close()
        return got

    async def _called(self, request: LoadRequest[T]) -> T:
        return await self._state.workers.call(request.loader, str(request.ref.namespace))

    def called_blocking(self, loader: AnyLoader[T]) -> T:
        """Call a function in this thread, a coroutine function on the background loop for these."""
        if is_async(loader):
            return wait_for(self._state.portal.loaders, cast("Callable[[], Awaitable[T]]", loader))
        value: Any = loader()
        if inspect.isawaitable(value):
            # A lambda around a coroutine function does not look like one until it is called.
            value = wait_for(self._state.portal.loaders, _awaited, value)
        loaded: T = value
        return loaded

    async def open(self, ref: KeyRef, got: Fence | Entry, flight: Flight) -> Any:
        """Return the value of an entry that was found instead of a right to load; else MISS."""
        return await self._reads.open(ref, got) if self._is_found(got, flight) else MISS

    def _opened(self, ref: KeyRef, got: Fence | Entry, flight: Flight) -> Any:
        """Do what `open` does, in a thread."""
        return self._reads.opened(ref, got) if self._is_found(got, flight) else MISS

    def _is_found(self, got: Fence | Entry, flight: Flight) -> TypeGuard[Entry]:
        """Return whether a load found something; then it is joined no more."""
        if not isinstance(got, Entry):
            return False
        flight.look.tags, flight.look.found = tags_of(got), True
        # Without a lease, nobody would announce to it that the value was deleted; to take it in may take its time.
        self.flights.detach_flight(flight)
        return True

    def _from_entry(self, ref: KeyRef, entry: Entry, opened: Any) -> LoadedValue[Any] | None:
        """Return what somebody stored between this caller's look and its turn to load.

        :param opened: the entry's value, or MISS.
        :raises Exception: if that is an error.
        """
        if (error := self._reads.error(ref, entry)) is not None:
            ref.counters.negative_hits += 1
            raise error
        return None if opened is MISS else LoadedValue(opened, entry.payload)

    def count_load(self, ref: KeyRef, started: float) -> float:
        """Count a load that began at a monotonic second, and return the seconds that it took."""
        cost = monotonic() - started
        ref.counters.loads += 1
        self._state.stats.load_latency.add(cost)
        return cost

    async def record_failure(self, request: LoadRequest[Any], error: Exception, started: float, fence: Fence) -> None:
        """Note that a loader raised: remember the error if it is an answer, else leave the key alone for a while."""
        ref, freshness = request.ref, request.ref.freshness
        ref.counters.load_errors += 1
        if freshness is NO_POLICY or fence.flight.loop_stopped:
            return
        ttl = freshness.negative_ttl(error)
        if ttl is None:
            self._hold_back(ref, error)
            return
        # Tags that only a value could tell: no invalidation would reach what is remembered.
        payload = None if fence.flight.look.tags is None else encode_error(error)
        if payload is None:
            kind, tagged = type(error).__name__, fence.flight.look.tags is None
            why = "its tags are a function of the value; give them as texts or templates of the arguments"
            why = (
                why
                if tagged
                else ("not all of its parts can be stored; let the loader raise an error that has plain data only")
            )
            what = f"a {kind} of namespace {str(ref.namespace)!r} is not remembered, as {why}"
            self._state.notices.warn(f"negative:{ref.namespace}:{kind}", what)
            return
        try:
            self._reads.check_size(ref, payload)
        except CacheValueTooLargeError as too_large:
            self._state.notices.warn(f"size:{ref.namespace}", f"not remembered: {too_large}")
        else:
            held = Record(None, payload, len(payload), envelope.new_version(), tags=request.tags, negative=True)
            held = held._replace(cost=monotonic() - started)
            await self._writes.fill(ref, held, payload, ttl, fence)

    def _hold_back(self, ref: KeyRef, error: Exception) -> None:
        freshness = ref.freshness
        if not freshness.grace and not freshness.early:
            # Whoever waits gets the error, and whoever asks again wants it tried again.
            return
        self.throttle.failed(ref.name, freshness.retry)
        then = f"; where there is a stale value it is served, and the next attempt is in {freshness.retry:g} s"
        self._failures.tell_of(ref.name, ref.namespace, error, then)

    async def store_result(
        self, request: LoadRequest[T], value: T, cost: float, fence: Fence, load: CurrentLoad | None = None
    ) -> LoadedValue[T]:
        """Store a value if it is to be, and return it for those who wait."""
        judged = await in_turns(self.judging.steps(request, value, load))
        return await self.stored(request, judged, cost, fence, load)

    async def stored(
        self, request: LoadRequest[Any], judged: JudgedValue, cost: float, fence: Fence,
        load: CurrentLoad | None = None,
    ) -> LoadedValue[Any]:  # fmt: skip
        """Store what is to be kept of a value, and return it for those who wait.

        :raises Exception: if it could not be judged.
        """
        if judged.error is not None:
            raise judged.error
        ref, rule = request.ref, request.options.tags
        value, payload, tags, held = judged.value, judged.payload, judged.tags, judged.held
        look, local = fence.flight.look, ref.namespace.local
        look.tags = tags
        if rule is not None and rule.of_value is not None:
            await self.acquirer.adopt(tags, fence)
        if payload is not None and held is not None:
            held = held._replace(cost=cost, validator=load.validator if load is not None else None)
            await self._writes.fill(ref, held, payload, judged.ttl, fence)
        if (refusal := judged.refusal) is not None:
            refusal = await self.unstorable.refused(request, value, refusal, fence)
        if refusal is None or fence.flight.waiter_count or fence.flight.loop is None:
            self.throttle.succeeded(ref.name)
        else:
            # It was for nobody but the cache, as every attempt would be.
            self.throttle.failed(ref.name, ref.freshness.retry)
        stored_or_shared = local or payload is not None
        copies = [] if stored_or_shared else await self.unstorable.copies(value, request.options, fence.flight)
        look.overtaken = bool(tags) and await self.acquirer.overtaken(ref, tags, judged.known, fence)
        return LoadedValue(value, None if local else payload, refusal, copies)


def _modified(value: T) -> T:
    if is_unmodified(value):
        raise not_modified_error()
    return value


async def _awaited(value: Awaitable[T]) -> T:
    return await value
