"""The guards that `test_no_thread` sees missing."""

from typing import Final

from magnus_cache._engine.api import many
from magnus_cache._engine.loading import loads, own_loop, permits, uncached
from magnus_cache._engine.runtime import workers
from magnus_cache._engine.store import deferred
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/runtime/test_no_thread.py"


@guard(f"{HERE}::test_redis_is_told_later_what_was_removed_and_overwritten")
def without_recording_what_is_removed_without_a_loop() -> None:
    put(deferred.Deferred, "_missed", nothing)


@guard(f"{HERE}::test_redis_is_told_later_what_was_removed_and_overwritten")
def without_recording_a_set_without_a_loop() -> None:
    put(deferred.Deferred, "record_overwritten", lambda *_: False)


@guard(f"{HERE}::test_threads_that_wait_share_one_load_and_get_copies")
def without_copies_for_those_who_wait_without_a_loop() -> None:
    put(loads, "uncached", lambda *args: loads.LoadedValue(uncached.uncached(*args).take(), None))


@guard(f"{HERE}::test_functions_under_an_async_manager_are_called_on_its_loop")
def without_calling_a_loader_where_there_is_no_thread() -> None:
    put(workers.Job, "begun", True)


@guard(f"{HERE}::test_a_coroutine_function_on_a_loop_of_its_own_leaves_the_threads_loop_in_place")
def without_leaving_the_loop_of_a_thread_in_place() -> None:
    rewrite(own_loop._run_here, "asyncio.Runner(loop_factory=asyncio.new_event_loop)", "asyncio.Runner()")


@guard(f"{HERE}::test_a_coroutine_function_that_fails_for_want_of_a_thread_is_called_once")
def without_a_look_whether_a_coroutine_function_was_called() -> None:
    rewrite(own_loop.wait_for, "if begun:", "if False:")


@guard(
    f"{HERE}::test_a_budget_holds_without_a_loop", f"{HERE}::test_a_limit_of_spending_holds_without_a_loop",
)  # fmt: skip
def without_a_gate_where_there_is_no_loop() -> None:
    put(permits.Permits, "_pass_alone", nothing)


@guard(f"{HERE}::test_a_budget_holds_without_a_loop")
def without_a_gate_for_batches_where_there_is_no_loop() -> None:
    rewrite(many._load_uncached, "engine.loads.permits.called_alone(request, wanted[0].ref, flights, call)", "call()")


@guard(f"{HERE}::test_a_paused_source_rests_without_a_loop")
def without_a_rest_for_a_source_where_there_is_no_loop() -> None:
    rewrite(permits.Permits.called_alone, "self._state.sources.note_paused({source.name: later.seconds})", "pass")


@guard(f"{HERE}::test_a_limit_of_spending_holds_without_a_loop")
def without_giving_back_the_price_of_a_load_without_a_loop() -> None:
    rewrite(permits.Permits.called_alone, "give_back(self._state, ref, turn.options, flights)", "pass")
