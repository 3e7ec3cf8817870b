"""The guards that `test_elements` sees missing."""

from typing import Final

from magnus_cache._engine.redis import elements, incoming
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/redis/test_elements.py"


@guard(f"{HERE}::test_a_claim_of_a_billion_elements_ends_the_connection")
def without_a_look_at_what_a_frame_claims() -> None:
    put(elements.Elements, "too_many", lambda _elements, _data: False)


@guard(f"{HERE}::test_what_a_frame_claims_is_added_up_and_forgotten_at_its_end")
def without_a_sum_of_what_a_frame_claims() -> None:
    other = elements.Elements._other

    def each(self: elements.Elements, kind: int, text: bytes, after: int) -> tuple[int, int]:
        self._claimed = 0
        return other(self, kind, text, after)

    put(elements.Elements, "_other", each)


@guard(f"{HERE}::test_text_is_no_claim_and_a_claim_is_one_whatever_was_read_before")
def without_a_look_at_bytes_that_wait_to_be_parsed() -> None:
    put(incoming.Incoming, "is_whole", property(lambda _incoming: True))


@guard(f"{HERE}::test_a_body_that_comes_after_its_header_is_no_claim")
def without_what_was_only_glanced_at() -> None:
    too_many = elements.Elements.too_many

    def forgetful(self: elements.Elements, data: bytes) -> bool:
        self._unseen = b"" if self._unseen is not None else None
        return too_many(self, data)

    put(elements.Elements, "too_many", forgetful)


@guard(f"{HERE}::test_a_long_announcement_is_counted_to_its_last_name_whatever_its_names_are")
def without_a_comparison_of_short_texts_with_their_headers() -> None:
    rewrite(elements._short_texts, "!= (lengths :=", "is (lengths :=")


@guard(f"{HERE}::test_no_step_reads_the_headers_of_two_parts")
def without_a_search_of_the_next_part_of_a_frame() -> None:
    rewrite(elements.Elements._continue, "if is_cut or", "if True or")


@guard(f"{HERE}::test_a_claim_adds_to_those_of_the_parts_before")
def without_earlier_claims_in_a_search() -> None:
    rewrite(elements._may_claim, "return claimed + ", "return ")


@guard(f"{HERE}::test_a_claim_is_seen_whose_header_comes_in_two_parts")
def without_the_beginning_of_a_header_in_a_search() -> None:
    rewrite(elements.Elements._continue, "self._begun + data", "data")
