"""Scrapes: each shows the figures of the whole fleet, whichever process answers, and counters only grow."""

import asyncio
import http.client
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from prometheus_client import CollectorRegistry, openmetrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, __version__, configure, get_cache_manager
from magnus_cache._engine.coordination.fleet_stats import FleetStats
from magnus_cache._engine.redis import fleet_keys
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.observability.prometheus import CacheCollector, make_asgi_app
from magnus_cache.testing import EmbeddedCluster, Proxy
from tests.support.groups import cache_of
from tests.support.listening import Listener, listening
from tests.support.programs import ROOT, run_python
from tests.support.scrapes import Series, parsed, registry_of, scraped, summed
from tests.support.wait import wait_until

LOOKS: Final = {"magnus_cache_hits_total", "magnus_cache_misses_total"}
COUNTERS: Final = ("hits_total", "misses_total", "loads_total", "stores_total")


def use(cache: CacheManager, namespace: str = "t", keys: int = 3) -> None:
    for key in range(keys):
        cache.get_or_set(namespace, str(key), lambda: 1)
        assert cache.get(namespace, str(key)) == 1


def looks(series: Series) -> float:
    """Return how many look-ups a scrape shows."""
    return sum(value for (name, _), value in series.items() if name in LOOKS)


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as cache:
        yield cache


# -- a server with several workers -------------------------------------------------------------------------------

_WORKERS: Final = 2
_SERVERS: Final = {
    "gunicorn": ("gunicorn", "tests.support.metrics_apps:wsgi", "--worker-class", "gthread", "--threads", "2"),
    "gunicorn, preloaded": (
        "gunicorn", "tests.support.metrics_apps:wsgi", "--worker-class", "gthread", "--threads", "2", "--preload",
    ),
    "uvicorn": ("uvicorn", "tests.support.metrics_apps:asgi", "--lifespan", "off"),
}  # fmt: skip


class Site:
    """A web server with several workers. Each request has a connection of its own, and so any worker."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reads = 0
        self.highest: Series = {}

    def get(self, path: str) -> tuple[str, str]:
        """Return the worker that has answered, and what."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
            assert answer.status == 200, body
            return str(answer.headers["Worker"]), body
        finally:
            connection.close()

    def read(self, key: int) -> str:
        self.reads += 1
        return self.get(f"/read/{key}")[0]

    def scrape(self) -> tuple[str, Series]:
        """Return the worker that was scraped, and what it showed: no less than any scrape before."""
        worker, text = self.get("/metrics")
        series = parsed(text)
        for key, value in self.highest.items():
            assert series[key] >= value, f"{key} has shrunk in worker {worker}"
        self.highest = {key: value for key, value in series.items() if key[0].endswith(("_total", "_bucket", "_count"))}
        return worker, series


