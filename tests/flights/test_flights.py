"""One load per key across tasks, threads and event loops; what cancellation, failure and shutdown do to it."""

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.flights.flights import Flights
from magnus_cache.errors import CacheClosedError, CacheDeadlockError, CacheRecursionError
from tests.support.wait import wait_until, wait_until_async

KEY = b"magnus:portfolio:user1"
LONG = 30.0
"""Seconds that no wait in here comes near, unless something hangs."""


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # The default executor's threads end with the test runner's loop.
    left = [t for t in threading.enumerate() if t not in before and not t.name.startswith("asyncio_")]
    for thread in left:
        thread.join(5.0)  # its result may have come a moment before its end
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
def flights() -> Iterator[Flights]:
    flights = Flights()
    yield flights
    assert len(flights) == 0
    assert not flights._tasks
    assert not flights._blocked


async def until_async(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0)


def in_thread(function: Callable[[], Any]) -> "Future[Any]":
    """Run in a thread of its own, which nothing else waits for."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # the test looks at it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class Loader:
    """A load that reports its begin and goes on when told."""

    def __init__(self, value: Any = "value", error: BaseException | None = None) -> None:
        self.calls = 0
        self.cancelled = 0
        self.flights: list[Flight] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.value = value
        self.error = error

    def _outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value

    async def load(self, flight: Flight) -> Any:
        self.calls += 1
        self.flights.append(flight)
        self.begun.set()
        try:
            await until_async(self.go.is_set)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._outcome()

    def block(self, flight: Flight) -> Any:
        self.calls += 1
        self.flights.append(flight)
        self.begun.set()
        assert self.go.wait(LONG)
        return self._outcome()


def returns(value: Any) -> Callable[[Flight], Awaitable[Any]]:
    async def load(_: Flight) -> Any:
        return value

    return load


# -- sharing ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_concurrent_tasks_share_one_load(flights: Flights) -> None:
    """Of 20 concurrent requests, one computes."""
    loader = Loader(value=object())
    tasks = [asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG)) for _ in range(20)]
    await until_async(lambda: flights.joined == 19 and loader.begun.is_set())
    assert (len(flights), loader.flights[0].waiter_count) == (1, 20)
    loader.go.set()
    assert {id(value) for value in await asyncio.gather(*tasks)} == {id(loader.value)}
    assert loader.calls == 1
    assert loader.flights[0].done


def test_concurrent_threads_share_one_load(flights: Flights) -> None:
    """For blocking callers."""
    loader = Loader()
    results = [in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG)) for _ in range(20)]
    wait_until(lambda: flights.joined == 19, LONG)
    assert loader.flights[0].waiter_count == 19
    loader.go.set()
    assert [result.result(LONG) for result in results] == ["value"] * 20
    assert loader.calls == 1


@pytest.mark.parametrize("leader", ["task", "thread"])
def test_tasks_of_several_loops_and_threads_share_one_load(flights: Flights, leader: str) -> None:
    loader = Loader()

    async def gathered() -> list[Any]:
        return await asyncio.gather(*(flights.run(KEY, loader.load, wait_timeout=LONG) for _ in range(5)))

    def task() -> Any:
        return asyncio.run(gathered())

    def thread() -> Any:
        return [flights.run_blocking(KEY, loader.block, wait_timeout=LONG)]

    results = [in_thread(task if leader == "task" else thread)]
    assert loader.begun.wait(LONG)
    results += [in_thread(kind) for kind in (task, thread) * 3]
    callers = 3 * 5 + 3 + (5 if leader == "task" else 1)
    wait_until(lambda: flights.joined == callers - 1, LONG)
    loader.go.set()
    assert [value for result in results for value in result.result(LONG)] == ["value"] * callers
    assert loader.calls == 1


def test_stress_threads_tasks_and_loops(flights: Flights) -> None:
    """Rounds of a new key each: every caller has arrived before its load may end, so each key loads exactly once."""
    rounds, loops, tasks, threads = 40, 3, 8, 6
    callers = loops * tasks + threads
    calls: dict[bytes, int] = {}
    gate = threading.Barrier(loops + threads)

    def key(number: int) -> bytes:
        return b"key:%d" % (number // 2 * 2)  # twice in a row: the second load must be a new one

    def count(number: int) -> None:
        calls[b"%d" % number] = calls.get(b"%d" % number, 0) + 1

    def arrived(number: int) -> bool:
        return flights.joined >= (number + 1) * (callers - 1)

    def round_of_loop(number: int, runner: asyncio.Runner) -> None:
        async def load(_: Flight) -> int:
            count(number)
            await until_async(lambda: arrived(number))
            return number

        async def all_tasks() -> list[int]:
            return await asyncio.gather(*(flights.run(key(number), load, wait_timeout=LONG) for _ in range(tasks)))

        assert runner.run(all_tasks()) == [number] * tasks

    def loop_thread() -> None:
        with asyncio.Runner() as runner:
            for number in range(rounds):
                gate.wait(LONG)
                round_of_loop(number, runner)

    def plain_thread() -> None:
        def load(_: Flight) -> int:
            count(number)
            wait_until(lambda: arrived(number), LONG)
            return number

        for number in range(rounds):
            gate.wait(LONG)
            assert flights.run_blocking(key(number), load, wait_timeout=LONG) == number

    with ThreadPoolExecutor(loops + threads) as pool:
        for future in [pool.submit(work) for work in [loop_thread] * loops + [plain_thread] * threads]:
            future.result(2 * LONG)
    assert calls == {b"%d" % number: 1 for number in range(rounds)}
    assert flights.joined == rounds * (callers - 1)


def test_stress_with_cancellation_and_failure(flights: Flights) -> None:
    """At no time do two registered loads of a key run, whatever is cancelled or fails meanwhile."""
    running: dict[bytes, int] = {}
    overlaps: list[bytes] = []
    lock = threading.Lock()

    @contextlib.contextmanager
    def counted(flight: Flight) -> Generator[None]:
        with lock:
            running[flight.key] = running.get(flight.key, 0) + 1
            if running[flight.key] > 1 and not flight.detached:
                overlaps.append(flight.key)
        try:
            yield
        finally:
            with lock:
                running[flight.key] -= 1

    async def load(flight: Flight) -> bytes:
        with counted(flight):
            for _ in range(3):
                await asyncio.sleep(0)
            if hash(flight) % 5 == 0:
                raise LookupError
            return flight.key

    def block(flight: Flight) -> bytes:
        with counted(flight):
            return flight.key

    async def caller(number: int) -> None:
        task = asyncio.create_task(flights.run(b"%d" % (number % 3), load, wait_timeout=LONG))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        if number % 7 == 0:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LookupError):
            assert await task == b"%d" % (number % 3)

    async def main() -> None:
        for start in range(0, 400, 20):
            await asyncio.gather(*(caller(number) for number in range(start, start + 20)))

    def blocking() -> None:
        for number in range(400):
            with contextlib.suppress(LookupError):
                assert flights.run_blocking(b"%d" % (number % 3), block, wait_timeout=LONG) == b"%d" % (number % 3)

    results = [in_thread(work) for work in (lambda: asyncio.run(main()), lambda: asyncio.run(main()), blocking)]
    for result in results:
        result.result(LONG)
    # A load whose last waiter left is cancelled but may still be ending when the next begins; none was seen that
    # was still wanted. Detached ones are exactly those.
    assert not overlaps


@pytest.mark.anyio
async def test_a_later_caller_loads_again(flights: Flights) -> None:
    assert await flights.run(KEY, returns(1), wait_timeout=LONG) == 1
    assert await flights.run(KEY, returns(2), wait_timeout=LONG) == 2
    assert flights.run_blocking(KEY, lambda _: 3, wait_timeout=LONG) == 3


@pytest.mark.anyio
async def test_the_load_runs_in_a_copy_of_the_first_callers_context(flights: Flights) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def load(_: Flight) -> str:
        seen = variable.get()
        variable.set("changed by the load")
        return seen

    variable.set("caller's")
    assert await flights.run(KEY, load, wait_timeout=LONG) == "caller's"
    assert variable.get() == "caller's"


# -- cancellation -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("victim", [0, 1], ids=["first caller", "joined"])
async def test_cancelling_one_caller_leaves_the_others_alone(flights: Flights, victim: int) -> None:
    """Survivors get the value of the one load."""
    loader = Loader()
    tasks = [asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG)) for _ in range(3)]
    await until_async(lambda: flights.joined == 2 and loader.begun.is_set())
    tasks[victim].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[victim]
    loader.go.set()
    assert [await task for task in tasks if not task.cancelled()] == ["value", "value"]
    assert (loader.calls, loader.cancelled) == (1, 0)


@pytest.mark.anyio
async def test_a_callers_timeout_leaves_the_others_alone(flights: Flights) -> None:
    """Neither does a `wait_for` that gives up."""
    loader = Loader()
    first = asyncio.create_task(asyncio.wait_for(flights.run(KEY, loader.load, wait_timeout=LONG), 0.01))
    second = asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
    with pytest.raises(TimeoutError):
        await first
    loader.go.set()
    assert await second == "value"
    assert (loader.calls, loader.cancelled) == (1, 0)


@pytest.mark.anyio
async def test_a_load_that_has_ended_leaves_nothing_to_the_collector(flights: Flights) -> None:
    """The context of its task refers to the flight: that must not refer to the task any more."""
    tasks: list[weakref.ref[asyncio.Task[Any]]] = []

    async def load(_: Flight) -> int:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(weakref.ref(task))
        return 1

    gc.disable()
    try:
        assert await flights.run(KEY, load, wait_timeout=LONG) == 1
        await wait_until_async(lambda: tasks[0]() is None)
    finally:
        gc.enable()


@pytest.mark.anyio
async def test_the_load_is_cancelled_with_its_last_caller(flights: Flights) -> None:
    loader = Loader()
    tasks = [asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG)) for _ in range(3)]
    await until_async(lambda: flights.joined == 2 and loader.begun.is_set())
    for task in tasks:
        assert loader.cancelled == 0
        task.cancel()
        await asyncio.wait([task])
    await until_async(lambda: not flights._tasks)
    assert (loader.calls, loader.cancelled) == (1, 1)
    assert loader.flights[0].detached


@pytest.mark.anyio
async def test_the_load_is_cancelled_when_the_last_caller_is_a_thread(flights: Flights) -> None:
    loader = Loader()
    task = asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
    await until_async(loader.begun.is_set)
    result = in_thread(lambda: flights.run_blocking(KEY, lambda _: "own", wait_timeout=0.05))
    await until_async(lambda: flights.joined == 1)
    task.cancel()
    await asyncio.wait([task])
    assert loader.cancelled == 0
    assert await asyncio.wrap_future(result) == "own"
    await until_async(lambda: loader.cancelled == 1)


@pytest.mark.anyio
async def test_a_caller_after_the_last_one_left_is_not_handed_the_cancelled_load(flights: Flights) -> None:
    begun, stubborn, ending = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def load(_: Flight) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await stubborn.wait()
        return "never"

    first = asyncio.create_task(flights.run(KEY, load, wait_timeout=LONG))
    await begun.wait()
    first.cancel()
    await asyncio.wait([first])
    await ending.wait()
    assert await flights.run(KEY, returns("new"), wait_timeout=LONG) == "new"
    assert flights.joined == 0
    stubborn.set()
    await until_async(lambda: not flights._tasks)


@pytest.mark.anyio
async def test_a_load_cancelled_before_its_first_step_hangs_nobody(flights: Flights) -> None:
    caller = asyncio.create_task(flights.run(KEY, returns(1), wait_timeout=LONG))
    await asyncio.sleep(0)  # the caller has made the load's task, which has not run yet
    (task,) = flights._tasks
    joined = in_thread(lambda: flights.run_blocking(KEY, lambda _: "taken over", wait_timeout=LONG))
    wait_until(lambda: flights.joined == 1, LONG)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await asyncio.wrap_future(joined) == "taken over"


# -- failure and hand-over ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_failing_leader_is_one_call_and_one_exception(flights: Flights) -> None:
    """N waiters, one exception, one call, nobody hangs."""
    loader = Loader(error=LookupError("no such user"))
    tasks = [asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG)) for _ in range(50)]
    threads = [in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG)) for _ in range(5)]
    await until_async(lambda: flights.joined == 54)
    loader.go.set()
    outcomes = await asyncio.gather(*tasks, *map(asyncio.wrap_future, threads), return_exceptions=True)
    assert all(outcome is loader.error for outcome in outcomes)
    assert loader.calls == 1
    assert await flights.run(KEY, returns("retried"), wait_timeout=LONG) == "retried"


def test_a_failing_thread_is_one_call_and_one_exception(flights: Flights) -> None:
    """Led by a blocking caller."""
    loader = Loader(error=LookupError("no such user"))
    threads = [in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG)) for _ in range(10)]
    wait_until(lambda: flights.joined == 9, LONG)
    tasks = in_thread(lambda: asyncio.run(flights.run(KEY, loader.load, wait_timeout=LONG)))
    wait_until(lambda: flights.joined == 10, LONG)
    loader.go.set()
    assert all(future.exception(LONG) is loader.error for future in [*threads, tasks])
    assert loader.calls == 1


@pytest.mark.anyio
async def test_the_flight_is_gone_before_its_waiters_wake(flights: Flights) -> None:
    """A caller who retries at once gets a load of its own, not the failure again."""

    async def fail(_: Flight) -> str:
        raise LookupError

    async def retrying() -> str:
        with contextlib.suppress(LookupError):
            return await flights.run(KEY, fail, wait_timeout=LONG)
        return await flights.run(KEY, returns("second"), wait_timeout=LONG)

    assert await asyncio.gather(*(retrying() for _ in range(5))) == ["second"] * 5


@pytest.mark.anyio
async def test_a_shared_exception_neither_grows_nor_stays_alive(flights: Flights) -> None:
    class Failure(Exception):
        pass

    async def fail(_: Flight) -> str:
        await asyncio.sleep(0)
        raise Failure

    async def depth() -> int:
        try:
            await flights.run(KEY, fail, wait_timeout=LONG)
        except Failure as error:
            references.append(weakref.ref(error))
            frames, traceback = 0, error.__traceback__
            while traceback is not None:
                frames, traceback = frames + 1, traceback.tb_next
            return frames
        return 0

    references: list[weakref.ref[Failure]] = []
    gc.disable()
    try:
        depths = await asyncio.gather(*(depth() for _ in range(10)))
        assert len(set(depths)) == 1
        await asyncio.sleep(0)
        assert len(references) == 10
        assert all(reference() is None for reference in references)
    finally:
        gc.enable()


def test_a_leader_whose_loop_shuts_down_hands_over(flights: Flights) -> None:
    """Of those who wait elsewhere, one loads and the others join it."""
    lost, next_one = Loader(), Loader("taken over")
    leaving = threading.Event()

    async def lead() -> None:
        task = asyncio.create_task(flights.run(KEY, lost.load, wait_timeout=LONG))
        await until_async(leaving.is_set)
        assert not task.done()  # `asyncio.run` cancels it together with its load

    def other_loop() -> Any:
        return asyncio.run(flights.run(KEY, next_one.load, wait_timeout=LONG))

    def other_thread() -> Any:
        return flights.run_blocking(KEY, next_one.block, wait_timeout=LONG)

    leader = in_thread(lambda: asyncio.run(lead()))
    assert lost.begun.wait(LONG)
    others = [in_thread(other) for other in (other_loop, other_thread) * 4]
    wait_until(lambda: flights.joined == 8, LONG)
    leaving.set()
    leader.result(LONG)
    wait_until(lambda: flights.joined == 8 + 7, LONG)
    next_one.go.set()
    assert [other.result(LONG) for other in others] == ["taken over"] * 8
    assert (lost.calls, lost.cancelled, next_one.calls) == (1, 1, 1)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_interrupted_thread_hands_over(flights: Flights, kind: type[BaseException]) -> None:
    """Ctrl-C in the leading thread is the leader's alone."""
    lost, next_one = Loader(error=kind()), Loader("taken over")
    leader = in_thread(lambda: flights.run_blocking(KEY, lost.block, wait_timeout=LONG))
    assert lost.begun.wait(LONG)
    others = [in_thread(lambda: flights.run_blocking(KEY, next_one.block, wait_timeout=LONG)) for _ in range(4)]
    wait_until(lambda: flights.joined == 4, LONG)
    lost.go.set()
    wait_until(lambda: flights.joined == 4 + 3, LONG)
    next_one.go.set()
    assert [other.result(LONG) for other in others] == ["taken over"] * 4
    # Not `.exception()`: a future takes a CancelledError for its own cancellation.
    with pytest.raises(kind):
        leader.result(LONG)
    assert (lost.calls, next_one.calls) == (1, 1)
    assert lost.flights[0].detached


