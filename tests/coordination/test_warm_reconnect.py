"""What was here before a connection was cut is not sent again, and neither Redis nor the sources feel a stampede."""

import asyncio
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheUnavailableError
from magnus_cache._engine.redis.wire import Wire
from magnus_cache.testing import Proxy
from tests.support.fleet_of_managers import kept
from tests.support.inside import retry_lane_now
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

COUNT = 100
BIG = 4_000


def text(number: int, round_: int = 0) -> str:
    return f"{number}:{round_}:".ljust(BIG, "x")


def patient(url: str) -> AsyncCacheManager:
    """Return a cache that trusts what it has, and waits for Redis, until a connection is cut, on a busy machine too."""
    return AsyncCacheManager(redis_url=url, op_timeout=10, max_staleness=30)


async def read_all(cache: AsyncCacheManager, how: str) -> list[Any]:
    if how == "many":
        found = await cache.get_many("t", range(COUNT))
        return [found.get(number) for number in range(COUNT)]
    if how == "threads":
        return [await asyncio.to_thread(cache.sync.get, "t", number) for number in range(COUNT)]
    return list(await asyncio.gather(*(cache.get("t", number) for number in range(COUNT))))


async def parted(cache: AsyncCacheManager, proxy: Proxy) -> None:
    """Cut every connection, and have the cache notice it."""
    proxy.refuse()
    proxy.cut()

    async def noticed() -> bool:
        missed = await cache.get("t", "nothing") is None
        return missed and not cache.redis_available and not cache._engine.state.reachable

    await wait_until_answered(noticed)


async def reconnected(cache: AsyncCacheManager, proxy: Proxy) -> None:
    """Cut the connection; wait until another has been made, and what its handshake costs has been paid."""
    await parted(cache, proxy)
    proxy.resume()
    await wait_until_async(lambda: cache.redis_available)
    assert await cache.get("t", "nothing") is None


@pytest.mark.parametrize("how", ["one by one", "many", "threads"])
@pytest.mark.parametrize("tags", [(), ("a", "b")])
async def test_what_did_not_change_does_not_come_over_again(
    url: str, proxy: Proxy, how: str, tags: tuple[str, ...]
) -> None:
    async with (
        patient(url) as peer,
        patient(proxy.url) as cache,
    ):
        for number in range(COUNT):
            await peer.set("t", number, text(number), tags=tags)
        expected = [text(number) for number in range(COUNT)]
        before = proxy.counts.bytes_to_client
        assert await read_all(cache, how) == expected
        assert proxy.counts.bytes_to_client - before > COUNT * BIG

        await reconnected(cache, proxy)
        # Threads could read by themselves at once, not only when the pause after the lost connection is over.
        retry_lane_now(cache)
        before = proxy.counts.bytes_to_client
        assert await read_all(cache, how) == expected
        assert proxy.counts.bytes_to_client - before < COUNT * BIG / 10

        # And they are near again, on a connection that hears of every change.
        memory = cache._engine.state.memory
        assert all(memory.hit(f"magnus:t:~{number}".encode()) is not None for number in range(COUNT))
        await peer.set("t", 5, "new")
        await wait_until_async(lambda: memory.hit(b"magnus:t:~5") is None)
        assert await cache.get("t", 5) == "new"
        await peer.clear("t")
        await wait_until_async(lambda: memory.hit(b"magnus:t:~6") is None)
        assert await cache.get("t", 6) is None


async def test_what_changed_meanwhile_comes_over_and_what_went_is_missed(
    url: str, proxy: Proxy, raw: redis.Redis
) -> None:
    async with patient(url) as peer, patient(proxy.url) as cache:
        for number in range(5):
            await peer.set("t", number, text(number), tags="tag" if number == 3 else ())
            await cache.get("t", number)
        await parted(cache, proxy)
        await peer.set("t", 0, text(0, 1))
        await peer.delete("t", 1)
        await peer.set("t", 2, text(2))
        await peer.invalidate_tags("tag")
        raw.hset("magnus:t:~4", "not", "ours") if raw.delete("magnus:t:~4") else None
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        assert [await cache.get("t", number) for number in range(5)] == [text(0, 1), None, text(2), None, None]


