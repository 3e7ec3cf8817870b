"""The guards that `test_keep_warm_limits` sees missing."""

from typing import Final

from magnus_cache._engine.loading import warm_rounds, warm_schedule
from tests.support.guards import guard, rewrite

HERE: Final = "tests/api/test_keep_warm_limits.py"


@guard(f"{HERE}::test_a_budget_that_is_used_up_is_a_wait_and_no_failure")
def without_telling_a_load_that_is_held_back_from_a_failed_one() -> None:
    rewrite(warm_rounds.WarmRounds._note, "if isinstance(error, CacheBudgetError):", "if False:")


@guard(f"{HERE}::test_a_budget_that_is_used_up_is_a_wait_and_no_failure")
def without_waiting_for_the_turn_of_a_value_that_is_kept_warm() -> None:
    rewrite(warm_schedule.WarmSchedule.judge, "(known.failures or now < known.held_until)", "known.failures")
