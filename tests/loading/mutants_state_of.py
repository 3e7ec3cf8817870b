"""The guards that `test_state_of` sees missing."""

from typing import Any, Final

from magnus_cache._engine.loading import stale
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/loading/test_state_of.py"


@guard(f"{HERE}::test_a_value_that_is_gone_for_its_callers_is_loaded_once_for_the_fleet")
def without_turning_down_the_value_that_is_gone_for_the_caller() -> None:
    rewrite(stale.StalePolicy._judged, "request._replace(unwanted=entry.version)", "request")


@guard(f"{HERE}::test_a_thread_is_asked_about_a_value_that_is_in_redis_alone")
def without_the_entry_of_a_value_that_is_in_redis_alone() -> None:
    def unchanged(request: Any) -> Any:
        return request

    put(stale, "_with_entry", unchanged)


@guard(f"{HERE}::test_an_early_value_is_refreshed_for_a_thread_too")
def without_a_refresh_for_threads() -> None:
    rewrite(stale.StalePolicy.get_blocking, "state is FreshnessState.EARLY and entry is not None", "False")


@guard(f"{HERE}::test_what_is_no_answer_is_told")
def without_a_check_of_what_state_of_returns() -> None:
    rewrite(stale.StalePolicy._judged, "not isinstance(judged, FreshnessState)", "False")
