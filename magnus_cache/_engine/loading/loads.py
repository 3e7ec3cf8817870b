"""Loads: what happens on a miss. One loader runs for all who ask for a key at a time; its value is kept.

The same rules for coroutines, whose load is a task of its own, and for threads, where the first one loads.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeGuard, TypeVar, cast

from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.callers import Caller, JoiningCaller
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load, is_unmodified, not_modified_error
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.loading.failures import LoadFailures
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.own_loop import wait_for
from magnus_cache._engine.loading.results import JudgedValue, Judging
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.loading.uncached import uncached
from magnus_cache._engine.loading.unstorable import Unstorable
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyLoader, LoadOptions
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
from magnus_cache.errors import CacheUnavailableError, CacheValueTooLargeError
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
        self.judging = Judging(reads, writes, self._hold_back)
        self.flights = reads.state.flights
        self.clock = reads.state.clock
        self.throttle = RetryThrottle(reads.state.clock)
        self._failures = LoadFailures(reads.state.notices)
        self.flights.unheard = self._failures.tell
        self.unstorable = Unstorable(reads.state.flights, writes)

    @property
    def wait_timeout(self) -> float:
        """Seconds that a caller waits for somebody else's load."""
        return self._state.settings.wait_timeout

    async def load(
        self,
        ref: KeyRef,
        loader: AnyLoader[T],
        rule: LoadOptions,
        tags: tuple[str, ...] = (),
        *,
        fresh: bool = False,
        patience: float | None = None,
        blocks: asyncio.AbstractEventLoop | None = None,
    ) -> T:
        """Return the loader's value, from here or from whoever is loading the same key; keep it.

        :param tags: those of the value that are known already.
        :param fresh: take no value that is already there, and join no load that began before.
        :param patience: seconds to wait; then the load goes on without the caller, who gets `WaitExpiredError`. With
            0 it is not begun if too many go on already.
        :param blocks: the event loop that is held up by whoever this is done for.
        :raises Exception: whatever the loader raises, the same for all who waited.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises CacheEncodeError: if the value cannot be stored, and the rule is strict.
        """
        loaded = await self.outcome(ref, loader, rule, tags, fresh=fresh, patience=patience, blocks=blocks)
        return await loaded.taken(strict=rule.is_strict(ref.namespace))

    async def outcome(
        self,
        ref: KeyRef,
        loader: AnyLoader[T],
        rule: LoadOptions,
        tags: tuple[str, ...] = (),
        *,
        fresh: bool = False,
        patience: float | None = None,
        blocks: asyncio.AbstractEventLoop | None = None,
    ) -> LoadedValue[T]:
        """Return what a load came to; see `load`.

        :raises Exception: as `load` does, but for values that cannot be stored.
        """
        mode = self._state.mode
        if mode is Mode.DISABLED:
            with as_current_load(CurrentLoad()):
                return LoadedValue(_modified(await self._called(ref, loader)), None)
        fresh, tags = fresh or mode is Mode.BYPASS, tagged(ref, tags)
        caller = self.caller(ref, fresh=fresh)
        patience = await self.confirmed(ref, fresh=fresh, patience=patience)
        return await self.flights.run(
            ref.name, partial(self._lead, ref, loader, rule, tags, fresh=fresh),
            wait_timeout=self.wait_timeout, namespace=str(ref.namespace), patience=patience, blocks=blocks,
            caller=caller,
        )  # fmt: skip

    async def _lead(
        self, ref: KeyRef, loader: AnyLoader[T], rule: LoadOptions, tags: tuple[str, ...], flight: Flight, *,
        fresh: bool = False, unwanted: int | None = None,
    ) -> LoadedValue[T]:  # fmt: skip
        """Load a value for all who wait, or find that somebody else just has."""
        flight.loader = loader
        got = await self.acquirer.acquire(ref, flight, tags, fresh=fresh, unwanted=unwanted)
        opened = await self.open(ref, got, flight)
        fence = self.to_load(ref, got, flight, rule, tags, opened, fresh=fresh)
        if isinstance(fence, LoadedValue):
            return fence
        load, started = CurrentLoad(fence.previous), monotonic()
        try:
            try:
                with as_current_load(load):
                    value = await self._called(ref, loader)
            except Exception as error:
                await self.failed(ref, error, tags, started, fence)
                raise
            return await self.kept(ref, value, rule, tags, self.loaded(ref, started), fence, load)
        finally:
            fence.close()

    def to_load(
        self,
        ref: KeyRef,
        got: Fence | Entry,
        flight: Flight,
        rule: LoadOptions,
        tags: tuple[str, ...],
        opened: Any,
        *,
        fresh: bool,
    ) -> "Fence | LoadedValue[Any]":
        """Return the claim to load under, or what somebody else has just loaded.

        :param got: what asking for a claim came to.
        :param tags: those of the value that are known already.
        :param opened: the value of an entry, see `open`.
        :raises Exception: if what somebody else left there is an error.
        """
        if isinstance(got, Entry):
            found = self._found(ref, got, opened)
            if found is not None:
                return found
            got = self.acquirer.unclaimed(flight, fresh=fresh)
        look = flight.look
        look.since, look.found = got.since, False
        # Should the load fail, nothing tells which tags its value would have had.
        look.tags = tags if rule.tags is None or rule.tags.of_value is None else None
        # What was waited for a lease does not count.
        flight.began = self.clock()
        return got

    def begin(
        self, ref: KeyRef, loader: AnyLoader[Any], rule: LoadOptions, tags: tuple[str, ...], unwanted: int
    ) -> bool:
        """Begin to load a key for nobody, and return whether that was done.

        :param unwanted: the version of the value that is to be refreshed.
        """
        self._before(ref, fresh=False)
        tags = tagged(ref, tags)
        lead = partial(self._lead, ref, loader, rule, tags, unwanted=unwanted)
        return self.flights.launch(ref.name, lead, str(ref.namespace))

    def load_blocking(
        self,
        ref: KeyRef,
        loader: AnyLoader[T],
        rule: LoadOptions,
        tags: tuple[str, ...] = (),
        *,
        fresh: bool = False,
    ) -> T:
        """Do what `load` does, in the calling thread; a coroutine function runs on the background loop.

        :raises Exception: as `load` does.
        :raises CacheDeadlockError: where the load that is waited for could only run in this very thread.
        """
        mode = self._state.mode
        if mode is Mode.DISABLED:
            with as_current_load(CurrentLoad()):
                return _modified(self.called_blocking(loader))
        check_waiting()
        fresh, tags = fresh or mode is Mode.BYPASS, tagged(ref, tags)
        call = self._state.portal.call

        async def claimed(flight: Flight, acquirer: list[Fence]) -> Fence | Entry:
            got = await self.acquirer.acquire(ref, flight, tags, fresh=fresh)
            if isinstance(got, Fence):
                # Here, not when the thread learns of it: that may be interrupted (Ctrl-C) in between.
                acquirer.append(got)
                if flight.done:
                    got.close()
            return got

        def lead(flight: Flight) -> LoadedValue[T]:
            flight.loader = loader
            acquirer: list[Fence] = []
            try:
                try:
                    got: Fence | Entry = call(claimed, flight, acquirer)
                except NoThreadError as error:
                    return LoadedValue(
                        *uncached(self.acquirer, ref, flight, partial(self.called_blocking, loader), error)
                    )
                opened = self._opened(ref, got, flight)
                fence = self.to_load(ref, got, flight, rule, tags, opened, fresh=fresh)
                if isinstance(fence, LoadedValue):
                    return fence
                load, started = CurrentLoad(fence.previous), monotonic()
                try:
                    with as_current_load(load):
                        value = self.called_blocking(loader)
                except Exception as error:
                    call(self.failed, ref, error, tags, started, fence)
                    raise
                cost = self.loaded(ref, started)
                # Encoded here: the loop is there for all threads.
                judged = at_once(self.judging.steps(ref, value, rule, tags, load))
                return call(self.stored, ref, judged, rule, cost, fence, load)
            finally:
                for fence in acquirer:
                    fence.close()

        caller = self.caller(ref, fresh=fresh)
        if self._is_first(ref) or (not fresh and self._in_doubt(ref)):
            try:
                call(partial(self.confirmed, ref, fresh=fresh))
            except NoThreadError:
                self.flights.detach(ref.name)
        loaded = self.flights.run_blocking(ref.name, lead, wait_timeout=self.wait_timeout, caller=caller)
        return loaded.take(strict=rule.is_strict(ref.namespace))

    def caller(self, ref: KeyRef, *, fresh: bool, source: object = None) -> Caller:
        """Return what judges the loads that a call joins which starts now; see `JoiningCaller`."""
        return JoiningCaller(self._state.epochs, partial(self._before, ref), fresh=fresh, source=source)

    def _in_doubt(self, ref: KeyRef) -> bool:
        return self._state.leases.doubted(ref.name) is not None or self._state.doubts(ref.epoch_names)

    def _is_first(self, ref: KeyRef) -> bool:
        """Whether a load has to wait for a connection: one to a new server ends all loads that can be joined by then.

        Other loads begin a second time then, and wait for the lease; a local one has none.
        """
        state = self._state
        return ref.namespace.local and state.endpoint is not None and not state.reachable

    async def confirmed(self, ref: KeyRef, *, fresh: bool = False, patience: float | None = None) -> float | None:
        """Return once it is known what an announcement, if there was one, means for the load that is under way.

        To be awaited before joining. The answer was given after this call began; what is announced later need not be
        waited for. Without an answer the load cannot be joined.

        :param fresh: whether no load that is under way is joined anyway.
        :param patience: seconds to wait at most; None for as long as Redis may take. What is left of it is returned.
        """
        wire = self._state.client.connection(ref.name)
        if self._is_first(ref) and wire is not None:
            began = monotonic()
            with contextlib.suppress(TimeoutError, CacheUnavailableError):
                async with asyncio.timeout(patience):
                    await wire.renew()
            patience = None if patience is None else max(0.0, began + patience - monotonic())
        if fresh or not self._in_doubt(ref) or wire is None or not wire.up:
            return patience
        began, lease, doubts = monotonic(), self._state.leases.doubted(ref.name), wire.known.doubts
        try:
            async with asyncio.timeout(patience):
                if ref.epoch_names.control in doubts or self._state.epochs.root in doubts:
                    await self._reads.epochs.settled(wire, ref.epoch_names)
                if lease is not None:
                    waiter: asyncio.Future[None] = wire.loop.create_future()
                    lease.look(waiter)
                    await waiter
        except (TimeoutError, CacheUnavailableError):
            self.flights.detach(ref.name)
        return None if patience is None else max(0.0, began + patience - monotonic())

    def _before(self, ref: KeyRef, fresh: bool) -> None:
        """Let the caller join no load that it must not have the value of, nor one that will not end."""
        if fresh:
            self._state.flights.detach(ref.name)
            return
        hung = self.flights.overdue(ref.name, self.wait_timeout)
        if hung is not None:
            self._state.leases.let_go(hung)
            self._state.notices.warn(
                f"hung:{ref.namespace}",
                f"loading a value for namespace {str(ref.namespace)!r} has taken {self.clock() - hung.began:.0f} "
                "s and is given up: the next caller begins anew. Give the loader a time limit of its own, or set "
                "wait_timeout higher",
            )
        if self._state.reachable or self._state.cut_off(ref.namespace):
            self.flights.expire(ref.name)
            self._state.leases.check(ref.name, self._state.clock())

    async def _called(self, ref: KeyRef, loader: AnyLoader[T]) -> T:
        return await self._state.workers.call(loader, str(ref.namespace))

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
        """Return the value of an entry that was got instead of a claim; else MISS."""
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

    def _found(self, ref: KeyRef, entry: Entry, opened: Any) -> LoadedValue[Any] | None:
        """Return what somebody stored between this caller's look and its turn to load.

        :param opened: the entry's value, or MISS.
        :raises Exception: if that is an error.
        """
        if (error := self._reads.error(ref, entry)) is not None:
            ref.counters.negative_hits += 1
            raise error
        return None if opened is MISS else LoadedValue(opened, entry.payload)

    def loaded(self, ref: KeyRef, started: float) -> float:
        """Count a load that began at a monotonic second, and return the seconds that it took."""
        cost = monotonic() - started
        ref.counters.loads += 1
        self._state.stats.load_latency.add(cost)
        return cost

    async def failed(self, ref: KeyRef, error: Exception, tags: tuple[str, ...], started: float, fence: Fence) -> None:
        """Note that a loader raised: remember the error if it is an answer, else leave the key alone for a while."""
        ref.counters.load_errors += 1
        freshness = ref.freshness
        if freshness is NO_POLICY or fence.flight.adrift:
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
            held = Record(None, payload, len(payload), envelope.new_version(), tags=tags, negative=True)
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

    async def kept(
        self, ref: KeyRef, value: T, rule: LoadOptions, tags: tuple[str, ...], cost: float, fence: Fence,
        load: CurrentLoad | None = None,
    ) -> LoadedValue[T]:  # fmt: skip
        """Store a value if it is to be, and return it for those who wait."""
        judged = await in_turns(self.judging.steps(ref, value, rule, tags, load))
        return await self.stored(ref, judged, rule, cost, fence, load)

    async def stored(
        self, ref: KeyRef, judged: JudgedValue, rule: LoadOptions, cost: float, fence: Fence,
        load: CurrentLoad | None = None,
    ) -> LoadedValue[Any]:  # fmt: skip
        """Store what is to be kept of a value, and return it for those who wait.

        :raises Exception: if it could not be judged.
        """
        if judged.error is not None:
            raise judged.error
        value, payload, tags, held = judged.value, judged.payload, judged.tags, judged.held
        look, local = fence.flight.look, ref.namespace.local
        look.tags = tags
        if rule.tags is not None and rule.tags.of_value is not None:
            await self.acquirer.adopt(tags, fence)
        if payload is not None and held is not None:
            held = held._replace(cost=cost, validator=load.validator if load is not None else None)
            await self._writes.fill(ref, held, payload, judged.ttl, fence)
        if (refusal := judged.refusal) is not None:
            refusal = await self.unstorable.refused(ref, value, rule, refusal, fence)
        if refusal is None or fence.flight.waiters or fence.flight.loop is None:
            self.throttle.succeeded(ref.name)
        else:
            # It was for nobody but the cache, as every attempt would be.
            self.throttle.failed(ref.name, ref.freshness.retry)
        copies = [] if local or payload is not None else await self.unstorable.copies(value, rule, fence.flight)
        look.overtaken = bool(tags) and await self.acquirer.overtaken(ref, tags, judged.known, fence)
        return LoadedValue(value, None if local else payload, refusal, copies)


def _modified(value: T) -> T:
    if is_unmodified(value):
        raise not_modified_error()
    return value


async def _awaited(value: Awaitable[T]) -> T:
    return await value
