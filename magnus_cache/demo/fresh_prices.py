"""The demo's fresh prices: how old they are, which have changed, who keeps them warm, and what other TTLs would do."""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from magnus_cache import Changed, Namespace
from magnus_cache.demo.environment import Context
from magnus_cache.simulation import Candidate, simulate

__all__ = ["changed_prices", "price_with_an_age", "warm_prices", "what_if"]

_PRICES: Final = "demo_prices"
_TICKERS: Final = ("AAPL", "MSFT", "NVDA")
_PATIENCE: Final = 5.0
"""Seconds to wait for what takes some milliseconds."""

_OLD: Final = 0.2
_TTL: Final = 1.5
_EVERY: Final = 0.5
_ROUNDS: Final = 4
"""Loads of each price that its job makes while it is watched."""

_ACCESSES: Final = 60
_LIVES: Final = ("100ms", "10s")


async def price_with_an_age(context: Context) -> None:
    """Read one price in two processes, with its stamp."""
    console, cache = context.console, context.cache
    console.step("A price with its age: stamped reads tell when its load began, in every process.")
    first = await cache.get_or_set(_PRICES, "AAPL", lambda: 190.5, "1m", stamped=True)
    await asyncio.sleep(_OLD)
    async with context.environment.manager() as other:
        reader = other if context.environment.server is not None else cache
        again = await reader.get(_PRICES, "AAPL", stamped=True)
    age = 0.0 if again is None else again.age
    where = "in another process" if context.environment.server is not None else "later"
    console.check(
        again is not None and again.as_of == first.as_of and age > _OLD / 2,
        f"loaded at {first.as_of:%H:%M:%S.%f} UTC; read {where}, the same price is {age:.2f} s old",
    )


async def changed_prices(context: Context) -> None:
    """Follow the changes of a namespace while another process makes some."""
    console, cache = context.console, context.cache
    console.step("Changes: an iterator tells which prices changed anywhere, to be read again.")
    async with cache.changes(_PRICES) as changes, context.environment.manager() as other:
        writer = other if context.environment.server is not None else cache
        for price, ticker in enumerate(_TICKERS):
            await writer.set(_PRICES, ticker, price)
        shown: dict[object, object] = {}
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while len(shown) < len(_TICKERS):
                    change = await anext(changes)
                    keys = [change.key] if isinstance(change, Changed) else list(_TICKERS)
                    shown |= {key: await cache.get(_PRICES, key) for key in keys}
        took = 1_000 * (time.monotonic() - began)
    who = "another process" if context.environment.server is not None else "this process"
    console.check(
        shown == {ticker: price for price, ticker in enumerate(_TICKERS)},
        f"{len(_TICKERS)} prices that {who} has set are shown after {took:.0f} ms",
    )


async def warm_prices(context: Context) -> None:
    """Have two processes keep prices warm, and read them all the time."""
    console = context.console
    console.step(f"Warm prices: they live for {_TTL:g} s, and keep_warm loads them every {_EVERY:g} s, in one process.")
    loads: list[str] = []
    namespace = Namespace("demo_warm", ttl=_TTL)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(context.environment.manager())
        for cache in (context.cache, other):

            @cache.cached(namespace, key="{ticker}")
            async def price(ticker: str) -> int:
                loads.append(ticker)
                return len(loads)

            await stack.enter_async_context(cache.keep_warm(price, _TICKERS, every=_EVERY, name="demo"))
        reads = found = 0
        until = time.monotonic() + _PATIENCE
        while len(loads) < (1 + _ROUNDS) * len(_TICKERS) and time.monotonic() < until:
            if len(loads) >= len(_TICKERS):
                reads += len(_TICKERS)
                found += len(await context.cache.get_many(namespace, _TICKERS))
            await asyncio.sleep(0.01)
        processes = {job.process for job in await context.cache.warm_jobs()}
    # Not all: this machine may be too busy for a second.
    console.check(
        len(loads) >= (1 + _ROUNDS) * len(_TICKERS) and found >= 0.9 * reads and len(processes) == 1,
        f"{found} of {reads} reads in {_ROUNDS} rounds have found a price, and one process has loaded all of them",
    )


async def what_if(context: Context) -> None:
    """Record some accesses, and replay them with other TTLs."""
    console, folder = context.console, context.environment.directory / "accesses"
    console.step("What if: a recording of accesses is replayed with other TTLs.")
    namespace = Namespace("demo_recorded", ttl="1m")
    async with context.environment.manager() as cache, cache.record_accesses(folder):
        for number in range(_ACCESSES):
            await cache.get_or_set(namespace, _TICKERS[number % len(_TICKERS)], lambda: 190.5)
            await asyncio.sleep(0.01)
    await asyncio.to_thread(_replayed, context, folder)


def _replayed(context: Context, folder: Path) -> None:
    found = simulate(folder, [Candidate(ttl=life) for life in _LIVES])
    short, long = (result.total for result in found.results)
    rates = ", ".join(f"{life}: {one.hit_rate:.0%}" for life, one in zip(_LIVES, (short, long), strict=True))
    context.console.check(
        found.agrees and short.loads > long.loads,
        f"the simulation has the recorded hit rate of {found.recorded.hit_rate:.0%}, and those of other TTLs: {rates}",
    )
