"""The guards that `test_envelope` sees missing."""

from typing import Any, Final

from magnus_cache._engine.codec import envelope, header_times
from tests.support.guards import guard, put

HERE: Final = "tests/codec/test_envelope.py"


@guard(HERE)
def without_a_bound_on_the_tags_that_are_known() -> None:
    put(envelope, "_MOST_KNOWN", 1 << 40)


@guard(HERE)
def without_telling_one_tag_from_several() -> None:
    original = envelope._tags

    def tags(raw: bytes) -> Any:
        found, place = original(raw)
        if found:
            first = envelope.HEADER_BYTES + 3 + len(found[0].encode())
            envelope._known_tags[raw[envelope.HEADER_BYTES : first]] = found[:1]
        return found, place

    put(envelope, "_tags", tags)


@guard(f"{HERE}::test_a_header_says_exactly_when_the_load_began")
def without_an_end_for_which_the_beginning_is_exact() -> None:
    put(header_times, "lived", lambda began, until: (until, (until - began) / 1e6))


@guard(f"{HERE}::test_of_a_header_without_a_life_nothing_is_said")
def without_a_bound_on_lives() -> None:
    put(header_times, "as_of", lambda until, life: until - int(life * 1e6) if life == life else 0)
