"""The guards that `test_loader_threads` sees missing."""

import asyncio
from typing import Any, Final

from magnus_cache._engine.coordination import leases
from magnus_cache._engine.flights import flights, registry
from magnus_cache._engine.loading import stale as refreshes
from magnus_cache._engine.runtime import loader_slots, workers
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/loading/test_loader_threads.py"

reset = loader_slots.LoaderSlots.reset


@guard(HERE)
def without_making_room_while_waiting() -> None:
    put(workers.Job, "yield_slot", nothing)
    put(workers.Job, "take_slot", nothing)


@guard(HERE)
def without_places_for_each_namespace() -> None:
    original = workers.LoaderThreads._in_thread
    put(workers.LoaderThreads, "_in_thread", lambda self, loader, _: original(self, loader, ""))


@guard(HERE)
def without_counting_threads_to_their_end() -> None:
    original = workers.LoaderThreads._in_thread

    async def in_thread(self: Any, loader: Any, namespace: str) -> Any:
        jobs: list[Any] = []
        made = workers.Job
        put(workers, "Job", lambda *args: jobs.append(made(*args)) or jobs[-1])
        try:
            return await original(self, loader, namespace)
        except asyncio.CancelledError:
            jobs[-1].end()
            put(jobs[-1].__class__, "end", nothing)
            raise
        finally:
            put(workers, "Job", made)

    put(workers.LoaderThreads, "_in_thread", in_thread)


@guard(HERE)
def without_asking_for_a_place_first() -> None:
    original = flights.Flights._join
    put(flights.Flights, "_join", lambda *args, **options: original(*args, **{**options, "in_background": False}))


@guard(HERE)
def without_leaving_alone_what_was_given_up() -> None:
    put(refreshes.StalePolicy, "_count_timeout", nothing)


@guard(HERE)
def without_an_age_of_loads() -> None:
    put(registry.FlightRegistry, "detach_hung", nothing)


@guard(HERE)
def without_giving_back_the_lease_of_what_hangs() -> None:
    put(leases.Leases, "release_hung", nothing)


@guard(HERE)
def without_more_time_for_the_next_attempt() -> None:
    original = registry.FlightRegistry._enter

    def enter(self: Any, flight: Any) -> Any:
        replaced = original(self, flight)
        flight.tolerance = 2.0
        return replaced

    put(registry.FlightRegistry, "_enter", enter)


@guard(HERE)
def without_cancelling_what_was_replaced() -> None:
    put(flights.Flights, "_cancel_unwanted", nothing)


@guard(HERE)
def without_an_end_of_renewals() -> None:
    original = leases.Lease.__init__

    def init(self: Any, *args: Any) -> None:
        original(self, *args)
        self._left = 1 << 30

    put(leases.Lease, "__init__", init)


@guard(HERE)
def without_leaving_the_exit_to_the_leader() -> None:
    original = flights.Flights._run

    async def fly(self: Any, flight: Any, load: Any) -> None:
        raised: list[SystemExit] = []

        async def loading(flight: Any) -> Any:
            try:
                return await load(flight)
            except SystemExit as error:
                raised.append(error)
                raise

        await original(self, flight, loading)
        if raised:
            raise raised[0]

    put(flights.Flights, "_run", fly)


@guard(f"{HERE}::test_threads_are_bounded_in_all_and_a_source_that_works_finds_one")
def without_leaving_places_for_other_namespaces() -> None:
    def has_room(self: Any, lane: Any) -> bool:
        return bool(lane.running < self._most and self.running < self._most_of_all)

    put(loader_slots.LoaderSlots, "_has_room", has_room)


@guard(
    f"{HERE}::test_threads_are_bounded_in_all_and_a_source_that_works_finds_one",
    f"{HERE}::test_threads_of_event_loops_that_have_ended_count_as_well",
)
def without_a_bound_on_all_threads() -> None:
    put(loader_slots.LoaderSlots, "_has_room", lambda self, lane: lane.running < self._most)


@guard(f"{HERE}::test_a_forked_child_has_none_of_the_threads")
def without_new_places_in_a_forked_child() -> None:
    put(loader_slots.LoaderSlots, "reset", lambda self: None if hasattr(self, "running") else reset(self))
