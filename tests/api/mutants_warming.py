"""The guards that `test_warming` sees missing."""

from typing import Final

from magnus_cache._engine.api import warming
from magnus_cache._engine.loading import streamed_keys, warm_loads
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/api/test_warming.py"


@guard(HERE)
def without_beginning_loads_that_are_joined_before_their_turn() -> None:
    put(warm_loads.WarmLoads, "_urge", nothing)


@guard(f"{HERE}::test_keys_that_are_queued_as_the_last_worker_ends_are_loaded")
def without_a_worker_for_what_is_queued_as_the_last_one_ends() -> None:
    rewrite(warm_loads.WarmLoads._ended, "elif self._queue:", "elif False:")


@guard(HERE)
def without_cancelling_the_loads_of_a_cancelled_warming() -> None:
    rewrite(warm_loads.WarmLoads.run, "cancel(job.task)", "pass")


@guard(HERE)
def without_loading_on_for_those_who_joined_a_warming() -> None:
    rewrite(warm_loads.WarmLoads.run, "and not self._is_wanted(job)", "")


@guard(HERE)
def without_dropping_loads_that_a_cancelled_warming_has_not_begun() -> None:
    put(streamed_keys.StreamedKeys, "drop", nothing)


@guard(HERE)
def without_handing_over_what_ends_the_program() -> None:
    put(warm_loads.WarmLoads, "_fail", nothing)


@guard(HERE)
def without_loading_what_is_stale_or_an_error() -> None:
    rewrite(warming._missing, "if engine.reads.is_fresh(entry):", "if entry is not None:")
