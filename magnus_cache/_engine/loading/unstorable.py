"""Results that cannot be stored: callers get them all the same; they are counted, and logged once.

A cache must not turn a successful load into an error. All waiting callers get the value, each a copy of its own if one
can be made. The next call loads again. Processes that wait for the lease learn at once that no value will come (see
`Leases.release`), and load for themselves.
"""

from functools import partial
from typing import Any, Final

from magnus_cache._engine.codec.copies import Copier
from magnus_cache._engine.codec.markers import kind_of, type_name
from magnus_cache._engine.codec.refusals import explained
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.flights.registry import FlightRegistry
from magnus_cache._engine.loading.failures import function_name
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.footprint import footprint
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime import observers
from magnus_cache._engine.runtime.log import say
from magnus_cache._engine.store.writes import NOT_STORED
from magnus_cache._engine.store.writes_many import ManyWrites
from magnus_cache.errors import CacheEncodeError, CacheValueTooLargeError

__all__ = ["Unstorable"]

_MOST_REPORTED: Final = 1_000
"""Pairs of function and type that are logged; further ones are only counted."""

_COPIED_HERE: Final = 1_000
"""Parts that may be copied on the event loop: about a millisecond."""

_SEARCHED_HERE: Final = 65_536
"""Bytes of a value that may be searched on the event loop for the part that cannot be stored."""


def _named(options: LoadOptions) -> str:
    return "a loader" if options.function is None else function_name(options.function)


def _size(value: Any) -> int:
    try:
        return footprint(value, 0)
    except Exception:  # noqa: BLE001  # methods of the value's own classes, which may do anything
        return 0


class Unstorable:
    """Handles the results of one cache that cannot be stored.

    :param flights: the loads under way.
    """

    def __init__(self, flights: FlightRegistry, writes: ManyWrites) -> None:
        self._flights = flights
        self._writes = writes
        self._off_loop = writes.off_loop
        self._reported: dict[tuple[str, str], object] = {}

    async def refused(
        self, request: LoadRequest[Any], value: Any, error: CacheEncodeError, fence: Fence
    ) -> CacheEncodeError:
        """Count a result, log the first of its function and type, and return the error for strict callers."""
        ref = request.ref
        if fence.fresh and not fence.overtaken:
            # A fresh load replaces the existing value: later callers must not get that one.
            await self._writes.remove((ref,))
        if fence.lease is not None:
            fence.lease.close(unstorable=True)
        ref.counters.unstorable += 1
        function, strict, state = _named(request.options), request.strict, self._writes.state
        state.recorder.add(ref.name, NOT_STORED, None, "cannot be stored")
        if state.observers.active:
            state.observers.about(observers.Unstorable, ref, function, str(error))
        kind = "size" if isinstance(error, CacheValueTooLargeError) else error.type_name
        first = not strict and self._is_first(function, kind)
        if not (first or strict):
            return error
        work = partial(explained, value, error, "result", hidden=ref.namespace.seal)
        if ref.namespace.local or ref.namespace.codec is not None:
            # Which part is to blame is not known.
            work = partial(CacheEncodeError, error.type_name, error.problem, "result")
        error = await self._off_loop(work, _size(value), _SEARCHED_HERE)
        if first:
            say(
                f"{function} returned a result that is not cached: {error}. Callers get the result, and each call "
                "loads again; strict=True makes this an error"
            )
        return error

    async def copies(self, value: Any, options: LoadOptions, flight: Flight) -> list[Any]:
        """Return copies for all waiting callers but one; an empty list if they must share the value.

        The load is detached first: a caller that joined later would find no copy.
        """
        self._flights.detach_flight(flight)
        # A thread that runs the load itself is not counted as waiting.
        count = flight.waiter_count - (flight.loop is not None)
        if count <= 0:
            return []
        copier = Copier(value)
        work = partial(copier.copies, count)
        copies: list[Any] | None = await self._off_loop(work, copier.parts * count, _COPIED_HERE)
        if copies is None or not copier.whole:
            self._report_sharing(value, options)
        return copies or []

    def _report_sharing(self, value: Any, options: LoadOptions) -> None:
        function, name = _named(options), type_name(kind_of(value))
        if self._is_first(function, "shared"):
            say(
                f"callers who wait for the same call of {function} share its result, or parts of it: a {name} that "
                "can neither be stored nor copied in full. They must not change it"
            )

    def _is_first(self, function: str, kind: str) -> bool:
        """Return whether to log something now; True for only one of several threads."""
        if len(self._reported) >= _MOST_REPORTED:
            return False
        mine = object()
        return self._reported.setdefault((function, kind), mine) is mine
