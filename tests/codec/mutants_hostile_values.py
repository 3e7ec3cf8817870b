"""The guards that `test_hostile_values` sees missing."""

from collections.abc import Generator, Iterator
from typing import Any, Final
from zoneinfo import ZoneInfo

from magnus_cache._engine.codec import (
    budget,
    builtin,
    class_cache,
    hash_collisions,
    named_tuples,
    numpy_types,
    pandas_types,
    stdlib,
    values,
)
from magnus_cache._engine.codec.markers import Marker
from magnus_cache._engine.store import values as coding
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/codec/test_hostile_values.py"


def _no_steps(*_: Any) -> Iterator[None]:
    return iter(())


@guard(f"{HERE}::test_a_value_that_grows_too_much_is_refused_before_it_is_built")
def without_a_budget_of_decoded_bytes() -> None:
    put(values, "size_steps", _no_steps)


@guard(f"{HERE}::test_the_estimate_comes_near_the_truth")
def without_the_walk_behind_the_count() -> None:
    def walk(_payload: bytes, most: int) -> Generator[None, None, int]:
        yield
        return most + 1

    put(budget, "_walk", walk)


@guard(f"{HERE}::test_a_value_that_could_not_be_read_is_not_stored")
def without_the_budget_of_a_value_to_be_stored() -> None:
    put(coding.codec, "size_steps", _no_steps)


@guard(f"{HERE}::test_a_bomb_in_redis_is_a_counted_miss")
def without_the_budget_of_a_value_from_redis() -> None:
    decode, steps = values.decode, values.decode_steps
    put(coding.codec, "decode", lambda payload, limit=None: decode(payload))
    put(coding.codec, "decode_steps", lambda payload, limit=None: steps(payload))


@guard(f"{HERE}::test_members_that_share_a_hash_are_refused")
def without_checked_sets() -> None:
    values._CHECKED_MARKS.update({b"s": Marker(set), b"f": Marker(frozenset)})


@guard(f"{HERE}::test_keys_that_share_a_hash_are_refused")
def without_checked_keys() -> None:
    put(values, "checked_dict", dict)


@guard(f"{HERE}::test_a_table_that_fills_too_slowly_is_given_up")
def without_a_bound_on_the_time_to_fill_a_table() -> None:
    put(hash_collisions, "_SLOW", 1e9)


@guard(f"{HERE}::test_a_single_value_does_not_become_a_column")
def without_the_shape_of_a_column() -> None:
    def array(encoded: Any) -> Any:
        if isinstance(encoded, list):
            return pandas_types._ARRAY_FORMS[encoded[0]](*encoded[1:])
        return encoded

    put(pandas_types, "_array", array)


@guard(f"{HERE}::test_categories_that_share_a_hash_are_refused")
def without_checked_labels() -> None:
    put(pandas_types, "check_hashes", nothing)


@guard(f"{HERE}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_fields_of_a_dtype() -> None:
    put(numpy_types, "_MOST_FIELDS", 10**9)


@guard(f"{HERE}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_name_of_a_dtype() -> None:
    put(numpy_types, "_plain_name", lambda spec: spec)


@guard(f"{HERE}::test_a_zone_is_read_from_its_file_once")
def without_zones_that_are_kept() -> None:
    ZoneInfo.clear_cache()
    put(builtin, "_zone", ZoneInfo)


@guard(f"{HERE}::test_names_that_no_named_tuple_has_are_malformed")
def without_a_look_at_the_names_of_a_named_tuple() -> None:
    put(named_tuples, "_good", lambda name: True)


@guard(f"{HERE}::test_a_field_stands_in_a_named_tuple_once_and_of_them_there_are_not_too_many")
def without_a_bound_on_the_fields_of_a_named_tuple() -> None:
    put(named_tuples, "_MOST_FIELDS", 10**9)


@guard(
    f"{HERE}::test_ever_new_named_tuples_are_given_up",
    "tests/codec/test_rows.py::test_rows_of_ever_new_columns_are_given_up",
)
def without_a_bound_on_what_is_made_of_names_in_a_moment() -> None:
    put(class_cache, "_NAMES", 10**9)


@guard(f"{HERE}::test_names_from_the_wire_are_limited_in_time_and_in_all")
def without_a_bound_on_what_is_kept_of_names() -> None:
    made = class_cache.ClassCache._made

    def unbounded(self: Any, key: Any) -> Any:
        self._most = 10**9
        return made(self, key)

    put(class_cache.ClassCache, "_made", unbounded)


@guard(f"{HERE}::test_fractions_that_take_long_to_reduce_are_refused")
def without_a_bound_on_fractions() -> None:
    put(stdlib, "_FRACTION_BITS", 10**9)


@guard(f"{HERE}::test_keys_of_other_dicts_that_share_a_hash_are_refused")
def without_checked_keys_of_an_ordered_dict() -> None:
    def update(whole: Any, pairs: Any) -> Any:
        whole.update(pairs)
        return whole

    put(stdlib, "checked_update", update)


@guard(f"{HERE}::test_the_estimate_of_small_collections_is_not_too_low")
def without_counting_what_a_collection_takes() -> None:
    put(budget, "_MARKS", {kind: weight for kind, weight in budget._MARKS.items() if kind not in (b"o", b"e")})
