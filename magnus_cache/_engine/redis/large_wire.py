"""The connections for large values, so that small ones do not wait for them.

A connection sends its replies in order, so a small value waits for all that was requested before it. Values of a
namespace with large ones are therefore read through connections of their own, as soon as these stand: a second one is
made when the first is busy, and so on, up to `MOST_LARGE`. Each is a connection like any other: it has its own epochs
and its own trust, and the server announces to it what changes. Until one stands, and where none can be made (a server
may allow no more clients), large values come through the connection for all.

Nothing waits for these connections, and they say nothing about whether Redis is away: each ends when it is lost, and a
later large read makes another one.
"""

import math
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.redis.wire import Wire

__all__ = ["MOST_LARGE", "LargeWire", "LargeWires"]

MOST_LARGE: Final = 3
"""Connections for large values that one event loop makes at most."""

_PAUSE: Final = 3.0
"""Seconds from a lost connection to the next attempt."""


class LargeWire(Wire):
    """See the module.

    :ivar next_at: monotonic second from which on it may be replaced by another one; infinity while it lives.
    """

    next_at = math.inf

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return self._pipeline.pending

    def begin(self) -> None:
        """Begin to connect; does not wait."""
        self._start()

    async def _live(self) -> None:
        """Hold one connection for as long as it lasts."""
        try:
            error = await self._connection()
            self._lost(error)
            self._pipeline.fail_queued(error)
        finally:
            self._end()

    def _end(self) -> None:
        self.next_at = self.clock() + _PAUSE
        super()._end()


class LargeWires:
    """The connections for large values of one event loop; for use on that loop.

    :param create: adds one to a list, and returns it; it is not connected yet.
    :ivar all: those that live, and those that were lost a moment ago.
    """

    __slots__ = ("_create", "all")

    def __init__(self, create: Callable[[list[LargeWire]], LargeWire]) -> None:
        self._create = create
        self.all: list[LargeWire] = []

    def idlest(self, now: float) -> LargeWire | None:
        """Return the one with the fewest requests, if any stands; begin another one if that is busy.

        :param now: monotonic seconds.
        """
        best = min((wire for wire in self.all if wire.up), key=lambda wire: wire.pending, default=None)
        if best is None or best.pending:
            self.all = [wire for wire in self.all if now < wire.next_at]
            # One at a time: it may be that the server allows no more clients.
            if len(self.all) < MOST_LARGE and all(wire.up for wire in self.all):
                self._create(self.all).begin()
        return best
