"""What a program prints that ends, or closes an event loop, without closing the cache: nothing."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

import magnus_cache
from magnus_cache._engine.loading import batch as batches
from magnus_cache._engine.runtime import loop_end
from magnus_cache._engine.store import writes
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.conftest import emptied
from tests.support.inside import kept_at_exit, load_tasks, loads_by_key, pipeline_of, waits_for_a_lease, wires_of
from tests.support.programs import ROOT, run_python
from tests.support.wait import wait_until, wait_until_async

MODES = {"plain": [], "strict": ["-X", "dev", "-W", "error"]}
"""Options of Python: as it is, and with asyncio's debug mode, where each warning is an error."""


@pytest.fixture(params=["valkey"])
def server(request: pytest.FixtureRequest, running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """One kind of server will do."""
    return emptied(running(request.param))


BEGIN = """
import asyncio, os, sys, threading, time, warnings
from magnus_cache import get_async_cache_manager, get_cache_manager, AsyncCacheManager, CacheManager

async def use(cache):
    await cache.set("t", "k", 1)
    assert await cache.get("t", "nothing") is None
    assert cache.redis_available
"""


def start(script: str, server: Any, mode: str = "plain") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *MODES[mode], "-c", BEGIN + script],
        # A signal is for the child alone.
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A loaded machine is no outage.
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": server.url,
             "MAGNUS_CACHE_PREFIX": "own", "MAGNUS_CACHE_OP_TIMEOUT": "10"},
    )  # fmt: skip


def noise(stderr: str) -> str:
    """Return what a program printed, but for asyncio's note that a step took its time, as on a busy machine."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith("Executing <"))


def run(script: str, server: Any, mode: str = "plain") -> str:
    """Run a script to its end, which has to be a good one, and return its noise."""
    with start(script, server, mode) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n"), err
    return noise(err)


ENDS = {
    "blocking": """
cache = get_cache_manager()
cache.set("t", "k", 1)
print("done")
""",
    "blocking, idle": """
cache = CacheManager()
cache.set("t", "k", 1)
time.sleep(1.2)
print("done")
""",
    "decorated": """
cache = get_cache_manager()
@cache.cached("t")
def double(number):
    return 2 * number
assert double(2) == double(2) == 4
print("done")
""",
    "sys.exit": """
cache = get_cache_manager()
cache.set("t", "k", 1)
print("done")
sys.exit(0)
""",
    "sys.exit in a coroutine": """
cache = get_async_cache_manager()
async def main():
    await use(cache)
    print("done")
    sys.exit(0)
asyncio.run(main())
""",
    "asyncio.run": """
cache = get_async_cache_manager()
for _ in range(3):
    asyncio.run(use(cache))
print("done")
""",
    "busy daemon threads": """
cache = get_cache_manager()
used = threading.Barrier(5)
def work(number):
    for step in range(1_000_000_000):
        cache.get("t", f"{number}-{step}")
        if step == 5:
            used.wait()
for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
used.wait()
print("done")
""",
    "a loop in a daemon thread": """
cache = get_async_cache_manager()
used = threading.Event()
async def serve():
    await use(cache)
    used.set()
    await asyncio.Event().wait()
threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
used.wait()
print("done")
""",
    "atexit": """
import atexit
cache = get_cache_manager()
cache.set("t", "k", 1)
atexit.register(lambda: print("done" if cache.set("t", "l", 1) and cache.get("t", "m") is None else "not stored"))
""",
    "without a timer for its connection": """
from tests.support.inside import without_timers
cache = get_cache_manager()
cache.set("t", "k", 1)
# It may have none at any time, such as between two that follow each other.
without_timers(cache._engine.state.portal.loop)
print("done")
""",
    "loops closed by hand": """
cache = get_async_cache_manager()
for _ in range(3):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use(cache))
    loop.close()
print("done")
""",
    "a load that goes on in a loop closed by hand": """
cache = get_async_cache_manager()
async def load():
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
async def main():
    try:
        await cache.get_or_set("t", "k", load, hard_timeout=0.3, grace=5)
    except TimeoutError:
        print("done")
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
""",
    "threads with loops closed by hand": """
cache = get_async_cache_manager()
def work():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use(cache))
    loop.close()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
""",
    "a job in the background": """
cache = get_cache_manager()
@cache.cached("t")
def double(number):
    loaded.append(number)
    return 2 * number
