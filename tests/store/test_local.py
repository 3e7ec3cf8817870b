"""Local namespaces: any object, by reference, in this process alone; what others invalidate reaches it all the same."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.memory.footprint import object_size
from magnus_cache._engine.store.local_values import tagged
from magnus_cache.errors import CacheArgumentError, CacheEncodeError, CacheTypeError
from magnus_cache.testing import Proxy, VirtualClock, virtual_clock
from tests.support.managers import managers
from tests.support.rights import UNTRACKED
from tests.support.wait import lapse, lapse_async, wait_until, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

MODELS = Namespace("models", local=True, ttl=600)


class Model:
    """What can be neither encoded nor copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Factory:
    """A loader that counts its calls, and waits for its gate if it is closed."""

    def __init__(self) -> None:
        self.made: list[Model] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self) -> Model:
        self.made.append(model := Model())
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return model


@pytest.fixture(params=["shared", "alone"])
def manager(request: pytest.FixtureRequest, url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) if request.param == "shared" else CacheManager(redis_enabled=False) as manager:
        yield manager


async def gone(manager: AsyncCacheManager, key: str = "k", namespace: str = MODELS) -> None:
    """Return once a value is not served any more; what Redis announces takes its time."""

    async def is_gone() -> bool:
        return await manager.get(namespace, key) is None

    await wait_until_answered(is_gone)


INVALIDATIONS: dict[str, Callable[[AsyncCacheManager], Any]] = {
    "delete": lambda peer: peer.delete(MODELS, "k"),
    "delete_many": lambda peer: peer.delete_many(MODELS, ["k"]),
    "clear": lambda peer: peer.clear("models"),
    "clear all": lambda peer: peer.clear("magnus:*"),
    "tag": lambda peer: peer.invalidate_tags("x"),
}


# -- by reference ----------------------------------------------------------------------------------------------------


def test_everything_that_a_manager_does(manager: CacheManager, raw: redis.Redis) -> None:
    model, other = Model(), Model()
    assert manager.set(MODELS, "k", model, ttl=60)
    assert manager.get(MODELS, "k") is model
    assert manager.contains(MODELS, "k")
    assert manager.get_many(MODELS, ["k", "none"]) == {"k": model}
    assert 59 < (manager.ttl(MODELS, "k") or 0) <= 60
    assert manager.touch(MODELS, "k", 100)
    assert 99 < (manager.ttl(MODELS, "k") or 0) <= 100
    assert not manager.touch(MODELS, "none", 100)
    manager.set_many(MODELS, {"a": other, "b": other}, tags="x")
    assert manager.get(MODELS, "a") is manager.get(MODELS, "b") is other
    manager.invalidate_tags("x")
    assert manager.get_many(MODELS, ["a", "b"]) == {}
    assert manager.delete(MODELS, "k")
    assert not manager.delete(MODELS, "k")
    assert manager.get(MODELS, "k") is None
    assert manager.get_or_set(MODELS, "k", lambda: model) is manager.get_or_set(MODELS, "k", Model) is model
    assert manager.get_or_set_many(MODELS, ["k", "m"], lambda keys: dict.fromkeys(keys, other)) == {
        "k": model, "m": other,
    }  # fmt: skip
    manager.clear("models")
    assert manager.get_many(MODELS, ["k", "m"]) == {}
    report = manager.warm_cache(MODELS, lambda _: model, ["k"])
    assert (report.loaded, report.unstorable) == (1, 0)
    assert manager.get(MODELS, "k") is model
    assert manager.get_stats()["unstorable"] == 0
    assert not raw.keys("magnus:*")
    assert not raw.keys("{*")


def test_decorated_functions(manager: CacheManager) -> None:
    @manager.cached(MODELS)
    def blocking(name: str) -> Model:
        return Model()

    @manager.cached(MODELS)
    async def waiting(name: str) -> Model:
        return Model()

    @manager.cached_many(MODELS)
    def many(names: list[str]) -> dict[str, Model]:
        return {name: Model() for name in names}

    one = blocking("a")
    assert blocking("a") is one
    assert blocking("b") is not one
    assert blocking.refresh("a") is not one
    blocking.invalidate("b")
    assert blocking.cache_info().loads == 3
    assert many(["a", "b"]) == many(["a", "b"])

    async def twice() -> bool:
        return await waiting("a") is await waiting("a")

    assert asyncio.run(twice())


