"""What type checkers must see through the decorators; checked by mypy --strict and pyright, not run."""

from datetime import timedelta
from typing import Unpack, assert_type

from magnus_cache import NOT_MODIFIED, AsyncCacheManager, CacheManager, Namespace, current_load
from magnus_cache.freshness import FreshnessOptions
from magnus_cache.protocols import Cached, Decorator

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


# -- in classes ---------------------------------------------------------------------------------------------------


class Store:
    """A staticmethod that is reached through its class is seen for what it is; a classmethod is not."""

    @staticmethod
    @cache.cached("t")
    def plain(number: int) -> str:
        return str(number)

    # What checkers cannot see through, a cached function of the module serves as well.
    @classmethod
    def through(cls, number: int) -> str:
        return wrapped(number)


assert_type(Store.plain(1), str)
assert_type(Store.through(1), str)
