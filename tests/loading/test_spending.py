"""Limits of spending: the fleet never spends more than a namespace may, but for loads that are under way."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheBatchError,
    CacheBudgetError,
    CacheManager,
    CacheTypeError,
    Namespace,
    RetryLater,
)
from magnus_cache._engine.policy.spending import checked_limit, period_of
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.programs import ROOT
from tests.support.relay import Relay
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

LIMITED: Final = Namespace("t", spend_limit="1.00/day", ttl="90d")


def spent(raw: redis.Redis, period: str = "day", namespace: str = "t") -> float:
    found: Any = raw.hget(f"magnus!spend:{period}:{namespace}", "s")
    return int(found or 0) / 1e9


async def buy(cache: AsyncCacheManager, key: Any, cost: Any = 0.25, space: str = LIMITED, **options: Any) -> Any:
    return await cache.get_or_set(space, key, lambda: 25, cost=cost, **options)


def by_value(value: int) -> float:
    return value / 100


COSTS: Final = {"number": 0.25, "function": by_value}


# -- the limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(COSTS))
async def test_the_fleet_loads_until_its_limit_is_spent(url: str, raw: redis.Redis, kind: str) -> None:
    async with fleet(url, 3) as managers:
        for number in range(4):
            await buy(managers[number % 3], number, COSTS[kind])
        for manager in managers:
            with pytest.raises(CacheBudgetError, match="the fleet has spent its spend_limit of 1.00/day") as caught:
                await buy(manager, "more", COSTS[kind])
            assert 0 < caught.value.retry_after <= 86_400
            # What is there is served.
            assert await buy(manager, 0, COSTS[kind]) == 25
        assert spent(raw) == 1
        assert sum([(await each.get_stats())["namespaces"]["t"]["spent"] for each in managers]) == 1


def test_blocking_callers_are_limited_too(url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as cache:
        for cost in (0.25, by_value):

            @cache.cached(LIMITED, cost=cost, version=str(cost == 0.25))
            def bought(number: int) -> int:
                return 25

            assert [bought(number) for number in (1, 2)] == [25, 25]
        with pytest.raises(CacheBudgetError):
            bought(3)
        assert bought(2) == 25
    assert spent(raw) == 1


async def test_loads_of_a_fixed_price_never_pass_the_limit_however_many_begin_at_once(
    url: str, raw: redis.Redis
) -> None:
    async with fleet(url, 3) as managers:
        loads = [buy(managers[number % 3], number, 0.3) for number in range(30)]
        found = await asyncio.gather(*loads, return_exceptions=True)
        assert sorted(map(str, map(type, found))) == ["<class 'int'>"] * 3 + [str(CacheBudgetError)] * 27
        assert spent(raw) == pytest.approx(0.9)


async def test_loads_that_tell_their_price_pass_it_by_those_under_way_at_most(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as managers:
        go, begun = asyncio.Event(), 0

        async def load() -> int:
            nonlocal begun
            begun += 1
            await go.wait()
            return 40

        async def one(number: int) -> int:
            return await managers[number % 2].get_or_set(LIMITED, number, load, cost=by_value)

        loads = [asyncio.create_task(one(number)) for number in range(4)]
        await wait_until_async(lambda: begun == 4)
        go.set()
        assert await asyncio.gather(*loads) == [40] * 4
        with pytest.raises(CacheBudgetError):
            await one(5)
        assert spent(raw) == pytest.approx(1.6)


async def test_a_stale_value_is_served_once_the_limit_is_spent(url: str) -> None:
    space = Namespace("t", spend_limit="1/day", ttl=10, grace=3_600)
    with virtual_clock() as clock:
        async with fleet(url, 1) as (cache,):
            assert await buy(cache, "k", 1, space) == 25
            clock.advance(11)
            assert await buy(cache, "k", 1, space) == 25
            row = (await cache.get_stats())["namespaces"]["t"]
            assert (row["loads"], row["stale_hits"], row["held_back"]) == (1, 1, 1)
            with pytest.raises(CacheBudgetError):
                await buy(cache, "other", 1, space)


async def test_batches_are_limited(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):

        async def many(keys: list[str], cost: Any) -> Any:
            return await cache.get_or_set_many(LIMITED, keys, lambda some: dict.fromkeys(some, 25), cost=cost)

        assert await many(["a", "b"], 0.25) == {"a": 25, "b": 25}
        with pytest.raises(CacheBudgetError):
            await many(["a", "c", "d", "e"], 0.25)
        assert spent(raw) == 0.5
        assert await many(["f", "g"], by_value) == {"f": 25, "g": 25}
        with pytest.raises((CacheBudgetError, CacheBatchError)):
            await many(["h"], by_value)
        assert spent(raw) == 1


async def test_money_counted_by_hand_counts(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await cache.get_or_set(LIMITED, "k", lambda: 1)
        cache.count_cost(LIMITED, spent=1)
        await wait_until_async(lambda: spent(raw) == 1)
        with pytest.raises(CacheBudgetError):
            await buy(cache, "more")
        blocking = Namespace("u", spend_limit="1/day")
        await asyncio.to_thread(cache.sync.count_cost, blocking, spent=2)
        await wait_until_async(lambda: spent(raw, namespace="u") == 2)


# -- what is given back -----------------------------------------------------------------------------------------


async def test_a_load_that_fails_is_not_charged(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        for number in range(6):
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_set(LIMITED, number, lambda: 1 / 0, cost=0.5)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(cache.sync.get_or_set, LIMITED, "k", lambda: 1 / 0, cost=0.5)
        await wait_until_async(lambda: spent(raw) == 0)
        found = await cache.get_or_set_many(LIMITED, ["a", "b"], lambda keys: {"a": 1}, cost=0.5)
        assert found == {"a": 1}
        with pytest.raises(ValueError, match="c"):
            await cache.get_or_set_many(LIMITED, ["c"], lambda keys: {"c": ValueError("c")}, cost=0.5)
        await wait_until_async(lambda: spent(raw) == 0.5)


async def test_a_load_that_is_asked_to_retry_later_is_charged_once(url: str, raw: redis.Redis) -> None:
    answers = iter([RetryLater(0.01), 25])

    def load() -> int:
        answer = next(answers)
        if isinstance(answer, RetryLater):
            raise answer
        return answer

    async with fleet(url, 1) as (cache,):
        assert await cache.get_or_set(LIMITED, "k", load, cost=0.75) == 25
        await wait_until_async(lambda: spent(raw) == 0.75)


async def test_a_load_that_its_budget_refuses_is_not_charged(url: str, raw: redis.Redis) -> None:
    space = Namespace("t", spend_limit="1/day", budget="1/hour", hard_timeout=20)
    async with fleet(url, 1) as (cache,):
        await buy(cache, "a", 0.25, space)
        with pytest.raises(CacheBudgetError, match="budget"):
            await buy(cache, "b", 0.25, space)
        await wait_until_async(lambda: spent(raw) == 0.25)


# -- periods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period", "longest"), [("hour", 3_600), ("day", 86_400), ("month", 31 * 86_400)])
def test_a_new_period_begins_at_zero(url: str, raw: redis.Redis, period: str, longest: int) -> None:
    space = Namespace("t", spend_limit=f"1/{period}")
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:
        cache.get_or_set(space, "a", lambda: 1, cost=1)
        with pytest.raises(CacheBudgetError) as caught:
            cache.get_or_set(space, "b", lambda: 1, cost=1)
        second = cache._engine.state.topology.time_of(b"t").at(cache._engine.state.clock()) / 1e6
        left = period_of(second, period)[1] - second
        assert caught.value.retry_after == pytest.approx(left, abs=3)
        assert caught.value.retry_after <= longest
        clock.advance(caught.value.retry_after + 2)
        cache.get_or_set(space, "b", lambda: 1, cost=1)
        assert spent(raw, period) == 1
        with pytest.raises(CacheBudgetError):
            cache.get_or_set(space, "c", lambda: 1, cost=1)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2199, 12, 31)))
def test_the_periods_are_those_of_the_calendar(at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    ends = {
        "hour": at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1),
        "day": at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1),
        "month": (at.replace(day=28) + timedelta(days=4)).replace(day=1, hour=0, minute=0, second=0, microsecond=0),
    }
    for period, end in ends.items():
        number, until = period_of(at.timestamp(), period)
        assert until == end.timestamp()
        assert period_of(until, period)[0] == number + 1


def test_redis_counts_months_as_the_calendar_does(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:
        space = Namespace("t", spend_limit="1/month")
        for key in range(14):
            cache.get_or_set(space, key, lambda: 1, cost=0.01)
            second = cache._engine.state.topology.time_of(b"t").at(cache._engine.state.clock()) / 1e6
            number: Any = raw.hget("magnus!spend:month:t", "p")
            assert int(number) == period_of(second, "month")[0]
            clock.advance(27.3 * 86_400)


# -- deaths, lost answers, outages ------------------------------------------------------------------------------

_WORKER: Final = """
import json, os, signal, sys
from magnus_cache import CacheManager, Namespace
cache, number = CacheManager(redis_url=sys.argv[1], prefix="killed"), int(sys.argv[2])
space = Namespace("t", spend_limit="100/day")
for key in range(20):
    cache.get_or_set(space, f"{number}.{key}", lambda: 7, cost=lambda value: value / 100)
