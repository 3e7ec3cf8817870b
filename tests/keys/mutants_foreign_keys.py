"""The guards that `test_foreign_keys` sees missing."""

from collections.abc import Iterator
from typing import Any, Final

from magnus_cache._engine.keys import arrays, descriptions, templates
from magnus_cache._engine.keys import libraries as foreign
from magnus_cache._engine.keys.descriptions import Raw
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/keys/test_foreign_keys.py"


@guard(f"{HERE}::test_a_scalar_is_the_key_of_the_plain_value_that_it_equals")
def without_plain_values_for_scalars_of_numpy() -> None:
    del foreign._DESCRIBERS["numpy.generic"]


@guard(f"{HERE}::test_what_may_hold_more_than_is_read_is_refused")
def without_a_look_for_subclasses() -> None:
    put(foreign, "only", lambda value, *_: descriptions.library_name(type(value)))
    put(arrays, "only", lambda value, *_: descriptions.library_name(type(value)))


@guard(f"{HERE}::test_arrays_and_frames_that_differ_are_different_keys")
def without_the_types_and_shapes_of_arrays() -> None:
    numbers = arrays._numbers

    def bare(values: Any, room: Any) -> Iterator[Any]:
        return (part for part in numbers(values, room) if not isinstance(part, tuple))

    put(arrays, "_numbers", bare)


@guard(f"{HERE}::test_arrays_and_frames_that_differ_are_different_keys")
def without_the_lengths_of_texts() -> None:
    put(arrays, "_little", lambda _: b"")


@guard(f"{HERE}::test_what_lies_between_the_values_of_an_array_makes_no_difference")
def without_a_look_past_what_lies_between_values() -> None:
    def numbers(values: Any, _: Any) -> Iterator[Any]:
        yield (str(values.dtype), *values.shape)
        yield Raw(values.tobytes())

    put(arrays, "_numbers", numbers)


@guard(f"{HERE}::test_more_than_the_bound_is_refused_with_the_remedies")
def without_a_bound_on_content() -> None:
    put(descriptions.Room, "check", nothing)


@guard(f"{HERE}::test_a_cached_function_of_a_frame")
def without_a_look_for_arrays_in_templates() -> None:
    put(templates, "has_content", lambda _: False)