def test_a_generator_is_not_kept(manager: CacheManager, caplog: pytest.LogCaptureFixture) -> None:
    """A second caller would get nothing of it."""

    def numbers() -> Iterator[int]:
        yield 1

    assert list(manager.get_or_set(MODELS, "k", lambda: numbers())) == [1]  # no generator function
    assert list(manager.get_or_set(MODELS, "k", lambda: numbers())) == [1]  # likewise
    assert manager.get_stats()["unstorable"] == 2
    assert "read only once" in caplog.text
    with pytest.raises(CacheEncodeError, match="read only once"):
        manager.set(MODELS, "k", numbers())


def test_what_an_object_counts_for() -> None:
    class Frame:
        def estimated_size(self) -> int:
            return 5_000_000

    class Array:
        nbytes = 3_000_000

    class Odd:
        @property
        def nbytes(self) -> int:
            raise RuntimeError

    assert object_size(Frame()) == 5_000_000
    assert object_size(Array()) == 3_000_000
    assert 0 < object_size(Odd()) < 1_000
    assert object_size([b"x" * 1_000_000]) > 1_000_000
    with CacheManager(redis_enabled=False, l1_max_bytes=4_000_000) as cache:
        assert isinstance(cache.get_or_set(MODELS, "a", Array), Array)
        assert 3_000_000 < cache.get_stats()["in_memory_bytes"] < 3_010_000
        assert isinstance(cache.get_or_set(MODELS, "f", Frame), Frame)
        assert cache.get(MODELS, "f") is None
        assert cache.get_stats()["unstorable"] == 1
        with pytest.raises(CacheEncodeError, match="l1_max_bytes=4000000"):
            cache.set(MODELS, "f", Frame())


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("l1", {"l1": False}),
        ("seal", {"seal": True}),
        ("compress", {"compress": True}),
        ("max_value_bytes", {"max_value_bytes": 100}),
    ],
)
def test_settings_that_contradict_it(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(CacheArgumentError, match=f"^{argument}: .*local"):
        Namespace("n", local=True, **options)
    with pytest.raises(CacheTypeError, match="^local: "):
        Namespace("n", local=1)  # type: ignore[arg-type]  # the mistake under test


def test_the_hidden_tag_is_nobody_elses(manager: CacheManager) -> None:
    ref = manager._engine.reads.ref(MODELS, "k")
    hidden = tagged(ref, ())
    assert len(hidden) == 1
    assert tagged(ref, hidden) == hidden
    assert tagged(manager._engine.reads.ref("t", "k"), ()) == ()
    with pytest.raises(CacheArgumentError, match="NUL"):
        manager.invalidate_tags(*hidden)


def test_explained(manager: CacheManager) -> None:
    assert manager.explain(MODELS, "k").level is None
    manager.set(MODELS, "k", Model(), ttl=60, tags="x")
    explanation = manager.explain(MODELS, "k")
    assert explanation.level == "l1"
    assert explanation.tags == ("x",)
    assert "by reference" in explanation.verdict
    assert 59 < (explanation.left or 0) <= 60


# -- what others invalidate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_what_a_peer_invalidates_is_gone(url: str, how: str) -> None:
    factory = Factory()
    async with managers(url) as (cache, peer):
        first = await cache.get_or_set(MODELS, "k", factory, tags="x")
        assert await cache.get_or_set(MODELS, "k", factory, tags="x") is first
        own = await peer.get_or_set(MODELS, "k", Model)
        assert own is not first
        await INVALIDATIONS[how](peer)
        await gone(cache)
        assert await cache.get_or_set(MODELS, "k", factory, tags="x") is not first
        assert len(factory.made) == 2


async def test_a_deleted_key_takes_few_others_along(url: str) -> None:
    async with managers(url) as (cache, peer):
        await cache.set_many(MODELS, {str(number): Model() for number in range(200)})
        await peer.delete(MODELS, "0")
        await gone(cache, "0")
        left = await cache.get_many(MODELS, map(str, range(200)))
        assert 180 < len(left) < 200


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_invariant_2_a_load_that_is_overtaken_is_not_kept(url: str, how: str) -> None:
    factory = Factory()
    async with managers(url) as (cache, peer):
        await cache.get(MODELS, "k")
        factory.gate.clear()
        task = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: factory.made)
        await INVALIDATIONS[how](peer)
        factory.gate.set()
        assert await task is factory.made[0]
        assert await cache.get(MODELS, "k") is None


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_a_load_that_this_process_overtakes_is_not_kept_and_not_joined(url: str, how: str) -> None:
    factory = Factory()
    async with managers(url, 1) as (cache,):
        await cache.get(MODELS, "k")
        factory.gate.clear()
        first = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: factory.made)
        await INVALIDATIONS[how](cache)
        second = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: cache._state.flights.joined or len(factory.made) == 2)
        factory.gate.set()
        assert await first is factory.made[0]
        assert await second is factory.made[1]
        assert await cache.get(MODELS, "k") in (None, factory.made[1])


