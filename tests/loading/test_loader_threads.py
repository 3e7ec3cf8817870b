"""Loaders that block, hang, pile up or end the program: what the others notice of them, which is nothing."""

import asyncio
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, CacheTimeoutError, Namespace
from magnus_cache._engine.coordination import lease
from magnus_cache._engine.runtime.workers import LoaderThreads
from magnus_cache.testing import VirtualClock, no_leaks, virtual_clock
from tests.support.inside import load_tasks
from tests.support.loaders import Gated
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio

PLACES = 40
"""Threads for one namespace on one event loop."""

UNATTENDED = 64
"""Loads of one namespace that go on though nobody waits for them."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Loaders that wait for it end with the test at the latest."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def in_threads(calls: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread], seconds: float) -> bool:
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


# -- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["policy", "plain", "batch", "disabled", "coroutine"])
def test_loaders_that_need_others_do_not_wait_for_their_own_places(inner: str) -> None:
    """As many as there are places, each of which needs another: they end."""
    all_there = threading.Barrier(PLACES)
    with CacheManager(redis_enabled=False) as cache:

        async def number(key: int) -> int:
            return key

        def needed(key: int) -> int:
            match inner:
                case "policy":
                    return cache.get_or_set("t", key, lambda: key, early=1.0)
                case "plain":
                    return cache.get_or_set("t", key, lambda: cache.get_or_set("t", -key - 1, lambda: key, early=1.0))
                case "batch":
                    return cache.get_or_set_many("t", [key], lambda keys: {key: key for key in keys})[key]
                case "coroutine":
                    return cache.get_or_set("t", key, lambda: number(key))
                case _:
                    with cache.disabled():
                        return cache.get_or_set("t", key, lambda: key, hard_timeout=30)

        def outer(key: int) -> int:
            def load() -> int:
                all_there.wait(10)
                return needed(key)

            return cache.get_or_set("outer", key, load, early=1.0)

        got: list[int] = []
        threads = in_threads([lambda key=key: got.append(outer(key)) for key in range(PLACES)])  # type: ignore[misc]
        assert ended(threads, 10)
        assert sorted(got) == list(range(PLACES))


def test_a_loader_that_joins_one_in_the_queue_gives_it_its_place() -> None:
    """What all the running ones wait for was asked for before, and waits for a place."""
    begun, go = threading.Semaphore(0), threading.Event()
    with CacheManager(redis_enabled=False) as cache:

        def wanted() -> str:
            return cache.get_or_set("t", "wanted", lambda: "there", early=1.0)

        def load() -> str:
            begun.release()
            go.wait(10)
            return wanted()

        got: list[str] = []
        threads = in_threads(
            [lambda key=key: got.append(cache.get_or_set("t", key, load, early=1.0)) for key in range(PLACES)]  # type: ignore[misc]
        )
        for _ in range(PLACES):
            assert begun.acquire(timeout=10)
        threads += in_threads([lambda: got.append(wanted())])
        wait_until(lambda: len(cache._engine.state.flights) == PLACES + 1)
        go.set()
        assert ended(threads, 10)
        assert got == ["there"] * (PLACES + 1)


def test_a_source_that_hangs_takes_no_places_of_others(gate: threading.Event) -> None:
    with CacheManager(redis_enabled=False) as cache:

        def hung(key: int) -> None:
            with pytest.raises(CacheTimeoutError):
                cache.get_or_set("hangs", key, gate.wait, hard_timeout=0.2)

        threads = in_threads([lambda key=key: hung(key) for key in range(PLACES + 5)])  # type: ignore[misc]
        assert ended(threads, 10)
        assert cache.get_or_set("works", "k", lambda: "there", hard_timeout=5) == "there"
        gate.set()


def waits(workers: LoaderThreads, namespace: str) -> bool:
    """Whether a call on the running loop waits for a thread."""
    lane = workers.slots.lane(asyncio.get_running_loop(), namespace)
    return lane is not None and bool(lane.waiting)


async def test_threads_count_until_they_have_ended(gate: threading.Event) -> None:
    """A thread cannot be stopped: who does not wait for it any longer does not make room for another."""
    running = most = 0

    def load() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gate.wait(10)
        running -= 1
        return 1

    workers = LoaderThreads(2)
    tasks = [asyncio.create_task(workers.call(load, "t")) for _ in range(2)]
    await wait_until_async(lambda: running == 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    late = asyncio.create_task(workers.call(load, "t"))
    other = asyncio.create_task(workers.call(lambda: "there", "other"))
    assert await other == "there"
    await wait_until_async(lambda: waits(workers, "t"))
    assert most == 2
    gate.set()
    assert await late == 1
    assert most == 2
    # The threads that nobody waited for end when they are scheduled, not when a later one does.
    await wait_until_async(lambda: running == 0 and not workers.slots.running)
    assert workers.slots.lane(asyncio.get_running_loop(), "t") is None


async def test_threads_are_bounded_in_all_and_a_source_that_works_finds_one(gate: threading.Event) -> None:
    """However many sources hang: they share what there is, and leave as much as each of them has."""
    workers, sources = LoaderThreads(4, 8), 3
    hung = [asyncio.create_task(workers.call(gate.wait, f"hangs{n % sources}")) for n in range(12)]
    # Of eight: four for the first (or two each, as they come in turn), and so on; there is one left in any case.
    await wait_until_async(lambda: workers.slots.running == 6)
    for number in range(3):
        assert await workers.call(lambda: "there", f"works{number}") == "there"
    assert workers.slots.running == 6
    gate.set()
    await asyncio.gather(*hung)
    assert await workers.call(lambda: "there", "hangs0") == "there"


def test_threads_of_event_loops_that_have_ended_count_as_well(gate: threading.Event) -> None:
    workers, begun = LoaderThreads(4, 8), threading.Semaphore(0)

    def hang() -> None:
        begun.release()
        gate.wait(10)

    async def leave_some() -> None:
        tasks = [asyncio.create_task(workers.call(hang, f"t{number}")) for number in range(4)]
        for _ in tasks:
            await asyncio.to_thread(begun.acquire)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def is_served() -> str:
        task = asyncio.create_task(workers.call(lambda: "there", "t"))
        await wait_until_async(lambda: waits(workers, "t"))
        gate.set()
        return await task

    for _ in range(2):
        asyncio.run(leave_some())
    assert workers.slots.running == 8
    assert asyncio.run(is_served()) == "there"
    wait_until(lambda: not workers.slots.running)


def test_a_forked_child_has_none_of_the_threads() -> None:
    workers = LoaderThreads(4, 8)
    workers.slots.running = 8
    workers.reset()
    assert asyncio.run(workers.call(lambda: "there", "t")) == "there"


async def test_a_loader_that_is_cancelled_in_the_queue_is_never_called(gate: threading.Event) -> None:
    workers, called = LoaderThreads(1), []
    first = asyncio.create_task(workers.call(gate.wait, "t"))
    await wait_until_async(lambda: workers.slots.running == 1)
    lane = workers.slots.lane(asyncio.get_running_loop(), "t")
    assert lane is not None
    second = asyncio.create_task(workers.call(lambda: called.append(1), "t"))
    await wait_until_async(lambda: len(lane.waiting) == 1)
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    assert await first
    assert await workers.call(lambda: "next", "t") == "next"
    assert not called


# -- unattended ---------------------------------------------------------------------------------------------------


async def test_what_could_not_go_on_is_not_begun(url: str, clock: VirtualClock) -> None:
    """Stale-while-revalidate with all places taken: the stale value, and no load that is cancelled at once."""
    slow = Gated()
    namespace, other = Namespace("t", grace=60, soft_timeout=0), Namespace("o", grace=60, soft_timeout=0)

    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set_many(namespace, dict.fromkeys(range(UNATTENDED + 1), 1), 10)
        await manager.set(other, "k", 1, 10)
        clock.advance(11)
        for key in range(UNATTENDED):
            assert await manager.get_or_set(namespace, key, slow) == 1
        for _ in range(20):
            assert await manager.get_or_set(namespace, UNATTENDED, slow) == 1
        await wait_until_async(lambda: slow.calls == UNATTENDED)
        assert (await manager.get_stats())["namespaces"]["t"]["overloads"] == 20
        # Another namespace has places of its own.
        assert await manager.get_or_set(other, "k", slow) == 1
        await wait_until_async(lambda: slow.calls == UNATTENDED + 1)
        slow.open.set()
        await wait_until_async(lambda: not manager._engine.state.flights.background)
        assert await manager.get_or_set(namespace, UNATTENDED, slow) == 1
        await wait_until_async(lambda: slow.calls == UNATTENDED + 2)


@pytest.mark.parametrize("face", ["async", "blocking", "refresh"])
async def test_who_is_told_of_a_timeout_is_told_whether_the_load_goes_on(
    url: str, face: str, gate: threading.Event
) -> None:
    namespace, over = Namespace("t", hard_timeout=0.3), asyncio.Event()

    async def slow() -> int:
        await over.wait()
        return 2

    async with AsyncCacheManager(redis_url=url) as manager:
        calls = [manager.get_or_set(namespace, key, slow) for key in range(UNATTENDED)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, CacheTimeoutError) and error.goes_on for error in errors)
        with pytest.raises(CacheTimeoutError, match="the load ends with the last caller that waits for it") as caught:
            if face == "async":
                await manager.get_or_set(namespace, "more", slow)
            elif face == "refresh":
                await manager.cached(namespace)(slow).refresh()
            else:
                await asyncio.to_thread(manager.sync.get_or_set, namespace, "more", lambda: gate.wait(5))
        assert not caught.value.goes_on
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.goes_on) == (str(caught.value), False)
        over.set()
        await wait_until_async(lambda: not manager._engine.state.flights.background)


async def test_what_had_to_be_given_up_is_not_begun_again_at_once(url: str, clock: VirtualClock) -> None:
    """A caller that waits for a while begins a load; if there is no place for it then, the key is left alone."""
    slow = Gated()
    hanging = Namespace("t", grace=10_000, soft_timeout=0)
    namespace = Namespace("t", grace=10_000, soft_timeout=0.02, retry=60)

    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set_many(hanging, dict.fromkeys(range(UNATTENDED + 1), 1), 10)
        clock.advance(11)
        for key in range(UNATTENDED):
            assert await manager.get_or_set(hanging, key, slow) == 1
        await wait_until_async(lambda: slow.calls == UNATTENDED)
        for begun in (UNATTENDED + 1, UNATTENDED + 2):
            # A busy machine spends a caller's whole patience on the way to the loader, which is an attempt as well.
            while slow.calls < begun:
                clock.advance(61)
                assert await manager.get_or_set(namespace, UNATTENDED, slow) == 1
            for _ in range(5):
                assert await manager.get_or_set(namespace, UNATTENDED, slow) == 1
            assert slow.calls == begun
        slow.open.set()


# -- loads that hang ----------------------------------------------------------------------------------------------


def patient(url: str) -> AsyncCacheManager:
    """Return a cache that has contact with Redis, however busy the machine, until the test lets time pass."""
    return AsyncCacheManager(redis_url=url, op_timeout=10, max_staleness=20)


async def hear_from_redis(manager: AsyncCacheManager) -> None:
    """Have an answer from Redis after the test let time pass.

    Without contact for that long, callers may not join a load: it may have been overtaken. One whose timeout ends
    before Redis answers would begin another load.
    """
    assert await manager.get("t", "nothing") is None


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_load_that_hangs_is_replaced(url: str, clock: VirtualClock, gate: threading.Event, kind: str) -> None:
    """A lost socket of one load does not lock its key for good, here or in the fleet."""
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    async def coroutine() -> int:
        if (number := count()) == 1:
            await asyncio.Event().wait()
        return number

    def function() -> int:
        if (number := count()) == 1:
            gate.wait(10)
        return number

    loader: Any = coroutine if kind == "coroutine" else function
    async with patient(url) as manager, patient(url) as peer:
        # It counts as hung after 60 s, some of which are left for a busy machine.
        for advance in (0, 25, 20):
            clock.advance(advance)
            await hear_from_redis(manager)
            with pytest.raises(CacheTimeoutError):
                await manager.get_or_set("t", "k", loader, hard_timeout=0.3)
            await wait_until_async(lambda: calls > 0)
        assert calls == 1
        clock.advance(16)
        await hear_from_redis(manager)
        assert await manager.get_or_set("t", "k", loader, hard_timeout=30) == 2
        assert await peer.get("t", "k") == 2
        await wait_until_async(lambda: not load_tasks(manager))
        gate.set()
        # The late value of the load that hung is taken in by now, if it is at all.
        await wait_until_async(lambda: not manager._engine.state.workers.slots.running)
        await manager.get_stats()
        assert await manager.get("t", "k") == 2


async def test_who_waits_for_a_load_that_is_replaced_gets_its_value(url: str, clock: VirtualClock) -> None:
    """It may be no more than slow: nobody who waits is disturbed, and its value, of an earlier time, is not kept."""
    slow, quick, begun = asyncio.Event(), asyncio.Event(), list[int]()

    async def first() -> int:
        begun.append(1)
        await slow.wait()
        return 1

    async def second() -> int:
        begun.append(2)
        await quick.wait()
        return 2

    async with AsyncCacheManager(redis_url=url) as manager:
        one = asyncio.create_task(manager.get_or_set("t", "k", first))
        await wait_until_async(lambda: begun == [1])
        clock.advance(61)
        two = asyncio.create_task(manager.get_or_set("t", "k", second))
        await wait_until_async(lambda: begun == [1, 2])
        slow.set()
        assert await one == 1
        quick.set()
        assert await two == 2
        assert await manager.get("t", "k") == 2


async def test_a_source_that_is_only_slow_is_given_twice_the_time_with_each_attempt(url: str) -> None:
    with virtual_clock() as clock:
        async with patient(url) as manager:
            gates: list[asyncio.Event] = []

            async def slow() -> int:
                gates.append(asyncio.Event())
                number = len(gates)
                await gates[-1].wait()
                return number

            async def ask() -> None:
                with pytest.raises(CacheTimeoutError):
                    await manager.get_or_set("t", "k", slow, hard_timeout=0.03)

            # The third has 240 s; some of them are left for a busy machine.
            for seconds, attempts in ((0, 1), (61, 2), (61, 2), (60, 3), (200, 3)):
                clock.advance(seconds)
                await hear_from_redis(manager)
                while len(gates) < attempts:  # a busy machine spends a caller's whole timeout on the way to the loader
                    await ask()
                await ask()
                assert len(gates) == attempts
            gates[2].set()
            await wait_until_async(lambda: not manager._engine.state.flights.background)
            assert await manager.get("t", "k") == 3


async def test_a_lease_is_not_renewed_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asks again in the process that hangs, the fleet goes on without it all the same."""
    monkeypatch.setattr(lease, "LONGEST", 1.5)
    gate = asyncio.Event()

    async def hung() -> int:
        await gate.wait()
        return 1

    async def load() -> int:
        return 2

    async with AsyncCacheManager(redis_url=url, lease=1) as manager, AsyncCacheManager(redis_url=url) as peer:
        one = asyncio.create_task(manager.get_or_set("t", "k", hung))
        await wait_until_async(lambda: len(manager._engine.state.leases) == 1)
        assert await asyncio.wait_for(peer.get_or_set("t", "k", load), 5) == 2
        gate.set()
        assert await one == 1
        assert await peer.get("t", "k") == 2
        assert await manager.get("t", "k") == 2


# -- the end of a program ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{"hard_timeout": 5}, {}])
def test_a_loader_that_ends_its_caller_leaves_the_others_alone(policy: dict[str, Any]) -> None:
    go = threading.Event()
    with no_leaks(), CacheManager(redis_enabled=False) as cache:
        got: list[Any] = []
        other = in_threads(
            [lambda: got.append(cache.get_or_set("t", "other", lambda: go.wait(10) and "there", hard_timeout=10))]
        )
        wait_until(lambda: len(cache._engine.state.flights) == 1)
        with pytest.raises(SystemExit):
            cache.get_or_set("t", "k", lambda: sys.exit(3), **policy)
        go.set()
        assert ended(other, 10)
        assert got == ["there"]
