"""The guards that `test_unstorable` sees missing."""

from typing import Any, Final

from magnus_cache._engine.codec import copies, paths
from magnus_cache._engine.loading import loaded_value, loads, unstorable
from magnus_cache._engine.redis import scripts
from tests.support.guards import edit, guard, put

HERE: Final = "tests/loading/test_unstorable.py"


@guard(f"{HERE}::test_those_who_joined_get_objects_of_their_own")
def without_copies_of_what_cannot_be_stored() -> None:
    put(copies.Copier, "copies", lambda *_: None)


@guard(f"{HERE}::test_those_who_joined_get_objects_of_their_own")
def without_a_payload_of_what_is_too_large() -> None:
    original = loaded_value.LoadedValue.__init__

    def init(self: Any, value: Any, payload: Any, refusal: Any = None, copies: Any = (), **more: Any) -> None:
        original(self, value, None if refusal is not None else payload, refusal, copies, **more)

    put(loaded_value.LoadedValue, "__init__", init)


@guard(f"{HERE}::test_what_cannot_be_copied_is_shared_and_that_is_said")
def without_sharing_what_must_not_be_copied() -> None:
    original = copies._inner
    put(copies, "_inner", lambda part: () if (inner := original(part)) is copies._OPAQUE else inner)


@guard(f"{HERE}::test_other_processes_load_at_once_and_at_the_same_time")
def without_a_word_to_those_who_wait_for_what_cannot_be_stored() -> None:
    edit(scripts._RELEASE, "ARGV[2] ~= ''", "false")


@guard(f"{HERE}::test_a_later_caller_gets_the_lease_and_stores")
def without_leases_for_callers_after_what_could_not_be_stored() -> None:
    edit(scripts._ACQUIRE, "(passed and ARGV[5] == '')", "false")
    edit(scripts._ACQUIRE, "elseif passed", "elseif passed and ARGV[5] == '' or passed")


@guard(f"{HERE}::test_a_refresh_leaves_nothing_older_behind")
def without_removing_what_a_result_was_to_replace() -> None:
    original = unstorable.Unstorable.refused

    async def refused(self: Any, wanted: Any, value: Any, error: Any, fence: Any) -> Any:
        fence.fresh = False
        return await original(self, wanted, value, error, fence)

    put(unstorable.Unstorable, "refused", refused)


@guard(f"{HERE}::test_a_refresh_for_nobody_is_not_tried_all_the_time")
def without_a_pause_after_a_refresh_that_could_not_be_stored() -> None:
    put(loads.RetryThrottle, "failed", lambda *_: None)


@guard(f"{HERE}::test_each_function_and_each_type_is_reported")
def without_telling_functions_apart_in_reports() -> None:
    put(unstorable, "function_name", lambda _: "a function")


@guard(f"{HERE}::test_no_value_is_in_a_message")
def without_hiding_keys_that_are_no_plain_ones() -> None:
    put(paths, "_shown", repr)
