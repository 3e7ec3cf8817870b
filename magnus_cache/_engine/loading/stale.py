"""Values under a freshness policy: which value a call gets, and whether it waits for a load.

A call comes here if its namespace, or the call itself, has a freshness policy, and memory had no value to return at
once. Calls without a policy come here only to load.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from magnus_cache._engine.flights.background import WaitExpiredError
from magnus_cache._engine.loading.audits import Auditor
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.money import count_saved
from magnus_cache._engine.loading.request import BatchItem, LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.observers import CacheEvent, ErrorServed, Hit, Miss, StaleServed, WaitExpired
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef, age_of
from magnus_cache._engine.store.stamps import Note, Stamped
from magnus_cache.errors import CacheBudgetError, CacheDeadlockError, CacheError, CacheTimeoutError, CacheTypeError
from magnus_cache.freshness import FreshnessState, classify

__all__ = ["StalePolicy"]

T = TypeVar("T")

_FRESH: Final = frozenset({FreshnessState.FRESH, FreshnessState.EARLY})


class StalePolicy:
    """Gets values under a freshness policy. `get` runs on any event loop, `get_blocking` in any thread."""

    def __init__(self, reads: Reads, loads: Loads, auditor: Auditor) -> None:
        self._reads = reads
        self._auditor = auditor
        self._loads = loads
        self._state = reads.state

    async def get(self, request: LoadRequest[T]) -> T:
        """Return a fresh value, or a stale one if the policy allows it; see `Freshness`.

        :raises CacheTimeoutError: after the policy's `hard_timeout`, if there is no stale value.
        :raises Exception: what the loader raises, or has raised before if the error is remembered.
        """
        began, ref = monotonic(), request.ref
        entry, near = self._state.memory.get_stale(ref.name, trusted=True), True
        if entry is None:
            entry, near = await self._read(ref, request.tags), False
        state = self._freshness_of(ref, entry)
        opened: Any = LARGE
        if entry is not None and state is not FreshnessState.GONE and self._reads.is_large(ref, entry):
            opened = await self._reads.open_anyway(ref, entry)
        if request.options.state_of is not None:
            request, state = self._judged(request, entry, state, opened)
        served, value = self._served(request, entry, state, near=near, opened=opened)
        if request.note is not None:
            self._note(request, entry, near=near, stale=state not in _FRESH)
        if not served:
            return await self._loaded(request, value, began)
        if state is FreshnessState.EARLY and entry is not None:
            self._refresh_early(request, entry)
        return value  # type: ignore[no-any-return]  # what was stored is what the loader returned

    async def get_stamped(self, request: LoadRequest[T]) -> Stamped[T]:
        """Return the same as `get`, for any policy, with a stamp.

        :raises CacheTimeoutError: as `get` does.
        :raises Exception: as `get` does.
        """
        note = Note()
        value = await self.get_judged(request._replace(note=note))
        return note.stamped(value, self._state, request.ref.name)

    def get_stamped_blocking(self, request: LoadRequest[T]) -> Stamped[T]:
        """Return the same as `get_stamped`, for a blocking caller.

        :raises CacheTimeoutError: as `get` does.
        :raises Exception: as `get` does.
        """
        note = Note()
        value = self.get_judged_blocking(request._replace(note=note))
        return note.stamped(value, self._state, request.ref.name)

    async def get_judged(self, request: LoadRequest[T]) -> T:
        """Return the same as `get` for a call whose `state_of` decides about a stored value.

        :raises CacheTimeoutError: as `get` does.
        :raises Exception: as `get` does, and what `state_of` raises.
        """
        if self._state.mode is not Mode.NORMAL:
            return await self.load(request)
        return await self.get(_with_entry(request))

    def get_judged_blocking(self, request: LoadRequest[T]) -> T:
        """Return the same as `get_judged`, for a blocking caller.

        :raises CacheTimeoutError: as `get` does.
        :raises Exception: as `get_judged` does.
        """
        if self._state.mode is not Mode.NORMAL:
            return self.load_blocking(request)
        return self.get_blocking(_with_entry(request))

    async def _read(self, ref: KeyRef, tags: tuple[str, ...]) -> Entry | None:
        """Return the value in Redis, if it answers within `hard_timeout`; else the last one that this process knows."""
        limit = ref.freshness.hard_timeout
        if limit is None:
            entry = await self._reads.read(ref, tags)
        else:
            try:
                async with asyncio.timeout(limit):
                    entry = await self._reads.read(ref, tags)
            except TimeoutError:
                entry = None
        return self._reads.last(ref) if entry is None else entry

    async def _loaded(self, request: LoadRequest[T], stale: Any, began: float) -> T:
        """Return a loaded value; if the load takes too long or fails, a stale value if there is one.

        :param began: when the caller began to wait, in monotonic seconds.
        """
        ref, policy = request.ref, request.ref.freshness
        soft = policy.soft_timeout if stale is not MISS else None
        allowed = soft if soft is not None else policy.hard_timeout
        if allowed is not None:
            request = request._replace(max_wait=max(0.0, began + allowed - monotonic()))
        if stale is not MISS:
            request = request._replace(spare=True)
        try:
            return await self._loads.load(request)
        except WaitExpiredError as error:
            self._count_timeout(ref, error)
            if stale is MISS:
                raise self._loads.expired(ref, allowed or 0.0, error) from None
        except CacheDeadlockError:
            # With a soft timeout, the stale value is returned instead.
            if soft is None:
                raise
        except asyncio.CancelledError:
            # The load was cancelled, or this caller.
            task = asyncio.current_task()
            if stale is MISS or task is None or task.cancelling():
                raise
        except Exception as error:
            if not self._may_serve_stale(ref, error, stale):
                raise
        return self._stale(ref, stale)  # type: ignore[no-any-return]  # what was stored is what the loader returned

    def load(self, request: LoadRequest[T]) -> Coroutine[Any, Any, T]:
        """Load a missing or outdated value, to be awaited, within the policy's `hard_timeout`.

        :raises CacheTimeoutError: after that.
        :raises Exception: what the loader raises.
        """
        allowed = request.ref.freshness.hard_timeout
        if allowed is None or self._state.mode is Mode.DISABLED:
            return self._loads.load(request)
        return self._load_within(request, allowed)

    async def _load_within(self, request: LoadRequest[T], allowed: float) -> T:
        try:
            return await self._loads.load(request._replace(max_wait=allowed))
        except WaitExpiredError as error:
            self._count_timeout(request.ref, error)
            raise self._loads.expired(request.ref, allowed, error) from None

    def load_blocking(self, request: LoadRequest[T]) -> T:
        """Return the same as `load`, for a blocking caller.

        :raises CacheTimeoutError: as `load` does.
        :raises Exception: as `load` does.
        """
        if request.ref.freshness.hard_timeout is None or self._state.mode is Mode.DISABLED:
            return self._loads.load_blocking(request)
        self._state.check_open()
        load: Callable[[], Any] = partial(self.load, request._replace(blocks=running_loop()))
        try:
            value: T = self._state.portal.call(load)
        except NoThreadError:
            # This thread cannot interrupt a load, so it has no time limit, as without the cache.
            return self._loads.load_blocking(request)
        return value

    def get_blocking(self, request: LoadRequest[T]) -> T:
        """Return the same as `get`, for a blocking caller.

        The loader runs in this thread, unless the policy has timeouts or early refreshes. Loads that may have to
        continue without the caller run on the background loop or, if they block, in its worker threads.

        :raises CacheTimeoutError: as `get` does.
        :raises Exception: as `get` does.
        """
        ref = request.ref
        if ref.freshness.in_tasks:
            self._state.check_open()
            get: Callable[[], Any] = partial(self.get, request._replace(blocks=running_loop()))
            with contextlib.suppress(NoThreadError):
                value: T = self._state.portal.call(get)
                return value
        entry, near = self._state.memory.get_stale(ref.name, trusted=True), True
        if entry is None:
            read, near = self._reads.read_blocking(ref), False
            # A payload alone is for those without a policy.
            entry = None if isinstance(read, bytes) else read
            entry = self._reads.last(ref) if entry is None else entry
        state = self._freshness_of(ref, entry)
        if request.options.state_of is not None:
            request, state = self._judged(request, entry, state, LARGE)
        served, found = self._served(request, entry, state, near=near)
        if request.note is not None:
            self._note(request, entry, near=near, stale=state not in _FRESH)
        if served:
            if state is FreshnessState.EARLY and entry is not None:
                with contextlib.suppress(NoThreadError):
                    self._state.portal.call(partial(self._begin_refresh, request, entry))
            return found  # type: ignore[no-any-return]  # what was stored is what the loader returned
        try:
            return self._loads.load_blocking(request if found is MISS else request._replace(spare=True))
        except Exception as error:
            if not self._may_serve_stale(ref, error, found):
                raise
        return self._stale(ref, found)  # type: ignore[no-any-return]  # likewise

    # -- for batches ------------------------------------------------------------------------------------------

    def stale_while_throttled(self, ref: KeyRef, entry: Entry | None) -> Any:
        """Return a stale value while the loads of its key are paused after a failure; else MISS.

        :param entry: the entry that was found, or None.
        """
        return self._stale_value(ref, entry) if self._loads.throttle.holds(ref.name) else MISS

    def stale_on_error(self, ref: KeyRef, error: Exception, entry: Entry | None) -> Any:
        """Return the stale value to serve instead of a load's error; MISS without one.

        :param entry: the entry that was found before the load, or None.
        """
        return self._stale_value(ref, entry) if self._may_serve_stale(ref, error, None) else MISS

    def kept(self, ref: KeyRef) -> Entry | None:
        """Return what this process holds of a value that was not found, be it stale, in case it is served."""
        return self._state.memory.get_stale(ref.name, trusted=True) or self._reads.last(ref)

    def have_stale(self, items: Mapping[bytes, BatchItem], entries: Mapping[bytes, Entry]) -> bool:
        """Return whether each of some keys has a value that may be served stale.

        :param entries: the entries that were found, by name.
        """
        return len(entries) >= len(items) and all(
            item.ref.freshness.grace and self._freshness_of(item.ref, entries.get(name)) is not FreshnessState.GONE
            for name, item in items.items()
        )

    def _stale_value(self, ref: KeyRef, entry: Entry | None) -> Any:
        if not ref.freshness.grace:
            return MISS
        entry = entry or self.kept(ref)
        if entry is None or self._freshness_of(ref, entry) is FreshnessState.GONE:
            return MISS
        value = self._reads.opened_anyway(ref, entry)
        return value if value is MISS else self._stale(ref, value)

    # -- shared -----------------------------------------------------------------------------------------

    def _count_timeout(self, ref: KeyRef, error: WaitExpiredError) -> None:
        """Count a caller that stopped waiting; pause the loads of the key if this one was given up."""
        ref.counters.timeouts += 1
        self._tell(WaitExpired, ref)
        ref.counters.overloads += error.limit_reached
        if error.given_up:
            self._loads.throttle.failed(ref.name, ref.freshness.retry)

    def _freshness_of(self, ref: KeyRef, entry: Entry | None) -> FreshnessState:
        if entry is None:
            return FreshnessState.GONE
        # The entry may come from a call with a longer grace than this one.
        end = min(entry.end, entry.fresh_until + ref.freshness.grace)
        return classify(self._state.clock(), entry.deadline, entry.fresh_until, end)

    def _served(
        self, request: LoadRequest[Any], entry: Entry | None, state: FreshnessState, *, near: bool, opened: Any = LARGE
    ) -> tuple[bool, Any]:
        """Return whether a value is served without a load, and the value; if not, a stale value or MISS.

        :param opened: the entry's value, if it is large and was decoded before.
        :raises Exception: if the entry is a remembered error.
        """
        ref, saves = request.ref, request.options.saves
        value = self._opened(ref, entry, state, near=near, opened=opened)
        if value is not MISS:
            if state in _FRESH:
                if saves is not None:
                    count_saved(ref.counters, saves, entry)
                if ref.namespace.audit or request.options.audit:
                    self._auditor.loadable(request, entry)
                return True, value
            if self._loads.throttle.holds(ref.name):
                return True, self._stale(ref, value)
        ref.counters.misses += 1
        self._tell(Miss, ref)
        return False, value

    def _opened(self, ref: KeyRef, entry: Entry | None, state: FreshnessState, *, near: bool, opened: Any) -> Any:
        """Return an entry's value, fresh or stale; MISS without one.

        :raises Exception: if the entry is a remembered error.
        """
        if entry is None or state is FreshnessState.GONE:
            return MISS
        if state is FreshnessState.FRESH and (error := self._reads.error(ref, entry)) is not None:
            ref.counters.negative_hits += 1
            self._tell(ErrorServed, ref)
            raise error
        value = self._reads.opened_anyway(ref, entry) if opened is LARGE else opened
        if value is not MISS and state in _FRESH:
            ref.counters.count(hit=True, near=near)
            self._tell(Hit, ref, "l1" if near else "l2")
        return value

    def _judged(
        self, request: LoadRequest[T], entry: Entry | None, state: FreshnessState, opened: Any
    ) -> tuple[LoadRequest[T], FreshnessState]:
        """Return a request whose load does not return an entry that is not fresh for it, and how fresh the entry is.

        :param opened: the entry's value, if it is large and was decoded before.
        """
        state_of = request.options.state_of
        if state_of is None or entry is None or entry.negative or state is FreshnessState.GONE:
            return request, state
        value = self._reads.opened_anyway(request.ref, entry) if opened is LARGE else opened
        if value is MISS:
            return request, state
        age = age_of(entry.as_of, self._state.topology.time_of(request.ref.name), self._state.clock())
        judged = state_of(value, age)
        if not isinstance(judged, FreshnessState):
            raise CacheTypeError("state_of", f"it returns a FreshnessState, not {type(judged).__name__}")
        if judged in _FRESH:
            return request, FreshnessState.EARLY if state is FreshnessState.EARLY else judged
        return request._replace(unwanted=entry.version), judged

    async def _begin_refresh(self, request: LoadRequest[Any], entry: Entry) -> None:
        self._refresh_early(request, entry)

    def _refresh_early(self, request: LoadRequest[Any], entry: Entry) -> None:
        ref = request.ref
        if self._state.closed or self._loads.throttle.holds(ref.name):
            return
        ttl = request.options.ttl or ref.namespace.ttl
        if isinstance(ttl, CalendarTtl) and not self._reads.lives.gains(ttl, ref.name, entry.fresh_until):
            return
        if self._loads.begin(request._replace(unwanted=entry.version)):
            ref.counters.early_refreshes += 1

    def _may_serve_stale(self, ref: KeyRef, error: Exception, stale: Any) -> bool:
        """Whether to serve a stale value instead of a load's error.

        There must be a stale value. Errors that the policy remembers (`negative`) are raised, and so are errors that
        report a mistake in the program.
        """
        if isinstance(error, CacheBudgetError):
            return stale is not MISS
        if stale is MISS or ref.freshness.negative_ttl(error) is not None:
            return False
        return not isinstance(error, CacheError) or isinstance(error, CacheTimeoutError)

    def _note(self, request: LoadRequest[Any], entry: Entry | None, *, near: bool, stale: bool) -> None:
        """Note what was found, for a stamped call; a load that follows notes when it began instead."""
        if request.note is not None and entry is not None:
            # In an outage it comes from memory, however it was asked for.
            near = near or not self._state.reaches(request.ref.name)
            request.note.found(entry, near=near, stale=stale)

    def _stale(self, ref: KeyRef, value: Any) -> Any:
        ref.counters.stale_hits += 1
        self._tell(StaleServed, ref)
        return value

    def _tell(self, kind: type[CacheEvent], ref: KeyRef, *fields: Any) -> None:
        if self._state.observers.active:
            self._state.observers.about(kind, ref, *fields)


def _with_entry(request: LoadRequest[T]) -> LoadRequest[T]:
    """Return a request whose read returns an entry."""
    return request._replace(ref=request.ref.with_entry()) if request.ref.is_far else request
