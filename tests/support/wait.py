"""Wait for the thing itself, for a bounded time, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Callable

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
