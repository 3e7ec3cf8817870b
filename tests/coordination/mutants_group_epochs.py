"""The guards that `test_group_epochs` sees missing."""

from typing import Final

from magnus_cache._engine.coherence.group_epochs import GroupEpochs
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/coordination/test_group_epochs.py"


@guard(f"{HERE}::test_a_minimum_that_was_found_before_ends_with_what_it_was_found_by")
def without_a_look_at_later_epochs_for_a_minimum_found_before() -> None:
    seen = GroupEpochs.seen

    def unnoted(epochs: GroupEpochs, name: bytes, epoch: int) -> int:
        state = epochs._state
        try:
            return seen(epochs, name, epoch)
        finally:
            epochs._state = state

    put(GroupEpochs, "seen", unnoted)


@guard(f"{HERE}::test_a_minimum_that_was_found_before_ends_with_what_it_was_found_by")
def without_forgetting_minima_with_the_epochs_that_they_were_found_by() -> None:
    rewrite(KnownEpochs._lessen, "self.minima = {}", "pass")