async def test_the_new_life_of_a_value_is_counted_anew(url: str, proxy: Proxy) -> None:
    """What an own call made short-lived in this process is as long-lived as Redis says once it was asked again."""
    async with patient(proxy.url) as cache:
        await cache.set("t", "k", text(0), 30)
        await kept(cache, "t", "k")
        memory = cache._engine.state.memory
        before = memory.hit(b"magnus:t:k")
        assert before is not None
        await reconnected(cache, proxy)
        assert memory.hit(b"magnus:t:k") is None
        assert await cache.get("t", "k") == text(0)
        after = memory.hit(b"magnus:t:k")
        assert after is not None
        assert (after.version, after.length) == (before.version, before.length)
        assert after.deadline == pytest.approx(before.deadline, abs=0.5)


async def test_the_sources_are_not_asked(url: str, proxy: Proxy) -> None:
    async with patient(proxy.url) as cache:
        loads = 0

        async def load(number: int) -> str:
            nonlocal loads
            loads += 1
            return text(number)

        @cache.cached(namespace="t")
        async def value(number: int) -> str:
            return await load(number)

        for _ in range(3):
            assert await asyncio.gather(*map(value, range(COUNT))) == list(map(text, range(COUNT)))
            await reconnected(cache, proxy)
        assert loads == COUNT


async def test_a_user_who_may_not_run_scripts_reads_in_full(url: str, proxy: Proxy, raw: redis.Redis) -> None:
    raw.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], commands=["+@all", "-@scripting"]
    )
    try:
        async with (
            patient(url) as peer,
            patient(proxy.url.replace("//", "//reader:secret@")) as cache,
        ):
            for number in range(3):
                await peer.set("t", number, text(number))
                assert await cache.get("t", number) == text(number)
            await reconnected(cache, proxy)
            await peer.set("t", 2, text(2, 1))
            assert [await cache.get("t", number) for number in range(3)] == [text(0), text(1), text(2, 1)]
            await reconnected(cache, proxy)
            found = await cache.get_many("t", range(3))
            assert found == {0: text(0), 1: text(1), 2: text(2, 1)}
    finally:
        raw.acl_deluser("reader")


@pytest.mark.parametrize("how", ["one by one", "many"])
async def test_whoever_asks_when_redis_is_back_waits_for_the_connection_that_is_being_made(
    url: str, proxy: Proxy, how: str
) -> None:
    """Another event loop's connection has found Redis back, this one's is not there yet: that is not a miss."""
    async with patient(proxy.url) as cache:
        for number in range(COUNT):
            await cache.set("t", number, text(number))
        assert await asyncio.to_thread(cache.sync.get, "t", "nothing") is None
        await parted(cache, proxy)
        state = cache._engine.state
        # Should this loop's connection be trying right now, it must not keep the other one from it.
        state.breaker.withdrawn(state.clock())
        proxy.resume()
        wait_until(lambda: state.reachable)
        assert await read_all(cache, how) == [text(number) for number in range(COUNT)]


async def test_an_attempt_that_began_before_another_succeeded_proves_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a loop that was held up: its failure is read long after Redis has come back."""
    connect, failures = Wire._connection, 0

    async def connection(wire: Wire) -> CacheUnavailableError:
        nonlocal failures
        if failures:
            return await connect(wire)
        failures += 1
        await asyncio.sleep(0.01)
        wire._breaker.succeeded(wire.clock())
        return CacheUnavailableError("refused", "nothing listened there")

    async with patient(url) as peer, AsyncCacheManager(redis_url=url) as cache:
        await peer.set("t", "k", 1)
        monkeypatch.setattr(Wire, "_connection", connection)
        assert await cache.get("t", "k") == 1
        assert failures == 1
        assert (await cache.get_stats())["breaker"]["outages"] == 0
