"""The clock that tests advance: for all caches, in all threads, and never back."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from magnus_cache import CacheManager
from magnus_cache._engine.runtime.clock import monotonic, offset_of, process_clock
from magnus_cache._engine.runtime.forks import fork_aware
from magnus_cache.testing import clock as testing_clock
from magnus_cache.testing import virtual_clock


@pytest.fixture(autouse=True)
def _caches_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that others have left open, in the globals of a module, say, do not keep time from being real again."""
    before, goes_by_it = fork_aware(), testing_clock._goes_by_it
    ours = lambda thing: goes_by_it(thing) and not any(thing is other for other in before)  # noqa: E731
    monkeypatch.setattr(testing_clock, "_goes_by_it", ours)


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as cache:
        yield cache


def test_it_reaches_a_cache_that_was_made_before(cache: CacheManager) -> None:
    calls: list[str] = []

    @cache.cached("t", ttl=60)
    def price(ticker: str) -> str:
        calls.append(ticker)
        return ticker

    price("A")
    with virtual_clock() as clock:
        price("A")
        clock.advance(59)
        price("A")
        assert calls == ["A"]
        clock.advance(2)
        price("A")
        assert calls == ["A", "A"]


def test_it_reaches_other_threads_and_loops(cache: CacheManager) -> None:
    cache.set("t", "k", 1, ttl=60)
    found: list[Any] = []
    begun, go = threading.Event(), threading.Event()

    def other() -> None:
        found.append(cache.get("t", "k"))
        begun.set()
        assert go.wait(10)
        found.append(cache.get("t", "k"))
        found.append(asyncio.run(cache.aio.get("t", "k")))
        with CacheManager(
            redis_url=cache._state.endpoint and f"redis://127.0.0.1:{cache._state.endpoint.port}/0"
        ) as new:
            found.append(new.get("t", "k"))

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(10)
    with virtual_clock() as clock:
        clock.advance(61)
        go.set()
        thread.join()
    assert found == [1, None, None, None]


def test_time_does_not_go_back_for_a_cache_that_is_open(cache: CacheManager) -> None:
    with virtual_clock() as clock:
        clock.advance(100)
        cache.set("t", "k", 1, ttl=60)
    # The end of the block is no time travel: what was stored has the 60 seconds that it was given, not 160.
    left = cache.ttl("t", "k")
    assert left is not None
    assert left <= 60
    assert offset_of(process_clock) == 100
    with virtual_clock() as clock:
        clock.advance(61)
        assert cache.get("t", "k") is None


def test_time_is_real_again_when_no_cache_saw_it_advance(url: str) -> None:
    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        clock.advance(100)
    assert offset_of(process_clock) == 0
    assert process_clock.func is monotonic.func  # type: ignore[attr-defined]  # both are partials of one function


def test_time_is_real_again_once_the_last_that_saw_it_advance_is_closed(url: str) -> None:
    cache = CacheManager(redis_url=url)
    with virtual_clock() as clock:
        clock.advance(100)
    assert offset_of(process_clock) == 100
    cache.close()
    with CacheManager(redis_url=url):
        assert offset_of(process_clock) == 0


def test_blocks_within_blocks(cache: CacheManager) -> None:
    cache.set("t", "k", 1, ttl=60)
    with virtual_clock() as outer:
        outer.advance(10)
        with virtual_clock() as inner:
            inner.advance(30)
            left = cache.ttl("t", "k")
            assert left is not None
            assert left <= 20
        assert outer.ahead == 40
        outer.advance(21)
        assert cache.get("t", "k") is None


def test_blocks_that_overlap(cache: CacheManager) -> None:
    first, second = virtual_clock(), virtual_clock()
    one = first.__enter__()
    one.advance(10)
    two = second.__enter__()
    first.__exit__(None, None, None)
    two.advance(10)
    assert offset_of(process_clock) == 20
    second.__exit__(None, None, None)
    assert offset_of(process_clock) == 20
