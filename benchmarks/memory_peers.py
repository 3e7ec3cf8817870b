"""The contenders of hits in memory: each library's own decorator, on functions as users write them.

Each function here is one of a module of its own, and loads each key once: a second load is no hit.
"""

import sys
import threading
from collections.abc import Callable, Coroutine, Hashable
from datetime import timedelta
from functools import lru_cache
from itertools import count
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol

from benchmarks.contenders import if_installed
from benchmarks.tables import OURS, Table
from magnus_cache import AsyncCacheManager, CacheManager, Namespace

__all__ = [
    "SHARED", "AsyncFunction", "Case", "Function", "Make", "Quotes", "async_functions", "async_methods", "functions",
    "methods",
]  # fmt: skip

AsyncFunction = Callable[[str], Coroutine[Any, Any, Any]]
Function = Callable[[str], Any]
Make = Callable[[str], object]
"""Makes the value of a key."""

SHARED: Final = f"{OURS}, share=True"

_TTL: Final = 3600

_SOURCE: Final = """
@decorate
def quote(ticker: str) -> object:
    return load(ticker)
"""
_ASYNC_SOURCE: Final = """
@decorate
async def quote(ticker: str) -> object:
    return load(ticker)
"""
_METHOD_SOURCE: Final = """
class Quotes:
    @decorate
    def quote(self, ticker: str) -> object:
        return load(ticker)
"""
_ASYNC_METHOD_SOURCE: Final = _METHOD_SOURCE.replace("def quote", "async def quote")

_MODULES: Final = count()


def _module(source: str, decorate: Callable[[Any], Any], make: Make) -> Any:
    """Return a new module with the decorated function or class of a source, which loads each key once."""
    loaded: set[str] = set()

    def load(key: str) -> object:
        assert key not in loaded, f"{key} was loaded twice: this was to be a hit"
        loaded.add(key)
        return make(key)

    module = ModuleType(f"{__name__}_{next(_MODULES)}")
    sys.modules[module.__name__] = module
    vars(module).update(decorate=decorate, load=load)
    exec(compile(source, module.__name__, "exec"), vars(module))
    return module


def _function(decorate: Callable[[Any], Any], make: Make, *, awaited: bool) -> Any:
    return _module(_ASYNC_SOURCE if awaited else _SOURCE, decorate, make).quote


def _instance(decorate: Callable[[Any], Any], make: Make, *, awaited: bool) -> "Quotes":
    instance: Quotes = _module(_ASYNC_METHOD_SOURCE if awaited else _METHOD_SOURCE, decorate, make).Quotes()
    return instance


def _ticker(ticker: str) -> str:
    return ticker


