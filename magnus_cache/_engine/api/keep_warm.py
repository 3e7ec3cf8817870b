"""The arguments of `keep_warm`: which function, which keys, and what the job is called in the fleet."""

import functools
import types
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final

from magnus_cache._engine.api.bound import BoundCached, CachedFunction
from magnus_cache._engine.api.cached import FunctionCache
from magnus_cache._engine.api.cached_many import BatchFunctionCache
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.many import as_list, load_many
from magnus_cache._engine.keys.names import key_text
from magnus_cache._engine.loading.failures import function_name
from magnus_cache._engine.loading.keep_warm import WarmRunner
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.loading.warm_target import KeySource, WarmItem, WarmPlan
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache.errors import CacheArgumentError, CacheBatchError, CacheTypeError

__all__ = ["WarmSettings", "checked"]

_LONGEST_NAME: Final = 100
"""Characters of a name that a caller gives to a job."""

_DIGEST: Final = 6
"""Bytes of the digest that tells the jobs of one function apart."""

_TOGETHER: Final = 500
"""Keys of one call of a function of many keys."""


class WarmSettings:
    """A job that is still to be started.

    :ivar target: the function.
    :ivar plan: its keys, and when they are loaded.
    """

    def __init__(self, engine: Engine, target: "_Target", plan: WarmPlan, name: str | None) -> None:
        self._engine = engine
        self.target = target
        self.plan = plan
        self._name = name

    def start(self) -> WarmRunner:
        """Start the job on the running event loop."""
        engine, alone = self._engine, self.target.is_local or self._engine.state.endpoint is None
        return WarmRunner(
            engine.loads, engine.lifetimes, self.target, self.plan, self._named, held_anyway=alone
        )  # fmt: skip

    def _named(self, items: list[WarmItem]) -> str:
        own = self._name
        if own is None:
            names = b"\n".join(sorted(item.ref.name for item in items))
            own = blake2b(names, digest_size=_DIGEST).hexdigest()
        return f"{self.target.namespace}:{self.target.function}:{own}"


def checked(
    engine: Engine, function: Callable[..., Any], keys: KeySource, every: Duration | None, concurrency: int,
    name: str | None,
) -> WarmSettings:  # fmt: skip
    """Return a job for the arguments of `keep_warm`.

    :raises CacheArgumentError: naming the argument that cannot be used.
    """
    engine.state.check_open()
    target = _target(engine, function)
    ttl, interval = target.fixed_ttl, None if every is None else seconds(every, "every")
    if interval is not None and ttl is not None and interval >= ttl:
        raise CacheArgumentError(
            "every",
            f"values of {target.function} end after {ttl:g} seconds, before they would be loaded again after "
            f"{interval:g}; give less than the ttl, such as {ttl / 2:g}, or the function a longer one",
        )
    at_once = whole(concurrency)
    if at_once is None or at_once < 1:
        raise CacheArgumentError("concurrency", f"the number of loads at a time is 1 or more, not {concurrency!r}")
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME):
        raise CacheArgumentError("name", f"a name is a text of 1 to {_LONGEST_NAME} characters, not {name!r}")
    source: KeySource = keys
    if callable(keys):
        name = name or _identity(keys)
    else:
        source = several = as_list(keys, "keys")
        for key in several[:1]:
            # A mistake in all of them is to be told here.
            try:
                target.item(key)
            except TypeError as error:
                raise CacheTypeError("keys", f"the first one does not suit {target.function}: {error}") from error
    return WarmSettings(engine, target, WarmPlan(source, interval, ttl, at_once), name)


