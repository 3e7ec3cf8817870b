"""The background loop of blocking callers: calls, requests, their ends, and the end of the loop."""

import asyncio
import contextvars
import gc
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from magnus_cache._engine.runtime.portal import THREAD_NAME, Portal, Waiter
from magnus_cache.errors import CacheClosedError, CacheDeadlockError
from tests.support.inside import cancel_call, portal_work, pretend_woken, session_of
from tests.support.programs import run_python
from tests.support.wait import wait_until

LONG = 30.0
"""Seconds that no wait in here comes near, unless something hangs."""


def portal_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


@pytest.fixture
def portal() -> Iterator[Portal]:
    assert not portal_threads()
    portal = Portal()
    yield portal
    portal.close()
    assert not portal_threads()
    assert not portal.running


@pytest.fixture
def uvloop_policy() -> Iterator[None]:
    uvloop = pytest.importorskip("uvloop")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    yield
    asyncio.set_event_loop_policy(None)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def forever() -> None:
    await asyncio.Event().wait()


def answer(value: Callable[[], Any]) -> Callable[[Waiter[Any]], None]:
    """Return a request that is answered at once with what `value` returns on the loop."""
    return lambda waiter: waiter.set_result(value())


class Hanging:
    """A coroutine function that reports its begin and its cancellation."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await forever()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


# -- calls --------------------------------------------------------------------------------------------------------


def test_a_call_returns_what_the_coroutine_returns(portal: Portal) -> None:
    assert (portal.loop, portal.running) == (None, False)
    assert portal.call(double, 21) == 42
    assert portal.running
    assert portal.loop is not None
    (thread,) = portal_threads()
    assert thread.daemon


@pytest.mark.filterwarnings("ignore:.*event_loop_policy:DeprecationWarning")  # Python 3.14
def test_a_call_on_uvloop(uvloop_policy: None, portal: Portal) -> None:
    assert portal.call(double, 21) == 42
    assert type(portal.loop).__module__.startswith("uvloop")
    assert portal.request(answer(lambda: 7)) == 7


def test_calls_in_debug_mode(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    assert portal.call(double, 21) == 42
    assert portal.loop is not None
    assert portal.loop.get_debug()
    assert portal.request(answer(lambda: 7)) == 7


def test_racing_first_calls_start_one_thread(portal: Portal) -> None:
    gate = threading.Barrier(50)

    def first_call(number: int) -> tuple[int, int]:
        gate.wait(LONG)
        return portal.call(double, number), len(portal_threads())

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(first_call, range(50))) == [(2 * number, 1) for number in range(50)]


def test_a_first_call_that_is_overtaken_starts_no_second_thread(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may have started the loop since this one looked; connections belong to one loop."""
    overtaken: list[int] = []

    def check_waiting() -> None:
        if not overtaken:
            overtaken.append(0)
            other = threading.Thread(target=lambda: overtaken.append(portal.call(double, 1)))
            other.start()
            other.join(LONG)

    monkeypatch.setattr("magnus_cache._engine.runtime.portal.check_waiting", check_waiting)
    assert portal.call(double, 2) == 4
    assert overtaken == [0, 2]
    assert len(portal_threads()) == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_errors_reach_the_caller_and_spare_the_loop(portal: Portal, kind: type[BaseException]) -> None:
    async def broken_loader() -> None:
        await asyncio.sleep(0)
        raise error

    error = kind("broken")
    with pytest.raises(kind) as caught:
        portal.call(broken_loader)
    assert caught.value is error
    assert "broken_loader" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    thread = portal_threads()
    assert portal.call(double, 1) == 2
    assert portal_threads() == thread


def test_an_error_is_freed_with_its_last_reference(portal: Portal) -> None:
    class Failure(Exception):
        pass

    async def fail() -> None:
        raise Failure

    gc.disable()
    try:
        with pytest.raises(Failure) as caught:
            portal.call(fail)
        reference = weakref.ref(caught.value)
        del caught
        portal.call(double, 1)  # the loop is done with the first call by now
        assert reference() is None
    finally:
        gc.enable()


