"""The guards that `test_joining` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import many
from magnus_cache._engine.coherence import epochs
from magnus_cache._engine.coordination import epoch_sync, invalidation
from magnus_cache._engine.flights import callers, flights
from magnus_cache._engine.loading import acquire, loads
from magnus_cache._engine.store import writes
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/flights/test_joining.py"
_ONE_END: Final = f"{HERE}::test_a_call_has_one_end_of_patience_however_often_it_is_turned_away"


@guard(
    f"{HERE}::test_invariant_1_what_a_load_found_is_not_given_to_calls_after_an_invalidation",
    f"{HERE}::test_invariant_1_a_load_serves_the_calls_from_before_an_invalidation_and_no_later_ones",
)
def without_judging_what_was_joined() -> None:
    put(callers.JoiningCaller, "accepts", lambda *_: True)


@guard(f"{HERE}::test_invariant_1_what_a_load_found_is_not_given_to_calls_after_an_invalidation")
def without_the_tags_of_what_was_found() -> None:
    put(loads, "tags_of", lambda _: ())


@guard(f"{HERE}::test_invariant_1_what_a_load_found_is_not_given_to_calls_after_an_invalidation")
def without_noting_the_look_before_it() -> None:
    original = acquire.LeaseAcquirer.acquire

    async def acquire_otherwise(self: Any, request: Any, flight: Any) -> Any:
        got = await original(self, request, flight)
        flight.look.since = self._state.epochs.moment()
        return got

    put(acquire.LeaseAcquirer, "acquire", acquire_otherwise)


@guard(f"{HERE}::test_nobody_joins_a_load_that_is_taking_in_what_it_found")
def without_putting_aside_a_load_that_found_a_value() -> None:
    original = loads.Loads._is_found

    def is_found(self: Any, got: Any, flight: Any) -> bool:
        detach_flight = self.flights.detach_flight
        self.flights.detach_flight = nothing
        try:
            return original(self, got, flight)
        finally:
            self.flights.detach_flight = detach_flight

    put(loads.Loads, "_is_found", is_found)


@guard(f"{HERE}::test_a_fresh_call_takes_nothing_that_a_load_found")
def without_refusing_what_was_found_for_a_fresh_call() -> None:
    put(callers.Look, "found", property(lambda _: False, nothing))


@guard(f"{HERE}::test_a_tag_that_is_invalidated_all_the_time_does_not_serve_calls_one_by_one")
def without_judging_by_the_start_of_each_call() -> None:
    def accepts(self: Any, look: Any) -> bool:
        return not look.overtaken and not self._epochs.overtaken(look.tags, look.since)

    put(callers.JoiningCaller, "accepts", accepts)


@guard(f"{HERE}::test_moments_tell_before_from_after")
def without_doubt_about_what_was_forgotten() -> None:
    put(epochs, "_between", lambda events, since, until: any(since < event < until for event in events))


@guard(f"{HERE}::test_an_error_whose_tags_only_the_value_could_tell_reaches_no_later_calls")
def without_doubt_about_unknown_tags() -> None:
    original = epochs.Epochs.overtaken

    def overtaken(self: Any, tags: Any, *moments: Any) -> bool:
        return original(self, () if tags is None else tags, *moments)

    put(epochs.Epochs, "overtaken", overtaken)


@guard(f"{HERE}::test_invariant_1_a_load_serves_the_calls_from_before_an_invalidation_and_no_later_ones")
def without_noting_announced_invalidations() -> None:
    original = epoch_sync.EpochSync._learned

    def learned(self: Any, *answer: Any) -> None:
        noted, self._epochs.invalidated = self._epochs.invalidated, nothing
        try:
            original(self, *answer)
        finally:
            self._epochs.invalidated = noted

    put(epoch_sync.EpochSync, "_learned", learned)


@guard(f"{HERE}::test_a_load_that_begins_within_an_invalidation_serves_no_later_calls[tags]")
def without_noting_an_invalidation_when_it_is_done() -> None:
    def outdated(self: Any, name: bytes) -> None:
        if (prefix := self.epochs.prefix_of(name)) is not None:
            self.forget_prefix(prefix)
            return
        self.epochs.invalidated((name,))
        if (mark := self.epochs.stamp_of(name)) is not None:
            self.memory.invalidate_tag(mark)

    put(invalidation.Invalidation, "outdated", outdated)


@guard(f"{HERE}::test_a_load_that_begins_within_an_invalidation_serves_no_later_calls[delete]")
def without_putting_loads_aside_after_a_delete() -> None:
    def forget_names(self: Any, names: Any) -> None:
        for name in names:
            self.flights.detach(name)
            self.leases.invalidated(name)
            self.memory.invalidate(name)

    put(invalidation.Invalidation, "forget_names", forget_names)


@guard(
    f"{HERE}::test_a_load_that_begins_within_an_invalidation_serves_no_later_calls[clear]",
    f"{HERE}::test_a_load_that_begins_within_an_invalidation_serves_no_later_calls[glob]",
)
def without_putting_loads_aside_after_a_clear() -> None:
    def forget(self: Any, scope: Any, covered: Any) -> None:
        self.flights.detach_matching(covered)
        self.leases.invalidated_matching(covered)
        self.memory.clear_matching(scope)

    put(invalidation.Invalidation, "_forget", forget)


@guard(f"{HERE}::test_a_load_that_found_what_a_write_replaces_serves_no_later_calls")
def without_putting_loads_aside_after_a_write() -> None:
    original = writes.Writes.write

    class Flights:
        detach = staticmethod(nothing)

    class State:
        def __init__(self, state: Any) -> None:
            self._state = state
            self.flights = Flights()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._state, name)

    def undetached(self: Any, *args: Any, **more: Any) -> Any:
        again = type(self).__new__(type(self))
        again.__dict__.update(self.__dict__, state=State(self.state))
        return original(again, *args, **more)

    put(writes.Writes, "write", undetached)


@guard(f"{HERE}::test_an_invalidation_that_a_lost_connection_did_not_announce_counts_for_those_who_joined")
def without_doubt_about_what_was_not_announced() -> None:
    original = acquire.LeaseAcquirer.overtaken

    async def overtaken(self: Any, ref: Any, tags: Any, known: Any, fence: Any) -> bool:
        if fence.lease is not None:
            fence.flight.look.known = fence.lease.connection.known
        return await original(self, ref, tags, known, fence)

    put(acquire.LeaseAcquirer, "overtaken", overtaken)


@guard(f"{HERE}::test_an_invalidation_that_a_lost_connection_did_not_announce_counts_for_those_who_joined")
def without_comparing_the_epochs_of_a_load_with_those_at_its_end() -> None:
    rewrite(acquire.LeaseAcquirer.overtaken, "lowest_valid <= fence.epoch", "True")


@guard(f"{HERE}::test_what_a_batch_loader_leaves_out_is_left_out_for_all_calls_with_that_loader")
def without_sharing_what_is_left_out() -> None:
    put(many, "_source", lambda _: object())


@guard(f"{HERE}::test_another_function_is_asked_for_what_the_first_leaves_out")
def without_telling_decorated_functions_apart() -> None:
    put(many, "_source", lambda _: "the same")


@guard(f"{HERE}::test_a_call_has_one_deadline_however_often_it_is_turned_away")
def without_a_deadline_for_who_is_turned_away() -> None:
    put(flights, "monotonic", lambda: 0.0)


@guard(_ONE_END)
def without_an_end_for_calls_that_are_turned_away() -> None:
    original = flights.Flights._is_final
    put(flights.Flights, "_is_final", lambda self, *args: original(self, *args[:4]))
