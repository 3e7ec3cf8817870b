"""Guards of loads whose results cannot be stored, and names; see `mutants`."""

from typing import Any, Final

from magnus_cache._engine.api import asynchronous, blocking, cached, set_many
from magnus_cache._engine.codec import copies, paths
from magnus_cache._engine.coordination import lease
from magnus_cache._engine.loading import acquire_local, batch, loaded_value, loads, unstorable
from magnus_cache._engine.loading import results as judging
from magnus_cache._engine.memory import entry
from magnus_cache._engine.policy import options
from magnus_cache._engine.redis import scripts
from magnus_cache._engine.store import clears, local_values, local_writes, writes
from tests.support.guards import edit, guard, nothing, put

LOCAL: Final = "tests/store/test_local.py"
UNSTORABLE: Final = "tests/loading/test_unstorable.py"


@guard(f"{UNSTORABLE}::test_those_who_joined_get_objects_of_their_own")
def without_copies_of_what_cannot_be_stored() -> None:
    put(copies.Copier, "copies", lambda *_: None)


@guard(f"{UNSTORABLE}::test_those_who_joined_get_objects_of_their_own")
def without_a_payload_of_what_is_too_large() -> None:
    original = loaded_value.LoadedValue.__init__

    def init(self: Any, value: Any, payload: Any, refusal: Any = None, copies: Any = ()) -> None:
        original(self, value, None if refusal is not None else payload, refusal, copies)

    put(loaded_value.LoadedValue, "__init__", init)


@guard(f"{UNSTORABLE}::test_what_cannot_be_copied_is_shared_and_that_is_said")
def without_sharing_what_must_not_be_copied() -> None:
    original = copies._inner
    put(copies, "_inner", lambda part: () if (inner := original(part)) is copies._OPAQUE else inner)


@guard(f"{UNSTORABLE}::test_other_processes_load_at_once_and_at_the_same_time")
def without_a_word_to_those_who_wait_for_what_cannot_be_stored() -> None:
    edit(scripts._RELEASE, "ARGV[2] ~= ''", "false")


@guard(f"{UNSTORABLE}::test_a_later_caller_gets_the_lease_and_stores")
def without_leases_for_callers_after_what_could_not_be_stored() -> None:
    edit(scripts._ACQUIRE, "(passed and ARGV[5] == '')", "false")
    edit(scripts._ACQUIRE, "elseif passed", "elseif passed and ARGV[5] == '' or passed")


@guard(f"{UNSTORABLE}::test_a_refresh_leaves_nothing_older_behind")
def without_removing_what_a_result_was_to_replace() -> None:
    original = unstorable.Unstorable.refused

    async def refused(self: Any, ref: Any, value: Any, rule: Any, error: Any, fence: Any) -> Any:
        fence.fresh = False
        return await original(self, ref, value, rule, error, fence)

    put(unstorable.Unstorable, "refused", refused)


@guard(f"{UNSTORABLE}::test_a_refresh_for_nobody_is_not_tried_all_the_time")
def without_a_pause_after_a_refresh_that_could_not_be_stored() -> None:
    put(loads.RetryThrottle, "failed", lambda *_: None)


@guard(f"{UNSTORABLE}::test_each_function_and_each_type_is_reported")
def without_telling_functions_apart_in_reports() -> None:
    put(unstorable, "loader_name", lambda _: "a function")


@guard(f"{UNSTORABLE}::test_no_value_is_in_a_message")
def without_hiding_keys_that_are_no_plain_ones() -> None:
    put(paths, "_shown", repr)


@guard(f"{LOCAL}::test_what_a_peer_invalidates_is_gone")
def without_hidden_tags_of_local_keys() -> None:
    for module in (batch, judging, loads, local_writes, writes):
        put(module, "tagged", lambda _address, tags: tags)


@guard(f"{LOCAL}::test_what_was_invalidated_unheard_is_told_by_its_epoch")
def without_epochs_of_local_values() -> None:
    put(entry.TaggedEntry, "epoch", property(lambda _: 1 << 62, nothing))


@guard(f"{LOCAL}::test_what_was_invalidated_unheard_is_told_by_its_epoch")
def without_judging_a_local_load_when_it_ends() -> None:
    async def fill(self: Any, ref: Any, held: Any, ttl: float, fence: Any) -> Any:
        return await _original_fill(self, ref, held._replace(epoch=1 << 62), ttl, fence)

    put(local_writes.LocalWrites, "fill", fill)


_original_fill: Final = local_writes.LocalWrites.fill


@guard(f"{LOCAL}::test_a_load_that_this_process_overtakes_is_not_kept_and_not_joined")
def without_the_place_of_a_local_object() -> None:
    async def fill(self: Any, ref: Any, held: Any, ttl: float, fence: Any) -> bool:
        fence.lease.fill, fence.lease.void = self._state.memory.reserve(ref.name, anew=True), False
        fence.since = self._state.epochs.moment()
        return await _original_fill(self, ref, held._replace(epoch=1 << 62), ttl, fence)

    put(local_writes.LocalWrites, "fill", fill)
    put(lease.Lease, "void", property(lambda _: False, lambda *_: None))


@guard(f"{LOCAL}::test_a_long_load_is_joined_for_as_long_as_it_takes")
def without_a_connection_before_a_local_load() -> None:
    put(loads.Loads, "_is_first", lambda *_: False)


@guard(f"{LOCAL}::test_a_load_outlives_a_lost_connection")
def without_callers_who_join_a_local_load_after_a_lost_connection() -> None:
    original = acquire_local.LocalWatch.__init__

    def init(self: Any, owner: Any, wire: Any, *more: Any) -> None:
        original(self, owner, wire, *more)
        self.trust = wire.trust

    put(acquire_local.LocalWatch, "__init__", init)


@guard(f"{LOCAL}::test_a_glob_clears_whole_local_namespaces_elsewhere")
def without_globs_that_reach_local_values_elsewhere() -> None:
    put(clears.Invalidator, "_local_controls", lambda *_: [])


@guard(f"{LOCAL}::test_a_generator_is_not_kept")
def without_telling_generators_from_other_objects() -> None:
    put(local_values, "_ONCE", ())


@guard(f"{LOCAL}::test_what_is_invalidated_in_an_outage_reaches_the_others_later")
def without_a_record_of_local_deletes_in_an_outage() -> None:
    put(local_writes.LocalWrites, "_unsure", lambda *_: None)


@guard(f"{LOCAL}::test_a_failing_load_leaves_nothing", f"{LOCAL}::test_a_cancelled_load_leaves_nothing")
def without_giving_back_the_place_of_a_local_load() -> None:
    put(acquire_local.LocalWatch, "_close", lambda self, *_: self._owner.ended(self))


@guard(f"{LOCAL}::test_the_hidden_tag_is_nobody_elses")
def without_refusing_hidden_tags_of_callers() -> None:
    for module in (asynchronous, blocking, cached, options, set_many):
        put(module, "check_tags", lambda tags: tuple(tags))
