"""The guide's six workloads, and the two kinds of callers, blocking and async, that make their calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from magnus_cache import AsyncCacheManager
from magnus_cache.demo.apps import App, AsyncApp, async_app, cached_app, cached_async_app

__all__ = ["WORKLOADS", "Callers", "Timed", "Workload", "both_kinds"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the guide's table."""

    name: str
    """The name by which calls of its source are counted."""
    feature: str
    source: str
    """Where the data comes from: ``HTTP`` or ``SQL``."""
    seconds: float
    """How long the source takes, as in the guide."""
    call: Callable[[App | AsyncApp], Any]
    """Makes the call; returns the value, or for an `AsyncApp` a coroutine."""


WORKLOADS: Final = (
    Workload("portfolio", "Portfolio Loading", "HTTP", 0.8, lambda app: app.get_portfolio_data("user1")),
    Workload(
        "options_chains", "Options Chain Query", "SQL", 0.5,
        lambda app: app.get_options_chain("AAPL", "2025-03-21"),
    ),
    Workload("stock_price", "Stock Price Fetch", "HTTP", 1.2, lambda app: app.get_stock_price("AAPL")),
    Workload("discord_messages", "Discord Messages", "SQL", 0.35, lambda app: app.get_recent_messages(24)),
    Workload("kalshi_markets", "Kalshi Markets", "SQL", 0.6, lambda app: app.get_active_markets("NFL")),
    Workload(
        "llm_response", "LLM Responses", "HTTP", 3.0,
        lambda app: app.generate_response("What is a covered call?", "professional"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timed:
    """The result of a call, and the time that its caller waited."""

    value: Any
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Callers:
    """One kind of callers.

    :ivar plain: their application without a cache.
    :ivar timed: makes a call as these callers do, and times it.
    :ivar cached: returns their application with a cache.
    """

    kind: str
    plain: App | AsyncApp
    timed: Callable[[Callable[[], Any]], Awaitable[Timed]]
    cached: Callable[[AsyncCacheManager], App | AsyncApp]

    async def call(self, app: App | AsyncApp, workload: Workload) -> Timed:
        """Make a workload's call and time it."""
        return await self.timed(lambda: workload.call(app))

    async def side_by_side(self, app: App | AsyncApp) -> list[Timed]:
        """Make the calls of all six workloads at the same time, and time each."""
        return await asyncio.gather(*(self.call(app, workload) for workload in WORKLOADS))

    async def in_turn(self, app: App | AsyncApp) -> list[Timed]:
        """Make the calls of all six workloads one after the other, and time each."""
        return [await self.call(app, workload) for workload in WORKLOADS]


def both_kinds(plain: App) -> tuple[Callers, Callers]:
    """Return the blocking and the async callers of an application."""
    plain_async = async_app(plain)
    return (
        Callers("blocking", plain, _timed_in_thread, lambda cache: cached_app(cache.sync, plain)),
        Callers("async", plain_async, _timed_on_loop, lambda cache: cached_async_app(cache, plain_async)),
    )


async def _timed_in_thread(call: Callable[[], Any]) -> Timed:
    # The time to reach the thread and to return is the demo's, not the caller's.
    return await asyncio.to_thread(_timed, call)


def _timed(call: Callable[[], Any]) -> Timed:
    started = time.perf_counter()
    value = call()
    return Timed(value, (time.perf_counter() - started) * 1000)


async def _timed_on_loop(call: Callable[[], Any]) -> Timed:
    started = time.perf_counter()
    value = await call()
    return Timed(value, (time.perf_counter() - started) * 1000)
