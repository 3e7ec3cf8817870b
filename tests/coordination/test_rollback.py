"""A server that comes back with old data: what was removed from it before it died is there again, and is not served."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis import scripts
from magnus_cache._engine.redis.events import Arrival
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.conftest import SERVERS, binary_of
from tests.support.loaders import Slow
from tests.support.wait import lapse_async, wait_until, wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

Start = Callable[..., EmbeddedServer]
NAME = "magnus:t:k"


def snapshot(server: EmbeddedServer) -> None:
    with redis.Redis(port=server.port, protocol=2) as admin:
        admin.save()


def stored(server: EmbeddedServer) -> Any:
    with redis.Redis(port=server.port, protocol=2) as admin:
        return admin.get(NAME)


@pytest.mark.parametrize("how", ["delete", "overwrite", "clear", "tag", "clear all"])
@pytest.mark.parametrize("who", ["who did it", "a peer", "somebody new"])
async def test_invariant_7_what_was_invalidated_before_the_crash_does_not_come_back(
    private_server: EmbeddedServer, how: str, who: str
) -> None:
    """Redis confirmed the invalidation and lost it with its latest writes; nobody recorded it."""
    url = private_server.url
    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as two:
        await one.set("t", "k", "old", tags="x")
        assert await two.get("t", "k") == "old"
        snapshot(private_server)
        if how == "delete":
            await one.delete("t", "k")
        elif how == "overwrite":
            await one.set("t", "k", "new", 0.001)
            await lapse_async(0.01)
        elif how == "clear":
            await one.clear("t")
        elif how == "tag":
            await one.invalidate_tags("x")
        else:
            await one.clear("magnus:*")
        private_server.kill()
        await wait_until_async(lambda: not one.redis_available)
        private_server.restart()
        assert stored(private_server) is not None
        if who == "somebody new":
            # The two that know of the crash come back first, as they live.
            await wait_until_async(lambda: one.redis_available and two.redis_available)
            async with AsyncCacheManager(redis_url=url) as new:
                assert await new.get("t", "k") is None
            return
        asked = one if who == "who did it" else two
        await wait_until_async(lambda: asked.redis_available)
        assert await asked.get("t", "k") is None
        assert await asyncio.to_thread(asked.sync.get, "t", "k") is None


async def test_somebody_new_does_not_believe_a_server_that_was_started_anew(private_server: EmbeddedServer) -> None:
    """Nobody is left who knew of the invalidation: the server's own history tells that it may be missing."""
    async with AsyncCacheManager(redis_url=private_server.url) as one:
        await one.set("t", "k", "old")
        snapshot(private_server)
        await one.delete("t", "k")
    private_server.kill()
    private_server.restart()
    async with AsyncCacheManager(redis_url=private_server.url) as new:
        assert await new.get("t", "k") is None
        assert await new.get_or_set("t", "k", lambda: "new") == "new"


async def test_a_fleet_invalidates_everything_once_for_each_start(private_server: EmbeddedServer) -> None:
    """What the first one loads afterwards is good for those who come later."""
    url = private_server.url
    managers = [AsyncCacheManager(redis_url=url) for _ in range(4)]
    try:
        for manager in managers:
            await manager.get("t", "k")
        private_server.kill()
        await wait_until_async(lambda: not any(manager.redis_available for manager in managers))
        private_server.restart()
        loads = 0

        def load() -> str:
            nonlocal loads
            loads += 1
            return "value"

        for manager in managers:
            await wait_until_async(lambda manager=manager: manager.redis_available)
            assert await manager.get_or_set("t", "k", load) == "value"
        assert loads == 1
        async with AsyncCacheManager(redis_url=url) as late:
            assert await late.get_or_set("t", "k", load) == "value"
        assert loads == 1
    finally:
        for manager in managers:
            await manager.aclose()


def test_of_those_who_come_at_once_only_the_first_invalidates_everything(raw: redis.Redis) -> None:
    """That a server was met is left there in the same step: nobody arrives in between."""
    names = Epochs(Keyspace("magnus")).names
    raw.delete(names.server)
    arrival = scripts.arrive(names, b"run:history", 0)
    assert arrival.again is not None
    words = arrival.again().packed
    with raw.client() as client:
        connection = client.connection
        replies = []
        for _ in range(2):
            connection.send_packed_command([words])
            replies.append(connection.read_response())
    assert [bool(reply) for reply in replies] == [True, False]
    raw.delete(names.server)


