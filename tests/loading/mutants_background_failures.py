"""The guards that `test_background_failures` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import awaitables
from magnus_cache._engine.flights import flight
from magnus_cache._engine.keys import instances
from magnus_cache._engine.loading import failures as load_failures
from magnus_cache._engine.runtime import log
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/loading/test_background_failures.py"


@guard(HERE)
def without_telling_of_loads_that_fail_without_a_caller() -> None:
    put(load_failures.LoadFailures, "report", nothing)


@guard(f"{HERE}::test_there_are_not_more_lines_the_more_topics_there_are")
def without_a_bound_on_the_topics_of_the_log() -> None:
    put(log.RateLimitedLog, "_bounded", lambda _self, topic, _now: topic)


@guard(f"{HERE}::test_a_cached_function_is_named_and_not_what_calls_it")
def without_naming_the_wrapper_of_a_cached_function_after_it() -> None:
    put(awaitables, "_named_after", lambda _function, call: call)


@guard(f"{HERE}::test_managers_of_one_redis_share_the_minute")
def without_sharing_what_was_logged_among_the_caches_of_one_redis() -> None:
    original = log.RateLimitedLog.__init__
    put(log.RateLimitedLog, "__init__", lambda self, clock=log.monotonic, place=None: original(self, clock))


@guard(f"{HERE}::test_a_page_that_is_executed_again_and_again_warns_once")
def without_telling_classes_that_are_made_anew_by_their_name() -> None:
    put(instances, "say_once", lambda _topic, message: log.say(message))


@guard(f"{HERE}::test_a_load_that_has_ended_keeps_nothing_of_its_call")
def without_letting_go_of_the_loader_of_a_load_that_has_ended() -> None:
    slot = flight.Flight.loader  # type: ignore[attr-defined]  # a descriptor

    def keep(self: Any, value: object) -> None:
        if value is not None or not hasattr(self, "failure_logged"):
            slot.__set__(self, value)

    put(flight.Flight, "loader", property(slot.__get__, keep))
