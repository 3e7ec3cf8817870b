"""The guards that `test_dropped` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import engine
from magnus_cache._engine.coordination import dropped
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/api/test_dropped.py"


@guard(f"{HERE}::test_a_blocking_manager", f"{HERE}::test_an_async_manager")
def without_ending_what_was_dropped() -> None:
    put(engine.Engine, "__del__", nothing)


@guard(f"{HERE}::test_what_redis_was_not_told_is_told_at_last")
def without_telling_redis_when_a_manager_is_dropped() -> None:
    def drop(state: Any) -> None:
        state.final_replay = nothing
        dropped.drop(state)

    put(engine, "drop", drop)


@guard(f"{HERE}::test_a_refresh_that_goes_on_is_cancelled")
def without_cancelling_the_loads_of_a_dropped_manager() -> None:
    def drop(state: Any) -> None:
        state.flights.end = nothing
        dropped.drop(state)

    put(engine, "drop", drop)
