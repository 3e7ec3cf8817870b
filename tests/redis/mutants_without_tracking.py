"""The guards that `test_without_tracking` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence import known_epochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import epoch_sync
from magnus_cache._engine.store import reads
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_without_tracking.py"


@guard(f"{HERE}::test_invariant_1_epochs_and_values_do_not_add_up")
def without_the_end_of_epochs_in_trust() -> None:
    def trust(self: reads.Reads, source: Any, sent: float, _ref: Any) -> Any:
        if source.tracking:
            return source.trust
        return Trust(sent + self.state.settings.max_staleness, self.state.generations.current)

    put(reads.Reads, "trust", trust)


@guard(f"{HERE}::test_a_value_is_kept_for_half_of_the_bound_at_least")
def without_asking_for_epochs_half_way() -> None:
    def expire(self: Any, known: Any) -> None:
        now = self._clock()
        if known.deadline < now:
            known.forget()
            known.since = now
            known.deadline = now + self._max_staleness

    put(epoch_sync.EpochSync, "_expire", expire)


@guard(f"{HERE}::test_what_was_asked_before_counts_for_nothing")
def without_the_beginning_of_known_epochs() -> None:
    def learned(self: known_epochs.KnownEpochs, name: bytes, epoch: int, _sent: float) -> None:
        if name == self._marker:
            self.marker_epoch = epoch
        self.current.add(name)

    put(known_epochs.KnownEpochs, "learned", learned)


@guard(f"{HERE}::test_invariant_1_what_a_full_server_invalidates_is_invalid_on_all_loops")
def without_forgetting_removed_epochs_on_all_connections() -> None:
    put(known_epochs.KnownEpochs, "removed", nothing)
