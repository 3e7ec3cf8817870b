"""The guards that `test_refusals` sees missing."""

from typing import Final

from magnus_cache.integrations.http import exchange
from magnus_cache.integrations.llm import async_streams, cache, refusals
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/integrations/test_refusals.py"


@guard(f"{HERE}::test_a_pause_of_a_budget_holds_for_all_who_share_it")
def without_pausing_the_budget_of_a_host() -> None:
    put(exchange.Exchange, "refused", nothing)


@guard(f"{HERE}::test_a_url_without_a_budget_pauses_its_host_alone")
def without_a_look_whether_a_url_has_a_budget() -> None:
    rewrite(exchange.Exchange.refused, "rules is None or rules.source(self.key) is None", "False")


@guard(f"{HERE}::test_a_call_of_a_model_waits_for_the_end_of_a_pause")
def without_pausing_the_budget_of_a_model() -> None:
    put(refusals, "retry_later_of", nothing)


@guard(f"{HERE}::test_a_call_of_a_model_waits_for_the_end_of_a_pause")
def without_a_second_begin_of_a_stream() -> None:
    rewrite(async_streams.AsyncCollector.load, "self.began = False", "pass")


@guard(f"{HERE}::test_without_a_budget_callers_get_the_error_of_their_client")
def without_a_look_whether_a_model_has_a_budget() -> None:
    rewrite(cache.LLMCache._refusals, "rules is not None and rules.source(request.key) is not None", "True")
