"""Guards of what keys are told apart by, what a glob covers, and what numbers count as; see `mutants`."""

from collections.abc import Iterator
from typing import Any, Final

from magnus_cache._engine.api import warming
from magnus_cache._engine.keys import arrays, descriptions, globs, names, templates
from magnus_cache._engine.keys import libraries as foreign
from magnus_cache._engine.keys.descriptions import Raw
from magnus_cache._engine.runtime import durations
from magnus_cache._engine.store import batch_keys, clears, writes
from tests.support.guards import guard, nothing, put

_GLOBS: Final = "tests/keys/test_clear_globs.py::"
_FOREIGN: Final = "tests/keys/test_foreign_keys.py::"
_EQUAL: Final = "tests/keys/test_equal_keys.py::"


async def _nothing(*_: Any) -> None:
    return None


# -- globs --------------------------------------------------------------------------------------------------------


@guard(_GLOBS + "test_a_glob_covers_the_key_as_it_was_written", _GLOBS + "test_a_string_is_matched_as_it_is")
def without_keys_as_their_callers_wrote_them() -> None:
    put(globs, "spellings", lambda text: [(text.decode("utf-8", "surrogateescape"), True)])


@guard(_GLOBS + "test_a_long_string_is_covered_by_each_of_its_beginnings")
def without_the_doubt_about_long_keys() -> None:
    put(globs._Shape, "may_match", lambda self, text: self.regex.fullmatch(text) is not None)


@guard(_GLOBS + "test_a_glob_covers_no_key_by_its_internal_text")
def without_a_look_at_what_is_known_of_long_keys() -> None:
    put(globs._Shape, "may_match", lambda *_: True)


@guard(_GLOBS + "test_a_clear_by_glob_removes_it_everywhere")
def without_all_kinds_of_keys_in_what_is_scanned() -> None:
    put(names, "key_pattern", lambda prefix, literal: globs.prefix_pattern(prefix + literal.encode()))


@guard(_GLOBS + "test_a_clear_by_glob_leaves_alone_what_it_does_not_cover")
def without_a_second_look_at_what_was_scanned() -> None:
    put(globs.ClearScope, "covers", lambda self, name: name.startswith(self.prefix))


@guard(_GLOBS + "test_the_default_prefix_under_another_one_is_refused")
def without_a_look_for_the_default_prefix() -> None:
    put(names, "DEFAULT_PREFIX", "\0")


@guard(_GLOBS + "test_the_prefix_of_any_other_cache_on_the_server_is_refused")
def without_a_look_for_other_prefixes() -> None:
    put(clears.Invalidator, "_check_prefix", _nothing)


@guard(_GLOBS + "test_the_prefix_of_any_other_cache_on_the_server_is_refused")
def without_the_namespaces_of_this_process_among_prefixes() -> None:
    put(names.Keyspace, "uses", lambda *_: False)


# -- keys that are equal in Python --------------------------------------------------------------------------------


@guard(_EQUAL + "test_they_are_refused_where_the_result_could_not_tell_them_apart")
def without_a_look_for_keys_that_are_equal() -> None:
    put(batch_keys.KeyNames, "add", nothing)


@guard(_EQUAL + "test_a_warming_reports_each_of_them")
def without_a_report_of_each_key_that_failed() -> None:
    def fail(self: Any, key: Any, error: Exception) -> None:
        self.failed += 1
        self.errors[key] = error

    put(warming._Tally, "fail", fail)


# -- what other libraries hand out --------------------------------------------------------------------------------


@guard(_FOREIGN + "test_a_scalar_is_the_key_of_the_plain_value_that_it_equals")
def without_plain_values_for_scalars_of_numpy() -> None:
    del foreign._DESCRIBERS["numpy.generic"]


@guard(_FOREIGN + "test_what_may_hold_more_than_is_read_is_refused")
def without_a_look_for_subclasses() -> None:
    put(foreign, "only", lambda value, *_: descriptions.library_name(type(value)))
    put(arrays, "only", lambda value, *_: descriptions.library_name(type(value)))


@guard(_FOREIGN + "test_arrays_and_frames_that_differ_are_different_keys")
def without_the_types_and_shapes_of_arrays() -> None:
    numbers = arrays._numbers

    def bare(values: Any, room: Any) -> Iterator[Any]:
        return (part for part in numbers(values, room) if not isinstance(part, tuple))

    put(arrays, "_numbers", bare)


@guard(_FOREIGN + "test_arrays_and_frames_that_differ_are_different_keys")
def without_the_lengths_of_texts() -> None:
    put(arrays, "_little", lambda _: b"")


@guard(_FOREIGN + "test_what_lies_between_the_values_of_an_array_makes_no_difference")
def without_a_look_past_what_lies_between_values() -> None:
    def numbers(values: Any, _: Any) -> Iterator[Any]:
        yield (str(values.dtype), *values.shape)
        yield Raw(values.tobytes())

    put(arrays, "_numbers", numbers)


@guard(_FOREIGN + "test_more_than_the_bound_is_refused_with_the_remedies")
def without_a_bound_on_content() -> None:
    put(descriptions.Room, "check", nothing)


@guard(_FOREIGN + "test_a_cached_function_of_a_frame")
def without_a_look_for_arrays_in_templates() -> None:
    put(templates, "has_content", lambda _: False)


# -- numbers ------------------------------------------------------------------------------------------------------


@guard("tests/policy/test_numbers.py::test_any_number_of_seconds_is_a_duration")
def without_the_unit_of_a_duration_of_numpy() -> None:
    number = durations.number
    put(durations, "number", lambda value: float(value.astype(float)) if hasattr(value, "astype") else number(value))


@guard("tests/api/test_set_many.py::test_false_where_nothing_keeps_one_of_them")
def without_the_answers_of_all_writes() -> None:
    write_many = writes.Writes.write_many

    async def all_is_well(self: Any, items: Any) -> bool:
        await write_many(self, items)
        return True

    put(writes.Writes, "write_many", all_is_well)
