"""The guards that `test_copy_plans` sees missing."""

from typing import Final

from magnus_cache._engine.codec import copy_plans
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/codec/test_copy_plans.py"
OWN: Final = f"{HERE}::test_whatever_a_caller_does_the_next_one_sees_the_original"


@guard(OWN)
def without_copies_of_the_parts_of_a_list() -> None:
    rewrite(copy_plans._Planning._of_list, "if _are_immutable(value):", "if True:")


@guard(OWN)
def without_copies_of_the_rows_of_a_list() -> None:
    rewrite(copy_plans._of_flat_rows, "return lambda: list(map(copy_dict, value))", "return value.copy")


@guard(OWN)
def without_copies_of_what_is_within_rows() -> None:
    rewrite(copy_plans._of_flat_rows, "_are_immutable(row) and _are_immutable(row.values())", "True")


@guard(OWN)
def without_copies_of_the_values_of_a_dict() -> None:
    rewrite(copy_plans._Planning._of_dict, "if not parts:", "if True:")


@guard(OWN)
def without_copies_of_the_parts_of_a_tuple() -> None:
    rewrite(copy_plans._Planning._of_tuple, "item if copy is None else copy()", "item")


@guard(f"{HERE}::test_values_of_other_types_have_no_plan")
def without_refusing_plans_for_what_may_change() -> None:
    rewrite(copy_plans._Planning.of, "if kind not in _MUTABLE and is_immutable(value):", "if kind not in _MUTABLE:")


@guard(f"{HERE}::test_plans_are_bounded")
def without_a_bound_on_plans() -> None:
    put(copy_plans, "_MOST_STEPS", 10**9)
