"""The guards that `test_program_end` sees missing."""

import asyncio
import contextlib
from typing import Any, Final

from magnus_cache._engine.coordination import epoch_sync, lease
from magnus_cache._engine.flights import flights
from magnus_cache._engine.loading import batch, batch_loads
from magnus_cache._engine.redis import connection, wire
from magnus_cache._engine.runtime import loop_end
from magnus_cache._engine.runtime.waiters import Failed
from magnus_cache._engine.store import writes_many
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/runtime/test_program_end.py"


def _cancel(*futures: "asyncio.Future[Any]") -> None:
    for future in futures:
        future.cancel()


@guard(f"{HERE}::test_a_loop_closed_by_hand_leaves_no_connection")
def without_ending_tasks_with_their_loop() -> None:
    put(loop_end._LoopEnd, "end", nothing)


@guard(f"{HERE}::test_at_the_end_of_the_program_an_idle_loop_lets_go")
def without_ending_tasks_with_the_program() -> None:
    put(loop_end, "_at_exit", nothing)


@guard(f"{HERE}::test_at_the_end_of_the_program_a_loop_that_runs_keeps_its_connection")
def without_keeping_the_tasks_of_a_loop_that_runs_at_the_end() -> None:
    put(loop_end._LoopEnd, "keep", nothing)


@guard(f"{HERE}::test_a_loop_closed_by_hand_leaves_no_connection")
def without_closing_the_socket_of_a_closed_loop() -> None:
    put(connection._Opened, "_drop", nothing)


@guard(f"{HERE}::test_a_load_on_a_loop_closed_by_hand_leaves_its_key_free")
def without_giving_back_the_lease_of_a_closed_loop() -> None:
    def close(self: Any, *, filled: bool = False, unstorable: bool = False) -> None:
        with contextlib.suppress(RuntimeError):
            self.connection.loop.call_soon_threadsafe(self._close, filled, unstorable)

    put(lease.Lease, "close", close)


@guard(f"{HERE}::test_those_who_wait_elsewhere_for_a_load_on_a_loop_closed_by_hand_load_themselves")
def without_abandoning_the_loads_of_a_closed_loop() -> None:
    put(flights, "Abandoned", lambda error: Failed(error, None))


@guard(f"{HERE}::test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free")
def without_giving_back_the_leases_of_a_batch_on_a_closed_loop() -> None:
    put(batch, "cancel", _cancel)
    put(batch_loads, "cancel", _cancel)


@guard(f"{HERE}::test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free")
def without_ending_the_tasks_of_a_batch_with_their_loop() -> None:
    put(batch, "loop_task", asyncio.ensure_future)


@guard(f"{HERE}::test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free[valkey-about to load]")
def without_a_look_whether_the_loop_of_a_batch_runs() -> None:
    put(batch, "running_loop", asyncio.get_running_loop)


@guard(f"{HERE}::test_writes_of_one_call_that_take_long_on_a_loop_closed_by_hand_end_quietly")
def without_a_look_whether_the_loop_of_writes_that_are_cancelled_is_closed() -> None:
    put(writes_many, "cancel", _cancel)


@guard(f"{HERE}::test_calls_that_wait_for_redis_on_a_loop_closed_by_hand_end_quietly[set many, packed]")
def without_ending_the_writes_of_one_call_with_their_loop() -> None:
    put(writes_many, "loop_task", asyncio.ensure_future)


@guard(f"{HERE}::test_a_connection_on_a_loop_closed_by_hand_ends_for_all_who_wait")
def without_patience_with_a_reader_of_epochs_whose_loop_is_closed() -> None:
    rewrite(epoch_sync._end, "if not ended.get_loop().is_closed():", "if True:")
    rewrite(wire.Wire._end, "finally:", "except ZeroDivisionError:")
