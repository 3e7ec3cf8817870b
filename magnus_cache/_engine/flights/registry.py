"""The loads under way: which one of a key callers may join, and which may not be joined any more."""

import asyncio
from collections.abc import Callable

from magnus_cache._engine.flights.background import BackgroundLoads
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section

__all__ = ["FlightRegistry"]


class FlightRegistry:
    """Loads by key. Thread-safe, but for what begins with an underscore: that is for who holds the lock.

    :param unattended: those that go on though nobody waits for them.
    :param clock: what their age is told by.
    """

    def __init__(self, unattended: BackgroundLoads, clock: Clock) -> None:
        self._clock = clock
        self._lock = section()
        self._flights: dict[bytes, Flight] = {}
        self._unattended = unattended

    def __len__(self) -> int:
        """Return how many loads are under way that a new caller could join."""
        return len(self._flights)

    @property
    def unattended(self) -> int:
        """How many loads are under way that go on when nobody waits for them."""
        return len(self._unattended)

    # -- what cannot be joined any more ----------------------------------------------------------------------------

    def overdue(self, key: bytes, wait_timeout: float) -> Flight | None:
        """Give up the present load of a key if it has taken so long that it seems to hang; return it if so.

        Whoever waits for it goes on waiting; the next caller begins another. That one has twice the time, so that a
        source which is no more than slow gets an end in sight.

        :param wait_timeout: seconds that a caller waits for another's load.
        """
        flight = self._flights.get(key)
        if flight is None or flight.overdue or self._clock() - flight.began <= wait_timeout * flight.tolerance:
            return None
        with self._lock:
            if flight.done or self._flights.get(key) is not flight:
                return None
            flight.overdue = flight.detached = True
        return flight

    def expire(self, key: bytes) -> None:
        """Let no later caller join the present load of a key if it cannot be told any more whether it is overtaken."""
        flight = self._flights.get(key)
        if flight is not None and flight.joinable_until < self._clock():
            self.detach_flight(flight)

    def detach(self, key: bytes) -> None:
        """Let no later caller join the present load of this key, and keep its result from being stored."""
        with self._lock:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.detached = True

    def detach_flight(self, flight: Flight) -> None:
        """Do what `detach` does for this very load, not for one that may have followed it."""
        with self._lock:
            flight.detached = True
            self._forget(flight)

    def detach_matching(self, predicate: Callable[[bytes], object]) -> None:
        """Do what `detach` does for every key that satisfies a quick predicate (which must not use the cache)."""
        with self._lock:
            for key, flight in list(self._flights.items()):
                if predicate(key):
                    flight.detached = True
                    self._forget(flight)

    # -- with the lock held ----------------------------------------------------------------------------------------

    def _new(
        self, key: bytes, loop: asyncio.AbstractEventLoop | None, namespace: str, *, alone: bool = False
    ) -> Flight:
        return Flight(self, key, loop, alone, namespace, self._clock())

    def _joinable(self, key: bytes) -> Flight | None:
        flight = self._flights.get(key)
        return None if flight is None or flight.overdue else flight

    def _enter(self, flight: Flight) -> Flight | None:
        """Make a flight the one that callers join; return the overdue one whose place it takes."""
        replaced = self._flights.get(flight.key)
        self._flights[flight.key] = flight
        if replaced is not None:
            flight.tolerance = 2 * replaced.tolerance
            self._unattended.discard(replaced)
        return replaced

    def _forget(self, flight: Flight) -> None:
        # Only itself: a flight that was detached may have a successor by now.
        if self._flights.get(flight.key) is flight:
            # Not `del`: a signal handler may have removed it in between.
            self._flights.pop(flight.key, None)