for key in range(20):
    cache.get_or_set(space, f"{number}!{key}", lambda: 7, cost=0.03)
print(json.dumps(cache.get_stats()["namespaces"]["t"]["spent"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_have_spent_is_known_exactly() -> None:
    with EmbeddedServer() as server, ExitStack() as stack:
        workers = []
        for number in range(2):
            command = [sys.executable, "-c", _WORKER, server.url, str(number)]
            worker = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
            workers.append(stack.enter_context(worker))
            stack.callback(worker.kill)
        counted = sum(json.loads(worker.stdout.readline()) for worker in workers if worker.stdout)
        assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 2
        with redis.Redis(port=server.port) as raw:
            assert int(raw.hget("killed!spend:day:t", "s") or 0) / 1e9 == pytest.approx(counted) == pytest.approx(4)  # type: ignore[arg-type]  # a text


async def test_a_report_whose_answer_is_lost_counts_once(server: EmbeddedServer, raw: redis.Redis, url: str) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=20) as cache:
        await buy(cache, "a", by_value)
        await wait_until_async(lambda: spent(raw) == 0.25)
        (link,) = relay.links
        link.muted, heard = True, link.heard
        cache.count_cost(LIMITED, spent=0.25)
        await wait_until_async(lambda: link.heard > heard and spent(raw) == 0.5)
        link.cut()

        async def bought() -> bool:
            await buy(cache, "b", by_value)
            return True

        await wait_until_answered(bought)
        await wait_until_async(lambda: spent(raw) == 0.75)


async def test_in_an_outage_a_process_keeps_to_its_share_and_tells_it_afterwards(private_server_with: Any) -> None:
    server = private_server_with()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await buy(cache, "a", 0.2)
        cache._engine.state.sources.processes = 2
        server.stop()
        # Half of the 0.8 that were left.
        await buy(cache, "b", 0.2)
        await buy(cache, "c", by_value_of_a_fifth)
        for cost in (0.2, by_value_of_a_fifth):
            with pytest.raises(CacheBudgetError, match="has spent its spend_limit"):
                await buy(cache, "d", cost)
        server.start()

        async def told() -> bool:
            with redis.Redis(port=server.port) as raw:
                return spent(raw) >= 0.39

        await wait_until_answered(told)


def by_value_of_a_fifth(value: int) -> float:
    return value / 125


async def test_a_process_that_has_never_met_redis_spends_nothing(private_server_with: Any) -> None:
    server = private_server_with()
    server.stop()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        with pytest.raises(CacheBudgetError, match="Redis has not said yet what the fleet has left"):
            await buy(cache, "a")
        assert await cache.get_or_set("u", "k", lambda: 1, cost=1) == 1


def test_without_redis_a_process_has_the_limit_for_itself() -> None:
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        for _ in range(2):
            for number in range(4):
                cache.get_or_set(Namespace("t", spend_limit="1/hour", ttl=1), number, lambda: 1, cost=0.25)
            with pytest.raises(CacheBudgetError) as caught:
                cache.get_or_set(Namespace("t", spend_limit="1/hour"), "more", lambda: 1, cost=0.25)
            clock.advance(max(2, caught.value.retry_after + 1))


async def test_on_a_cluster_it_is_the_same(cluster: EmbeddedCluster) -> None:
    async with fleet(cluster.url, 2, redis_cluster=True) as managers:
        for number in range(4):
            await buy(managers[number % 2], number, list(COSTS.values())[number % 2])
        for manager in managers:
            with pytest.raises(CacheBudgetError):
                await buy(manager, "more")


async def test_nonsense_in_the_place_of_an_account_counts_as_nothing(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        raw.set("magnus!spend:day:t", "x")
        await buy(cache, "a")
        raw.hset("magnus!spend:day:t", "s", "y")
        await buy(cache, "b")
        assert spent(raw) == 0.25
        assert 0 < raw.ttl("magnus!spend:day:t") <= 2 * 86_400


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    ["5", "5/week", "-5/day", "0/day", "x/day", "1e3/day", "5/days", 5, ("5", "day"), "9999999999/day"],
    ids=str,
)
def test_another_limit_is_refused(limit: Any) -> None:
    with pytest.raises((CacheArgumentError, CacheTypeError), match="spend_limit"):
        Namespace("t", spend_limit=limit)


def test_a_limit_is_part_of_the_policy() -> None:
    import copy
    import pickle

    space = Namespace("t", spend_limit=" 5.00 / day ")
    assert "spend_limit=' 5.00 / day '" in repr(space)
    assert checked_limit("5.00/day") == space.spending
    for again in (pickle.loads(pickle.dumps(space)), copy.deepcopy(space)):
        assert again.policy == space.policy
