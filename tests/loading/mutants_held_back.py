"""The guards that `test_held_back` sees missing."""

from typing import Final

from magnus_cache._engine.coordination import sources, spending
from magnus_cache._engine.loading import batch, loads, permits, warm_loads
from magnus_cache._engine.policy import bucket
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/loading/test_held_back.py"


@guard(f"{HERE}::test_one_source_has_one_account_whatever_limits_it_is_given")
def without_one_account_for_a_source_of_two_limits() -> None:
    rewrite(
        sources.Sources._bucket, "found.budget = budget", "found = self._tokens[name] = _Tokens(self, name, budget)"
    )


@guard(f"{HERE}::test_a_batch_that_one_source_refuses_gives_back_the_tokens_of_the_others")
def without_giving_back_the_tokens_of_other_sources() -> None:
    rewrite(permits.BudgetCheck.enter, "_undo(taken)\n        raise", "raise")


@guard(f"{HERE}::test_a_batch_that_is_refused_has_not_failed")
def without_telling_a_refused_batch_from_a_failed_one() -> None:
    rewrite(batch.Batch._load, "wanted.resolve(refused.error, REFUSED)", "wanted.resolve(refused.error)")


@guard(f"{HERE}::test_explain_reports_nothing_twice")
def without_noting_what_explain_has_reported() -> None:
    rewrite(sources._Tokens._took, "self._generation, self._alone = reply.generation, False", "self._alone = False")


@guard(f"{HERE}::test_without_redis_each_turn_is_told_as_it_will_come")
def without_the_turns_of_those_before() -> None:
    rewrite(bucket.OwnTokens.due, "+ window * rounds", "")


@guard(f"{HERE}::test_a_pause_that_is_over_at_once_does_not_have_the_source_asked_for_ever")
def without_an_end_of_asking_a_source_that_refuses() -> None:
    put(permits, "_check_time", nothing)


@guard(f"{HERE}::test_a_thread_that_is_refused_asks_for_no_further_key")
def without_stopping_a_thread_that_is_refused() -> None:
    rewrite(warm_loads.WarmLoads._called, "isinstance(error, RetryLater) or ", "")


@guard(f"{HERE}::test_a_caller_whose_time_is_over_is_told_that_its_load_is_held_back")
def without_telling_callers_that_their_load_is_held_back() -> None:
    put(permits.Turn, "expired", nothing)


@guard(f"{HERE}::test_a_loader_that_another_limit_holds_back_gets_its_price_back")
def without_the_price_of_a_loader_that_another_limit_holds_back() -> None:
    rewrite(
        loads.Loads.record_failure, "give_back(", "isinstance(error, CacheBudgetError) or give_back("
    )  # fmt: skip


@guard(f"{HERE}::test_a_load_that_is_cancelled_while_it_asks_is_not_charged")
def without_the_price_of_a_load_that_is_cancelled_while_it_asks() -> None:
    put(spending._Asked, "leave", nothing)


@guard(f"{HERE}::test_what_yesterday_was_charged_is_not_given_back_today")
def without_a_look_at_the_day_of_a_price() -> None:
    rewrite(spending.Spending.give_back, "if charged >= account.began:", "if True:")
