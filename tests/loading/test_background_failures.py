"""What the log says of failures that no caller gets: with their cause, and without a flood."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, CacheTimeoutError, Namespace
from magnus_cache._engine.loading.failures import function_name
from magnus_cache._engine.runtime import log as notices
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.inside import deferred_calls, set_log_clock
from tests.support.loaders import SourceError
from tests.support.programs import run_python
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, "magnus_cache"):
        yield caplog


def warned(log: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [one.getMessage() for one in log.records if one.levelno == logging.WARNING and text in one.getMessage()]


def causes(log: pytest.LogCaptureFixture) -> list[BaseException]:
    """The exceptions whose tracebacks were logged."""
    told = [one.exc_info[1] for one in log.records if one.levelno == logging.DEBUG and one.exc_info]
    return [error for error in told if error is not None]


async def failing() -> int:
    raise SourceError("the words of the source")


def failing_in_a_thread() -> int:
    raise SourceError("the words of the source")


def check_told(log: pytest.LogCaptureFixture, key: str, function: str) -> None:
    (line,) = warned(log, "loading a value")
    assert "namespace 't' failed (SourceError)" in line
    assert f"key magnus:t:{key}" in line
    assert function in line
    assert "the words" not in line, "they are the program's, and may hold a secret"
    (cause,) = causes(log)
    assert isinstance(cause, SourceError)
    assert cause.__traceback__ is not None
    assert str(cause) == "the words of the source"


async def quiet(cache: AsyncCacheManager) -> None:
    await wait_until_async(lambda: not cache._state.flights.background and not len(cache._state.flights))


@pytest.mark.parametrize("loader", [failing, failing_in_a_thread])
@pytest.mark.parametrize("soft_timeout", [0, None], ids=["stale while revalidate", "stale if error"])
async def test_a_load_behind_a_stale_value(log: Any, loader: Any, soft_timeout: float | None) -> None:
    namespace = Namespace("t", ttl=10, grace=60, soft_timeout=soft_timeout)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:
            await cache.get_or_set(namespace, "k", lambda: 1)
            clock.advance(11)
            assert await cache.get_or_set(namespace, "k", loader) == 1
            await quiet(cache)
    check_told(log, "k", f"{__name__}.{loader.__name__}")


async def test_a_load_behind_a_stale_value_in_a_thread(log: Any) -> None:
    namespace = Namespace("t", ttl=10, grace=60)
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        cache.get_or_set(namespace, "k", lambda: 1)
        clock.advance(11)
        assert cache.get_or_set(namespace, "k", failing_in_a_thread) == 1
    check_told(log, "k", f"{__name__}.failing_in_a_thread")


@pytest.mark.parametrize("loader", [failing, failing_in_a_thread])
async def test_an_early_refresh(log: Any, loader: Any) -> None:
    namespace = Namespace("t", ttl=60, early=1e9)
    async with AsyncCacheManager(redis_enabled=False) as cache:

        async def load() -> int:
            await asyncio.sleep(0.01)
            return 1

        await cache.get_or_set(namespace, "k", load)
        assert await cache.get_or_set(namespace, "k", loader) == 1
        await quiet(cache)
        check_told(log, "k", f"{__name__}.{loader.__name__}")


async def test_an_early_refresh_whose_value_cannot_be_stored(log: Any) -> None:
    """That is an error of the cache's, which callers get; here there is none."""
    namespace = Namespace("t", ttl=60, early=1e9)
    async with AsyncCacheManager(redis_enabled=False) as cache:

        async def load() -> Any:
            await asyncio.sleep(0.01)
            return 1

        async def bad_ttl() -> Any:
            return 2

        await cache.get_or_set(namespace, "k", load)
        assert await cache.get_or_set(namespace, "k", bad_ttl, ttl=lambda _: -1) == 1
        await quiet(cache)
        (line,) = warned(log, "loading a value")
        assert "(CacheArgumentError): key magnus:t:k" in line
        assert causes(log)


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_a_load_whose_caller_did_not_wait(log: Any, way: str) -> None:
    gate = threading.Event()

    def load() -> None:
        gate.wait(10)
        failing_in_a_thread()

    async with AsyncCacheManager(redis_enabled=False) as cache:
        call = cache.get_or_set if way == "async" else partial(asyncio.to_thread, cache.sync.get_or_set)
        with pytest.raises(CacheTimeoutError):
            await call("t", "k", load, hard_timeout=0.1)
        assert not warned(log, "loading a value")
        gate.set()
        await quiet(cache)
    check_told(log, "k", "test_a_load_whose_caller_did_not_wait.<locals>.load")


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_what_a_caller_gets_is_its_own_business(log: Any, way: str) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        call = cache.get_or_set if way == "async" else partial(asyncio.to_thread, cache.sync.get_or_set)
        for options in ({}, {"hard_timeout": 5}):
            with pytest.raises(SourceError):
                await call("t", "k", failing, **options)
    assert not warned(log, "loading a value")
    assert not causes(log)