class _Target:
    """A cached function, and the arguments that are the same for all keys.

    :ivar namespace: where the values live.
    :ivar function: its name.
    :ivar together: how many values one call loads at most.
    """

    together = 1

    def __init__(self, cache: FunctionCache, before: tuple[Any, ...]) -> None:
        self.cache = cache
        self._before = before
        self.namespace = str(cache.namespace)
        self.function = cache.keys.name or function_name(cache.function)

    @property
    def is_local(self) -> bool:
        """Whether each process has values of its own."""
        return bool(self.cache.engine.state.namespaces.resolve(self.cache.namespace).local)

    @property
    def fixed_ttl(self) -> float | None:
        """The TTL of all values in seconds; None if it depends on the value or on a calendar."""
        ttl, state = self.cache.options.ttl, self.cache.engine.state
        if ttl is None:
            ttl = state.namespaces.resolve(self.cache.namespace).ttl
        if ttl is None:
            ttl = state.settings.default_ttl
        return float(ttl) if isinstance(ttl, int | float) else None

    def item(self, key: Any) -> WarmItem:
        """Return the value for a key.

        :raises TypeError: the one that calling the function with these arguments raises.
        :raises CacheArgumentError: for an argument that cannot be a part of a key.
        """
        args, kwargs = _arguments(key)
        args = (*self._before, *args)
        return WarmItem(self.cache.ref(args, kwargs), args, kwargs)

    def request(self, item: WarmItem) -> LoadRequest[Any]:
        """Return what a load of the value is to do."""
        return self.cache.request(item.ref, item.args, item.kwargs)

    async def load(self, items: Sequence[WarmItem]) -> dict[bytes, Exception]:
        """Load nothing: only a function of many keys loads some together."""
        raise NotImplementedError


class _BatchTarget(_Target):
    """The same for a function of many keys."""

    together = _TOGETHER
    cache: BatchFunctionCache

    def item(self, key: Any) -> WarmItem:
        item = super().item(key)
        # The parameter of the keys stands for one of them.
        self.cache.single(item.args, item.kwargs)
        return item

    async def load(self, items: Sequence[WarmItem]) -> dict[bytes, Exception]:
        """Load values; return the errors, by the names of the values.

        :raises Exception: what the function raises.
        """
        errors: dict[bytes, Exception] = {}
        for call in self.cache.grouped([(item.args, item.kwargs) for item in items]):
            try:
                await load_many(self.cache.engine, call.request(fresh=True))
            except CacheBatchError as error:
                errors |= {call.locate(key).ref.name: each for key, each in error.errors.items()}
        return errors


def _arguments(key: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call for one of the keys."""
    if type(key) is dict:
        return (), key
    return (key if type(key) is tuple else (key,)), {}


def _target(engine: Engine, function: Any) -> _Target:
    before: tuple[Any, ...] = ()
    plain = function
    if isinstance(function, BoundCached):
        before, plain = (function.__self__,), function.__func__
    # Other decorators have it from `functools.wraps`.
    cached = getattr(plain, "_cached", None)
    if not isinstance(cached, CachedFunction):
        what = "a function" if callable(function) else f"a {type(function).__name__}"
        raise CacheTypeError(
            "function", f"it has no values to keep warm: {what} decorated with `cached` or `cached_many` is needed"
        )
    cache: FunctionCache = cached._described.place()
    if cache.engine.state is not engine.state:
        raise CacheArgumentError(
            "function", f"its values are in another cache ({cache.describe()}); call `keep_warm` of that one"
        )
    return (_BatchTarget if isinstance(cache, BatchFunctionCache) else _Target)(cache, before)


def _identity(source: Callable[..., Any]) -> str:
    """Return what tells a function of keys from others: the same in all processes that run the same program.

    :raises CacheArgumentError: if that cannot be told from the function.
    """
    parts: list[str] = []
    plain: Any = source
    while isinstance(plain, functools.partial):
        parts += [_part(each) for each in (*plain.args, *sorted(plain.keywords.items()))]
        plain = plain.func
    if isinstance(plain, types.MethodType):
        parts.append(_part(plain.__self__))
        plain = plain.__func__
    code = getattr(plain, "__code__", None)
    if code is None:
        raise _nameless()
    parts += [_part(cell.cell_contents) for cell in plain.__closure__ or ()]
    # Two lambdas of one function have the same name.
    parts += [function_name(plain), code.co_code.hex(), repr(code.co_names), repr(code.co_consts)]
    return blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=_DIGEST).hexdigest()


def _part(value: Any) -> str:
    if isinstance(value, type | types.ModuleType | types.FunctionType):
        return function_name(value) if callable(value) else value.__name__
    try:
        return key_text(value)
    except CacheArgumentError:
        raise _nameless() from None


def _nameless() -> CacheArgumentError:
    return CacheArgumentError(
        "name",
        "the function of the keys belongs to an object, so other processes could not tell two of them apart; give the "
        "job a name, such as name='watchlist'",
    )
