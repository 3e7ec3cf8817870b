"""Guards of hostile input, and bounds that are totals; see `mutants`."""

from collections.abc import Generator, Iterator
from typing import Any, Final
from zoneinfo import ZoneInfo

from magnus_cache._engine.codec import budget, builtin, hash_collisions, numpy_types, pandas_types, values
from magnus_cache._engine.codec.markers import Marker
from magnus_cache._engine.memory import footprint
from magnus_cache._engine.redis import connection, frame_limits, pipeline
from magnus_cache._engine.runtime import loader_slots
from magnus_cache._engine.store import values as coding
from magnus_cache._engine.store import writes
from tests.support.guards import guard, nothing, put

VALUES: Final = "tests/codec/test_hostile_values.py"


def _no_steps(*_: Any) -> Iterator[None]:
    return iter(())


@guard(f"{VALUES}::test_a_value_that_grows_too_much_is_refused_before_it_is_built")
def without_a_budget_of_decoded_bytes() -> None:
    put(values, "size_steps", _no_steps)


@guard(f"{VALUES}::test_the_estimate_comes_near_the_truth")
def without_the_walk_behind_the_count() -> None:
    def walk(_payload: bytes, most: int) -> Generator[None, None, int]:
        yield
        return most + 1

    put(budget, "_walk", walk)


@guard(f"{VALUES}::test_a_value_that_could_not_be_read_is_not_stored")
def without_the_budget_of_a_value_to_be_stored() -> None:
    put(coding.codec, "size_steps", _no_steps)


@guard(f"{VALUES}::test_a_bomb_in_redis_is_a_counted_miss")
def without_the_budget_of_a_value_from_redis() -> None:
    decode, steps = values.decode, values.decode_steps
    put(coding.codec, "decode", lambda payload, limit=None: decode(payload))
    put(coding.codec, "decode_steps", lambda payload, limit=None: steps(payload))


@guard(f"{VALUES}::test_members_that_share_a_hash_are_refused")
def without_checked_sets() -> None:
    values._CHECKED_MARKS.update({b"s": Marker(set), b"f": Marker(frozenset)})


@guard(f"{VALUES}::test_keys_that_share_a_hash_are_refused")
def without_checked_keys() -> None:
    put(values, "checked_dict", dict)


@guard(f"{VALUES}::test_a_table_that_fills_too_slowly_is_given_up")
def without_a_bound_on_the_time_to_fill_a_table() -> None:
    put(hash_collisions, "_SLOW", 1e9)


@guard(f"{VALUES}::test_a_single_value_does_not_become_a_column")
def without_the_shape_of_a_column() -> None:
    def array(encoded: Any) -> Any:
        if isinstance(encoded, list):
            return pandas_types._ARRAY_FORMS[encoded[0]](*encoded[1:])
        return encoded

    put(pandas_types, "_array", array)


@guard(f"{VALUES}::test_categories_that_share_a_hash_are_refused")
def without_checked_labels() -> None:
    put(pandas_types, "check_hashes", nothing)


@guard(f"{VALUES}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_fields_of_a_dtype() -> None:
    put(numpy_types, "_MOST_FIELDS", 10**9)


@guard(f"{VALUES}::test_a_dtype_of_very_many_fields_is_malformed")
def without_a_bound_on_the_name_of_a_dtype() -> None:
    put(numpy_types, "_plain_name", lambda spec: spec)


@guard(f"{VALUES}::test_a_zone_is_read_from_its_file_once")
def without_zones_that_are_kept() -> None:
    ZoneInfo.clear_cache()
    put(builtin, "_zone", ZoneInfo)


SERVER: Final = "tests/redis/test_hostile_server.py"


@guard(f"{SERVER}::test_an_announcement_without_end_ends_the_connection")
def without_a_lower_bound_on_what_comes_unasked() -> None:
    put(frame_limits, "_UNASKED_BYTES", 128 << 20)


@guard(f"{SERVER}::test_a_reply_without_end_ends_the_connection_and_frees_its_memory")
def without_a_bound_on_the_bytes_of_a_reply() -> None:
    put(frame_limits, "_REPLY_BYTES", 1 << 50)


@guard(f"{SERVER}::test_a_reply_without_end_ends_the_connection_and_frees_its_memory")
def without_freeing_what_was_read_of_a_frame() -> None:
    put(connection._PushParser, "on_disconnect", connection.DefaultParser.on_disconnect)


@guard(f"{SERVER}::test_a_frame_that_was_begun_has_a_deadline")
def without_a_deadline_for_a_frame() -> None:
    put(frame_limits.Intake, "_check", nothing)


@guard(f"{SERVER}::test_a_handshake_without_end_ends_the_connection")
def without_watching_the_handshake() -> None:
    put(connection._PushParser, "on_connect", connection.DefaultParser.on_connect)


@guard(f"{SERVER}::test_values_as_large_as_they_may_be_are_no_frame_without_end")
def without_counting_the_values_that_are_owed() -> None:
    put(pipeline.Pipeline, "values_owed", lambda _: 1)


THREADS: Final = "tests/loading/test_loader_threads.py"


@guard(f"{THREADS}::test_threads_are_bounded_in_all_and_a_source_that_works_finds_one")
def without_leaving_places_for_other_namespaces() -> None:
    def has_room(self: Any, lane: Any) -> bool:
        return bool(lane.running < self._most and self.running < self._most_of_all)

    put(loader_slots.LoaderPlaces, "_has_room", has_room)


@guard(
    f"{THREADS}::test_threads_are_bounded_in_all_and_a_source_that_works_finds_one",
    f"{THREADS}::test_threads_of_event_loops_that_have_ended_count_as_well",
)
def without_a_bound_on_all_threads() -> None:
    put(loader_slots.LoaderPlaces, "_has_room", lambda self, lane: lane.running < self._most)


@guard(f"{THREADS}::test_a_forked_child_has_none_of_the_threads")
def without_new_places_in_a_forked_child() -> None:
    put(loader_slots.LoaderPlaces, "reset", lambda self: None if hasattr(self, "running") else reset(self))


reset = loader_slots.LoaderPlaces.reset


FOOTPRINT: Final = "tests/memory/test_footprint.py"


@guard(FOOTPRINT)
def without_counting_what_decoded_values_take() -> None:
    for module in (footprint, writes):
        put(module, "footprint", lambda value, encoded: encoded)


@guard(FOOTPRINT)
def without_room_for_decoded_values() -> None:
    for module in (footprint, writes):
        put(module, "has_room", lambda memory, size: True)


@guard(FOOTPRINT)
def without_counting_again_what_is_decoded_later() -> None:
    def keep(memory: Any, name: bytes, entry: Any, value: Any) -> None:
        entry.value, entry.payload = value, None

    put(coding, "keep_decoded", keep)
