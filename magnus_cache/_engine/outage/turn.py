"""Connection attempts, one at a time over all event loops."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop

__all__ = ["wait_turn"]


async def wait_turn(breaker: Breaker, clock: Clock, resting: Callable[[], object]) -> None:
    """Return when the caller may connect: at once, when its attempt is due, or when another attempt has succeeded.

    :param resting: called before each wait while Redis is away. A wait may take seconds, and no other caller must wait
        for this one.
    """
    loop = asyncio.get_running_loop()
    while (wait := breaker.try_acquire(clock())) > 0:
        retry = asyncio.Event()

        def callback(retry: asyncio.Event = retry) -> None:
            # The loop may have ended.
            call_on_loop(loop, retry.set)

        breaker.subscribe(callback)
        # Another thread's attempt may have succeeded since: then the callback was called, and callers continue at once.
        if breaker.open:
            resting()
        try:
            async with asyncio.timeout(wait):
                await retry.wait()
        except TimeoutError:
            pass
        finally:
            breaker.unsubscribe(callback)