async def test_a_connection_that_is_lost_invalidates_nothing(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as one:
        await one.set("t", "k", "value")
        raw.client_kill_filter(_type="normal", skipme=True)
        assert await one.get("t", "k") == "value"


async def test_a_promoted_replica_may_lack_the_last_writes(private_server: EmbeddedServer) -> None:
    """Replication is asynchronous: the identity of a server's history changes when it becomes a primary."""
    async with AsyncCacheManager(redis_url=private_server.url) as one:
        await one.set("t", "k", "old")
        with redis.Redis(port=private_server.port, protocol=2) as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            admin.execute_command("REPLICAOF", "NO", "ONE")
            admin.client_kill_filter(_type="normal", skipme=True)
        await one.get_stats()
        await wait_until_async(lambda: one.redis_available)
        assert await one.get("t", "k") is None


@pytest.mark.parametrize("writes", ["refused", "taken"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_demoted_server_that_takes_over_another_ones_data_is_met_anew(kind: str, writes: str) -> None:
    """The connection stands all the while: that the data was dropped is all that this process hears."""
    binary = binary_of(kind)
    # A replica that takes writes never says what it is.
    options = {"repl_diskless_sync_delay": "0", "replica_read_only": "yes" if writes == "refused" else "no"}
    with EmbeddedServer(binary, **options) as first, EmbeddedServer(binary, **options) as second:
        with (
            redis.Redis(port=first.port, protocol=2) as old,
            redis.Redis(port=second.port, protocol=2) as new,
        ):

            async def follows(follower: redis.Redis, port: int) -> None:
                follower.replicaof("127.0.0.1", port)  # type: ignore[no-untyped-call]
                await wait_until_async(lambda: follower.info("replication")["master_link_status"] == "up")

            # Without the note of a delete, a write that a replica refuses: this process would learn of it by that.
            async with AsyncCacheManager(redis_url=first.url, recorder_keys=0) as cache:
                await cache.set("t", "k", "old")
                await follows(new, first.port)
                new.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
                await cache.delete("t", "k")
                await follows(old, second.port)
                assert old.get(NAME) is not None
                assert await cache.get("t", "k") is None
                old.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
                await wait_until_async(lambda: not cache._engine.state.outbox.pending)
                assert await cache.get("t", "k") is None
                assert (await cache.get_stats())["breaker"]["outages"] == 0


@pytest.mark.parametrize("how", ["evicted", "flushed"])
async def test_that_a_server_was_met_is_known_as_long_as_somebody_is_connected(
    url: str, raw: redis.Redis, how: str
) -> None:
    """Who starts when its key is gone, as by eviction, does not take it for a server that has gone back in time."""
    async with AsyncCacheManager(redis_url=url) as one:
        for _ in range(3):
            assert await one.get("t", "k") is None
            identity = raw.get("magnus!server")
            assert identity
            raw.delete("magnus!server") if how == "evicted" else raw.flushall()
            await wait_until_async(lambda identity=identity: raw.get("magnus!server") == identity)
        await one.set("t", "k", "value")
        epoch = raw.get("magnus!epoch")
        async with AsyncCacheManager(redis_url=url) as new:
            assert await new.get("t", "k") == "value"
            await new.aclose()
        assert raw.get("magnus!epoch") == epoch


async def test_a_server_whose_key_was_lost_with_its_latest_writes_is_not_believed(
    private_server: EmbeddedServer,
) -> None:
    """The snapshot was made when the key was not there."""
    async with (
        AsyncCacheManager(redis_url=private_server.url) as one,
        AsyncCacheManager(redis_url=private_server.url) as two,
    ):
        await one.set("t", "k", "old")
        await two.get("t", "k")
        with redis.Redis(port=private_server.port, protocol=2) as admin:
            pipeline = admin.pipeline(transaction=False)
            pipeline.delete("magnus!server")
            pipeline.save()
            pipeline.execute()
        await one.delete("t", "k")
        private_server.kill()
        await wait_until_async(lambda: not one.redis_available)
        private_server.restart()
        assert stored(private_server) is not None
        await wait_until_async(lambda: one.redis_available and two.redis_available)
        for cache in (one, two):
            assert await cache.get("t", "k") is None
        async with AsyncCacheManager(redis_url=private_server.url) as new:
            assert await new.get("t", "k") is None


@pytest.mark.parametrize("epoch", [0, 1795455194053949])
def test_no_identity_is_restored_that_could_not_be_settled(epoch: int) -> None:
    """A server that could not be told to invalidate everything may have old values, whoever comes later."""
    calls: list[Any] = []

    class Stub:
        identity = b"run:one"

        def restore_identity(self, *call: Any) -> None:
            calls.append(call)

    keyspace, stub = Keyspace("magnus"), cast("Any", Stub())
    failover = FailoverGuard(Epochs(keyspace), stub, Outbox(b"magnus:"), b"magnus:", lambda _: None)
    failover.arrived(b"run:zero", Arrival(True, 0))
    failover.restore_identity(stub)
    failover.arrived(b"run:one", Arrival(False, 0))
    failover.restore_identity(stub)
    assert not calls
    assert failover.knows(b"run:one") is None
    failover.arrived(b"run:one", Arrival(True, epoch))
    failover.restore_identity(stub)
    assert len(calls) == 1


async def test_invariant_3_two_connections_that_meet_a_new_server_invalidate_everything_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one to take its answer voids no load that began with the new epoch."""
    slow, told, go_on = Slow(), asyncio.Event(), threading.Event()
    loop, arrived = asyncio.get_running_loop(), FailoverGuard.arrived

    def late(self: FailoverGuard, identity: bytes, arrival: Arrival) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert arrival.epoch
            loop.call_soon_threadsafe(told.set)
            assert go_on.wait(10)
        arrived(self, identity, arrival)

    monkeypatch.setattr(FailoverGuard, "arrived", late)
    async with AsyncCacheManager(redis_url=url, op_timeout=20) as cache:
        other = asyncio.create_task(asyncio.to_thread(cache.sync.get, "t", "other"))
        try:
            await told.wait()
            calls = [asyncio.create_task(cache.get_or_set("t", "k", slow))]
            await slow.begun()
        finally:
            go_on.set()
        await other
        calls.append(asyncio.create_task(cache.get_or_set("t", "k", slow)))
        await wait_until_async(lambda: slow.calls == 2 or cache._engine.state.flights.joined)
        slow.finish()
        slow.finish(2)
        assert (await asyncio.gather(*calls), slow.calls) == ([1, 1], 1)
        assert await cache.get("t", "k") == 1


async def test_who_empties_the_server_disconnects_nobody(
    server: EmbeddedServer, raw: redis.Redis, proxy: Proxy
) -> None:
    """What is asked at that moment is answered, and nothing is loaded twice."""
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        loads = 0

        def load() -> int:
            nonlocal loads
            loads += 1
            return loads

        for round_ in range(1, 6):
            assert await cache.get_or_set("t", "k", load) == round_
            assert await cache.get("t", "k") == round_
            asked = [asyncio.create_task(cache.get_or_set("t", number, lambda: 0)) for number in range(50)]
            await asyncio.to_thread(raw.flushall)
            assert await asyncio.gather(*asked) == [0] * 50
            await wait_until_async(lambda: cache._engine.state.memory.hit(NAME.encode()) is None)
        assert proxy.connections == 1
        assert (await cache.get_stats())["errors"] == {}


async def test_who_may_not_ask_is_served_as_before(private_server: EmbeddedServer) -> None:
    """Without INFO a server's history cannot be told: then the bound is what Redis itself promises."""
    with redis.Redis(port=private_server.port, protocol=2) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info")
    with CacheManager(redis_url=f"redis://app:pw@127.0.0.1:{private_server.port}/0") as cache:
        assert cache.set("t", "k", 1)
        assert cache.redis_available
        cache._engine.state.memory.clear()
        assert cache.get("t", "k") == 1
        wait_until(lambda: cache.redis_available)
