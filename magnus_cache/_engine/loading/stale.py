"""Values under a policy of freshness: what is served, what is loaded for it, and who waits for that.

This is where calls go in whose namespace, or who themselves, ask for more than a time to live, once the near cache had
nothing that could be served without a second thought.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from magnus_cache._engine.flights.background import WaitExpiredError
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyLoader, LoadOptions
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache.errors import CacheDeadlockError, CacheError, CacheTimeoutError
from magnus_cache.freshness import FreshnessState, classify

__all__ = ["StalePolicy"]

T = TypeVar("T")

_FRESH: Final = frozenset({FreshnessState.FRESH, FreshnessState.EARLY})


class StalePolicy:
    """The way to a value under a policy. `value` runs on any event loop, `value_blocking` in any thread."""

    def __init__(self, reads: Reads, loads: Loads) -> None:
        self._reads = reads
        self._loads = loads
        self._state = reads.state

    async def value(
        self, ref: KeyRef, loader: AnyLoader[T], rule: LoadOptions, tags: tuple[str, ...] = (), *,
        blocks: asyncio.AbstractEventLoop | None = None,
    ) -> T:  # fmt: skip
        """Return a fresh value, or a stale one where the policy says so; see `Freshness`.

        :param blocks: the event loop that is held up by whoever this is done for.
        :raises CacheTimeoutError: after the policy's `hard_timeout`, if there is no stale value.
        :raises Exception: whatever the loader raises, now or, if it is remembered, before.
        """
        began = monotonic()
        entry, near = self._state.memory.past(ref.name, trusted=True), True
        if entry is None:
            entry, near = await self._read(ref, tags), False
        stands = self._standing(ref, entry)
        opened: Any = LARGE
        if entry is not None and stands is not FreshnessState.GONE and self._reads.is_large(entry):
            opened = await self._reads.open_anyway(ref, entry)
        served, value = self._served(ref, entry, stands, near=near, opened=opened)
        if not served:
            return await self._loaded(ref, loader, rule, tags, value, began, blocks)
        if stands is FreshnessState.EARLY and entry is not None:
            self._refresh_early(ref, loader, rule, tags, entry)
        return value  # type: ignore[no-any-return]  # what was stored is what the loader returned

    async def _read(self, ref: KeyRef, tags: tuple[str, ...]) -> Entry | None:
        """Return what Redis has, if it says so in time; if it could not be asked, whatever this process still has."""
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

    async def _loaded(
        self, ref: KeyRef, loader: AnyLoader[T], rule: LoadOptions, tags: tuple[str, ...], stale: Any, began: float,
        blocks: asyncio.AbstractEventLoop | None,
    ) -> T:  # fmt: skip
        """Return what is loaded, or, if that takes too long or fails, a stale value if there is one.

        :param began: when the caller began to wait, in monotonic seconds.
        """
        policy = ref.freshness
        soft = policy.soft_timeout if stale is not MISS else None
        allowed = soft if soft is not None else policy.hard_timeout
        patience = None if allowed is None else max(0.0, began + allowed - monotonic())
        try:
            return await self._loads.load(ref, loader, rule, tags, patience=patience, blocks=blocks)
        except WaitExpiredError as error:
            self._impatient(ref, error)
            if stale is MISS:
                raise CacheTimeoutError(ref.namespace, allowed or 0.0, goes_on=not error.crowded) from None
        except CacheDeadlockError:
            # Who would not have waited anyway holds nobody up.
            if soft is None:
                raise
        except asyncio.CancelledError:
            # The load's own, unless it is this caller that is cancelled.
            task = asyncio.current_task()
            if stale is MISS or task is None or task.cancelling():
                raise
        except Exception as error:
            if not self._excused(ref, error, stale):
                raise
        return self._stale(ref, stale)  # type: ignore[no-any-return]  # what was stored is what the loader returned

    async def load(
        self,
        ref: KeyRef,
        loader: AnyLoader[T],
        rule: LoadOptions,
        tags: tuple[str, ...] = (),
        *,
        fresh: bool = False,
        blocks: asyncio.AbstractEventLoop | None = None,
    ) -> T:
        """Load a value that is missing, or is to be replaced, within the policy's `hard_timeout`.

        :param fresh: take no value that is already there.
        :param blocks: the event loop that is held up by whoever this is done for.
        :raises CacheTimeoutError: after that.
        :raises Exception: whatever the loader raises.
        """
        patience = None if self._state.mode is Mode.DISABLED else ref.freshness.hard_timeout
        try:
            return await self._loads.load(ref, loader, rule, tags, fresh=fresh, patience=patience, blocks=blocks)
        except WaitExpiredError as error:
            self._impatient(ref, error)
            raise CacheTimeoutError(ref.namespace, patience or 0.0, goes_on=not error.crowded) from None

    def load_blocking(
        self,
        ref: KeyRef,
        loader: AnyLoader[T],
        rule: LoadOptions,
        tags: tuple[str, ...] = (),
        *,
        fresh: bool = False,
    ) -> T:
        """Do what `load` does, for a thread.

        :raises CacheTimeoutError: as `load` does.
        :raises Exception: as `load` does.
        """
        if ref.freshness.hard_timeout is None or self._state.mode is Mode.DISABLED:
            return self._loads.load_blocking(ref, loader, rule, tags, fresh=fresh)
        self._state.check_open()
        there: Callable[[], Any] = partial(self.load, ref, loader, rule, tags, fresh=fresh, blocks=running_loop())
        try:
            value: T = self._state.portal.call(there)
        except NoThreadError:
            # In this thread no limit of time can be kept; without the cache there would be none either.
            return self._loads.load_blocking(ref, loader, rule, tags, fresh=fresh)
        return value

    def value_blocking(self, ref: KeyRef, loader: AnyLoader[T], rule: LoadOptions, tags: tuple[str, ...] = ()) -> T:
        """Do what `value` does, for a thread.

        The loader runs in this very thread, unless the policy knows timeouts or early refreshes: loads that may have to
        go on without the caller run on the background loop or, if they block, in its worker threads.

        :raises CacheTimeoutError: as `value` does.
        :raises Exception: as `value` does.
        """
        if ref.freshness.in_tasks:
            self._state.check_open()
            there: Callable[[], Any] = partial(self.value, ref, loader, rule, tags, blocks=running_loop())
            with contextlib.suppress(NoThreadError):
                value: T = self._state.portal.call(there)
                return value
        entry, near = self._state.memory.past(ref.name, trusted=True), True
        if entry is None:
            entry, near = self._reads.read_blocking(ref), False
            entry = self._reads.last(ref) if entry is None else entry
        served, held = self._served(ref, entry, self._standing(ref, entry), near=near)
        if served:
            return held  # type: ignore[no-any-return]  # what was stored is what the loader returned
        try:
            return self._loads.load_blocking(ref, loader, rule, tags)
        except Exception as error:
            if not self._excused(ref, error, held):
                raise
        return self._stale(ref, held)  # type: ignore[no-any-return]  # likewise

    # -- for batches ------------------------------------------------------------------------------------------

    def held_back(self, ref: KeyRef, entry: Entry | None) -> Any:
        """Return a stale value if its key is not to be loaded for a while, as that has just failed; else MISS.

        :param entry: what was found of it.
        """
        return self._past(ref, entry) if self._loads.throttle.holds(ref.name) else MISS

    def instead(self, ref: KeyRef, error: Exception, entry: Entry | None) -> Any:
        """Return the stale value that is served in place of a load's error; MISS for none.

        :param entry: what was found of it, before the load.
        """
        return self._past(ref, entry) if self._excused(ref, error, None) else MISS

    def _past(self, ref: KeyRef, entry: Entry | None) -> Any:
        if not ref.freshness.grace:
            return MISS
        entry = entry or self._state.memory.past(ref.name, trusted=True) or self._reads.last(ref)
        if entry is None or self._standing(ref, entry) is FreshnessState.GONE:
            return MISS
        value = self._reads.opened_anyway(ref, entry)
        return value if value is MISS else self._stale(ref, value)

    # -- what both do -----------------------------------------------------------------------------------------

    def _impatient(self, ref: KeyRef, error: WaitExpiredError) -> None:
        """Count a caller that does not wait any longer; let the next ones not begin what has to be given up again."""
        ref.counters.timeouts += 1
        ref.counters.overloads += error.crowded
        if error.given_up:
            self._loads.throttle.failed(ref.name, ref.freshness.retry)

    def _standing(self, ref: KeyRef, entry: Entry | None) -> FreshnessState:
        if entry is None:
            return FreshnessState.GONE
        # Whoever brought it near may have asked for a longer grace than this caller.
        end = min(entry.end, entry.fresh_until + ref.freshness.grace)
        return classify(self._state.clock(), entry.deadline, entry.fresh_until, end)

    def _served(
        self, ref: KeyRef, entry: Entry | None, stands: FreshnessState, *, near: bool, opened: Any = LARGE
    ) -> tuple[bool, Any]:
        """Return whether a value is served without a load; and it, or else the stale one that there is, or MISS.

        :param opened: the entry's value, if it took long to be opened.
        :raises Exception: if it stands for an error that is remembered.
        """
        value = self._opened(ref, entry, stands, near=near, opened=opened)
        if value is not MISS:
            if stands in _FRESH:
                return True, value
            if self._loads.throttle.holds(ref.name):
                return True, self._stale(ref, value)
        ref.counters.misses += 1
        return False, value

    def _opened(self, ref: KeyRef, entry: Entry | None, stands: FreshnessState, *, near: bool, opened: Any) -> Any:
        """Return an entry's value, fresh or stale; MISS for none.

        :raises Exception: if it stands for an error that is remembered.
        """
        if entry is None or stands is FreshnessState.GONE:
            return MISS
        if stands is FreshnessState.FRESH and (error := self._reads.error(ref, entry)) is not None:
            ref.counters.negative_hits += 1
            raise error
        value = self._reads.opened_anyway(ref, entry) if opened is LARGE else opened
        if value is not MISS and stands in _FRESH:
            ref.counters.count(hit=True, near=near)
        return value

    def _refresh_early(
        self, ref: KeyRef, loader: AnyLoader[Any], rule: LoadOptions, tags: tuple[str, ...], entry: Entry
    ) -> None:
        if self._state.closed or self._loads.throttle.holds(ref.name):
            return
        if self._loads.begin(ref, loader, rule, tags, entry.version):
            ref.counters.early_refreshes += 1

    def _excused(self, ref: KeyRef, error: Exception, stale: Any) -> bool:
        """Whether a stale value is to be served instead of a load's error.

        Not if there is none; not for an error that is an answer, as the policy's `negative` says; and not for one that
        tells of a mistake in the program.
        """
        if stale is MISS or ref.freshness.negative_ttl(error) is not None:
            return False
        return not isinstance(error, CacheError) or isinstance(error, CacheTimeoutError)

    def _stale(self, ref: KeyRef, value: Any) -> Any:
        ref.counters.stale_hits += 1
        return value