loaded = []
cache.keep_warm(double, [1, 2], every=1)
while len(loaded) < 4:
    time.sleep(0.01)
print("done")
""",
    "jobs of loops that end": """
cache = get_async_cache_manager()
@cache.cached("t")
async def double(number):
    loaded.add(number)
    return 2 * number
async def main(key):
    cache.keep_warm(double, [key])
    while key not in loaded:
        await asyncio.sleep(0.01)
loaded = set()
asyncio.run(main(1))
loop = asyncio.new_event_loop()
loop.run_until_complete(main(2))
loop.close()
print("done")
""",
    "forked children": """
cache = get_cache_manager()
cache.set("t", "k", 1)
asyncio.run(use(cache.aio))
warnings.simplefilter("ignore", DeprecationWarning)
for used in (False, True):
    child = os.fork()
    if not child:
        if used:
            assert cache.set("t", "l", 1)
            asyncio.run(use(cache.aio))
        # As a worker of gunicorn does: not by os._exit.
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("done")
""",
    "multiprocessing": """
import multiprocessing
cache = get_cache_manager()
cache.set("t", "k", 1)
warnings.simplefilter("ignore", DeprecationWarning)
def work():
    assert cache.set("t", "l", 1)
children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
for child in children:
    child.start()
for child in children:
    child.join()
    assert child.exitcode == 0
print("done")
""",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_does_not_close_the_cache_ends_quietly(end: str, mode: str, server: EmbeddedServer) -> None:
    assert run(ENDS[end], server, mode) == ""


UVLOOP = {
    "uvloop.run": """
uvloop.run(use(cache))
uvloop.run(use(cache))
""",
    "a background loop of uvloop": """
warnings.simplefilter("ignore", DeprecationWarning)
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
cache.sync.set("t", "k", 1)
""",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", UVLOOP)
def test_a_program_with_uvloop_ends_quietly(end: str, mode: str, server: EmbeddedServer) -> None:
    script = "import uvloop\ncache = get_async_cache_manager()\n" + UVLOOP[end] + "print('done')"
    assert run(script, server, mode) == ""


def test_a_loop_of_uvloop_closed_by_hand(server: EmbeddedServer) -> None:
    script = """
import uvloop
cache = get_async_cache_manager()
for _ in range(3):
    loop = uvloop.new_event_loop()
    loop.run_until_complete(use(cache))
    loop.close()
print("done")
"""
    assert run(script, server) == ""


def test_a_loop_of_uvloop_closed_by_hand_warns_of_the_transport_alone(server: EmbeddedServer) -> None:
    """uvloop warns of each transport that is open when its loop closes, and lets nobody close one from then on.

    With warnings as errors, its `close` fails. A program that wants none of that closes the cache first.
    """
    script = """
import uvloop
cache = get_async_cache_manager()
def warned(*ending):
    loop = uvloop.new_event_loop()
    loop.run_until_complete(use(cache))
    for step in ending:
        loop.run_until_complete(step())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
    return [str(warning.message).partition(" closed=")[0] for warning in caught]
assert warned() == ["unclosed resource <TCPTransport"]
assert warned(cache.aclose) == []
print("done")
"""
    assert run(script, server) == ""


def test_a_loop_that_is_never_closed(server: EmbeddedServer) -> None:
    """Python itself warns of the loop where it shows such warnings; asyncio has nothing to say of our tasks."""
    script = """
cache = get_async_cache_manager()
loop = asyncio.new_event_loop()
loop.run_until_complete(use(cache))
print("done")
"""
    assert run(script, server) == ""


SPAWNED = """
import multiprocessing, sys
from magnus_cache import CacheManager

cache = CacheManager()

@cache.cached("numbers", ttl=60)
def double(number):
    return 2 * number

def child(answers):
    answers.put(double(2))

