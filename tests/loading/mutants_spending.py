"""The guards that `test_spending` sees missing."""

from typing import Final

from magnus_cache._engine.coordination import connection_events, spending
from magnus_cache._engine.loading import loads, money, permits, spend_gate
from magnus_cache._engine.redis import spend_keys
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/loading/test_spending.py"


@guard(f"{HERE}::test_loads_of_a_fixed_price_never_pass_the_limit_however_many_begin_at_once")
def without_counting_a_known_price_before_the_load() -> None:
    edit(spend_keys._SPEND, "if allowed == 1 and price > 0 then add(ARGV[7]) end", "")


@guard(f"{HERE}::test_loads_of_a_fixed_price_never_pass_the_limit_however_many_begin_at_once")
def without_room_for_the_price_of_a_load() -> None:
    edit(spend_keys._SPEND, "if known + price > limit then allowed = 0 end", "if known > limit then allowed = 0 end")


@guard(f"{HERE}::test_a_report_whose_answer_is_lost_counts_once")
def without_the_number_of_a_report_of_spending() -> None:
    edit(spend_keys._SPEND, "if ARGV[4] ~= '0' and (tonumber(head[3]) or 0) < tonumber(ARGV[4]) then", "if true then")


@guard(f"{HERE}::test_a_new_period_begins_at_zero")
def without_a_new_period() -> None:
    edit(spend_keys._SPEND, "or (tonumber(head[1]) or -1) < number then", "then")


@guard(f"{HERE}::test_redis_counts_months_as_the_calendar_does")
def without_months_that_begin_in_january() -> None:
    edit(spend_keys._SPEND, "month = month < 10 and month + 3 or month - 9", "")


@guard(f"{HERE}::test_nonsense_in_the_place_of_an_account_counts_as_nothing")
def without_an_end_of_an_account() -> None:
    edit(spend_keys._SPEND, "redis.call('EXPIRE', KEYS[1],", "redis.call('HMGET', KEYS[1],")


@guard(f"{HERE}::test_a_load_that_fails_is_not_charged")
def without_giving_back_what_failed_loads_were_charged() -> None:
    for module in (loads, permits, spend_gate):
        put(module, "give_back", nothing)


@guard(f"{HERE}::test_a_load_that_its_budget_refuses_is_not_charged")
def without_giving_back_what_a_refused_load_was_charged() -> None:
    put(spend_gate.SpendCheck, "leave", nothing)


@guard(f"{HERE}::test_what_killed_processes_have_spent_is_known_exactly")
def without_reporting_what_a_load_has_cost() -> None:
    rewrite(loads.Loads.stored, "self._state.spending.report()", "pass")


@guard(f"{HERE}::test_the_fleet_loads_until_its_limit_is_spent")
def without_noting_what_a_load_has_cost() -> None:
    rewrite(money.paid_for, "state.spending.spent(request.ref.namespace, limit, paid)", "pass")


@guard(f"{HERE}::test_in_an_outage_a_process_keeps_to_its_share_and_tells_it_afterwards")
def without_sharing_what_was_left() -> None:
    rewrite(spending._Account.alone, "max(0, self.left) // share", "max(0, self.left)")


@guard(f"{HERE}::test_in_an_outage_a_process_keeps_to_its_share_and_tells_it_afterwards")
def without_telling_what_was_spent_in_an_outage() -> None:
    rewrite(
        connection_events.ConnectionEvents.connected, "self._parts.spending.report()", "pass"
    )  # fmt: skip


@guard(f"{HERE}::test_a_process_that_has_never_met_redis_spends_nothing")
def without_knowing_what_is_left() -> None:
    rewrite(spending._Account.alone, "return SpendAnswer(False, _UNKNOWN, known=False)", "self.left = self.limit.nanos")
