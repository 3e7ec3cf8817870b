"""The demo's rate-limited broker: a fleet that stays within its limit, and a broker that asks for a pause."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from magnus_cache import AsyncCacheManager, Namespace, RetryLater
from magnus_cache.demo.environment import Context

__all__ = ["rate_limited_broker"]

_LIMIT: Final = 5
_WINDOW: Final = 1.0
_BUDGET: Final = "5/1500ms"
"""With room: a call may take a while from this machine to itself, if the machine is busy."""

_PROCESSES: Final = 3
_ACCOUNTS: Final = 4
"""Of each process."""

_PAUSE: Final = 0.5


class _Broker:
    """A broker that serves `_LIMIT` calls in any `_WINDOW` seconds, and refuses the others."""

    def __init__(self) -> None:
        self.served = self.refused = 0
        self.resting_until = 0.0
        self._times: list[float] = []

    def ask(self, account: int) -> dict[str, int]:
        now = time.monotonic()
        if now < self.resting_until or len([at for at in self._times if now - at < _WINDOW]) >= _LIMIT:
            self.refused += 1
            raise RetryLater(max(self.resting_until - now, 0.1))
        self._times.append(now)
        self.served += 1
        return {"account": account, "orders": account % 3}


async def rate_limited_broker(context: Context) -> None:
    """Let several processes ask a broker for more than it allows, and check that it refuses none."""
    console, broker = context.console, _Broker()
    processes = _PROCESSES if context.environment.server is not None else 1
    wanted = processes * _ACCOUNTS
    console.step(
        f"A rate-limited broker: {processes} processes want {wanted} accounts; it allows {_LIMIT} calls a second."
    )
    orders = Namespace("broker_orders", ttl="1m", budget=_BUDGET, hard_timeout="20s")

    async def ask(cache: AsyncCacheManager, account: int) -> dict[str, int]:
        @cache.cached(orders, key="{account}")
        async def open_orders(account: int) -> dict[str, int]:
            return broker.ask(account)

        return await open_orders(account)

    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(context.environment.manager()) for _ in range(processes - 1)]
        caches = [context.cache, *others]
        began = time.monotonic()
        await asyncio.gather(*[ask(caches[account % processes], account) for account in range(wanted)])
        took = time.monotonic() - began
        console.say(f"All have their answers after {took:.1f} s: {broker.served} served, {broker.refused} refused.")
        console.check(
            (broker.served, broker.refused) == (wanted, 0), "the fleet kept to the budget: not one call was refused"
        )
        broker.resting_until = time.monotonic() + _PAUSE
        answers = await asyncio.gather(*[ask(cache, wanted) for cache in caches])
        console.check(
            broker.refused == 1 and len(answers) == processes,
            "a broker that asks for a pause (RetryLater) is asked again after it, by one process for all",
        )