@pytest.mark.anyio
async def test_a_load_that_cancels_itself_hands_over(flights: Flights) -> None:
    """The leader sees what its load raised, as without a cache; the next caller loads."""
    lost, next_one = Loader(error=asyncio.CancelledError()), Loader("taken over")
    leader = asyncio.create_task(flights.run(KEY, lost.load, wait_timeout=LONG))
    await until_async(lost.begun.is_set)
    others = [asyncio.create_task(flights.run(KEY, next_one.load, wait_timeout=LONG)) for _ in range(4)]
    await until_async(lambda: flights.joined == 4)
    lost.go.set()
    next_one.go.set()
    assert await asyncio.gather(*others) == ["taken over"] * 4
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert (lost.calls, next_one.calls) == (1, 1)


def test_a_system_exit_in_a_load_hands_over(flights: Flights, caplog: pytest.LogCaptureFixture) -> None:
    """A loop torn down by SystemExit takes its own callers along only."""
    lost = Loader(error=SystemExit(3))
    leader = in_thread(lambda: asyncio.run(flights.run(KEY, lost.load, wait_timeout=LONG)))
    assert lost.begun.wait(LONG)
    other = in_thread(lambda: flights.run_blocking(KEY, lambda _: "taken over", wait_timeout=LONG))
    wait_until(lambda: flights.joined == 1, LONG)
    lost.go.set()
    assert other.result(LONG) == "taken over"
    assert isinstance(leader.exception(LONG), SystemExit)
    lost.error = None
    del leader, lost.flights[:]  # the last references to the task, whose end would be the time to complain
    gc.collect()
    assert "never retrieved" not in caplog.text


