"""What was sent over a connection that was given up is not carried out later: a deleted value does not come back."""

import asyncio
import logging
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.support import leaks
from tests.support.inside import wire_of
from tests.support.relay import Link, Relay
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio

NAME = "magnus:t:k"


def told(cache: AsyncCacheManager) -> Any:
    state = cache._engine.state
    return lambda: state.breaker.closed and not state.outbox.pending


async def given_up(cache: AsyncCacheManager, late: Link, value: str) -> None:
    """Write a value over a connection that is given up as silent, whatever time the machine takes for all else."""
    late.hold()
    writing = asyncio.create_task(cache.set("t", "k", value))
    await wait_until_async(lambda: b"SET" in late.held)
    wire_of(cache).give_up()
    await writing


async def test_a_write_that_was_given_up_does_not_arrive_after_the_delete(
    server: EmbeddedServer, raw: redis.Redis
) -> None:
    async with Relay(server.port) as relay:
        async with AsyncCacheManager(redis_url=relay.url, op_timeout=10) as cache:
            await cache.set("t", "k", "first")
            (late,) = relay.links
            await given_up(cache, late, "old")
            await cache.delete("t", "k")
            await wait_until_async(told(cache))
            heard = late.heard
            late.deliver()
            await wait_until_async(lambda: late.over or late.heard > heard)
            assert raw.get(NAME) is None
            assert await cache.get("t", "k") is None
            assert not cache._engine.state.abandoned.waiting
            # It was given up by a reset: nothing more of it is on its way.
            assert late.reset
        await wait_until_async(lambda: relay.links[-1].reset is not None)
        assert not relay.links[-1].reset


async def test_another_event_loops_connection_ends_it_before_it_says_anything_else(
    server: EmbeddedServer, raw: redis.Redis
) -> None:
    async with (
        Relay(server.port) as relay,
        AsyncCacheManager(redis_url=relay.url, op_timeout=10) as cache,
    ):
        await cache.set("t", "k", "first")
        await asyncio.to_thread(cache.sync.get, "t", "other")
        late, _ = relay.links
        relay.refusing = True
        await given_up(cache, late, "old")
        # The other one stands all the while, and is told of both.
        assert await asyncio.to_thread(cache.sync.set, "t", "k", "new")
        heard = late.heard
        late.deliver()
        await wait_until_async(lambda: late.over or late.heard > heard)
        assert raw.get(NAME) is None or b"new" in raw.get(NAME)  # type: ignore[operator]


async def test_who_may_not_end_connections_is_told_and_served(
    server: EmbeddedServer, proxy: Proxy, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    raw.acl_setuser(
        "app", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-client|kill"]
    )
    try:
        async with AsyncCacheManager(redis_url=proxy.url.replace("//", "//app:pw@"), op_timeout=0.1) as cache:
            await cache.set("t", "k", "first")
            for _ in range(2):
                proxy.half_open("to_server")
                await cache.set("t", "k", "old")
                proxy.resume()
                await wait_until_async(told(cache))
                assert await cache.set("t", "k", "new")
                assert await cache.get("t", "k") == "new"
    finally:
        raw.acl_deluser("app")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("+client|kill" in record.getMessage() for record in warnings) == 1


async def test_a_black_hole_keeps_no_socket(private_server: EmbeddedServer) -> None:
    """More was sent than the kernel's buffers take: it does not wait to be delivered."""
    before = leaks.sockets()
    async with AsyncCacheManager(redis_url=private_server.url, op_timeout=0.1) as cache:
        await cache.set("t", "k", 1)
        private_server.pause()
        try:
            await cache.set("t", "k", "x" * 10_000_000)
            wait_until(lambda: leaks.sockets() <= before, 1)
            await cache.aclose()
            assert leaks.sockets() <= before
        finally:
            private_server.resume()


def test_only_the_same_start_of_a_server_is_told() -> None:
    """Another one's connections have the same numbers and are somebody else's."""
    abandoned = OrphanedConnections(lambda *_: None)
    abandoned.leave(b"one", 5)
    abandoned.leave(b"", 6)
    assert abandoned.ends(b"two", set()) == []
    names: set[int] = set()
    ((command, ending),) = abandoned.ends(b"one", names)
    assert command.packed.split() == [b"*4", b"$6", b"CLIENT", b"$4", b"KILL", b"$2", b"ID", b"$1", b"5"]
    assert abandoned.ends(b"one", names) == []
    ending.set_result(0)
    assert abandoned.ends(b"one", set()) == []


def test_the_abandoned_connections_are_bounded() -> None:
    abandoned = OrphanedConnections(lambda *_: None)
    abandoned.leave(b"one", 1)
    for client in range(2, 1_000):
        abandoned.leave(b"two", client)
    assert len(abandoned.waiting) == 256
    assert 999 in abandoned.waiting
    abandoned.reset()
    assert not abandoned.waiting
