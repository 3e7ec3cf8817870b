"""Interleavings that went wrong once, each by itself: what happens between two steps of ours."""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from anyio import to_thread
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache import AsyncCacheManager, CacheDeadlockError, CacheManager, CacheUnavailableError, Namespace
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.pipeline import InFlight, Pipeline, Read
from magnus_cache.testing import Proxy, no_leaks, virtual_clock
from tests.support.fleet_of_managers import expect_two_loads, fleet, near
from tests.support.inside import (
    intake_of,
    patience_of,
    pipeline_of,
    put_off_replays,
    reads_sent,
    watchdog_of,
    wire_of,
    wires_of,
)
from tests.support.loaders import Slow
from tests.support.rights import UNTRACKED
from tests.support.wait import lapse_async, wait_until_async

pytestmark = pytest.mark.anyio

SIZE = 1_000_000


async def test_a_wire_that_is_cancelled_before_its_first_step_fails_its_callers(url: str) -> None:
    async with fleet(url, 1) as (one,):
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        wire.call(commands.TIME, lambda *_: None, waiter)
        wire.stop()
        with pytest.raises(CacheUnavailableError, match="closed"):
            await asyncio.wait_for(waiter, 5)
        assert wire.over
        assert await one.get("t", "k") is None


async def test_a_delete_that_is_refused_voids_what_was_read_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of it is made first and the near cache emptied then: a read in between is void either way."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", "old")

        async def refused(*_: Any) -> int:
            assert await one.get("t", "k") == "old"
            assert near(one, "t", "k")
            raise CacheUnavailableError("oom", "Redis refused", refused=True)

        monkeypatch.setattr("magnus_cache._engine.redis.client.Client.remove", refused)
        await one.delete("t", "k")
        assert not near(one, "t", "k")
        monkeypatch.undo()
        assert await one.get("t", "k") is None


