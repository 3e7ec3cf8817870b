"""The guards that `test_epoch_numbers` sees missing."""

from typing import Final

from magnus_cache._engine.coherence import epochs
from magnus_cache._engine.coordination import epoch_sync
from magnus_cache._engine.redis import scripts, wire
from magnus_cache._engine.redis.server_time import RedisTime
from tests.support.guards import edit, guard, nothing, put

HERE: Final = "tests/coordination/test_epoch_numbers.py"


def _edit_all(old: str, new: str) -> None:
    for script in _ISSUING:
        edit(script, old, new)


_ISSUING: Final = (scripts._BUMP, scripts._ARRIVE, scripts._LEARN, scripts._ADOPT)


@guard(f"{HERE}::test_epochs_never_go_down_whatever_is_left_of_them")
def without_the_epochs_of_the_keys_in_an_issue() -> None:
    _edit_all("do last = math.max(last, number(text)) end", "do end")


@guard(f"{HERE}::test_epochs_never_go_down_whatever_is_left_of_them")
def without_the_last_epoch_in_the_guard() -> None:
    _edit_all("number(guard[1]),", "")


@guard(f"{HERE}::test_nonsense_does_not_lead_epochs_up_to_their_end")
def without_a_horizon_of_epochs_in_scripts() -> None:
    _edit_all("epoch and epoch <= latest and epoch or 0", f"epoch and epoch <= {epochs.LATEST_EPOCH} and epoch or 0")


@guard(f"{HERE}::test_a_clock_beyond_the_last_epoch_issues_none")
def without_an_end_of_epochs_in_an_issue() -> None:
    _edit_all(f"if epoch > {epochs.LATEST_EPOCH} then", "if false then")


@guard(f"{HERE}::test_what_another_server_told_is_forgotten")
def without_forgetting_what_another_server_told() -> None:
    put(epochs.Epochs, "forget", nothing)


@guard(f"{HERE}::test_nonsense_in_a_key_is_replaced_and_not_believed")
def without_a_horizon_of_epochs_read() -> None:
    of = epochs.epoch_of

    def epoch_of(text: object, _latest: int = 0) -> int:
        return of(text)

    put(epoch_sync, "epoch_of", epoch_of)


@guard(f"{HERE}::test_a_value_that_claims_an_impossible_epoch_is_not_valid_for_ever")
def without_a_horizon_of_a_values_epoch() -> None:
    class Far(RedisTime):
        def sample(self, sent: float, received: float, server: int) -> None:
            super().sample(sent, received, server)
            self.horizon = 1 << 64

    put(wire, "RedisTime", Far)


@guard(f"{HERE}::test_a_value_that_claims_an_impossible_epoch_is_not_valid_for_ever")
def without_reclaiming_impossible_epochs() -> None:
    edit(scripts._RECLAIM, f" or stamp > {epochs.LATEST_EPOCH}", "")
