"""Keys that are loaded one by one, and whose values are stored together with all others that have come meanwhile."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.batch_results import Portion
from magnus_cache._engine.loading.request import BatchItem

__all__ = ["Result", "StreamedKeys"]


class Result(NamedTuple):
    """What has come of one key."""

    number: int
    """Its number among the keys."""
    error: Exception | None
    value: Any
    seconds: float
    """How long the load took."""


class StreamedKeys:
    """Keys that are loaded one by one, and their values as they come; see `Pending`."""

    __slots__ = ("_bell", "_left", "_ready", "flights", "items")

    def __init__(self, items: Sequence[BatchItem], flights: Sequence[Flight]) -> None:
        self.items = items
        self.flights = flights
        self._left = len(items)
        self._ready: list[Result] = []
        self._bell: asyncio.Future[None] | None = None

    def put(self, result: Result) -> None:
        """Add the value or the error of a load; on the loop."""
        self._ready.append(result)
        self._ring()

    def drop(self) -> None:
        """Note that no one waits for one of the loads, which is not begun; on the loop."""
        self._left -= 1
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def next(self) -> Portion | None:
        """Return what has come; None when all has."""
        while not self._ready:
            if self._left <= 0:
                return None
            self._bell = asyncio.get_running_loop().create_future()
            await self._bell
        ready, self._ready = self._ready, []
        self._left -= len(ready)
        loaded = [result for result in ready if result.error is None]
        return Portion(
            [result.number for result in loaded],
            {result.number: result.value for result in loaded}.__getitem__,
            {result.number: result.error for result in ready if result.error is not None},
            sum(result.seconds for result in ready) / len(ready),
        )

    def cancel(self) -> None:
        """Do nothing: a load that no one waits for is not begun."""
