"""The guards that `test_long_steps` sees missing."""

from typing import Final

from magnus_cache._engine.codec import budget, steps, values
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/codec/test_long_steps.py"


@guard(f"{HERE}::test_a_long_text_is_copied_in_pieces")
def without_pieces_of_a_text() -> None:
    put(steps, "_PIECE", 1 << 60)


@guard(f"{HERE}::test_a_long_text_is_copied_in_pieces")
def without_characters_that_two_pieces_share() -> None:
    rewrite(steps.text_of, "decoder.decode(view[start : start + _PIECE])", 'str(view[start : start + _PIECE], "utf-8")')


@guard(f"{HERE}::test_a_long_text_that_is_damaged_is_refused")
def without_the_length_that_a_text_says() -> None:
    for module in (steps, values):
        put(module, "is_text", lambda payload: payload[0] == 0xDB)


@guard(f"{HERE}::test_containers_are_skipped_in_pieces")
def without_pieces_of_what_is_skipped() -> None:
    put(steps, "_SKIMMED", 1 << 60)


@guard(f"{HERE}::test_marks_are_counted_alike_in_pieces_of_any_size")
def without_the_marks_between_two_pieces() -> None:
    put(budget, "_MARK_BYTES", 1)


@guard(f"{HERE}::test_what_was_copied_is_let_go_of_in_pieces")
def without_pieces_of_what_is_let_go_of() -> None:
    put(steps, "_FREED", 1 << 60)


@guard(f"{HERE}::test_a_glance_at_a_small_row_sees_what_weighing_it_does")
def without_a_look_into_the_parts_of_a_small_row() -> None:
    put(steps, "_is_small_row", lambda _: True)