@contextmanager
def served(program: str, url: str, listener: Listener, log: Path) -> Iterator[Site]:
    module, *arguments = _SERVERS[program]
    place = ["--fd", f"{listener.number}"] if module == "uvicorn" else ["--bind", f"fd://{listener.number}"]
    environment = os.environ | {
        "REDIS_URL": url, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "MAGNUS_CACHE_STATS_INTERVAL": "0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", module, *arguments, "--workers", str(_WORKERS), "--log-level", "warning", *place]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, pass_fds=(listener.number,), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield Site(listener.port)
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("program", _SERVERS)
def test_a_server_with_several_workers_counts_once(
    program: str, private_server: EmbeddedServer, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with listening() as listener, served(program, private_server.url, listener, log) as site:
        workers = set[str]()
        scrapers = dict[str, float]()

        def all_workers() -> bool:
            workers.add(site.read(len(workers) % 2))
            return len(workers) == _WORKERS

        def all_tell_the_same() -> bool:
            worker, series = site.scrape()
            scrapers[worker] = looks(series)
            return scrapers == dict.fromkeys(workers, site.reads)

        wait_until(all_workers, 60)
        wait_until(all_tell_the_same, 60)
        _, series = site.scrape()
        assert (summed(series, "processes"), summed(series, "loads_total")) == (_WORKERS, 2)
        # It dies without a last word, and what it has counted stays. Another one takes its place.
        victim = workers.pop()
        os.kill(int(victim), signal.SIGKILL)
        scrapers.clear()
        wait_until(lambda: site.read(0) not in {*workers, victim}, 60)

        def everything_is_counted() -> bool:
            return looks(site.scrape()[1]) == site.reads

        wait_until(everything_is_counted, 60)
    said = log.read_text()
    assert "Traceback" not in said, said


# -- counters ---------------------------------------------------------------------------------------------------


def test_a_scrape_shows_what_the_statistics_of_the_fleet_show(cache: CacheManager, url: str) -> None:
    with CacheManager(redis_url=url) as other:
        use(cache, "one", 3)
        use(other, "two", 4)
        other.get_stats("fleet")
        series, stats = scraped(cache, functions=True), cache.get_stats("fleet")
        assert scraped(other) == {key: value for key, value in series.items() if "function" not in key[0]}
        for namespace in ("one", "two"):
            row = stats["namespaces"][namespace]
            for level in ("l1", "l2"):
                assert summed(series, "hits_total", namespace=namespace, level=level) == row[f"{level}_hits"]
            for name, figure in {
                "misses_total": "miss_count", "loads_total": "loads", "stores_total": "stores",
                "load_seconds_total": "load_seconds",
            }.items():  # fmt: skip
                assert summed(series, name, namespace=namespace) == pytest.approx(row[figure])
        for name in ("processes", "in_memory_keys", "in_memory_bytes"):
            assert summed(series, name) == stats[name]
        for name, level in (("load_duration_seconds", "load"), ("redis_read_duration_seconds", "l2")):
            assert summed(series, f"{name}_count") == summed(series, f"{name}_bucket", le="+Inf")
            assert summed(series, f"{name}_count") == stats["levels"][level]["count"]
            assert summed(series, f"{name}_sum") > 0


def test_money_has_series_of_its_own(cache: CacheManager) -> None:
    @cache.cached("t", cost=0.25)
    def double(number: int) -> int:
        return 2 * number

    assert [double(1), double(1), double(1)] == [2, 2, 2]
    series = scraped(cache, functions=True)
    for name in ("", "function_"):
        assert summed(series, f"{name}spent_total", namespace="t") == 0.25
        assert summed(series, f"{name}saved_total", namespace="t") == 0.5


def test_functions_have_series_of_their_own_if_asked_for(cache: CacheManager) -> None:
    @cache.cached("t")
    def double(number: int) -> int:
        return 2 * number

    assert [double(1), double(1), double(2)] == [2, 2, 4]
    name = "test_functions_have_series_of_their_own_if_asked_for.<locals>.double"
    series = scraped(cache, functions=True)
    (shown,) = {dict(labels)["function"] for each, labels in series if each == "magnus_cache_function_hits_total"}
    assert shown.endswith(name)
    assert summed(series, "function_hits_total", function=shown, namespace="t") == 1
    assert summed(series, "function_loads_total", function=shown) == summed(series, "loads_total", namespace="t") == 2
    assert not [each for each, _ in scraped(cache) if "function" in each]


def test_counters_do_not_shrink_at_the_end_of_a_day(
    cache: CacheManager, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the hour in which a scrape comes. The sums of an hour expire; the total has them by then."""
    hours, now = 0, FleetStats._now

    async def later(self: FleetStats, connection: Any) -> float:
        return await now(self, connection) + 3_600 * hours

    monkeypatch.setattr(FleetStats, "_now", later)
    use(cache)
    shown = scraped(cache)
    for hours in (1, 2, 3, 20, 40, 60):
        again = scraped(cache)
        for name in (*COUNTERS, "load_duration_seconds_count"):
            assert summed(again, name) == summed(shown, name), f"{name} after {hours} hours"
        if hours == 3:
            # Those of the hour have expired.
            raw.delete(*raw.scan_iter("magnus!fleet:h*"))
    assert cache.get_stats("fleet")["hit_count"] == 0
    assert raw.ttl("magnus!fleet:total") > 29 * 86_400


def test_counters_start_at_zero_when_hours_may_have_been_missed(
    cache: CacheManager, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day without a scrape. A little less than before would count as a restart, and all of it as new."""
    use(cache)
    assert looks(scraped(cache)) == 6
    now, hours = FleetStats._now, 0

    async def later(self: FleetStats, connection: Any) -> float:
        return await now(self, connection) + 3_600 * hours

    monkeypatch.setattr(FleetStats, "_now", later)
    for hours in (30, 31):
        series = scraped(cache)
        assert (summed(series, "up"), looks(series)) == (1, 0), f"after {hours} hours"


def test_what_a_closed_process_has_counted_stays(cache: CacheManager, url: str) -> None:
    with CacheManager(redis_url=url) as other:
        use(other)
    series = scraped(cache)
    assert summed(series, "hits_total") == 3
    assert summed(series, "processes") == 0


def test_counters_start_at_zero_on_a_server_that_has_lost_the_latest_writes(
    private_server_with: Callable[..., EmbeddedServer],
) -> None:
    """A little less than before would count as a restart, and all of it as new."""
    server = private_server_with()
    # One that is scraped, and one that keeps its connection to itself until then.
    with CacheManager(redis_url=server.url) as cache, CacheManager(redis_url=server.url) as other:
        use(cache, "t", 50)
        assert looks(scraped(cache)) == 100
        with redis.Redis(port=server.port) as admin:
            admin.save()
        use(cache, "t", 10)
        assert looks(scraped(cache)) == 120
        server.kill()
        server.start()
        wait_until(lambda: summed(scraped(other), "up") == 1)
        assert looks(scraped(other)) == 0
        wait_until(lambda: cache.ping().ok)
        use(cache, "t", 2)

        def both_show_what_was_counted_since() -> bool:
            shown = [looks(scraped(each)) for each in (cache, other)]
            assert max(shown) <= 4
            return shown == [4, 4]

        # The first report may meet a connection that is about to be lost.
        wait_until(both_show_what_was_counted_since)


def test_a_total_has_room_for_so_many_series(
    cache: CacheManager, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_keys, "_MOST_TOTALS", 40)
    hours, now = 0, FleetStats._now

    async def later(self: FleetStats, connection: Any) -> float:
        return await now(self, connection) + 3_600 * hours

    monkeypatch.setattr(FleetStats, "_now", later)
    for number in range(20):
        use(cache, f"n{number}", 1)
    assert len({labels for (name, labels) in scraped(cache) if name == "magnus_cache_misses_total"}) == 20
    hours = 3
    series = scraped(cache)
    assert summed(series, "hits_total") == summed(series, "misses_total") == 20
    assert summed(series, "hits_total", namespace="(other)") > 10
    assert raw.hlen("magnus!fleet:total") < 100


def test_series_go_by_the_conventions_of_prometheus(cache: CacheManager) -> None:
    use(cache)
    registry = registry_of(cache, functions=True)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len(families) > 25
    for family in families:
        assert family.name.startswith("magnus_cache_")
        assert family.documentation.endswith(".")
        # Base units alone.
        assert not {"milliseconds", "ms", "micros", "minutes", "kilobytes", "percent"} & {*family.name.split("_")}
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter"), sample.name
            assert not {"key", "keys", "le"} & {*sample.labels} or sample.name.endswith("_bucket")
    text = openmetrics.exposition.generate_latest(registry).decode()
    assert {family.name for family in openmetrics_families(text)} == {family.name for family in families}
    assert {family.name for family in CacheCollector(cache, functions=True).describe()} == {
        family.name for family in families
    }
    assert summed(scraped(cache), "build_info", version=__version__) == 1


def test_buckets_are_cumulative_and_in_seconds(cache: CacheManager, raw: redis.Redis) -> None:
    use(cache)
    histogram = cache._engine.state.stats.load_latency
    for _ in range(7):
        histogram.add(0.3)
    histogram.add(500)
    series = scraped(cache)
    below = {
        float(dict(labels)["le"]): value
        for (name, labels), value in series.items() if name == "magnus_cache_load_duration_seconds_bucket"
    }  # fmt: skip
    assert sorted(below.values()) == [below[le] for le in sorted(below)]
    assert (below[0.262144], below[0.524288], below[67.108864], below[float("inf")]) == (3, 10, 10, 11)
    assert summed(series, "load_duration_seconds_sum") == pytest.approx(502.1, abs=0.5)


# -- Redis away -------------------------------------------------------------------------------------------------


def test_without_an_answer_a_scrape_has_no_figures_that_are_older_than_those_of_another(
    private_server_with: Callable[..., EmbeddedServer],
) -> None:
    server = private_server_with()
    with CacheManager(redis_url=server.url) as one, CacheManager(redis_url=server.url) as two:
        use(one)
        assert summed(scraped(two), "up") == 1
        use(one)
        before = scraped(one)
        server.stop()
        for cache in (one, two):
            series = scraped(cache)
            assert {name for name, _ in series} == {"magnus_cache_up", "magnus_cache_build_info"}
            assert summed(series, "up") == 0
        server.start()
        wait_until(lambda: summed(scraped(two), "up") == summed(scraped(one), "up") == 1)
        assert before


def test_a_scrape_of_a_closed_cache_tells_that(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        use(cache)
    assert summed(scraped(cache), "up") == 0


def test_nonsense_in_the_place_of_the_total_does_no_harm(cache: CacheManager, raw: redis.Redis) -> None:
    use(cache)
    raw.set("magnus!fleet:total", "x")
    assert summed(scraped(cache), "up") == 0
    raw.delete("magnus!fleet:total")
    use(cache)
    raw.hset("magnus!fleet:total", mapping={"n:h1:t": "many", "n:later:t": 1, "x": 1, "l2:later": 1})
    assert summed(scraped(cache), "up") == 1


def test_without_redis_the_figures_are_those_of_the_process() -> None:
    with CacheManager(redis_enabled=False) as cache:
        use(cache)
        series = scraped(cache)
    assert (summed(series, "up"), summed(series, "processes"), summed(series, "hits_total")) == (1, 1, 3)


def test_settings_that_make_no_sense_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = registry_of()
    monkeypatch.setenv("REDIS_URL", "nonsense")
    assert parsed(generate_latest(registry).decode()) == {}
    (line,) = caplog.messages
    assert "the figures of a cache cannot be read: redis_url (REDIS_URL)" in line


# -- event loops ------------------------------------------------------------------------------------------------


async def _get(
    registry: CollectorRegistry, query: bytes = b"", accept: bytes = b""
) -> tuple[dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "headers": [(b"accept", accept)], "query_string": query}
    await make_asgi_app(registry)(scope, receive, send)
    start, body = sent
    assert start["status"] == 200
    return dict(start["headers"]), body["body"]


@pytest.mark.anyio
async def test_an_asgi_application_serves_what_is_asked_for(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get_or_set("t", "k", lambda: 1)
        # This loop's counts are published by this loop, which the scrape does not hold up.
        registry = registry_of(cache)
        headers, body = await _get(registry)
        assert headers[b"content-type"].startswith(b"text/plain")
        assert int(headers[b"content-length"]) == len(body)
        assert summed(parsed(body.decode()), "misses_total", namespace="t") == 1
        _, body = await _get(registry, b"name[]=magnus_cache_processes")
        assert parsed(body.decode()) == {("magnus_cache_processes", ()): 1}
        headers, body = await _get(registry, accept=b"application/openmetrics-text; version=1.0.0")
        assert headers[b"content-type"].startswith(b"application/openmetrics-text")
        assert body.endswith(b"# EOF\n")


@pytest.mark.anyio
async def test_a_scrape_does_not_hold_up_the_event_loop(url: str, proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=20) as cache:
        registry = registry_of(cache)
        await _get(registry)
        proxy.freeze()
        scrape = asyncio.create_task(_get(registry))
        for _ in range(20):
            await asyncio.sleep(0)
        # It waits for Redis, and this loop runs.
        assert not scrape.done()
        proxy.thaw()
        _, body = await scrape
        assert summed(parsed(body.decode()), "up") == 1


@pytest.mark.anyio
async def test_a_scrape_on_an_event_loop_does_not_wait_and_says_what_to_do(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get_or_set("t", "k", lambda: 1)
        registry = registry_of(cache)
        for _ in range(2):
            assert summed(parsed(generate_latest(registry).decode()), "up") == 0
        (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "magnus_cache.observability.prometheus.make_asgi_app()" in line.getMessage()
        # One that asks nothing of Redis may.
        assert summed(scraped(cache, scope="process"), "misses_total", namespace="t") == 1


# -- which caches -----------------------------------------------------------------------------------------------


def test_of_the_process_alone_nothing_is_asked_of_redis(cache: CacheManager, url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as other:
        use(other)
        other.get_stats("fleet")
        use(cache)
        commands: Any = raw.info("commandstats")
        series = scraped(cache, scope="process")
        later: Any = raw.info("commandstats")
        assert {*later} - {*commands} <= {"cmdstat_info", "cmdstat_time"}
        assert summed(series, "hits_total") == cache.get_stats()["hit_count"] == 6
        assert (summed(series, "up"), summed(series, "breaker_open"), summed(series, "outages_total")) == (1, 0, 0)
        assert summed(series, "processes") == 1


def test_an_outage_is_seen_by_the_process_itself(private_server: EmbeddedServer) -> None:
    with CacheManager(redis_url=private_server.url) as cache:
        use(cache)
        private_server.stop()
        cache.delete("t", "0")
        series = scraped(cache, scope="process")
    assert (summed(series, "up"), summed(series, "breaker_open"), summed(series, "outages_total")) == (0, 1, 1)
    assert summed(series, "redis_errors_total") >= 1


def test_several_caches_are_told_apart_by_their_prefixes(url: str) -> None:
    with CacheManager(redis_url=url, prefix="a") as one, AsyncCacheManager(redis_url=url, prefix="b").sync as two:
        use(one, keys=1)
        use(two, keys=2)
        series = scraped(one, two.aio)
        assert [summed(series, "hits_total", cache=prefix) for prefix in "ab"] == [1, 2]
        assert [summed(series, "up", cache=prefix) for prefix in "ab"] == [1, 1]
        with pytest.raises(CacheArgumentError, match="caches: two have the same prefix: a, a"):
            CacheCollector(one, one)


def test_the_process_wide_cache_is_followed(url: str) -> None:
    configure(redis_url=url)
    registry = registry_of()
    use(get_cache_manager())
    get_cache_manager().close()
    use(get_cache_manager())
    assert summed(parsed(generate_latest(registry).decode()), "hits_total") >= 6


def test_another_scope_is_refused(cache: CacheManager) -> None:
    with pytest.raises(CacheArgumentError, match=r'scope: it is "process" or "fleet"'):
        CacheCollector(cache, scope="all")  # type: ignore[arg-type]  # on purpose


@pytest.mark.anyio
async def test_a_cluster_has_the_same_series(cluster: EmbeddedCluster) -> None:
    async with cache_of(cluster) as cache:
        await cache.get_or_set("t", "k", lambda: 1)
        assert await cache.get("t", "k") == 1
        _, body = await _get(registry_of(cache))
        # What the loop's own connections have counted is published.
        series = parsed(body.decode())
        assert (summed(series, "hits_total", namespace="t"), summed(series, "processes")) == (1, 1)


def test_the_extra_is_named_where_it_is_missing() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import magnus_cache.observability.prometheus"
    done = run_python("-c", code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: magnus_cache.observability.prometheus needs prometheus_client: "
        'pip install "magnus-cache[prometheus]"'
    )
