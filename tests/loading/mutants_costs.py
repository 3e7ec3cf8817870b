"""The guards that `test_costs` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import cached, hit_wrappers
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.loading import batch_results, money, results
from magnus_cache._engine.memory import entry, records
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.runtime import stats
from magnus_cache._engine.store import revalidation
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/loading/test_costs.py"


@guard(f"{HERE}::test_each_value_saves_what_it_has_cost_itself")
def without_counting_savings_in_a_compiled_wrapper() -> None:
    put(hit_wrappers, "_SAVED", "")


@guard(f"{HERE}::test_calls_of_a_function_count_what_they_cost_and_save")
def without_counting_savings_by_the_number_of_hits() -> None:
    rewrite(stats._add_priced, "if price:", "if False:")


@guard(f"{HERE}::test_calls_of_a_function_count_what_they_cost_and_save")
def without_leaving_the_savings_of_a_fixed_price_to_the_counters() -> None:
    rewrite(LoadOptions.price_of_each, "self.saves = None", "pass")


@guard(f"{HERE}::test_a_function_of_any_number_of_arguments_counts")
def without_leaving_priced_hits_to_the_slow_path() -> None:
    source = cached.FunctionCache.source.fget
    assert source is not None
    put(cached.FunctionCache, "source", property(_rewritten(source)))


def _rewritten(source: Any) -> Any:
    return lambda self: source(self)._replace(refs=self.memo)


@guard(f"{HERE}::test_a_hit_calls_no_code_of_the_user")
def without_storing_the_price_with_the_value() -> None:
    rewrite(results.ResultPreparer.steps, "if paid:", "if False:")


@guard(f"{HERE}::test_a_cost_that_raises_loses_no_result")
def without_forgiving_a_cost_that_raises() -> None:
    rewrite(money.paid_for, "except Exception as error:", "except ZeroDivisionError as error:")


@guard(f"{HERE}::test_every_kind_of_namespace_counts")
def without_storing_priced_values_alone() -> None:
    rewrite(batch_results.BatchResults.__init__, "options.cost is not None and", "False and")


@guard(f"{HERE}::test_an_entry_notes_its_price_beside_all_else")
def without_keeping_the_price_of_a_prolonged_entry() -> None:
    rewrite(entry.Entry._facts, " | facts >> _PAID_AT << _PAID_AT", "")


@guard(f"{HERE}::test_an_entry_notes_its_price_beside_all_else")
def without_telling_the_price_from_the_end_of_an_entry() -> None:
    end = entry.Entry.end.fget
    assert end is not None

    def whole(self: Any) -> float:
        more = self._packed >> (entry._MORE_BITS + 1)
        until: float = self.real + ((more >> entry._SPAN_BITS) + (more & entry._SPAN_MASK)) / 1000
        return until

    put(entry.Entry, "end", property(whole))


@guard(f"{HERE}::test_an_entry_notes_its_price_beside_all_else")
def without_room_for_the_price_in_a_record() -> None:
    put(records, "_PRICED", records._LONG)


@guard(f"{HERE}::test_a_stored_value_notes_its_price_beside_all_else")
def without_reading_the_price_before_the_payload() -> None:
    rewrite(envelope._price, "place + _MONEY.size", "place")


@guard(f"{HERE}::test_a_price_that_is_cut_off_is_not_read")
def without_checking_that_the_price_is_there() -> None:
    rewrite(envelope._price, "len(raw) - place < _MONEY.size", "False")


@guard(f"{HERE}::test_a_value_that_is_compared_after_a_reconnect_still_knows_its_price")
def without_the_price_of_a_compared_entry() -> None:
    rewrite(revalidation.recognized, ", paid=near.paid", "")
