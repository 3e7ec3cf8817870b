"""Ctrl-C, signal handlers, finalizers and the end of the interpreter, wherever they meet a call of the cache."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

import magnus_cache
from magnus_cache import AsyncCacheManager, CacheClosedError, CacheDeadlockError, CacheManager, CacheRecursionError
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.flights.context import current_load
from magnus_cache._engine.flights.flight import LOADING
from magnus_cache._engine.memory import store as memory_module
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.policy.modes import MODE, Mode
from magnus_cache._engine.runtime import critical
from magnus_cache._engine.runtime.portal import THREAD_NAME, Portal
from magnus_cache._engine.runtime.switches import Presence, Switch
from tests.support.inside import blocked_loops, deferred_calls, loads_by_key, portal_work, session_of
from tests.support.interrupts import interrupted
from tests.support.memory import put
from tests.support.programs import run_python
from tests.support.wait import wait_until, wait_until_async

SOAK = "MAGNUS_CACHE_SOAK" in os.environ
LONG = 30.0
SOON = 8.0
"""Seconds that an answer takes at most where nothing waits for something that is not there."""


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "warm", 1)
        yield cache


def places(stride: int) -> range:
    """Return the numbers of places to look at; more than there are."""
    return range(1, 100_000, 1 if SOAK else stride)


def interrupt() -> None:
    raise KeyboardInterrupt


def left_behind(cache: CacheManager) -> list[str]:
    """Return what is still registered though no call is under way."""
    state = cache._state
    session_of(state.portal)
    work = portal_work(state.portal)
    there = {
        "loads": len(state.flights), "reserved places": state.memory.pending, "blocked loops": blocked_loops(state),
        "waiters": work["waiters"], "tasks": work["tasks"], "leases": len(state.leases), "special": state.special,
        "sections": critical.engaged(),
    }  # fmt: skip
    return [f"{name}: {what}" for name, what in there.items() if what]


def load_many(keys: list[Any]) -> dict[Any, Any]:
    return dict.fromkeys(keys, 1)


async def load_async() -> int:
    return 1


CALLS: dict[str, Callable[[CacheManager, str], object]] = {
    "get": lambda cache, key: cache.get("t", key),
    "set": lambda cache, key: cache.set("t", key, 1),
    "delete": lambda cache, key: cache.delete("t", key),
    "load": lambda cache, key: cache.get_or_set("t", key, lambda: 1),
    "load with tags": lambda cache, key: cache.get_or_set("t", key, lambda: 1, tags=("one",)),
    "load by a coroutine": lambda cache, key: cache.get_or_set("t", key, load_async),
    "load under a policy": lambda cache, key: cache.get_or_set("t", key, lambda: 1, grace=60),
    "load in time": lambda cache, key: cache.get_or_set("t", key, load_async, hard_timeout=LONG),
    "many": lambda cache, key: cache.get_or_set_many("t", [key, key + "b"], load_many),
    "clear": lambda cache, _: cache.clear("other"),
    "tags": lambda cache, _: cache.invalidate_tags("two"),
}


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_at_any_place_leaves_nothing_behind(cache: CacheManager, call: str) -> None:
    # The narrowest place so far was one of a batch.
    for place in places(1 if call == "many" else 3):
        key = f"{call.replace(' ', '_')}{place}"
        try:
            with interrupted(place, interrupt) as interruption:
                CALLS[call](cache, key)
        except KeyboardInterrupt:
            pass
        if not interruption.done:
            break
        # Or the next load of the key would be one within itself, until the interrupted one is settled.
        assert LOADING.get() is None, interruption.where
        started = time.monotonic()
        assert cache.get_or_set("t", key, lambda: 2) in (1, 2)
        assert time.monotonic() - started < SOON, f"interrupted in {interruption.where}"
        assert not current_load().has_previous
        wait_until(lambda: not left_behind(cache) or None)
    assert place > 30, "it was interrupted somewhere"


@pytest.mark.parametrize("shared", [False, True])
def test_an_interrupted_reservation_is_taken_back(shared: bool) -> None:
    for place in range(1, 1000):
        memory = LocalCache(4, 1_000_000)
        other = memory.reserve(b"n:1") if shared else None
        with pytest.raises(KeyboardInterrupt), interrupted(place, interrupt) as interruption:
            memory.reserve(b"n:1")
            interrupt()
        if not interruption.done:
            break
        if other is not None:
            assert other.holders == 1, interruption.where
            memory.release(other)
        assert not memory.pending, interruption.where
    assert place > 3


@pytest.mark.parametrize("mode", ["bypass", "disabled"])
def test_ctrl_c_at_any_place_of_a_switch_leaves_it_off(cache: CacheManager, mode: str) -> None:
    for place in range(1, 1000):
        try:
            with interrupted(place, interrupt) as interruption, getattr(cache, mode)():
                assert cache._state.mode.value == mode
        except KeyboardInterrupt:
            pass
        if interruption.where in {
            f"{kind.__name__}.__exit__ line {kind.__exit__.__code__.co_firstlineno}" for kind in (Switch, Presence)
        }:
            # Before its first step: no context manager written in Python can do anything about that.
            MODE.set(Mode.NORMAL)
            cache._state.special.clear()
            cache._state.disabling.clear()
        assert cache._state.mode is Mode.NORMAL, interruption.where
        assert not cache._state.special, interruption.where
        if not interruption.done:
            break
    assert place > 5


def test_those_who_wait_for_an_interrupted_load_are_served(cache: CacheManager) -> None:
    for place in places(3):
        key, got = f"joined{place}", list[int]()
        begun, joined = threading.Event(), threading.Event()

        def ask(key: str = key, got: list[int] = got, begun: threading.Event = begun) -> None:
            assert begun.wait(LONG)
            got.append(cache.get_or_set("t", key, lambda: 2))

        def load(key: str = key, begun: threading.Event = begun, joined: threading.Event = joined) -> int:
            begun.set()
            name = cache._state.keyspace.value_name(magnus_cache.Namespace("t"), key)
            wait_until(lambda: loads_by_key(cache)[name].waiters)
            joined.set()
            return 1

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            with interrupted(place, interrupt) as interruption:
                cache.get_or_set("t", key, load)
        except KeyboardInterrupt:
            begun.set()
        asking.join(SOON)
        assert not asking.is_alive(), interruption.where
        assert got in ([1], [2])
        if not interruption.done:
            assert joined.is_set()
            break
        wait_until(lambda: not left_behind(cache) or None)


HANDLERS: dict[str, Callable[[CacheManager, str], object]] = {
    "get": lambda cache, _: cache.get("t", "another"),
    "set": lambda cache, _: cache.set("t", "another", 3),
    "delete": lambda cache, _: cache.delete("t", "another"),
    "delete the same": lambda cache, key: cache.delete("t", key),
    "load": lambda cache, key: cache.get_or_set("t", f"another{key}", lambda: 3),
    "load the same": lambda cache, key: cache.get_or_set("t", key, lambda: 3),
    "clear": lambda cache, _: cache.clear("t"),
    "tags": lambda cache, _: cache.invalidate_tags("one"),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", ["get", "set", "load with tags", "load by a coroutine", "many"])
def test_a_handler_that_calls_the_cache_at_any_place_waits_for_nothing(
    cache: CacheManager, call: str, handler: str
) -> None:
    refused = 0
    for place in places(7):
        key = f"{call.replace(' ', '_')}{place}"
        took = 0.0

        def handle(key: str = key) -> None:
            nonlocal took, refused
            started = time.monotonic()
            try:
                HANDLERS[handler](cache, key)
            except (CacheDeadlockError, CacheRecursionError):
                assert handler in ("get", "load", "load the same"), "what only writes is deferred"
                refused += 1
            took = time.monotonic() - started

        with interrupted(place, handle) as interruption:
            CALLS[call](cache, key)
        assert took < SOON, interruption.where
        if not interruption.done:
            break
        wait_until(lambda: not left_behind(cache) or None)
        memory = cache._state.memory
        assert memory.bytes >= 0
    assert place > 30


def test_a_handler_in_the_midst_of_a_wake_makes_its_own() -> None:
    portal = Portal()
    try:
        portal.call(load_async)
        for place in range(1, 10_000):
            with interrupted(place, lambda: portal.call(load_async)) as interruption:
                portal.submit(int)
            if not interruption.done:
                break
        assert place > 5
    finally:
        portal.close()


def test_a_handler_in_the_midst_of_the_start_of_the_loop_does_not_wait_for_it() -> None:
    """There are but a few places, so each of them is looked at."""
    refused = 0

    for place in range(1, 10_000):
        portal = Portal()

        def handle(portal: Portal = portal) -> None:
            nonlocal refused
            try:
                portal.call(load_async)
            except CacheDeadlockError:
                refused += 1

        try:
            with interrupted(place, handle) as interruption:
                portal.call(load_async)
        finally:
            portal.close()
        if not interruption.done:
            break
    assert refused > 2
    assert place > refused + 10


def test_a_handler_finds_the_cache_as_it_starts(url: str) -> None:
    for place in places(9):
        key = f"k{place}"
        with CacheManager(redis_url=url) as cache:

            def handle(cache: CacheManager = cache, key: str = key) -> None:
                cache.delete("t", key)
                try:
                    cache.get_or_set("t", "other", lambda: 1)
                except CacheDeadlockError:
                    pass

            with interrupted(place, handle) as interruption:
                assert cache.get_or_set("t", key, lambda: 1) == 1
            assert cache.set("t", key, 2)
            assert cache.get("t", key) == 2
        if not interruption.done:
            break
    assert place > 30


def test_what_a_handler_deletes_is_gone(cache: CacheManager, raw: redis.Redis) -> None:
    """Also what the interrupted call has read, or is about to keep."""
    for place in places(2):
        key = f"k{place}"
        cache.set("t", key, "old")
        cache._state.memory.reset()

        def handle(key: str = key) -> None:
            cache.delete("t", key)
            assert cache._state.memory.get_untrusted(f"magnus:t:{key}".encode()) is None

        with interrupted(place, handle) as interruption:
            assert cache.get("t", key) in ("old", None)
        if not interruption.done:
            break
        wait_until(lambda key=key: not raw.exists(f"magnus:t:{key}"))  # type: ignore[misc]
        wait_until(lambda: not deferred_calls(cache))
        assert cache.get("t", key) is None, interruption.where
    assert place > 20


def entry(size: int) -> Entry:
    return Entry(None, b"", time.monotonic() + LONG, Trust(time.monotonic() + LONG), size)


@pytest.mark.parametrize("entries", [4, 20_000])
@pytest.mark.parametrize("step", ["put", "put again", "fill", "evict", "clear"])
def test_removals_in_the_midst_of_the_memorys_steps_do_no_harm(entries: int, step: str) -> None:
    for removal in ("invalidate", "clear", "evicted"):
        for place in range(1, 10_000):
            memory = LocalCache(entries, 1_000_000)
            names = [b"n:%d" % number for number in range(4)]
            for name in names[: 2 if step == "put" else 4]:
                put(memory, name, entry(100))
            fill = memory.reserve(b"n:1")

            def remove(memory: LocalCache = memory, removal: str = removal) -> None:
                if removal == "clear":
                    memory.clear(b"n:")
                for name in (b"n:1",) if removal == "invalidate" else (b"n:0", b"n:1", b"n:2"):
                    memory.invalidate(name)

            with interrupted(place, remove) as interruption:
                if step == "fill":
                    memory.fill(fill, entry(200))
                elif step == "put again":
                    put(memory, b"n:1", entry(200))
                elif step == "clear":
                    memory.clear(b"n:")
                else:
                    put(memory, b"n:9", entry(999_000 if step == "evict" else 100))
            memory.release(fill)
            assert not memory.pending
            left = [name for name in (*names, b"n:9") if memory.get_untrusted(name) is not None]
            if step == "fill" and interruption.done and not interruption.where.startswith("LocalCache._collect"):
                assert b"n:1" not in left or memory.get_untrusted(b"n:1").size == 200  # type: ignore[union-attr]
            for name in left:
                memory.invalidate(name)
            memory.sweep()
            assert (len(memory), memory.bytes) == (0, 0), interruption.where
            if not interruption.done:
                break
        assert place > 3


@pytest.mark.parametrize("removal", ["invalidate", "clear"])
@pytest.mark.parametrize("step", ["fill", "replace"])
def test_what_was_invalidated_in_the_midst_of_a_step_is_not_kept(step: str, removal: str) -> None:
    for place in range(1, 10_000):
        memory = LocalCache(4, 1_000_000)
        old = entry(100)
        put(memory, b"n:1", old)
        fill = memory.reserve(b"n:1")

        with interrupted(place, lambda memory=memory: getattr(memory, removal)(b"n:1")) as interruption:  # type: ignore[misc]
            if step == "fill":
                memory.fill(fill, entry(100))
            else:
                memory.replace(b"n:1", old, entry(100))
        if not interruption.done:
            break
        assert memory.get_untrusted(b"n:1") is None, interruption.where
    assert place > 3


@pytest.mark.parametrize(("steps", "sweeps"), [(0, 0), (0, 10), (1, 0), (2, 0), (5, 0)])
def test_a_floor_laid_in_the_midst_of_another_stays(steps: int, sweeps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or the collector would remove all of them here and now, or with the share that it does at once.
    monkeypatch.setattr(memory_module, "_CLEAR_STEPS", steps)
    monkeypatch.setattr(memory_module, "_CLEAR_SHARE", 1)
    for place in range(1, 10_000):
        memory = LocalCache(100, 1_000_000)
        memory.clear(b"a:")
        names = [b"%s:%d" % (space, number) for number in range(3) for space in (b"n", b"m")]
        for name in names:
            put(memory, name, entry(100))

        with interrupted(place, lambda memory=memory: memory.clear(b"m:")) as interruption:  # type: ignore[misc]
            memory.clear(b"n:")
            for _ in range(sweeps):
                memory.sweep(1)
        for _ in range(20):
            memory.sweep(1)
        assert not [name for name in names if name.startswith(b"n") and memory.get_untrusted(name)], interruption.where
        if not interruption.done:
            break
        assert not [name for name in names if memory.get_untrusted(name)], interruption.where
    assert place > 3


def test_a_finalizer_on_the_background_loop_may_invalidate(cache: CacheManager, raw: redis.Redis) -> None:
    cache.set("t", "gone", 1)
    cache.set("t", "tagged", 1, tags=("tag",))

    async def load() -> int:
        assert cache.delete("t", "gone")
        cache.invalidate_tags("tag")
        assert cache._state.memory.get_untrusted(b"magnus:t:gone") is None
        with pytest.raises(CacheDeadlockError, match="aio"):
            cache.set("t", "k", 1)
        return 1

    assert cache.get_or_set("t", "loaded", load) == 1
    wait_until(lambda: not raw.exists("magnus:t:gone"))
    assert cache.get("t", "gone") is None
    assert cache.get("t", "tagged") is None


def test_a_finalizer_on_the_background_thread_before_its_loop_runs(
    cache: CacheManager, url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("t", "k", 1)
    made = asyncio.events.new_event_loop

    def finalized() -> asyncio.AbstractEventLoop:
        if threading.current_thread().name == THREAD_NAME:
            other.delete("t", "k")
            with pytest.raises(CacheDeadlockError):
                other.get("t", "k")
        return made()

    with CacheManager(redis_url=url) as other, monkeypatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", finalized)
        assert other.get("t", "absent") is None
        wait_until(lambda: not raw.exists("magnus:t:k"))


def test_within_a_section_waits_are_refused_and_writes_deferred(cache: CacheManager, raw: redis.Redis) -> None:
    with critical.section():
        assert cache.get("t", "warm") == 1, "a hit waits for nothing"
        for call in (
            lambda: cache.get("t", "k"), lambda: cache.get_or_set("t", "k", lambda: 1),
            lambda: cache.contains("t", "k"), lambda: cache.get_or_set_many("t", ["k"], load_many), cache.close,
        ):  # fmt: skip
            with pytest.raises(CacheDeadlockError, match="signal handler"):
                call()
        assert cache.delete("t", "warm")
        assert cache.get_stats  # closing was refused as a whole
        assert not cache.set("t", "later", 2)
        assert cache.clear("other") == 0
    wait_until(lambda: raw.exists("magnus:t:later") and not raw.exists("magnus:t:warm"))
    assert cache.get("t", "warm") is None
    assert cache.get("t", "later") == 2


def test_what_is_deferred_before_there_is_a_loop_comes_first(url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as other, CacheManager(redis_url=url) as cache:
        other.set("t", "k", 1)
        with critical.section():
            cache.delete("t", "k")
        assert not cache._state.portal.running
        assert raw.exists("magnus:t:k")
        assert cache.get("t", "unrelated") is None
        wait_until(lambda: not raw.exists("magnus:t:k"))


@pytest.mark.anyio
async def test_what_is_deferred_on_a_loop_starts_the_background_loop(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1)
        with critical.section():
            cache.sync.delete("t", "k")
        await wait_until_async(lambda: not raw.exists("magnus:t:k"))
        assert await cache.get("t", "k") is None


def test_while_the_interpreter_ends_nothing_is_waited_for(cache: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.is_finalizing", lambda: True)
        assert cache.get("t", "warm") == 1
        for call in (
            lambda: cache.get("t", "k"), lambda: cache.set("t", "k", 1), lambda: cache.delete("t", "k"),
            lambda: cache.get_or_set("t", "k", lambda: 1), lambda: cache.get_or_set_many("t", ["k"], load_many),
        ):  # fmt: skip
            with pytest.raises(CacheClosedError, match="shutting down"):
                call()
    assert cache.get("t", "k") is None


AT_EXIT = """
import atexit, sys
from magnus_cache import CacheManager
cache = CacheManager(redis_url=sys.argv[1])