# -- loops that come and go ---------------------------------------------------------------------------------------


def _suspended(flights: Flights, loader: Loader) -> tuple[asyncio.AbstractEventLoop, "asyncio.Task[Any]"]:
    """Return a loop that stopped in the middle of a load."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
    loop.run_until_complete(until_async(loader.begun.is_set))
    return loop, task


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    """Drop the unfinished tasks of a closed loop without asyncio's complaint about them."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the only way to say so


def test_a_load_on_a_closed_loop_is_replaced_at_once(flights: Flights) -> None:
    loader = Loader()
    loop, task = _suspended(flights, loader)
    _collect(loop)
    loop.close()
    assert flights.run_blocking(KEY, lambda _: "new", wait_timeout=LONG) == "new"
    assert flights.joined == 0
    assert loader.flights[0].detached
    del task
    gc.collect()


def test_a_load_on_a_stopped_loop_is_replaced_after_the_wait(flights: Flights) -> None:
    loader = Loader("late")
    loop, task = _suspended(flights, loader)
    flight_of: list[Flight] = []
    assert flights.run_blocking(KEY, lambda flight: flight_of.append(flight), wait_timeout=0.01) is None
    assert not flight_of[0].detached  # a leader like any other
    assert loader.flights[0].detached
    loader.go.set()
    with pytest.raises(asyncio.CancelledError):  # the load that nobody counted on any more
        loop.run_until_complete(task)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_waiter_on_a_closed_loop_does_not_disturb_the_leader(flights: Flights) -> None:
    loader = Loader()
    leader = in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG))
    assert loader.begun.wait(LONG)
    loop = asyncio.new_event_loop()
    task = loop.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
    loop.run_until_complete(until_async(lambda: flights.joined == 1))
    _collect(loop)
    loop.close()
    loader.go.set()
    assert leader.result(LONG) == "value"
    assert not task.done()
    del task
    gc.collect()


