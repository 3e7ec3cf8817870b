"""The registry of loads under way: which load of a key callers may join."""

import asyncio
from collections.abc import Callable, Iterable

from magnus_cache._engine.flights.background import BackgroundLoads
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section

__all__ = ["FlightRegistry"]


class FlightRegistry:
    """Loads by key. Thread-safe, except for methods with an underscore, which need the lock.

    :param background: the loads that continue without a waiting caller.
    :param clock: the clock that measures the age of loads.
    """

    def __init__(self, background: BackgroundLoads, clock: Clock) -> None:
        self._clock = clock
        self._lock = section()
        self._flights: dict[bytes, Flight] = {}
        self._background = background

    def __len__(self) -> int:
        """Return how many loads a new caller could join."""
        return len(self._flights)

    @property
    def background(self) -> int:
        """How many background loads are under way: those that continue without a waiting caller."""
        return len(self._background)

    def current(self, key: bytes) -> Flight | None:
        """Return the load of a key that a new caller could join, or None."""
        return self._joinable(key)

    # -- detaching ----------------------------------------------------------------------------

    def detach_hung(self, key: bytes, wait_timeout: float) -> Flight | None:
        """Detach the current load of a key if it has taken so long that it counts as hung; return it if so.

        Its waiting callers continue to wait; the next caller starts another load. That load has twice the time, so
        that a source that is merely slow can finish in the end.

        :param wait_timeout: seconds that a caller waits for another caller's load.
        """
        flight = self._flights.get(key)
        if flight is None or flight.hung or self._clock() - flight.began <= wait_timeout * flight.tolerance:
            return None
        with self._lock:
            if flight.done or self._flights.get(key) is not flight:
                return None
            flight.hung = flight.detached = True
        return flight

    def expire(self, key: bytes) -> None:
        """Detach the current load of a key if it is too late to learn whether it was overtaken."""
        flight = self._flights.get(key)
        if flight is not None and flight.joinable_until < self._clock():
            self.detach_flight(flight)

    def detach(self, key: bytes) -> None:
        """Keep later callers from joining the current load of this key, and its result from being stored."""
        with self._lock:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.detached = True

    def detach_many(self, keys: Iterable[bytes]) -> None:
        """Detach the current loads of some keys, as `detach` does, with the lock taken once."""
        # Without loads there is nothing to detach, and a load that another thread enters now begins after this call.
        if not self._flights:
            return
        with self._lock:
            for key in keys:
                flight = self._flights.pop(key, None)
                if flight is not None:
                    flight.detached = True

    def detach_flight(self, flight: Flight) -> None:
        """Detach exactly this load, not one that may have followed it; see `detach`."""
        with self._lock:
            flight.detached = True
            self._forget(flight)

    def detach_matching(self, predicate: Callable[[bytes], object]) -> None:
        """Detach the loads of all keys that satisfy a quick predicate, which must not use the cache; see `detach`."""
        with self._lock:
            for key, flight in list(self._flights.items()):
                if predicate(key):
                    flight.detached = True
                    self._forget(flight)

    # -- with the lock held ----------------------------------------------------------------------------------------

    def _new(
        self, key: bytes, loop: asyncio.AbstractEventLoop | None, namespace: str, *, private: bool = False
    ) -> Flight:
        flight = Flight(self, key, loop, namespace, self._clock())
        flight.private = flight.detached = private
        return flight

    def _joinable(self, key: bytes) -> Flight | None:
        flight = self._flights.get(key)
        return None if flight is None or flight.hung else flight

    def _enter(self, flight: Flight) -> Flight | None:
        """Make this the flight that callers join; return the hung one that it replaces."""
        replaced = self._flights.get(flight.key)
        self._flights[flight.key] = flight
        if replaced is not None:
            flight.tolerance = 2 * replaced.tolerance
            self._background.discard(replaced)
        return replaced

    def _forget(self, flight: Flight) -> None:
        # Only this flight: a detached one may have a successor by now.
        if self._flights.get(flight.key) is flight:
            # Not `del`: a signal handler may have removed it in between.
            self._flights.pop(flight.key, None)