async def test_tags_that_the_value_tells(url: str) -> None:
    async with managers(url) as (cache, peer):
        model = await cache.get_or_set(MODELS, "k", Model, tags=lambda _: ["told"])
        assert await cache.get(MODELS, "k") is model
        await peer.invalidate_tags("told")
        await gone(cache)


async def test_a_glob_clears_whole_local_namespaces_elsewhere(url: str) -> None:
    async with managers(url) as (cache, peer):
        await cache.set_many(MODELS, {"one": Model(), "two": Model()})
        await peer.get_or_set(MODELS, "other", Model)
        await peer.clear("models:o*")
        await gone(cache, "one")
        assert await cache.get(MODELS, "two") is None
        assert await peer.get(MODELS, "other") is None


async def test_a_flushed_server_invalidates_all(url: str, raw: redis.Redis) -> None:
    async with managers(url, 1) as (cache,):
        await cache.set(MODELS, "k", Model())
        raw.flushall()
        await gone(cache)


async def test_without_tracking_the_bound_holds(url: str, raw: redis.Redis) -> None:
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    limited = url.replace("redis://", "redis://limited:pw@")
    try:
        with virtual_clock() as clock:
            async with managers(limited, 1, max_staleness=10.0) as (cache,), managers(url, 1) as (peer,):
                model = Model()
                await cache.set(MODELS, "k", model)
                for _ in range(3):
                    clock.advance(6)
                    assert await cache.get(MODELS, "k") is model
                await peer.delete(MODELS, "k")
                clock.advance(11)
                assert await cache.get(MODELS, "k") is None
    finally:
        raw.acl_deluser("limited")


# -- one load --------------------------------------------------------------------------------------------------------


async def test_a_long_load_is_joined_for_as_long_as_it_takes(url: str) -> None:
    """It has no lease, and longer than the staleness bound nothing else may have been asked."""
    factory = Factory()
    async with managers(url, 1, max_staleness=0.6) as (cache,):
        factory.gate.clear()
        calls = [asyncio.create_task(cache.get_or_set(MODELS, "k", factory))]
        await wait_until_async(lambda: factory.made)
        for number in range(1, 3):
            await lapse_async(1.2)
            calls.append(asyncio.create_task(cache.get_or_set(MODELS, "k", factory)))
            await wait_until_async(lambda: cache._state.flights.joined == number or len(factory.made) > 1)  # noqa: B023
        factory.gate.set()
        assert {id(model) for model in await asyncio.gather(*calls)} == {id(factory.made[0])}
        assert len(factory.made) == 1
        assert await cache.get(MODELS, "k") is factory.made[0]


async def test_each_process_loads_its_own(url: str) -> None:
    """None waits for the others' objects, which it would not get."""
    factory = Factory()
    async with managers(url, 3) as several:
        factory.gate.clear()
        calls = [asyncio.create_task(manager.get_or_set(MODELS, "k", factory)) for manager in several]
        await wait_until_async(lambda: len(factory.made) == 3)
        factory.gate.set()
        assert len({id(model) for model in await asyncio.gather(*calls)}) == 3


async def test_a_failing_load_leaves_nothing(url: str) -> None:
    factory = Factory()
    async with managers(url, 1) as (cache,):
        factory.error = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            await cache.get_or_set(MODELS, "k", factory)
        assert len(cache._state.leases) == 0
        factory.error = None
        assert await cache.get_or_set(MODELS, "k", factory) is factory.made[1]
        await wait_until_async(lambda: len(cache._state.leases) == 0)
        assert cache._state.memory.pending == 0


async def test_a_cancelled_load_leaves_nothing(url: str) -> None:
    factory = Factory()
    async with managers(url, 1) as (cache,):
        factory.gate.clear()
        task = asyncio.create_task(cache.get_or_set(MODELS, "k", factory))
        await wait_until_async(lambda: factory.made)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_async(lambda: len(cache._state.leases) == 0)
        assert cache._state.memory.pending == 0


# -- connections -----------------------------------------------------------------------------------------------------