if __name__ == "__main__":
    double(2)
    context = multiprocessing.get_context(sys.argv[1])
    answers = context.Queue()
    for _ in range(3):
        process = context.Process(target=child, args=(answers,))
        process.start()
        assert answers.get(timeout=60) == 4
        process.join()
        assert process.exitcode == 0
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("mode", MODES)
def test_children_that_do_not_close_the_cache_end_quietly(
    method: str, mode: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = run_python(
        *MODES[mode], str(script), method, patience=100,
        REDIS_URL=server.url, MAGNUS_CACHE_PREFIX="own", MAGNUS_CACHE_OP_TIMEOUT="10",
    )  # fmt: skip
    assert (done.returncode, noise(done.stderr)) == (0, "")


@pytest.mark.parametrize("face", ["blocking", "async"])
def test_ctrl_c_says_what_python_says(face: str, server: EmbeddedServer) -> None:
    script = {
        "blocking": "get_cache_manager().set('t', 'k', 1); print('ready', flush=True); time.sleep(60)",
        "async": """
cache = get_async_cache_manager()
async def main():
    await use(cache)
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
""",
    }[face]
    with start(script, server) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert "magnus-cache" not in err
    assert err.count("Traceback") == err.count("During handling") + 1


def test_an_uncaught_error_is_all_that_is_printed(server: EmbeddedServer) -> None:
    with start("get_cache_manager().set('t', 'k', 1)\nraise LookupError('mine')", server) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[0] == "Traceback (most recent call last):"
    assert err.splitlines()[-1] == "LookupError: mine"
    assert err.count("Traceback") == 1


# -- what a loop that is closed by hand leaves ----------------------------------------------------------------------


@pytest.fixture
def by_hand() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def connections(raw: redis.Redis) -> set[str]:
    """Return the numbers of the server's connections: those that others had may end at any time."""
    return {client["id"] for client in raw.client_list()}


def expect_closed_with(
    loop: asyncio.AbstractEventLoop, cache: magnus_cache.AsyncCacheManager, raw: redis.Redis
) -> None:
    """Use a cache on a loop, close the loop, and check that its connection is closed as well."""
    before = connections(raw)
    loop.run_until_complete(cache.set("t", "k", 1))
    ours = connections(raw) - before
    assert len(ours) == 1
    loop.close()
    wait_until(lambda: not ours & connections(raw))
    cache.sync.close()


def test_a_loop_closed_by_hand_leaves_no_connection(
    raw: redis.Redis, url: str, by_hand: asyncio.AbstractEventLoop
) -> None:
    cache = magnus_cache.AsyncCacheManager(redis_url=url, op_timeout=10)
    expect_closed_with(by_hand, cache, raw)


def test_at_the_end_of_the_program_an_idle_loop_lets_go(
    raw: redis.Redis, url: str, by_hand: asyncio.AbstractEventLoop
) -> None:
    cache = magnus_cache.AsyncCacheManager(redis_url=url, op_timeout=10)
    before = connections(raw)
    by_hand.run_until_complete(cache.set("t", "k", 1))
    ours = connections(raw) - before
    assert len(ours) == 1
    loop_end._at_exit()
    wait_until(lambda: not ours & connections(raw))
    # What is still called, such as an atexit handler that was registered before, begins anew.
    assert by_hand.run_until_complete(cache.get("t", "k")) == 1
    assert by_hand.run_until_complete(cache.set("t", "k", 2))
    again = connections(raw) - before - ours
    assert len(again) == 1
    by_hand.close()
    wait_until(lambda: not again & connections(raw))
    cache.sync.close()


def test_at_the_end_of_the_program_a_loop_that_runs_keeps_its_connection(url: str) -> None:
    """Its thread stops where it is: what the collector would find then has nobody left to end it."""
    with magnus_cache.CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        loop = cache._engine.state.portal.loop
        assert loop is not None
        loop_end._at_exit()
        kept = kept_at_exit(loop)
        assert "magnus-cache-wire" in [task.get_name() for task in kept]
        assert cache.set("t", "k", 2)
        kept.clear()


def test_timers_that_are_cancelled_end_nothing_on_a_running_loop(url: str) -> None:
    async def use() -> None:
        async with magnus_cache.AsyncCacheManager(redis_url=url) as cache:
            await cache.set("t", "k", 1)
            loop: Any = asyncio.get_running_loop()
            for timer in list(loop._scheduled):
                timer.cancel()
            wire = cache._engine.state.topology.connection(b"")
            assert wire is not None
            assert wire.up
            assert await cache.set("t", "k", 2)

    asyncio.run(use())


def test_a_loop_with_tls_closed_by_hand_leaves_no_connection(
    raw: redis.Redis, tls_proxy: Proxy, authority_file: Path, by_hand: asyncio.AbstractEventLoop
) -> None:
    cache = magnus_cache.AsyncCacheManager(
        redis_url=tls_proxy.url, redis_ssl_ca_certs=str(authority_file), op_timeout=10
    )
    expect_closed_with(by_hand, cache, raw)


def test_a_load_on_a_loop_closed_by_hand_leaves_its_key_free(
    raw: redis.Redis, url: str, by_hand: asyncio.AbstractEventLoop
) -> None:
    """Its lease is given back through the next connection, for those who wait for it elsewhere."""
    cache = magnus_cache.AsyncCacheManager(redis_url=url, lease=100, wait_timeout=100)
    begun: list[int] = []

    async def hang() -> int:
        begun.append(1)
        await asyncio.Event().wait()
        return 1

    async def load() -> None:
        with pytest.raises(TimeoutError):
            await cache.get_or_set("t", "k", hang, hard_timeout=0.3)

    by_hand.run_until_complete(load())
    assert begun == [1]
    assert raw.keys("{magnus*")
    by_hand.close()
    assert not load_tasks(cache)
    assert not loads_by_key(cache)
    # No waiting for a load that will not end, nor for its lease.
    before = time.monotonic()
    assert cache.sync.get_or_set("t", "k", lambda: 2) == 2
    assert time.monotonic() - before < 30
    with magnus_cache.CacheManager(redis_url=url) as other:
        assert other.get("t", "k") == 2
    cache.sync.close()


def test_those_who_wait_elsewhere_for_a_load_on_a_loop_closed_by_hand_load_themselves(
    url: str, by_hand: asyncio.AbstractEventLoop
) -> None:
    cache = magnus_cache.AsyncCacheManager(redis_url=url, wait_timeout=60)
    begun = threading.Event()

    async def load() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            # Not possible any more. That is no error of the load.
            await asyncio.sleep(0)
        return 1

    async def serve() -> None:
        task = asyncio.create_task(cache.get_or_set("t", "k", load))
        await wait_until_async(lambda: cache._engine.state.flights.joined == 1)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that one is the caller's
        kept.append(task)

    kept: list[asyncio.Task[int]] = []
    thread = threading.Thread(target=lambda: (by_hand.run_until_complete(serve()), by_hand.close()))
    thread.start()
    assert begun.wait(10)
    before = time.monotonic()
    assert cache.sync.get_or_set("t", "k", lambda: 2) == 2
    assert time.monotonic() - before < 30
    thread.join()
    cache.sync.close()


async def left_alone(call: Callable[[], Any], until: Callable[[], bool], tasks: list[Any]) -> None:
    """Begin a call of the program's own, whose end nobody sees to."""
    tasks.append(asyncio.create_task(call()))
    # What asyncio says of that task is the program's own.
    tasks[-1]._log_destroy_pending = False
    await wait_until_async(until)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the collector could not raise."""
    # What is left of other tests.
    gc.collect()
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append(f"{what.object!r}: {what.exc_value!r}"))
    return found


@pytest.mark.parametrize(
    "state", ["loading", "waiting for another process", "loading what another gave up", "about to load"]
)
def test_a_batch_on_a_loop_closed_by_hand_leaves_its_keys_free(
    url: str, by_hand: asyncio.AbstractEventLoop, state: str, unraisable: list[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its leases are given back through the next connection, and its tasks end without a word."""
    cache = magnus_cache.AsyncCacheManager(redis_url=url, lease=100, wait_timeout=100)
    other = magnus_cache.CacheManager(redis_url=url, lease=100, wait_timeout=100)
    begun, go, tasks = threading.Event(), threading.Event(), list[Any]()
    taken_over, threads = threading.Event(), []

    async def load(keys: list[str]) -> dict[str, int]:
        begun.set()
        if "k" in keys:
            taken_over.set()
        await asyncio.Event().wait()
        return {}

    def load_elsewhere() -> int:
        begun.set()
        go.wait(60)
        if state == "loading what another gave up":
            raise LookupError
        return 1

    def ask_elsewhere() -> None:
        with contextlib.suppress(LookupError):
            other.get_or_set("t", "k", load_elsewhere)

    def is_waiting() -> bool:
        return len(leases) == 1 and waits_for_a_lease(cache)

    def is_taken_over() -> bool:
        if is_waiting():
            go.set()
        return taken_over.is_set()

    if state == "about to load":
        monkeypatch.setattr(batches.Batch, "_start", lambda _: begun.set())
    if "another" in state:
        threads.append(threading.Thread(target=ask_elsewhere))
        threads[0].start()
        assert begun.wait(10)
    leases = cache._engine.state.leases
    until = is_taken_over if "gave up" in state else is_waiting if threads else begun.is_set
    by_hand.run_until_complete(left_alone(lambda: cache.get_or_set_many("t", ["k", "l"], load), until, tasks))
    by_hand.close()
    assert not load_tasks(cache)
    assert not loads_by_key(cache)
    assert not len(leases)
    tasks.clear()
    gc.collect()
    assert unraisable == []
    assert caplog.messages == []
    monkeypatch.undo()
    go.set()
    before = time.monotonic()
    assert cache.sync.get_or_set_many("t", ["k", "l"], lambda keys: dict.fromkeys(keys, 1)) == {"k": 1, "l": 1}
    assert time.monotonic() - before < 30
    for thread in threads:
        thread.join()
    other.close()
    cache.sync.close()


PACKED: Final = magnus_cache.Namespace("packed", compress=True)
"""Its values are written one by one."""

SILENT: dict[str, Callable[[magnus_cache.AsyncCacheManager], Any]] = {
    "get": lambda cache: cache.get("t", "k"),
    "set": lambda cache: cache.set("t", "k", 1),
    "load": lambda cache: cache.get_or_set("t", "k", lambda: 1),
    "get many": lambda cache: cache.get_many("t", ["k", "l"]),
    "set many": lambda cache: cache.set_many("t", {"k": 1, "l": 2}),
    "set many, packed": lambda cache: cache.set_many(PACKED, {"k": 1, "l": 2}),
    "load many": lambda cache: cache.get_or_set_many("t", ["k", "l"], lambda keys: dict.fromkeys(keys, 1)),
    "delete many": lambda cache: cache.delete_many("t", ["k", "l"]),
}


@pytest.mark.parametrize("call", SILENT)
def test_calls_that_wait_for_redis_on_a_loop_closed_by_hand_end_quietly(
    private_server: EmbeddedServer, by_hand: asyncio.AbstractEventLoop, call: str, unraisable: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    cache = magnus_cache.AsyncCacheManager(redis_url=private_server.url, op_timeout=60)
    tasks: list[Any] = []
    by_hand.run_until_complete(cache.set("t", "other", 1))
    private_server.pause()
    pipeline = pipeline_of(wires_of(cache)[0])
    by_hand.run_until_complete(left_alone(lambda: SILENT[call](cache), lambda: pipeline.oldest is not None, tasks))
    by_hand.close()
    tasks.clear()
    gc.collect()
    private_server.resume()
    assert unraisable == []
    assert caplog.messages == []
    assert cache.sync.set_many("t", {"k": 1, "l": 1})
    cache.sync.close()


def test_a_connection_on_a_loop_closed_by_hand_ends_for_all_who_wait(
    private_server: EmbeddedServer, by_hand: asyncio.AbstractEventLoop
) -> None:
    """Also for a call that waits for an epoch, which cannot be woken any more: what comes after it is done as well."""
    cache = magnus_cache.AsyncCacheManager(redis_url=private_server.url, op_timeout=60)
    tasks: list[Any] = []
    by_hand.run_until_complete(cache.set("t", "other", 1))
    private_server.pause()
    (wire,) = wires_of(cache)
    pipeline = pipeline_of(wire)
    by_hand.run_until_complete(
        left_alone(lambda: cache.set("unknown", "k", 1), lambda: pipeline.oldest is not None, tasks)
    )
    by_hand.close()
    assert wire.ended.done()
    assert pipeline.pending == 0
    tasks.clear()
    gc.collect()
    private_server.resume()
    cache.sync.close()


def test_writes_of_one_call_that_take_long_on_a_loop_closed_by_hand_end_quietly(
    by_hand: asyncio.AbstractEventLoop, unraisable: list[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Such as that of a value that a thread compresses."""
    begun: list[Any] = []

    async def write(*_: Any) -> bool:
        begun.append(1)
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(writes.Writes, "write", write)
    cache = magnus_cache.AsyncCacheManager(redis_enabled=False)
    tasks: list[Any] = []
    by_hand.run_until_complete(
        left_alone(lambda: cache.set_many("t", {"k": 1, "l": 2}), lambda: len(begun) == 2, tasks)
    )
    by_hand.close()
    tasks.clear()
    gc.collect()
    assert unraisable == []
    assert caplog.messages == []
    cache.sync.close()
