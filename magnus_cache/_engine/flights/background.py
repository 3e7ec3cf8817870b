"""Which loads go on though nobody waits for them, and how many may."""

from typing import Final

from magnus_cache._engine.flights.flight import Flight

__all__ = ["MOST_UNATTENDED", "BackgroundLoads", "WaitExpiredError"]

MOST_UNATTENDED: Final = 64
"""Loads of one namespace that go on, or are begun, while nobody waits for them: a source that hangs takes no more."""


class WaitExpiredError(Exception):
    """The caller has waited for the load as long as it wanted to.

    :ivar given_up: whether the load that it led was given up, as too many go on already; else it goes on, or was not
        begun at all.
    :ivar crowded: whether too many go on already.
    """

    def __init__(self, *, crowded: bool = False, given_up: bool = False) -> None:
        super().__init__()
        self.crowded = crowded
        self.given_up = given_up


class BackgroundLoads:
    """Loads that go on by themselves, so many for each namespace. Guarded by the lock of its owner."""

    __slots__ = ("_flights", "_most")

    def __init__(self, most: int = MOST_UNATTENDED) -> None:
        self._most = most
        self._flights: dict[str, set[Flight]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._flights.values())))

    def __contains__(self, flight: Flight) -> bool:
        return flight in self._flights.get(flight.namespace, ())

    def add(self, flight: Flight) -> bool:
        """Let a load go on; return whether there was a place."""
        flights = self._flights.setdefault(flight.namespace, set())
        if flight not in flights and len(flights) >= self._most:
            return False
        flights.add(flight)
        return True

    def discard(self, flight: Flight) -> None:
        """Note that a load has ended."""
        flights = self._flights.get(flight.namespace)
        if flights is not None:
            flights.discard(flight)
            if not flights:
                del self._flights[flight.namespace]

    def lost(self, namespace: str) -> list[Flight]:
        """Return those of a namespace whose event loop is gone, and they with it."""
        return [flight for flight in self._flights.get(namespace, ()) if flight.loop and flight.loop.is_closed()]

    def clear(self) -> None:
        """Forget all."""
        self._flights.clear()