def test_a_waiter_whose_loop_ends_is_no_longer_counted(flights: Flights) -> None:
    loader = Loader()
    leader = in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG))
    assert loader.begun.wait(LONG)

    async def short() -> None:
        task = asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
        await until_async(lambda: loader.flights[0].waiter_count == 1)
        assert not task.done()

    asyncio.run(short())
    assert loader.flights[0].waiter_count == 0
    loader.go.set()
    assert leader.result(LONG) == "value"


def _eager(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    """Make tasks that take their first step at once, as Python 3.12's `eager_task_factory` does."""
    context = options.pop("context", None) or contextvars.copy_context()
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        done = loop.create_future()
        done.set_result(stop.value)
        return done

    async def rest() -> Any:
        nonlocal awaited
        while True:
            if awaited is None:
                await asyncio.sleep(0)
            else:
                awaited._asyncio_future_blocking = False
                await asyncio.wait([awaited])
            try:
                awaited = coroutine.send(None)
            except StopIteration as stop:
                return stop.value

    return asyncio.Task(rest(), loop=loop, context=context)


@pytest.mark.parametrize("ends_at_once", [True, False])
def test_eager_tasks(flights: Flights, ends_at_once: bool) -> None:
    """The load may be over when `create_task` returns."""
    loader = Loader()
    if ends_at_once:
        loader.go.set()

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [flights.run(KEY, loader.load, wait_timeout=LONG) for _ in range(3)]
        loop.set_task_factory(getattr(asyncio, "eager_task_factory", _eager))
        gathered = asyncio.gather(*calls)
        if not ends_at_once:
            await until_async(lambda: flights.joined == 2 and loader.begun.is_set())
            loader.go.set()
        return await gathered

    assert asyncio.run(main()) == ["value"] * 3
    assert loader.calls == (3 if ends_at_once else 1)


def test_a_load_that_cannot_start_hands_over(flights: Flights) -> None:
    others: list[Future[Any]] = []

    async def main() -> None:
        def refuse(loop: asyncio.AbstractEventLoop, coroutine: Any, **_: Any) -> Any:
            others.append(in_thread(lambda: flights.run_blocking(KEY, lambda _: "taken over", wait_timeout=LONG)))
            wait_until(lambda: flights.joined == 1, LONG)
            raise RuntimeError("no more tasks")

        asyncio.get_running_loop().set_task_factory(refuse)
        try:
            with pytest.raises(RuntimeError, match="no more tasks"):
                await flights.run(KEY, returns(1), wait_timeout=LONG)
        finally:
            asyncio.get_running_loop().set_task_factory(None)

    started = time.monotonic()
    asyncio.run(main())
    assert others[0].result(LONG) == "taken over"
    assert time.monotonic() - started < LONG


# -- invalidation -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "detach",
    [
        lambda flights: flights.detach(KEY),
        lambda flights: flights.detach_matching(lambda key: key.endswith(b"user1")),
    ],
    ids=["key", "matching"],
)
async def test_later_callers_never_join_a_detached_load(flights: Flights, detach: Callable[[Flights], None]) -> None:
    old, new, other = Loader("old"), Loader("new"), Loader("other")
    first = asyncio.create_task(flights.run(KEY, old.load, wait_timeout=LONG))
    bystander = asyncio.create_task(flights.run(b"magnus:prices:x", other.load, wait_timeout=LONG))
    await until_async(other.begun.is_set)
    detach(flights)
    second = asyncio.create_task(flights.run(KEY, new.load, wait_timeout=LONG))
    await until_async(new.begun.is_set)
    for loader in (old, new, other):
        loader.go.set()
    assert list(await asyncio.gather(first, second, bystander)) == ["old", "new", "other"]
    assert [loader.flights[0].detached for loader in (old, new, other)] == [True, False, False]


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["fails", "returns", "cancelled"])
async def test_an_old_flight_does_not_remove_its_successor(flights: Flights, end: str) -> None:
    """Identity is checked, not the key."""
    old, new = Loader(error=LookupError() if end == "fails" else None), Loader("new")
    first = asyncio.create_task(flights.run(KEY, old.load, wait_timeout=LONG))
    await until_async(old.begun.is_set)
    flights.detach(KEY)
    second = asyncio.create_task(flights.run(KEY, new.load, wait_timeout=LONG))
    await until_async(new.begun.is_set)
    old.go.set()
    if end == "cancelled":
        first.cancel()
    await asyncio.wait([first])
    await until_async(lambda: len(flights._tasks) == 1)
    assert len(flights) == 1
    third = asyncio.create_task(flights.run(KEY, new.load, wait_timeout=LONG))
    await until_async(lambda: flights.joined == 1)
    new.go.set()
    assert list(await asyncio.gather(second, third)) == ["new", "new"]
    assert first.cancelled() or first.exception() is old.error
    assert new.calls == 1


