"""The guards that `test_history` sees missing."""

from typing import Final

from magnus_cache._engine.api import atomic
from magnus_cache._engine.coordination import fleet_log
from magnus_cache._engine.coordination.acts import Acts
from magnus_cache._engine.coordination.fleet_log import FleetLog
from magnus_cache._engine.coordination.happenings import Happenings
from magnus_cache._engine.coordination.life_cycle import LifeCycle
from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.runtime import recorder
from magnus_cache._engine.runtime.recorder import Recorder
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/api/test_history.py"


@guard(f"{HERE}::test_what_is_written_in_one_step")
def without_recording_what_is_written_in_one_step() -> None:
    put(atomic, "_record", nothing)


@guard(f"{HERE}::test_the_recorder_is_bounded_and_knows_what_came_last")
def without_a_bound_on_the_keys_of_the_recorder() -> None:
    rewrite(Recorder.add, "if len(young) >= self._most:", "if not self._most:")


@guard(f"{HERE}::test_the_recorder_is_bounded_and_knows_what_came_last")
def without_the_older_half_of_the_recorder() -> None:
    rewrite(Recorder.add, "self._old, self._young = young, (young := {})", "self._young = young = {}")


@guard(f"{HERE}::test_the_last_things_of_one_key_are_known")
def without_a_bound_on_what_is_recorded_of_one_key() -> None:
    rewrite(Recorder.add, "if depth > _DEEP:", "if False:")


@guard(f"{HERE}::test_the_last_things_of_one_key_are_known")
def without_keeping_the_newer_half_of_what_is_recorded_of_one_key() -> None:
    rewrite(Recorder.add, "before, depth = _newest(before)", "before, depth = None, 1")


@guard(f"{HERE}::test_many_at_a_time_are_bounded")
def without_a_bound_on_the_names_of_a_recorded_batch() -> None:
    put(recorder, "_IN_BATCH", 10_000)


@guard(f"{HERE}::test_a_forked_child_knows_nothing_of_what_its_parent_did")
def without_forgetting_the_past_of_the_parent_after_a_fork() -> None:
    original = Recorder.reset

    def reset(self: Recorder) -> None:
        if not hasattr(self, "_young"):
            original(self)

    put(Recorder, "reset", reset)


@guard(f"{HERE}::test_the_call_site_of_what_no_code_waits_for_is_not_known")
def without_knowing_the_loop_from_the_program() -> None:
    put(recorder, "_LIBRARY", ())


@guard(f"{HERE}::test_a_cache_that_is_closed_at_once_has_told_what_it_did")
def without_publishing_at_the_end_what_was_invalidated() -> None:
    rewrite(LifeCycle._last_report, "await self.fleet_log.published(connection)", "pass")


@guard(f"{HERE}::test_a_cache_that_is_closed_at_once_has_told_what_it_did")
def without_noting_deletes_for_the_fleet() -> None:
    put(FleetLog, "note", nothing)


@guard(f"{HERE}::test_an_invalidation_carries_nothing_of_this")
def without_waiting_for_further_notes_to_publish() -> None:
    put(fleet_log, "_DELAY", 0)
    put(fleet_log, "_PAUSE", 0)


@guard(f"{HERE}::test_nonsense_in_the_log_is_passed_over")
def without_a_look_at_what_others_have_published() -> None:
    rewrite(fleet_log._record, "if {*map(type, texts)} != {str} or", "if False and")


@guard(f"{HERE}::test_the_log_of_the_fleet_is_a_ring")
def without_a_bound_on_the_log_of_the_fleet() -> None:
    edit(fleet_keys._NOTE, "% tonumber(ARGV[1])", "")


@guard(f"{HERE}::test_the_log_of_the_fleet_is_a_ring")
def without_an_end_of_the_log_of_the_fleet() -> None:
    edit(fleet_keys._NOTE, "redis.call('EXPIRE', KEYS[1], ARGV[2])", "")


@guard(f"{HERE}::test_what_this_process_does_itself_is_not_told_as_a_change_elsewhere")
def without_knowing_own_deletes_when_they_are_announced() -> None:
    put(Happenings, "_is_news", lambda self, name: True)


@guard(f"{HERE}::test_a_key_is_loaded_read_and_deleted")
def without_recording_deletes() -> None:
    rewrite(Acts.deleting, 'parts.recorder.add_many(names, "deleted", site)', "pass")


@guard(f"{HERE}::test_a_value_that_is_not_stored_tells_why")
def without_recording_why_a_value_is_not_stored() -> None:
    from magnus_cache._engine.store.writes import Writes

    rewrite(Writes.fill, "self.state.recorder.add(ref.name, NOT_STORED, None, reason)", "pass")