async def test_an_object_outlives_a_lost_connection(url: str, proxy: Proxy) -> None:
    factory = Factory()
    async with managers(proxy.url, 1) as (cache,):
        model = await cache.get_or_set(MODELS, "k", factory, tags="x")
        for _ in range(3):
            before = cache._state.topology.connection(b"").trust  # type: ignore[union-attr]  # there is Redis
            proxy.cut()
            await wait_until_async(lambda: before.deadline == float("-inf"))  # noqa: B023  # within this round
            await cache.get("t", "other")
            assert await cache.get_or_set(MODELS, "k", factory, tags="x") is model
            # It is served without Redis again.
            assert cache._state.memory.hit(b"magnus:models:k") is not None
        assert len(factory.made) == 1


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_what_is_invalidated_while_the_connection_is_lost_is_gone(url: str, proxy: Proxy, how: str) -> None:
    async with managers(proxy.url, 1, op_timeout=0.3) as (cache,), managers(url, 1) as (peer,):
        model = await cache.get_or_set(MODELS, "k", Model, tags="x")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache._state.reachable)
        # There is nothing better in an outage.
        assert await cache.get(MODELS, "k") is model
        await INVALIDATIONS[how](peer)
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        await gone(cache)


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_what_is_invalidated_in_an_outage_reaches_the_others_later(url: str, proxy: Proxy, how: str) -> None:
    async with managers(proxy.url, 1, op_timeout=0.3) as (cache,), managers(url, 1) as (peer,):
        await peer.get_or_set(MODELS, "k", Model, tags="x")
        await cache.get_or_set(MODELS, "k", Model, tags="x")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache._state.reachable)
        await INVALIDATIONS[how](cache)
        assert await cache.get(MODELS, "k") is None
        proxy.resume()
        await gone(peer)


async def test_a_load_outlives_a_lost_connection(proxy: Proxy) -> None:
    """Later callers join it, and its object is kept."""
    factory = Factory()
    async with managers(proxy.url, 1) as (cache,):
        factory.gate.clear()
        first = asyncio.create_task(cache.get_or_set(MODELS, "k", factory))
        await wait_until_async(lambda: factory.made)
        trust = cache._state.topology.connection(b"").trust  # type: ignore[union-attr]  # there is Redis
        proxy.cut()
        await wait_until_async(lambda: trust.deadline == float("-inf"))
        await cache.get("t", "other")
        second = asyncio.create_task(cache.get_or_set(MODELS, "k", factory))
        await wait_until_async(lambda: cache._state.flights.joined or len(factory.made) > 1)
        factory.gate.set()
        assert await first is await second is await cache.get(MODELS, "k")
        assert len(factory.made) == 1


async def test_without_tracking_a_long_load_is_joined(url: str, raw: redis.Redis) -> None:
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    factory = Factory()
    try:
        with virtual_clock() as clock:
            async with managers(url.replace("redis://", "redis://limited:pw@"), 1) as (cache,):
                factory.gate.clear()
                first = asyncio.create_task(cache.get_or_set(MODELS, "k", factory))
                await wait_until_async(lambda: factory.made)
                clock.advance(5)
                second = asyncio.create_task(cache.get_or_set(MODELS, "k", factory))
                await wait_until_async(lambda: cache._state.flights.joined or len(factory.made) > 1)
                factory.gate.set()
                assert await first is await second
                assert len(factory.made) == 1
    finally:
        raw.acl_deluser("limited")


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_joiners_of_a_load_that_was_overtaken_unheard_load_again(url: str, proxy: Proxy, how: str) -> None:
    factory = Factory()
    async with managers(proxy.url, 1, op_timeout=0.3) as (cache,), managers(url, 1) as (peer,):
        factory.gate.clear()
        first = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: factory.made)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache._state.reachable)
        cache._state.epochs.forget()
        await INVALIDATIONS[how](peer)
        second = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: cache._state.flights.joined or len(factory.made) > 1)
        proxy.resume()
        await wait_until_async(lambda: cache._state.reachable)
        factory.gate.set()
        assert await first is factory.made[0]
        assert await second is factory.made[1]


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize("when", ["kept", "loading"])
async def test_what_was_invalidated_unheard_is_told_by_its_epoch(url: str, proxy: Proxy, how: str, when: str) -> None:
    """Also by a process that has forgotten which epochs it knew: there are bounds on how many it remembers."""
    factory = Factory()
    async with managers(proxy.url, 1, op_timeout=0.3) as (cache,), managers(url, 1) as (peer,):
        await cache.get(MODELS, "k")
        if when == "loading":
            factory.gate.clear()
        task = asyncio.create_task(cache.get_or_set(MODELS, "k", factory, tags="x"))
        await wait_until_async(lambda: factory.made)
        if when == "kept":
            await task
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache._state.reachable)
        cache._state.epochs.forget()
        await INVALIDATIONS[how](peer)
        proxy.resume()
        await wait_until_async(lambda: cache._state.reachable)
        factory.gate.set()
        assert await task is factory.made[0]
        assert await cache.get(MODELS, "k") is None


