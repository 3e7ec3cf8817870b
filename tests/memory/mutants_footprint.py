"""The guards that `test_footprint` sees missing."""

from typing import Any, Final

from magnus_cache._engine.memory import entry, footprint, store, tiers
from magnus_cache._engine.store import values as coding
from magnus_cache._engine.store import writes
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/memory/test_footprint.py"


@guard(HERE)
def without_counting_what_decoded_values_take() -> None:
    for module in (footprint, writes):
        put(module, "footprint", lambda value, encoded: encoded)


@guard(HERE)
def without_room_for_decoded_values() -> None:
    for module in (footprint, writes):
        put(module, "has_room", lambda memory, size: True)


@guard(HERE)
def without_counting_again_what_is_decoded_later() -> None:
    def keep(memory: Any, name: bytes, entry: Any, value: Any, *, shared: bool) -> None:
        entry.value, entry.payload = value, None

    put(coding, "keep_decoded", keep)


@guard(f"{HERE}::test_an_entry_of_the_hot_table_takes_no_more_than_it_counts_for")
def without_the_headers_of_names_and_values() -> None:
    for module in (entry, store, tiers):
        put(module, "OVERHEAD", 250)


@guard(f"{HERE}::test_a_part_counts_for_what_it_takes_once_and_what_python_shares_for_nothing")
def without_knowing_what_was_counted() -> None:
    rewrite(footprint._parts, " or id(part) in seen", "")


@guard(f"{HERE}::test_a_part_counts_for_what_it_takes_once_and_what_python_shares_for_nothing")
def without_knowing_the_integers_that_python_shares() -> None:
    put(footprint, "_SMALL_INTS", range(0))
