"""Redis away: at the start, later, for a while. No error, no wait beyond `op_timeout`, no wrong value; and it comes
back by itself."""

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis.diagnosis import explain
from magnus_cache._engine.redis.endpoint import Endpoint
from magnus_cache.testing import Proxy
from tests.support.inside import all_sent, pipeline_of, remember_at_most, wire_of
from tests.support.rights import UNTRACKED
from tests.support.wait import wait_until, wait_until_answered, wait_until_async


def nowhere() -> str:
    """A URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{probe.getsockname()[1]}/0"


def test_no_redis_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_url=nowhere()) as cache:
        assert cache.redis_available is False
        assert cache.get("t", "k") is None
        assert cache.set("t", "k", [1]) is True
        assert cache.get("t", "k") == [1]
        assert cache.get_or_set("t", "l", lambda: 2) == 2
        assert cache.get_many("t", ["k", "l"]) == {"k": [1], "l": 2}
        assert cache.contains("t", "k") is True
        assert 299 < (cache.ttl("t", "k") or 0) <= 300
        assert cache.touch("t", "k", 5) is True
        assert cache.delete("t", "k") is True
        assert cache.clear("t") == 0
        assert cache.get("t", "l") is None
        assert cache.redis_available is False
        assert "redis_total_keys" not in cache.get_stats()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "nothing listens there; start redis-server" in lines[0]


@pytest.mark.anyio
async def test_redis_dies_and_comes_back(private_server: Any) -> None:
    async with AsyncCacheManager(redis_url=private_server.url) as cache:
        await cache.set("t", "k", "value")
        assert cache.redis_available
        private_server.kill()
        assert await cache.get("t", "k") == "value"
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.set("t", "during", 1) is True
        assert await cache.get("t", "during") == 1
        private_server.restart()
        await wait_until_async(lambda: cache.redis_available)
        await cache.set("t", "after", 2)
        assert await cache.get("t", "after") == 2


def test_the_background_loop_reconnects_without_a_call(private_server: Any) -> None:
    with CacheManager(redis_url=private_server.url) as cache:
        cache.set("t", "k", 1)
        private_server.kill()
        cache.get("t", "other")
        wait_until(lambda: not cache.redis_available)
        private_server.restart()
        wait_until(lambda: cache.redis_available)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["async", "blocking"])
@pytest.mark.parametrize("what", ["delete", "delete many", "clear", "pattern", "everything", "tag", "overwrite"])
async def test_what_was_invalidated_in_the_outage_never_comes_back(
    server: Any, proxy: Any, what: str, way: str
) -> None:
    """Invariant 7: Redis keeps the old value all through the outage; nobody is served it afterwards."""
    async with (
        AsyncCacheManager(redis_url=server.url) as peer,
        AsyncCacheManager(redis_url=proxy.url, op_timeout=0.3) as cache,
    ):

        async def call(name: str, *args: Any, **options: Any) -> Any:
            if way == "async":
                return await getattr(cache, name)(*args, **options)
            return await asyncio.to_thread(getattr(cache.sync, name), *args, **options)

        await call("set", "t", "k", "old", tags="x")
        assert await peer.get("t", "k") == "old"
        proxy.refuse()
        proxy.cut()

        async def noticed() -> bool:
            return await call("get", "t", "unknown") is None and not cache.redis_available

        await wait_until_answered(noticed)
        match what:
            case "delete":
                assert await call("delete", "t", "k") is True
            case "delete many":
                await call("delete_many", "t", ["j", "k"])
            case "clear":
                await call("clear", "t")
            case "pattern":
                await call("clear", "magnus:t:*")
            case "everything":
                await call("clear", "magnus:*")
            case "tag":
                await call("invalidate_tags", "x")
            case _:
                assert await call("set", "t", "k", "new") is True
        assert await call("get", "t", "k") == ("new" if what == "overwrite" else None)
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        # The local value of the outage is not trusted, the old one of Redis is not believed.
        assert await call("get", "t", "k") is None

        async def told() -> bool:
            return await peer.get("t", "k") is None

        await wait_until_answered(told)
        assert await call("get_or_set", "t", "k", lambda: "loaded") == "loaded"
        assert await peer.get("t", "k") == "loaded"


@pytest.mark.anyio
@pytest.mark.parametrize("grace", [0, 60])
@pytest.mark.parametrize("what", ["delete", "tag"])
async def test_what_redis_said_is_gone_does_not_come_back_in_the_next_outage(
    server: Any, proxy: Any, what: str, grace: int
) -> None:
    """An outage falls back on what is here, trusted or not; but not on what is known to be no more."""

    async def part() -> None:
        proxy.refuse()
        proxy.cut()

        async def noticed() -> bool:
            return await cache.get("t", "unknown") is None and not cache.redis_available

        await wait_until_answered(noticed)

    namespace = Namespace("t", grace=grace)
    async with (
        AsyncCacheManager(redis_url=server.url) as peer,
        AsyncCacheManager(redis_url=proxy.url, op_timeout=0.3) as cache,
    ):
        await cache.set(namespace, "k", "old", tags="x")
        await part()
        if what == "delete":
            await peer.delete("t", "k")
        else:
            await peer.invalidate_tags("x")
        # What is here is still the best there is.
        assert await cache.get(namespace, "k") == "old"
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get(namespace, "k") is None
        await part()
        assert await cache.get(namespace, "k") is None
        assert await cache.get_or_set(namespace, "k", lambda: "loaded") == "loaded"
        proxy.resume()


@pytest.mark.anyio
async def test_nor_does_it_where_nothing_announces_changes(url: str, server: Any, proxy: Any, raw: Any) -> None:
    """Without tracking the connection stands, and only the answer says that a value is gone."""
    raw.acl_setuser("untracked", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    limited = proxy.url.replace("redis://", "redis://untracked:pw@")
    namespace = Namespace("t", grace=60)
    async with AsyncCacheManager(redis_url=limited, op_timeout=0.3, max_staleness=0.1) as cache:
        await cache.set(namespace, "k", "old")
        raw.delete("magnus:t:k")
        await wait_until_async(lambda: cache._engine.state.memory.hit(b"magnus:t:k") is None)
        assert await cache.get(namespace, "k") is None
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.get(namespace, "k") is None
        assert await cache.get_or_set(namespace, "k", lambda: "loaded") == "loaded"
        proxy.resume()
    raw.acl_deluser("untracked")


def test_a_conflict_with_a_peers_newer_write_ends_in_an_invalidation(server: Any, proxy: Any) -> None:
    peer = CacheManager(redis_url=server.url)
    with peer, CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        cache.set("t", "k", "old")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: cache.get("t", "unknown") is None and not cache.redis_available)
        cache.set("t", "k", "ours")
        peer.set("t", "k", "theirs")
        proxy.resume()
        wait_until(lambda: cache.redis_available)
        assert cache.get("t", "k") in (None, "theirs")
        assert peer.get("t", "k") in (None, "theirs")


def test_a_silent_redis_costs_one_timeout_for_all(server: Any, proxy: Any) -> None:
    """100 callers into a black hole; together they wait about one `op_timeout`, then fail fast."""
    with CacheManager(redis_url=proxy.url, op_timeout=0.4) as cache:
        cache.set("t", "k", "value")
        proxy.black_hole()
        started = time.monotonic()
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(cache.get("t", "unknown", "miss"))) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["miss"] * 100
        # Generous: the claim is one wait for all, not a hundred.
        assert time.monotonic() - started < 4 * 0.4
        assert cache.get("t", "k") == "value"
        proxy.resume()
        wait_until(lambda: cache.redis_available)


@pytest.mark.anyio
async def test_a_lost_connection_makes_entries_suspect_at_once(server: Any, proxy: Any, raw: Any) -> None:
    """Invariant 5: what was read through a connection that broke is not served while Redis can be asked."""
    async with AsyncCacheManager(redis_url=proxy.url, max_staleness=30) as cache:
        await cache.set("t", "k", "old")
        memory = cache._engine.state.memory
        assert memory.hit(b"magnus:t:k") is not None
        # At once, and not by the next connection.
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: memory.hit(b"magnus:t:k") is None)
        raw.delete("magnus:t:k")
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get("t", "k") is None


@pytest.mark.anyio
async def test_a_killed_connection_is_replaced_without_a_miss(server: Any, url: str, raw: Any) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", "value")
        cache._engine.state.memory.invalidate(b"magnus:t:k")
        raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await cache.get("t", "k") == "value"
        assert cache.redis_available


@pytest.mark.anyio
async def test_a_queue_that_is_full_turns_callers_away(server: Any, proxy: Any) -> None:
    """Invariant 10: every queue has a bound."""
    async with AsyncCacheManager(redis_url=proxy.url, max_pending=50, op_timeout=1.0) as cache:
        await cache.get("t", "k")
        found = await asyncio.gather(*(cache.get("t", f"k{n}", "miss") for n in range(200)))
        assert found == ["miss"] * 200
        stats = await cache.get_stats()
        assert stats["errors"]["overloaded"] >= 100


@pytest.fixture
def foreign() -> Iterator[int]:
    """A server that is not Redis: it answers everything as a web server would."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(1)
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    over.set()
    thread.join()
    listener.close()