async def test_loads_in_an_outage_are_kept(proxy: Proxy) -> None:
    factory = Factory()
    async with managers(proxy.url, 1, op_timeout=0.3) as (cache,):
        await cache.get(MODELS, "k")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not cache._state.reachable)
        model = await cache.get_or_set(MODELS, "k", factory)
        assert await cache.get_or_set(MODELS, "k", factory) is model
        assert len(factory.made) == 1


def test_threads_and_loops_share_one_object(url: str) -> None:
    with CacheManager(redis_url=url, max_staleness=0.05) as cache:

        async def ask() -> Any:
            return await cache.aio.get_or_set(MODELS, "k", Model)

        first = cache.get_or_set(MODELS, "k", Model)
        for _ in range(3):
            # On an event loop of its own, which is gone afterwards; nor does anything else renew the trust.
            assert asyncio.run(ask()) is first
            lapse(0.1)
            assert cache.get(MODELS, "k") is first
            assert cache.get_many(MODELS, ["k"]) == {"k": first}


# -- policies --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def test_grace(clock: VirtualClock, manager: CacheManager) -> None:
    with CacheManager(settings=manager._state.settings) as cache:
        namespace = Namespace("models", local=True, ttl=10, grace=60, retry=5)
        model = cache.get_or_set(namespace, "k", Model)
        clock.advance(11)

        def fail() -> Model:
            raise ValueError("away")

        assert cache.get(namespace, "k") is None
        assert cache.get_or_set(namespace, "k", fail) is model
        assert cache.get_or_set_many(namespace, ["k"], lambda _: fail()) == {"k": model}
        assert "stale" in cache.explain(namespace, "k").verdict
        clock.advance(6)
        assert cache.get_or_set(namespace, "k", Model) is not model
        clock.advance(100)
        with pytest.raises(ValueError, match="away"):
            cache.get_or_set(namespace, "k", fail)


async def test_early_refresh(url: str, clock: VirtualClock) -> None:
    namespace = Namespace("models", local=True, ttl=10, early=1.0)
    factory = Factory()
    async with managers(url, 1) as (cache,):
        first = await cache.get_or_set(namespace, "k", factory)
        entry = cache._state.memory.get_untrusted(b"magnus:models:k")
        assert entry is not None
        clock.advance(max(0.0, entry.deadline - cache._state.clock()) + 1e-6)
        if cache._state.clock() < entry.fresh_until:
            assert await cache.get_or_set(namespace, "k", factory) is first
            await wait_until_async(lambda: len(factory.made) == 2)
            await wait_until_async(lambda: len(cache._state.flights) == 0)
            assert await cache.get_or_set(namespace, "k", factory) is factory.made[1]


def test_remembered_errors(manager: CacheManager) -> None:
    namespace = Namespace("models", local=True, ttl=60, negative={LookupError: 60})
    calls = 0

    def fail() -> Model:
        nonlocal calls
        calls += 1
        raise LookupError("none")

    for _ in range(2):
        with pytest.raises(LookupError, match="none"):
            manager.get_or_set(namespace, "k", fail)
    assert calls == 1
    manager.delete(namespace, "k")
    assert isinstance(manager.get_or_set(namespace, "k", Model), Model)


def test_a_full_memory_evicts_them(manager: CacheManager) -> None:
    with CacheManager(redis_enabled=False, l1_max_entries=10) as cache:
        for number in range(50):
            cache.set(MODELS, number, Model())
        assert cache.get_stats()["in_memory_keys"] == 10


def test_bypass_and_disabled(manager: CacheManager) -> None:
    first = manager.get_or_set(MODELS, "k", Model)
    with manager.bypass():
        second = manager.get_or_set(MODELS, "k", Model)
    assert second is not first
    assert manager.get(MODELS, "k") is second
    with manager.disabled():
        assert manager.get_or_set(MODELS, "k", Model) is not second
        assert manager.set(MODELS, "k", Model()) is False
    assert manager.get(MODELS, "k") is None


def test_unused(manager: CacheManager) -> None:
    """What was never asked for is not there, and costs nothing."""
    assert manager.get(MODELS, "k") is None
    wait_until(lambda: not len(manager._state.flights))