def test_a_function_that_is_no_coroutine_function_raises_in_the_caller(portal: Portal) -> None:
    def not_async() -> Any:
        return 3

    with pytest.raises(TypeError, match="await"):
        portal.call(not_async)
    with pytest.raises(ZeroDivisionError):
        portal.call(lambda: 1 / 0)  # type: ignore[arg-type,return-value]  # raises before there is an awaitable
    assert portal.call(double, 1) == 2


def test_the_callers_context_is_copied(portal: Portal) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def look() -> str:
        seen = variable.get()
        variable.set("changed by the call")
        return seen

    variable.set("caller's")
    assert portal.call(look) == "caller's"
    assert variable.get() == "caller's"


def test_shared_work_does_not_run_in_the_context_of_whoever_woke_the_loop(portal: Portal) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("caller's")
    assert portal.request(answer(lambda: variable.get())) == "none"


def test_a_call_from_its_own_thread_raises(portal: Portal) -> None:
    async def call_again() -> int:
        return portal.call(double, 1)

    with pytest.raises(CacheDeadlockError, match="aio"):
        portal.call(call_again)
    with pytest.raises(CacheDeadlockError, match="aio"):
        portal.request(answer(lambda: portal.request(answer(lambda: 1))))

    other = Portal()
    other.call(double, 1)

    async def close_other_from_inside() -> None:
        other.close()

    with pytest.raises(CacheDeadlockError):
        other.call(close_other_from_inside)
    other.close()


@pytest.mark.anyio
async def test_a_call_from_another_running_loop(portal: Portal) -> None:
    assert portal.call(double, 2) == 4
    assert await asyncio.to_thread(portal.call, double, 3) == 6


def test_a_worker_thread_of_the_loop_may_call(portal: Portal) -> None:
    async def through_a_thread() -> int:
        return await asyncio.to_thread(portal.call, double, 4)

    assert portal.call(through_a_thread) == 8


def test_many_threads_lose_no_wake(portal: Portal) -> None:
    """Each answer is awaited before the next call: one lost wake would stop the test."""

    def work(seed: int) -> int:
        total = 0
        for number in range(300):
            total += portal.call(double, number)
            total += portal.request(answer(lambda: 1))
        return total

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, range(16))) == [sum(2 * n + 1 for n in range(300))] * 16
    finally:
        sys.setswitchinterval(switch)


def test_one_wake_serves_all_that_has_come(portal: Portal) -> None:
    portal.call(double, 1)
    assert portal.loop is not None
    held, go = threading.Event(), threading.Event()
    wakes: list[Any] = []
    ran: list[int] = []

    def hold() -> None:
        held.set()
        assert go.wait(LONG)

    portal.submit(hold)
    assert held.wait(LONG)
    original = portal.loop.call_soon_threadsafe

    def counting(*args: Any, **options: Any) -> asyncio.Handle:
        wakes.append(args)
        return original(*args, **options)

    portal.loop.call_soon_threadsafe = counting  # type: ignore[method-assign,assignment]  # an instance's own, for this test
    for number in range(100):
        portal.submit(ran.append, number)
    go.set()
    portal.call(double, 1)
    assert ran == list(range(100))
    assert len(wakes) <= 2


# -- giving up ----------------------------------------------------------------------------------------------------


def test_a_timeout_cancels_the_coroutine(portal: Portal) -> None:
    hanging = Hanging()
    with pytest.raises(TimeoutError, match=r"0\.3 seconds"):
        portal.call(hanging, timeout=0.3)
    assert hanging.cancelled.wait(LONG)
    wait_until(lambda: not portal_work(portal)["tasks"], LONG)
    assert not portal_work(portal)["waiters"]


def test_an_interrupt_of_the_waiting_thread_cancels_the_coroutine(portal: Portal) -> None:
    hanging = Hanging()

    interrupted = threading.Event()

    def once(*_: object) -> None:
        # A second one, on a machine that stood still for a while, must not come after the test.
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        assert hanging.begun.wait(LONG)
        # Again if need be: a signal between Python's last look for one and the wait itself does not end the wait.
        while not interrupted.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            interrupted.wait(5)

    before = signal.signal(signal.SIGINT, once)
    helper = threading.Thread(target=interrupt)
    helper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            portal.call(hanging)
        helper.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert hanging.cancelled.wait(LONG)
    assert portal.call(double, 1) == 2


