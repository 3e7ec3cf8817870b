"""The operations of `CacheManager`: the cache for blocking code.

A hit in memory is served in the calling thread, and so are most reads through Redis (see `redis/lane`). Everything else
runs on the background loop, on the same paths as for coroutines, and over one connection for all threads; the caller
waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from magnus_cache._engine import codec
from magnus_cache._engine.api.asynchronous import AsyncCache
from magnus_cache._engine.api.atomic import BlockingAtomic
from magnus_cache._engine.api.audit_report import AuditReport, report_of
from magnus_cache._engine.api.changes import MOST_WAITING, Changes, blocking_changes
from magnus_cache._engine.api.documented import documented_by
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.local_stats import local_stats
from magnus_cache._engine.api.many import as_list, load_many_blocking, locator
from magnus_cache._engine.api.reading import BlockingReading
from magnus_cache._engine.api.scanning import scan
from magnus_cache._engine.api.set_many import set_many_blocking
from magnus_cache._engine.api.stamped import get_stamped_blocking, load_many_stamped_blocking
from magnus_cache._engine.api.warm_jobs import BlockingWarmJobs
from magnus_cache._engine.api.warming import ProgressCallback, WarmReport
from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.loading.money import count_saved
from magnus_cache._engine.loading.own_loop import wait_for
from magnus_cache._engine.loading.request import BatchLoader, BatchRequest, LoadRequest
from magnus_cache._engine.policy.calendars import CalendarTtl, Ttl, checked_ttl
from magnus_cache._engine.policy.costs import AnyCost, checked_cost
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import (
    AnyLoader,
    AnyTtl,
    LoadOptions,
    SkipIf,
    StateOf,
    check_callable,
    checked_skip,
    checked_state_of,
    validate_ttl,
)
from magnus_cache._engine.policy.tags import AnyTags, TagRule, check_tags
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.fleet_totals import FleetProcess
from magnus_cache._engine.runtime.ledger import LedgerBy, LedgerRow
from magnus_cache._engine.runtime.stats import CacheStats
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.explanation import Explanation
from magnus_cache._engine.store.records import MISS, Began, KeyRef
from magnus_cache._engine.store.stamps import Stamped
from magnus_cache.freshness import NO_POLICY, FreshnessOptions

if TYPE_CHECKING:
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["BlockingCache"]

D = TypeVar("D")
T = TypeVar("T")


@readable
@documented_by(AsyncCache)
class BlockingCache(BlockingAtomic, BlockingReading, BlockingWarmJobs):
    """The operations of a cache for blocking code; see `CacheManager`."""

    _async: AsyncCache

    def __init__(self, settings: CacheSettings | None = None, **overrides: Unpack[SettingsOptions]) -> None:
        self._bind(AsyncCache(settings, **overrides))

    @classmethod
    def _over(cls, engine: Engine) -> Self:
        """Return another manager of the same engine."""
        manager = cls.__new__(cls)
        manager._bind(AsyncCache._over(engine))
        return manager

    def _bind(self, operations: AsyncCache) -> None:
        self._async = operations
        self._engine = engine = operations._engine
        self._state = engine.state
        self._places = engine.gets.places
        self._reads, self._writes, self._loads = engine.reads, engine.writes, engine.loads
        self._deferred, self._clears = engine.deferred, engine.clears

    # -- single values --------------------------------------------------------------------------------------

    @overload
    def get(self, namespace: str, key: Any, default: Any = None, *, stamped: Literal[False] = False) -> Any: ...
    @overload
    def get(self, namespace: str, key: Any, default: D, *, stamped: Literal[True]) -> Stamped[Any] | D: ...
    @overload
    def get(self, namespace: str, key: Any, default: None = None, *, stamped: Literal[True]) -> Stamped[Any] | None: ...
    def get(self, namespace: str, key: Any, default: Any = None, *, stamped: bool = False) -> Any:
        """Do what `AsyncCache.get` does, in blocking code."""
        if stamped:
            return get_stamped_blocking(self._engine, namespace, key, default)
        state = self._state
        # Written out, as in the wrappers of functions: the entry that the last call had, if it may be served.
        try:
            # An error would cost a read through Redis more than a look-up costs a hit.
            place = self._places.get(namespace)
            entry = place.by_types[type(key)][key] if place is not None else None
        except (KeyError, TypeError):
            place = entry = None
        if place is not None and entry is not None:
            # Payload first: an entry that is decoded at this moment gets its value, and then loses its payload.
            payload, value = entry.payload, entry.value
            now, trust = state.clock(), entry.trust
            if (
                now < entry and now < trust.deadline
                and entry.generation is state.memory.generation
                and not state.special
                and (place.given is namespace or type(place.given) is type(namespace) is str)
                and place.generation == state.namespaces.generation
            ):  # fmt: skip
                if payload is None:
                    entry.seen = trust.used = True
                    place.counters.l1_hits += 1
                    return value
                if type(value) is codec.CopyPlan:
                    entry.seen = trust.used = True
                    place.counters.l1_hits += 1
                    return value.copy()
        ref = self._reads.ref(namespace, key)
        if state.mode is not Mode.NORMAL:
            return default
        entry = state.memory.hit(ref.name)
        if entry is not None and (value := self._reads.opened(ref, entry)) is not MISS:
            ref.counters.l1_hits += 1
            if state.observers.active:
                state.observers.hit(ref, "l1")
            self._engine.gets.keep(namespace, key, ref, entry)
            return value
        if (value := self._reads.opened(ref, self._reads.read_blocking(ref))) is not MISS:
            ref.counters.l2_hits += 1
            if state.observers.active:
                state.observers.hit(ref, "l2")
            return value
        ref.counters.misses += 1
        if state.observers.active:
            state.observers.miss(ref)
        return default

    def set(self, namespace: str, key: Any, value: Any, ttl: Ttl | None = None, tags: str | Iterable[str] = ()) -> bool:
        """Do what `AsyncCache.set` does, in blocking code.

        If a signal handler has interrupted the cache, the value is stored soon after, and the result is False.
        """
        began, ref = Began(self._state.clock()), self._reads.ref(namespace, key)
        life = self._reads.life(ref, ttl) if ttl is None or isinstance(ttl, CalendarTtl) else seconds(ttl)
        # Encoded here, so that a large value does not hold up the loop that all threads share.
        names, payload = check_tags(tags), self._reads.encoded(ref, value)
        if self._state.mode is Mode.DISABLED:
            self._remove((ref,))
            return False
        self._state.recorder.add_act(ref.name, "set")
        if self._deferred.writes:
            self._deferred.write(ref, value, payload, life, names, began)
            return False
        record = partial(self._deferred.record_overwritten, ref)
        stored: bool = self._call_or(self._writes.overwrite, ref, value, payload, life, names, began, record=record)
        return stored

    def delete(self, namespace: str, key: Any) -> bool:
        """Do what `AsyncCache.delete` does, in blocking code; see `delete_many`.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return self.delete_many(namespace, (key,)) > 0

    def touch(self, namespace: str, key: Any, ttl: Ttl) -> bool:
        """Do what `AsyncCache.touch` does, in blocking code."""
        ref = self._reads.ref(namespace, key)
        life = self._reads.life(ref, checked_ttl(ttl))
        if self._state.mode is Mode.DISABLED:
            return False
        touched: bool = self._call_or(self._engine.lifetimes.prolong, ref, life, otherwise=False)
        if touched:
            self._state.acts.touched(ref.namespace, ref.name, self._reads.lives.seconds(life, ref.name))
        return touched

    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], Awaitable[T]], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], Awaitable[T]], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True], **freshness: Unpack[FreshnessOptions],
    ) -> Stamped[T]: ...  # fmt: skip
    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True], **freshness: Unpack[FreshnessOptions],
    ) -> Stamped[T]: ...  # fmt: skip
    def get_or_set(
        self, namespace: str, key: Any, loader: AnyLoader[Any], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: bool = False, **freshness: Unpack[FreshnessOptions],
    ) -> Any:  # fmt: skip
        """Do what `AsyncCache.get_or_set` does, in blocking code.

        :param loader: a function without arguments, run in this thread; or a coroutine function without arguments, run
            on the background loop.
        :raises CacheDeadlockError: if only this thread could run the load that it would wait for.
        """
        check_callable(loader, "loader")
        if returns is not None:
            codec.register_hint(returns, loader)
        ref = self._reads.ref(namespace, key, freshness)
        tag_rule = TagRule(tags)
        options = LoadOptions(validate_ttl(ttl), checked_skip(skip_if), tag_rule, strict=strict, function=loader)
        if cost is not None:
            options.priced(checked_cost(cost))
        if cost is not None or ref.namespace.audit:
            ref = ref.with_entry()
        if state_of is not None or stamped:
            options.state_of = checked_state_of(state_of)
            request = LoadRequest(ref, loader, options, tag_rule.of_call({}))
            stale = self._engine.stale
            return stale.get_stamped_blocking(request) if stamped else stale.get_judged_blocking(request)
        if self._state.mode is Mode.NORMAL:
            entry = self._state.memory.hit(ref.name)
            if entry is not None and (value := self._reads.opened(ref, entry)) is not MISS:
                ref.counters.l1_hits += 1
                if options.saves is not None:
                    count_saved(ref.counters, options.saves, entry)
                if ref.namespace.audit:
                    self._engine.auditor.loadable(LoadRequest(ref, loader, options, tag_rule.of_call({})), entry)
                if self._state.observers.active:
                    self._state.observers.hit(ref, "l1")
                return value
            if ref.freshness is not NO_POLICY:
                return self._engine.stale.get_blocking(LoadRequest(ref, loader, options, tag_rule.of_call({})))
            if (value := self._reads.opened(ref, found := self._reads.read_blocking(ref))) is not MISS:
                ref.counters.l2_hits += 1
                if options.saves is not None:
                    count_saved(ref.counters, options.saves, found)
                if ref.namespace.audit:
                    self._engine.auditor.loadable(LoadRequest(ref, loader, options, tag_rule.of_call({})), found)
                if self._state.observers.active:
                    self._state.observers.hit(ref, "l2")
                return value
            ref.counters.misses += 1
            if self._state.observers.active:
                self._state.observers.miss(ref)
        return self._engine.stale.load_blocking(LoadRequest(ref, loader, options, tag_rule.of_call({})))

    # -- many values ----------------------------------------------------------------------------------------

    @overload
    def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False,
    ) -> dict[Any, Any]: ...  # fmt: skip
    @overload
    def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True],
    ) -> dict[Any, Stamped[Any]]: ...  # fmt: skip
    def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: bool = False,
    ) -> dict[Any, Any]:  # fmt: skip
        """Do what `AsyncCache.get_or_set_many` does, in blocking code.

        :param batch_loader: a function, called in this thread, or a coroutine function, run on the background loop. It
            is called with the list of keys that no other caller in the fleet is loading, at most 500 at a time. It
            returns a mapping of keys to values. Keys that it omits are omitted from the result; an exception as a value
            marks that key as failed.
        """
        check_callable(batch_loader, "batch_loader")
        if returns is not None:
            codec.register_hint(returns, batch_loader)
        life = ttl if ttl is None or isinstance(ttl, CalendarTtl) else seconds(ttl)
        options = LoadOptions(life, checked_skip(skip_if), TagRule(tags), strict=strict, function=batch_loader)
        options.priced(checked_cost(cost))
        locate = locator(self._engine, namespace, options)
        self._state.check_open()
        load = load_many_stamped_blocking if stamped else load_many_blocking
        return load(self._engine, BatchRequest(as_list(keys, "keys"), locate, batch_loader, options))

    def set_many(
        self, namespace: str, mapping: Mapping[Any, Any], ttl: Ttl | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Do what `AsyncCache.set_many` does, in blocking code.

        If a signal handler has interrupted the cache, the values are stored soon after, and the result is False.
        """
        return set_many_blocking(self._engine, namespace, mapping, ttl, tags)

    def delete_many(self, namespace: str, keys: Iterable[Any]) -> int:
        """Do what `AsyncCache.delete_many` does, in blocking code.

        If a signal handler or finalizer has interrupted the cache, this process removes the values at once. Redis and
        the other processes follow soon after, and the number is that of this process.
        """
        several = as_list(keys, "keys")
        if not several:
            return self._remove(())
        refs = RefMaker(self._reads, namespace)
        return self._remove([refs.ref(refs.name(key)) for key in several])

    def _remove(self, refs: Sequence[KeyRef]) -> int:
        return self._engine.remove_blocking(refs)

    def clear(self, namespace_or_pattern: str) -> int:
        """Do what `AsyncCache.clear` does, in blocking code.

        If a signal handler or finalizer has interrupted the cache, Redis follows soon after, and the number is 0.
        """
        acts, target = self._state.acts, namespace_or_pattern
        self._state.check_open()
        scope = self._state.keyspace.scope(target)
        site = acts.clearing(target, scope)
        if self._deferred.invalidations:
            self._deferred.clear(target)
            removed = 0
        else:
            record = partial(self._deferred.record_clear, target)
            removed = self._call_or(self._clears.clear, target, record=record)
        acts.cleared(target, scope, removed, site)
        return removed

    def invalidate_tags(self, *tags: str) -> None:
        """Do what `AsyncCache.invalidate_tags` does, in blocking code.

        If a signal handler or finalizer has interrupted the cache, the fleet follows soon after this process.
        """
        names, acts = check_tags(tags), self._state.acts
        self._state.check_open()
        site = acts.invalidating(names)
        if self._deferred.invalidations:
            self._deferred.invalidate(names)
        else:
            self._call_or(self._clears.invalidate, names, record=partial(self._deferred.record_tags, names))
        acts.invalidated(names, site)

    def warm_cache(
        self, namespace: str, data_loader: Callable[[Any], Any], keys: Iterable[Any], ttl: Ttl | None = None, *,
        concurrency: int = 16, only_missing: bool = False, progress: ProgressCallback | bool | None = None,
    ) -> WarmReport:  # fmt: skip
        """Do what `AsyncCache.warm_cache` does, in blocking code.

        :param data_loader: called with a key; a function, which runs in worker threads, or a coroutine function,
            which runs on the background loop. Where no thread can be started, all of it runs in this one.
        """
        self._state.check_open()
        warm = partial(
            self._async.warm_cache, namespace, data_loader, as_list(keys, "keys"), ttl,
            concurrency=concurrency, only_missing=only_missing, progress=progress,
        )  # fmt: skip
        return wait_for(self._state.portal, warm)

    # -- the rest -------------------------------------------------------------------------------------------

    def scan(self, namespace: str, match: str = "*") -> Generator[str]:
        """Do what `AsyncCache.scan` does, in blocking code."""
        keys = scan(self._engine, namespace, match)
        try:
            while (key := self._call(anext, keys, None)) is not None:
                yield key
        finally:
            self._call(keys.aclose)

    def changes(
        self, namespace: str, *, match: str = "*", keys: Iterable[Any] | None = None,
        timeout: Duration | None = None, max_waiting: int = MOST_WAITING,
    ) -> Changes:  # fmt: skip
        """Do what `AsyncCache.changes` does, in blocking code: with ``with`` and ``for``.

        :param timeout: seconds without a change after which the iteration ends; another one continues. 0 takes what
            waits already. None waits until the iterator or the cache is closed.
        """
        return blocking_changes(self._engine, namespace, match, keys, timeout, max_waiting)

    def explain(self, namespace: str, key: Any) -> Explanation:
        """Do what `AsyncCache.explain` does, in blocking code."""
        explanation: Explanation = self._call(self._async.explain, namespace, key)
        return explanation

    def get_stats(self, scope: Literal["process", "fleet"] = "process") -> CacheStats:
        """Do what `AsyncCache.get_stats` does, in blocking code."""
        figures: CacheStats | None = self._call_or(self._async.get_stats, scope)
        return local_stats(self._state, scope) if figures is None else figures

    def get_history(self, minutes: int = 60) -> list[CacheStats]:
        """Do what `AsyncCache.get_history` does, in blocking code."""
        found: list[CacheStats] = self._call_or(self._async.get_history, minutes)
        return found or []

    def get_ledger(self, days: int = 30, *, by: LedgerBy = "namespace") -> list[LedgerRow]:
        """Do what `AsyncCache.get_ledger` does, in blocking code."""
        found: list[LedgerRow] = self._call_or(partial(self._async.get_ledger, days, by=by))
        return found or []

    def audit_report(self, namespace: str) -> AuditReport:
        """Do what `AsyncCache.audit_report` does, in blocking code."""
        name = str(check_name(namespace))
        found: AuditReport | None = self._call_or(self._async.audit_report, name)
        return report_of(name, self._state.stats.audits.of(name)) if found is None else found

    def get_processes(self) -> list[FleetProcess]:
        """Do what `AsyncCache.get_processes` does, in blocking code."""
        found: list[FleetProcess] = self._call_or(self._async.get_processes)
        return found or []
