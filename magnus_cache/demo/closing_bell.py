"""The step of the demo in which an exchange closes: a quote of before the close is not served after it."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Final

from magnus_cache import AsyncCacheManager, Namespace, until
from magnus_cache.demo.environment import Context

__all__ = ["closing_bell"]

_LEADS: Final = (2, 4, 8)
"""Seconds before the bell at which the step begins; a machine that needs longer for its first half gets the next."""

_SHORTLY: Final = 0.3
"""Seconds before the bell at which the slow broker is asked, and after it at which that broker answers."""

_CALLS: Final = 50

_A_DAY: Final = 86_400


class _Broker:
    """A source of quotes: says whether a quote was asked for before the bell or after it.

    :ivar calls: how often it was asked.
    """

    def __init__(self, bell: datetime) -> None:
        self.bell = bell
        self.calls = 0

    async def quote(self) -> str:
        self.calls += 1
        return self._price()

    async def slow_quote(self) -> str:
        self.calls += 1
        price = self._price()
        await _until(self.bell + timedelta(seconds=_SHORTLY))
        return price

    def _price(self) -> str:
        return "before the bell" if datetime.now(UTC) < self.bell else "after the bell"


async def closing_bell(context: Context) -> None:
    """Cache quotes until a bell that rings in a few seconds, and check what is served before and after it."""
    console = context.console
    console.step("The closing bell: quotes are cached until it rings, in a few seconds, for all processes at once.")
    for lead in _LEADS:
        bell = (datetime.now(UTC) + timedelta(seconds=lead + 1)).replace(microsecond=0)
        broker, quotes = _Broker(bell), Namespace("demo_quotes", ttl=until(bell.time(), tz="UTC"))
        await context.cache.clear(str(quotes))
        async with context.environment.manager() as other:
            before = [await call for cache in (context.cache, other) for call in _calls(cache, quotes, broker)]
            asked = broker.calls
            await _until(bell - timedelta(seconds=_SHORTLY))
            slow = asyncio.create_task(context.cache.get_or_set(quotes, "NVDA", broker.slow_quote))
            await asyncio.sleep(0)
            if datetime.now(UTC) < bell:
                break
            await slow
    else:
        console.check(False, "this machine is quick enough to make some calls before the bell")
        return
    shared = 1 if context.environment.server is not None else 2
    console.check(
        set(before) == {"before the bell"} and asked == shared,
        f"before it, {len(before)} calls of two processes get the quote from {_times(asked)} to the broker",
    )
    await _after(context, quotes, broker, slow)


async def _after(context: Context, quotes: Namespace, broker: _Broker, slow: "asyncio.Task[str]") -> None:
    """Check what is served after the bell."""
    console, cache = context.console, context.cache
    late = await slow
    async with context.environment.manager() as other:
        start = broker.calls
        after = [await call for each in (cache, other) for call in _calls(each, quotes, broker)]
        asked = broker.calls - start
    shared = 1 if context.environment.server is not None else 2
    console.check(
        set(after) == {"after the bell"} and asked == shared,
        f"after it, nobody gets the old quote: {_times(asked)} to the broker for {len(after)} calls",
    )
    again = await cache.get_or_set(quotes, "NVDA", broker.quote)
    console.check(
        (late, again) == ("before the bell", "after the bell"),
        "a quote that was asked for before the bell and came after it went to its caller, and was not kept",
    )
    left = await cache.ttl(quotes, "NVDA") or 0.0
    console.check(_A_DAY - 600 < left < _A_DAY, f"the quote of after the bell lives until the next one, {left:,.0f} s")
    console.say(
        'With the extra "markets", market("XNYS", open="15s", closed="until open") knows the bells of exchanges.'
    )


def _calls(cache: AsyncCacheManager, quotes: Namespace, broker: _Broker) -> list[Awaitable[str]]:
    """Return calls of async and of blocking callers, to be awaited."""
    half = _CALLS // 2
    blocking = [asyncio.to_thread(cache.sync.get_or_set, quotes, "AAPL", broker.quote) for _ in range(half)]
    return [*(cache.get_or_set(quotes, "AAPL", broker.quote) for _ in range(half)), *blocking]


def _times(count: int) -> str:
    return "one call" if count == 1 else f"{count} calls"


async def _until(moment: datetime) -> None:
    while (left := (moment - datetime.now(UTC)).total_seconds()) > 0:  # noqa: ASYNC110  # a clock on the wall
        await asyncio.sleep(left)
