"""Joining a load: each call gets what is not older than the invalidations that had completed when it started."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import pytest

from magnus_cache import (
    AsyncCacheManager,
    CacheManager,
    CacheRecursionError,
    CacheTimeoutError,
    CacheUnavailableError,
    Namespace,
)
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.flights.background import WaitExpiredError
from magnus_cache._engine.flights.callers import Caller, Look
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.flights.flights import Flights
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.policy.options import LoadOptions
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import between_check_and_turn, held_leases
from tests.support.loaders import Slow
from tests.support.wait import lapse_async, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

ERRORS = Namespace("t", negative={LookupError: 30})
LONG = 20.0
"""Seconds that no wait in here comes near, unless something hangs."""


async def told(*managers: AsyncCacheManager) -> None:
    """Return when every announcement that was due has been handled: an answer on the same connection proves it."""
    await asyncio.gather(*(manager.get_stats() for manager in managers))


def joined(manager: AsyncCacheManager | CacheManager) -> int:
    return manager._engine.state.flights.joined


class Held:
    """Keeps the first load of a cache that finds a value from taking that in, until a test lets it go on.

    :param answer: whether it is kept from the very answer of Redis.
    """

    def __init__(self, manager: AsyncCacheManager | CacheManager, *, answer: bool = False) -> None:
        self.there = threading.Event()
        self.go = threading.Event()
        acquirer, name = manager._engine.loads.acquirer, "await_answer" if answer else "acquire"
        original = getattr(acquirer, name)

        async def held(*args: Any, **more: Any) -> Any:
            got = await original(*args, **more)
            if isinstance(got, Entry) and not self.there.is_set():
                self.there.set()
                await wait_until_async(self.go.is_set)
            return got

        setattr(acquirer, name, held)


Ask = Callable[[AsyncCacheManager, Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def single(manager: AsyncCacheManager, load: Callable[[], Awaitable[Any]]) -> Any:
    return await manager.get_or_set(ERRORS, "k", load, tags="x")


async def batch(manager: AsyncCacheManager, load: Callable[[], Awaitable[Any]]) -> Any:
    async def load_many(keys: list[str]) -> dict[str, Any]:
        return {key: await load() for key in keys}

    return (await manager.get_or_set_many(ERRORS, ["k"], load_many, tags="x"))["k"]


async def blocking(manager: AsyncCacheManager, load: Callable[[], Awaitable[Any]]) -> Any:
    # In a thread of its own: the loader runs right there.
    def load_here() -> Any:
        with asyncio.Runner() as runner:
            return runner.run(_awaited(load))

    return await asyncio.to_thread(manager.sync.get_or_set, ERRORS, "k", load_here, tags="x")


async def _awaited(load: Callable[[], Awaitable[Any]]) -> Any:
    return await load()


WAYS: list[Ask] = [single, batch, blocking]
PAIRS = [(single, single), (single, batch), (single, blocking), (batch, single), (batch, batch), (blocking, single)]


async def new() -> str:
    return "new"


async def old() -> str:
    return "old"


async def missing() -> str:
    raise LookupError("old")


async def outcome(asked: Awaitable[Any]) -> Any:
    try:
        return await asked
    except LookupError as error:
        return f"{error.args[0]} error"


class Gate:
    """A loader that a test lets go on from any thread; what it returns or raises, it had seen when it began."""

    def __init__(self, load: Callable[[], Awaitable[Any]]) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.load = load

    async def __call__(self) -> Any:
        self.began.set()
        await wait_until_async(self.go.is_set)
        return await self.load()


# -- what is found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [old, missing])
@pytest.mark.parametrize(("leader", "later"), PAIRS)
async def test_invariant_1_what_a_load_found_is_not_given_to_calls_after_an_invalidation(
    url: str, leader: Ask, later: Ask, load: Callable[[], Awaitable[Any]]
) -> None:
    """A value or a remembered error that another process stored has tags as well."""
    async with fleet(url, 2) as (one, two):
        source = Gate(load)
        theirs = asyncio.create_task(outcome(single(two, source)))
        await wait_until_async(source.began.is_set)
        held = Held(one, answer=True)
        first = asyncio.create_task(outcome(leader(one, new)))
        await wait_until_async(lambda: len(one._engine.state.flights))
        early = asyncio.create_task(outcome(later(one, new)))
        await wait_until_async(lambda: joined(one) == 1)
        source.go.set()
        await wait_until_async(held.there.is_set)
        await one.invalidate_tags("x")
        late = asyncio.create_task(outcome(later(one, new)))
        await wait_until_async(lambda: joined(one) == 2)
        held.go.set()
        expected = "old" if load is old else "old error"
        assert await theirs == expected
        assert (await first, await early) == (expected, expected)
        assert await late == "new"


@pytest.mark.parametrize("way", WAYS)
async def test_nobody_joins_a_load_that_is_taking_in_what_it_found(
    url: str, way: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no lease, so that nobody would announce to it that the value is deleted meanwhile."""
    there, go, threads = threading.Event(), threading.Event(), list[threading.Thread]()
    async with fleet(url, 2) as (one, two):
        source = Gate(old)
        theirs = asyncio.create_task(single(two, source))
        await wait_until_async(source.began.is_set)
        opened = one._engine.reads.opened

        def slowly(*args: Any) -> Any:
            if threading.current_thread() in threads and len(one._engine.state.flights) + there.is_set() == 0:
                there.set()
                assert go.wait(LONG)
            return opened(*args)

        def in_thread() -> str:
            threads.append(threading.current_thread())
            return one.sync.get_or_set(ERRORS, "k", lambda: "new", tags="x")

        first = asyncio.create_task(asyncio.to_thread(in_thread))
        await wait_until_async(lambda: len(one._engine.state.flights))
        monkeypatch.setattr(one._engine.reads, "opened", slowly)
        source.go.set()
        await wait_until_async(there.is_set)
        await two.delete(ERRORS, "k")
        # The thread's value was read through the connection of the background loop, which hears of it.
        await wait_until_async(lambda: not near(one, ERRORS, "k"))
        assert await asyncio.wait_for(way(one, new), LONG) == "new"
        assert joined(one) == 0
        go.set()
        assert (await theirs, await first) == ("old", "old")


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_fresh_call_takes_nothing_that_a_load_found(fresh: bool) -> None:
    """Between its look for loads under way and its turn, a load may begin that finds what the call is to replace."""
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", "k", "old")
        loads, held, first = cache._engine.loads, Held(cache), list[str]()
        ref = cache._engine.reads.ref("t", "k")

        def lead() -> None:
            first.append(loads.load_blocking(LoadRequest(ref, lambda: "first", LoadOptions())))

        thread = threading.Thread(target=lead)

        def interrupt() -> None:
            if not thread.ident:
                thread.start()
                wait_until(held.there.is_set)

        between_check_and_turn(loads, interrupt)
        call = asyncio.create_task(
            asyncio.to_thread(loads.load_blocking, LoadRequest(ref, lambda: "new", LoadOptions(), fresh=fresh))
        )
        await wait_until_async(lambda: joined(cache) == 1)
        held.go.set()
        # Not fresh, the value is just what it wants.
        assert await call == ("new" if fresh else "old")
        thread.join(LONG)
        assert first == ["old"]


