"""Where the background thread cannot be started, functions are called without the cache: it counts as an outage."""

import asyncio
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from magnus_cache import (
    NOT_MODIFIED,
    AsyncCacheManager,
    CacheBatchError,
    CacheBudgetError,
    CacheManager,
    CacheTypeError,
    CacheUnavailableError,
    Namespace,
    RetryLater,
)
from magnus_cache._engine.loading.own_loop import wait_for
from magnus_cache._engine.runtime.portal import NoThreadError, Portal
from magnus_cache.embedded import EmbeddedServer
from tests.support import leaks
from tests.support.inside import loads_by_key
from tests.support.programs import run_python
from tests.support.wait import wait_until, wait_until_async


@contextmanager
def no_threads() -> Iterator[None]:
    """The system refuses new threads, as at its limit: their stacks find no room."""
    before = threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(before)


@contextmanager
def no_files() -> Iterator[None]:
    """All files that this process may open are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    files: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                files.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


LACKS = {"threads": no_threads, "files": no_files}


@pytest.fixture(params=LACKS)
def lack(request: pytest.FixtureRequest) -> Any:
    return LACKS[request.param]


@pytest.fixture(params=[True, False], ids=["server", "memory"])
def options(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    return {"redis_url": url, "redis_enabled": request.param}


def test_cached_functions_are_just_called(lack: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    with CacheManager(**options) as cache:

        @cache.cached("t")
        def double(number: int) -> int:
            calls.append(number)
            return 2 * number

        @cache.cached("t", grace=60, soft_timeout=5, hard_timeout=10)
        def bounded(number: int) -> int:
            calls.append(number)
            return 2 * number

        @cache.cached_many("t")
        def doubles(numbers: list[int]) -> dict[int, int]:
            calls.extend(numbers)
            return {number: 2 * number for number in numbers}

        with lack():
            assert [double(2), double(2), bounded(3), double.refresh(2)] == [4, 4, 6, 4]
            assert doubles([4, 5]) == {4: 8, 5: 10}
            assert doubles([]) == {}
            assert cache.get_or_set("t", "k", lambda: 7) == 7
            assert cache.get_or_set_many("t", ["l"], lambda keys: dict.fromkeys(keys, 1)) == {"l": 1}
            assert double.invalidate(2) is False
            assert doubles.invalidate([4]) is False
            assert cache.get_stats()["errors"]["no_thread"] > 5
            assert calls == [2, 2, 3, 2, 4, 5]
        assert not leaks.threads()
        # As soon as there are threads again, it is a cache again.
        assert double(2) == double(2) == 4
        assert calls == [2, 2, 3, 2, 4, 5, 2]
    assert caplog.text.count("background thread cannot be started") == 1


def test_the_operations_behave_as_in_an_outage(lack: Any, options: dict[str, Any]) -> None:
    with CacheManager(**options) as cache, lack():
        assert cache.get("t", "k") is None
        assert cache.get("t", "k", 3) == 3
        assert cache.set("t", "k", 1) is False
        assert cache.get_many("t", ["k"]) == {}
        assert cache.contains("t", "k") is False
        assert cache.ttl("t", "k") is None
        assert cache.touch("t", "k", 5) is False
        assert cache.delete("t", "k") is False
        assert cache.clear("t") == 0
        cache.set_many("t", {"k": 1})
        cache.invalidate_tags("tag")
        assert not cache.redis_available


def test_what_the_loader_raises_is_raised(lack: Any, url: str) -> None:
    error = LookupError("mine")

    def fail() -> int:
        raise error

    with CacheManager(redis_url=url) as cache, lack():
        for _ in range(2):
            with pytest.raises(LookupError) as caught:
                cache.get_or_set("t", "k", fail)
            assert caught.value is error
        assert not loads_by_key(cache)


def test_results_that_cannot_be_kept_are_returned(lack: Any, url: str) -> None:
    class Unknown:
        pass

    thing = Unknown()
    with CacheManager(redis_url=url) as cache, lack():
        assert cache.get_or_set("t", "k", lambda: thing) is thing
        with pytest.raises(CacheTypeError, match="NOT_MODIFIED"):
            cache.get_or_set("t", "k", lambda: NOT_MODIFIED)


def test_batches_fail_for_the_keys_that_fail(lack: Any, url: str) -> None:
    error = LookupError("no such key")
    with CacheManager(redis_url=url) as cache, lack():
        with pytest.raises(CacheBatchError) as raised:
            cache.get_or_set_many("t", ["a", "b"], lambda keys: {"a": 1, "b": error})
        assert (raised.value.results, raised.value.errors) == ({"a": 1}, {"b": error})
        with pytest.raises(CacheTypeError, match="mapping"):
            cache.get_or_set_many("t", ["a"], lambda keys: [1])  # type: ignore[arg-type,return-value]


def test_threads_that_wait_share_one_load_and_get_copies(url: str) -> None:
    begun, go = threading.Event(), threading.Event()
    results: list[list[int]] = []

    def load() -> list[int]:
        begun.set()
        assert go.wait(20)
        return [1]

    with CacheManager(redis_url=url) as cache:
        ready = threading.Barrier(5)
        threads = [
            threading.Thread(target=lambda: (ready.wait(), results.append(cache.get_or_set("t", "k", load))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        with no_threads():
            ready.wait()
            assert begun.wait(20)
            wait_until(lambda: cache._state.flights.joined == 3)
            go.set()
            for thread in threads:
                thread.join()
    assert results == [[1]] * 4
    assert len({id(result) for result in results}) == 4


def test_redis_is_told_later_what_was_removed_and_overwritten(url: str) -> None:
    with CacheManager(redis_url=url) as other:
        other.set_many("t", {"deleted": 1, "written": 1, "kept": 1})
        other.set("cleared", "k", 1)
        other.set("u", "tagged", 1, tags="tag")
        with CacheManager(redis_url=url) as cache:
            with no_threads():
                cache.delete("t", "deleted")
                assert cache.set("t", "written", 2) is False
                cache.clear("cleared")
                cache.invalidate_tags("tag")
                assert cache.get("t", "deleted") is None
            # Redis still has them, and this process knows better.
            assert [cache.get("t", key) for key in ("deleted", "written", "kept")] == [None, None, 1]
            assert cache.get("cleared", "k") is None
            assert cache.get("u", "tagged") is None
        # What the other has near, it has until it hears of it.
        wait_until(lambda: [other.get("t", key) for key in ("deleted", "written", "kept")] == [None, None, 1])
        wait_until(lambda: other.get("cleared", "k") is None)
        wait_until(lambda: other.get("u", "tagged") is None)


def test_an_async_manager_of_the_same_cache_tells_redis_at_once(url: str, raw: redis.Redis) -> None:
    async def use() -> None:
        async with AsyncCacheManager(redis_url=url) as cache:
            await cache.set("t", "k", 1)
            with no_threads():
                cache.sync.delete("t", "k")
                await wait_until_async(lambda: not raw.exists("magnus:t:k"))
                assert await cache.get("t", "k") is None

    asyncio.run(asyncio.wait_for(use(), 20))


def test_functions_under_an_async_manager_are_called_on_its_loop(url: str) -> None:
    calls: list[int] = []

    def load() -> int:
        calls.append(threading.get_ident())
        return 5

    async def use() -> None:
        async with AsyncCacheManager(redis_url=url) as cache:
            await cache.set("t", "other", 1)
            with no_threads():
                assert await cache.get_or_set("t", "k", load) == 5
            assert await cache.get("t", "k") == 5
            assert cache._engine.state.workers.slots.running == 0

    asyncio.run(use())
    assert calls == [threading.get_ident()]


def test_invalidations_are_recorded_though_the_journal_has_no_thread(url: str, tmp_path: Path) -> None:
    with CacheManager(redis_url=url, recovery_path=tmp_path / "journal") as cache:
        with no_threads():
            assert cache.delete("t", "k") is False
        assert cache._state.outbox.pending
        cache.get("t", "k")
        assert not cache._state.outbox.pending


def test_coroutine_functions_are_called_on_a_loop_of_the_callers_thread(options: dict[str, Any]) -> None:
    calls: list[int] = []

    async def load(value: Any = 1) -> Any:
        await asyncio.sleep(0)
        calls.append(threading.get_ident())
        return value

    async def fail() -> None:
        raise LookupError("no such row")

    with CacheManager(**options) as cache, no_threads():
        assert [cache.get_or_set("t", "k", load) for _ in range(2)] == [1, 1]
        assert cache.get_or_set("t", "k", lambda: load(2)) == 2
        assert cache.get_or_set_many("t", ["a"], lambda keys: load(dict.fromkeys(keys, 3))) == {"a": 3}
        with cache.disabled():
            assert cache.get_or_set("t", "k", load) == 1
        with pytest.raises(LookupError, match="no such row"):
            cache.get_or_set("t", "k", fail)
    assert calls == [threading.get_ident()] * 5


@pytest.mark.parametrize("kind", ["coroutine function", "function"])
def test_warming_runs_on_a_loop_of_the_callers_thread(options: dict[str, Any], kind: str) -> None:
    calls: list[int] = []

    def load(key: str) -> str:
        calls.append(threading.get_ident())
        return key.upper()

    async def load_async(key: str) -> str:
        await asyncio.sleep(0)
        return load(key)

    loader: Any = load if kind == "function" else load_async
    with CacheManager(**options) as cache:
        with no_threads():
            report = cache.warm_cache("t", loader, ["a", "b"], progress=False)
            assert (report.loaded, report.failed) == (2, 0)
            assert cache.warm_cache("t", loader, ["a", "b"], only_missing=True, progress=False).skipped == 2
        assert cache.get_many("t", ["a", "b"]) == {"a": "A", "b": "B"}
    assert calls == [threading.get_ident()] * 2


def test_warming_without_any_loop_says_why(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        async def within_one() -> None:
            cache.warm_cache("t", str, ["a"], progress=False)

        with no_threads(), pytest.raises(CacheUnavailableError, match="background thread cannot be started"):
            asyncio.run(within_one())
        with no_files(), pytest.raises(CacheUnavailableError, match="background thread cannot be started"):
            cache.warm_cache("t", str, ["a"], progress=False)


def test_a_coroutine_function_needs_a_loop(url: str) -> None:
    async def load() -> int:
        return 1

    with CacheManager(redis_url=url) as cache:

        async def within_one() -> None:
            cache.get_or_set("t", "k", load)

        with no_threads(), pytest.raises(CacheUnavailableError, match="background thread cannot be started"):
            asyncio.run(within_one())
        with no_files(), pytest.raises(CacheUnavailableError, match="background thread cannot be started"):
            cache.get_or_set("t", "k", load)


def test_a_coroutine_function_on_a_loop_of_its_own_leaves_the_threads_loop_in_place() -> None:
    async def load() -> int:
        return 1

    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:
        with no_threads():
            assert wait_for(Portal(), load) == 1
        assert asyncio.get_event_loop_policy().get_event_loop() is mine
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_a_coroutine_function_that_fails_for_want_of_a_thread_is_called_once() -> None:
    """The error comes from a blocking call within it, of another cache."""
    calls: list[int] = []

    async def load() -> None:
        calls.append(1)
        raise NoThreadError("no_thread", "of another cache")

    portal = Portal()
    try:
        with pytest.raises(NoThreadError, match="of another cache"):
            wait_for(portal, load)
    finally:
        portal.close()
    assert calls == [1]


@pytest.mark.parametrize("first", ["before", "at exit"])
def test_at_the_end_of_the_program(first: str, server: EmbeddedServer) -> None:
    """From Python 3.12 on, no thread can be started then."""
    script = f"""
