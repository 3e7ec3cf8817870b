"""Step: many callers want the same thing at the same time."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from magnus_cache import AsyncCacheManager
from magnus_cache.demo.callers import Callers, Timed
from magnus_cache.demo.clients import RateLimitedError
from magnus_cache.demo.service import RATE_LIMIT
from magnus_cache.demo.stage import Stage

__all__ = ["one_load_for_many"]

_CROWD: Final = 50
_TICKER: Final = "NVDA"


async def one_load_for_many(stage: Stage) -> None:
    """Let a crowd ask for one stock price: first without the cache, against the API's limit, then with it."""
    stage.console.step(f"{_CROWD} callers want the price of {_TICKER} at the same moment.")
    await _without_cache(stage)
    await _with_cache(stage)


async def _without_cache(stage: Stage) -> None:
    client, calls = stage.world.impatient, stage.world.calls
    start = calls.snapshot()
    requests = (asyncio.to_thread(client.get_stock_price, _TICKER) for _ in range(_CROWD))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, RateLimitedError)]
    answered = calls.since(start)["stock_price"]
    refused = f"{len(refusals)} refused ({refusals[0]})" if refusals else "none refused"
    stage.console.say(f"Without the cache: {answered} calls answered, {refused}.")
    stage.console.check(
        answered == RATE_LIMIT and len(refusals) == _CROWD - RATE_LIMIT,
        f"without the cache, the API serves {RATE_LIMIT} of {_CROWD} and turns the others away",
    )


async def _with_cache(stage: Stage) -> None:
    start = stage.world.calls.snapshot()
    share = _CROWD // len(stage.callers)
    requests = [request for callers in stage.callers for request in _requests(callers, stage.cache, share)]
    answers = await asyncio.gather(*requests)
    made = stage.world.calls.since(start)["stock_price"]
    slowest = max(answer.milliseconds for answer in answers)
    stage.console.say(
        f"With the cache: {share} threads and {share} coroutines, calls to the API: {made}, "
        f"the last one has its price after {slowest:.0f} ms."
    )
    prices = {answer.value for answer in answers}
    stage.console.check(made == 1 and len(prices) == 1, f"with the cache, one call to the API serves all {_CROWD}")


def _requests(callers: Callers, cache: AsyncCacheManager, count: int) -> list[Awaitable[Timed]]:
    app = callers.cached(cache)
    return [callers.timed(lambda: app.get_stock_price(_TICKER)) for _ in range(count)]
