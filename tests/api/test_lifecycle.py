"""Loops, threads and processes come and go; the cache works in all of them and leaves nothing behind."""

import asyncio
import gc
import os
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
import redis

import magnus_cache
from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.redis.commands import Command, pack
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheClosedError, CacheDeadlockError, CacheRecursionError, CacheUnavailableError
from magnus_cache.testing import Proxy
from tests.support.inside import error_of, wire_of
from tests.support.programs import in_forked_children, run_python
from tests.support.wait import wait_until_async


def test_asyncio_run_again_and_again(url: str) -> None:
    """A loop that has ended takes nothing with it."""
    cache = AsyncCacheManager(redis_url=url)

    async def use(number: int) -> Any:
        await cache.set("t", f"k{number}", number)
        return await cache.get_many("t", [f"k{n}" for n in range(number + 1)])

    for number in range(5):
        assert asyncio.run(use(number)) == {f"k{n}": n for n in range(number + 1)}
    asyncio.run(cache.aclose())


def test_several_loops_in_threads_at_once(url: str) -> None:
    """Threads with loops of their own."""
    cache = AsyncCacheManager(redis_url=url)
    found: list[Any] = []

    async def use(number: int) -> None:
        for step in range(20):
            await cache.set("t", f"{number}-{step}", step)
            found.append(await cache.get("t", f"{number}-{step}") == step)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(use(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 160
    asyncio.run(cache.aclose())


def test_both_faces_see_one_state(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        assert asyncio.run(cache.aio.get("t", "k")) == 1
        asyncio.run(cache.aio.set("t", "k", 2))
        assert cache.get("t", "k") == 2
        assert cache.aio.sync.get("t", "k") == 2
        assert cache.get_stats()["hit_count"] == 3


@pytest.mark.anyio
async def test_a_blocking_call_inside_a_running_loop_works(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        assert cache.get_or_set("t", "l", lambda: 2) == 2
        assert cache.get("t", "k") == 1


@pytest.mark.anyio
async def test_a_call_that_would_deadlock_raises(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        begun = asyncio.Event()

        async def load() -> int:
            begun.set()
            await asyncio.sleep(0.05)
            return 1

        task = asyncio.create_task(cache.get_or_set("t", "k", load))
        await begun.wait()
        with pytest.raises(CacheDeadlockError):
            cache.sync.get_or_set("t", "k", lambda: 2)
        assert await task == 1


def test_a_blocking_call_on_the_background_loop_raises(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        async def load() -> Any:
            return cache.get("t", "other")

        with pytest.raises(CacheDeadlockError):
            cache.get_or_set("t", "k", load)


def test_loading_a_key_that_needs_itself_raises(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        @cache.cached("t")
        def endless(number: int) -> int:
            return endless(number)

        with pytest.raises(CacheRecursionError):
            endless(1)


@pytest.mark.anyio
async def test_a_cancelled_caller_takes_nobody_along(url: str) -> None:
    """Invariant 4."""
    async with AsyncCacheManager(redis_url=url) as cache:
        begun, go_on = asyncio.Event(), asyncio.Event()
        loads: list[int] = []

        async def load() -> str:
            loads.append(1)
            begun.set()
            await go_on.wait()
            return "value"

        first = asyncio.create_task(cache.get_or_set("t", "k", load))
        await begun.wait()
        others = [asyncio.create_task(cache.get_or_set("t", "k", load)) for _ in range(5)]
        # Each reads Redis before it joins. A load is cancelled with the last caller that has joined it.
        await wait_until_async(lambda: cache._engine.state.flights.joined == 5)
        first.cancel()
        others[0].cancel()
        go_on.set()
        assert await asyncio.gather(*others[1:]) == ["value"] * 4
        assert loads == [1]
        assert await cache.get("t", "k") == "value"


@pytest.mark.anyio
async def test_cancelled_reads_leave_the_connection_in_step(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        far = magnus_cache.Namespace("far", ttl=60, l1=False)
        await cache.set_many(far, {n: n for n in range(100)})
        for _ in range(20):
            tasks = [asyncio.create_task(cache.get(far, n)) for n in range(100)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert found[1::2] == list(range(1, 100, 2))
        assert cache._engine.state.memory.pending == 0


@pytest.mark.anyio
async def test_after_close_calls_raise(url: str) -> None:
    cache = AsyncCacheManager(redis_url=url)
    await cache.set("t", "k", 1)
    await cache.aclose()
    await cache.aclose()
    for call in (cache.get("t", "k"), cache.set("t", "k", 1), cache.delete("t", "k"), cache.get_stats()):
        with pytest.raises(CacheClosedError, match="new one"):
            await call
    with pytest.raises(CacheClosedError):
        cache.sync.get("t", "k")


def test_close_is_idempotent_and_from_anywhere(url: str) -> None:
    cache = CacheManager(redis_url=url)
    cache.set("t", "k", 1)

    async def use() -> None:
        await cache.aio.get("t", "k")
        cache.close()
        cache.close()

    asyncio.run(use())
    with pytest.raises(CacheClosedError):
        cache.set("t", "k", 1)


def _child(cache: CacheManager) -> tuple[Any, ...]:
    found = (cache.get("t", "k"), cache.set("t", "child", 1), cache.get_or_set("t", "l", lambda: 5))
    cache.close()
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_starts_anew(url: str) -> None:
    """As with gunicorn's preload: the child uses neither the parent's socket nor its thread."""
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", "value")
        assert in_forked_children(_child, cache, count=3) == [("value", True, 5)] * 3
        assert cache.get("t", "k") == "value"
        assert cache.get("t", "child") == 1


def test_a_script_that_never_closes_ends_quietly(server: EmbeddedServer) -> None:
    script = """
from magnus_cache import get_cache_manager
cache = get_cache_manager()
cache.set("t", "k", [1])
print(cache.get("t", "k"), cache.redis_available)
"""
    done = run_python("-W", "error", "-c", script, REDIS_PORT=str(server.port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1] True\n", "")


def test_an_async_script_that_never_closes_ends_quietly(server: EmbeddedServer) -> None:
    script = """
import asyncio
from magnus_cache import get_async_cache_manager
async def main():
    cache = get_async_cache_manager()
    await cache.set("t", "k", [1])
    print(await cache.get("t", "k"))
asyncio.run(main())
asyncio.run(main())
"""
    done = run_python("-W", "error", "-c", script, REDIS_PORT=str(server.port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n[1]\n", "")


def test_the_process_wide_manager(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    managers: list[CacheManager] = []
    threads = [threading.Thread(target=lambda: managers.append(magnus_cache.get_cache_manager())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(manager) for manager in managers}) == 1
    first = managers[0]
    assert magnus_cache.cache_set("t", "k", 1) is True
    assert magnus_cache.cache_get("t", "k") == 1
    assert asyncio.run(magnus_cache.get_async_cache_manager().get("t", "k")) == 1
    assert magnus_cache.cache_delete("t", "k") is True
    magnus_cache.cache_set("t", "k", 1)
    assert magnus_cache.cache_clear("t") == 1
    first.close()
    second = magnus_cache.get_cache_manager()
    assert second is not first
    assert second.get("t", "k") is None
    second.close()


def test_secrets_are_never_shown(server: EmbeddedServer) -> None:
    """Invariant 12."""
    with CacheManager(redis_url=f"redis://:top-secret@127.0.0.1:{server.port}/0") as cache:
        assert "top-secret" not in f"{cache!r} {cache.aio!r} {cache._state.settings!r} {cache._state.endpoint!r}"


def test_tls(tls_proxy: Proxy, authority_file: Any) -> None:
    with CacheManager(redis_url=tls_proxy.url, redis_ssl_ca_certs=str(authority_file)) as cache:
        cache.set("t", "k", 1)
        assert cache.redis_available
        assert cache.get("t", "k") == 1


def test_tls_with_an_unknown_authority(tls_proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_url=tls_proxy.url) as cache:
        cache.set("t", "k", 1)
        assert not cache.redis_available
        assert cache.get("t", "k") == 1
    assert "not trusted; set REDIS_SSL_CA_CERTS" in caplog.text


def test_a_unix_socket(private_server_with: Any, tmp_path: Any) -> None:
    path = f"/tmp/magnus-{os.getpid()}.sock"
    private_server_with(unixsocket=path)
    with CacheManager(redis_url=f"unix://{path}") as cache:
        cache.set("t", "k", 1)
        assert cache.redis_available
        assert cache.get("t", "k") == 1


def test_a_user_of_the_acl_and_a_database(private_server_with: Any) -> None:
    server = private_server_with()
    with redis.Redis(port=server.port) as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+p@ss/word"], keys=["magnus*", "{magnus*"], commands=["+@all"]
        )
    with CacheManager(redis_url=f"redis://app:p%40ss%2Fword@127.0.0.1:{server.port}/3") as cache:
        cache.set("t", "k", 1)
        assert cache.redis_available
    options = {"redis_host": "127.0.0.1", "redis_port": server.port, "redis_username": "app", "redis_db": 3}
    with CacheManager(redis_password="p@ss/word", **options) as cache:
        assert cache.get("t", "k") == 1
    with redis.Redis(port=server.port, db=3) as client:
        assert client.keys("magnus:*") == [b"magnus:t:k"]


class _Request:
    """What a framework puts into the context of the code that answers a request."""


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


@pytest.mark.anyio
@pytest.mark.parametrize("face", ["async", "blocking"])
@pytest.mark.parametrize("outage", [False, True])
async def test_nothing_keeps_the_context_of_a_call_that_has_ended(proxy: Proxy, face: str, outage: bool) -> None:
    """What is begun within the first call, and goes on for as long as the connection does, is none of its context's."""
    if outage:
        proxy.refuse()
    async with AsyncCacheManager(redis_url=proxy.url, max_staleness=0.1, op_timeout=0.2) as cache:

        def load() -> int:
            assert _request.get() is not None
            return 1

        kept: list[weakref.ref[_Request]] = []

        def answer() -> None:
            request = _Request()
            kept.append(weakref.ref(request))
            _request.set(request)
            assert cache.sync.get_or_set("t", "k", load) == 1

        async def answer_awaited() -> None:
            request = _Request()
            kept.append(weakref.ref(request))
            _request.set(request)
            assert await cache.get_or_set("t", "k", load) == 1
            assert await cache.get_or_set("t", "l", load, early=1, grace=5, soft_timeout=5) == 1

        # Each in a context of its own.
        if face == "async":
            await asyncio.create_task(answer_awaited())
        else:
            # Not in one of a pool, which may take its time to forget what it did.
            thread = threading.Thread(target=answer)
            thread.start()
            thread.join()
        # So that something is under way all the time.
        proxy.delay(0.01)

        async def others(caller: int) -> None:
            number = 0
            while True:
                number += 1
                await cache.set("t", f"{caller}-{number}", 1)
                # Without Redis nothing of this lets the loop turn.
                await asyncio.sleep(0.001)

        callers = [asyncio.create_task(others(caller)) for caller in range(5)]

        def freed() -> bool:
            gc.collect()
            return kept[0]() is None

        await wait_until_async(freed)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)


@pytest.mark.anyio
async def test_each_who_is_told_that_redis_is_away_has_an_error_of_its_own(proxy: Proxy) -> None:
    """One that many raise, and the connection keeps, would keep the frames of them all, and what is in them."""
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        wire = wire_of(cache)
        await wire.renew()
        proxy.freeze()
        ping = Command("PING", pack(b"PING"))
        one, two = await asyncio.gather(wire.execute(ping), wire.execute(ping), return_exceptions=True)
        assert isinstance(one, CacheUnavailableError)
        assert (type(one), str(one)) == (type(two), str(two))
        assert len({id(error) for error in (one, two, error_of(wire))}) == 3
