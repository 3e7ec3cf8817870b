"""`cached`: one decorator for functions and coroutine functions, methods, classmethods and staticmethods.

What it returns looks like a function, and like a method where it is reached through an instance: frameworks inspect
it, and pickle finds it by name; see `bound`.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, cast

from magnus_cache._engine.api.awaitables import Kind, awaited, blocking, either, kind_of
from magnus_cache._engine.api.bound import CachedClassMethod, CachedFunction
from magnus_cache._engine.api.call_memos import FunctionMemo, keeps
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.function_operations import add_operations
from magnus_cache._engine.api.general_wrappers import general, general_async
from magnus_cache._engine.api.hit_wrappers import HitSource, Rebind, compiled
from magnus_cache._engine.api.process_names import ProcessWide
from magnus_cache._engine.api.redefined import warn_of_other_code
from magnus_cache._engine.api.shared_names import warn_of_shared_names
from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache._engine.keys.names import KeyText
from magnus_cache._engine.keys.partials import method_of
from magnus_cache._engine.keys.versions import Version, checked_version
from magnus_cache._engine.loading.money import count_saved
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.audits import sampler_of
from magnus_cache._engine.policy.costs import AnyCost, checked_cost
from magnus_cache._engine.policy.function_tags import function_tag, with_function_tag
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import AnyTtl, LoadOptions, check_callable, validate_ttl
from magnus_cache._engine.policy.tags import AnyTags, TagRule, check_tags
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.workers import is_async
from magnus_cache._engine.store.records import LARGE, MISS, KeyRef
from magnus_cache.errors import CacheTypeError
from magnus_cache.freshness import NO_POLICY, FreshnessOptions, merged
from magnus_cache.protocols import CacheInfo, Decorator

__all__ = [
    "FunctionCache",
    "KeyOptions",
    "LoadOptionsFactory",
    "decorator_for",
    "load_options_factory",
    "make_decorator",
]

_MEMO: Final = 8_192
"""Calls whose address is remembered by their plain arguments; when there are more, remembering starts over."""

LoadOptionsFactory = Callable[[CallKeyBuilder], LoadOptions]
"""Makes the options of a function's loads, given its parameters."""


def load_options_factory(
    ttl: AnyTtl, tags: AnyTags, skip_if: Callable[[Any], bool] | None,
    freshness: FreshnessOptions | None = None, strict: bool | None = None, cost: AnyCost = None,
) -> LoadOptionsFactory:  # fmt: skip
    """Return what makes the load options of a function; see `CacheManager.cached`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    if skip_if is not None and not callable(skip_if):
        raise CacheTypeError("skip_if", f"a function of the value is needed, not {type(skip_if).__name__}")
    life, price = validate_ttl(ttl), checked_cost(cost)
    if not callable(tags):
        check_tags(tags)
    LoadOptions(strict=strict)  # A mistake in it is to be told here.

    def make(keys: CallKeyBuilder) -> LoadOptions:
        rule = TagRule(tags, keys.parameters) if tags else None
        return LoadOptions(life, skip_if, rule, freshness, strict).priced(price)

    return make


class KeyOptions(NamedTuple):
    """How a call's key is made; see `CacheManager.cached`."""

    key_func: Callable[..., Any] | None = None
    key: str | None = None
    exclude: Iterable[str] = ()
    version: Version | None = None


def make_decorator(
    engine: Engine, namespace: str, make_options: LoadOptionsFactory, key_options: KeyOptions
) -> Decorator:
    """Return the decorator for these options; see `CacheManager.cached`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    return cast("Decorator", decorator_for(engine, namespace, make_options, key_options, FunctionCache))


def decorator_for(
    engine: Engine,
    namespace: str,
    make_options: LoadOptionsFactory,
    key_options: KeyOptions,
    kind: "type[FunctionCache]",
) -> Callable[[Any], Any]:
    """Return the decorator that makes a `FunctionCache` of some kind of what it is given.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    if callable(namespace):
        problem = "a name is needed, not the function: write the decorator with parentheses, @cache.cached('name')"
        raise CacheTypeError("namespace", problem)
    engine.state.keyspace.check_namespace(namespace)
    checked_version(key_options.version)

    def decorate(function: Any) -> Any:
        if isinstance(function, functools.partialmethod):
            function = method_of(function)
        plain = function.__func__ if isinstance(function, classmethod | staticmethod) else function
        if inspect.isclass(plain):
            raise CacheTypeError("function", "a class cannot be cached; decorate the methods whose results are slow")
        check_callable(plain, "function")
        keys = CallKeyBuilder.of(plain, **key_options._asdict())
        options = make_options(keys)

        def make(engine: Engine) -> FunctionCache:
            return kind(engine, namespace, options, keys, plain)

        if engine.follow is None:
            place = make(engine)
            cached = CachedFunction(place.wrapper(), plain, place)
        else:
            follower = engine.follow(make)
            cached = CachedFunction(follower, plain, ProcessWide(keys.name or repr(plain), namespace, follower))
        if isinstance(function, staticmethod):
            return staticmethod(cached)
        return CachedClassMethod(cached) if isinstance(function, classmethod) else cached

    return decorate


