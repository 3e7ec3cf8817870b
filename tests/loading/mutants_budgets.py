"""The guards that `test_budgets` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import budget_queue, sources
from magnus_cache._engine.loading import permits
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/loading/test_budgets.py"


@guard(f"{HERE}::test_the_fleet_shares_one_bucket")
def without_a_budget() -> None:
    async def enter(*_: Any) -> None: ...

    put(permits.BudgetCheck, "enter", enter)


@guard(f"{HERE}::test_a_turn_that_would_come_too_late_is_an_error_at_once")
def without_an_error_for_a_turn_that_comes_too_late() -> None:
    rewrite(budget_queue.BudgetQueue._answered, "or now + left > entry.held.until", "")


@guard(f"{HERE}::test_stale_values_are_served_at_once_and_the_bucket_is_left_alone")
def without_a_rest_for_keys_that_were_held_back() -> None:
    rewrite(permits.Permits._pass, "isinstance(error, CacheBudgetError) and turn.ref.freshness.grace", "False")


@guard(f"{HERE}::test_hot_keys_come_first_and_background_loads_last")
def without_the_order_of_demand() -> None:
    rewrite(permits.Turn.callers, "return sum(", "return 1 or sum(")


@guard(f"{HERE}::test_a_cancelled_load_gives_its_place_to_the_next")
def without_the_place_of_a_cancelled_load() -> None:
    rewrite(budget_queue.BudgetQueue.take, "if not self._loop.is_closed():", "if False:")


@guard(f"{HERE}::test_a_pause_holds_for_the_whole_fleet_at_once")
def without_telling_the_fleet_of_a_pause() -> None:
    rewrite(sources.Sources.pause, "if not self.enabled:", "if True:")


@guard(f"{HERE}::test_a_pause_holds_for_the_whole_fleet_at_once")
def without_reading_pauses_that_are_announced() -> None:
    put(sources.Sources, "announced", lambda self, connection: None)
