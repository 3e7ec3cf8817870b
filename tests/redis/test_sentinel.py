"""A cache behind Sentinel: it finds the primary, follows it, and believes it only by the sentinels' word."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedSentinels, ServerNode, ServerTls, isolated
from tests.support.groups import anyio_backend, cache_of, url_of
from tests.support.inside import state_of
from tests.support.wait import wait_until_answered

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

KEYS = [f"k{number}" for number in range(40)]

GAP = 3.0
"""Seconds after the decision of the sentinels within which the new primary is used, also on a busy machine; it takes
0.5 s at most when nothing else is."""


@pytest.mark.tracking("keys", "prefix")
async def test_values_are_those_of_the_primary(sentinels: EmbeddedSentinels) -> None:
    async with cache_of(sentinels) as one, cache_of(sentinels) as other:
        for number, key in enumerate(KEYS):
            assert await one.set("t", key, number, tags=["odd" if number % 2 else "even"])
        assert sentinels.primary.ask("EXISTS", "magnus:t:k0") == 1
        assert await other.get_many("t", KEYS) == {key: number for number, key in enumerate(KEYS)}
        assert await asyncio.gather(*(other.get("t", key) for key in KEYS)) == list(range(len(KEYS)))
        await one.set("t", KEYS[0], "new")

        async def is_new() -> bool:
            return await other.get("t", KEYS[0]) == "new"

        await wait_until_answered(is_new)
        assert await other.delete("t", KEYS[0])
        assert await one.get("t", KEYS[0]) is None
        await other.invalidate_tags("odd")
        assert await other.get("t", KEYS[1]) is None
        assert await other.get("t", KEYS[2]) == 2
        assert await one.clear("t") > 0
        assert await other.get_many("t", KEYS) == {}
        health = await one.ping()
        assert (health.ok, health.mode, health.address) == (True, "sentinel", sentinels.primary.address)


@pytest.mark.tracking("keys", "prefix")
def test_blocking_callers(sentinels: EmbeddedSentinels) -> None:
    with CacheManager(redis_url=url_of(sentinels) + "/3") as cache:
        assert cache.set("t", "k", "value")
        assert cache.get_or_set("t", "k", lambda: "loaded") == "value"
        assert cache.clear("t") == 1
        assert cache.get("t", "k") is None
        health = cache.ping()
        assert (health.ok, health.mode, health.address) == (True, "sentinel", sentinels.primary.address)


async def test_one_of_the_sentinels_leads_to_the_others(sentinels: EmbeddedSentinels) -> None:
    """By another name than that by which the others know it; one that is down does not matter."""
    url = f"redis+sentinel://127.0.0.1:1,localhost:{sentinels.sentinels[1].port}/magnus"
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.set("t", "k", "value")
        assert await cache.get("t", "k") == "value"


async def test_a_test_leaves_nothing_behind_at_the_primary(sentinels: EmbeddedSentinels) -> None:
    async with isolated(redis_url=url_of(sentinels)) as cache:
        assert await cache.set("t", "k", "value")
        assert int(sentinels.primary.ask("DBSIZE")) > 0
    assert int(sentinels.primary.ask("DBSIZE")) == 0


async def test_addresses_are_remapped(sentinels: EmbeddedSentinels) -> None:
    seen: list[tuple[str, int]] = []

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        seen.append(address)
        return "localhost", address[1]

    async with cache_of(sentinels, address_remap=remap) as cache:
        assert await cache.set("t", "k", "value")
        assert (await cache.ping()).address == f"localhost:{sentinels.primary.port}"
    assert {port for _, port in seen} >= {node.port for node in sentinels.servers}


async def test_sentinels_and_servers_speak_tls(server_tls: ServerTls) -> None:
    files = {
        "redis_ssl_ca_certs": str(server_tls.authority), "redis_ssl_certfile": str(server_tls.certificate),
        "redis_ssl_keyfile": str(server_tls.key),
    }  # fmt: skip
    with EmbeddedSentinels(1, 1, tls=server_tls) as sentinels:
        url = url_of(sentinels, tls=True)
        # Several handshakes at once: more than half a second on a busy machine.
        async with AsyncCacheManager(redis_url=url, op_timeout=5.0, **files) as cache:
            assert await cache.set("t", "k", "value")
            assert sentinels.primary.ask("EXISTS", "magnus:t:k") == 1
            assert await cache.ping()


# -- failover -------------------------------------------------------------------------------------------------


async def _is_served_by(cache: AsyncCacheManager, node: ServerNode) -> float:
    """Return the seconds until a server has what a cache stores."""
    began = monotonic()

    async def stored() -> bool:
        await cache.set("t", "probe", str(began))
        # What was replicated from the former primary, or is stored in this process alone, is not enough.
        return str(began) in (node.ask("GET", "magnus:t:probe") or "")

    await wait_until_answered(stored)
    return monotonic() - began


async def _used_meanwhile(cache: AsyncCacheManager, change: Callable[[], ServerNode]) -> ServerNode:
    """Use a cache, without any exception, while a thread changes the roles of servers; return the new primary."""
    changing = asyncio.create_task(asyncio.to_thread(change))
    while not changing.done():
        await cache.get_or_set("t", "k", lambda: "loaded")
        await cache.set("t", "other", 1)
        await asyncio.sleep(0)
    return await changing


def _replaced(sentinels: EmbeddedSentinels, strike: Callable[[ServerNode], object]) -> Callable[[], ServerNode]:
    """Return what does something to the primary, waits for the sentinels to replace it, and returns the new one."""

    def change() -> ServerNode:
        primary = sentinels.primary
        strike(primary)
        return sentinels.wait_for_failover(primary)

    return change


@pytest.mark.tracking("keys", "prefix")
async def test_the_primary_is_killed(private_sentinels_with: Callable[..., EmbeddedSentinels]) -> None:
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as one, cache_of(sentinels) as idle:
        await one.set("t", "k", "value")
        assert await idle.get("t", "k") == "value"
        new = await _used_meanwhile(one, _replaced(sentinels, sentinels.kill))
        began = monotonic()
        assert await _is_served_by(one, new) < GAP
        await one.set("t", "k", "new")

        async def is_new() -> bool:
            return await idle.get("t", "k") == "new"

        # The outage was its last exchange: it serves what it has until it has found the new primary.
        await wait_until_answered(is_new)
        assert monotonic() - began < GAP


@pytest.mark.tracking("keys", "prefix")
async def test_a_planned_failover(private_sentinels_with: Callable[..., EmbeddedSentinels]) -> None:
    """The former primary calls itself the primary for many more seconds, and answers."""
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as one:
        for key in KEYS:
            await one.set("t", key, "old")
        old = sentinels.primary
        new = await _used_meanwhile(one, sentinels.promote)
        assert new is not old
        assert await _is_served_by(one, new) < GAP
        # A process that starts now is not misled by it either.
        async with cache_of(sentinels) as fresh:
            assert await _is_served_by(fresh, new) < GAP
        assert "master" in old.ask("ROLE")


async def test_a_primary_is_stopped_and_continues(private_sentinels_with: Callable[..., EmbeddedSentinels]) -> None:
    """It answers what it was asked before it was stopped, as the primary that it was then."""
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as one, cache_of(sentinels) as other:
        await one.set("t", "k", "old")
        assert await other.get("t", "k") == "old"
        old = sentinels.primary
        new = await _used_meanwhile(one, _replaced(sentinels, sentinels.pause))
        assert await _is_served_by(one, new) < GAP
        assert await _is_served_by(other, new) < GAP
        await one.set("t", "k", "new")
        await wait_until_answered(lambda: _has(other, "new"))
        await asyncio.to_thread(sentinels.resume, old)
        # Sentinel makes it a replica after ten seconds or so; it is not waited for.
        found: set[str] = set()
        for _ in range(50):
            assert await other.get("t", "k") == "new"
            async with cache_of(sentinels) as fresh:
                found.add(await fresh.get("t", "k", "nothing"))
        assert {"new"} <= found <= {"new", "nothing"}


async def _has(cache: AsyncCacheManager, value: str) -> bool:
    return await cache.get("t", "k") == value


# -- the word of a majority -----------------------------------------------------------------------------------


async def test_invariant_1_a_primary_without_a_majority_is_not_believed(
    private_sentinels_with: Callable[..., EmbeddedSentinels],
) -> None:
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as one, cache_of(sentinels) as other:
        await one.set("t", "k", "value")
        assert await other.get("t", "k") == "value"
        for node in sentinels.sentinels[:2]:
            await asyncio.to_thread(sentinels.pause, node)
        (wire,) = state_of(other).topology.connections()
        try:

            async def is_not_believed() -> bool:
                return not wire.up or monotonic() > wire.known.vouched + 1.0

            async def is_told() -> bool:
                return not (await other.ping()).ok

            await wait_until_answered(is_not_believed)
            # The connection is ended by a timer, which may be late on a busy machine.
            await wait_until_answered(is_told)
            assert await other.get("t", "another", "nothing") == "nothing"
        finally:
            for node in sentinels.sentinels[:2]:
                await asyncio.to_thread(sentinels.resume, node)

        async def is_served() -> bool:
            return await other.get("t", "k") == "value" and bool(await other.ping())

        await wait_until_answered(is_served)


async def test_one_sentinel_and_one_replica_are_away(
    private_sentinels_with: Callable[..., EmbeddedSentinels],
) -> None:
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as one:
        await one.set("t", "k", "value")
        replica = sentinels.replicas[0]
        for node in (replica, sentinels.sentinels[0]):
            await asyncio.to_thread(sentinels.pause, node)
        began = monotonic()
        while monotonic() < began + 2.5:
            assert await one.get("t", "k") == "value"
            assert await one.set("t", "other", 1)
        for node in (replica, sentinels.sentinels[0]):
            await asyncio.to_thread(sentinels.resume, node)


# -- what is not what the settings say ------------------------------------------------------------------------


async def _reason(caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    async with AsyncCacheManager(**options) as cache:
        assert await cache.get("t", "k", "default") == "default"
        assert await cache.get_or_set("t", "k", lambda: "loaded") == "loaded"
        reason = (await cache.ping()).reason
    assert reason is not None
    assert "\n" not in reason
    assert [line for line in caplog.messages if reason.partition(": ")[2] in line]
    return reason


async def test_a_server_that_was_removed_from_the_service_and_is_used_for_something_else(
    private_sentinels_with: Callable[..., EmbeddedSentinels],
) -> None:
    """It is a primary of its own by then, and the sentinels do not list it any more."""
    sentinels = private_sentinels_with()
    async with cache_of(sentinels) as cache:
        assert await cache.set("t", "key", "value")
        removed = next(node for node in sentinels.servers if node != sentinels.primary)
        primary = sentinels.primary

        async def is_served() -> bool:
            value = f"at {monotonic()}"
            await cache.set("t", "key", value)
            return value in str(primary.ask("GET", "magnus:t:key"))

        async def is_in_doubt() -> bool:
            return not await is_served()

        removed.ask("REPLICAOF", "NO", "ONE")
        await wait_until_answered(is_in_doubt)
        for sentinel in sentinels.sentinels:
            sentinel.ask("SENTINEL", "RESET", sentinels.service)
        await wait_until_answered(is_served)


async def test_an_unknown_service(sentinels: EmbeddedSentinels, caplog: pytest.LogCaptureFixture) -> None:
    reason = await _reason(caplog, redis_url=url_of(sentinels).replace("/magnus", "/other"))
    assert reason.startswith("topology: ")
    assert "knows no service 'other'; check redis_url" in reason


async def test_no_sentinel_answers(caplog: pytest.LogCaptureFixture) -> None:
    reason = await _reason(caplog, redis_sentinels="127.0.0.1:1,127.0.0.1:2", redis_sentinel_service="magnus")
    assert reason.startswith("refused: ")
    assert "no sentinel names the primary: the sentinel at" in reason
    assert "check redis_sentinels" in reason


async def test_a_plain_server_in_place_of_a_sentinel(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    reason = await _reason(caplog, redis_url=f"redis+sentinel://127.0.0.1:{server.port}/magnus")
    assert "is a Redis server and no sentinel" in reason
    assert "or use a redis:// URL" in reason


async def test_no_majority_of_the_sentinels(
    private_sentinels_with: Callable[..., EmbeddedSentinels], caplog: pytest.LogCaptureFixture
) -> None:
    sentinels = private_sentinels_with()
    for node in sentinels.sentinels[:2]:
        await asyncio.to_thread(sentinels.kill, node)
    reason = await _reason(caplog, redis_url=url_of(sentinels))
    assert "no majority of the sentinels answers" in reason


async def test_the_password_of_the_sentinels(
    private_sentinels_with: Callable[..., EmbeddedSentinels], caplog: pytest.LogCaptureFixture
) -> None:
    sentinels = private_sentinels_with(1, 1)
    (node,) = sentinels.sentinels
    node.ask("ACL", "SETUSER", "watch", "on", ">s3cr3t", "+@all")
    node.ask("ACL", "SETUSER", "default", "off")
    reason = await _reason(caplog, redis_url=url_of(sentinels), redis_sentinel_password="wrong")
    assert reason.startswith("auth: ")
    assert "redis_sentinel_password" in reason
    assert "s3cr3t" not in reason
    async with cache_of(sentinels, redis_sentinel_username="watch", redis_sentinel_password="s3cr3t") as cache:
        assert await cache.set("t", "k", "value")


def test_a_sentinels_endpoint_has_its_own_credentials() -> None:
    state = state_of(CacheManager(redis_url="redis+sentinel://me:pw@a/m/2", redis_sentinel_username="watch"))
    deployment = state.settings.deployment()
    found = deployment.sentinel_at("a", 7)
    assert (found.username, found.password, found.db, found.display) == ("watch", None, 0, "redis://a:7/0")
    assert found.name("redis_host") == "redis_url"
    assert replace(found, db=1).name("redis_password").lower() == "redis_sentinel_password"
