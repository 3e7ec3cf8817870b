"""The operations that are the same in blocking and in async code: `cached`, `bypass`, `disabled` and more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Final, Unpack

from magnus_cache._engine.api.budgeted import with_budget
from magnus_cache._engine.api.cached import KeyOptions, LoadOptionsFactory, load_options_factory, make_decorator
from magnus_cache._engine.api.cached_many import make_batch_decorator
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.codec.typed_results import typed
from magnus_cache._engine.coordination.recordings import RECORDED_BYTES, AccessRecording
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.keys.versions import Version
from magnus_cache._engine.policy.audits import checked_audit
from magnus_cache._engine.policy.budgets import AnyBudget
from magnus_cache._engine.policy.costs import AnyCost, nanos_of
from magnus_cache._engine.policy.options import AnyTtl
from magnus_cache._engine.policy.tags import AnyTags
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.numbers import number, whole
from magnus_cache._engine.runtime.observers import CacheEvent, Observation, Observers
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache.errors import CacheArgumentError, CacheClosedError, CacheTypeError
from magnus_cache.freshness import FreshnessOptions
from magnus_cache.protocols import BatchDecorator, Decorator

__all__ = ["CacheBase", "observed"]

_LEAST_RECORDED: Final = 2**16


def observed(
    observers: Observers, function: Callable[[Any], object], kinds: tuple[type[CacheEvent], ...]
) -> Observation:
    """Add an observer; see `CacheManager.observe`.

    :raises CacheTypeError: for a function that cannot be called, or a kind that is none.
    """
    if not callable(function):
        raise CacheTypeError("function", f"a function of an event is needed, not {type(function).__name__}")
    if is_async(function):
        raise CacheTypeError("function", "an observer is called, not awaited; give a plain function")
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, CacheEvent)):
            raise CacheTypeError("kinds", f"classes of events are needed, such as Hit, not {kind!r}")
    return observers.add(function, kinds)


@readable
class CacheBase:
    """The operations that are the same in blocking and in async code."""

    _engine: Engine
    _state: State

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.describe()}>"

    def bypass(self) -> AbstractContextManager[None]:
        """Return a context manager for fresh reads: its block reads nothing from the cache but stores what it loads."""
        return self._state.bypass()

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context manager for tests: within its block, no caller in any thread or task uses the cache."""
        return self._state.disabled()

    def observe(self, function: Callable[[Any], object], *kinds: type[CacheEvent]) -> Observation:
        """Call a function with each event of this cache from now on, until the result's `close`.

        The function is called at once, in the thread or on the event loop where the thing happens, and a call of the
        cache waits for it: count, or put the event into a queue, and return. What it raises is logged. What it does
        with a cache itself is not observed.

        :param function: called with an event, such as `Hit`; a plain function.
        :param kinds: the classes of events to be called with; all if none is given. While `Hit` is not among them,
            hits in memory are as fast as without an observer.
        :raises CacheTypeError: for a function that cannot be called or must be awaited, and for a kind that is none.
        """
        return observed(self._state.observers, function, kinds)

    def record_accesses(
        self, path: str | PathLike[str], *, share: float = 1.0, max_bytes: int = RECORDED_BYTES
    ) -> AccessRecording:
        """Record the accesses of this cache from now on, for ``magnus-cache simulate``; until the result is closed.

        Each process writes files of its own into the folder; record all processes of a fleet. Values are not recorded,
        and keys only as hashes by a secret that is not kept. A thread writes them, so no caller waits for the disk.
        While it records, a hit in memory takes some microseconds longer. The setting `record` does the same without
        a change of the program.

        :param path: a folder; it is made if it is not there.
        :param share: the share of the keys to record, above 0 and up to 1; for a busy cache.
        :param max_bytes: of the files of this process; beyond it, the oldest part goes.
        :raises CacheArgumentError: for a folder that cannot be written, a number out of range, and while another
            recording of this cache runs.
        """
        self._state.check_open()
        amount = number(share)
        if amount is None or not 0 < amount <= 1:
            raise CacheArgumentError("share", f"a share of the keys is above 0 and up to 1, got {share!r}")
        size = whole(max_bytes)
        if size is None or size < _LEAST_RECORDED:
            raise CacheArgumentError("max_bytes", f"{_LEAST_RECORDED:,} bytes or more are needed, got {max_bytes!r}")
        try:
            folder = Path(path).expanduser().absolute()
        except TypeError:
            raise CacheTypeError("path", f"a folder is needed, not {type(path).__name__}") from None
        return self._state.recordings.begin(folder, amount, size)

    def count_cost(self, namespace: str, *, spent: float = 0.0, saved: float = 0.0) -> None:
        """Count money in the statistics of a namespace, where `get_stats` has it as ``spent`` and ``saved``.

        It is added up for the fleet as all counts are. Nothing here knows prices: `LLMCache` reads them from replies.

        :param spent: what a load has cost, in any currency, the same one for all; 0 or more.
        :param saved: what a hit would have cost.
        :raises CacheArgumentError: for a namespace that cannot be used, or a number below 0.
        """
        name = check_name(namespace)
        nanos = [nanos_of(amount, argument) for argument, amount in (("spent", spent), ("saved", saved))]
        counters = self._state.stats.of(name)
        counters.spent_nanos += nanos[0]
        counters.saved_nanos += nanos[1]
        if nanos[0] and (limit := self._state.namespaces.resolve(namespace).spending) is not None:
            self._state.spending.spent(name, limit, nanos[0])
            # Without a running loop, the background loop tells it.
            if running_loop() is not None:
                self._state.spending.report()
            else:
                with contextlib.suppress(CacheClosedError, NoThreadError):
                    self._state.portal.submit(self._state.spending.report)

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked; False before the first call. No I/O; see `ping`."""
        return self._state.redis_available

    def cached(
        self, namespace: str, ttl: AnyTtl = None, key_func: Callable[..., Any] | None = None, *,
        key: str | None = None, tags: AnyTags = (), skip_if: Callable[[Any], bool] | None = None,
        exclude: Iterable[str] = (), version: Version | None = None,
        strict: bool | None = None, returns: Any = None, cost: AnyCost = None, budget: AnyBudget = None,
        audit: float | None = None,
        **freshness: Unpack[FreshnessOptions],
    ) -> Decorator:  # fmt: skip
        """Return a decorator that caches what a function or coroutine function returns, by its arguments.

        :param ttl: a duration, a calendar, or a function of the value that returns one; None for the namespace's.
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
        :param budget: how many loads of this function the whole fleet may begin, such as ``"5/s"``, in place of the
            namespace's; see `Namespace`. Patterns of a mapping match the key as `cache_key` returns it.
        :param cost: what one load costs, in any unit of money: a number, or a function of the value that returns one.
            Loads then count as ``spent`` and hits as ``saved``; see `get_ledger`.
        :param audit: the share of hits, 0 to 1, whose value is loaded again in the background and compared; see
            `audit_report`. None for the namespace's.
        :param freshness: options that replace those of the namespace's policy: ``grace``, ``soft_timeout``,
            ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        make = with_budget(load_options_factory(ttl, tags, skip_if, freshness, strict, cost), namespace, budget)
        share = None if audit is None else checked_audit(audit)
        make_options: LoadOptionsFactory = lambda keys: make(keys).audited(share)  # noqa: E731  # it is one line
        made = make_decorator(self._engine, namespace, make_options, KeyOptions(key_func, key, exclude, version))
        return typed(made, returns)

    def cached_many(
        self, namespace: str, ttl: AnyTtl = None, key_func: Callable[..., Any] | None = None, *,
        key: str | None = None, tags: AnyTags = (), skip_if: Callable[[Any], bool] | None = None,
        exclude: Iterable[str] = (), version: Version | None = None,
        strict: bool | None = None, returns: Any = None, cost: AnyCost = None, budget: AnyBudget = None,
        audit: float | None = None,
    ) -> BatchDecorator:  # fmt: skip
        """Return a decorator for a function of many keys that returns a mapping of them to values.

        Each value is cached separately. The function is called with the list of keys that are missing and that no
        other caller in the fleet is loading. The keys are its first argument; all other arguments are part of every
        key. Keys that it omits are omitted from the result. An exception as a value marks that key as failed
        (`CacheBatchError`). `invalidate` and `refresh` take many keys, as the function does; `cache_key` takes one.

        :param key_func: called with one key in place of the keys; returns the key in the cache.
        :param key: a template of the key, such as ``"{tickers}"``; the keys' parameter stands for one key.
        :param version: a number or text that is part of the key; see `cached`.
        :param cost: what the load of one key costs, or a function of its value; see `cached`.
        :param budget: how many calls of this function the whole fleet may begin; see `cached`. With
            ``Budget("60/min", per_key=True)``, a call counts as many times as it has keys.
        :param audit: the share of hits to audit, each by a call with its key alone; see `cached`.
        :raises CacheArgumentError: naming the argument that cannot be used; see `cached` for the others.
        """
        make = with_budget(load_options_factory(ttl, tags, skip_if, strict=strict, cost=cost), namespace, budget)
        share = None if audit is None else checked_audit(audit)
        make_options: LoadOptionsFactory = lambda keys: make(keys).audited(share)  # noqa: E731  # it is one line
        made = make_batch_decorator(self._engine, namespace, make_options, KeyOptions(key_func, key, exclude, version))
        return typed(made, returns)
