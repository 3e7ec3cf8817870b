"""The guards that `test_fleet_stats` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import fleet_stats, life_cycle
from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.redis.scripts import Script
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/coordination/test_fleet_stats.py"


@guard(f"{HERE}::test_nothing_counts_twice")
def without_noting_what_redis_has_taken() -> None:
    put(fleet_stats.FleetStats, "_took", nothing)


@guard(f"{HERE}::test_a_report_whose_answer_is_lost_counts_once")
def without_the_number_of_a_report() -> None:
    script = fleet_keys._PUBLISH
    text = script.text.replace("if type(before) ~= 'string' or", "if true or")
    assert text != script.text
    put(fleet_keys, "_PUBLISH", Script(script.name, text))


@guard(f"{HERE}::test_a_closed_process_is_not_counted_and_its_counts_stay")
def without_a_report_at_the_end() -> None:
    put(life_cycle.LifeCycle, "final_report", nothing)


@guard(f"{HERE}::test_a_busy_process_publishes_by_itself_and_an_idle_one_does_not")
def without_reports_of_a_busy_process() -> None:
    put(fleet_stats.FleetStats, "beat", nothing)


@guard(f"{HERE}::test_the_keys_of_the_statistics_are_no_values")
def without_telling_values_from_the_keys_of_the_statistics() -> None:
    async def none(*_: Any) -> list[bytes]:
        return []

    put(fleet_stats.FleetStats, "key_names", none)


@guard(f"{HERE}::test_the_totals_of_the_minutes_are_those_of_all_namespaces_and_processes")
def without_adding_the_namespaces_up() -> None:
    put(fleet_stats, "_totals", dict)


@guard(f"{HERE}::test_the_history_has_what_this_process_has_not_published_yet")
def without_publishing_before_the_minutes_are_read() -> None:
    rewrite(fleet_stats.FleetStats.history, "await self.published(connection)", "pass")


@guard(f"{HERE}::test_the_history_has_every_minute_and_adds_up_to_the_sums")
def without_telling_how_much_of_the_minute_has_passed() -> None:
    rewrite(fleet_stats.FleetStats.history, "began[-1] else 60", "began[-1] else passed")