# -- functions --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is decorated.

    :ivar name: ours uses it as a namespace.
    :ivar make: makes the value of a key.
    :ivar size: entries for which each cache must have room.
    :ivar share: whether ours gives the same object to all callers.
    :ivar key_func: whether the caller gives a function for the key; contenders that cannot are left out.
    """

    name: str
    make: Make
    size: int = 10_000
    share: bool = False
    key_func: bool = False

    def ours(self, manager: AsyncCacheManager | CacheManager, callers: str) -> Callable[[Any], Any]:
        """Return our decorator."""
        namespace = Namespace(f"{callers}-{self.name}", ttl=_TTL, share=self.share)
        options: dict[str, Any] = {"key_func": _ticker} if self.key_func else {}
        return manager.cached(namespace, **options)


def async_functions(manager: AsyncCacheManager, table: Table, case: Case) -> dict[str, AsyncFunction]:
    """Return decorated coroutine functions by contender."""
    name, make, size, _, key_func = case
    found: dict[str, AsyncFunction] = {OURS: _function(case.ours(manager, "async"), make, awaited=True)}
    with if_installed(table, "async-lru"):
        import async_lru

        key: dict[str, Any] = {"key": _ticker} if key_func else {}
        found["async-lru"] = _function(async_lru.alru_cache(maxsize=size, ttl=_TTL, **key), make, awaited=True)
    with if_installed(table, "aiocache"):
        import aiocache

        builder: dict[str, Any] = {"key_builder": lambda function, ticker: ticker} if key_func else {}
        memory = aiocache.cached(ttl=_TTL, cache=aiocache.Cache.MEMORY, namespace=name, **builder)
        found["aiocache"] = _function(memory, make, awaited=True)
    with if_installed(table, "cashews"):
        import cashews

        cache = cashews.Cache()
        cache.setup("mem://", size=size)
        # Its documentation gives every function a template for its key.
        found["cashews"] = _function(cache(ttl=_TTL, key="{ticker}"), make, awaited=True)
    _add_rust(table, found, case, awaited=True)
    found["(no cache)"] = _uncached
    return found


async def _uncached(ticker: str) -> object:
    return ticker


def functions(manager: CacheManager, table: Table, case: Case) -> dict[str, Function]:
    """Return decorated functions by contender."""
    _, make, size, _, key_func = case
    found: dict[str, Function] = {OURS: _function(case.ours(manager, "sync"), make, awaited=False)}
    with if_installed(table, "cachetools"):
        import cachetools

        key: dict[str, Any] = {"key": _ticker} if key_func else {}
        # With a lock, as its documentation demands of a cache that threads share.
        timed = cachetools.cached(cachetools.TTLCache[Any, Any](size, _TTL), lock=threading.Lock(), **key)
        found["cachetools"] = _function(timed, make, awaited=False)
        untimed = cachetools.cached(cachetools.LRUCache[Any, Any](size), lock=threading.Lock(), **key)
        found["cachetools, no TTL"] = _function(untimed, make, awaited=False)
    with if_installed(table, "dogpile.cache"):
        from dogpile.cache import make_region

        region = make_region().configure("dogpile.cache.memory", expiration_time=_TTL)
        generator: dict[str, Any] = {"function_key_generator": _dogpile_key} if key_func else {}
        found["dogpile.cache"] = _function(region.cache_on_arguments(**generator), make, awaited=False)
    _add_rust(table, found, case, awaited=False)
    if not key_func:
        found["functools.lru_cache"] = _function(lru_cache(size), make, awaited=False)
    return found


def _dogpile_key(namespace: object, function: object) -> Callable[[str], str]:
    return _ticker


def _add_rust(table: Table, found: dict[str, Any], case: Case, *, awaited: bool) -> None:
    """Add the libraries that are written in Rust, whose one decorator is for both kinds of functions."""
    _, make, size, _, key_func = case
    with if_installed(table, "cachebox"):
        import cachebox

        maker: dict[str, Any] = {"key_maker": _cachebox_key} if key_func else {}
        decorate = cachebox.cached(cachebox.TTLCache(size, _TTL), **maker)
        found["cachebox"] = _function(decorate, make, awaited=awaited)
    with if_installed(table, "theine"):
        import theine

        memoized = _function(theine.Memoize(size, timedelta(seconds=_TTL)), make, awaited=awaited)
        # "The recommended way", it says.
        memoized.key(_ticker)
        found["theine"] = memoized


def _cachebox_key(ticker: str) -> Hashable:
    return ticker


# -- methods ----------------------------------------------------------------------------------------------------


class Quotes(Protocol):
    """An instance with a decorated method, which may be a coroutine function."""

    quote: Function


def async_methods(manager: AsyncCacheManager, table: Table, case: Case) -> dict[str, Quotes]:
    """Return instances with a decorated coroutine method by contender."""
    make, size = case.make, case.size
    found = {OURS: _instance(case.ours(manager, "async"), make, awaited=True)}
    with if_installed(table, "async-lru"):
        import async_lru

        found["async-lru"] = _instance(async_lru.alru_cache(maxsize=size, ttl=_TTL), make, awaited=True)
    with if_installed(table, "cachebox"):
        import cachebox

        found["cachebox"] = _instance(cachebox.cached(cachebox.TTLCache(size, _TTL)), make, awaited=True)
    return found


def methods(manager: CacheManager, table: Table, case: Case) -> dict[str, Quotes]:
    """Return instances with a decorated method by contender."""
    make, size = case.make, case.size
    found = {OURS: _instance(case.ours(manager, "sync"), make, awaited=False)}
    with if_installed(table, "cachetools"):
        import cachetools

        cache: cachetools.TTLCache[Any, Any] = cachetools.TTLCache(size, _TTL)
        lock = threading.Lock()
        decorate = cachetools.cachedmethod(lambda self: cache, lock=lambda self: lock)
        found["cachetools"] = _instance(decorate, make, awaited=False)
    with if_installed(table, "cachebox"):
        import cachebox

        found["cachebox"] = _instance(cachebox.cached(cachebox.TTLCache(size, _TTL)), make, awaited=False)
    found["functools.lru_cache"] = _instance(lru_cache(size), make, awaited=False)
    return found
