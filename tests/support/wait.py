"""Wait for the thing itself, for a bounded time, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE = 10.0
STEP = 0.005


def wait_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition did not come"
        time.sleep(STEP)


async def wait_until_async(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds, letting the loop run meanwhile; fail if it does not in time."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition did not come"
        await asyncio.sleep(STEP)


async def wait_until_answered(ask: Callable[[], Awaitable[object]], patience: float = PATIENCE) -> None:
    """Ask again and again, and return once the answer is true; fail if it is not in time."""
    deadline = time.monotonic() + patience
    while not await ask():
        assert time.monotonic() < deadline, "the awaited answer did not come"
        await asyncio.sleep(STEP)


def nothing_happens_for(seconds: float) -> None:
    """Let time pass in which something must not happen.

    No event tells that. It can only be too short to find a fault, never too short for a test of what works.
    """
    time.sleep(seconds)


async def nothing_happens_for_async(seconds: float) -> None:
    """Let time pass in which something must not happen, as `nothing_happens_for` does; the loop runs meanwhile."""
    await asyncio.sleep(seconds)


def lapse(seconds: float) -> None:
    """Let real time pass, such as until a trust or a lease has lapsed, of which no event tells.

    At least so long is all that may count: on a busy machine it is more.
    """
    time.sleep(seconds)


async def lapse_async(seconds: float) -> None:
    """Let real time pass, as `lapse` does; the loop runs meanwhile."""
    await asyncio.sleep(seconds)


def end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks of a loop that rests, and run it until they, and their connections, have ended."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    # A transport is closed in the turn after the one that lets go of it.
    loop.run_until_complete(asyncio.sleep(0))
