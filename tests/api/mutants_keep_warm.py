"""The guards that `test_keep_warm` sees missing."""

import asyncio
from typing import Final

from magnus_cache._engine.api import keep_warm as arguments
from magnus_cache._engine.coordination import jobs
from magnus_cache._engine.loading import keep_warm, warm_rounds, warm_schedule
from magnus_cache._engine.policy import refreshes
from magnus_cache._engine.redis import job_keys
from magnus_cache._engine.store import lifetimes
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/api/test_keep_warm.py"
SCHEDULE: Final = "tests/loading/test_warm_schedule.py"


@guard(f"{HERE}::test_loads_are_spread_over_the_interval", "tests/policy/test_refreshes.py")
def without_spreading_the_loads_of_a_job() -> None:
    rewrite(refreshes.levelled, "min(dues[place], max(now, following - gap))", "dues[place]")


@guard(f"{HERE}::test_what_another_process_has_loaded_is_not_loaded_again")
def without_a_look_whether_someone_has_loaded_a_value_that_is_due() -> None:
    rewrite(warm_rounds.WarmRounds._begin, "if self._schedule.is_known(name, look):", "if True:")


@guard(f"{HERE}::test_a_value_that_lives_longer_than_the_interval_by_its_own_ttl_is_left_alone")
def without_leaving_values_alone_that_a_calendar_keeps() -> None:
    rewrite(refreshes.due, "lead = life - every if fixed else min(life - every, every)", "lead = life - every")


@guard(SCHEDULE)
def without_waiting_for_an_end_that_a_load_does_not_move() -> None:
    rewrite(warm_schedule.WarmSchedule.loaded, "now + after.lifetime.left if stayed else -math.inf", "-math.inf")


@guard(f"{HERE}::test_memory_that_keeps_values_for_less_than_they_live")
def without_asking_redis_for_ends_that_memory_does_not_know() -> None:
    rewrite(lifetimes.Lifetimes.look, "namespace.l1_ttl is not None", "namespace.local")


@guard(f"{HERE}::test_a_key_that_fails_is_tried_less_often_and_the_others_go_on", SCHEDULE)
def without_pauses_after_failures_of_a_job() -> None:
    rewrite(refreshes.retry_after, "return pause * (1 - random() / 4)", "return 0.02")


@guard(f"{HERE}::test_what_is_not_stored_is_not_loaded_all_the_time", SCHEDULE)
def without_a_pause_after_a_result_that_is_not_stored() -> None:
    rewrite(warm_schedule.WarmSchedule.loaded, "self.failed(name, after, now)", "self.set(name, now)")


@guard(f"{HERE}::test_what_would_end_a_task_does_not_end_the_job")
def without_telling_a_cancelled_load_from_a_cancelled_job() -> None:
    rewrite(warm_rounds._is_cancelled, "and (task is None or bool(task.cancelling()))", "")


@guard(f"{HERE}::test_a_disabled_cache_loads_nothing")
def without_a_pause_of_jobs_while_the_cache_is_disabled() -> None:
    rewrite(warm_rounds.WarmRounds._may_load, "and self._state.mode is not Mode.DISABLED", "")


@guard(f"{HERE}::test_a_job_whose_lease_was_taken_is_given_up")
def without_giving_up_a_job_whose_lease_was_taken() -> None:
    rewrite(keep_warm.WarmRunner._keep, 'self._lose("taken")', "pass")


@guard(f"{HERE}::test_a_job_whose_lease_was_taken_is_given_up")
def without_asking_whose_lease_a_job_has() -> None:
    edit(job_keys._HOLD, "string.sub(held, 1, #ARGV[1]) ~= ARGV[1]", "false")


@guard(f"{HERE}::test_a_job_whose_lease_was_taken_is_given_up")
def without_taking_over_a_lease_that_never_ends() -> None:
    edit(job_keys._HOLD, "if left >= 0 then return left + 1 end", "return math.max(left, 0) + 1")


@guard(f"{HERE}::test_without_contact_the_job_ends_with_its_lease")
def without_counting_the_lease_of_a_job_by_the_own_clock() -> None:
    rewrite(jobs.JobLease.request, "sent + self.seconds", "math.inf")


@guard(f"{HERE}::test_a_closed_cache_leaves_nothing_of_its_jobs")
def without_giving_up_the_lease_of_a_job_that_ends() -> None:
    rewrite(keep_warm.WarmRunner._finish, "self._lease.give_up(self._settle)", "self._settle()")


@guard(f"{HERE}::test_a_closed_cache_leaves_nothing_of_its_jobs")
def without_ending_jobs_before_the_connections() -> None:
    put(jobs.Jobs, "aclose", _no_end)


async def _no_end(self: jobs.Jobs, timeout: float) -> None:
    del self, timeout
    await asyncio.sleep(0)


@guard(f"{HERE}::test_a_job_outlives_its_beginner_and_stops_from_another_thread")
def without_a_context_of_its_own_for_a_job() -> None:
    rewrite(keep_warm.WarmRunner.__init__, "create_task(self._run(), context=context)", "create_task(self._run())")


@guard(f"{HERE}::test_a_forked_child_leaves_the_job_to_its_parent")
def without_leaving_jobs_to_the_parent_of_a_forked_child() -> None:
    put(jobs.Jobs, "reset", nothing)


@guard(f"{HERE}::test_functions_of_keys_are_told_apart")
def without_the_code_in_the_name_of_a_job() -> None:
    rewrite(arguments._identity, "code.co_code.hex(), repr(code.co_names), repr(code.co_consts)", '""')


@guard(f"{HERE}::test_ten_thousand_keys_leave_the_loop_free")
def without_steps_between_the_names_of_many_keys() -> None:
    rewrite(warm_rounds.WarmRounds.items, "if count % _STEP == 0:", "if False:")


@guard(f"{HERE}::test_keys_that_cannot_be_asked_for_do_not_end_the_job")
def without_patience_with_keys_that_cannot_be_asked_for() -> None:
    rewrite(warm_rounds.WarmRounds.look_around, "except Exception as error:", "except ZeroDivisionError as error:")


@guard(f"{HERE}::test_an_error_may_say_when_to_try_again")
def without_the_pause_that_an_error_asks_for() -> None:
    rewrite(warm_rounds._pause_of, "return min(float(pause), _DAY) if", "return None if")


@guard(f"{HERE}::test_a_load_that_hangs_does_not_hold_up_the_others")
def without_a_bound_on_the_wait_for_a_load_of_a_job() -> None:
    rewrite(warm_rounds.WarmRounds._load, "max_wait=allowed", "max_wait=None")
