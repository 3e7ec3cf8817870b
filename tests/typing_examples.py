"""What type checkers must see through the decorators; checked by mypy --strict and pyright, not run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar, Unpack, assert_type

from magnus_cache import NOT_MODIFIED, AsyncCacheManager, CacheManager, Explanation, Namespace, current_load
from magnus_cache.freshness import FreshnessOptions
from magnus_cache.protocols import AsyncCached, Cached, Decorator, as_method

T = TypeVar("T")

cache = CacheManager(redis_enabled=False)
acache = AsyncCacheManager(redis_enabled=False)


@cache.cached("t", ttl="5m", key="{ticker}")
def price(ticker: str, days: int = 5) -> dict[str, float]:
    return {ticker: float(days)}


@acache.cached("t")
async def quote(ticker: str) -> float:
    return float(len(ticker))


class Client:
    @cache.cached("t")
    def rows(self, sport: str) -> list[str]:
        return [sport]

    @cache.cached("t")
    async def rows_later(self, sport: str) -> list[str]:
        return [sport]


assert_type(price("AAPL", days=3), dict[str, float])
assert_type(price.invalidate("AAPL"), bool)
assert_type(price.refresh("AAPL"), dict[str, float])
assert_type(price.__wrapped__("AAPL"), dict[str, float])
price(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
price("AAPL", weeks=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

assert_type(Client().rows("NFL"), list[str])
assert_type(Client().rows.invalidate("NFL"), bool)
Client().rows(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def main() -> None:
    assert_type(await quote("AAPL"), float)
    assert_type(await quote.invalidate("AAPL"), bool)
    assert_type(await quote.refresh("AAPL"), float)
    assert_type(await Client().rows_later("NFL"), list[str])
    assert_type(await acache.get_or_set("t", "k", lambda: 5), int)
    assert_type(await acache.get_or_set("t", "k", load_later), str)
    assert_type(await acache.get_or_set("t", "k", lambda: load_later()), str)
    assert_type(await quotes(["AAPL"]), dict[str, int])
    quotes.cache_key("AAPL")


async def load_later() -> str:
    return "x"


assert_type(cache.get_or_set("t", "k", lambda: [1]), list[int])
assert_type(cache.get_or_set("t", "k", load_later), str)


# -- loaders that ask conditionally -------------------------------------------------------------------------------


@cache.cached("t", grace="1h")
def rates(currency: str) -> dict[str, float]:
    if current_load().validator == "v1":
        return NOT_MODIFIED
    return {currency: 1.0}


@acache.cached("t", grace="1h")
async def rates_later(currency: str) -> dict[str, float]:
    if current_load().has_previous:
        return NOT_MODIFIED
    return {currency: 1.0}


assert_type(rates("EUR"), dict[str, float])


# -- many at once -------------------------------------------------------------------------------------------------


@cache.cached_many("t", ttl="30s")
def prices(tickers: list[str]) -> dict[str, int]:
    return dict.fromkeys(tickers, 1)


@acache.cached_many("t")
async def quotes(tickers: list[str]) -> dict[str, int]:
    return dict.fromkeys(tickers, 1)


assert_type(prices(["AAPL"]), dict[str, int])
assert_type(prices.invalidate(["AAPL"]), bool)
prices.cache_key("AAPL")
prices("AAPL")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- options ------------------------------------------------------------------------------------------------------

Namespace("t", grace=None, soft_timeout=None, negative={LookupError: "5m"})
Namespace("t", compress="zstd")
Namespace("t", compress="gzip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Namespace("t", grease=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
cache.get_or_set("t", "k", lambda: 1, ttl=lambda value: value, grace=60, soft_timeout=None, hard_timeout=None)
cache.cached("t", grace="1h", soft_timeout=0, hard_timeout=timedelta(seconds=5), jitter=None, early=None, retry=None)


def cached_here(**options: Unpack[FreshnessOptions]) -> Decorator:
    return cache.cached("here", "5m", **options)


@cached_here(grace="1h")
def wrapped(number: int) -> str:
    return str(number)


def warm(function: Cached[[int], str]) -> str:
    return function.refresh(5)


assert_type(warm(wrapped), str)


# -- both kinds ---------------------------------------------------------------------------------------------------


@cache.cached("t")
def same(thing: T) -> T:
    return thing


@acache.cached("t")
async def listed(thing: T, *more: T, limit: int = 0) -> list[T]:
    return [thing, *more]


def takes_either(plain: Callable[[str], Coroutine[Any, Any, float]], cached: AsyncCached[[str], float]) -> None: ...


assert_type(same(3), int)
assert_type(same("x"), str)
assert_type(same.invalidate(3), bool)
assert_type(price.contains("AAPL", days=3), bool)
assert_type(price.explain("AAPL"), Explanation)
price.clear()
price.contains(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
price()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
takes_either(quote, quote)


async def of_coroutine_functions() -> None:
    assert_type(await listed(3, 4, limit=1), list[int])
    assert_type(await quote.contains("AAPL"), bool)
    assert_type(await quote.explain("AAPL"), Explanation)
    assert_type(await Client().rows_later.invalidate("NFL"), bool)
    assert_type(await quotes.contains("AAPL"), bool)
    await quote.clear()
    await quote(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- in classes ---------------------------------------------------------------------------------------------------


class Store:
    """A staticmethod that is reached through its class is seen for what it is."""

    @staticmethod
    @cache.cached("t")
    def plain(number: int) -> str:
        return str(number)

    @cache.cached("t")
    @staticmethod
    def plain_too(number: int) -> str:
        return str(number)

    @classmethod
    @cache.cached("t")
    def of_class(cls, number: int) -> str:
        return str(number)

    @cache.cached("t")
    @classmethod
    def of_class_too(cls, number: int) -> str:
        return str(number)

    @cache.cached("t")
    def method(self, number: int) -> str:
        return str(number)

    @cache.cached_many("t")
    def many(self, keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    @property
    @cache.cached("t")
    def size(self) -> int:
        return 1


class Shop(Store):
    def other(self) -> str:
        return super().method(1)


assert_type(Store.plain(1), str)
assert_type(Store.plain_too(1), str)
assert_type(Store.of_class(1), str)
assert_type(Store.of_class_too(1), str)
assert_type(Shop.of_class_too(1), str)
assert_type(Shop().of_class_too(1), str)
assert_type(Shop().of_class(1), str)
assert_type(Store.of_class_too.refresh(1), str)
assert_type(Store.of_class_too.invalidate(1), bool)
assert_type(Shop().method(1), str)
assert_type(Shop().method.contains(1), bool)
assert_type(Store.method(Shop(), 1), str)
assert_type(Store().many(["a"]), dict[str, int])
assert_type(Store().many.contains("a"), bool)
assert_type(Store().size, int)
Store.of_class_too("x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
Shop().method("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Box(Generic[T]):
    def __init__(self, thing: T) -> None:
        self.thing = thing

    def __cache_key__(self) -> str:
        return repr(self.thing)

    @cache.cached("t")
    def get(self, number: int) -> T:
        return self.thing


assert_type(Box(3).get(1), int)
assert_type(Box("x").get.refresh(1), str)


# -- protocols and overrides --------------------------------------------------------------------------------------


class Rows(Protocol):
    def rows(self, number: int) -> list[str]: ...

    async def later(self, number: int) -> list[str]: ...


class Base(ABC):
    @abstractmethod
    def rows(self, number: int) -> list[str]: ...


class Impl(Base):
    @as_method
    @cache.cached("t")
    def rows(self, number: int) -> list[str]:
        return [str(number)]

    @as_method
    @cache.cached("t")
    async def later(self, number: int) -> list[str]:
        return [str(number)]


class Again(Impl):
    @as_method
    @cache.cached("t")
    def rows(self, number: int) -> list[str]:
        return super().rows(number)


class Plain(Again):
    def rows(self, number: int) -> list[str]:
        return super().rows(number)


def use(rows: Rows, base: Base) -> None: ...


use(Impl(), Impl())
use(Again(), Again())
use(Plain(), Plain())
assert_type(Again().rows(1), list[str])
Again().rows("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
