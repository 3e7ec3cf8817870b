"""Guards of the end: of programs, of event loops that are closed by hand, and of managers that are dropped."""

import asyncio
import contextlib
from typing import Any

from magnus_cache._engine.api import engine, many
from magnus_cache._engine.coordination import dropped, lease
from magnus_cache._engine.flights import flights
from magnus_cache._engine.loading import batch, loads, uncached
from magnus_cache._engine.redis import connection
from magnus_cache._engine.runtime import loop_end, portal_thread, workers
from magnus_cache._engine.runtime.waiters import Failed
from magnus_cache._engine.store import deferred, writes
from tests.support.guards import guard, nothing, put

_ENDS = "tests/runtime/test_program_end.py::"
_DROPPED = "tests/api/test_dropped.py::"
_DEEP = "tests/api/test_deep_callers.py::"
_BATCHES = "tests/flights/test_interrupted_batches.py::"
_NO_THREAD = "tests/runtime/test_no_thread.py::"


@guard(_ENDS + "test_a_loop_closed_by_hand_leaves_no_connection")
def without_ending_tasks_with_their_loop() -> None:
    put(loop_end._LoopEnd, "end", nothing)


@guard(_ENDS + "test_at_the_end_of_the_program_an_idle_loop_lets_go")
def without_ending_tasks_with_the_program() -> None:
    put(loop_end, "_at_exit", nothing)


@guard(_ENDS + "test_at_the_end_of_the_program_a_loop_that_runs_keeps_its_connection")
def without_keeping_the_tasks_of_a_loop_that_runs_at_the_end() -> None:
    put(loop_end._LoopEnd, "keep", nothing)


@guard(_ENDS + "test_a_loop_closed_by_hand_leaves_no_connection")
def without_closing_the_socket_of_a_closed_loop() -> None:
    put(connection._Opened, "_drop", nothing)


@guard(_ENDS + "test_a_load_on_a_loop_closed_by_hand_leaves_its_key_free")
def without_giving_back_the_lease_of_a_closed_loop() -> None:
    def close(self: Any, *, filled: bool = False) -> None:
        with contextlib.suppress(RuntimeError):
            self.wire.loop.call_soon_threadsafe(self._close, filled)

    put(lease.Lease, "close", close)


@guard(_ENDS + "test_those_who_wait_elsewhere_for_a_load_on_a_loop_closed_by_hand_load_themselves")
def without_abandoning_the_loads_of_a_closed_loop() -> None:
    put(flights, "Abandoned", lambda error: Failed(error, None))


def _cancel(*futures: "asyncio.Future[Any]") -> None:
    for future in futures:
        future.cancel()


@guard(_ENDS + "test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free")
def without_giving_back_the_leases_of_a_batch_on_a_closed_loop() -> None:
    put(batch, "cancel", _cancel)


@guard(_ENDS + "test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free")
def without_ending_the_tasks_of_a_batch_with_their_loop() -> None:
    put(batch, "loop_task", asyncio.ensure_future)


@guard(_ENDS + "test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free[valkey-about to load]")
def without_a_look_whether_the_loop_of_a_batch_runs() -> None:
    put(batch, "running_loop", asyncio.get_running_loop)


@guard(_ENDS + "test_writes_of_one_call_that_take_long_on_a_loop_closed_by_hand_end_quietly")
def without_a_look_whether_the_loop_of_writes_that_are_cancelled_is_closed() -> None:
    put(writes, "cancel", _cancel)


@guard(_ENDS + "test_calls_that_wait_for_redis_on_a_loop_closed_by_hand_end_quietly[set many]")
def without_ending_the_writes_of_one_call_with_their_loop() -> None:
    put(writes, "loop_task", asyncio.ensure_future)


@guard(_BATCHES + "test_a_batch_whose_loop_is_closed_while_its_loader_runs_says_so")
def without_an_end_for_the_batch_of_a_thread_whose_loop_is_closed() -> None:
    put(many, "call_on_loop", lambda loop, callback: loop.call_soon_threadsafe(callback))


@guard(_BATCHES + "test_those_who_joined_an_interrupted_batch_load_for_themselves[without a word]")
def without_a_look_whether_a_batch_was_deserted() -> None:
    put(many, "_LOOK", 3600.0)


@guard(_DROPPED + "test_a_blocking_manager", _DROPPED + "test_an_async_manager")
def without_ending_what_was_dropped() -> None:
    put(engine.Engine, "__del__", nothing)


@guard(_DROPPED + "test_what_redis_was_not_told_is_told_at_last")
def without_telling_redis_when_a_manager_is_dropped() -> None:
    def drop(state: Any) -> None:
        state.farewell = nothing
        dropped.drop(state)

    put(engine, "drop", drop)


@guard(_DROPPED + "test_a_refresh_that_goes_on_is_cancelled")
def without_cancelling_the_loads_of_a_dropped_manager() -> None:
    def drop(state: Any) -> None:
        state.flights.end = nothing
        dropped.drop(state)

    put(engine, "drop", drop)


@guard(_NO_THREAD + "test_redis_is_told_later_what_was_removed_and_overwritten")
def without_recording_what_is_removed_without_a_loop() -> None:
    put(deferred.Deferred, "_missed", nothing)


@guard(_NO_THREAD + "test_redis_is_told_later_what_was_removed_and_overwritten")
def without_recording_a_set_without_a_loop() -> None:
    put(deferred.Deferred, "record_overwritten", lambda *_: False)


@guard(_NO_THREAD + "test_threads_that_wait_share_one_load_and_get_copies")
def without_copies_for_those_who_wait_without_a_loop() -> None:
    put(loads, "uncached", lambda *args: (uncached.uncached(*args)[0], None))


@guard(_NO_THREAD + "test_functions_under_an_async_manager_are_called_on_its_loop")
def without_calling_a_loader_where_there_is_no_thread() -> None:
    put(workers.Job, "begun", True)


@guard(_DEEP + "test_a_wake_that_fails_is_no_closed_cache")
def without_telling_a_recursion_error_from_a_closed_loop() -> None:
    def post(self: Any, *args: Any) -> None:
        try:
            original(self, *args)
        except RuntimeError as error:
            raise portal_thread.closed_error() from error

    original = portal_thread.PortalThread.post
    put(portal_thread.PortalThread, "post", post)