def complaint(caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    """Use a cache whose Redis is wrong in some way; return its one log line, after all has worked nevertheless."""
    # Silence would be another reason, which the log would tell, too.
    with CacheManager(**{"op_timeout": 10, **options}) as cache:
        assert cache.set("t", "k", 1) is True
        assert cache.get("t", "k") == 1
        assert cache.redis_available is False
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    return lines[0]


def test_not_a_redis(foreign: int, caplog: pytest.LogCaptureFixture) -> None:
    line = complaint(caplog, redis_url=f"redis://127.0.0.1:{foreign}/0")
    assert "not Redis; check redis_url" in line


def test_a_wrong_password(private_server_with: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = private_server_with(requirepass="right")
    line = complaint(caplog, redis_url=f"redis://:wrong-secret@127.0.0.1:{server.port}/0")
    assert "check the user and password in redis_url" in line
    assert "wrong-secret" not in line


def test_no_password_where_one_is_needed(private_server_with: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = private_server_with(requirepass="right")
    assert "set REDIS_PASSWORD" in complaint(caplog, redis_host="127.0.0.1", redis_port=server.port)


def test_no_such_database(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert "set redis_db" in complaint(caplog, redis_host="127.0.0.1", redis_port=server.port, redis_db=9999)


def test_tls_where_there_is_none(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert "use redis:// in redis_url" in complaint(caplog, redis_url=f"rediss://127.0.0.1:{server.port}/0")


def test_a_certificate_for_another_host(server: Any, authority: Any, authority_file: Any, caplog: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.org").configure_cert(context)
    with Proxy(server.port, context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        line = complaint(caplog, redis_url=url, redis_ssl_ca_certs=str(authority_file))
    assert "its TLS certificate is not for '127.0.0.1'" in line
    assert "REDIS_SSL_CHECK_HOSTNAME=false" in line


def test_what_had_worked_is_not_told_to_try_tls() -> None:
    error = ConnectionResetError("reset")
    assert "TLS" in str(explain(error, Endpoint()))
    assert "TLS" not in str(explain(error, Endpoint(), worked=True))
    assert "TLS" not in str(explain(TimeoutError(), Endpoint(scheme="tls"), worked=True))


def test_a_missing_grant_is_named_with_all_the_others() -> None:
    error = NoPermissionError("User app has no permissions to run the 'client|tracking' command")
    told = str(explain(error, Endpoint()))
    assert "grant the user +client|tracking (in all it needs +get +mget" in told
    assert "+client|kill" in told


def test_no_such_host(caplog: pytest.LogCaptureFixture) -> None:
    line = complaint(caplog, redis_url="redis://no-such-host.invalid:6379/0")
    assert "check redis_url" in line or "in time" in line


def test_more_local_writes_than_can_be_remembered_are_not_trusted_afterwards(server: Any, proxy: Any) -> None:
    """The record overflows into whole namespaces; values of the outage stand on a trust that ends with it."""
    peer = CacheManager(redis_url=server.url)
    with peer, CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        remember_at_most(cache, names=3)
        cache.get("t", "k")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: cache.get("t", "unknown") is None and not cache.redis_available)
        for number in range(10):
            cache.set("t", f"k{number}", "ours")
        peer.set("t", "k3", "theirs")
        proxy.resume()
        wait_until(lambda: cache.redis_available)
        assert cache.get("t", "k3") in (None, "theirs")
        assert cache.get("t", "k4") is None


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["delete", "clear", "set"])
async def test_a_cancelled_invalidation_is_not_forgotten(server: Any, proxy: Any, what: str) -> None:
    """Who cancels a call never learns its outcome; until it is certain, the old value is not believed."""
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=2) as cache:
        await cache.set("t", "k", "old")
        proxy.black_hole()
        call = {
            "delete": lambda: cache.delete("t", "k"),
            "clear": lambda: cache.clear("t"),
            "set": lambda: cache.set("t", "k", "new"),
        }[what]
        pipeline = pipeline_of(wire_of(cache))
        before = pipeline.pending
        task = asyncio.create_task(call())
        await wait_until_async(lambda: pipeline.pending > before and all_sent(cache))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        proxy.resume()
        await wait_until_async(lambda: cache._engine.state.reachable)
        assert await cache.get("t", "k") is None


def test_an_older_write_does_not_cover_a_later_invalidation() -> None:
    """A write that is confirmed late must not erase the record of what came after it."""
    outbox = Outbox(b"magnus:")
    outbox.record([b"t:k"])
    before = outbox.position
    outbox.record([b"t:k"])
    outbox.overwritten(b"t:k", before)
    assert outbox.covers(b"t:k")
    outbox.overwritten(b"t:k", outbox.position)
    assert not outbox.covers(b"t:k")
