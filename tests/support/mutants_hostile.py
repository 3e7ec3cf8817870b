"""Guards of hostile input, and bounds that are totals; see `mutants`."""

from typing import Any, Final
from zoneinfo import ZoneInfo

from magnus_cache import reads
from magnus_cache.codec import arrays, budget, builtin, floods, frames, values
from magnus_cache.codec.marks import Mark
from tests.support.guards import guard, nothing, put

VALUES: Final = "tests/test_hostile_values.py"


@guard(f"{VALUES}::test_a_value_that_grows_too_much_is_refused_before_it_is_built")
def without_a_budget_of_decoded_bytes() -> None:
    put(values, "check_decoded_size", nothing)


@guard(f"{VALUES}::test_the_estimate_comes_near_the_truth")
def without_the_walk_behind_the_count() -> None:
    put(budget, "_walk", lambda payload, most: most + 1)


@guard(f"{VALUES}::test_a_value_that_could_not_be_read_is_not_stored")
def without_the_budget_of_a_value_to_be_stored() -> None:
    put(reads.codec, "check_decoded_size", nothing)


@guard(f"{VALUES}::test_a_bomb_in_redis_is_a_counted_miss")
def without_the_budget_of_a_value_from_redis() -> None:
    decode = values.decode
    put(reads.codec, "decode", lambda payload, limit=None: decode(payload))


@guard(f"{VALUES}::test_members_that_share_a_hash_are_refused")
def without_checked_sets() -> None:
    values._CHECKED_MARKS.update({b"s": Mark(set), b"f": Mark(frozenset)})


@guard(f"{VALUES}::test_keys_that_share_a_hash_are_refused")
def without_checked_keys() -> None:
    put(values, "checked_dict", dict)


@guard(f"{VALUES}::test_a_table_that_fills_too_slowly_is_given_up")
def without_a_bound_on_the_time_to_fill_a_table() -> None:
    put(floods, "_SLOW", 1e9)


@guard(f"{VALUES}::test_a_single_value_does_not_become_a_column")
def without_the_shape_of_a_column() -> None:
    def array(encoded: Any) -> Any:
        if isinstance(encoded, list):
            return frames._ARRAY_FORMS[encoded[0]](*encoded[1:])
        return encoded

    put(frames, "_array", array)


@guard(f"{VALUES}::test_categories_that_share_a_hash_are_refused")
def without_checked_labels() -> None:
    put(frames, "check_hashes", nothing)


@guard(f"{VALUES}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_fields_of_a_dtype() -> None:
    put(arrays, "_MOST_FIELDS", 10**9)


@guard(f"{VALUES}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_name_of_a_dtype() -> None:
    put(arrays, "_plain_name", lambda spec: spec)


@guard(f"{VALUES}::test_a_zone_is_read_from_its_file_once")
def without_zones_that_are_kept() -> None:
    ZoneInfo.clear_cache()
    put(builtin, "_zone", ZoneInfo)
