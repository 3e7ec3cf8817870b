"""Guards of the types of values: what comes back is what was stored, and hostile names do no harm; see `mutants`."""

import sys
from typing import Any, Final

from magnus_cache._engine.codec import adapters, budget, class_cache, immutable, named_tuples, registry, rows, stdlib
from magnus_cache._engine.loading import results
from magnus_cache._engine.memory import reload
from tests.support.guards import guard, nothing, put

VALUES: Final = "tests/codec/test_hostile_values.py"
TYPES: Final = "tests/codec/test_standard_types.py"
ROWS: Final = "tests/codec/test_rows.py"
RELOADED: Final = "tests/codec/test_reloaded_classes.py"
TYPED: Final = "tests/codec/test_typed_results.py"


@guard(
    f"{TYPES}::test_the_first_caller_gets_what_the_later_ones_get",
    f"{ROWS}::test_the_first_caller_gets_what_the_later_ones_get",
)
def without_the_same_kind_for_the_first_caller() -> None:
    put(results.codec, "changed_so_far", lambda: 0)


@guard(f"{TYPES}::test_immutable_ones_are_shared_between_callers")
def without_telling_named_tuples_of_the_program_from_those_made_anew() -> None:
    put(immutable, "is_rebuilt", lambda cls: hasattr(cls, "_fields"))


@guard(f"{TYPES}::test_a_named_tuple_that_would_lose_something_is_refused")
def without_looking_for_methods_of_a_named_tuple() -> None:
    put(named_tuples, "_PLAIN", named_tuples._PLAIN | {"half"})


@guard(f"{VALUES}::test_names_that_no_named_tuple_has_are_malformed")
def without_a_look_at_the_names_of_a_named_tuple() -> None:
    put(named_tuples, "_good", lambda name: True)


@guard(f"{VALUES}::test_a_field_stands_in_a_named_tuple_once_and_of_them_there_are_not_too_many")
def without_a_bound_on_the_fields_of_a_named_tuple() -> None:
    put(named_tuples, "_MOST_FIELDS", 10**9)


@guard(f"{VALUES}::test_ever_new_named_tuples_are_given_up", f"{ROWS}::test_rows_of_ever_new_columns_are_given_up")
def without_a_bound_on_what_is_made_of_names_in_a_moment() -> None:
    put(class_cache, "_NAMES", 10**9)


@guard(f"{VALUES}::test_names_from_the_wire_are_limited_in_time_and_in_all")
def without_a_bound_on_what_is_kept_of_names() -> None:
    made = class_cache.ClassCache._made

    def unbounded(self: Any, key: Any) -> Any:
        self._most = 10**9
        return made(self, key)

    put(class_cache.ClassCache, "_made", unbounded)


@guard(f"{VALUES}::test_fractions_that_take_long_to_reduce_are_refused")
def without_a_bound_on_fractions() -> None:
    put(stdlib, "_FRACTION_BITS", 10**9)


@guard(f"{VALUES}::test_keys_of_other_dicts_that_share_a_hash_are_refused")
def without_checked_keys_of_an_ordered_dict() -> None:
    def update(whole: Any, pairs: Any) -> Any:
        whole.update(pairs)
        return whole

    put(stdlib, "checked_update", update)


@guard(f"{VALUES}::test_the_estimate_of_small_collections_is_not_too_low")
def without_counting_what_a_collection_takes() -> None:
    put(budget, "_MARKS", {kind: weight for kind, weight in budget._MARKS.items() if kind not in (b"o", b"e")})


@guard(f"{ROWS}::test_column_names_are_names_whatever_they_are")
def without_quoting_column_names() -> None:
    def cursor(names: Any) -> Any:
        connection = sys.modules["sqlite3"].connect(":memory:")
        try:
            return connection.execute("SELECT " + ",".join(f'NULL AS "{name}"' for name in names))
        finally:
            connection.close()

    put(rows._sqlite_cursors, "_make", cursor)


@guard(f"{ROWS}::test_rows_that_cannot_be_are_misses")
def without_comparing_columns_and_values() -> None:
    put(rows, "_same_number", lambda names, values: tuple(values))


@guard(f"{ROWS}::test_rows_that_cannot_be_are_misses")
def without_a_bound_on_column_names() -> None:
    put(rows, "_column_names", tuple)


@guard(f"{ROWS}::test_a_class_that_sqlalchemy_maps_cannot_be_taken_apart")
def without_refusing_what_sqlalchemy_maps() -> None:
    put(adapters, "_MAPPED", "no such attribute")


@guard(f"{RELOADED}::test_what_was_kept_comes_back_as_the_new_class")
def without_renewing_values_after_a_reload() -> None:
    put(reload.ReloadingCache, "types_replaced", nothing)


@guard(f"{RELOADED}::test_under_the_lock_nothing_of_the_program_runs")
def without_leaving_renewals_to_those_who_ask() -> None:
    put(reload, "engaged", lambda: False)


@guard(
    f"{RELOADED}::test_an_annotation_from_before_a_reload_does_not_bring_the_old_class_back",
    f"{RELOADED}::test_a_class_of_another_module_or_scope_does_not_take_over",
)
def without_a_look_whether_a_class_is_the_present_one() -> None:
    put(registry, "_is_current", lambda cls: True)


@guard(f"{TYPED}::test_what_waits_for_names_is_bounded_and_not_repeated")
def without_a_bound_on_annotations_that_wait() -> None:
    put(registry, "_wait", lambda item: registry._waiting.update({object(): item}))


@guard(f"{TYPED}::test_names_that_come_later_are_looked_up_later")
def without_looking_again_for_names() -> None:
    put(registry, "_look_again", lambda: False)
