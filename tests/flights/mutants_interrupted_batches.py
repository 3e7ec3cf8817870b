"""The guards that `test_interrupted_batches` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import many
from tests.support.guards import guard, put

HERE: Final = "tests/flights/test_interrupted_batches.py"


@guard(f"{HERE}::test_a_batch_whose_loop_is_closed_while_its_loader_runs_says_so")
def without_an_end_for_the_batch_of_a_thread_whose_loop_is_closed() -> None:
    put(many, "call_on_loop", lambda loop, callback: loop.call_soon_threadsafe(callback))


@guard(f"{HERE}::test_those_who_joined_an_interrupted_batch_load_for_themselves[without a word]")
def without_a_look_whether_a_batch_was_abandoned() -> None:
    put(many, "_LOOK", 3600.0)


@guard(f"{HERE}::test_those_who_joined_an_interrupted_batch_load_for_themselves[in the loader]")
def without_an_end_for_what_a_lost_thread_was_to_answer() -> None:
    def cancel(self: Any) -> None:
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()

    put(many._BlockingBatch, "_cancel", cancel)


@guard(f"{HERE}::test_those_who_joined_an_interrupted_batch_load_for_themselves[before the claim]")
def without_a_look_whether_the_thread_that_loads_is_gone() -> None:
    cancel = many._BlockingBatch._cancel

    def forget(self: Any) -> None:
        cancel(self)
        self._abandoned = False

    put(many._BlockingBatch, "_cancel", forget)
