"""Whose turn it is to try Redis again: one connection's at a time, of whatever event loop."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop

__all__ = ["wait_turn"]


async def wait_turn(breaker: Breaker, clock: Clock, resting: Callable[[], object]) -> None:
    """Return when one may connect: at once, or when a trial is due and nobody else's, or when another's succeeded.

    :param resting: called before each wait, which may take seconds, while Redis is away: nobody is to wait along.
    """
    loop = asyncio.get_running_loop()
    while (wait := breaker.admit(clock())) > 0:
        back = asyncio.Event()

        def bell(back: asyncio.Event = back) -> None:
            # That loop may have ended.
            call_on_loop(loop, back.set)

        breaker.listen(bell)
        # Another thread's attempt may have succeeded since: then the bell has rung, and callers are served at once.
        if breaker.open:
            resting()
        try:
            async with asyncio.timeout(wait):
                await back.wait()
        except TimeoutError:
            pass
        finally:
            breaker.unlisten(bell)
