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
    _edit("_TOTAL", "of ~= ARGV[1]", "false")


@guard(f"{HERE}::test_counters_do_not_shrink_at_the_end_of_a_day")
def without_a_total_that_outlives_the_day() -> None:
    async def of_the_day(self: Any, names: Any) -> Any:
        hours = [each async for each in _hours(self, names)]
        return {name: count for hour in hours for name, count in hour.items()}

    async def _hours(client: Any, names: Any) -> Any:
        connection = client._wire(names.index)
        second = connection.time.at(connection.clock()) / 1e6
        for back in range(24):
            yield await connection.execute(fleet_keys._command(b"HGETALL", names.hour(second - 3_600 * back)))

    put(fleet_keys.FleetKeys, "total", of_the_day)


@guard(f"{HERE}::test_a_total_has_room_for_so_many_series")
def without_a_limit_of_the_total() -> None:
    _edit("_PUBLISH", "if size >= tonumber(ARGV[10]) and", "if false and")


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