@pytest.mark.parametrize("how", ["delete", "set", "clear", "tags"])
async def test_an_own_invalidation_counts_for_reads_of_other_loops_that_came_in_between(url: str, how: str) -> None:
    """Between our emptying of the near cache and the server's doing, another loop's read brings the old value."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", "old", tags="x")
        await asyncio.to_thread(one.sync.get, "t", "other")
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        execute = wire.execute

        async def late(*args: Any) -> Any:
            # The other loop has its own connection, and hears of our doing only after we do.
            await asyncio.to_thread(one.sync.get, "t", "k")
            return await execute(*args)

        wire.execute = late  # type: ignore[method-assign]
        match how:
            case "delete":
                await one.delete("t", "k")
            case "set":
                await one.set("t", "k", "new", tags="x")
            case "clear":
                await one.clear("t")
            case _:
                await one.invalidate_tags("x")
        wire.execute = execute  # type: ignore[method-assign]
        entry = one._engine.state.memory.hit(b"magnus:t:k")
        assert entry is None or entry.value == "new"
        assert await one.get("t", "k") == ("new" if how == "set" else None)


class _Waiter:
    def __init__(self) -> None:
        self.outcome: Any = None

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: Any) -> None:
        self.outcome = result

    def set_exception(self, exception: BaseException) -> None:
        self.outcome = exception


@pytest.mark.parametrize("reply", [[b"1"], [b"1", b"2", b"3"], b"OK", 7, [b"1", 2], None, [[b"1"], b"2"]])
def test_a_reply_that_is_none_ends_the_connection_and_leaves_nobody_waiting(reply: Any) -> None:
    pipeline = Pipeline(lambda *_: None)
    waiters = [_Waiter(), _Waiter()]
    for waiter in waiters:
        pipeline.add(Read(b"k", lambda raw, *_: raw, waiter))
    pipeline.compose(0.0)
    with pytest.raises(RedisConnectionError):
        pipeline.answered(reply, None)  # type: ignore[arg-type]  # not looked at
    pipeline.fail_sent(CacheUnavailableError("protocol", "out of step"))
    assert all(isinstance(waiter.outcome, CacheUnavailableError) for waiter in waiters)
    assert pipeline.pending == 0


async def test_many_megabytes_are_no_silence(server: Any) -> None:
    """What is wanted may lie behind more than can be sent within one timeout; while something comes, Redis is there."""
    far = Namespace("far", ttl=600, l1=False)
    with Proxy(server.port) as proxy:
        async with AsyncCacheManager(redis_url=proxy.url, op_timeout=1.0) as cache:
            value = os.urandom(SIZE)
            for number in range(4):
                assert await cache.set(far, number, value)
            for number in range(8):
                await cache.get(far, number % 4)
            started = time.monotonic()
            found = await asyncio.gather(*(cache.get(far, number % 4) for number in range(400)))
            took = time.monotonic() - started
            assert [len(item) for item in found] == [SIZE] * 400
            stats = await cache.get_stats()
            assert stats["errors"] == {}, took


async def test_who_is_being_answered_is_not_silent(url: str) -> None:
    """The oldest request may lie behind others; it is overdue once *nothing* has come for as long as one may take."""
    async with fleet(url, 1) as (one,):
        await one.get("t", "k")
        wire = wire_of(one)
        patience, watchdog, intake = patience_of(wire), watchdog_of(wire), intake_of(wire)
        assert patience is not None
        now = one._engine.state.clock()
        frame = InFlight(now - 1.0, 1, [])
        pipeline_of(wire).owed.appendleft(frame)
        intake.heard = now
        watchdog.check(frame)
        assert patience.when() is None
        intake.heard = now - 1.0
        watchdog.check(frame)
        assert patience.when() is not None
        await wait_until_async(lambda: patience_of(wire) is not patience or patience.when() is None)


async def test_closing_can_be_cancelled_at_any_step(url: str) -> None:
    for turns in range(1, 9):
        manager = AsyncCacheManager(redis_url=url)
        await manager.set("t", "k", 1)
        await asyncio.to_thread(manager.sync.get, "t", "k")
        wire = manager._engine.state.topology.connection(b"")
        assert wire is not None
        closing = asyncio.create_task(manager.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await wait_until_async(lambda wire=wire: wire.over)
        await wait_until_async(lambda: not any("magnus-cache" in thread.name for thread in threading.enumerate()))


async def test_closing_from_two_sides_at_once(url: str) -> None:
    for _ in range(10):
        manager = AsyncCacheManager(redis_url=url)
        await manager.set("t", "k", 1)
        await asyncio.to_thread(manager.sync.get, "t", "k")
        await asyncio.wait_for(
            asyncio.gather(manager.aclose(), asyncio.to_thread(manager.sync.close), manager.aclose()), 10
        )
        assert not any("magnus-cache" in thread.name for thread in threading.enumerate())


async def test_a_cancelled_get_many_leaves_no_complaints(url: str, proxy: Any) -> None:
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        async with AsyncCacheManager(redis_url=proxy.url, op_timeout=1) as cache:
            await cache.get("t", "k")
            proxy.black_hole()
            call = asyncio.create_task(cache.get_many("t", range(50)))
            # Not just anything: without these, nothing would be owed an answer, and nobody would notice.
            await wait_until_async(lambda: reads_sent(cache) >= 50)
            call.cancel()
            await asyncio.wait([call])
            await wait_until_async(lambda: not cache._engine.state.reachable)
            gc.collect()
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    assert complaints == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for POSIX")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_holds_our_locks() -> None:
    """The child finds them free."""
    from magnus_cache._engine.outage import journal_file
    from magnus_cache._engine.runtime.critical import section

    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with section(), journal_file._MAKING():
            held.set()
            go.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(5)
        with section(), journal_file._MAKING():
            os._exit(7)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_compressing_waits_for_nobody_elses_thread(url: str) -> None:
    """What a service does with anyio's threads may wait for the value whose compression needs one: it has its own."""
    packed = Namespace("packed", ttl=60, compress=True)

    async def main() -> None:
        async with AsyncCacheManager(redis_url=url) as cache:
            ready = threading.Event()
            waiting = [asyncio.create_task(to_thread.run_sync(ready.wait, 20)) for _ in range(45)]
            places = to_thread.current_default_thread_limiter()
            await wait_until_async(lambda: places.borrowed_tokens == places.total_tokens)
            await asyncio.wait_for(cache.set(packed, "k", "x" * 200_000), 10)
            ready.set()
            assert all(await asyncio.gather(*waiting))

    asyncio.run(main())