# -- bounded waits ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_wait_that_is_too_long_ends_in_a_load_of_ones_own(flights: Flights) -> None:
    loader = Loader()
    first = asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=0.01))
    await until_async(loader.begun.is_set)
    alone: list[Flight] = []

    async def own(flight: Flight) -> str:
        alone.append(flight)
        return "own"

    assert await flights.run(KEY, own, wait_timeout=0.01) == "own"
    blocked = in_thread(lambda: flights.run_blocking(KEY, lambda flight: alone.append(flight), wait_timeout=0.01))
    await asyncio.wrap_future(blocked)
    assert [flight.detached for flight in alone] == [True, True]
    assert len(flights) == 1
    assert not loader.flights[0].detached
    loader.go.set()
    assert await first == "value"  # the leader itself has no such bound


@pytest.mark.anyio
async def test_a_load_of_ones_own_is_cancelled_with_its_caller(flights: Flights) -> None:
    shared, own = Loader(), Loader()
    first = asyncio.create_task(flights.run(KEY, shared.load, wait_timeout=LONG))
    await until_async(shared.begun.is_set)
    second = asyncio.create_task(flights.run(KEY, own.load, wait_timeout=0.0))
    await until_async(own.begun.is_set)
    second.cancel()
    await asyncio.wait([second])
    await until_async(lambda: own.cancelled == 1)
    shared.go.set()
    assert await first == "value"


