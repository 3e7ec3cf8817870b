"""The optional awaitable that closing a cache returns in blocking code."""

import asyncio
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any

from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT
from magnus_cache._engine.runtime.waiters import running_loop

__all__ = ["Ending"]


class Ending:
    """A cache that was closed from blocking code.

    A connection of an event loop that runs in this thread ends at that loop's next turn; awaiting this waits for it.
    So ``await cache.close()`` is correct with either manager.

    :param connections: the event loop of each connection, and a future that is done when the connection has ended.
    """

    __slots__ = ("_connections",)

    def __init__(self, connections: Sequence[tuple[asyncio.AbstractEventLoop, "Future[None]"]] = ()) -> None:
        self._connections = connections

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the connections of the running event loop have ended, for some seconds at most."""
        here = running_loop()
        ending = [asyncio.wrap_future(ended) for loop, ended in self._connections if loop is here]
        if ending:
            yield from _ended(ending).__await__()

    def __repr__(self) -> str:
        return "<closed>"


async def _ended(ending: "list[asyncio.Future[None]]") -> None:
    await asyncio.wait(ending, timeout=CLOSE_TIMEOUT)
