"""The application's six slow functions: as they are, and with the cache, for blocking and for async callers.

Read `plain_app`, then `cached_app`, then `cached_async_app`: the middle one is what the guide turns the first into,
example by example; the last is the same for coroutines.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ParamSpec, TypeVar

from magnus_cache import AsyncCacheManager, CacheManager, CacheNamespaces
from magnus_cache.demo.database import Database, DiscordDBManager, KalshiDBManager, OptionsDBManager, Rows
from magnus_cache.demo.service import ApiClient, Portfolio

__all__ = ["App", "AsyncApp", "async_app", "cached_app", "cached_async_app", "plain_app"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class App:
    """The six functions for blocking callers."""

    get_portfolio_data: Callable[[str], Portfolio]
    get_options_chain: Callable[[str, str], Rows]
    get_stock_price: Callable[[str], Decimal]
    get_recent_messages: Callable[[int], Rows]
    get_active_markets: Callable[[str], Rows]
    generate_response: Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class AsyncApp:
    """The six functions for async callers."""

    get_portfolio_data: Callable[[str], Coroutine[Any, Any, Portfolio]]
    get_options_chain: Callable[[str, str], Coroutine[Any, Any, Rows]]
    get_stock_price: Callable[[str], Coroutine[Any, Any, Decimal]]
    get_recent_messages: Callable[[int], Coroutine[Any, Any, Rows]]
    get_active_markets: Callable[[str], Coroutine[Any, Any, Rows]]
    generate_response: Callable[[str, str], Coroutine[Any, Any, str]]


def plain_app(api: ApiClient, database: Database) -> App:
    """Return the application without a cache."""
    return App(
        get_portfolio_data=api.get_portfolio_data,
        get_options_chain=OptionsDBManager(database).get_options_chain,
        get_stock_price=api.get_stock_price,
        get_recent_messages=DiscordDBManager(database).get_recent_messages,
        get_active_markets=KalshiDBManager(database).get_active_markets,
        generate_response=api.generate_response,
    )


def async_app(plain: App) -> AsyncApp:
    """Return the application without a cache for async callers: in threads, in place of async clients."""
    return AsyncApp(
        get_portfolio_data=_in_thread(plain.get_portfolio_data),
        get_options_chain=_in_thread(plain.get_options_chain),
        get_stock_price=_in_thread(plain.get_stock_price),
        get_recent_messages=_in_thread(plain.get_recent_messages),
        get_active_markets=_in_thread(plain.get_active_markets),
        generate_response=_in_thread(plain.generate_response),
    )


def _in_thread(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    return functools.partial(asyncio.to_thread, function)


def cached_app(cache: CacheManager, plain: App) -> App:
    """Return the application with the cache, each function in the style that the guide has for it."""

    class RobinhoodClient:
        """A client of one user, whose name is the key: each user's data is cached apart."""

        def __init__(self, user: str) -> None:
            self.user = user

        @cache.cached(CacheNamespaces.PORTFOLIO, ttl=300, key="{self.user}")
        def get_portfolio_data(self) -> Portfolio:
            return plain.get_portfolio_data(self.user)

    def get_options_chain(ticker: str, expiration: str) -> Rows:
        cache_key = f"{ticker}_{expiration}"
        cached_data: Rows | None = cache.get(CacheNamespaces.OPTIONS_CHAINS, cache_key)
        if cached_data is not None:
            return cached_data
        rows = plain.get_options_chain(ticker, expiration)
        cache.set(CacheNamespaces.OPTIONS_CHAINS, cache_key, rows, ttl=900)
        return rows

    @cache.cached(CacheNamespaces.STOCK_PRICES, ttl=60, key_func=_by_ticker)
    def get_stock_price(ticker: str) -> Decimal:
        return plain.get_stock_price(ticker)

    def get_recent_messages(hours_back: int) -> Rows:
        cache_key = f"recent_{hours_back}h"
        cached_messages: Rows | None = cache.get(CacheNamespaces.DISCORD_MESSAGES, cache_key)
        if cached_messages is not None:
            return cached_messages
        messages = plain.get_recent_messages(hours_back)
        cache.set(CacheNamespaces.DISCORD_MESSAGES, cache_key, messages, ttl=120)
        return messages

    class KalshiManager:
        """The key is given: a class defined inside a function has no name that all processes share."""

        @cache.cached(CacheNamespaces.KALSHI_MARKETS, ttl=60, key="{sport}")
        def get_active_markets(self, sport: str = "NFL") -> Rows:
            return plain.get_active_markets(sport)

    def generate_response(prompt: str, personality_mode: str) -> str:
        def load() -> str:
            return plain.generate_response(prompt, personality_mode)

        return cache.get_or_set(CacheNamespaces.LLM_RESPONSES, _by_prompt(prompt, personality_mode), load, ttl=3600)

    return App(
        get_portfolio_data=lambda user: RobinhoodClient(user).get_portfolio_data(),
        get_options_chain=get_options_chain,
        get_stock_price=get_stock_price,
        get_recent_messages=get_recent_messages,
        get_active_markets=KalshiManager().get_active_markets,
        generate_response=generate_response,
    )


def cached_async_app(cache: AsyncCacheManager, plain: AsyncApp) -> AsyncApp:
    """Return the application with the cache for async callers, with decorators throughout.

    Where the key is given, it is the same as in `cached_app`: coroutines and threads share those values.
    """

    @cache.cached(CacheNamespaces.PORTFOLIO, ttl="5m", key="{user}")
    async def get_portfolio_data(user: str) -> Portfolio:
        return await plain.get_portfolio_data(user)

    @cache.cached(CacheNamespaces.OPTIONS_CHAINS, ttl="15m", key="{ticker}_{expiration}")
    async def get_options_chain(ticker: str, expiration: str) -> Rows:
        return await plain.get_options_chain(ticker, expiration)

    @cache.cached(CacheNamespaces.STOCK_PRICES, ttl=60, key_func=_by_ticker)
    async def get_stock_price(ticker: str) -> Decimal:
        return await plain.get_stock_price(ticker)

    @cache.cached(CacheNamespaces.DISCORD_MESSAGES, ttl="2m", key="recent_{hours_back}h")
    async def get_recent_messages(hours_back: int) -> Rows:
        return await plain.get_recent_messages(hours_back)

    @cache.cached(CacheNamespaces.KALSHI_MARKETS, ttl=60, exclude=("plain",))
    async def get_active_markets(sport: str) -> Rows:
        return await plain.get_active_markets(sport)

    @cache.cached(CacheNamespaces.LLM_RESPONSES, ttl="1h", key_func=_by_prompt)
    async def generate_response(prompt: str, personality_mode: str) -> str:
        return await plain.generate_response(prompt, personality_mode)

    return AsyncApp(
        get_portfolio_data=get_portfolio_data,
        get_options_chain=get_options_chain,
        get_stock_price=get_stock_price,
        get_recent_messages=get_recent_messages,
        get_active_markets=get_active_markets,
        generate_response=generate_response,
    )


def _by_ticker(ticker: str) -> str:
    """Return the key of a price, so that ``cache.delete(CacheNamespaces.STOCK_PRICES, "AAPL")`` finds it."""
    return ticker


def _by_prompt(prompt: str, personality_mode: str) -> str:
    """Return the key of an answer: no prompt, which may be private, is readable in Redis."""
    return hashlib.sha256(f"{prompt}_{personality_mode}".encode()).hexdigest()
