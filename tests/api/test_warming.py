"""Warming: bounded, unstoppable by one failing key, and telling how far it is."""

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace, WarmReport
from magnus_cache._engine.loading.warm_loads import WarmLoads
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from tests.support.asking import scripts_run
from tests.support.inside import held_leases, loads_by_key
from tests.support.wait import wait_until, wait_until_answered, wait_until_async


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as manager:
        yield manager


def test_values_are_loaded_and_stored(cache: CacheManager) -> None:
    report = cache.warm_cache("portfolio", lambda user: {"user": user}, ["a", "b", "a"], ttl=600)
    assert isinstance(report, WarmReport)
    assert (report.total, report.loaded, report.skipped, report.failed, report.errors) == (2, 2, 0, 0, {})
    assert cache.get_many("portfolio", ["a", "b"]) == {"a": {"user": "a"}, "b": {"user": "b"}}
    assert 599 < (cache.ttl("portfolio", "a") or 0) <= 600
    assert "2 of 2 loaded" in str(report)


@pytest.mark.anyio
async def test_async_loaders_run_some_at_a_time(cache: CacheManager) -> None:
    running = most = 0

    async def load(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    report = await cache.aio.warm_cache("t", load, range(100), concurrency=7)
    assert report.loaded == 100
    assert most == 7


@pytest.mark.anyio
@pytest.mark.parametrize("threads", [False, True], ids=["async", "blocking"])
async def test_keys_that_are_queued_as_the_last_worker_ends_are_loaded(
    threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has found nothing more to do counts as one until the loop tells that it has ended."""
    ended, told = WarmLoads._ended, list[object]()

    def late(self: WarmLoads, task: "asyncio.Task[None]") -> None:
        told.append(asyncio.get_running_loop().call_later(0.01, ended, self, task))

    monkeypatch.setattr(WarmLoads, "_ended", late)

    async def load(number: int) -> int:
        return number

    async with AsyncCacheManager(redis_enabled=False) as cache, asyncio.timeout(20):
        loader: Callable[[int], Any] = (lambda number: number) if threads else load
        report = await cache.warm_cache("t", loader, range(20), concurrency=2)
        assert (report.loaded, report.failed) == (20, 0)
        await wait_until_async(lambda: told)


def test_blocking_loaders_run_some_at_a_time(cache: CacheManager) -> None:
    gate = threading.Barrier(4, timeout=20)

    def load(number: int) -> int:
        # Passes only if four run at the same time.
        gate.wait()
        return number

    assert cache.warm_cache("t", load, range(8), concurrency=4).loaded == 8


def test_one_failing_key_stops_nothing(cache: CacheManager) -> None:
    def load(number: int) -> int:
        if number % 3 == 0:
            raise LookupError(f"no {number}")
        return number

    report = cache.warm_cache("t", load, range(10))
    assert (report.loaded, report.failed) == (6, 4)
    assert {key: str(error) for key, error in report.errors.items()} == {n: f"no {n}" for n in (0, 3, 6, 9)}
    assert cache.get("t", 4) == 4
    assert cache.get("t", 3) is None


def test_a_key_that_cannot_be_one_stops_nothing(cache: CacheManager) -> None:
    report = cache.warm_cache("t", lambda key: key, ["a", ..., [1], None])
    assert (report.total, report.loaded, report.failed) == (4, 1, 3)
    assert all(isinstance(error, CacheTypeError) for error in report.errors.values())


def test_only_what_is_missing(cache: CacheManager) -> None:
    cache.set("t", "a", "old")
    report = cache.warm_cache("t", lambda key: "new", ["a", "b"], only_missing=True)
    assert (report.loaded, report.skipped) == (1, 1)
    assert cache.get_many("t", ["a", "b"]) == {"a": "old", "b": "new"}
    assert cache.warm_cache("t", lambda key: "newer", ["a"]).loaded == 1
    assert cache.get("t", "a") == "newer"


def test_a_stale_value_and_a_remembered_error_count_as_missing(cache: CacheManager) -> None:
    """In memory, and in Redis alone."""

    def failed() -> str:
        raise LookupError("not there")

    for namespace in (
        Namespace("near", grace=60, negative={LookupError: 60}),
        Namespace("far", grace=60, negative={LookupError: 60}, l1=False),
    ):
        assert cache.set(namespace, "good", "kept", ttl=60)
        assert cache.set(namespace, "stale", "old", ttl=0.001)
        with pytest.raises(LookupError):
            cache.get_or_set(namespace, "failed", failed)
        wait_until(lambda space=namespace: cache.get(space, "stale") is None)
        report = cache.warm_cache(namespace, lambda key: "new", ["good", "stale", "failed"], only_missing=True)
        assert (report.loaded, report.skipped) == (2, 1)
        assert cache.get_many(namespace, ["good", "stale", "failed"]) == {
            "good": "kept", "stale": "new", "failed": "new",
        }  # fmt: skip


def test_progress_is_told_and_its_failure_stops_nothing(cache: CacheManager) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise RuntimeError("the page is gone")

    assert cache.warm_cache("t", lambda key: key, range(5), progress=progress).loaded == 5
    assert seen == [(1, 5), (2, 5), (3, 5)]


def test_a_bar_where_a_terminal_and_rich_are_there(cache: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert cache.warm_cache("portfolio", lambda key: key, range(3)).loaded == 3
    assert "warming portfolio" in terminal.getvalue()
    quiet = Terminal()
    monkeypatch.setattr(sys, "stderr", quiet)
    cache.warm_cache("portfolio", lambda key: key, range(3), progress=False)
    assert quiet.getvalue() == ""


def test_warming_does_not_spoil_the_hit_rate(cache: CacheManager) -> None:
    cache.warm_cache("t", lambda key: key, range(10))
    cache.get("t", 1)
    stats = cache.get_stats()
    assert (stats["hit_count"], stats["miss_count"]) == (1, 0)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"data_loader": 42}, "data_loader"),
        ({"keys": "abc"}, "keys"),
        ({"keys": 5}, "keys"),
        ({"ttl": 0}, "ttl"),
        ({"progress": 5}, "progress"),
        ({"namespace": 5}, "namespace"),
        ({"namespace": ""}, "namespace"),
    ],
)
def test_bad_input(cache: CacheManager, options: dict[str, Any], argument: str) -> None:
    arguments = {"namespace": "t", "data_loader": lambda key: key, "keys": ["a"], **options}
    with pytest.raises(CacheArgumentError, match=f"^{argument}: "):
        cache.warm_cache(**arguments)


# -- together -----------------------------------------------------------------------------------------------------


async def plain(key: str) -> dict[str, str]:
    return {"key": key}


def blocking(key: str) -> dict[str, str]:
    return {"key": key}


@pytest.mark.parametrize("load", [plain, blocking, lambda key: plain(key)])
def test_leases_and_values_travel_together(cache: CacheManager, raw: redis.Redis, load: Any) -> None:
    """Of one by one, each key would take a script for its lease and one for its value."""
    cache.warm_cache("t", load, ["a"])
    before = scripts_run(raw)
    keys = [f"k{number}" for number in range(600)]
    assert cache.warm_cache("t", load, keys).loaded == 600
    assert scripts_run(raw) - before < 300
    assert cache.get_many("t", keys) == {key: {"key": key} for key in keys}
    wait_until(lambda: not list(raw.scan_iter("{*")) and not held_leases(cache) and not loads_by_key(cache))


@pytest.mark.parametrize("load", [plain, blocking])
def test_a_loader_may_need_another_key_that_waits_for_its_turn(cache: CacheManager, load: Any) -> None:
    """Its load begins at once: the loader that needs it keeps it from its turn."""

    async def later(number: int) -> int:
        return number if number == 9 else await cache.aio.get_or_set("t", number + 1, lambda: later(number + 1)) - 1

    def later_here(number: int) -> int:
        return number if number == 9 else cache.get_or_set("t", number + 1, lambda: later_here(number + 1)) - 1

    report = cache.warm_cache("t", later if load is plain else later_here, range(10), concurrency=1)
    assert report.loaded == 10
    assert cache.get_many("t", range(10)) == {number: number for number in range(10)}


@pytest.mark.anyio
async def test_a_value_is_there_before_slower_ones_are_loaded(cache: CacheManager) -> None:
    go = asyncio.Event()

    async def load(number: int) -> int:
        if number == 3:
            await go.wait()
        return number

    call = asyncio.create_task(cache.aio.warm_cache("t", load, range(40), concurrency=4))
    others = [number for number in range(40) if number != 3]

    async def are_there() -> bool:
        return await cache.aio.get_many("t", others) == {number: number for number in others}

    await wait_until_answered(are_there)
    assert not call.done()
    assert await cache.aio.get("t", 3) is None
    go.set()
    assert (await call).loaded == 40


@pytest.mark.anyio
async def test_a_cancelled_warming_leaves_nothing_but_what_others_wait_for(
    cache: CacheManager, raw: redis.Redis
) -> None:
    go, running, cancelled = asyncio.Event(), set[int](), set[int]()

    async def load(number: int) -> int:
        running.add(number)
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled.add(number)
            raise
        return number

    async def never() -> int:
        raise AssertionError("the load is joined")

    async with AsyncCacheManager(redis_url=cache._engine.state.settings.redis_url) as ours:
        call = asyncio.create_task(ours.warm_cache("t", load, range(100), concurrency=4))
        await wait_until_async(lambda: len(running) == 4)
        joined = asyncio.create_task(ours.get_or_set("t", 2, never))
        await wait_until_async(lambda: ours._engine.state.flights.joined == 1)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        await wait_until_async(lambda: cancelled == {0, 1, 3})
        assert list(loads_by_key(ours)) == [b"magnus:t:~2"]
        go.set()
        assert await joined == 2
        await wait_until_async(lambda: not list(raw.scan_iter("{*")) and not loads_by_key(ours))
        assert len(running) == 4
        assert await ours.get("t", 2) == 2


@pytest.mark.anyio
async def test_a_loader_that_ends_the_program_ends_the_warming(cache: CacheManager, raw: redis.Redis) -> None:
    async def load(number: int) -> int:
        if number == 20:
            raise SystemExit(3)
        return number

    async with AsyncCacheManager(redis_url=cache._engine.state.settings.redis_url) as ours:
        with pytest.raises(SystemExit):
            await ours.warm_cache("t", load, range(100))
        await wait_until_async(lambda: not list(raw.scan_iter("{*")) and not loads_by_key(ours))


def test_an_exception_that_is_returned_is_a_value_that_cannot_be_stored(cache: CacheManager) -> None:
    report = cache.warm_cache("t", lambda key: LookupError(key) if key == "a" else key, ["a", "b"])
    assert (report.loaded, report.failed, report.unstorable) == (1, 0, 1)