# -- what is loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "peer"])
@pytest.mark.parametrize("load", [old, missing])
@pytest.mark.parametrize(("leader", "later"), PAIRS)
async def test_invariant_1_a_load_serves_the_calls_from_before_an_invalidation_and_no_later_ones(
    url: str, leader: Ask, later: Ask, load: Callable[[], Awaitable[Any]], where: str
) -> None:
    """The same for its error: what failed then need not fail now."""
    loads: list[str] = []

    async def again() -> str:
        loads.append("again")
        return "new"

    async with fleet(url, 2) as (one, two):
        await one.get("t", "x")
        source = Gate(load)
        first = asyncio.create_task(outcome(leader(one, source)))
        await wait_until_async(source.began.is_set)
        early = [asyncio.create_task(outcome(later(one, again))) for _ in range(3)]
        await wait_until_async(lambda: joined(one) == 3)
        await (one if where == "here" else two).invalidate_tags("x")
        await told(one)
        late = [asyncio.create_task(outcome(later(one, again))) for _ in range(3)]
        await wait_until_async(lambda: joined(one) == 6)
        source.go.set()
        expected = "old" if load is old else "old error"
        assert await first == expected
        # The first of them may have to load again, which is one load for all.
        assert await asyncio.gather(*early) == [expected] * 3
        assert await asyncio.gather(*late) == ["new"] * 3
        assert loads == ["again"]
        assert await one.get("t", "k") == "new"