class Session:
    def __del__(self):
        cache.delete("t", "k") if cache is not None else None

session = Session()
session.me = session if sys.argv[2] == "cycle" else None
cache.set("t", "k", 1)
atexit.register(lambda: print(cache.get("t", "k"), cache.get_or_set("t", "l", lambda: 2), flush=True))
"""


@pytest.mark.parametrize("how", ["cycle", "plain"])
def test_a_finalizer_at_exit_does_not_hang(url: str, how: str) -> None:
    done = run_python("-c", AT_EXIT, url, how, patience=LONG)
    assert (done.returncode, done.stdout) == (0, "1 2\n"), done.stderr
    assert "Exception ignored in" not in done.stderr or "shutting down" in done.stderr


HAMMER = """
import gc, os, signal, sys
from magnus_cache import CacheManager
cache = CacheManager(redis_url=sys.argv[1])

class Row:
    def __init__(self, number):
        self.number, self.me = number, self

    def __del__(self):
        try:
            cache.delete("rows", self.number)
        except RuntimeError:
            pass

handled = inside = 0

def handler(*_):
    global handled, inside
    if not inside:
        inside = 1
        cache.delete("rows", 1)
        cache.set("signals", handled, 1)
        handled += 1
        inside = 0

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
calls = 0
while handled < 150:
    Row(calls), [[] for _ in range(calls % 40)]
    assert cache.get_or_set("ns", calls % 1000, lambda: calls, ttl=1) is not None
    calls += 1
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()
cache.close()
print("ended")
"""


def test_signals_and_finalizers_in_a_busy_process(url: str) -> None:
    done = run_python("-c", HAMMER, url, patience=100)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