async def test_a_value_that_was_loaded_stays_tracked(url: str) -> None:
    """FILL reads the key after it wrote it: a peer's later write is heard."""
    async with fleet(url) as (one, two):
        assert await one.get_or_set("t", "k", lambda: "loaded") == "loaded"
        assert near(one, "t", "k")
        await two.set("t", "k", "newer")
        await one.get_stats()
        assert not near(one, "t", "k")
        assert await one.get("t", "k") == "newer"


async def test_what_is_covered_by_an_untold_invalidation_only_holds_up_its_own_readers(proxy: Any) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        await cache.set_many("t", {"a": 1, "b": 2})
        state = cache._engine.state
        state.outbox.record([b"magnus:t:a"])
        state.memory.clear(b"magnus:")
        put_off_replays(state, 60)
        assert await cache.get("t", "a") is None
        assert await cache.get("t", "b") == 2


async def test_a_busy_life_leaves_nothing_behind(url: str) -> None:
    async with no_leaks():
        manager = AsyncCacheManager(redis_url=url)
        calls = [asyncio.create_task(manager.get_or_set("t", n % 7, lambda: asyncio.sleep(0.05))) for n in range(50)]
        await wait_until_async(lambda: len(manager._engine.state.flights))
        for call in calls[::3]:
            call.cancel()
        await asyncio.to_thread(manager.sync.get_or_set_many, "t", range(20), lambda keys: dict.fromkeys(keys, 1))
        await manager.clear("t")
        await asyncio.wait(calls)
        await manager.aclose()


def test_threads_are_not_held_up_by_a_manager_made_in_a_closed_loop(url: str, raw: redis.Redis) -> None:
    """A loop that ended with its wire up does not count as "Redis is there"."""
    manager = AsyncCacheManager(redis_url=url)
    asyncio.run(manager.set("t", "k", 1))
    assert not manager._engine.state.reachable
    with CacheManager._over(manager._engine) as blocking:
        assert blocking.get("t", "k") == 1


async def test_a_load_that_began_in_an_outage_is_joined_for_the_bound_only(proxy: Any, server: Any) -> None:
    """Nobody announces to it what is deleted once Redis is back."""
    slow = Slow()
    async with fleet(server.url, 1) as (peer,), fleet(proxy.url, 1, op_timeout=0.2, max_staleness=0.3) as (one,):
        # Whoever meets a server for the first time forgets all loads under way anyway.
        await one.get("t", "x")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        proxy.resume()
        await wait_until_async(lambda: one._engine.state.reachable)
        await peer.set("t", "k", "new")
        await peer.delete("t", "k")
        await lapse_async(0.3)
        await expect_two_loads(one, slow, call)
        assert await one.get("t", "k") == 2