class FunctionCache:
    """One decorated function in one cache: where its values live and how they are loaded.

    :ivar slow: called for what is no hit in memory, see `HitSource`.
    :ivar rebind: of the wrapper made last; None if it has no part that looks into memory.
    :ivar hits: the entries that plain calls had; None if only binding a call tells which it is.
    :ivar sampler: draws hits to audit, or None.
    :ivar loader: what is called on a miss.
    :ivar awaited: whether the wrapper made last is a coroutine function.
    :ivar compared: whether the code was compared with that of the last function of this name.
    """

    slow: Callable[..., Any]
    rebind: Rebind | None = None

    def __init__(
        self, engine: Engine, namespace: str, options: LoadOptions, keys: CallKeyBuilder, function: Callable[..., Any]
    ) -> None:
        self.engine = engine
        self.namespace = namespace
        self.options = options
        options.function = function
        self.keys = keys
        self.function = function
        self.loader = function
        self.awaited = self.compared = False
        self.tag = function_tag(namespace, keys.name or type(function).__qualname__)
        if options.freshness:
            # A mistake in it is to be told where it is made.
            merged(engine.state.namespaces.resolve(namespace).freshness, options.freshness)
        name = keys.name or type(function).__qualname__
        self.counters = engine.state.stats.child(namespace, name, options.price_of_each())
        self.sampler = sampler_of(engine.state.namespaces.resolve(namespace).audit, options.audit)
        self.memo: dict[Any, KeyRef] = {}
        self.hits = None if keys.shape is None else FunctionMemo(keys.shape)
        engine.state.namespaces.watch(self)
        if options.budgets is not None:
            engine.state.sources.use()

    def ref(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KeyRef:
        """Return where the value of a call lives; remember it by plain arguments."""
        return self._ref(args, kwargs, self.keys.memo_key_of_call(args, kwargs) if kwargs else self.keys.memo_key(args))

    def _ref(self, args: tuple[Any, ...], kwargs: dict[str, Any], short: Any) -> KeyRef:
        """Return what `ref` does.

        :param short: by what to remember it, or None.
        """
        namespaces = self.engine.state.namespaces
        generation = namespaces.generation
        if self.keys.by_name and not self.compared:
            self.compared = True
            warn_of_shared_names(self.engine.state, self.keys.name, self.keys.module)
            warn_of_other_code(self.engine.state, self.namespace, self.keys.name_and_version, self.function)
        key = self.keys.key(args, kwargs)
        ref = self.address(key)
        if short is not None and self.keys.memorable(key):
            if len(self.memo) >= _MEMO:
                self.memo.clear()
            # The memo is emptied after a namespace is registered, which takes the same lock.
            with section():
                if namespaces.generation == generation:
                    self.memo[short] = ref
        return ref

    def address(self, key: KeyText) -> KeyRef:
        """Return where the value of a key lives."""
        policy = self.engine.state.namespaces.resolve(self.namespace)
        ref = self.engine.reads.address_of(policy, key, self.counters, self.options.freshness, self.tag)
        return ref if self.options.saves is None and self.sampler is None else ref.with_entry()

    def namespaces_changed(self) -> None:
        """Forget where values live, as the namespace may have another policy now."""
        self.memo.clear()
        if self.hits is not None:
            self.hits.clear()

    def tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags that a call's value gets, as far as its arguments tell."""
        rule = self.options.tags
        if rule is None:
            return (self.tag,)
        own = rule.of_call({} if rule.fixed else self.keys.bind(args, kwargs))
        return with_function_tag(own, (self.tag,))

    def single(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KeyRef:
        """Return where the one value lives that these arguments are about."""
        return self.ref(args, kwargs)

    def place(self) -> "FunctionCache":
        """Return itself: unlike one that follows the process-wide cache, it goes nowhere else."""
        return self

    def describe(self) -> str:
        """Return the name of the function, and of its namespace and cache."""
        name = self.keys.name or repr(self.function)
        return f"{name}, namespace {str(self.namespace)!r}, cache {self.engine.state.describe()}"

    def wrapper(self) -> Any:
        """Return the function that stands in for the decorated one."""
        wrapper = self._of_kind(kind_of(self.function))
        functools.update_wrapper(wrapper, self.function)
        wrapper.cache_key = lambda *args, **kwargs: self.keys.key(args, kwargs)
        wrapper.cache_info = self.info
        return wrapper

    def _of_kind(self, kind: Kind) -> Any:
        if kind is Kind.EITHER:
            return either(self.function, lambda load: self._copy(load)._async_wrapper(),
                          lambda load: self._copy(load)._blocking_wrapper())  # fmt: skip
        self.awaited = kind is Kind.ASYNC
        if self.awaited:
            self.loader = self.function if is_async(self.function) else awaited(self.function)
            return self._async_wrapper()
        self.loader = blocking(self.function, self.keys.name)
        return self._blocking_wrapper()

    def _copy(self, loader: Callable[..., Any]) -> "FunctionCache":
        """Return a copy with something else that is called on a miss."""
        other = copy.copy(self)
        other.loader = loader
        return other

    def info(self) -> CacheInfo:
        """Return the figures of this function."""
        counters, ttl = self.counters, self.options.ttl
        if ttl is None:
            ttl = self.engine.state.namespaces.resolve(self.namespace).ttl or self.engine.state.settings.default_ttl
        hits = counters.l1_hits + counters.l2_hits
        return CacheInfo(hits, counters.misses, counters.loads, str(self.namespace), None if callable(ttl) else ttl)

    def request(
        self, ref: KeyRef, args: tuple[Any, ...], kwargs: dict[str, Any], *, fresh: bool = False
    ) -> LoadRequest[Any]:
        """Return what a load for a call is to do."""
        loader = functools.partial(self.loader, *args, **kwargs)
        return LoadRequest(ref, loader, self.options, self.tags(args, kwargs), fresh)

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any = MISS) -> KeyRef:
        """Return where the value of a call lives, remembered or not.

        :param made: what `key_func` returned, if it was called.
        """
        if made is not MISS:
            return self.address(self.keys.key_of(made))
        short = self.keys.memo_key_of_call(args, kwargs) if kwargs else self.keys.memo_key(args)
        ref = self.memo.get(short)
        return self._ref(args, kwargs, short) if ref is None else ref

    def _remember(self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, hit: tuple[KeyRef, Entry]) -> None:
        """Remember the entry that was a hit, for the wrapper."""
        (ref, entry), hits, state = hit, self.hits, self.engine.state
        # While hits are observed or recorded, no wrapper looks for it.
        if hits is None or state.special or not keeps(state.memory, ref, entry) or not self.keys.bare:
            return
        place = hits.place(args, kwargs, made)
        # In this order: if a namespace is registered from here on, no wrapper looks into this place any more.
        if place is not None and state.namespaces.resolve(self.namespace) is ref.namespace:
            state.memory.remember(entry, *place)

    async def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any = MISS) -> Any:
        ref, engine, counters = self.find(args, kwargs, made), self.engine, self.counters
        reads, stale, state = engine.reads, engine.stale, engine.state
        if not state.special or state.mode is Mode.NORMAL:
            entry = state.memory.hit(ref.name)
            if entry is not None:
                value = reads.opened_here(ref, entry)
                if value is LARGE:
                    value = await reads.open_anyway(ref, entry)
                if value is not MISS:
                    counters.l1_hits += 1
                    if self.options.saves is not None:
                        count_saved(counters, self.options.saves, entry)
                    if self.sampler is not None:
                        engine.auditor.called(self.sampler, functools.partial(self.request, ref, args, kwargs), entry)
                    if engine.state.observers.active:
                        engine.state.observers.hit(ref, "l1")
                    self._remember(args, kwargs, made, (ref, entry))
                    return value
            if ref.freshness is not NO_POLICY:
                return await stale.get(self.request(ref, args, kwargs))
            entry = await reads.read(ref)
            value = MISS if entry is None else reads.opened_here(ref, entry)
            if value is LARGE:
                value = await reads.open(ref, entry)
            if value is not MISS:
                counters.l2_hits += 1
                if self.options.saves is not None:
                    count_saved(counters, self.options.saves, entry)
                if self.sampler is not None:
                    engine.auditor.called(self.sampler, functools.partial(self.request, ref, args, kwargs), entry)
                if engine.state.observers.active:
                    engine.state.observers.hit(ref, "l2")
                return value
            counters.misses += 1
            if engine.state.observers.active:
                engine.state.observers.miss(ref)
        return await stale.load(self.request(ref, args, kwargs))

    def _look_up_blocking(self, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any = MISS) -> Any:
        ref, engine, counters = self.find(args, kwargs, made), self.engine, self.counters
        reads, stale = engine.reads, engine.stale
        if engine.state.mode is Mode.NORMAL:
            entry = engine.state.memory.hit(ref.name)
            if entry is not None and (value := reads.opened(ref, entry)) is not MISS:
                counters.l1_hits += 1
                if self.options.saves is not None:
                    count_saved(counters, self.options.saves, entry)
                if self.sampler is not None:
                    engine.auditor.called(self.sampler, functools.partial(self.request, ref, args, kwargs), entry)
                if engine.state.observers.active:
                    engine.state.observers.hit(ref, "l1")
                self._remember(args, kwargs, made, (ref, entry))
                return value
            if ref.freshness is not NO_POLICY:
                return stale.get_blocking(self.request(ref, args, kwargs))
            if (value := reads.opened(ref, found := reads.read_blocking(ref))) is not MISS:
                counters.l2_hits += 1
                if self.options.saves is not None:
                    count_saved(counters, self.options.saves, found)
                if self.sampler is not None:
                    engine.auditor.called(self.sampler, functools.partial(self.request, ref, args, kwargs), found)
                if engine.state.observers.active:
                    engine.state.observers.hit(ref, "l2")
                return value
            counters.misses += 1
            if engine.state.observers.active:
                engine.state.observers.miss(ref)
        return stale.load_blocking(self.request(ref, args, kwargs))

    def _async_wrapper(self) -> Any:
        self.slow, stale = self._look_up, self.engine.stale

        async def invalidate(*args: Any, **kwargs: Any) -> bool:
            return await self.engine.remove((self.ref(args, kwargs),)) > 0

        async def refresh(*args: Any, **kwargs: Any) -> Any:
            check_loop()
            return await stale.load(self.request(self.ref(args, kwargs), args, kwargs, fresh=True))

        async def stamped(*args: Any, **kwargs: Any) -> Any:
            check_loop()
            return await stale.get_stamped(self.request(self.find(args, kwargs), args, kwargs))

        wrapper = add_operations(self._wrapper(general_async, awaited=True), self, awaited=True)
        return _with(wrapper, invalidate=invalidate, refresh=refresh, stamped=stamped)

    def _blocking_wrapper(self) -> Any:
        self.slow, stale = self._look_up_blocking, self.engine.stale

        def invalidate(*args: Any, **kwargs: Any) -> bool:
            return self.engine.remove_blocking((self.ref(args, kwargs),)) > 0

        def refresh(*args: Any, **kwargs: Any) -> Any:
            return stale.load_blocking(self.request(self.ref(args, kwargs), args, kwargs, fresh=True))

        def stamped(*args: Any, **kwargs: Any) -> Any:
            return stale.get_stamped_blocking(self.request(self.find(args, kwargs), args, kwargs))

        wrapper = add_operations(self._wrapper(general, awaited=False), self, awaited=False)
        return _with(wrapper, invalidate=invalidate, refresh=refresh, stamped=stamped)

    def _wrapper(self, make: Callable[[CallKeyBuilder, HitSource], tuple[Any, Rebind]], *, awaited: bool) -> Any:
        """Return a wrapper without operations: compiled if the function is plain, else what `make` returns."""
        shape = self.keys.shape
        if shape is None:
            wrapper, self.rebind = make(self.keys, self.source)
        else:
            priced = self.options.saves is not None
            wrapper, self.rebind = compiled(self.function, shape, self.source, awaited=awaited, priced=priced)
        return wrapper

    @property
    def source(self) -> HitSource:
        """What the wrapper made last looks into."""
        # A wrapper that finds no reference leaves hits to `slow`, which counts what each has saved, and audits.
        refs = self.memo if self.options.saves is None and self.sampler is None else {}
        root = {} if self.hits is None else self.hits.root
        return HitSource(self.engine, root, refs, self.counters, self.slow, self.sampler)


def _with(wrapper: Any, **more: Callable[..., Any]) -> Any:
    for name, function in more.items():
        setattr(wrapper, name, function)
    return wrapper
