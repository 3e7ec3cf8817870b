"""Connection attempts in turn: one at a time, on any event loop."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop

__all__ = ["wait_turn"]


async def wait_turn(breaker: Breaker, clock: Clock, resting: Callable[[], object]) -> None:
    """Return when the caller may connect: at once, or when its attempt is due, or when another's has succeeded.

    :param resting: called before each wait, which may take seconds, while Redis is away: no other caller must wait
        for this one.
    """
    loop = asyncio.get_running_loop()
    while (wait := breaker.try_acquire(clock())) > 0:
        back = asyncio.Event()

        def callback(back: asyncio.Event = back) -> None:
            # The loop may have ended.
            call_on_loop(loop, back.set)

        breaker.subscribe(callback)
        # Another thread's attempt may have succeeded since: then the callback was called, and callers continue at once.
        if breaker.open:
            resting()
        try:
            async with asyncio.timeout(wait):
                await back.wait()
        except TimeoutError:
            pass
        finally:
            breaker.unsubscribe(callback)
