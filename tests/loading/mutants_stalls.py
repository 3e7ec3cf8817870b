"""The guards that `test_stalls` sees missing."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from magnus_cache._engine.api import blocking, many
from magnus_cache._engine.codec import steps, values
from magnus_cache._engine.coordination import state
from magnus_cache._engine.loading import loads
from magnus_cache._engine.memory import clear_log, store
from magnus_cache._engine.redis import pipeline, requests
from magnus_cache._engine.runtime import background_loops, turns
from magnus_cache._engine.store import values as coding
from magnus_cache._engine.store import writes, writes_many
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/loading/test_stalls.py"


@guard(f"{HERE}::test_large_values_leave_turns_to_others")
def without_turns_between_the_steps_of_a_value() -> None:
    async def at_once(work: Any) -> Any:
        return turns.at_once(work)

    for module in (coding, loads, many, writes):
        put(module, "in_turns", at_once)


@guard(f"{HERE}::test_large_values_leave_turns_to_others")
def without_decoding_hits_in_steps() -> None:
    put(coding.Coding, "opened_here", coding.Coding.opened)


@guard(f"{HERE}::test_large_values_leave_turns_to_others")
def without_encoding_in_steps() -> None:
    put(coding.codec, "is_heavy", lambda _: False)


@guard(f"{HERE}::test_a_large_value_takes_many_steps")
def without_a_bound_on_what_one_step_decodes() -> None:
    put(steps, "_FEED", 1 << 30)


@guard(f"{HERE}::test_a_large_value_takes_many_steps")
def without_a_bound_on_what_one_step_encodes() -> None:
    put(steps, "_RUN", 1 << 30)


@guard(f"{HERE}::test_steps_nest_no_deeper_than_can_be_decoded")
def without_counting_the_levels_that_were_divided() -> None:
    original = steps._Packing._wrapped
    put(steps._Packing, "_wrapped", lambda self, value, _levels: original(self, value, ()))


@guard(f"{HERE}::test_what_changes_while_it_is_encoded_gives_a_value_all_the_same")
def without_a_copy_of_what_is_encoded_in_steps() -> None:
    # Shadows the built-in there.
    vars(steps)["list"] = lambda items: items if type(items) is list else [*items]


@guard(f"{HERE}::test_damaged_large_payloads_are_told_apart")
def without_noticing_bytes_behind_a_large_value() -> None:
    original = values.fed

    def fed(*args: Any) -> Any:
        value, _ = yield from original(*args)
        return value, False

    put(values, "fed", fed)


@guard(f"{HERE}::test_a_large_value_is_decoded_in_steps_by_threads_too")
def without_steps_in_threads() -> None:
    put(values, "LARGE", 1 << 60)


@guard(f"{HERE}::test_steps_of_several_calls_share_their_time")
def without_sharing_a_turn() -> None:
    async def turn() -> None:
        await asyncio.sleep(0)

    put(turns, "turn", turn)


@guard(f"{HERE}::test_each_who_joined_a_large_load_decodes_in_steps")
def without_decoding_in_steps_for_those_who_joined() -> None:
    async def taken(self: Any, *, strict: bool = False) -> Any:
        return self.take(strict=strict)

    put(loads.LoadedValue, "taken", taken)


@guard(f"{HERE}::test_calls_for_many_values_count_bytes")
def without_counting_bytes() -> None:
    put(turns, "STEP_BYTES", 1 << 60)


@guard(f"{HERE}::test_writes_of_one_call_begin_some_at_a_time")
def without_a_bound_on_the_writes_begun_in_one_turn() -> None:
    put(writes_many.Step, "done", lambda _self, _size=0: False)


@guard(f"{HERE}::test_a_reply_of_large_values_is_handed_out_in_steps")
def without_handing_out_in_steps() -> None:
    put(pipeline, "STEP_BYTES", 1 << 60)
    put(requests, "STEP_BYTES", 1 << 60)


@guard(f"{HERE}::test_a_connection_lost_between_two_steps_fails_the_rest")
def without_failing_what_was_not_handed_out() -> None:
    original = pipeline.Pipeline.fail_sent

    def fail_sent(self: Any, error: Any) -> None:
        self.unfinished = None
        original(self, error)

    put(pipeline.Pipeline, "fail_sent", fail_sent)


@guard(f"{HERE}::test_a_reply_is_asked_to_carry_two_megabytes")
def without_expecting_large_values() -> None:
    put(pipeline, "_BATCH_BYTES", 1 << 60)


@guard(f"{HERE}::test_sizes_are_remembered_for_the_next_call")
def without_remembering_sizes() -> None:
    from magnus_cache._engine.coherence import epochs

    put(epochs.EpochNames, "sized", nothing)


@guard(f"{HERE}::test_a_long_push_is_handled_in_steps")
def without_steps_for_long_pushes() -> None:
    put(turns, "PIECE", 1 << 60)


@guard(f"{HERE}::test_clears_of_namespaces_are_one_look_up")
def without_finding_clears_of_namespaces_by_name() -> None:
    put(clear_log, "_namespace_of", lambda _: b"")


@guard(f"{HERE}::test_more_clears_of_namespaces_than_are_kept_apart_clear_everything")
def without_a_bound_on_clears_of_namespaces() -> None:
    put(clear_log, "_MOST_NAMESPACES", math.inf)


@guard(f"{HERE}::test_clears_by_pattern_shorten_the_steps_of_each_other")
def without_counting_what_a_step_compares() -> None:
    put(clear_log.ClearLog, "bounded", lambda _self, count: count)


@guard(f"{HERE}::test_a_large_memory_is_given_up_in_steps")
def without_giving_up_a_memory_in_steps() -> None:
    put(store.LocalCache, "shrink", nothing)


@guard(f"{HERE}::test_blocking_calls_code_in_their_own_thread")
def without_coding_many_in_the_callers_thread() -> None:
    def get_many(self: Any, namespace: Any, keys: Any, *, stamped: bool = False) -> Any:
        return self._call(self._async.get_many, namespace, keys)

    put(blocking.BlockingCache, "get_many", get_many)


@guard(f"{HERE}::test_blocking_calls_code_in_their_own_thread")
def without_preparing_batches_in_the_callers_thread() -> None:
    put(many._BlockingBatch, "_prepared", lambda _self, _keys, answers: answers)


@guard(f"{HERE}::test_blocking_calls_code_in_their_own_thread")
def without_encoding_loads_in_the_callers_thread() -> None:
    original = loads.Loads.stored

    async def stored(self: Any, request: Any, prepared: Any, *rest: Any) -> Any:
        again = turns.at_once(self.preparer.steps(request._replace(tags=prepared.tags), prepared.value))
        return await original(self, request, again, *rest)

    put(loads.Loads, "stored", stored)


@guard(f"{HERE}::test_a_coroutine_that_blocks_holds_up_no_other_threads_get")
def without_a_loop_for_loaders() -> None:
    async def run(_self: Any, loader: Callable[[], Awaitable[Any]]) -> Any:
        return await loader()

    put(background_loops.BackgroundLoops, "run", run)


@guard(f"{HERE}::test_a_coroutine_that_blocks_holds_up_no_other_threads_get")
def without_a_loop_for_the_loaders_of_threads() -> None:
    original = state.BackgroundLoops.__init__

    def init(self: Any) -> None:
        original(self)
        self.loaders = self

    put(state.BackgroundLoops, "__init__", init)


@guard(f"{HERE}::test_a_blocking_call_within_a_coroutine_of_a_blocking_caller_is_refused")
def without_refusing_to_block_the_loaders() -> None:
    put(background_loops.BackgroundLoops, "inside", background_loops.Portal.inside)
    put(background_loops.BackgroundLoops, "_check_loaders", nothing)


@guard(f"{HERE}::test_what_ends_a_program_ends_no_loop_of_the_cache")
def without_keeping_what_ends_a_program_from_the_loop() -> None:
    async def run(self: Any) -> None:
        self._tell((None, await self._loader()))

    put(background_loops._Away, "_run", run)


@guard(f"{HERE}::test_a_coroutine_that_nobody_waits_for_is_cancelled")
def without_ending_the_loaders() -> None:
    put(background_loops.BackgroundLoops, "close", background_loops.Portal.close)
    put(background_loops.BackgroundLoops, "end", background_loops.Portal.end)


@guard(f"{HERE}::test_steps_make_the_same_bytes_and_the_same_value")
def without_a_tuples_mark_in_steps() -> None:
    original = values.packed
    put(values, "packed", lambda encode, value, _mark: original(encode, value, None))
