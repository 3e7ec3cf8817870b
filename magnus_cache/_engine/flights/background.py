"""Loads that run without a waiting caller, and their limit."""

from typing import Final

from magnus_cache._engine.flights.flight import Flight

__all__ = ["MOST_BACKGROUND", "BackgroundLoads", "WaitExpiredError"]

MOST_BACKGROUND: Final = 64
"""Loads of one namespace that may run without a waiting caller, which bounds what a hanging source occupies."""


class WaitExpiredError(Exception):
    """The caller has waited for the load as long as it wanted to.

    :ivar given_up: whether the load that the caller led was given up at the limit of background loads. Otherwise it
        continues, or was not started at all.
    :ivar limit_reached: whether the limit of background loads was reached.
    """

    def __init__(self, *, limit_reached: bool = False, given_up: bool = False) -> None:
        super().__init__()
        self.limit_reached = limit_reached
        self.given_up = given_up


class BackgroundLoads:
    """The background loads of each namespace, up to a limit. Guarded by the lock of its owner."""

    __slots__ = ("_flights", "_most")

    def __init__(self, most: int = MOST_BACKGROUND) -> None:
        self._most = most
        self._flights: dict[str, set[Flight]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._flights.values())))

    def __contains__(self, flight: Flight) -> bool:
        return flight in self._flights.get(flight.namespace, ())

    def add(self, flight: Flight) -> bool:
        """Let a load run in the background; return False at the limit."""
        flights = self._flights.setdefault(flight.namespace, set())
        if flight not in flights and len(flights) >= self._most:
            return False
        flights.add(flight)
        return True

    def discard(self, flight: Flight) -> None:
        """Remove a load that has ended, or is not a background load any more."""
        flights = self._flights.get(flight.namespace)
        if flights is not None:
            flights.discard(flight)
            if not flights:
                del self._flights[flight.namespace]

    def lost(self, namespace: str) -> list[Flight]:
        """Return the loads of a namespace that ended with their closed event loop."""
        return [flight for flight in self._flights.get(namespace, ()) if flight.loop and flight.loop.is_closed()]

    def clear(self) -> None:
        """Forget all."""
        self._flights.clear()
