"""The guards that `test_budgets` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import explain
from magnus_cache._engine.coordination import budget_queue, lease, sources
from magnus_cache._engine.loading import batch, permits, warm_loads
from magnus_cache._engine.policy import bucket
from magnus_cache._engine.redis import budget_keys
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/loading/test_budgets.py"
BUCKETS: Final = "tests/redis/test_buckets.py"


@guard(f"{HERE}::test_the_fleet_shares_one_bucket")
def without_a_budget() -> None:
    async def enter(*_: Any) -> None: ...

    put(permits.BudgetCheck, "enter", enter)


@guard(f"{HERE}::test_a_turn_that_would_come_too_late_is_an_error_at_once")
def without_an_error_for_a_turn_that_comes_too_late() -> None:
    rewrite(budget_queue.BudgetQueue._answered, "or now + left > entry.held.until", "")


@guard(f"{HERE}::test_stale_values_are_served_at_once_and_the_bucket_is_left_alone")
def without_a_rest_for_keys_that_were_held_back() -> None:
    put(permits.Permits, "_rest", nothing)


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


# -- the script ----------------------------------------------------------------------------------------------------


@guard(f"{BUCKETS}::test_a_full_bucket_gives_all_its_tokens_at_once_and_each_back_a_window_later")
def without_taking_a_token() -> None:
    edit(budget_keys._TAKE, "    take(load[1])\n", "")


@guard(f"{BUCKETS}::test_a_token_is_held_for_the_load_whose_turn_it_is")
def without_holding_a_token_for_the_next() -> None:
    edit(budget_keys._TAKE, "redis.call('HSET', KEYS[1], 'w', cmsgpack.pack(waiting))", "local _ = 0")


@guard(f"{BUCKETS}::test_callers_come_before_background_loads_and_more_callers_before_fewer")
def without_the_rank_of_a_load() -> None:
    edit(budget_keys._TAKE, "if a[2] ~= b[2] then return a[2] < b[2] end", "")


@guard(f"{BUCKETS}::test_a_process_that_does_not_come_for_its_turn_loses_it_after_a_second")
def without_an_end_of_the_turns_of_the_dead() -> None:
    edit(budget_keys._TAKE, "if told[1] + 1000000 < now then", "if false then")


@guard(f"{BUCKETS}::test_a_lost_bucket_learns_what_those_have_taken_who_ask")
def without_telling_a_new_bucket_what_was_taken() -> None:
    edit(budget_keys._TAKE, "if known ~= '' then taken = tonumber(ARGV[6]) end", "")


@guard(f"{BUCKETS}::test_a_pause_holds_everything_back_and_never_gets_shorter")
def without_a_pause_of_a_bucket() -> None:
    edit(budget_keys._TAKE, "and until_ <= now and", "and")


@guard(f"{BUCKETS}::test_tokens_that_were_not_used_are_given_back")
def without_a_look_whose_tokens_are_given_back() -> None:
    edit(budget_keys._GIVE_BACK, "head[3] ~= ARGV[1] or", "")


@guard(f"{BUCKETS}::test_a_clock_that_is_set_back_does_not_stop_the_source")
def without_tokens_of_a_clock_that_is_set_back() -> None:
    edit(budget_keys._TAKE, "if at(place) > now then", "if false then")


@guard(f"{BUCKETS}::test_a_clock_that_is_set_back_makes_no_pause_longer")
def without_pauses_of_a_clock_that_is_set_back() -> None:
    edit(budget_keys._TAKE, "until_ = math.max(until_ - back, 0)", "")


@guard(f"{BUCKETS}::test_a_clock_that_is_set_back_keeps_no_turns_of_the_dead")
def without_turns_of_a_clock_that_is_set_back() -> None:
    edit(budget_keys._TAKE, "told[1] = told[1] - back", "")


@guard(f"{BUCKETS}::test_a_lower_budget_waits_no_longer_than_it_has_to")
def without_the_tokens_beyond_a_lower_budget() -> None:
    edit(budget_keys._TAKE, "(place - (upto - oldest) + 1) / size), 0)", "(place + 1) / size) - 1, 0)")


@guard(f"{BUCKETS}::test_the_bucket_ends_by_itself")
def without_an_end_of_a_bucket() -> None:
    edit(budget_keys._TAKE, "redis.call('PEXPIRE', KEYS[1],", "redis.call('HMGET', KEYS[1],")


# -- the share, the lease, batches, warming ------------------------------------------------------------------------


@guard(f"{HERE}::test_in_an_outage_each_process_keeps_to_its_share")
def without_a_share_in_an_outage() -> None:
    put(bucket, "share_of", lambda rate, processes: rate)
    put(sources, "share_of", lambda rate, processes: rate)


@guard(f"{HERE}::test_in_an_outage_each_process_keeps_to_its_share")
def without_what_was_taken_before_an_outage() -> None:
    rewrite(sources._Tokens._took, "self._own.take(self._sources.clock(), granted)", "pass")


@guard(f"{HERE}::test_the_lease_of_a_load_that_waits_does_not_lapse")
def without_renewing_the_lease_of_a_load_that_waits() -> None:
    put(lease.Lease, "_renew", nothing)


@guard(f"{HERE}::test_a_call_of_a_batch_loader_is_one_load_unless_its_keys_are_counted")
def without_a_budget_for_batches() -> None:
    rewrite(batch.Batch._permitted, "if ref is not None and permits.limits(ref):", "if False:")


@guard(f"{HERE}::test_a_call_of_a_batch_loader_is_one_load_unless_its_keys_are_counted")
def without_counting_the_keys_of_a_batch() -> None:
    rewrite(sources.Sources.take, "source.tokens(keys)", "1")


@guard(f"{HERE}::test_batch_loaders_pause_their_source")
def without_a_pause_that_a_batch_loader_asks_for() -> None:
    rewrite(permits.Permits._pause, "await self._state.sources.pause(source, later.seconds)", "pass")


@guard(f"{HERE}::test_warming_takes_tokens_and_waits_for_them")
def without_a_budget_for_warming() -> None:
    rewrite(permits.Permits.warmed, "await self._pass(turn)", "pass")
    rewrite(warm_loads.WarmLoads._do, "self._is_async or self._loads.permits.limits(job.item.ref)", "self._is_async")


@guard(f"{HERE}::test_explain_tells_of_a_paused_source_and_of_a_budget_that_is_used_up")
def without_the_budget_of_a_function_in_explain() -> None:
    rewrite(explain._held_back, "source_of(ref, options, ref.name)", "source_of(ref, None, ref.name)")
