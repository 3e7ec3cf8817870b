"""The guards that `test_changes_faults` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import changes
from magnus_cache._engine.redis import watch
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_changes_faults.py"


@guard(
    f"{HERE}::test_a_cut_connection_is_a_gap_and_then_all_is_told_again",
    f"{HERE}::test_a_killed_connection_is_a_gap",
)
def without_a_gap_after_a_lost_connection_of_the_watch() -> None:
    put(watch.Watch, "cut", lambda self, connection: self._watched.pop(connection, None) and self._wake.set())


@guard(f"{HERE}::test_a_flush_is_a_gap")
def without_a_gap_after_a_flush() -> None:
    put(watch.Watch, "flushed", nothing)


@guard(f"{HERE}::test_a_moved_slot_is_a_gap_and_its_new_owner_is_watched")
def without_a_gap_after_slots_have_moved() -> None:
    put(watch.Watch, "remapped", lambda self: self._wake.set())


@guard(f"{HERE}::test_a_black_hole_is_found_although_nothing_happens")
def without_heartbeats_of_an_idle_watch() -> None:
    put(watch.Watch, "beat", nothing)


@guard(f"{HERE}::test_who_begins_in_an_outage_is_told_a_gap_when_redis_is_there")
def without_a_gap_for_who_begins_in_an_outage() -> None:
    def begin_late(self: Any, begin: Any) -> None:
        del self._starting[begin]
        begin(False)

    put(watch.Watch, "_begin_late", begin_late)


@guard(f"{HERE}::test_who_begins_in_an_outage_is_told_a_gap_when_redis_is_there")
def without_telling_what_this_process_does_in_an_outage() -> None:
    put(changes.Changes, "_is_only_here", lambda self, name: self._make is None)


@guard(f"{HERE}::test_a_cut_connection_is_a_gap_and_then_all_is_told_again")
def without_waiting_until_values_can_be_read_again() -> None:
    put(changes.Changes, "retry_now", lambda self: True)


@guard(f"{HERE}::test_another_primary_of_sentinel_is_watched")
def without_a_second_gap_after_the_bound() -> None:
    original = watch.Watch._complete

    def complete(self: Any) -> None:
        original(self)
        if self._again is not None:
            self._again.cancel()

    put(watch.Watch, "_complete", complete)
