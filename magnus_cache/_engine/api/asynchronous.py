"""The operations of `AsyncCacheManager`: the cache for coroutines.

Each method is one path through the cache: check the arguments, look into memory, then call `reads`, `writes` or
`loads`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from magnus_cache._engine import codec
from magnus_cache._engine.api.administration import AsyncAdministration
from magnus_cache._engine.api.atomic import AsyncAtomic
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.many import as_list, load_many, locator
from magnus_cache._engine.api.reading import AsyncReading
from magnus_cache._engine.api.set_many import set_many
from magnus_cache._engine.api.stamped import get_stamped, load_many_stamped
from magnus_cache._engine.api.warm_jobs import AsyncWarmJobs
from magnus_cache._engine.api.warming import ProgressCallback, WarmOptions, WarmReport, warm
from magnus_cache._engine.codec import decode
from magnus_cache._engine.loading.money import count_saved
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
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.reads_many import names_of
from magnus_cache._engine.store.records import LARGE, MISS, Began
from magnus_cache._engine.store.stamps import Stamped
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError
from magnus_cache.freshness import NO_POLICY, FreshnessOptions

if TYPE_CHECKING:
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["AsyncCache"]

D = TypeVar("D")
T = TypeVar("T")


@readable
class AsyncCache(AsyncAtomic, AsyncReading, AsyncAdministration, AsyncWarmJobs):
    """The operations of a cache for coroutines; see `AsyncCacheManager`."""

    def __init__(self, settings: CacheSettings | None = None, **overrides: Unpack[SettingsOptions]) -> None:
        self._bind(Engine.from_settings(settings, overrides))

    @classmethod
    def _over(cls, engine: Engine) -> Self:
        """Return another manager of the same engine."""
        manager = cls.__new__(cls)
        manager._bind(engine)
        return manager

    def _bind(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.state
        self._places = engine.gets.places
        self._reads, self._writes, self._loads = engine.reads, engine.writes, engine.loads
        self._clears = engine.clears

    # -- single values --------------------------------------------------------------------------------------

    @overload
    async def get(self, namespace: str, key: Any, default: Any = None, *, stamped: Literal[False] = False) -> Any: ...
    @overload
    async def get(self, namespace: str, key: Any, default: D, *, stamped: Literal[True]) -> Stamped[Any] | D: ...
    @overload
    async def get(
        self, namespace: str, key: Any, default: None = None, *, stamped: Literal[True]
    ) -> Stamped[Any] | None: ...
    async def get(self, namespace: str, key: Any, default: Any = None, *, stamped: bool = False) -> Any:
        """Return the stored value, or `default` if there is none; None is a value like any other.

        :param key: str, int, UUID, bytes, or a tuple of these. Also a path, an IP address, a NumPy scalar (its key is
            that of the plain value it equals), or an object with fields or content; see `keys.key_text`.
        :param stamped: return the value as a `Stamped`, with when its load began and how old it is; the default is
            returned as it is.
        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        if stamped:
            return await get_stamped(self._engine, namespace, key, default)
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
        if state.special and state.mode is not Mode.NORMAL:
            return default
        found: Any = None
        if ref.is_far:
            # In one coroutine down to the wait for the answer, and without an entry where none is needed.
            try:
                waiter = self._reads.ask(ref)
                found = await (self._reads.read(ref) if waiter is None else waiter)
            except CacheUnavailableError as error:
                found = await self._reads.read_again(ref, error)
            if type(found) is bytes:
                # `Reads.decoded`, written out.
                try:
                    value = decode(found)
                except CacheDecodeError as error:
                    self._reads.unreadable(ref, error)
                    ref.counters.misses += 1
                    if state.observers.active:
                        state.observers.miss(ref)
                    return default
                ref.counters.l2_hits += 1
                if state.observers.active:
                    state.observers.hit(ref, "l2")
                return value
        else:
            hit = state.memory.hit(ref.name)
            if hit is not None:
                value = self._reads.opened_here(ref, hit)
                if value is LARGE:
                    value = await self._reads.open_anyway(ref, hit)
                if value is not MISS:
                    ref.counters.l1_hits += 1
                    if state.observers.active:
                        state.observers.hit(ref, "l1")
                    self._engine.gets.keep(namespace, key, ref, hit)
                    return value
            found = await self._reads.read(ref)
        value = self._reads.opened_here(ref, found)
        if value is LARGE:
            value = await self._reads.open(ref, found)
        if value is MISS:
            ref.counters.misses += 1
            if state.observers.active:
                state.observers.miss(ref)
            return default
        ref.counters.l2_hits += 1
        if state.observers.active:
            state.observers.hit(ref, "l2")
        return value

    async def set(
        self, namespace: str, key: Any, value: Any, ttl: Ttl | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Store a value; return whether it is stored: in Redis, or in this process while Redis is away.

        :param ttl: seconds, a timedelta, text such as ``"5m"`` or a calendar; None for the namespace's.
        :param tags: names by which it can be invalidated together with other values.
        :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        :raises CacheValueTooLargeError: for a value larger than the namespace allows.

        A large value is encoded in steps, and other tasks run between them. Do not change it before this returns.
        """
        began, ref = Began(self._state.clock()), self._reads.ref(namespace, key)
        # Written out, as for `BlockingCache.set`: a plain TTL costs no call more.
        life = self._reads.life(ref, ttl) if ttl is None or isinstance(ttl, CalendarTtl) else seconds(ttl)
        names, payload = check_tags(tags), await self._reads.encode(ref, value)
        if self._state.mode is Mode.DISABLED:
            # The value is not stored, but the old one is outdated.
            await self._engine.remove((ref,))
            return False
        self._state.recorder.add_act(ref.name, "set")
        return await self._writes.overwrite(ref, value, payload, life, names, began)

    async def delete(self, namespace: str, key: Any) -> bool:
        """Remove a value everywhere; return whether there was one.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return await self.delete_many(namespace, (key,)) > 0

    async def touch(self, namespace: str, key: Any, ttl: Ttl) -> bool:
        """Give a stored value a new time to live, counted from now; return whether there was a value.

        :raises CacheArgumentError: for a namespace, key or ttl that cannot be used.
        """
        ref = self._reads.ref(namespace, key)
        life = self._reads.life(ref, checked_ttl(ttl))
        touched = self._state.mode is not Mode.DISABLED and await self._engine.lifetimes.prolong(ref, life)
        if touched:
            self._state.acts.touched(ref.namespace, ref.name, self._reads.lives.seconds(life, ref.name))
        return touched

    @overload
    async def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], Awaitable[T]], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    @overload
    async def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    @overload
    async def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], Awaitable[T]], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True], **freshness: Unpack[FreshnessOptions],
    ) -> Stamped[T]: ...  # fmt: skip
    @overload
    async def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True], **freshness: Unpack[FreshnessOptions],
    ) -> Stamped[T]: ...  # fmt: skip
    async def get_or_set(
        self, namespace: str, key: Any, loader: AnyLoader[Any], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, skip_if: SkipIf = None, state_of: StateOf = None, returns: Any = None,
        cost: AnyCost = None, stamped: bool = False, **freshness: Unpack[FreshnessOptions],
    ) -> Any:  # fmt: skip
        """Return the stored value. If there is none, load and store it, once for all callers in the whole fleet.

        :param loader: a coroutine function without arguments, or a function without arguments, run in a worker thread.
        :param ttl: a duration, a calendar, or a function of the value that returns one; None for the namespace's.
        :param tags: names by which the value can be invalidated together with others, or a function of the value that
            returns them.
        :param skip_if: called with the loaded value; if it returns true, the value is not stored.
        :param state_of: called with a stored value and the seconds since its load began, infinity if that is not known;
            returns how fresh the value is for this call, a `FreshnessState`: ``FRESH``, ``EARLY`` (served, and
            refreshed in the background), ``STALE`` (served only if its load fails, or takes longer than the
            ``soft_timeout``), or ``GONE``.
        :param returns: the value's type, such as ``list[Quote]``: its classes are registered, see `register_type`.
        :param stamped: return the value as a `Stamped`, with when its load began and how old it is.
        :param strict: raise `CacheEncodeError` for a result that cannot be stored, instead of returning it; None for
            the namespace's setting.
        :param freshness: options that replace those of the namespace's policy: ``grace``, ``soft_timeout``,
            ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
        :param cost: what one load costs in money, or a function of the value; see `cached`.
        :raises CacheArgumentError: for a namespace, key, loader, ttl, tags or option that cannot be used.
        :raises CacheEncodeError: if the result cannot be stored, and `strict` is set.
        :raises CacheTimeoutError: after the policy's ``hard_timeout``, if there is no stale value.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises Exception: what the loader raises; all callers that waited get the same.
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
        names = tag_rule.of_call({})
        if state_of is not None or stamped:
            options.state_of = checked_state_of(state_of)
            request = LoadRequest(ref, loader, options, names)
            stale = self._engine.stale
            return await (stale.get_stamped(request) if stamped else stale.get_judged(request))
        if self._state.mode is Mode.NORMAL:
            entry = self._state.memory.hit(ref.name)
            if entry is not None:
                value = self._reads.opened_here(ref, entry)
                if value is LARGE:
                    value = await self._reads.open_anyway(ref, entry)
                if value is not MISS:
                    ref.counters.l1_hits += 1
                    if options.saves is not None:
                        count_saved(ref.counters, options.saves, entry)
                    if ref.namespace.audit:
                        self._engine.auditor.loadable(LoadRequest(ref, loader, options, names), entry)
                    if self._state.observers.active:
                        self._state.observers.hit(ref, "l1")
                    return value
            if ref.freshness is not NO_POLICY:
                return await self._engine.stale.get(LoadRequest(ref, loader, options, names))
            if (value := await self._reads.open(ref, entry := await self._reads.read(ref))) is not MISS:
                ref.counters.l2_hits += 1
                if options.saves is not None:
                    count_saved(ref.counters, options.saves, entry)
                if ref.namespace.audit:
                    self._engine.auditor.loadable(LoadRequest(ref, loader, options, names), entry)
                if self._state.observers.active:
                    self._state.observers.hit(ref, "l2")
                return value
            ref.counters.misses += 1
            if self._state.observers.active:
                self._state.observers.miss(ref)
        return await self._engine.stale.load(LoadRequest(ref, loader, options, names))

    # -- many values ----------------------------------------------------------------------------------------

    @overload
    async def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[False] = False,
    ) -> dict[Any, Any]: ...  # fmt: skip
    @overload
    async def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: Literal[True],
    ) -> dict[Any, Stamped[Any]]: ...  # fmt: skip
    async def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Ttl | None = None,
        tags: AnyTags = (), *, skip_if: SkipIf = None, strict: bool | None = None, returns: Any = None,
        cost: AnyCost = None, stamped: bool = False,
    ) -> dict[Any, Any]:  # fmt: skip
        """Return the values by key, in the order of `keys`; load the missing ones in one call.

        :param batch_loader: a coroutine function, or a function, which runs in a worker thread. It is called with the
            list of keys that no other caller in the fleet is loading, at most 500 at a time. It returns a mapping of
            keys to values. Keys that it omits are omitted from the result; an exception as a value marks that key as
            failed.
        :param tags: names by which each value can be invalidated, or a function of the value that returns them.
        :param skip_if: called with each loaded value; if it returns true, the value is not stored.
        :param returns: the type of the values, or of the mapping; see `get_or_set`.
        :param stamped: return each value as a `Stamped`; see `get_or_set`.
        :param cost: what the load of one key costs in money, or a function of its value; see `cached`.
        :raises CacheArgumentError: for a namespace, key, loader, ttl or tags that cannot be used.
        :raises CacheBatchError: if some keys could not be loaded. It has the values of the others.
        :raises Exception: what the loader raises, if it was called for all keys without a value.
        """
        check_callable(batch_loader, "batch_loader")
        if returns is not None:
            codec.register_hint(returns, batch_loader)
        life = ttl if ttl is None or isinstance(ttl, CalendarTtl) else seconds(ttl)
        options = LoadOptions(life, checked_skip(skip_if), TagRule(tags), strict=strict, function=batch_loader)
        options.priced(checked_cost(cost))
        locate = locator(self._engine, namespace, options)
        load = load_many_stamped if stamped else load_many
        return await load(self._engine, BatchRequest(as_list(keys, "keys"), locate, batch_loader, options))

    async def set_many(
        self, namespace: str, mapping: Mapping[Any, Any], ttl: Ttl | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Store many values, each as `set` does; return whether all of them are stored.

        If one key or value cannot be stored, none is stored.

        :param tags: the tags of each value.
        :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        :raises CacheValueTooLargeError: for a value larger than the namespace allows.
        """
        return await set_many(self._engine, namespace, mapping, ttl, tags)

    async def delete_many(self, namespace: str, keys: Iterable[Any]) -> int:
        """Remove values everywhere; return how many there were.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        check_loop()
        several = as_list(keys, "keys")
        if not several:
            return 0
        refs = RefMaker(self._reads, namespace)
        names = await names_of(refs, several)
        site = self._state.acts.deleting(names)
        removed = await self._writes.remove_names(refs, names)
        self._state.acts.deleted(refs.namespace, names, removed, site)
        return removed

    async def clear(self, namespace_or_pattern: str) -> int:
        """Remove all values of a namespace or of the whole prefix (``"magnus:*"``), or those that match a glob.

        Returns the number of values removed from Redis. The values in this process are removed as well.

        :raises CacheArgumentError: for a name or glob that cannot be used.
        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        return await self._engine.clear(namespace_or_pattern)

    async def invalidate_tags(self, *tags: str) -> None:
        """Invalidate all values with one of these tags, in every namespace and in the whole fleet.

        :raises CacheArgumentError: for tags that cannot be used.
        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        await self._engine.invalidate(check_tags(tags))

    async def warm_cache(
        self, namespace: str, data_loader: Callable[[Any], Any], keys: Iterable[Any], ttl: Ttl | None = None, *,
        concurrency: int = 16, only_missing: bool = False, progress: ProgressCallback | bool | None = None,
    ) -> WarmReport:  # fmt: skip
        """Load and store a value for each key, some at a time. A key that fails does not stop the others.

        :param data_loader: called with a key; a coroutine function, or a function, which runs in worker threads.
        :param concurrency: how many loads run at a time, 1 or more.
        :param only_missing: skip keys that have a value.
        :param progress: called after each key as ``progress(done, total)``; True or False for a progress bar or
            none; None for a bar if a terminal and `rich` are there.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        check_loop()
        options = WarmOptions(ttl, concurrency, only_missing, progress)
        return await warm(self._engine, namespace, data_loader, as_list(keys, "keys"), options)
