"""The ledger: what processes have spent and saved is added up by day, once each, whatever becomes of them."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, CacheTypeError, LedgerRow, Namespace
from magnus_cache._engine.redis import fleet_keys
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.programs import ROOT
from tests.support.wait import wait_until_answered

pytestmark = pytest.mark.anyio

DAY: Final = 86_400


def total(rows: list[LedgerRow], name: str) -> float:
    return float(sum(getattr(row, name) for row in rows))


def bought(cache: CacheManager, cents: int, key: str = "k") -> int:
    return cache.get_or_set("t", key, lambda: cents, ttl="90d", cost=lambda value: value / 100)


# -- sums over processes ----------------------------------------------------------------------------------------

_CALLS: Final = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["f", "g", "get", "many", "clear"]), st.integers(0, 4)), max_size=40
)


@settings(max_examples=15)
@given(calls=_CALLS)
def test_the_ledger_is_the_sum_of_what_each_call_has_cost_and_saved(server_of_ledger: str, calls: Any) -> None:
    """Three processes, each with a memory of its own; every call finds a value or loads it, and the model knows which.

    A process that reports in between counts nothing twice.
    """
    spent: defaultdict[str, int] = defaultdict(int)
    saved: defaultdict[str, int] = defaultdict(int)
    loads: defaultdict[str, int] = defaultdict(int)
    with ExitStack() as stack:
        fleet = [stack.enter_context(CacheManager(redis_url=server_of_ledger)) for _ in range(3)]
        fleet[0].clear("magnus:*")
        before = {row.namespace: row for row in fleet[0].get_ledger(1)}
        loaded: list[int] = []

        def value_of(number: int) -> dict[str, int]:
            loaded.append(number)
            return {"cents": 10 + number}

        functions = [
            {
                "f": cache.cached("f", cost=0.5)(value_of),
                "g": cache.cached("g", cost=lambda value: value["cents"] / 100)(value_of),
            }
            for cache in fleet
        ]

        def count(namespace: str, number: int, price: int) -> None:
            if number in loaded:
                spent[namespace] += price
                loads[namespace] += 1
            else:
                saved[namespace] += price

        for process, operation, number in calls:
            cache = fleet[process]
            loaded.clear()
            if operation == "clear":
                cache.clear(["f", "g", "get", "many"][number % 4])
                # A clear reaches the others in its own time.
                for other in fleet:
                    other.get_stats("fleet")
            elif operation == "get":
                cache.get_or_set("get", number, lambda: value_of(number), cost=lambda value: value["cents"] / 100)  # noqa: B023
                count("get", number, 10 + number)
            elif operation == "many":
                keys = list(range(number))
                cache.get_or_set_many("many", keys, lambda some: {key: value_of(key) for key in some}, cost=0.07)
                for key in keys:
                    count("many", key, 7)
            else:
                functions[process][operation](number)
                count(operation, number, 50 if operation == "f" else 10 + number)
    with CacheManager(redis_url=server_of_ledger, stats_interval=0) as reader:
        after = {row.namespace: row for row in reader.get_ledger(1)}
        by_function = {row.namespace: row for row in reader.get_ledger(1, by="function")}
    for name in ("f", "g", "get", "many"):
        if name not in after:
            assert spent[name] == saved[name] == 0
            continue
        row, old = after[name], before.get(name)
        assert round(100 * (row.spent - (old.spent if old else 0))) == spent[name]
        assert round(100 * (row.saved - (old.saved if old else 0))) == saved[name]
        assert row.loads - (old.loads if old else 0) == loads[name]
        if name in {"f", "g"}:
            assert (by_function[name].spent, by_function[name].saved) == (row.spent, row.saved)


@pytest.fixture(scope="module")
def server_of_ledger() -> Any:
    with EmbeddedServer() as server:
        yield server.url


_WORKER: Final = """
import json, sys
from magnus_cache import CacheManager
cache, number = CacheManager(redis_url=sys.argv[1], prefix="killed"), int(sys.argv[2])

@cache.cached("t", cost=lambda value: value / 100)
def answer(key, cents):
    return cents

