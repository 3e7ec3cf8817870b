"""The guards that `test_typed_results` sees missing."""

from typing import Final

from magnus_cache._engine.codec import registry
from tests.support.guards import guard, put

HERE: Final = "tests/codec/test_typed_results.py"


@guard(f"{HERE}::test_what_waits_for_names_is_bounded_and_not_repeated")
def without_a_bound_on_annotations_that_wait() -> None:
    put(registry, "_wait", lambda item: registry._waiting.update({object(): item}))


@guard(f"{HERE}::test_names_that_come_later_are_looked_up_later")
def without_looking_again_for_names() -> None:
    put(registry, "_look_again", lambda: False)
