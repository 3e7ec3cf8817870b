"""What a connection asks Redis because of what Redis has announced: together, and never in a tight circle."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.runtime.backoff import Pace

__all__ = ["Questions"]


class Questions:
    """The questions that a wire is about to ask. Every method must be called on its loop.

    :param pace: returns how soon the present connection may be asked.
    """

    __slots__ = ("_loop", "_open", "_pace", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pace: Callable[[], Pace]) -> None:
        self._loop = loop
        self._pace = pace
        self._open: dict[bytes, Callable[[], object]] = {}
        self._timer: asyncio.Handle | None = None

    def put(self, name: bytes, ask: Callable[[], object]) -> None:
        """Have something asked about a name soon, once, along with what else there is to ask.

        :param ask: queues the question; it finds out whether that is still of interest, and must not raise.
        """
        self._open[name] = ask
        if self._timer is None:
            loop = self._loop
            delay = self._pace().delay(loop.time())
            # Not in this very step: the rest of the announcement may be about other names.
            self._timer = loop.call_later(delay, self._ask) if delay else loop.call_soon(self._ask)

    def close(self) -> None:
        """Ask nothing of what is left."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        self._timer = None
        questions, self._open = self._open, {}
        for ask in questions.values():
            ask()
