"""The guards that `test_ledger` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import fleet_stats
from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.runtime import ledger
from tests.support.guards import edit, guard, put, rewrite

HERE: Final = "tests/coordination/test_ledger.py"


@guard(f"{HERE}::test_a_day_has_a_bounded_number_of_fields")
def without_a_bound_for_the_fields_of_a_day() -> None:
    edit(fleet_keys._PUBLISH, "if fields >= most and", "if false and")


@guard(f"{HERE}::test_a_day_has_a_bounded_number_of_fields")
def without_knowing_the_fields_that_a_day_has() -> None:
    edit(fleet_keys._PUBLISH, "and not redis.call('HMGET', KEYS[6], field)[1] then", "then")


@guard(f"{HERE}::test_a_day_has_a_bounded_number_of_fields")
def without_adding_to_what_a_day_has() -> None:
    edit(
        fleet_keys._PUBLISH,
        "redis.call('HINCRBY', KEYS[6], field, count)\n  end\nend",
        "redis.call('TIME')\n  end\nend",
    )


@guard(f"{HERE}::test_the_day_is_that_of_utc_by_the_clock_of_redis")
def without_an_end_for_the_ledger_of_a_day() -> None:
    edit(fleet_keys._PUBLISH, "redis.call('EXPIRE', KEYS[6], ARGV[11])", "")


@guard(f"{HERE}::test_each_day_has_what_was_counted_on_it")
def without_telling_the_days_apart() -> None:
    def day(self: Any, second: float) -> bytes:
        name: bytes = self.index + b":d1"
        return name

    put(fleet_keys.FleetNames, "day", day)


@guard(f"{HERE}::test_a_day_without_a_load_has_saved_time")
def without_the_length_of_loads_of_other_days() -> None:
    rewrite(ledger._row, "counters if counters.loads else all_days", "counters")


@guard(f"{HERE}::test_each_day_has_what_was_counted_on_it")
def without_publishing_before_the_ledger_is_read() -> None:
    rewrite(fleet_stats.FleetStats.ledger, "await self.published(connection)", "pass")
