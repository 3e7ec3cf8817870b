"""How often others have their turn on the event loop while something is under way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any


class Turns:
    """A count of turns.

    :ivar count: those that others had so far.
    """

    count = 0


@asynccontextmanager
async def turns_of_others() -> AsyncIterator[Turns]:
    """Count the turns of the loop that others have in a block."""
    turns, over = Turns(), False

    async def others() -> None:
        while not over:
            turns.count += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    try:
        yield turns
    finally:
        over = True
        await task


async def turns(awaitable: Awaitable[Any]) -> int:
    """Return how many turns of the loop others have while something is awaited."""
    async with turns_of_others() as others:
        await awaitable
    return others.count
