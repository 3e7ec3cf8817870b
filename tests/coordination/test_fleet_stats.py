"""Statistics of the fleet: each count of each process is in the sums once, whatever becomes of the process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any, Final

import msgpack
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, CacheStats, __version__
from magnus_cache._engine.runtime.fleet_totals import COUNTED, fields_of, figures_from
from magnus_cache._engine.runtime.stats import Counters, Stats
from magnus_cache.embedded import EmbeddedServer
from tests.support.fleet_of_managers import fleet
from tests.support.inside import reports_of, totals_of_minutes, wire_of
from tests.support.programs import ROOT
from tests.support.relay import Relay
from tests.support.wait import nothing_happens_for_async, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

SUMMED: Final = ("hit_count", "miss_count", "total_requests", "unstorable", *COUNTED)


async def publish(*managers: AsyncCacheManager) -> None:
    for manager in managers:
        await manager._engine.state.fleet_stats.published(wire_of(manager))


def processes(raw: redis.Redis) -> list[bytes]:
    found: list[bytes] = list(raw.scan_iter("magnus!stats:*"))
    return found


async def use(manager: AsyncCacheManager, namespace: str, keys: int) -> None:
    for key in range(keys):
        await manager.set(namespace, str(key), key)
        assert await manager.get(namespace, str(key)) == key
        await manager.get(namespace, f"none{key}")
        assert await manager.get_or_set(namespace, f"loaded{key}", lambda: 1) == 1


async def test_the_figures_of_the_fleet_are_the_sums_of_its_processes(url: str) -> None:
    async with fleet(url, 3) as managers:
        for number, manager in enumerate(managers, 1):
            await use(manager, f"n{number % 2}", number)
        await publish(*managers)
        own = [await manager.get_stats() for manager in managers]
        for manager in managers:
            sums = await manager.get_stats("fleet")
            assert {name: sums[name] for name in SUMMED} == {
                name: sum(figures[name] for figures in own) for name in SUMMED
            }
            # The third one has found a value of the first.
            assert sums["levels"]["load"]["count"] == 5
            assert sums["namespaces"]["n0"]["loads"] == 2
            assert sums["namespaces"]["n1"]["loads"] == 3
            assert sums["processes"] == 3
            assert sums["in_memory_keys"] == sum(figures["in_memory_keys"] for figures in own)
            assert sums["redis_total_keys"] == (await manager.get_stats())["redis_total_keys"]


async def test_the_totals_of_the_minutes_are_those_of_all_namespaces_and_processes(url: str) -> None:
    async with fleet(url, 2) as managers:
        for manager in managers:
            await use(manager, "one", 2)
            await use(manager, "two", 3)
        await publish(*managers)
        sums = await managers[0].get_stats("fleet")
        # The reports may be on both sides of a full minute.
        totals = await totals_of_minutes(managers[0], 3)
        assert totals["n:s:"] == sum(sums["namespaces"][name]["stores"] for name in ("one", "two"))
        assert totals["n:h1:"] + totals.get("n:h2:", 0) == sums["hit_count"]
        assert totals["n:m:"] == sums["miss_count"]
        assert not [name for name in totals if name.startswith(("f:", "n:")) and not name.endswith(":")]


async def test_functions_are_counted_by_name(url: str) -> None:
    async with fleet(url, 2) as (one, two):
        for manager in (one, two):

            @manager.cached("t")
            async def twice(number: int) -> int:
                return 2 * number

            assert [await twice(number) for number in (1, 2, 1)] == [2, 4, 2]
        await publish(one)
        sums = await two.get_stats("fleet")
        ((name, figures),) = sums["functions"].items()
        assert name.endswith("twice")
        assert (figures["namespace"], figures["loads"], figures["hit_count"], figures["miss_count"]) == ("t", 2, 4, 2)
        assert sums["namespaces"]["t"]["loads"] == 2


async def test_the_keys_of_the_statistics_are_no_values(url: str) -> None:
    async with fleet(url, 2) as (one, two):
        await one.set("t", "k", 1)
        await publish(one, two)
        assert (await one.get_stats())["redis_total_keys"] == 1


async def test_epochs_that_a_process_does_not_know_are_no_values(url: str) -> None:
    async with fleet(url, 2) as (one, two):
        for number in range(5):
            await one.set(f"n{number}", "k", 1, tags=[f"tag {number}"])
            await one.invalidate_tags(f"tag {number}")
        await one.clear("n0")
        await one.set("n0", "k", 2)
        await publish(one, two)
        wanted = len([name async for name in two.scan("n0")])
        assert wanted == 1
        assert (await two.get_stats())["redis_total_keys"] == (await one.get_stats())["redis_total_keys"] <= 5


async def test_processes_tell_their_version(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as (one, two):
        for manager in (one, two):
            await use(manager, "t", 1)
        await publish(one, two)
        name = f"magnus!stats:{two._engine.state.fleet_stats.instance}"
        report: Any = raw.get(name)
        about = msgpack.unpackb(report[8:])
        assert about.pop("library") == __version__
        # As versions before this field have reported.
        raw.set(name, report[:8] + msgpack.packb(about), keepttl=True)
        assert sorted(process.version for process in await one.get_processes()) == ["", __version__]


async def test_nothing_counts_twice(url: str) -> None:
    async with fleet(url, 2) as (one, two):
        await use(one, "t", 2)
        for _ in range(5):
            await publish(one, two)
        assert (await two.get_stats("fleet"))["hit_count"] == (await one.get_stats())["hit_count"]


async def test_a_report_whose_answer_is_lost_counts_once(server: EmbeddedServer) -> None:
    async with (
        Relay(server.port) as relay,
        AsyncCacheManager(redis_url=relay.url, op_timeout=20) as cache,
        AsyncCacheManager(redis_url=server.url) as other,
    ):
        await use(cache, "t", 1)
        # From now on, the server knows the script.
        await publish(cache)
        await use(cache, "t", 3)
        hits = (await cache.get_stats())["hit_count"]
        (link,) = relay.links
        link.muted, heard = True, link.heard
        report = asyncio.create_task(publish(cache))
        await wait_until_async(lambda: link.heard > heard)
        link.cut()
        await report
        assert (await other.get_stats("fleet"))["hit_count"] == hits
        await cache.get("t", "0")
        await publish(cache)
        await publish(cache)
        assert (await other.get_stats("fleet"))["hit_count"] == hits + 1


async def test_a_closed_process_is_not_counted_and_its_counts_stay(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (one,):
        await use(one, "t", 2)
        hits = (await one.get_stats())["hit_count"]
        await publish(one)
        assert len(processes(raw)) == 1
    assert processes(raw) == []
    async with fleet(url, 1) as (two,):
        sums = await two.get_stats("fleet")
        assert (sums["hit_count"], sums["processes"], sums["in_memory_keys"]) == (hits, 0, 0)


def test_a_script_publishes_when_it_closes_its_cache(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        assert cache.get("t", "k") == 1
    with CacheManager(redis_url=url) as cache:
        assert cache.get_stats(scope="fleet")["namespaces"]["t"]["stores"] == 1


_WORKER: Final = """
import json, sys
from magnus_cache import CacheManager
cache, number = CacheManager(redis_url=sys.argv[1]), int(sys.argv[2])
for key in range(10 + number):
    cache.get_or_set(f"n{number % 3}", str(key), lambda: key)
    cache.get(f"n{number % 3}", str(key))
