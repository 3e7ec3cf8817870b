"""The operations of `CacheManager`: the cache for blocking code.

A hit in memory is served in the calling thread. Everything else runs on the background loop, on the same paths as for
coroutines, and over one connection for all threads; the caller waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from magnus_cache._engine import codec
from magnus_cache._engine.api.asynchronous import AsyncCache
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.life import BlockingLife
from magnus_cache._engine.api.local_stats import local_stats
from magnus_cache._engine.api.many import as_list, load_many_blocking, locator
from magnus_cache._engine.api.set_many import set_many_blocking
from magnus_cache._engine.api.warming import ProgressCallback, WarmReport
from magnus_cache._engine.keys.versions import Version
from magnus_cache._engine.loading.request import BatchLoader, BatchRequest, LoadRequest
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyLoader, AnyTtl, LoadOptions, check_callable, validate_ttl
from magnus_cache._engine.policy.tags import AnyTags, TagRule, check_tags
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.stats import CacheStats
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.store.explanation import Explanation
from magnus_cache._engine.store.reads_many import found_many_blocking
from magnus_cache._engine.store.records import MISS, KeyRef
from magnus_cache.freshness import NO_POLICY, FreshnessOptions
from magnus_cache.protocols import BatchDecorator, Decorator

if TYPE_CHECKING:
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["BlockingCache"]

T = TypeVar("T")


@readable
class BlockingCache(BlockingLife):
    """The operations of a cache for blocking code; see `CacheManager`."""

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
        self._reads, self._writes, self._loads = engine.reads, engine.writes, engine.loads
        self._deferred = engine.deferred

    def _call(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._state.check_open()
        return self._state.portal.call(partial(operation, *args, **kwargs))

    def _call_or(
        self, operation: Callable[..., Any], *args: Any, otherwise: Any = None,
        record: Callable[[NoThreadError], Any] | None = None,
    ) -> Any:  # fmt: skip
        """Return what an operation returns; without a background loop, what `record` returns, or `otherwise`."""
        try:
            return self._call(operation, *args)
        except NoThreadError as error:
            if record is not None:
                return record(error)
            self._state.without_loop(error)
            return otherwise

    # -- single values --------------------------------------------------------------------------------------

    def get(self, namespace: str, key: Any, default: Any = None) -> Any:
        """Return the stored value, or `default` if there is none; None is a value like any other.

        :param key: str, int, UUID, bytes, or a tuple of these. Also a path, an IP address, a NumPy scalar (its key is
            that of the plain value it equals), or an object with fields or content; see `keys.key_text`.
        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        ref = self._reads.ref(namespace, key)
        if self._state.mode is not Mode.NORMAL:
            return default
        value = self._looked_up(ref)
        if value is MISS:
            ref.counters.misses += 1
            return default
        return value

    def _looked_up(self, ref: KeyRef) -> Any:
        entry = self._state.memory.hit(ref.name)
        if entry is not None and (value := self._reads.opened(ref, entry)) is not MISS:
            ref.counters.l1_hits += 1
            return value
        value = self._reads.opened(ref, self._reads.read_blocking(ref))
        if value is not MISS:
            ref.counters.l2_hits += 1
        return value

    def set(
        self, namespace: str, key: Any, value: Any, ttl: Duration | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Store a value; return whether it is stored: in Redis, or in this process while Redis is away.

        If a signal handler has interrupted the cache, the value is stored soon after, and the result is False.

        :param ttl: seconds, a timedelta or text such as ``"5m"``; None for the namespace's.
        :param tags: names by which it can be invalidated together with other values.
        :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        :raises CacheValueTooLargeError: for a value larger than the namespace allows.
        """
        ref = self._reads.ref(namespace, key)
        life = self._reads.ttl(ref) if ttl is None else seconds(ttl)
        # Encoded here, so that a large value does not hold up the loop that all threads share.
        names, payload = check_tags(tags), self._reads.encoded(ref, value)
        if self._state.mode is Mode.DISABLED:
            self._remove((ref,))
            return False
        if self._deferred.writes:
            self._deferred.write(ref, value, payload, life, names)
            return False
        record = partial(self._deferred.record_overwritten, ref)
        stored: bool = self._call_or(self._writes.overwrite, ref, value, payload, life, names, record=record)
        return stored

    def delete(self, namespace: str, key: Any) -> bool:
        """Remove a value everywhere; return whether there was one; see `delete_many`.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return self.delete_many(namespace, (key,)) > 0

    def contains(self, namespace: str, key: Any) -> bool:
        """Return whether there is a value.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        there: bool = self._call_or(self._async.contains, namespace, key, otherwise=False)
        return there

    def touch(self, namespace: str, key: Any, ttl: Duration) -> bool:
        """Give a stored value a new time to live, counted from now; return whether there was a value.

        :raises CacheArgumentError: for a namespace, key or ttl that cannot be used.
        """
        touched: bool = self._call_or(self._async.touch, namespace, key, ttl, otherwise=False)
        return touched

    def ttl(self, namespace: str, key: Any) -> float | None:
        """Return the seconds a value has left to live, or None if there is none.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        left: float | None = self._call_or(self._async.ttl, namespace, key)
        return left

    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], Awaitable[T]], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, returns: Any = None, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    @overload
    def get_or_set(
        self, namespace: str, key: Any, loader: Callable[[], T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, returns: Any = None, **freshness: Unpack[FreshnessOptions],
    ) -> T: ...  # fmt: skip
    def get_or_set(
        self, namespace: str, key: Any, loader: AnyLoader[T], ttl: AnyTtl = None, tags: AnyTags = (),
        strict: bool | None = None, *, returns: Any = None, **freshness: Unpack[FreshnessOptions],
    ) -> T:  # fmt: skip
        """Return the stored value. If there is none, load and store it, once for all callers in the whole fleet.

        :param loader: a function without arguments, run in this thread; or a coroutine function without arguments, run
            on the background loop.
        :param ttl: a duration, or a function of the value that returns one; None for the namespace's.
        :param tags: names by which the value can be invalidated together with others, or a function of the value that
            returns them.
        :param returns: the value's type, such as ``list[Quote]``: its classes are registered, see `register_type`.
        :param strict: raise `CacheEncodeError` for a result that cannot be stored, instead of returning it; None for
            the namespace's setting.
        :param freshness: options that replace those of the namespace's policy: ``grace``, ``soft_timeout``,
            ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
        :raises CacheArgumentError: for a namespace, key, loader, ttl, tags or option that cannot be used.
        :raises CacheEncodeError: if the result cannot be stored, and `strict` is set.
        :raises CacheTimeoutError: after the policy's ``hard_timeout``, if there is no stale value.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises CacheDeadlockError: if only this thread could run the load that it would wait for.
        :raises Exception: what the loader raises; all callers that waited get the same.
        """
        check_callable(loader, "loader")
        if returns is not None:
            codec.register_hint(returns, loader)
        ref = self._reads.ref(namespace, key, freshness)
        tag_rule = TagRule(tags)
        options = LoadOptions(validate_ttl(ttl), tags=tag_rule, strict=strict, function=loader)
        if self._state.mode is Mode.NORMAL:
            if ref.freshness is not NO_POLICY:
                entry = self._state.memory.hit(ref.name)
                if entry is not None and (value := self._reads.opened(ref, entry)) is not MISS:
                    ref.counters.l1_hits += 1
                    return value  # type: ignore[no-any-return]  # what was stored is what the loader returned
                return self._engine.stale.get_blocking(LoadRequest(ref, loader, options, tag_rule.of_call({})))
            if (value := self._looked_up(ref)) is not MISS:
                return value  # type: ignore[no-any-return]  # likewise
            ref.counters.misses += 1
        return self._engine.stale.load_blocking(LoadRequest(ref, loader, options, tag_rule.of_call({})))

    # -- many values ----------------------------------------------------------------------------------------

    def get_many(self, namespace: str, keys: Iterable[Any]) -> dict[Any, Any]:
        """Return the stored values by key, in the order of `keys`; keys without a value are omitted.

        :raises CacheArgumentError: for a namespace or key that cannot be used, and for keys that are equal in Python
            but different here, such as ``1`` and ``True``.
        """
        self._state.check_open()
        several = as_list(keys, "keys")
        refs = [self._reads.ref(namespace, key) for key in several]
        return found_many_blocking(self._reads, several, refs) if self._state.mode is Mode.NORMAL else {}

    def get_or_set_many(
        self, namespace: str, keys: Iterable[Any], batch_loader: BatchLoader, ttl: Duration | None = None,
        tags: AnyTags = (), *, strict: bool | None = None, returns: Any = None,
    ) -> dict[Any, Any]:  # fmt: skip
        """Return the values by key, in the order of `keys`; load the missing ones in one call.

        :param batch_loader: a function, called in this thread, or a coroutine function, run on the background loop. It
            is called with the list of keys that no other caller in the fleet is loading, at most 500 at a time. It
            returns a mapping of keys to values. Keys that it omits are omitted from the result; an exception as a value
            marks that key as failed.
        :param tags: names by which each value can be invalidated, or a function of the value that returns them.
        :param returns: the type of the values, or of the mapping; see `get_or_set`.
        :raises CacheArgumentError: for a namespace, key, loader, ttl or tags that cannot be used.
        :raises CacheBatchError: if some keys could not be loaded. It has the values of the others.
        :raises Exception: what the loader raises, if it was called for all keys without a value.
        """
        check_callable(batch_loader, "batch_loader")
        if returns is not None:
            codec.register_hint(returns, batch_loader)
        life = None if ttl is None else seconds(ttl)
        options = LoadOptions(life, tags=TagRule(tags), strict=strict, function=batch_loader)
        locate = locator(self._engine, namespace, options)
        self._state.check_open()
        return load_many_blocking(self._engine, BatchRequest(as_list(keys, "keys"), locate, batch_loader, options))

    def set_many(
        self, namespace: str, mapping: Mapping[Any, Any], ttl: Duration | None = None, tags: str | Iterable[str] = ()
    ) -> bool:
        """Store many values, each as `set` does; return whether all of them are stored.

        If one key or value cannot be stored, none is stored. If a signal handler has interrupted the cache, the values
        are stored soon after, and the result is False.

        :param tags: the tags of each value.
        :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        :raises CacheValueTooLargeError: for a value larger than the namespace allows.
        """
        return set_many_blocking(self._engine, namespace, mapping, ttl, tags)

    def delete_many(self, namespace: str, keys: Iterable[Any]) -> int:
        """Remove values everywhere; return how many there were.

        If a signal handler or finalizer has interrupted the cache, this process removes the values at once. Redis and
        the other processes follow soon after, and the number is that of this process.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return self._remove([self._reads.ref(namespace, key) for key in as_list(keys, "keys")])

    def _remove(self, refs: Sequence[KeyRef]) -> int:
        self._state.check_open()
        return self._deferred.removed(refs)

    def clear(self, namespace_or_pattern: str) -> int:
        """Remove all values of a namespace or of the whole prefix (``"magnus:*"``), or those that match a glob.

        Returns the number of values removed from Redis. The values in this process are removed as well. If a signal
        handler or finalizer has interrupted the cache, Redis follows soon after, and the number is 0.

        :raises CacheArgumentError: for a name or glob that cannot be used.
        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        if self._deferred.invalidations:
            self._deferred.clear(namespace_or_pattern)
            return 0
        record = partial(self._deferred.record_clear, namespace_or_pattern)
        removed: int = self._call_or(self._async.clear, namespace_or_pattern, record=record)
        return removed

    def invalidate_tags(self, *tags: str) -> None:
        """Invalidate all values with one of these tags, in every namespace and in the whole fleet.

        If a signal handler or finalizer has interrupted the cache, the fleet follows soon after this process.

        :raises CacheArgumentError: for tags that cannot be used.
        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        if self._deferred.invalidations:
            self._deferred.invalidate(check_tags(tags))
            return
        self._call_or(self._async.invalidate_tags, *tags, record=partial(self._deferred.record_tags, check_tags(tags)))

    def warm_cache(
        self, namespace: str, data_loader: Callable[[Any], Any], keys: Iterable[Any], ttl: Duration | None = None, *,
        concurrency: int = 16, only_missing: bool = False, progress: ProgressCallback | bool | None = None,
    ) -> WarmReport:  # fmt: skip
        """Load and store a value for each key, some at a time. A key that fails does not stop the others.

        :param data_loader: called with a key; a function, which runs in worker threads, or a coroutine function,
            which runs on the background loop.
        :param concurrency: how many loads run at a time, 1 or more.
        :param only_missing: skip keys that have a value.
        :param progress: called after each key as ``progress(done, total)``; True or False for a progress bar or
            none; None for a bar if a terminal and `rich` are there.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        report: WarmReport = self._call(
            self._async.warm_cache, namespace, data_loader, as_list(keys, "keys"), ttl,
            concurrency=concurrency, only_missing=only_missing, progress=progress,
        )  # fmt: skip
        return report

    # -- decorating -----------------------------------------------------------------------------------------

    def cached(
        self, namespace: str, ttl: AnyTtl = None, key_func: Callable[..., Any] | None = None, *,
        key: str | None = None, tags: AnyTags = (), skip_if: Callable[[Any], bool] | None = None,
        exclude: Iterable[str] = (), version: Version | None = None,
        strict: bool | None = None, returns: Any = None,
        **freshness: Unpack[FreshnessOptions],
    ) -> Decorator:  # fmt: skip
        """Return a decorator that caches what a function or coroutine function returns, by its arguments.

        :param ttl: a duration, or a function of the value that returns one; None for the namespace's.
        :param key_func: called with the function's arguments; returns the key.
        :param key: a template of the key, such as ``"{ticker}:{expiration}"``; use it instead of `key_func`.
        :param tags: names by which values can be invalidated together: text, templates of the arguments such as
            ``"user:{user_id}"``, or a function of the value that returns them.
        :param skip_if: called with the value; if it returns true, the value is not stored.
        :param exclude: names of parameters and of closed-over variables that are not part of the key, such as a
            database session.
        :param version: a number or text that is part of the key. Change it with the function's code, so that new code
            does not read what old code stored.
        :param returns: the type of the results, whose classes are registered; by default the function's annotation.
        :param strict: raise `CacheEncodeError` for a result that cannot be stored, instead of returning it; None for
            the namespace's setting.
        :param freshness: options that replace those of the namespace's policy: ``grace``, ``soft_timeout``,
            ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        return self._async.cached(
            namespace,
            ttl,
            key_func,
            key=key,
            tags=tags,
            skip_if=skip_if,
            exclude=exclude,
            version=version,
            strict=strict,
            returns=returns,
            **freshness,
        )

    def cached_many(
        self, namespace: str, ttl: AnyTtl = None, key_func: Callable[..., Any] | None = None, *,
        key: str | None = None, tags: AnyTags = (), skip_if: Callable[[Any], bool] | None = None,
        exclude: Iterable[str] = (), version: Version | None = None,
        strict: bool | None = None, returns: Any = None,
    ) -> BatchDecorator:  # fmt: skip
        """Return a decorator for a function of many keys that returns a mapping of them to values.

        Each value is cached separately. The function is called with the list of keys that are missing and that no
        other caller in the fleet is loading. The keys are its first argument; all other arguments are part of every
        key. Keys that it omits are omitted from the result. An exception as a value marks that key as failed
        (`CacheBatchError`). `invalidate` and `refresh` take many keys, as the function does; `cache_key` takes one.

        :param key_func: called with one key in place of the keys; returns the key in the cache.
        :param key: a template of the key, such as ``"{tickers}"``; the keys' parameter stands for one key.
        :param version: a number or text that is part of the key; see `cached`.
        :raises CacheArgumentError: naming the argument that cannot be used; see `cached` for the others.
        """
        return self._async.cached_many(
            namespace,
            ttl,
            key_func,
            key=key,
            tags=tags,
            skip_if=skip_if,
            exclude=exclude,
            version=version,
            strict=strict,
            returns=returns,
        )

    # -- the rest -------------------------------------------------------------------------------------------

    def explain(self, namespace: str, key: Any) -> Explanation:
        """Return, for people, what is known about a key: where its value is, how old, why a miss, and who loads it.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        explanation: Explanation = self._call(self._async.explain, namespace, key)
        return explanation

    def get_stats(self) -> CacheStats:
        """Return the statistics of this cache; see `CacheStats` for the keys."""
        figures: CacheStats | None = self._call_or(self._async.get_stats)
        return local_stats(self._state) if figures is None else figures