# -- circles ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["await", "task", "to_thread", "other key"])
async def test_a_load_that_needs_its_own_key_raises(flights: Flights, way: str) -> None:
    """A clear error, not a deadlock."""

    async def again() -> Any:
        return await flights.run(KEY, returns(1), wait_timeout=LONG)

    async def load(_: Flight) -> Any:
        if way == "task":
            return await asyncio.create_task(again())
        if way == "to_thread":
            return await asyncio.to_thread(flights.run_blocking, KEY, lambda _: 1, wait_timeout=LONG)
        if way == "other key":
            return await flights.run(b"other", lambda _: again(), wait_timeout=LONG)
        return await again()

    with pytest.raises(CacheRecursionError, match="user1"):
        await flights.run(KEY, load, wait_timeout=LONG)


def test_a_blocking_load_that_needs_its_own_key_raises(flights: Flights) -> None:
    """For blocking callers; also after the key was deleted in between."""

    def load(_: Flight) -> Any:
        flights.detach(KEY)
        return flights.run_blocking(KEY, load, wait_timeout=LONG)

    with pytest.raises(CacheRecursionError):
        flights.run_blocking(KEY, load, wait_timeout=LONG)
    assert flights.run_blocking(KEY, lambda _: "fine", wait_timeout=LONG) == "fine"