def test_a_call_that_timed_out_before_it_began_never_begins(portal: Portal) -> None:
    portal.call(double, 1)
    go = threading.Event()
    hanging = Hanging()
    portal.submit(go.wait, LONG)
    with pytest.raises(TimeoutError):
        portal.call(hanging, timeout=0.01)
    go.set()
    portal.call(double, 1)
    assert not hanging.begun.is_set()


def test_a_call_cancelled_before_its_first_step_is_forgotten(portal: Portal) -> None:
    portal.call(double, 1)
    session = session_of(portal)
    waiter: Waiter[None] = Waiter()
    hanging = Hanging()

    def begin_and_cancel() -> None:
        session.start_task(waiter, hanging, (), contextvars.copy_context())
        cancel_call(session, waiter)

    portal.submit(begin_and_cancel)
    wait_until(lambda: portal.call(double, 1) == 2 and not portal_work(portal)["tasks"], LONG)
    assert not hanging.begun.is_set()


# -- requests -----------------------------------------------------------------------------------------------------


def test_a_request_is_answered_at_once_or_later(portal: Portal) -> None:
    assert portal.request(answer(lambda: "at once")) == "at once"

    def later(waiter: Waiter[str]) -> None:
        asyncio.get_running_loop().call_later(0.001, waiter.set_result, "later")

    assert portal.request(later) == "later"


def test_a_request_may_fail(portal: Portal) -> None:
    def refuse(waiter: Waiter[None]) -> None:
        waiter.set_exception(LookupError("told"))

    def fail(waiter: Waiter[None]) -> None:
        raise LookupError("raised")

    with pytest.raises(LookupError, match="told"):
        portal.request(refuse)
    with pytest.raises(LookupError, match="raised"):
        portal.request(fail)


def test_a_late_answer_is_ignored(portal: Portal) -> None:
    waiters: list[Waiter[str]] = []
    with pytest.raises(TimeoutError):
        portal.request(waiters.append, timeout=0.01)
    (waiter,) = waiters
    assert waiter.done()
    portal.submit(waiter.set_result, "late")
    portal.submit(waiter.set_exception, LookupError())
    assert portal.call(double, 1) == 2


def test_the_first_answer_counts() -> None:
    waiter: Waiter[int] = Waiter()
    assert not waiter.done()
    waiter.set_result(1)
    waiter.set_result(2)
    waiter.set_exception(LookupError())
    assert waiter.done()
    assert waiter.wait(LONG) == 1


def test_a_failing_callback_harms_no_other(portal: Portal) -> None:
    seen: list[dict[str, Any]] = []

    async def listen() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    portal.call(listen)
    portal.submit(lambda: 1 / 0)
    assert portal.call(double, 1) == 2
    assert isinstance(seen[0]["exception"], ZeroDivisionError)


# -- the end ------------------------------------------------------------------------------------------------------


def test_close_without_a_call() -> None:
    portal = Portal()
    portal.close()
    portal.close()
    with pytest.raises(CacheClosedError):
        portal.call(double, 1)
    with pytest.raises(CacheClosedError):
        portal.submit(print)
    assert not portal_threads()


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["close", "aclose"])
async def test_close_frees_everybody_and_leaves_nothing(way: str) -> None:
    portal = Portal()
    hanging = Hanging()
    waiters: list[Waiter[None]] = []
    ran: list[int] = []
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    portal.call(double, 1)
    loop = portal.loop
    assert loop is not None
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(portal.call, hanging)
        request = pool.submit(portal.request, waiters.append)
        wait_until(lambda: hanging.begun.is_set() and bool(waiters), LONG)
        portal.submit(ran.append, 1)
        if way == "close":
            portal.close()
        else:
            await portal.aclose()
        assert isinstance(call.exception(LONG), CacheClosedError)
        assert isinstance(request.exception(LONG), CacheClosedError)
    assert hanging.cancelled.is_set()
    assert ran == [1]
    assert loop.is_closed()
    assert not portal_threads()
    if files:
        assert len(os.listdir("/proc/self/fd")) == files
    await portal.aclose()
    portal.close()
    with pytest.raises(CacheClosedError):
        portal.call(double, 1)


