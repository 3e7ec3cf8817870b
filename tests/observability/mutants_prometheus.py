"""The guards that `test_prometheus` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.redis.scripts import Script
from magnus_cache.observability import prometheus
from tests.support.guards import guard, put

HERE: Final = "tests/observability/test_prometheus.py"


def _edit(name: str, old: str, new: str) -> None:
    script = getattr(fleet_keys, name)
    assert script.text.count(old) == 1, f"{name} has no such line"
    put(fleet_keys, name, Script(script.name, script.text.replace(old, new)))


@guard(f"{HERE}::test_counters_start_at_zero_on_a_server_that_has_lost_the_latest_writes")
def without_starting_the_total_anew_on_another_server() -> None:
    _edit("_TOTAL", "total['server'] ~= ARGV[1]", "false")


@guard(f"{HERE}::test_counters_start_at_zero_on_a_server_that_has_lost_the_latest_writes")
def without_leaving_out_what_the_other_server_still_has() -> None:
    _edit("_TOTAL", "for hour = open, now + 1 do add(hour, -1) end", "")


@guard(f"{HERE}::test_counters_do_not_shrink_at_the_end_of_a_day")
def without_adding_hours_that_have_ended_to_the_total() -> None:
    _edit("_TOTAL", "for hour = open, now - 2 do add(hour, 1) end", "")


@guard(f"{HERE}::test_counters_do_not_shrink_at_the_end_of_a_day")
def without_adding_an_hour_once() -> None:
    _edit("_TOTAL", "open = math.max(open, now - 1)", "")


@guard(f"{HERE}::test_counters_start_at_zero_when_hours_may_have_been_missed")
def without_starting_the_total_anew_after_a_day() -> None:
    _edit("_TOTAL", "open < oldest", "false")


@guard(f"{HERE}::test_a_total_has_room_for_so_many_series")
def without_a_limit_of_the_total() -> None:
    _edit("_TOTAL", "size >= tonumber(ARGV[3])", "false")


@guard(f"{HERE}::test_a_scrape_does_not_hold_up_the_event_loop")
def without_a_thread_for_a_scrape() -> None:
    class Here:
        @staticmethod
        async def run_sync(function: Any, **_: Any) -> Any:
            return function()

    class Anyio:
        to_thread = Here

    put(prometheus, "anyio", Anyio)
    put(prometheus, "may_wait", lambda _: True)


@guard(f"{HERE}::test_a_scrape_on_an_event_loop_does_not_wait_and_says_what_to_do")
def without_asking_whether_a_scrape_may_wait() -> None:
    put(prometheus, "may_wait", lambda _: True)
