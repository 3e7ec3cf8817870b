"""Guards of what the stress of all operations has found; see `mutants`."""

from typing import Any

from magnus_cache._engine.api import many
from tests.support.guards import guard, put

_TESTS = "tests/flights/test_interrupted_batches.py::"


@guard(_TESTS + "test_those_who_joined_an_interrupted_batch_load_for_themselves[in the loader]")
def without_an_end_for_what_a_lost_thread_was_to_answer() -> None:
    def cancel(self: Any) -> None:
        self._deserted = True
        if self._task is not None:
            self._task.cancel()

    put(many._Desk, "_cancel", cancel)


@guard(_TESTS + "test_those_who_joined_an_interrupted_batch_load_for_themselves[before the claim]")
def without_a_look_whether_the_thread_that_loads_is_gone() -> None:
    cancel = many._Desk._cancel

    def forget(self: Any) -> None:
        cancel(self)
        self._deserted = False

    put(many._Desk, "_cancel", forget)
