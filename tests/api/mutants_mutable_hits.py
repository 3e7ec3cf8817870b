"""The guards that `test_mutable_hits` sees missing."""

from typing import Any, Final

from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.reload import ReloadingCache
from magnus_cache._engine.store import planned
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_mutable_hits.py"


@guard(f"{HERE}::test_each_caller_has_a_copy_of_its_own")
def without_keeping_the_value_that_is_copied_back() -> None:
    def keep(memory: Any, name: bytes, entry: Any, value: Any) -> Any:
        plan = planned.codec.plan_for(value)
        memory.replace(name, entry, entry.planned(plan, entry.size))
        return value

    from magnus_cache._engine.store import values

    put(values, "keep_planned", keep)


@guard(f"{HERE}::test_what_is_kept_for_copies_is_counted")
def without_counting_what_is_kept_for_copies() -> None:
    real = Entry.planned
    put(Entry, "planned", lambda self, plan, _: real(self, plan, self.size))


@guard(f"{HERE}::test_a_value_without_room_for_copies_is_decoded")
def without_a_look_whether_there_is_room_for_copies() -> None:
    put(planned, "has_room", lambda memory, size: True)


@guard(f"{HERE}::test_a_class_that_is_defined_again_is_the_one_that_copies_are_of")
def without_dropping_plans_for_values_of_older_classes() -> None:
    real = ReloadingCache._is_current

    def is_current(self: Any, name: bytes, entry: Any) -> bool:
        plan, current = entry.value, real(self, name, entry)
        if entry.payload is not None:
            entry.value = plan
        return current

    put(ReloadingCache, "_is_current", is_current)
