"""What a process remembers does not grow with the number of names, objects, failures or event loops that it has met."""

import asyncio
import gc
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.api.cached import FunctionCache
from magnus_cache._engine.keys.identity import tokens
from magnus_cache._engine.loading.throttle import RetryThrottle
from magnus_cache._engine.policy.registry import default_registry
from tests.support.inside import remembered, wire_of


def test_many_namespaces(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magnus_cache._engine.coherence.epochs._MOST", 1_000)
    with CacheManager(redis_url=url) as cache:
        state = cache._state
        for number in range(3_000):
            state.stats.of(Namespace(f"n{number}")).misses += 1
            cache._reads.ref(f"n{number}", "k")
        for number in range(0, 3_000, 20):
            cache.get(f"n{number}", "k")
        stats = cache.get_stats()
        assert len(stats["namespaces"]) <= 1_001
        assert stats["miss_count"] == 3_000 + 150
        assert len(default_registry._plain) <= 1_024
        there = remembered(cache)
        assert there["heads of keys"] <= 1_024
        assert there["names of epochs"] <= 1_000
        assert there["prefixes of epochs"] <= 1_000
        assert there["epochs"] <= 1_000


def test_many_failures() -> None:
    now = 0.0
    throttle = RetryThrottle(lambda: now)
    for number in range(12_000):
        throttle.failed(b"%d" % number, 60)
    assert len(throttle._until) == 10_000
    assert not throttle.holds(b"0")
    assert throttle.holds(b"11999")


def test_many_instances_and_functions() -> None:
    """As a page makes them that is executed anew each time it is shown."""
    before = len(tokens._known)
    with CacheManager(redis_enabled=False) as cache:
        sites: list[Any] = []

        def page(number: int) -> None:
            class Client:
                def __init__(self, account: int) -> None:
                    self.account = account

                @cache.cached("t")
                def total(self, year: int) -> int:
                    return year

            for year in range(3):
                Client(number).total(year)

        for number in range(200):
            page(number)
        gc.collect()
        sites += [watcher for watcher in default_registry._watchers if isinstance(watcher, FunctionCache)]
        assert len([site for site in sites if site.engine is cache._engine]) == 0
        assert len(tokens._known) <= before + 3
        assert remembered(cache)["counters"] == 200

        @cache.cached("t")
        def squared(number: int) -> int:
            return number * number

        for number in range(10_000):
            squared(number)
        (site,) = [
            one for one in default_registry._watchers if isinstance(one, FunctionCache) and one.engine is cache._engine
        ]
        assert len(site.memo) <= 8_192


@pytest.mark.parametrize("pending", [False, True])
def test_many_event_loops(url: str, raw: redis.Redis, *, pending: bool) -> None:
    """Each call of `asyncio.run` has a loop of its own; some are closed with their tasks still there."""
    with CacheManager(redis_url=url) as cache:

        async def use(number: int) -> None:
            await cache.aio.get_or_set("t", number, lambda: number)
            await cache.aio.delete("t", number)
            if pending:
                cache._state.record_missed(lambda outbox: outbox.record([b"magnus:t:x"]))
                cache._state.replayer.begin(wire_of(cache))

        for number in range(30):
            asyncio.run(use(number))
        gc.collect()
        there = remembered(cache)
        assert there["connections"] <= 2
        assert there["replays"] <= 1
        assert there["loops with key locks"] <= 1
        assert there["tasks of loads"] == there["loads"] == there["blocked loops"] == 0
        assert there["loops with loader slots"] <= 2
        assert there["loops that compress"] <= 2