async def test_a_batch_behind_stale_values(log: Any) -> None:
    namespace = Namespace("t", ttl=10, grace=60)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:

            async def load(keys: list[str]) -> dict[str, int]:
                if clock() > later:
                    await failing()
                return dict.fromkeys(keys, 1)

            later = clock() + 5
            decorated = cache.cached_many(namespace, key="{keys}")(load)
            await decorated(["k"])
            clock.advance(11)
            assert await decorated(["k"]) == {"k": 1}
    check_told(log, "k", "test_a_batch_behind_stale_values.<locals>.load")


async def test_a_storm_is_one_line_and_the_next_one_counts_it(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = Namespace("t", ttl=10, grace="1h", retry="1ms")
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:
            set_log_clock(cache, clock)
            for key in range(100):
                await cache.get_or_set(namespace, key, lambda: 1)
            clock.advance(11)
            for key in range(100):
                assert await cache.get_or_set(namespace, key, failing) == 1
            assert len(warned(log, "loading a value")) == len(causes(log)) == 1
            clock.advance(61)
            await cache.get_or_set(namespace, 0, failing)
    _, second = warned(log, "loading a value")
    assert second.endswith("(99 more like this)")
    assert len(causes(log)) == 2


def test_there_are_not_more_lines_the_more_topics_there_are(log: Any) -> None:
    now = 0.0
    notices_ = RateLimitedLog(lambda: now)
    for _ in range(3):
        for topic in range(5_000):
            notices_.warn(f"topic:{topic}", "something failed")
    lines = log.messages
    assert len(lines) == 257
    assert len(notices_._history.last) == 257
    now = 61.0
    notices_.warn("topic:4999", "something failed")
    assert log.messages[-1] == "something failed"
    assert len(notices_._history.last) < 257


def test_a_flapping_matter_is_told_anew_no_sooner_for_each_time_it_is_mended(log: Any) -> None:
    now = 0.0
    notices_ = RateLimitedLog(lambda: now)
    notices_.warn("redis", "away")
    assert notices_.resolved("redis")
    assert not notices_.resolved("redis")
    now = 9.0
    notices_.warn("redis", "away")
    assert log.messages == ["away"]
    now = 11.0
    notices_.warn("redis", "away")
    assert log.messages == ["away", "away (1 more like this)"]


def test_a_call_that_a_finalizer_left_for_later(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise SourceError("the words of the source")

    with CacheManager(redis_enabled=False) as cache:
        cache.contains("t", "k")
        monkeypatch.setattr(cache._writes, "remove", fail)
        refs = [cache._reads.ref("t", key) for key in "abcde"]
        cache._deferred.remove(refs)
        wait_until(lambda: warned(log, "finalizer"))
        wait_until(lambda: not deferred_calls(cache))
    (line,) = warned(log, "finalizer")
    assert "(delete magnus:t:a, magnus:t:b, magnus:t:c, ...): SourceError" in line
    assert [str(cause) for cause in causes(log)] == ["the words of the source"]


def test_the_journal(log: Any, tmp_path: Path, proxy: Proxy) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    path = folder / "cache.db"
    proxy.refuse()
    with CacheManager(redis_url=proxy.url, recovery_path=path) as cache:
        cache.delete("t", "k")
        path.unlink()
        path.mkdir()
        cache.delete("t", "l")
        wait_until(lambda: any("recovery journal" in line for line in log.messages))
        wait_until(lambda: causes(log))


def test_closing_before_redis_was_told_what_it_missed_is_told(log: Any, proxy: Proxy) -> None:
    with CacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        cache.set("t", "k", 1)
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: not cache._state.reachable)
        cache.delete("t", "k")
    (line,) = warned(log, "was closed")
    assert "what this process invalidated" in line
    assert "MAGNUS_CACHE_RECOVERY_PATH" in line


def test_closing_without_any_redis_is_no_news(log: Any, proxy: Proxy) -> None:
    proxy.refuse()
    with CacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        cache.delete("t", "k")
    assert not warned(log, "was closed")


def test_the_name_of_a_function() -> None:
    class Callable_:
        def __call__(self) -> None: ...

        def method(self) -> None: ...

    inner = "test_the_name_of_a_function.<locals>"
    assert function_name(partial(partial(failing, 1), 2)) == f"{__name__}.failing"
    assert function_name(Callable_().method) == f"{__name__}.{inner}.Callable_.method"
    assert function_name(Callable_()) == f"{__name__}.{inner}.Callable_"
    assert function_name(failing.__code__) == "failing"
    assert function_name(len) == "builtins.len"


@pytest.mark.parametrize("made", [lambda function: function, partial], ids=["function", "partial"])
def test_a_cached_function_is_named_and_not_what_calls_it(log: Any, made: Any) -> None:
    sources = iter([lambda: 1])

    def price() -> int:
        return next(sources, failing_in_a_thread)()

    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        cached = cache.cached("t", ttl=10, key="k", grace="1h")(made(price))
        assert cached() == 1
        clock.advance(11)
        assert cached() == 1
    check_told(log, "k", f"function {__name__}.test_a_cached_function_is_named_and_not_what_calls_it.<locals>.price;")


async def test_a_load_that_has_ended_keeps_nothing_of_its_call() -> None:
    from magnus_cache._engine.flights.flight import LOADING, Flight

    flights: list[Flight | None] = []

    async def load() -> int:
        flights.append(LOADING.get())
        return 1

    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.get_or_set("t", "k", load)
        await asyncio.to_thread(cache.sync.get_or_set, "t", "l", lambda: flights.append(LOADING.get()))
    assert [flight is not None and flight.loader for flight in flights] == [None, None]


# -- once, though the program is run again ----------------------------------------------------------------------------


def test_managers_of_one_redis_share_the_minute(log: Any, proxy: Proxy) -> None:
    """A page that makes a manager each time it is shown does not repeat that Redis is away."""
    proxy.refuse()
    for _ in range(3):
        with CacheManager(redis_url=proxy.url) as cache:
            cache.get("t", "k")
    assert len(warned(log, "nothing listens there")) == 1
    with CacheManager(redis_url=proxy.url, prefix="other") as cache:
        cache.get("t", "k")
    assert len(warned(log, "nothing listens there")) == 2


def test_an_outage_that_one_manager_told_of_has_an_end_for_all(log: Any, proxy: Proxy) -> None:
    proxy.refuse()
    with CacheManager(redis_url=proxy.url) as cache:
        cache.get("t", "k")
    proxy.resume()
    with CacheManager(redis_url=proxy.url) as cache:
        cache.get("t", "k")
        # The line follows, in the thread that connects.
        wait_until(lambda: cache.redis_available and warned(log, "is back"))
    assert len(warned(log, "is back")) == 1


PAGE = """
from magnus_cache import CacheManager
cache = CacheManager(redis_url="redis://127.0.0.1:1/0")

class Client:
    def __init__(self, account):
        self.account = account

    @cache.cached("t")
    def total(self):
        return 1

Client(1).total()
cache.close()
"""


def test_a_page_that_is_executed_again_and_again_warns_once(log: Any) -> None:
    for _ in range(5):
        exec(PAGE, {"__name__": "__main__"})  # as Streamlit does
    assert len(warned(log, "nothing listens there")) == 1
    assert len(warned(log, "for each instance of Client separately")) == 1


def test_such_a_page_where_no_logging_is_set_up(tmp_path: Path) -> None:
    program = f"for _ in range(5): exec({PAGE!r}, {{'__name__': '__main__'}})"
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("magnus_cache: ") for line in lines)
    assert sum("nothing listens there" in line for line in lines) == 1
    assert sum("for each instance of Client separately" in line for line in lines) == 1


def test_what_is_said_once_is_bounded(log: Any) -> None:
    for number in range(5_000):
        notices.say_once(f"topic:{number}", "said")
    notices.say_once("topic:4999", "said")
    assert len(log.messages) == 5_000
    assert len(notices._said) <= 1_000
    for number in range(5_000):
        RateLimitedLog(place=f"place {number}")
    assert len(notices._places) <= 64
