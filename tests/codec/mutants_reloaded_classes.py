"""The guards that `test_reloaded_classes` sees missing."""

from typing import Final

from magnus_cache._engine.codec import registry
from magnus_cache._engine.memory import reload
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/codec/test_reloaded_classes.py"


@guard(f"{HERE}::test_what_was_kept_comes_back_as_the_new_class")
def without_renewing_values_after_a_reload() -> None:
    put(reload.ReloadingCache, "types_replaced", nothing)


@guard(f"{HERE}::test_under_the_lock_nothing_of_the_program_runs")
def without_leaving_renewals_to_those_who_ask() -> None:
    put(reload, "engaged", lambda: False)


@guard(
    f"{HERE}::test_an_annotation_from_before_a_reload_does_not_bring_the_old_class_back",
    f"{HERE}::test_a_class_of_another_module_or_scope_does_not_take_over",
)
def without_a_look_whether_a_class_is_the_present_one() -> None:
    put(registry, "_is_current", lambda cls: True)


@guard(f"{HERE}::test_objects_of_local_namespaces_stay_the_very_objects")
def without_keeping_local_objects_as_they_are_after_a_reload() -> None:
    put(reload, "_renewable", lambda _: True)