cache.get_stats("fleet")
print(json.dumps(cache.get_stats()), flush=True)
sys.stdin.read()
cache.close()
"""


def _started(url: str, number: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _WORKER, url, str(number)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_eight_processes_are_summed_although_two_are_killed(url: str) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(_started(url, number)) for number in range(8)]
        try:
            counted = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout is not None]
            for worker in workers[2:4]:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
            with CacheManager(redis_url=url) as cache:
                sums = cache.get_stats("fleet")
            assert {name: sums[name] for name in SUMMED} == {
                name: sum(figures[name] for figures in counted) for name in SUMMED
            }
            for namespace in ("n0", "n1", "n2"):
                for name in ("hit_count", "miss_count", "loads", "stores"):
                    assert sums["namespaces"][namespace][name] == sum(
                        figures["namespaces"].get(namespace, {name: 0})[name] for figures in counted
                    )
            # The killed ones are still counted as running, for some seconds.
            assert 6 <= sums["processes"] <= 8
        finally:
            for worker in workers:
                worker.kill()


async def test_a_process_that_has_died_vanishes(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as (one, two):
        await use(one, "t", 1)
        one._engine.state.fleet_stats.life = two._engine.state.fleet_stats.life = 1
        await publish(one)

        async def gone() -> bool:
            return (await two.get_stats("fleet"))["processes"] == 0

        await wait_until_answered(gone)
        assert processes(raw) == []
        # Its end is published, too; what it has counted is not lost.
        assert (await two.get_stats("fleet"))["namespaces"]["t"]["loads"] == 1


async def test_a_busy_process_publishes_by_itself_and_an_idle_one_does_not(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1, stats_interval=0.05, max_staleness=0.3) as (cache,):
        await cache.set("t", "k", 1)
        await wait_until_async(lambda: processes(raw))

        async def told() -> bool:
            return (await cache.get_stats("fleet"))["namespaces"]["t"]["l1_hits"] == 1

        # The last report comes although nothing more happens.
        assert await cache.get("t", "k") == 1
        hours = list(raw.scan_iter("magnus!fleet:h*"))
        await wait_until_async(lambda: any(raw.hget(name, "n:h1:t") == b"1" for name in hours))
        assert await told()
        reports = reports_of(cache)
        await nothing_happens_for_async(0.5)
        assert reports_of(cache) <= reports + 1


async def test_without_an_interval_nothing_is_published(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1, stats_interval=0) as (cache,):
        await use(cache, "t", 1)
        sums = await cache.get_stats("fleet")
        assert sums["processes"] == 0
        assert sums["hit_count"] == 0
    assert list(raw.scan_iter("magnus!fleet*")) == processes(raw) == []


@pytest.mark.parametrize("name", ["magnus!fleet", "hour"])
async def test_nonsense_in_the_keys_does_no_harm(url: str, raw: redis.Redis, name: str) -> None:
    async with fleet(url, 1) as (cache,):
        await use(cache, "t", 1)
        await publish(cache)
        if name == "hour":
            (hour,) = raw.scan_iter("magnus!fleet:h*")
            raw.hset(hour, mapping={"n:h1:t": "x", "later": 1, "n:later:t": 1, "l2:x": 1, "f:h1:u": 2})
            for process in processes(raw):
                raw.set(process, b"00000009\xff\xff")
            sums = await cache.get_stats("fleet")
            assert sums["namespaces"]["t"]["loads"] == 1
            assert sums["processes"] == 0
        else:
            raw.set(name, "x")
            # As without Redis.
            assert (await cache.get_stats("fleet"))["processes"] == 1


async def test_without_redis_the_figures_are_those_of_this_process() -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", 1)
        sums = await cache.get_stats(scope="fleet")
        assert (sums["processes"], sums["namespaces"]["t"]["stores"]) == (1, 1)
        assert sums["redis_total_keys"] == "N/A"


async def test_in_an_outage_the_figures_are_those_of_this_process(private_server_with: Any) -> None:
    server = private_server_with()
    async with fleet(server.url, 1) as (cache,):
        await use(cache, "t", 1)
        server.stop()
        sums = await cache.get_stats("fleet")
        assert (sums["processes"], sums["namespaces"]["t"]["loads"], sums["redis_available"]) == (1, 1, False)


async def test_another_scope_is_refused(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        with pytest.raises(CacheArgumentError, match=r'scope: it is "process" or "fleet"'):
            await cache.get_stats("all")  # type: ignore[arg-type]  # on purpose


async def test_a_report_has_a_few_hundred_bytes(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await use(cache, "t", 1)
        await publish(cache)
        (process,) = processes(raw)
        assert raw.strlen(process) < 250
        assert 0 < raw.ttl(process) <= 30


# -- minutes and processes --------------------------------------------------------------------------------------


def _sum(minutes: list[CacheStats], name: str) -> int:
    return sum(minute[name] for minute in minutes)


async def test_the_history_has_every_minute_and_adds_up_to_the_sums(url: str) -> None:
    async with fleet(url, 2) as managers:
        for manager in managers:
            await use(manager, "one", 2)
            await use(manager, "two", 3)
        sums = [await manager.get_stats("fleet") for manager in managers][-1]
        minutes = await managers[0].get_history(5)
        assert len(minutes) == 5
        # Five minutes, one after the other, of which the last one is under way.
        assert [minute["at"] - minutes[0]["at"] for minute in minutes] == [0, 60, 120, 180, 240]
        assert [minute["seconds"] for minute in minutes[:-1]] == [60] * 4
        assert 1 <= minutes[-1]["seconds"] <= 60
        for name in ("hit_count", "miss_count", "total_requests", *COUNTED):
            assert _sum(minutes, name) == sums[name]
        for name in ("loads", "stores", "l1_hits", "load_errors"):
            assert _sum(minutes, name) == sum(each[name] for each in sums["namespaces"].values())
        assert sum(minute["levels"]["load"]["count"] for minute in minutes) == sums["levels"]["load"]["count"]
        assert not {"namespaces", "functions", "processes"} & minutes[-1].keys()
        # A minute without a report has all figures, too.
        assert minutes[0].keys() == minutes[-1].keys()
        assert minutes[0]["total_requests"] == 0


async def test_the_history_has_what_this_process_has_not_published_yet(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        await use(cache, "t", 2)
        assert _sum(await cache.get_history(3), "loads") == 2


async def test_minutes_of_a_later_version_or_with_strange_fields_are_read(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await use(cache, "t", 1)
        before = await cache.get_history(3)
        for name in raw.scan_iter("magnus!fleet:m*"):
            raw.hset(name, mapping={"n:later:": 1, "n:h1": 7, "n:h1:named": 2, "f:h1:t\0f": 5, "later": 1, "l2:x": "y"})
        minutes = await cache.get_history(3)
        assert _sum(minutes, "loads") == _sum(before, "loads")
        # A name that should not be there is counted with the others; a text that is no count is none.
        assert _sum(minutes, "l1_hits") > _sum(before, "l1_hits")
        raw.set(f"magnus!fleet:m{minutes[-1]['at'] // 60}", "x")
        assert await cache.get_history(3) == []


@pytest.mark.parametrize("minutes", [0, -1, 121, 2.5, "5", True, None])
async def test_minutes_that_are_not_kept_are_refused(url: str, minutes: Any) -> None:
    async with fleet(url, 1) as (cache,):
        with pytest.raises(CacheArgumentError, match="^minutes: "):
            await cache.get_history(minutes)


async def test_the_processes_that_run_are_listed(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as (one, two):
        await use(one, "t", 2)
        await use(two, "t", 1)
        await publish(one, two)
        found = await two.get_processes()
        assert {(process.host, process.pid) for process in found} == {(socket.gethostname(), os.getpid())}
        assert sorted(process.in_memory_keys for process in found) == sorted(
            [(await one.get_stats())["in_memory_keys"], (await two.get_stats())["in_memory_keys"]]
        )
        assert all(0 <= process.reported <= process.age < 60 for process in found)
        raw.set(processes(raw)[0], b"00000001" + msgpack.packb({"host": "later", "more": [1]}))
        found = await two.get_processes()
        assert len(found) == 2
        (later,) = [process for process in found if process.host == "later"]
        assert (later.pid, later.age, later.in_memory_bytes) == (0, 0.0, 0)


async def test_without_redis_there_is_no_history_and_no_process(private_server_with: Any) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        assert (await cache.get_history(), await cache.get_processes()) == ([], [])
    server = private_server_with()
    async with fleet(server.url, 1) as (cache,):
        await use(cache, "t", 1)
        server.stop()
        assert (await cache.get_history(), await cache.get_processes()) == ([], [])


def test_blocking_code_has_the_same_history_and_processes(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        assert _sum(cache.get_history(2), "stores") == 1
        assert [process.pid for process in cache.get_processes()] == [os.getpid()]
        with pytest.raises(CacheArgumentError):
            cache.get_history(0)


async def test_outages_are_counted_in_the_fleet(private_server_with: Any) -> None:
    server = private_server_with(save="60 1", appendonly="no")
    async with fleet(server.url, 1) as (cache,):
        await use(cache, "t", 1)
        server.stop()
        await cache.set("t", "k", 1)
        server.start()
        # The breaker lets the next exchange through after a pause.
        await wait_until_answered(lambda: cache.get_history(1))
        sums = await cache.get_stats("fleet")
        assert sums["outages"] == (await cache.get_stats())["outages"] == 1
        assert _sum(await cache.get_history(3), "outages") == 1


# -- fields -----------------------------------------------------------------------------------------------------

_COUNTS: Final = st.dictionaries(st.sampled_from(Counters.__slots__), st.integers(1, 1 << 40))
_NAMES: Final = st.text(min_size=1, max_size=8)


@given(
    st.dictionaries(_NAMES, _COUNTS, max_size=4), st.dictionaries(st.tuples(_NAMES, _NAMES), _COUNTS, max_size=4),
    st.dictionaries(st.sampled_from(["lost", "timeout"]), st.integers(1, 99)),
    st.lists(st.floats(0, 1e6), max_size=9), st.integers(0, 1 << 40),
)  # fmt: skip
def test_fields_mean_what_they_were_made_of(
    namespaces: dict[str, dict[str, int]], functions: dict[tuple[str, str], dict[str, int]], errors: dict[str, int],
    durations: list[float], grown: int,
) -> None:  # fmt: skip
    stats = Stats()
    for name, counts in namespaces.items():
        for count, value in counts.items():
            setattr(stats.of(name), count, value)
    for (namespace, function), counts in functions.items():
        # A NUL would be taken for the end of the namespace's name.
        counters = stats.child(namespace.replace("\0", ""), function)
        for count, value in counts.items():
            setattr(counters, count, value)
    stats.errors.update(errors)
    for duration in durations:
        stats.l2_latency.add(duration)
        stats.load_latency.add(duration)
    fields = fields_of(stats, dict.fromkeys(COUNTED, grown))
    assert all(type(count) is int and count for count in fields.values())
    figures, own = figures_from(fields.items()), stats.as_dict()
    assert [figures[name] for name in COUNTED] == [grown] * len(COUNTED)
    for part in ("namespaces", "functions"):
        # What is all 0 has no fields.
        assert figures[part] == {name: each for name, each in own[part].items() if name in figures[part]}
    assert {name: figures[name] for name in ("levels", "errors", "hit_count", "miss_count")} == {
        name: own[name] for name in ("levels", "errors", "hit_count", "miss_count")
    }
