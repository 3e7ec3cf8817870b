"""Callers deep in their stack: a `RecursionError` is theirs, and leaves no key locked and no waiter behind."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from magnus_cache import CacheClosedError, CacheManager
from magnus_cache._engine.runtime.critical import section
from tests.support.inside import blocked_loops, load_tasks, loads_by_key, portal_work
from tests.support.wait import wait_until


def at_depth(left: int, call: Callable[[], Any]) -> Any:
    """Call something with so many frames left below it."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return _deeper(sys.getrecursionlimit() - depth - left, call)


def _deeper(more: int, call: Callable[[], Any]) -> Any:
    return call() if more <= 0 else _deeper(more - 1, call)


def settled(cache: CacheManager) -> bool:
    """Whether nothing is left of any call: loads, leases, placeholders, waiters."""
    state = cache._state
    left = [
        loads_by_key(state),
        blocked_loops(state),
        load_tasks(state),
        len(state.leases),
        state.memory.pending,
    ]
    work = portal_work(state.portal)
    return not any(left) and not work["waiters"] and not work["tasks"]


@pytest.mark.parametrize("operation", ["cached", "get", "set", "delete", "many"])
def test_a_recursion_error_at_any_depth_leaves_nothing_behind(url: str, operation: str) -> None:
    with CacheManager(redis_url=url, lease=100, wait_timeout=100) as cache:

        @cache.cached("t")
        def double(number: int) -> list[int]:
            return [2 * number]

        calls: dict[str, Callable[[int], Any]] = {
            "cached": double,
            "get": lambda number: cache.get("t", number),
            "set": lambda number: cache.set("t", number, number),
            "delete": lambda number: cache.delete("t", number),
            "many": lambda number: cache.get_or_set_many("t", [number], lambda keys: {key: [2 * key] for key in keys}),
        }
        call = calls[operation]
        call(-1)
        failed = 0
        for left in range(3, 90):
            try:
                at_depth(left, lambda left=left: call(left))  # type: ignore[misc]
            except RecursionError:
                failed += 1
            wait_until(lambda: settled(cache))
            # Not locked: it is loaded at once.
            assert double(left) == [2 * left] or operation == "set"
        assert 5 < failed < 87


def test_a_recursion_error_of_a_loader_is_its_own(url: str) -> None:
    def endless(number: int) -> int:
        return endless(number + 1)

    with CacheManager(redis_url=url, lease=100, wait_timeout=100) as cache:
        for _ in range(3):
            with pytest.raises(RecursionError) as caught:
                cache.get_or_set("t", "k", lambda: endless(0))
            assert not isinstance(caught.value, CacheClosedError)
        wait_until(lambda: settled(cache))
        assert cache.get_or_set("t", "k", lambda: 1) == 1


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, RuntimeError])
def test_an_error_of_a_loader_is_no_end_of_the_cache(url: str, kind: type[Exception]) -> None:
    def fail() -> int:
        raise kind("mine")

    async def fail_on_the_loop() -> int:
        raise kind("mine")

    with CacheManager(redis_url=url, lease=100, wait_timeout=100) as cache:
        for loader in (fail, fail_on_the_loop):
            with pytest.raises(kind, match="mine"):
                cache.get_or_set("t", "k", loader)
        assert cache.get_or_set("t", "k", lambda: 1) == 1


def test_a_wake_that_fails_is_no_closed_cache(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        loop: Any = cache._state.portal.loop
        wake = loop.call_soon_threadsafe

        def overflow(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                raise RecursionError("maximum recursion depth exceeded")
            return wake(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", overflow)
            with pytest.raises(RecursionError):
                cache.set("t", "k", 2)
        with section():
            pass
        assert cache.set("t", "k", 3)
        assert cache.get("t", "k") == 3
