"""The figures of the commands: those that a scrape shows, and rates that are right whenever processes publish."""

import json
import subprocess
import sys
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache.cli import figures
from tests.cli.test_commands import Run, parsed, run
from tests.support.inside import rates_of
from tests.support.programs import ROOT
from tests.support.scrapes import Series, scraped, summed

__all__ = ["run"]


@pytest.fixture
def cache(url: str) -> Any:
    with CacheManager(redis_url=url) as cache:
        yield cache


def use(cache: CacheManager, calls: int) -> None:
    """Make so many calls of a cached function."""

    @cache.cached("t")
    def double(number: int) -> int:
        return 2 * number

    assert [double(number % 5) for number in range(calls)] == [2 * (number % 5) for number in range(calls)]


def expect_the_figures_of(shown: Series, found: dict[str, Any]) -> None:
    row = found["namespaces"]["t"]
    assert summed(shown, "hits_total", namespace="t") == row["hit_count"] == found["hit_count"]
    assert summed(shown, "misses_total", namespace="t") == row["miss_count"] == found["miss_count"]
    assert summed(shown, "loads_total", namespace="t") == row["loads"]
    assert summed(shown, "load_seconds_total", namespace="t") == pytest.approx(row["load_seconds"])
    assert summed(shown, "processes") == found["processes"]
    assert summed(shown, "in_memory_bytes") == found["in_memory_bytes"]
    (function,) = found["functions"].values()
    assert summed(shown, "function_hits_total", namespace="t") == function["hit_count"]


def test_commands_show_what_a_scrape_shows(run: Run, cache: CacheManager, url: str) -> None:
    use(cache, 23)
    shown = scraped(cache, functions=True)
    expect_the_figures_of(shown, parsed(run("stats", "--fleet", "--json")))
    top = parsed(run("top", "--json"))
    expect_the_figures_of(shown, top)
    assert top["namespaces"]["t"]["calls"] == 23
    # A look ends no scrape: the command itself is no process of the fleet, and counts nothing.
    assert scraped(cache, functions=True) == shown


def test_a_process_that_has_rested_is_counted_by_all_or_none(
    run: Run, cache: CacheManager, url: str, raw: redis.Redis
) -> None:
    """A command publishes nothing, and so does not know for how long a report counts."""
    use(cache, 3)
    scraped(cache)
    (process,) = raw.zrange("magnus!fleet", 0, -1)
    raw.zincrby("magnus!fleet", -20, process)
    assert parsed(run("stats", "--fleet", "--json"))["processes"] == summed(scraped(cache), "processes") == 1
    with CacheManager(redis_url=url, stats_interval=0) as reader:
        raw.zincrby("magnus!fleet", -20, process)
        assert reader.get_stats("fleet")["processes"] == 1
    (report,) = raw.scan_iter("magnus!stats:*")
    raw.delete(report)
    assert parsed(run("stats", "--fleet", "--json"))["processes"] == 0


def test_a_watch_shows_what_a_scrape_shows(cache: CacheManager, url: str) -> None:
    command = [sys.executable, "-m", "magnus_cache", "stats", "--fleet", "--watch", "--every", "0.2", "--json"]
    use(cache, 7)
    shown = scraped(cache, functions=True)
    with subprocess.Popen([*command, "--url", url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            expect_the_figures_of(shown, json.loads(program.stdout.readline()))
            use(cache, 10)
            shown = scraped(cache, functions=True)
            # One look may have begun before.
            for line in program.stdout:
                if (found := json.loads(line))["total_requests"] == 17:
                    expect_the_figures_of(shown, found)
                    break
        finally:
            program.terminate()


def test_rates_are_averages_of_half_a_minute(
    cache: CacheManager, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(figures.time, "monotonic", lambda: now)
    use(cache, 5)
    rates = rates_of(cache)
    assert rates.look()["namespaces"]["t"]["calls_per_second"] is None
    use(cache, 60)
    now += 5
    # Processes publish every 10 seconds: too early to tell.
    assert rates.look()["namespaces"]["t"]["calls_per_second"] is None
    now += 15
    found = rates.look()
    (function,) = found["functions"].values()
    assert found["namespaces"]["t"]["calls_per_second"] == function["calls_per_second"] == 3.0
    now += 25
    # The first look is too old now, and nothing has happened since the second.
    assert rates.look()["namespaces"]["t"]["calls_per_second"] == 0.0


def test_rates_stay_right_when_an_hour_leaves_the_day(
    cache: CacheManager, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, hours, at = 1_000.0, 0, RedisTime.at

    def later(self: RedisTime, clock: float) -> int:
        return at(self, clock) + 3_600_000_000 * hours

    monkeypatch.setattr(figures.time, "monotonic", lambda: now)
    monkeypatch.setattr(RedisTime, "at", later)
    use(cache, 500)
    rates = rates_of(cache)
    rates.look()
    for hours in (12, 25):
        assert rates.look()["redis_available"], f"after {hours} hours"
    use(cache, 40)
    now += 20
    row = rates.look()["namespaces"]["t"]
    assert (row["calls"], row["calls_per_second"]) == (40, 2.0)
    # Redis has lost its data.
    raw.flushall()
    use(cache, 1)
    now += 10
    assert rates.look()["namespaces"]["t"]["calls_per_second"] == 0.0
