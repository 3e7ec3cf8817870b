"""`explain`: the truth about one key, for people; and never its value."""

import asyncio
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Explanation, Namespace
from magnus_cache.testing import virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.loaders import Slow
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


async def test_the_states_of_a_key(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with fleet(url) as (one, two):
            nothing = await one.explain("t", "k")
            assert (nothing.level, nothing.verdict, nothing.name) == (None, "not there", "magnus:t:k")
            await one.get_or_set("t", "k", lambda: "the value", ttl=60, tags=["x", "y"])
            clock.advance(20)
            near = await one.explain("t", "k")
            far = await two.explain("t", "k")
            assert (near.level, far.level) == ("l1", "l2") or (near.level, far.level) == ("l2", "l2")
            assert far.age == pytest.approx(20, abs=1)
            assert far.left == pytest.approx(40, abs=1)
            assert far.tags == ("x", "y")
            assert (far.epoch or 0) >= (far.lowest_valid_epoch or 0) > 0
            assert far.lease_holder is None
            assert "the value" not in str(far) + repr(far)
            assert "x, y" in str(far)
            await two.invalidate_tags("y")
            await one.get_stats()
            assert "invalidated" in (await one.explain("t", "k")).verdict
            raw.set("magnus:t:k", b"junk")
            await one.get_stats()
            unreadable = await one.explain("t", "k")
            assert (unreadable.level, unreadable.size) == (None, 4)
            assert "unreadable" in unreadable.verdict
            await one.set("t", "k", 1, ttl=5)
            clock.advance(6)
            assert (await one.explain("t", "k")).verdict == "past its end"
            assert (await one.get_stats())["hit_count"] == 0


@pytest.mark.parametrize("redis_enabled", [True, False])
async def test_what_is_left_of_a_value_that_is_due_early(url: str, *, redis_enabled: bool) -> None:
    """What it has left to live, not until somebody refreshes it."""
    namespace = Namespace("t", early=1e6)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url, redis_enabled=redis_enabled) as manager:

            async def slow() -> int:
                clock.advance(1)
                return 1

            await manager.get_or_set(namespace, "k", slow, ttl=60)
            assert (await manager.explain(namespace, "k")).left == pytest.approx(60, abs=0.5)


async def test_the_holder_of_a_lease(url: str) -> None:
    slow = Slow()
    async with fleet(url) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        seen = await two.explain("t", "k")
        assert seen.lease_holder
        assert 0 < (seen.lease_left or 0) <= 5
        assert "being loaded by" in str(seen)
        slow.finish()
        await call
        assert (await two.explain("t", "k")).lease_holder is None


async def test_without_redis(proxy: Any) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        assert (await cache.explain("t", "k")).verdict == "not there; no Redis is configured"
        await cache.set("t", "k", 1, ttl=60)
        here = await cache.explain("t", "k")
        assert (here.level, here.verdict) == ("l1", "in this process; no Redis is configured")
        assert here.left == pytest.approx(60, abs=1)
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        proxy.black_hole()
        assert "Redis is away" in (await cache.explain("t", "k")).verdict


def test_blocking(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        assert isinstance(cache.explain("t", "k"), Explanation)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1e-9, "0 ms"), (0.0123, "12.3 ms"), (0.35, "350 ms"), (2.5, "2.5 s"), (59.9, "1 min"), (65, "1 min 5 s"),
        (3600, "1 h"), (3605, "1 h"), (7384, "2 h 3 min"), (190_000, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert f"expires in {text}" in str(Explanation("t", "magnus:t:k", "l1", "valid", left=seconds))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (4_210, "4.21 kB"), (2_000_000, "2 MB")]
)
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert f"size {text}" in str(Explanation("t", "magnus:t:k", "l1", "valid", size=size))


async def test_an_entry_in_memory_speaks_to_people_too() -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", "x" * 2000, ttl="2h")
        told = str(await cache.explain("t", "k"))
    assert "expires in 2 h" in told or "expires in 1 h 59 min" in told
    assert "size 2 kB" in told
    assert "None" not in told


@pytest.mark.parametrize("where", ["memory only", "outage", "read before the outage"])
async def test_a_value_in_memory_has_an_age(url: str, proxy: Any, where: str) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(
            redis_url=proxy.url, redis_enabled=where != "memory only", op_timeout=0.3
        ) as cache:
            if where == "outage":
                proxy.refuse()
            if where == "read before the outage":
                async with AsyncCacheManager(redis_url=url) as peer:
                    await peer.set("t", "k", [1], ttl="2h", tags="x")
                clock.advance(20)
                assert await cache.get("t", "k") == [1]
            else:
                await cache.set("t", "k", [1], ttl="2h", tags="x")
                clock.advance(20)
                assert await cache.get("t", "k") == [1]
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not cache._state.reachable)
            clock.advance(45)
            told = await cache.explain("t", "k")
    assert told.level == "l1"
    assert told.age == pytest.approx(65, abs=1)
    assert "stored 1 min 5 s ago" in str(told)
    assert "expires in 1 h 58 min" in str(told)
    assert "tags x" in str(told)
    assert "size" in str(told)


async def test_a_remembered_error_and_a_stale_value_in_memory() -> None:
    namespace = Namespace("t", negative={LookupError: 60}, grace=60)

    def fail() -> None:
        raise LookupError

    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:
            with pytest.raises(LookupError):
                await cache.get_or_set(namespace, "e", fail)
            assert "an error that loading raised, remembered" in (await cache.explain(namespace, "e")).verdict
            await cache.set(namespace, "k", 1, ttl=10)
            clock.advance(30)
            stale = await cache.explain(namespace, "k")
            assert stale.verdict == "past its end, and may be served stale for 40 s more; no Redis is configured"
            assert stale.level is None
            assert "expired 20 s ago" in str(stale)
            clock.advance(60)
            assert (await cache.explain(namespace, "k")).verdict == "not there; no Redis is configured"
