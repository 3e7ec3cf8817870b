"""What type checkers must see through the decorators; checked by mypy --strict, not run."""

from typing import assert_type

from magnus_cache import AsyncCacheManager, CacheManager

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
price(5)  # type: ignore[arg-type]
price("AAPL", weeks=1)  # type: ignore[call-arg]

assert_type(Client().rows("NFL"), list[str])
assert_type(Client().rows.invalidate("NFL"), bool)
Client().rows(5)  # type: ignore[arg-type]


async def main() -> None:
    assert_type(await quote("AAPL"), float)
    assert_type(await quote.invalidate("AAPL"), bool)
    assert_type(await quote.refresh("AAPL"), float)
    assert_type(await Client().rows_later("NFL"), list[str])
    assert_type(await acache.get_or_set("t", "k", lambda: 5), int)


assert_type(cache.get_or_set("t", "k", lambda: [1]), list[int])
