"""The guards that `test_standard_types` sees missing."""

from typing import Final

from magnus_cache._engine.codec import immutable, named_tuples, unregistered
from magnus_cache._engine.loading import results
from tests.support.guards import guard, put

HERE: Final = "tests/codec/test_standard_types.py"


@guard(
    f"{HERE}::test_the_first_caller_gets_what_the_later_ones_get",
    "tests/codec/test_rows.py::test_the_first_caller_gets_what_the_later_ones_get",
)
def without_the_same_kind_for_the_first_caller() -> None:
    put(results.codec, "changed_so_far", lambda: 0)


@guard(f"{HERE}::test_immutable_ones_are_shared_between_callers")
def without_telling_named_tuples_of_the_program_from_those_made_anew() -> None:
    put(immutable, "is_rebuilt", lambda cls: hasattr(cls, "_fields"))


@guard(f"{HERE}::test_a_named_tuple_that_would_lose_something_is_refused")
def without_looking_for_methods_of_a_named_tuple() -> None:
    put(named_tuples, "_PLAIN", named_tuples._PLAIN | {"half"})


@guard(f"{HERE}::test_a_named_tuple_that_was_copied_is_stored")
def without_knowing_what_copying_adds_to_a_named_tuple() -> None:
    put(named_tuples, "_PLAIN", named_tuples._PLAIN - {"__slotnames__"})


@guard(f"{HERE}::test_moments_keep_the_zones_that_libraries_gave_them")
def without_the_zones_of_libraries() -> None:
    put(unregistered, "encode_zone", lambda value, cls: None)
