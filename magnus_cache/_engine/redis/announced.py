"""Batched follow-up requests to announcements, at a limited rate."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.runtime.backoff import Pace

__all__ = ["Questions"]


class Questions:
    """The requests that a wire is about to send because of announcements. Call every method on its loop.

    :param pace: returns the pace at which the current connection may send them.
    """

    __slots__ = ("_loop", "_open", "_pace", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pace: Callable[[], Pace]) -> None:
        self._loop = loop
        self._pace = pace
        self._open: dict[bytes, Callable[[], object]] = {}
        self._timer: asyncio.Handle | None = None

    def put(self, name: bytes, ask: Callable[[], object]) -> None:
        """Call `ask` soon, together with the other requests; once for each name.

        :param ask: queues the request if the answer is still needed; it must not raise.
        """
        self._open[name] = ask
        if self._timer is None:
            loop = self._loop
            delay = self._pace().delay(loop.time())
            # Not at once: the rest of the announcement may add other names.
            self._timer = loop.call_later(delay, self._ask) if delay else loop.call_soon(self._ask)

    def close(self) -> None:
        """Drop all requests that were not sent yet."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        self._timer = None
        questions, self._open = self._open, {}
        for ask in questions.values():
            ask()
