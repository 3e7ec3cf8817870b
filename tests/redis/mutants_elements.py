"""The guards that `test_elements` sees missing."""

from typing import Final

from magnus_cache._engine.redis import elements, incoming
from tests.support.guards import guard, put

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
    put(incoming.Incoming, "is_buffered", property(lambda _incoming: False))


@guard(f"{HERE}::test_a_body_that_comes_after_its_header_is_no_claim")
def without_what_was_only_glanced_at() -> None:
    too_many = elements.Elements.too_many

    def forgetful(self: elements.Elements, data: bytes) -> bool:
        self._unseen = b"" if self._unseen is not None else None
        return too_many(self, data)

    put(elements.Elements, "too_many", forgetful)