import atexit
from magnus_cache import get_cache_manager

def double(number):
    return 2 * number

def last():
    cache = get_cache_manager()
    print(cache.cached("t")(double)(2), cache.set("t", "k", 1) in (True, False), cache.get("t", "l"))

if {first == "before"}:
    get_cache_manager()
atexit.register(last)
"""
    done = run_python("-c", script, REDIS_URL=server.url, MAGNUS_CACHE_PREFIX="own")
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 True None\n", "")


# -- limits: by what the process knows, as in an outage --------------------------------------------------------------


def _count(call: Any, keys: str) -> int:
    count = 0
    for key in keys:
        try:
            call(key)
        except CacheBudgetError:
            continue
        count += 1
    return count


def test_a_budget_holds_without_a_loop(options: dict[str, Any]) -> None:
    budget = Namespace("t", budget="2/h", hard_timeout=1)
    batches = Namespace("b", budget={"{key}": "2/h"}, hard_timeout=1)
    with CacheManager(**options) as cache, no_threads():
        assert _count(lambda key: cache.get_or_set(budget, key, lambda: 1), "abcd") == 2
        assert (
            _count(lambda key: cache.get_or_set_many(batches, [key], lambda keys: dict.fromkeys(keys, 1)), "aaab") == 3
        )


def test_a_load_waits_for_its_token_without_a_loop(options: dict[str, Any]) -> None:
    with CacheManager(**options) as cache, no_threads():
        began = time.monotonic()
        assert _count(lambda key: cache.get_or_set(Namespace("t", budget="1/200ms"), key, lambda: 1), "ab") == 2
        assert time.monotonic() - began >= 0.2


def test_a_paused_source_rests_without_a_loop(options: dict[str, Any]) -> None:
    asked: list[float] = []

    def load() -> int:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise RetryLater(0.2)
        return 7

    with CacheManager(**options) as cache, no_threads():
        assert cache.get_or_set("t", "a", load) == 7
        assert asked[1] - asked[0] >= 0.2
        asked.clear()
        assert cache.get_or_set_many("t", ["a"], lambda keys: dict.fromkeys(keys, load())) == {"a": 7}
        assert asked[1] - asked[0] >= 0.2
        with pytest.raises(CacheBudgetError, match="RetryLater"):
            cache.get_or_set(Namespace("p", hard_timeout=0.1), "a", _refused)


def _refused() -> None:
    raise RetryLater(60)


def test_a_limit_of_spending_holds_without_a_loop(url: str) -> None:
    limited = Namespace("t", spend_limit="1.00/day")
    with CacheManager(redis_enabled=False) as cache, no_threads():

        def fails() -> None:
            raise OSError

        for key in "xyz":
            with pytest.raises(OSError):
                cache.get_or_set(limited, key, fails, cost=0.5)
        assert _count(lambda key: cache.get_or_set(limited, key, lambda: 1, cost=0.25), "abcdef") == 4
        assert cache.get_stats()["namespaces"]["t"]["spent"] == 1
    # A process that Redis has never answered has no share.
    with CacheManager(redis_url=url) as cache, no_threads():
        assert _count(lambda key: cache.get_or_set(limited, key, lambda: 1, cost=0.25), "abc") == 0
