"""The guards that `test_flights` sees missing."""

from typing import Any, Final

from magnus_cache._engine.flights import flights
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/flights/test_flights.py"


@guard(HERE)
def without_the_identity_of_a_flight() -> None:
    put(flights.Flights, "_forget", lambda self, flight: self._flights.pop(flight.key, None))


@guard(HERE)
def without_waiter_counts() -> None:
    original = flights.Flights._leave

    def leave(self: Any, ticket: Any) -> None:
        original(self, ticket)
        if ticket.flight.task is not None and not ticket.flight.done:
            ticket.flight.task.cancel()

    put(flights.Flights, "_leave", leave)


@guard(f"{HERE}::test_a_load_that_has_ended_leaves_nothing_to_the_collector")
def without_freeing_the_task_of_a_load_that_has_ended() -> None:
    rewrite(flights.Flights._finished, "flight.task = None", "pass")