@pytest.mark.parametrize("kinds", ["task task", "thread thread", "task thread", "thread task", "one loop"])
def test_two_loads_that_need_each_other_raise(flights: Flights, kinds: str) -> None:
    """No standstill in a circle of loads, of whatever kind they are."""
    both = threading.Barrier(2)
    errors: list[CacheRecursionError] = []

    def needing(other: bytes) -> Callable[[Flight], Any]:
        def load(_: Flight) -> str:
            both.wait(LONG)
            try:
                return flights.run_blocking(other, lambda _: "unused", wait_timeout=LONG)
            except CacheRecursionError as error:
                errors.append(error)
                return "broken"

        return load

    def needing_async(other: bytes) -> Callable[[Flight], Awaitable[str]]:
        async def load(_: Flight) -> str:
            await asyncio.to_thread(both.wait, LONG)
            try:
                return await flights.run(other, returns("unused"), wait_timeout=LONG)
            except CacheRecursionError as error:
                errors.append(error)
                return "broken"

        return load

    def start(kind: str, key: bytes, other: bytes) -> "Future[Any]":
        if kind == "task":
            return in_thread(lambda: asyncio.run(flights.run(key, needing_async(other), wait_timeout=LONG)))
        return in_thread(lambda: flights.run_blocking(key, needing(other), wait_timeout=LONG))

    async def one_loop() -> list[str]:
        pairs = [(b"a", b"b"), (b"b", b"a")]
        return await asyncio.gather(*(flights.run(a, needing_async(b), wait_timeout=LONG) for a, b in pairs))

    if kinds == "one loop":
        assert asyncio.run(one_loop()) == ["broken"] * 2
    else:
        first, second = kinds.split()
        results = [start(first, b"a", b"b"), start(second, b"b", b"a")]
        assert [result.result(LONG) for result in results] == ["broken"] * 2
    assert len(errors) == 1


@pytest.mark.anyio
async def test_loads_may_need_the_same_other_load(flights: Flights) -> None:
    """A diamond is no circle."""
    loader = Loader(1)

    async def load(_: Flight) -> int:
        both = [flights.run(b"shared", loader.load, wait_timeout=LONG) for _ in range(2)]
        return sum(await asyncio.gather(*both))

    calls = [asyncio.create_task(flights.run(key, load, wait_timeout=LONG)) for key in (b"a", b"b")]
    await until_async(lambda: flights.joined == 3)
    loader.go.set()
    assert await asyncio.gather(*calls) == [2, 2]
    assert loader.calls == 1


@pytest.mark.anyio
async def test_a_load_that_stopped_waiting_is_no_part_of_a_circle(flights: Flights) -> None:
    both, gave_up = asyncio.Event(), asyncio.Event()

    async def impatient(_: Flight) -> str:
        waiting = asyncio.create_task(flights.run(b"b", returns("unused"), wait_timeout=LONG))
        await until_async(lambda: flights.joined == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        gave_up.set()
        await until_async(lambda: flights.joined == 2)
        return "a"

    async def needing(_: Flight) -> str:
        both.set()
        await gave_up.wait()
        return await flights.run(b"a", returns("unused"), wait_timeout=LONG)

    second = asyncio.create_task(flights.run(b"b", needing, wait_timeout=LONG))
    await both.wait()
    assert await flights.run(b"a", impatient, wait_timeout=LONG) == "a"
    assert await second == "a"


@pytest.mark.anyio
async def test_a_task_that_outlives_its_load_may_ask_for_the_key(flights: Flights) -> None:
    later: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def follow_up() -> Any:
        await over.wait()
        return await flights.run(KEY, returns("later"), wait_timeout=LONG)

    async def load(_: Flight) -> str:
        later.append(asyncio.create_task(follow_up()))
        return "now"

    assert await flights.run(KEY, load, wait_timeout=LONG) == "now"
    over.set()
    assert await later[0] == "later"


@pytest.mark.anyio
async def test_two_caches_may_use_the_same_key(flights: Flights) -> None:
    other = Flights()

    async def load(_: Flight) -> Any:
        return await other.run(KEY, returns("other's"), wait_timeout=LONG)

    assert await flights.run(KEY, load, wait_timeout=LONG) == "other's"


@pytest.mark.anyio
async def test_blocking_the_loop_that_has_to_load_raises(flights: Flights) -> None:
    loader = Loader()
    task = asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG))
    await until_async(loader.begun.is_set)
    with pytest.raises(CacheDeadlockError, match="to_thread"):
        flights.run_blocking(KEY, lambda _: 1, wait_timeout=LONG)
    # From another thread it is fine, and so is another key on this one.
    assert flights.run_blocking(b"other", lambda _: 1, wait_timeout=LONG) == 1
    thread = asyncio.create_task(asyncio.to_thread(flights.run_blocking, KEY, loader.block, wait_timeout=LONG))
    await until_async(lambda: flights.joined == 1)
    loader.go.set()
    assert await task == await thread == "value"


