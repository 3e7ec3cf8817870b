"""The guards that `test_shared_objects` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import call_memos
from magnus_cache._engine.flights import callers
from magnus_cache._engine.loading import loads
from magnus_cache._engine.memory import footprint
from magnus_cache._engine.store import reads, reads_many, values
from magnus_cache._engine.store.values import Coding
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/api/test_shared_objects.py"
TABLE: Final = f"{HERE}::test_only_those_who_share_get_a_shared_object"
AGAIN: Final = f"{HERE}::test_a_local_object_does_not_hide_the_value_in_redis"
LOCAL: Final = f"{HERE}::test_an_object_of_a_local_namespace_stays_there"
LARGE: Final = f"{HERE}::test_a_large_shared_object_is_copied_in_turns"


@guard(TABLE)
def without_asking_who_shares_an_object() -> None:
    put(values, "may_share", lambda namespace, entry: True)


@guard(TABLE)
def without_noting_that_a_decoded_value_is_shared() -> None:
    rewrite(footprint.keep_decoded, "shared=shared", "shared=False")


@guard(TABLE)
def without_asking_who_shares_what_is_remembered() -> None:
    put(call_memos, "may_share", lambda namespace, entry: True)


@guard(TABLE)
def without_copies_of_shared_objects_without_a_payload() -> None:
    rewrite(Coding.payload_steps, "payload is not None or isinstance(entry, ReferenceEntry)", "True")


@guard(LOCAL)
def without_keeping_local_objects_from_others_who_share() -> None:
    rewrite(values.may_share, "not isinstance(entry, ReferenceEntry)", "True")


@guard(AGAIN)
def without_reading_again_what_memory_has_for_others_only() -> None:
    put(reads, "may_have", lambda ref, entry: True)


@guard(AGAIN)
def without_reading_again_what_memory_has_for_others_among_many() -> None:
    put(reads_many, "may_have", lambda ref, entry: True)


@guard(f"{HERE}::test_a_value_that_is_remembered_does_not_become_a_shared_object")
def without_another_entry_for_a_shared_value() -> None:
    def keep(memory: Any, name: bytes, entry: Any, value: Any, *, shared: bool) -> None:
        entry.value, entry.payload = value, None

    put(values, "keep_decoded", keep)


@guard(LARGE)
def without_turns_for_copies_of_shared_objects() -> None:
    rewrite(Coding.is_large, "codec.is_heavy(entry.value) and may_have(ref, entry)", "False")


@guard(LARGE)
def without_turns_for_copies_of_shared_objects_with_a_payload() -> None:
    rewrite(Coding.is_large, "payload = entry.encoded", "return False")


@guard(f"{HERE}::test_who_joins_the_load_of_a_local_object_gets_none")
def without_telling_loads_of_local_objects_apart() -> None:
    rewrite(callers.JoiningCaller.accepts, "(look.local and not self._local)", "False")


@guard(f"{HERE}::test_callers_of_several_policies_that_wait_for_one_value_get_what_theirs_says")
def without_a_payload_of_a_shared_object_for_waiting_callers() -> None:
    rewrite(loads.Loads._from_entry, "payload is None and entry.shared", "False")