for round in range(3):
    for key in range(5):
        answer(f"{number}.{key}", 10 * number + key)
cache.get_stats("fleet")
told = cache.get_stats()["namespaces"]["t"]
answer(f"{number} after the last report", 1_000)
print(json.dumps([told, cache.get_stats()["namespaces"]["t"]]), flush=True)
sys.stdin.read()
cache.close()
"""


def test_what_a_killed_process_has_reported_is_in_the_bill_and_counts_once(server_of_ledger: str) -> None:
    """It loses what it has counted since its last report, and nothing else: see `stats_interval`."""
    with ExitStack() as stack:
        workers = []
        for number in range(2):
            command = [sys.executable, "-c", _WORKER, server_of_ledger, str(number)]
            worker = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            workers.append(stack.enter_context(worker))
            stack.callback(worker.kill)
        (killed, lost), (_, ended) = (json.loads(worker.stdout.readline()) for worker in workers if worker.stdout)
        workers[0].send_signal(signal.SIGKILL)
        workers[1].communicate("", timeout=20)
        workers[0].wait()
        with CacheManager(redis_url=server_of_ledger, prefix="killed") as cache:
            (row,), (by_function,) = cache.get_ledger(2), cache.get_ledger(2, by="function")
    assert lost["spent"] == killed["spent"] + 10
    assert row.spent == pytest.approx(killed["spent"] + ended["spent"])
    assert row.saved == pytest.approx(killed["saved"] + ended["saved"])
    assert (row.loads, row.hits) == (5 + 6, 20)
    assert (by_function.spent, by_function.saved) == (row.spent, row.saved)


# -- by day -----------------------------------------------------------------------------------------------------


def test_each_day_has_what_was_counted_on_it(url: str) -> None:
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:
        bought(cache, 300)
        (first,) = cache.get_ledger()
        clock.advance(DAY)
        bought(cache, 300)
        bought(cache, 500, "another")
        second = cache.get_ledger(2)[-1]
        assert (second.day - first.day, second.spent, second.saved) == (timedelta(days=1), 5, 3)
        clock.advance(3 * DAY)
        assert bought(cache, 300) == 300
        rows = cache.get_ledger(62)
        assert [row.day - first.day for row in rows] == [timedelta(days=days) for days in (0, 1, 4)]
        assert [(row.spent, row.saved) for row in rows] == [(3, 0), (5, 3), (0, 3)]
        # Of 1 day, it is today's; a day without calls has no row.
        assert cache.get_ledger(1) == rows[2:]
        assert cache.get_ledger(3) == rows[2:]
        # On a day without a load, a hit saves what loads took on the others.
        assert rows[2].loads == 0
        assert rows[2].saved_seconds >= 0


def test_a_day_without_a_load_has_saved_time(url: str) -> None:
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:

        def slow() -> int:
            time.sleep(0.01)
            return 1

        cache.get_or_set("t", "k", slow, ttl="90d")
        cache.get_ledger()
        clock.advance(DAY)
        cache.get_or_set("t", "k", slow, ttl="90d")
        last = cache.get_ledger()[-1]
        assert (last.loads, last.hits) == (0, 1)
        assert last.saved_seconds == pytest.approx(cache.get_ledger()[0].load_seconds, abs=0.001)
        assert last.saved_seconds >= 0.009


def test_the_day_is_that_of_utc_by_the_clock_of_redis(url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as cache:
        bought(cache, 1)
        before: Any = raw.time()
        (row,) = cache.get_ledger()
        after: Any = raw.time()
    assert row.day in {datetime.fromtimestamp(seconds, UTC).date() for seconds, _ in (before, after)}
    (name,) = raw.scan_iter("magnus!fleet:d*")
    assert name == f"magnus!fleet:d{(row.day - date(1970, 1, 1)).days}".encode()
    assert 62 * DAY < raw.ttl(name) <= 63 * DAY


def test_a_day_has_a_bounded_number_of_fields(url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_keys, "_MOST_TOTALS", 6)
    with CacheManager(redis_url=url) as cache:
        for number in range(4):
            for _ in range(2):
                cache.get_or_set(f"n{number}", "k", lambda: 1, cost=0.25)
        rows = cache.get_ledger(1)
        for _ in range(3):
            cache.get_or_set("n0", "k", lambda: 1, cost=0.25)
            cache.get_ledger(1)
        again = cache.get_ledger(1)
    assert (total(rows, "spent"), total(rows, "saved"), total(rows, "hits")) == (1, 1, 4)
    assert "(other)" in {row.namespace for row in rows}
    assert (total(again, "spent"), total(again, "saved"), total(again, "hits")) == (1, 1.75, 7)
    hits = {row.namespace: row.hits for row in rows}
    # What has a field of its own keeps it.
    assert {row.namespace: row.hits for row in again} == {**hits, "n0": hits["n0"] + 3}
    (name,) = raw.scan_iter("magnus!fleet:d*")
    assert raw.hlen(name) <= 6 + 6 + 1


async def test_nonsense_in_a_day_does_no_harm(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await cache.get_or_set("t", "k", lambda: 1, cost=2)
        (row,) = await cache.get_ledger()
        (name,) = raw.scan_iter("magnus!fleet:d*")
        raw.hset(name, mapping={"n:h1:t": "x", "later": 1, "n:later:t": 1, "fields": "many", "n:ms:u": "-5"})
        assert [found for found in await cache.get_ledger() if found.namespace == "t"] == [row]


# -- where there is no fleet ------------------------------------------------------------------------------------


def test_without_redis_it_is_that_of_this_process() -> None:
    with CacheManager(redis_enabled=False) as cache:
        for _ in range(3):
            bought(cache, 200)
        (row,) = cache.get_ledger()
        assert (row.spent, row.saved, row.saved_percent) == (2, 4, pytest.approx(200 / 3))
        assert abs((datetime.now(UTC).date() - row.day).days) <= 1


async def test_in_an_outage_there_is_none_and_nothing_is_lost(private_server_with: Any) -> None:
    server = private_server_with()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get_or_set("t", "k", lambda: 1, cost=2)
        server.stop()
        await cache.get_or_set("t", "j", lambda: 1, cost=3)
        assert await cache.get_ledger() == []
        server.start()
        await wait_until_answered(cache.get_ledger)
        (row,) = await cache.get_ledger()
        assert (row.spent, row.loads) == (5, 2)


async def test_on_a_cluster_it_is_the_same(cluster: EmbeddedCluster) -> None:
    async with fleet(cluster.url, 2, redis_cluster=True) as managers:
        for manager in managers:
            for key in range(20):
                await manager.get_or_set("t", key, lambda: 1, cost=0.5)
        await managers[1].get_stats("fleet")
        (row,) = await managers[0].get_ledger()
        assert (row.spent, row.saved, row.loads, row.hits) == (10, 10, 20, 20)


# -- arguments and texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [0, -1, 63])
def test_days_that_are_not_kept_are_refused(days: int) -> None:
    with CacheManager(redis_enabled=False) as cache:
        with pytest.raises(CacheArgumentError, match="days: the last 62 days are kept"):
            cache.get_ledger(days)
        with pytest.raises(CacheTypeError, match="days: it is a whole number"):
            cache.get_ledger(1.5)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(CacheArgumentError, match='by: it is "namespace" or "function"'):
            cache.get_ledger(by="day")  # type: ignore[arg-type]  # on purpose


def test_unpriced_calls_have_no_share_of_a_bill() -> None:
    with CacheManager(redis_enabled=False) as cache:
        cache.get_or_set(Namespace("t"), "k", lambda: 1)
        (row,) = cache.get_ledger()
        assert (row.spent, row.saved, row.saved_percent) == (0, 0, None)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (0, "", "0.00"), (12.4, "$", "$12.40"), (1_250.4, "", "1,250"), (0.00042, "EUR", "0.000420 EUR"),
        (0.5, "USD", "0.500 USD"), (1e-12, "", "0.000000000"),
    ],
)  # fmt: skip
def test_amounts_are_shown_with_digits_that_say_something(amount: float, currency: str, text: str) -> None:
    assert money_text(amount, currency) == text