async def test_an_error_whose_tags_only_the_value_could_tell_reaches_no_later_calls() -> None:
    """Any invalidation may have been about it."""
    source = Gate(missing)
    async with AsyncCacheManager(redis_enabled=False) as cache:
        first = asyncio.create_task(outcome(cache.get_or_set("t", "k", source, tags=lambda value: [value])))
        await wait_until_async(source.began.is_set)
        early = asyncio.create_task(outcome(cache.get_or_set("t", "k", new, tags=lambda value: [value])))
        await wait_until_async(lambda: joined(cache) == 1)
        await cache.invalidate_tags("x")
        late = asyncio.create_task(outcome(cache.get_or_set("t", "k", new, tags=lambda value: [value])))
        await wait_until_async(lambda: joined(cache) == 2)
        source.go.set()
        assert await first == "old error"
        assert await late == "new"
        # That it came before the one invalidation would help it only if the tag was known.
        assert await early in ("old error", "new")


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("redis", [True, False])
async def test_a_tag_that_is_invalidated_all_the_time_does_not_serve_calls_one_by_one(
    url: str, times: int, redis: bool
) -> None:
    """Sixty calls wait; the tag is invalidated during each load, more often than is remembered or just once."""
    loads: list[int] = []
    async with AsyncCacheManager(redis_url=url, redis_enabled=redis) as cache:

        async def load() -> int:
            loads.append(len(loads) + 1)
            if len(loads) == 1:
                await wait_until_async(lambda: joined(cache) == 59)
            for _ in range(times):
                await cache.invalidate_tags("x")
            return len(loads)

        async def block() -> int:
            return await asyncio.to_thread(cache.sync.get_or_set, "t", "k", load, tags="x")

        calls = [cache.get_or_set("t", "k", load, tags="x") for _ in range(55)]
        results = await asyncio.gather(*calls, *(block() for _ in range(5)))
    # Where it is known that they came before all invalidations, they take the first; else they share a second load.
    assert len(loads) <= (1 if times == 1 else 2)
    assert set(results) <= ({1} if times == 1 else {1, 2})


async def test_an_invalidation_that_a_lost_connection_did_not_announce_counts_for_those_who_joined(
    proxy: Any, server: Any
) -> None:
    """A later invalidation, which is announced, does not explain away the one that nobody heard of."""
    slow = Slow()
    async with fleet(server.url, 1) as (peer,), fleet(proxy.url, 1, lease=0.6) as (one,):
        await one.get("t", "other")
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await slow.begun()
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        await peer.invalidate_tags("x")
        proxy.resume()
        state, name = one._engine.state, b"magnus:t:k"
        # Renewing the lease has shown that the key was not deleted, and calls may join again.
        await wait_until_async(lambda: state.reachable and held_leases(state)[name].trust.deadline > state.clock())
        late = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await wait_until_async(lambda: joined(one) == 1 or slow.calls == 2)
        await one.invalidate_tags("x")
        slow.finish()
        slow.finish(2)
        assert (await call, await late) == (1, 2)


