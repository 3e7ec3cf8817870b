"""The guards that `test_figures` sees missing."""

from types import SimpleNamespace
from typing import Any, Final

from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache.cli import figures
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/cli/test_figures.py"


@guard(f"{HERE}::test_rates_stay_right_when_an_hour_leaves_the_day")
def without_rates_from_a_total_that_only_grows() -> None:
    look = figures._Rates.look

    def of_the_day(self: Any) -> Any:
        cache = self._cache

        def counted(_: object) -> Any:
            counts = {}
            for name, row in cache.get_stats("fleet")["namespaces"].items():
                counts[name] = Counters()
                counts[name].l1_hits = row["hit_count"] + row["miss_count"]
            return SimpleNamespace(counts=SimpleNamespace(namespaces=counts, functions={}))

        put(figures, "fleet_totals", counted)
        return look(self)

    put(figures._Rates, "look", of_the_day)


@guard(f"{HERE}::test_rates_are_averages_of_half_a_minute")
def without_waiting_for_the_reports_of_all_processes() -> None:
    rewrite(figures._Rates._rates, "now - at >= _SHORTEST", "now - at > 0")


@guard(f"{HERE}::test_a_process_that_has_rested_is_counted_by_all_or_none")
def without_counting_by_what_processes_publish() -> None:
    put(fleet_keys, "_LONGEST_LIFE", 0)