@pytest.mark.anyio
async def test_blocking_a_loop_that_the_load_needs_indirectly_raises(flights: Flights) -> None:
    """A thread's load waits for a load of this loop: waiting here for the thread's would never end."""
    loader = Loader(1)
    task = asyncio.create_task(flights.run(b"on this loop", loader.load, wait_timeout=LONG))
    await until_async(loader.begun.is_set)

    def load(_: Flight) -> int:
        return flights.run_blocking(b"on this loop", lambda _: 2, wait_timeout=LONG) + 1

    thread = in_thread(lambda: flights.run_blocking(KEY, load, wait_timeout=LONG))
    await until_async(lambda: flights.joined == 1)
    with pytest.raises(CacheDeadlockError):
        flights.run_blocking(KEY, lambda _: 0, wait_timeout=LONG)
    loader.go.set()
    assert (await task, await asyncio.wrap_future(thread)) == (1, 2)


@pytest.mark.anyio
async def test_a_load_does_not_wait_for_a_loop_that_waits_for_it(flights: Flights) -> None:
    """The same circle closed from the other side: the loop was blocked first."""
    on_loop, go = Loader(1), threading.Event()
    task = asyncio.create_task(flights.run(b"on this loop", on_loop.load, wait_timeout=LONG))
    await until_async(on_loop.begun.is_set)

    def load(_: Flight) -> str:
        assert go.wait(LONG)
        try:
            return str(flights.run_blocking(b"on this loop", lambda _: 2, wait_timeout=LONG))
        except CacheRecursionError:
            return "refused"

    thread = in_thread(lambda: flights.run_blocking(KEY, load, wait_timeout=LONG))
    await until_async(lambda: len(flights) == 2)

    def release() -> None:
        wait_until(lambda: flights.joined == 1, LONG)
        go.set()

    helper = in_thread(release)
    assert flights.run_blocking(KEY, lambda _: "unused", wait_timeout=LONG) == "refused"
    on_loop.go.set()
    assert (await task, await asyncio.wrap_future(thread)) == (1, "refused")
    helper.result(LONG)


# -- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_aclose_ends_loads_and_refuses_more(flights: Flights) -> None:
    loader, detached = Loader(), Loader()
    tasks = [asyncio.create_task(flights.run(b"old", detached.load, wait_timeout=LONG))]
    await until_async(detached.begun.is_set)
    flights.detach(b"old")
    tasks += [asyncio.create_task(flights.run(KEY, loader.load, wait_timeout=LONG)) for _ in range(3)]
    elsewhere = Loader()
    other_loop = in_thread(lambda: asyncio.run(flights.run(b"other loop", elsewhere.load, wait_timeout=LONG)))
    await until_async(lambda: loader.begun.is_set() and elsewhere.begun.is_set() and flights.joined == 2)
    await flights.aclose()
    await flights.aclose()
    outcomes = await asyncio.gather(*tasks, asyncio.wrap_future(other_loop), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CacheClosedError] * 5
    assert (loader.cancelled, detached.cancelled) == (1, 1)
    with pytest.raises(CacheClosedError):
        await flights.run(KEY, returns(1), wait_timeout=LONG)
    with pytest.raises(CacheClosedError):
        flights.run_blocking(KEY, lambda _: 1, wait_timeout=LONG)
    await until_async(lambda: not flights._tasks)


def in_child(check: Callable[[], str]) -> str:
    """Fork, and return what the child found."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, check().encode())
        except BaseException as error:  # the parent reports it
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
def test_a_fork_during_a_load_does_not_lock_up_the_child(flights: Flights) -> None:
    """The child starts without loads, and with a lock that nobody holds."""
    loader = Loader()
    leader = in_thread(lambda: flights.run_blocking(KEY, loader.block, wait_timeout=LONG))
    assert loader.begun.wait(LONG)

    def check() -> str:
        flights.reset()
        assert len(flights) == 0
        return str(flights.run_blocking(KEY, lambda _: "child's", wait_timeout=LONG))

    with flights._lock:  # as another thread of the parent may at that moment
        assert in_child(check) == "child's"
    loader.go.set()
    assert leader.result(LONG) == "value"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
def test_a_load_that_forks_ends_in_both_processes(flights: Flights) -> None:
    """The child's copy of the load wakes nobody of the parent's."""

    def load(_: Flight) -> str:
        def check() -> str:
            flights.reset()
            return str(flights.run_blocking(KEY, lambda _: "child's", wait_timeout=LONG))

        return in_child(check)

    assert flights.run_blocking(KEY, load, wait_timeout=LONG) == "child's"