# -- deletes and the like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["delete", "clear", "glob", "tags"])
def test_a_load_that_begins_within_an_invalidation_serves_no_later_calls(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, after the loads under way were put aside, and before the value is gone from memory."""
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", "k", "old", tags="x")
        loads, held, results = cache._engine.loads, Held(cache), list[str]()
        ref = cache._engine.reads.ref("t", "k")

        def lead() -> None:
            # On a loop of its own: that of blocking calls is busy with the invalidation.
            results.append(asyncio.run(loads.load(LoadRequest(ref, lambda: "first", LoadOptions()))))

        thread = threading.Thread(target=lead)
        method = {"delete": "invalidate_many", "tags": "invalidate_tag"}.get(how, "clear_matching")
        kind = type(cache._engine.state.memory)
        original = getattr(kind, method)

        def interrupted(memory: LocalCache, *args: Any) -> None:
            if memory is cache._engine.state.memory and not thread.ident:
                thread.start()
                wait_until(held.there.is_set)
            original(memory, *args)

        monkeypatch.setattr(kind, method, interrupted)
        match how:
            case "delete":
                cache.delete("t", "k")
            case "clear":
                cache.clear("t")
            case "glob":
                cache.clear("magnus:t:k*")
            case _:
                cache.invalidate_tags("x")
        late: list[str] = []
        later = threading.Thread(target=lambda: late.append(cache.get_or_set("t", "k", lambda: "new", tags="x")))
        later.start()
        wait_until(lambda: late or joined(cache))
        held.go.set()
        thread.join(LONG)
        later.join(LONG)
        assert (results, late) == (["old"], ["new"])


@pytest.mark.parametrize("refused", [False, True])
async def test_a_load_that_found_what_a_write_replaces_serves_no_later_calls(url: str, refused: bool) -> None:
    """It asked through another connection, after the write began and before Redis had it."""
    async with fleet(url, 2) as (one, two):
        await two.set("t", "k", "old")
        held, loads = Held(one), one._engine.loads
        ref = one._engine.reads.ref("t", "k")
        await asyncio.to_thread(one.sync.get, "t", "other")
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        execute, first = wire.execute, list[asyncio.Task[Any]]()

        async def late(*args: Any) -> Any:
            first.append(
                asyncio.create_task(
                    asyncio.to_thread(loads.load_blocking, LoadRequest(ref, lambda: "first", LoadOptions()))
                )
            )
            await wait_until_async(held.there.is_set)
            wire.execute = execute  # type: ignore[method-assign]
            if refused:
                raise CacheUnavailableError("oom", "Redis refused", refused=True)
            return await execute(*args)

        wire.execute = late  # type: ignore[method-assign]
        await one.set("t", "k", "set")
        # Whatever became of it, it is gone.
        await two.delete("t", "k")
        await told(one)
        one._engine.state.memory.invalidate(b"magnus:t:k")
        call = asyncio.create_task(one.get_or_set("t", "k", new))
        await wait_until_async(lambda: call.done() or joined(one))
        held.go.set()
        assert await call == "new"
        assert await first[0] in ("old", "first")


# -- keys that a batch loader leaves out -----------------------------------------------------------------------


async def test_what_a_batch_loader_leaves_out_is_left_out_for_all_calls_with_that_loader(url: str) -> None:
    """Else they would ask it one by one, each when the one before has been told that there is nothing."""
    calls: list[list[str]] = []
    async with fleet(url, 1) as (one,):

        @one.cached_many("t", key="{keys}")
        async def decorated(keys: list[str]) -> dict[str, str]:
            calls.append(keys)
            await wait_until_async(lambda: joined(one) >= 19)
            return {}

        async def closure() -> dict[str, str]:
            async def load(keys: list[str]) -> dict[str, str]:
                calls.append(keys)
                await wait_until_async(lambda: joined(one) >= 38)
                return {}

            return await one.get_or_set_many("t", ["b"], load)

        assert await asyncio.gather(*(decorated(["a"]) for _ in range(20))) == [{}] * 20
        assert await asyncio.gather(*(closure() for _ in range(20))) == [{}] * 20
        assert calls == [["a"], ["b"]]


async def test_a_blocking_batch_shares_what_is_left_out_too(url: str) -> None:
    calls: list[list[str]] = []
    with CacheManager(redis_url=url) as cache:

        def load(keys: list[str]) -> dict[str, str]:
            calls.append(keys)
            wait_until(lambda: joined(cache) >= 4)
            return {}

        results = await asyncio.gather(*(asyncio.to_thread(cache.get_or_set_many, "t", ["a"], load) for _ in range(5)))
    assert results == [{}] * 5
    assert calls == [["a"]]


async def test_another_function_is_asked_for_what_the_first_leaves_out(url: str) -> None:
    async with fleet(url, 1) as (one,):

        @one.cached_many("t", key="{keys}")
        async def first(keys: list[str]) -> dict[str, str]:
            await wait_until_async(lambda: joined(one) == 2)
            return {}

        @one.cached_many("t", key="{keys}")
        async def second(keys: list[str]) -> dict[str, str]:
            return dict.fromkeys(keys, "second")

        call = asyncio.create_task(first(["a"]))
        await wait_until_async(lambda: len(one._engine.state.flights))
        assert await asyncio.gather(call, second(["a"]), second(["a"])) == [{}, {"a": "second"}, {"a": "second"}]


async def test_left_out_is_judged_by_tags_like_any_answer() -> None:
    calls: list[int] = []
    async with AsyncCacheManager(redis_enabled=False) as cache:

        async def load(keys: list[str]) -> dict[str, str]:
            calls.append(len(calls))
            if len(calls) > 1:
                return dict.fromkeys(keys, "new")
            await wait_until_async(lambda: joined(cache) == 2)
            return {}

        first = asyncio.create_task(cache.get_or_set_many("t", ["k"], load, tags="x"))
        await wait_until_async(lambda: calls)
        early = asyncio.create_task(cache.get_or_set_many("t", ["k"], load, tags="x"))
        await wait_until_async(lambda: joined(cache) == 1)
        await cache.invalidate_tags("x")
        late = asyncio.create_task(cache.get_or_set_many("t", ["k"], load, tags="x"))
        assert [await first, await early, await late] == [{}, {}, {"k": "new"}]


# -- bounds ----------------------------------------------------------------------------------------------------


class Nothing(Caller):
    """A caller for whom no load of another is good."""

    def accepts(self, look: Look) -> bool:
        return False


class TurnedAway(Nothing):
    """Finds a load under way whenever it looks, each of which ends as soon as it is joined."""

    def __init__(self, flights: Flights) -> None:
        super().__init__()
        self._flights = flights
        self._loop = asyncio.get_running_loop()
        self.times = 0
        self.over = False

    def prepare(self, *, under_way: bool = True) -> None:
        if threading.current_thread() is threading.main_thread():
            self._launch()
        else:
            launched: Future[None] = Future()
            self._loop.call_soon_threadsafe(lambda: launched.set_result(self._launch()))
            launched.result(LONG)

    def accepts(self, look: Look) -> bool:
        self.times += 1
        return self.over

    def _launch(self) -> None:
        flights, joined = self._flights, self._flights.joined

        async def load(_: Flight) -> str:
            while flights.joined == joined:
                await asyncio.sleep(0)
            return "theirs"

        flights.start_background(b"k", load)


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_a_call_has_one_deadline_however_often_it_is_turned_away(how: str) -> None:
    flights, private = Flights(), list[bool]()
    caller = TurnedAway(flights)

    def block(flight: Flight) -> str:
        private.append(flight.private)
        return "own"

    async def load(flight: Flight) -> str:
        return block(flight)

    try:
        async with asyncio.timeout(LONG / 2):
            # Longer than the machine is ever busy with one of these loads: it is not the end of a single wait.
            if how == "task":
                found = await flights.run(b"k", load, wait_timeout=1.5, caller=caller)
            else:
                found = await asyncio.to_thread(flights.run_blocking, b"k", block, wait_timeout=1.5, caller=caller)
    finally:
        caller.over = True
    assert found == "own"
    assert private == [True]
    assert caller.times > 1
    await flights.aclose()


async def test_a_call_has_one_end_of_patience_however_often_it_is_turned_away() -> None:
    flights = Flights()
    caller = TurnedAway(flights)
    caller.max_wait = 0.05
    with pytest.raises(WaitExpiredError):
        async with asyncio.timeout(LONG):
            await flights.run(b"k", _never, wait_timeout=LONG, caller=caller)
    assert caller.times > 1
    await flights.aclose()


async def _never(_: Flight) -> None:
    await asyncio.Event().wait()


def test_moments_tell_before_from_after() -> None:
    epochs = Epochs(Keyspace("magnus"))
    x, y = epochs.tag_name("x"), epochs.tag_name("y")
    look = epochs.moment()
    early = epochs.moment()
    epochs.invalidated([x])
    late = epochs.moment()
    assert not epochs.overtaken(["x"], look, early)
    assert epochs.overtaken(["y", "x"], look, late)
    assert not epochs.overtaken(["y"], look, late)
    assert not epochs.overtaken(["x"], late)
    assert epochs.overtaken(None, look)
    assert not epochs.overtaken(None, late)
    epochs.invalidated([y])
    # Of many, it is not known any more when the first came, and they count as early.
    for _ in range(100):
        epochs.invalidated([x])
    assert epochs.overtaken(["x"], late, epochs.moment())
    assert epochs.overtaken(["x"], look, early)


# -- loaders that call the cache -------------------------------------------------------------------------------


Ways = Callable[[AsyncCacheManager], Awaitable[Any]]

CIRCLES: dict[str, Ways] = {
    "get_or_set": lambda cache: cache.get_or_set("t", "k", old),
    "batch": lambda cache: cache.get_or_set_many("t", ["k"], lambda keys: dict.fromkeys(keys, 1)),
    "sync": lambda cache: asyncio.to_thread(cache.sync.get_or_set, "t", "k", lambda: 1),
    "sync batch": lambda cache: asyncio.to_thread(
        cache.sync.get_or_set_many, "t", ["k"], lambda keys: dict.fromkeys(keys, 1)
    ),
    "through another": lambda cache: cache.get_or_set("t", "other", lambda: cache.get_or_set("t", "k", old)),
    "warming": lambda cache: cache.warm_cache("t", lambda key: key, ["k"]),
}


@pytest.mark.parametrize("first", [None, "delete", "clear", "tags", "set"])
@pytest.mark.parametrize("way", CIRCLES)
async def test_a_loader_that_needs_its_own_key_raises_whatever_it_does_before(
    url: str, way: str, first: str | None
) -> None:
    """An invalidation puts the load aside, but it still waits for itself."""
    async with fleet(url, 1) as (one,):

        async def load() -> Any:
            match first:
                case "delete":
                    await one.delete("t", "k")
                case "clear":
                    await one.clear("t")
                case "tags":
                    await one.invalidate_tags("x")
                case "set":
                    await one.set("t", "k", "set")
            got = await CIRCLES[way](one)
            if way == "warming":
                assert [type(error) for error in got.errors.values()] == [CacheRecursionError]
                raise CacheRecursionError("as the report says")
            return got

        if first == "set" and way != "warming":
            # There is a value then, which needs no load.
            got = await asyncio.wait_for(one.get_or_set("t", "k", load, tags="x"), LONG)
            assert got in ("set", {"k": "set"}, {"other": 1, "k": "set"})
        else:
            with pytest.raises(CacheRecursionError):
                await asyncio.wait_for(one.get_or_set("t", "k", load, tags="x"), LONG)
        assert len(one._engine.state.flights) == 0


@pytest.mark.parametrize("how", ["delete", "clear", "tags", "set"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_loader_may_invalidate_its_own_value(url: str, way: Ask, how: str) -> None:
    """It is given to those who wait and kept by nobody."""
    async with fleet(url, 1) as (one,):

        async def load() -> str:
            # Through threads, as the loader of a blocking call has a loop of its own here.
            match how:
                case "delete":
                    await asyncio.to_thread(one.sync.delete, "t", "k")
                case "clear":
                    await asyncio.to_thread(one.sync.clear, "t")
                case "set":
                    await asyncio.to_thread(one.sync.set, "t", "k", "set")
                case _:
                    await asyncio.to_thread(one.sync.invalidate_tags, "x")
            return "old"

        for _ in range(2):
            assert await asyncio.wait_for(way(one, load), LONG) == "old"
            assert await one.get("t", "k") == ("set" if how == "set" else None)
            await one.delete("t", "k")


async def test_a_cached_function_that_refreshes_itself_raises(url: str) -> None:
    async with fleet(url, 1) as (one,):

        @one.cached("t")
        async def recursive(number: int) -> int:
            return await recursive.refresh(number)

        @one.cached("t")
        def blocking_one(number: int) -> int:
            return blocking_one.refresh(number)

        with pytest.raises(CacheRecursionError):
            await asyncio.wait_for(recursive(1), LONG)
        with pytest.raises(CacheRecursionError):
            await asyncio.wait_for(asyncio.to_thread(blocking_one, 1), LONG)


async def test_a_blocking_call_within_an_async_loader_loads_another_key(url: str) -> None:
    """It holds up the loop, and needs nothing of it."""
    async with fleet(url, 1) as (one,):

        async def load() -> str:
            return one.sync.get_or_set("t", "inner", lambda: "inner", tags="x") + " and outer"

        assert await asyncio.wait_for(one.get_or_set("t", "outer", load, tags="x"), LONG) == "inner and outer"
        assert one.sync.get("t", "inner") == "inner"


async def test_a_joiner_that_is_turned_away_within_a_load_may_lead_the_next(url: str) -> None:
    """The graph of waits follows: the next load is part of the same outer one."""
    source = Gate(old)
    async with fleet(url, 1) as (one,):
        first = asyncio.create_task(one.get_or_set("t", "k", source, tags="x"))
        await wait_until_async(source.began.is_set)
        await one.invalidate_tags("x")

        async def circle() -> str:
            return await one.get_or_set("t", "outer", old)

        async def outer() -> str:
            return await one.get_or_set("t", "k", circle, tags="x")

        call = asyncio.create_task(one.get_or_set("t", "outer", outer))
        await wait_until_async(lambda: joined(one) == 1)
        source.go.set()
        assert await first == "old"
        with pytest.raises(CacheRecursionError):
            await asyncio.wait_for(call, LONG)


async def test_patience_counts_from_the_start_of_the_call_though_it_is_turned_away(url: str) -> None:
    slow, namespace = Slow(), Namespace("t", hard_timeout=2)
    async with fleet(url, 1) as (one,):
        first = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await slow.begun()
        await one.invalidate_tags("x")
        began = asyncio.get_running_loop().time()
        late = asyncio.create_task(one.get_or_set(namespace, "k", slow, tags="x"))
        await lapse_async(1.5)
        slow.finish()
        assert await first == 1
        with pytest.raises(CacheTimeoutError):
            await late
        assert asyncio.get_running_loop().time() - began < 3
        slow.finish(2)