async def test_without_tracking_a_load_is_joined_for_the_bound_only(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    try:
        async with fleet(url.replace("redis://", "redis://limited:pw@"), 1, max_staleness=0.2) as (one,):
            call = asyncio.create_task(one.get_or_set("t", "k", slow))
            await slow.begun()
            raw.delete(b"{magnus:t:k}:lease")
            await lapse_async(0.25)
            await expect_two_loads(one, slow, call)
    finally:
        raw.acl_deluser("limited")


async def test_redis_is_told_at_once_what_it_refused_while_it_was_there(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as (one, two):
        await one.set("t", "k", "old")
        assert await two.get("t", "k") == "old"
        one._engine.state.record_missed(lambda outbox: outbox.record([b"magnus:t:k"]))
        await wait_until_async(lambda: not one._engine.state.outbox.pending)
        await two.get_stats()
        assert await two.get("t", "k") is None


async def test_a_delete_in_another_thread_overtakes_what_is_about_to_be_kept_here(proxy: Any) -> None:
    """In an outage, between the last look and the near cache: the place is reserved before the look."""
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        proxy.refuse()
        await cache.get("t", "x")
        await asyncio.to_thread(cache.sync.get, "t", "x")
        reads = cache._engine.reads
        entry = reads.entry

        def late(*args: Any) -> Any:
            reads.entry = entry  # type: ignore[method-assign]
            thread = threading.Thread(target=cache.sync.delete, args=("t", "k"))
            thread.start()
            thread.join()
            return entry(*args)

        reads.entry = late  # type: ignore[method-assign]
        assert await cache.get_or_set("t", "k", lambda: "old") == "old"
        assert await cache.get("t", "k") is None


def test_a_batch_that_waits_for_the_loop_it_holds_up_is_an_error(url: str) -> None:
    async def main() -> None:
        async with AsyncCacheManager(redis_url=url) as cache:
            slow = Slow()
            call = asyncio.create_task(cache.get_or_set("t", "k", slow))
            await slow.begun()
            with pytest.raises(CacheDeadlockError):
                cache.sync.get_or_set_many("t", ["k"], lambda keys: dict.fromkeys(keys, 1))
            slow.finish()
            assert await call == 1

    asyncio.run(main())


def test_threads_that_meet_a_new_tag_at_once_get_one_mark() -> None:
    """Of two marks, one would be known to no invalidation."""
    epochs = Epochs(Keyspace("magnus"))
    barrier = threading.Barrier(4)
    found: list[list[Any]] = [[] for _ in range(4)]

    def meet(place: int) -> None:
        for number in range(2_000):
            barrier.wait()
            found[place] += epochs.stamps([f"tag{number}"])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=meet, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(one is other for stamps in zip(*found, strict=True) for one, other in itertools.pairwise(stamps))


async def test_who_joined_a_load_looks_at_its_tags_when_it_gets_the_value() -> None:
    """Between the judgement of a blocking load and its end, a tag may be invalidated and somebody join."""
    cache = CacheManager(redis_enabled=False)
    loads = cache._engine.loads
    stored, calls = loads.stored, []

    async def late(*args: Any) -> Any:
        loaded = await stored(*args)
        if not calls:
            calls.append("joiner")
            threading.Thread(target=lambda: results.append(cache.get_or_set("t", "k", lambda: "new", tags="x"))).start()
            await wait_until_async(lambda: cache._engine.state.flights.joined == 1)
        return loaded

    results: list[str] = []
    loads.stored = late  # type: ignore[method-assign]

    def old() -> str:
        cache.invalidate_tags("x")
        return "old"

    def load() -> str:
        return cache.get_or_set("t", "k", old, tags="x")

    assert await asyncio.to_thread(load) == "old"
    await wait_until_async(lambda: results)
    assert results == ["new"]
    cache.close()


@contextlib.asynccontextmanager
async def slow_link(port: int, rate: float, passes: Callable[[float], object]) -> AsyncIterator[str]:
    """A way to a local server that lets so many bytes a second through, each way; yields its URL.

    :param passes: lets the seconds pass that some bytes take, on the clock of the test.
    """

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                passes(len(data) / rate)
        writer.close()

    ends: set[asyncio.Task[Any]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    link = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{link.sockets[0].getsockname()[1]}/0"
    finally:
        link.close()
        if ends:
            await asyncio.wait(ends)


async def test_a_value_may_take_longer_to_come_over_than_a_timeout(server: Any) -> None:
    """While bytes flow, the connection is alive, and everybody keeps it."""
    large = Namespace("large", ttl=600, l1=False)
    value = os.urandom(12 << 20)
    async with AsyncCacheManager(redis_url=server.url) as near_by:
        assert await near_by.set(large, "k", value)
    with virtual_clock() as clock:

        def passes(seconds: float) -> None:
            clock.advance(seconds)
            for wire in wires_of(cache):
                # For the second time at once, and not when the loop of a busy machine comes to it.
                watchdog = watchdog_of(wire)
                watchdog.end()
                watchdog.check(pipeline_of(wire).oldest)

        async with (
            slow_link(server.port, 12e5, passes) as url,
            AsyncCacheManager(redis_url=url, op_timeout=3) as cache,
        ):
            found, small = await asyncio.gather(cache.get(large, "k"), cache.get_or_set("t", "k", lambda: 1))
            assert (found == value, small) == (True, 1)
            stats = await cache.get_stats()
            assert (stats["errors"], stats["breaker"]["outages"]) == ({}, 0)