def test_closing_under_load_leaves_no_caller_hanging() -> None:
    for attempt in range(20):
        portal = Portal()
        gate = threading.Barrier(9)

        def work(portal: Portal = portal, gate: threading.Barrier = gate) -> int:
            gate.wait(LONG)
            done = 0
            try:
                while True:
                    done += portal.call(double, 1) + portal.request(answer(lambda: 1))
            except CacheClosedError:
                return done

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(work) for _ in range(8)]
            gate.wait(LONG)
            if attempt % 2:
                portal.call(double, 1)
            portal.close()
            assert all(future.result(LONG) >= 0 for future in futures)
    assert not portal_threads()


def test_a_call_that_comes_between_the_last_wake_and_the_end_is_refused(portal: Portal) -> None:
    """It found the loop running and a wake on its way, but that wake was never served."""
    portal.call(double, 1)
    session = session_of(portal)
    portal.close()
    pretend_woken(session)
    waiter: Waiter[int] = Waiter()
    with pytest.raises(CacheClosedError):
        session.call(waiter, waiter.set_result, (1,), LONG)


def test_close_says_when_a_task_does_not_end() -> None:
    portal = Portal()
    begun, release = threading.Event(), threading.Event()

    async def stubborn() -> None:
        begun.set()
        try:
            await forever()
        finally:
            release.wait(LONG)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(portal.call, stubborn)
        assert begun.wait(LONG)
        with pytest.raises(TimeoutError, match="still runs"):
            portal.close(0.01)
        release.set()
        assert isinstance(call.exception(LONG), CacheClosedError)
    portal.close()
    assert not portal_threads()


@pytest.mark.anyio
async def test_a_cancelled_aclose_can_be_repeated() -> None:
    portal = Portal()
    go = threading.Event()
    portal.submit(go.wait, LONG)
    closing = asyncio.create_task(portal.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go.set()
    await portal.aclose()
    assert not portal_threads()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_somebody_ended_is_replaced(portal: Portal) -> None:
    """A SystemExit in a task that is none of ours tears the loop down; nobody hangs, and the next call works."""

    async def bomb() -> None:
        raise SystemExit

    async def slow_to_end() -> None:
        try:
            await forever()
        finally:
            await asyncio.to_thread(release.wait, LONG)

    async def start_both() -> None:
        tasks.extend((asyncio.create_task(slow_to_end()), asyncio.create_task(bomb())))
        await forever()

    tasks: list[asyncio.Task[None]] = []
    release = threading.Event()
    with pytest.raises(CacheClosedError):
        portal.call(start_both)
    assert isinstance(tasks[1].exception(), SystemExit)
    assert portal.call(double, 2) == 4
    assert len(portal_threads()) == 2
    with pytest.raises(TimeoutError):  # it answers for the old thread, too
        portal.close(0.01)
    release.set()


def test_a_thread_that_cannot_start_is_tried_again(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            portal.call(double, 1)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", lambda: 1 / 0)
        patch.setattr(asyncio.events, "new_event_loop", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            portal.call(double, 1)
    assert portal.call(double, 2) == 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
def test_a_forked_child_starts_a_thread_of_its_own(portal: Portal) -> None:
    """Also when the fork comes while other threads' calls are under way."""
    hanging = Hanging()

    def call() -> None:
        with pytest.raises(CacheClosedError):
            portal.call(hanging)

    caller = threading.Thread(target=call)
    caller.start()
    assert hanging.begun.wait(LONG)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            portal.reset()
            answers = [portal.call(double, 21), portal.request(answer(lambda: 7))]
            portal.close()
            gc.collect()
            os.write(writer, repr(answers).encode())
        except BaseException as error:  # the parent reports it
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as found:
        assert found.read() == "[42, 7]"
    os.waitpid(child, 0)
    assert portal.call(double, 1) == 2  # the parent's loop is as it was
    portal.close()
    caller.join()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_script_that_never_closes_ends_in_silence(busy: bool) -> None:
    """Neither a hang nor a warning at exit, and `atexit` functions can still use the loop."""
    script = f"""
import asyncio, atexit
from magnus_cache._engine.runtime.portal import Portal
portal = Portal()
async def answer(): return "answer"
async def start():
    async def run_on():
        while True: await asyncio.sleep(0.001)
    portal.task = asyncio.create_task(run_on())
atexit.register(lambda: print(portal.call(answer)))
portal.call(answer)
if {busy}: portal.call(start)
"""
    done = run_python("-X", "dev", "-W", "error", "-c", script, patience=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "")
