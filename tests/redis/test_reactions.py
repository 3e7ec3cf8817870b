"""What Redis says when it cannot or will not: each answer made by a real server, and what callers see of it, which is
nothing."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.redis import commands
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.testing import Proxy, ServerVersion
from tests.conftest import SERVERS, binary_of
from tests.support.inside import wire_of
from tests.support.rights import before_7, debugging
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio

Start = Callable[..., EmbeddedServer]


async def nothing_raises(cache: AsyncCacheManager, round_: int = 0) -> None:
    """Do all that callers do; nothing of it raises, and what is written is read again by who wrote it."""
    for face in ("async", "blocking"):
        key = f"{face}-{round_}"
        if face == "async":
            await cache.set("t", key, [round_])
            assert await cache.get("t", key) == [round_]
            await cache.get_or_set("t", f"{key}-loaded", lambda: 1)
            await cache.get_many("t", [key, "other"])
            await cache.set_many("t", {f"{key}-many": 1})
            await cache.get_or_set_many("t", [f"{key}-batch"], lambda keys: dict.fromkeys(keys, 1))
            await cache.delete("t", key)
            assert await cache.get("t", key) is None
            await cache.contains("t", key)
            await cache.touch("t", key, 5)
        else:
            sync = cache.sync
            await asyncio.to_thread(sync.set, "t", key, [round_])
            assert await asyncio.to_thread(sync.get, "t", key) == [round_]
            await asyncio.to_thread(sync.get_or_set, "t", f"{key}-loaded", lambda: 1)
            await asyncio.to_thread(sync.delete, "t", key)
            assert await asyncio.to_thread(sync.get, "t", key) is None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def back(cache: AsyncCacheManager) -> None:
    """Return once Redis is used again."""
    await wait_until_async(lambda: cache.redis_available)
    state = cache._engine.state
    await wait_until_async(lambda: not state.outbox.pending)


def administrator(server: EmbeddedServer, password: str | None = None) -> "redis.Redis":
    return redis.Redis(port=server.port, protocol=2, password=password)


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(kind: str, private_server_with: Start) -> Any:
    """Starts servers of each kind, with options."""
    if kind == "valkey":
        yield private_server_with
        return
    servers: list[EmbeddedServer] = []

    def of_redis(**options: str) -> EmbeddedServer:
        servers.append(EmbeddedServer(binary_of("redis"), **options).start())
        return servers[-1]

    yield of_redis
    for server in servers:
        server.close()


async def test_out_of_memory(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """OOM: reads and deletes go on, writes stay here, are counted and not trusted for longer than the bound."""
    server = start()
    async with AsyncCacheManager(redis_url=server.url) as cache, AsyncCacheManager(redis_url=server.url) as peer:
        await cache.set("t", "before", "kept")
        await cache.set("tagged", "k", "old", tags="x")
        await cache.set("whole", "k", "old")
        assert await peer.get_many("tagged", ["k"]) == await peer.get_many("whole", ["k"]) == {"k": "old"}
        with administrator(server) as admin:
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", 1)
            await nothing_raises(cache)
            assert cache.redis_available
            assert await peer.get("t", "before") == "kept"
            stats = await cache.get_stats()
            assert stats["namespaces"]["t"]["refused"] > 0
            assert stats["errors"]["oom"] > 0
            assert await cache.delete("t", "before")
            await peer.get_stats()
            assert await peer.get("t", "before") is None
            lines = warnings(caplog)
            assert len(lines) == 1
            assert "out of memory; raise maxmemory or evict" in lines[0]
            await cache.invalidate_tags("x")
            assert await cache.clear("whole") == 1
            for manager in (cache, peer):
                await manager.get_stats()
                assert await manager.get("tagged", "k") is None
                assert await manager.get("whole", "k") is None
            admin.config_set("maxmemory", 0)
            await cache.set("t", "after", 1)
            assert await peer.get("t", "after") == 1
            for manager in (cache, peer):
                assert await manager.get("tagged", "k") is None
                assert await manager.get("whole", "k") is None
            for manager in (cache, peer):
                assert await manager.get_or_set("tagged", "k", lambda: "new", tags="x") == "new"


async def test_why_an_epoch_is_not_told_is_said(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A new namespace needs one, which a full server has no room for."""
    server = start()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.set("t", "k", 1)
        with administrator(server) as admin:
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", 1)
            assert await cache.set("new", "k", 1) is True
            assert (await cache.get_stats())["errors"]["oom"] > 0
    (line,) = warnings(caplog)
    assert "Redis refused LEARN: it is out of memory; raise maxmemory or evict" in line


