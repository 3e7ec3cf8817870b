"""Batched follow-up requests to announcements, at a limited rate where an answer can cause the next announcement."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.runtime.backoff import Pace

__all__ = ["Questions"]


class Questions:
    """The requests that a wire is about to send because of announcements. Call every method on its loop.

    :param pace: returns the pace at which the current connection may send them.
    :param by_key: returns whether the server announces what was read: then a read may have it stop tracking another
        name, and announce that.
    """

    __slots__ = ("_by_key", "_loop", "_open", "_pace", "_reads", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pace: Callable[[], Pace], by_key: Callable[[], bool]) -> None:
        self._loop = loop
        self._pace = pace
        self._by_key = by_key
        self._reads: dict[bytes, Callable[[], object]] = {}
        self._open: dict[bytes, Callable[[], object]] = {}
        self._timer: asyncio.Handle | None = None

    def put(self, name: bytes, ask: Callable[[], object], *, reads: bool = False) -> None:
        """Call `ask` soon, together with the other requests; once for each name.

        :param ask: queues the request if the answer is still needed; it must not raise.
        :param reads: whether it changes nothing, whatever the answer.
        """
        if reads and not self._by_key():
            if not self._reads:
                self._loop.call_soon(self._ask_reads)
            self._reads[name] = ask
            return
        self._open[name] = ask
        if self._timer is None:
            loop = self._loop
            delay = self._pace().delay(loop.time())
            # Not at once: the rest of the announcement may add other names.
            self._timer = loop.call_later(delay, self._ask) if delay else loop.call_soon(self._ask)

    def close(self) -> None:
        """Drop all requests that were not sent yet."""
        self._open.clear()
        self._reads.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        self._timer = None
        questions, self._open = self._open, {}
        for ask in questions.values():
            ask()

    def _ask_reads(self) -> None:
        questions, self._reads = self._reads, {}
        for ask in questions.values():
            ask()