async def test_no_tag_is_adopted_from_before_an_invalidation_for_which_there_was_no_room(start: Start) -> None:
    """Invariant 2: a load that began before it stores nothing valid, though the epoch is gone without a trace."""
    server, gate = start(), asyncio.Event()
    async with AsyncCacheManager(redis_url=server.url) as cache, AsyncCacheManager(redis_url=server.url) as peer:
        await cache.set("t", "other", 1, tags="y")

        async def load() -> str:
            await gate.wait()
            return "old"

        call = asyncio.create_task(cache.get_or_set("t", "k", load, tags=lambda value: "x"))
        await wait_until_async(lambda: len(cache._engine.state.leases) == 1)
        with administrator(server) as admin:
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", 1)
            await peer.invalidate_tags("x")
            admin.config_set("maxmemory", 0)
        gate.set()
        assert await call == "old"
        for manager in (cache, peer):
            assert await manager.get("t", "k") is None


async def test_demoted_to_a_replica(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """READONLY: reads go on; what it missed is told to whoever is the primary afterwards."""
    server = start()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.set("t", "before", "kept")
        await cache.set("t", "stale", "old")
        with administrator(server) as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            await nothing_raises(cache)
            assert await cache.get("t", "before") == "kept"
            await cache.delete("t", "stale")
            assert await cache.get("t", "stale") is None
            assert admin.get("magnus:t:stale") is not None
            admin.execute_command("REPLICAOF", "NO", "ONE")
            await wait_until_async(lambda: not cache._engine.state.outbox.pending)
            assert admin.get("magnus:t:stale") is None
        assert any("it is a replica" in line for line in warnings(caplog))


async def test_the_name_leads_to_the_new_primary(start: Start) -> None:
    """READONLY on a connection that was fine: the cache connects anew, and finds who was promoted."""
    old, new = start(), start()
    with Proxy(old.port) as proxy:
        # No question about the connection comes before the server refuses what a caller writes.
        async with AsyncCacheManager(redis_url=proxy.url, max_staleness=600) as cache:
            await cache.set("t", "k", 1)
            with administrator(old) as admin:
                # It finds no primary: it would drop its data for that one's, which is told by other ways.
                admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            proxy.target = new.port
            await cache.set("t", "k", 2)
            await wait_until_async(lambda: proxy.counts.connections >= 2)
            await back(cache)
            await cache.set("t", "k", 3)
            with administrator(new) as admin:
                assert admin.get("magnus:t:k") is not None


async def test_a_note_that_a_read_only_server_refuses_ends_no_connection(start: Start) -> None:
    """A process tells about itself, unasked: only what a caller wants to write is a reason to look for the primary."""
    server = start()
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.set("t", "k", 1)
        state, wire = cache._engine.state, wire_of(cache)
        with administrator(server) as admin:
            number = await wire.execute(commands.CLIENT_ID)
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            state.fleet_log.note(state.clock(), "deleted", None, [b"magnus:t:k"])
            await state.fleet_log.published(wire)
            await state.fleet_stats.published(wire)
            assert await wire.execute(commands.CLIENT_ID) == number
            assert state.stats.errors == {"readonly": 1}
            await cache.delete("t", "k")
            await wait_until_async(lambda: not wire.up)
            admin.execute_command("REPLICAOF", "NO", "ONE")
            await back(cache)
            assert await wire.execute(commands.CLIENT_ID) != number


@pytest.mark.parametrize("forbidden", ["nothing", "info"])
async def test_a_replica_without_its_primary(start: Start, caplog: pytest.LogCaptureFixture, forbidden: str) -> None:
    """MASTERDOWN: it answers PING, TIME and INFO, and no other command: to us that is being away."""
    server = start(**{"replica-serve-stale-data": "no"})
    rights = ["+@all", *([] if forbidden == "nothing" else [f"-{forbidden}"])]
    with administrator(server) as admin:
        admin.acl_setuser("app", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=rights)
    async with AsyncCacheManager(redis_url=server.url.replace("//", "//app:pw@")) as cache:
        await cache.set("t", "k", 1)
        with administrator(server) as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            await cache.get("t", "other")
            assert not cache.redis_available
            assert await cache.get("t", "k") == 1
            await nothing_raises(cache)
            state = cache._engine.state
            await wait_until_async(lambda: state.breaker.as_dict(state.clock())["attempts"] >= 3)
            assert state.breaker.as_dict(state.clock())["reason"] == "masterdown"
            assert len([line for line in warnings(caplog) if "lost its primary" in line]) == 1
            admin.execute_command("REPLICAOF", "NO", "ONE")
        await back(cache)


async def test_busy_with_a_script(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """BUSY: nobody waits for somebody else's endless script; when it is killed, all is well by itself."""
    server = start(**{"lua-time-limit": "50"})
    async with AsyncCacheManager(redis_url=server.url, op_timeout=20.0) as cache:
        await cache.set("t", "k", 1)

        def spin() -> None:
            with administrator(server) as admin, pytest.raises(redis.exceptions.RedisError):
                admin.eval("while true do end", 0)

        thread = threading.Thread(target=spin)
        thread.start()
        try:
            with administrator(server) as admin:
                wait_until(lambda: _busy(admin))
                started = time.monotonic()
                await cache.get("t", "other")
                assert not cache.redis_available
                await nothing_raises(cache)
                assert time.monotonic() - started < 5.0
                assert any("busy with a script" in line for line in warnings(caplog))
                admin.script_kill()
        finally:
            thread.join()
        await back(cache)


def _busy(admin: "redis.Redis") -> bool:
    try:
        admin.get("x")
    except redis.exceptions.ResponseError as error:
        return "BUSY" in str(error)
    return False


async def test_still_loading(start: Start, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """LOADING: it accepts connections and answers HELLO, and is away until it has loaded."""
    if before_7(ServerVersion.of(binary_of(kind))):
        pytest.skip("this server looks at its connections once in 2 MB, and has no option for that")
    server = start(
        **{"key-load-delay": "5000", "loading-process-events-interval-bytes": "1024", "rdbcompression": "no"}
    )
    with administrator(server) as admin:
        admin.mset({f"x{n}": "x" * 1024 for n in range(400)})
        admin.save()
    # A slow answer would be another reason, which the log would tell, too.
    async with AsyncCacheManager(redis_url=server.url, op_timeout=10) as cache:
        await cache.set("t", "k", 1)
        server.kill()
        starting = threading.Thread(target=server.restart)
        starting.start()
        try:
            wait_until(lambda: _loading(server))
            await wait_until_async(lambda: "loading" in cache._engine.state.stats.errors)
            await nothing_raises(cache)
            assert not cache.redis_available
            # The background loop may connect first; its thread writes the line right after Redis counts as available.
            await wait_until_async(lambda: cache.redis_available and len(warnings(caplog)) > 1)
            away, back_again = warnings(caplog)
            assert "loading its data" in away
            assert "is back after" in back_again
        finally:
            starting.join()


def _loading(server: EmbeddedServer) -> bool:
    # Without redis-py's own retries, which would wait until it has loaded.
    with redis.Redis(port=server.port, protocol=2, retry=Retry(NoBackoff(), 0)) as admin:
        try:
            admin.get("x")
        except redis.exceptions.BusyLoadingError:
            return True
        except redis.exceptions.ConnectionError:
            pass
    return False


async def test_the_password_was_changed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """WRONGPASS: said once, with the remedy; when the server is mended, it is used again."""
    server = start(requirepass="first-secret")
    url = f"redis://:first-secret@127.0.0.1:{server.port}/0"
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1)
        with administrator(server, "first-secret") as admin:
            admin.config_set("requirepass", "second-secret")
            admin.client_kill_filter(_type="normal", skipme=True)
            await wait_until_async(lambda: not cache.redis_available)
            await nothing_raises(cache)
            assert await cache.get("t", "k") == 1
            state = cache._engine.state
            await wait_until_async(lambda: state.breaker.as_dict(state.clock())["attempts"] >= 3)
            lines = warnings(caplog)
            assert len(lines) == 1
            assert "check the user and password in redis_url" in lines[0]
            assert "secret" not in lines[0]
            admin.config_set("requirepass", "first-secret")
        await back(cache)


async def test_rights_are_taken_away(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """NOPERM on a connection that goes on: writes stay here, what may be read is read."""
    server = start()
    with administrator(server) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all")
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        async with AsyncCacheManager(redis_url=url) as cache:
            await cache.set("t", "k", 1)
            admin.execute_command("ACL", "SETUSER", "app", "-set", "-eval", "-evalsha", "-unlink")
            await nothing_raises(cache)
            assert cache.redis_available
            assert await cache.get("t", "k") == 1
            assert any("its ACL forbids it; grant the user" in line for line in warnings(caplog))
            admin.execute_command("ACL", "SETUSER", "app", "+@all")
            await back(cache)


async def test_a_script_may_be_called_and_not_what_it_calls(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start()
    with administrator(server) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-time")
        admin.execute_command("ACL", "SETUSER", "app", "+time", "-set")
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        async with AsyncCacheManager(redis_url=url) as cache:
            assert await cache.get_or_set("t", "k", lambda: 1) == 1
            stats = await cache.get_stats()
            assert stats["errors"]["noperm"] > 0
            assert stats["namespaces"]["t"]["refused"] == 1
    assert any("its ACL forbids it; grant the user +" in line for line in warnings(caplog))


async def test_a_handshake_that_is_not_permitted(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is served by such a server, and nobody hears of it as an error, be it one who clears."""
    server = start()
    with administrator(server) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-time")
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        async with AsyncCacheManager(redis_url=url) as cache:
            for round_ in range(2):
                await nothing_raises(cache, round_)
                await cache.invalidate_tags("x")
                await cache.clear("t")
            assert not cache.redis_available
            assert cache._engine.state.breaker.as_dict(0)["reason"] == "noperm"
            assert sum("grant the user +time" in line for line in warnings(caplog)) == 1
            admin.execute_command("ACL", "SETUSER", "app", "+time")
            await back(cache)


@pytest.mark.parametrize(("code", "reason"), [("OOM", "oom"), ("READONLY", "readonly")])
@pytest.mark.parametrize("begin", ["Error running script (call to f_1): @user_script:1: ", ""], ids=["call", "pcall"])
async def test_a_command_that_is_refused_within_a_script(url: str, begin: str, code: str, reason: str) -> None:
    """Before Redis 7.0, the error of the script as a whole does not begin with the code of what was refused."""
    script = f"return redis.error_reply('ERR {begin}@user_script: 1: -{code} as the server says it')"
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get("t", "k")
        with pytest.raises(CacheUnavailableError) as caught:
            await wire_of(cache).execute(commands.Command("BUMP", commands.pack(b"EVAL", script.encode(), b"0")))
        assert caught.value.reason == reason


async def test_who_may_not_read_the_probe_is_served_all_the_same(start: Start) -> None:
    """The probe asks whether the server serves, not whether we may read that key."""
    server = start()
    with administrator(server) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~magnus:*", "~{magnus*", "+@all")
    with CacheManager(redis_url=f"redis://app:pw@127.0.0.1:{server.port}/0") as cache:
        cache.get("t", "k")
        assert cache.redis_available


async def test_a_server_that_sleeps(start: Start, kind: str) -> None:
    """DEBUG SLEEP: one timeout for everybody, then nobody waits; and no log flood."""
    server = start(**debugging(binary_of(kind)))
    async with AsyncCacheManager(redis_url=server.url, op_timeout=0.3) as cache:
        await cache.set("t", "k", 1)
        asleep = threading.Thread(target=lambda: administrator(server).execute_command("DEBUG", "SLEEP", "2"))
        asleep.start()
        try:
            rounds = 0
            # Until it has fallen asleep, it answers.
            while cache.redis_available:
                started, rounds = time.monotonic(), rounds + 1
                await asyncio.gather(*(cache.get("t", f"k{rounds}-{n}") for n in range(100)))
            assert time.monotonic() - started < 1.0
            assert asleep.is_alive()
            await nothing_raises(cache)
        finally:
            asleep.join()
        await back(cache)
