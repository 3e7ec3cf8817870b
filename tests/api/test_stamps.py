"""Stamped reads: when a value's load began, how old it is, and where it came from."""

import asyncio
import base64
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import (
    NOT_MODIFIED,
    AsyncCacheManager,
    CacheBatchError,
    CacheManager,
    Namespace,
    Stamped,
    current_load,
)
from magnus_cache._engine.api.search import Search
from magnus_cache._engine.store.records import MISS
from magnus_cache.events import CacheEvent, StaleServed
from magnus_cache.testing import EmbeddedCluster, Proxy, virtual_clock
from tests.support.groups import cache_of
from tests.support.inside import state_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

KINDS = {
    "plain": Namespace("t", ttl=60),
    "far": Namespace("t", ttl=60, l1=False),
    "grace": Namespace("t", ttl=60, grace=60, jitter=0.3),
    "early": Namespace("t", ttl=60, early=1.0),
    "compressed": Namespace("t", ttl=60, compress="zlib"),
    "local": Namespace("t", ttl=60, local=True),
    "codec": Namespace("t", ttl=60, codec=(lambda value: repr(value).encode(), lambda raw: raw.decode())),
    "forever": Namespace("t", ttl="36500d"),
}


def told(server_time: tuple[int, int]) -> datetime:
    seconds, micros = server_time
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)


def close(one: datetime, other: datetime, within: float) -> bool:
    return abs((one - other).total_seconds()) < within


async def test_the_stamp_is_that_of_the_load_in_every_process(url: str, raw: Any) -> None:
    calls: list[int] = []
    with virtual_clock() as clock:

        async def load() -> str:
            calls.append(1)
            clock.advance(30)
            return "value"

        async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as other:
            before = told(raw.time())
            first = await one.get_or_set("t", "k", load, 60, stamped=True)
            assert (first.value, first.level, first.stale) == ("value", "load", False)
            assert close(first.as_of, before, 10)
            assert 30 <= first.age < 40
            near = await one.get_or_set("t", "k", load, 60, stamped=True)
            far = await other.get("t", "k", stamped=True)
            again = await other.get("t", "k", None, stamped=True)
            assert far is not None
            assert again is not None
            assert [each.level for each in (near, far, again)] == ["l1", "l2", "l1"]
            # The same to the microsecond, whoever asks.
            assert near.as_of == far.as_of == again.as_of == first.as_of
            assert max(near.age, far.age, again.age) < 45
            assert len(calls) == 1
            life = await one.lifetime("t", "k")
            assert life is not None
            assert life.age >= near.age


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_namespace_has_stamps(url: str, kind: str) -> None:
    namespace = KINDS[kind]
    async with AsyncCacheManager(redis_url=url) as cache:

        @cache.cached(namespace, key="{number}")
        async def f(number: int) -> str:
            return f"value {number}"

        first, second = await f.stamped(1), await f.stamped(1)
        assert first.value == second.value == "value 1" or kind == "codec"
        assert first.as_of == second.as_of
        assert (first.level, second.level) == ("load", "l2" if kind == "far" else "l1")
        set_at = (await cache.get(namespace, "1", stamped=True)).as_of  # type: ignore[union-attr]
        assert set_at == first.as_of
        await cache.set(namespace, "1", "another")
        found = await cache.get(namespace, "1", stamped=True)
        assert found is not None
        assert found.as_of > first.as_of
        assert 0 <= found.age < 30


def test_blocking_callers_get_the_same(url: str) -> None:
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as other:

        @cache.cached("t", 60, key="{number}")
        def f(number: int) -> int:
            return number

        stamps = [f.stamped(1), f.stamped(number=1), other.get("t", "1", stamped=True)]
        stamps += [
            other.get_or_set("t", "1", lambda: 0, stamped=True),
            *other.get_many("t", ["1"], stamped=True).values(),
        ]
        assert [each.level for each in stamps if each] == ["load", "l1", "l2", "l1", "l1"]
        assert {each.as_of for each in stamps if each} == {stamps[0].as_of}  # type: ignore[union-attr]
        assert cache.get("t", "none", stamped=True) is None
        assert cache.get("t", "none", 5, stamped=True) == 5
        assert cache.get("t", "1", stamped=True)[0] == 1  # type: ignore[index]


def test_what_is_never_in_memory_is_a_hit_for_blocking_callers_too(url: str) -> None:
    far = KINDS["far"]
    with CacheManager(redis_url=url) as cache:

        @cache.cached(far, key="{number}")
        def f(number: int) -> int:
            return number

        # From a few reads on, a thread reads by itself, and gets payloads of what is far.
        stamps = [f.stamped(1) for _ in range(20)]
        assert {each.as_of for each in stamps} == {stamps[0].as_of}
        assert cache.get(far, "1", stamped=True).as_of == stamps[0].as_of  # type: ignore[union-attr]
        assert f.cache_info()[:3] == (19, 1, 1)


async def test_a_miss_is_the_default_itself(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.get("t", "k", stamped=True) is None
        assert await cache.get("t", "k", "none", stamped=True) == "none"
        assert await cache.get_many("t", ["k"], stamped=True) == {}
        await cache.set("t", "k", None)
        found = await cache.get("t", "k", "none", stamped=True)
        assert isinstance(found, Stamped)
        assert found.value is None
        with cache.disabled():
            assert await cache.get("t", "k", "none", stamped=True) == "none"
            loaded = await cache.get_or_set("t", "k", lambda: 1, stamped=True)
            assert (loaded.value, loaded.level) == (1, "load")
            assert loaded.age < 30


async def test_all_who_wait_for_a_load_get_its_stamp(url: str) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        begun.set()
        await go.wait()
        return 1

    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as other:
        tasks = [asyncio.ensure_future(one.get_or_set("t", "k", load, stamped=True)) for _ in range(3)]
        await begun.wait()
        elsewhere = asyncio.ensure_future(other.get_or_set("t", "k", load, stamped=True))
        go.set()
        stamps, far = await asyncio.gather(*tasks), await elsewhere
        assert {each.as_of for each in stamps} == {far.as_of}
        assert {each.level for each in stamps} == {"load"}
        assert far.level == "l2"


def test_threads_that_wait_for_a_load_get_its_stamp(url: str) -> None:
    barrier, calls = threading.Barrier(4), list[int]()

    def load() -> dict[str, int]:
        calls.append(1)
        return {"a": 1}

    with CacheManager(redis_url=url) as cache, ThreadPoolExecutor(4) as pool:

        def call(_: int) -> Stamped[dict[str, int]]:
            barrier.wait()
            return cache.get_or_set("t", "k", load, stamped=True)

        stamps = list(pool.map(call, range(4)))
    assert len(calls) == 1
    assert len({each.as_of for each in stamps}) == 1
    assert [each.value for each in stamps] == [{"a": 1}] * 4


async def test_a_stale_value_says_so(url: str) -> None:
    failing = Namespace("t", ttl=1, grace=60, soft_timeout=0.05)

    async def broken() -> int:
        raise OSError

    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            fresh = await cache.get_or_set(failing, "k", lambda: 1, stamped=True)
            clock.advance(10)
            stale = await cache.get_or_set(failing, "k", broken, stamped=True)
            assert (stale.value, stale.stale, stale.as_of) == (1, True, fresh.as_of)
            assert stale.age >= 10
            # Its load is paused now, and the value is served without one.
            assert (await cache.get_or_set(failing, "k", broken, stamped=True)).stale
            many = await cache.get_or_set_many(failing, ["k"], lambda keys: {}, stamped=True)
            assert many["k"].stale
            assert many["k"].as_of == fresh.as_of
            assert await cache.get(failing, "k", stamped=True) is None


def test_a_stale_value_says_so_in_blocking_code(url: str) -> None:
    failing = Namespace("t", ttl=1, grace=60)

    def broken() -> int:
        raise OSError

    with virtual_clock() as clock, CacheManager(redis_url=url) as cache:
        fresh = cache.get_or_set(failing, "k", lambda: 1, stamped=True)
        clock.advance(10)
        stale = cache.get_or_set(failing, "k", broken, stamped=True)
        assert (stale.value, stale.stale, stale.as_of) == (1, True, fresh.as_of)
        refreshed = cache.get_or_set(failing, "other", lambda: 2, stamped=True)
        assert (refreshed.stale, refreshed.level) == (False, "load")


async def test_a_touched_value_is_as_old_as_before(url: str) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
            await cache.set("t", "k", 1, ttl=60)
            first = await cache.get("t", "k", stamped=True)
            clock.advance(30)
            await cache.touch("t", "k", 3600)
            for each in (cache, other):
                later = await each.get("t", "k", stamped=True)
                assert later is not None
                assert first is not None
                assert later.as_of == first.as_of
                assert later.age >= 29.9


async def test_what_the_source_confirms_is_of_that_moment(url: str) -> None:
    """`NOT_MODIFIED` keeps the value, and says that it is still what the source has."""

    def load() -> int:
        return NOT_MODIFIED if current_load().has_previous else 1

    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            namespace = Namespace("t", ttl=1, grace=60)
            first = await cache.get_or_set(namespace, "k", load, stamped=True)
            clock.advance(10)
            second = await cache.get_or_set(namespace, "k", load, stamped=True)
            assert (second.value, second.level, second.stale) == (1, "load", False)
            assert (second.as_of - first.as_of).total_seconds() >= 9.9


async def test_each_value_of_a_batch_has_the_stamp_of_its_own_load(url: str) -> None:
    def load(keys: Sequence[str]) -> Mapping[str, str]:
        return {key: key.upper() for key in keys if key != "missing"}

    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:

        @cache.cached_many("t", 60, key="{keys}")
        def f(keys: Sequence[str]) -> Mapping[str, str]:
            return load(keys)

        early = await cache.get_or_set("t", "a", lambda: "A", stamped=True)
        found = await cache.get_or_set_many("t", ["a", "b", "c", "missing"], load, stamped=True)
        assert list(found) == ["a", "b", "c"]
        assert [each.level for each in found.values()] == ["l1", "load", "load"]
        assert found["a"].as_of == early.as_of < found["b"].as_of == found["c"].as_of
        for each in (cache, other):
            many = await each.get_many("t", ["c", "a"], stamped=True)
            assert {key: stamp.as_of for key, stamp in many.items()} == {key: found[key].as_of for key in ("c", "a")}
        blocking = await asyncio.to_thread(f.stamped, ["a", "c", "d"])
        assert [blocking[key].value for key in ("a", "c", "d")] == ["A", "C", "D"]
        assert blocking["c"].as_of == found["c"].as_of
        assert blocking["d"].level == "load"


async def test_values_that_a_failed_batch_has_are_stamped(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        with pytest.raises(CacheBatchError) as caught:
            await cache.get_or_set_many("t", ["a", "b"], lambda keys: {"a": 1, "b": OSError()}, stamped=True)
        assert caught.value.results["a"].value == 1
        assert caught.value.results["a"].level == "load"


async def test_methods_have_stamps(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:

        class Desk:
            def __cache_key__(self) -> str:
                return "desk"

            @cache.cached("t")
            async def price(self, ticker: str) -> float:
                return float(len(ticker))

        desk = Desk()
        assert (await desk.price.stamped("AAPL")).value == 4.0
        assert (await Desk().price.stamped("AAPL")).level == "l1"


def test_without_redis_the_clock_of_the_host_counts() -> None:
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        before = datetime.now(UTC)
        cache.set("t", "k", 1, ttl=600)
        clock.advance(100)
        found = cache.get("t", "k", stamped=True)
        assert found is not None
        assert close(found.as_of, before, 30)
        assert found.level == "l1"
        assert 100 <= found.age < 130
        assert cache.get_or_set("t", "k", lambda: 2, stamped=True).as_of == found.as_of
        assert cache.get_or_set("t", "other", lambda: 2, stamped=True).level == "load"


async def test_in_an_outage_a_stamp_is_as_good_as_before(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=f"redis://127.0.0.1:{proxy.port}", op_timeout=0.2) as cache:
        far = Namespace("far", l1=True)
        first = await cache.get_or_set(far, "k", lambda: 1, 60, stamped=True)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not state_of(cache).reachable)
        away = await cache.get(far, "k", stamped=True)
        assert away is not None
        assert (away.as_of, away.level) == (first.as_of, "l1")
        assert first.age <= away.age < 60
        assert (await cache.get_or_set(far, "k", lambda: 2, stamped=True)).level == "l1"
        assert (await cache.get_or_set_many(far, ["k"], lambda keys: {}, stamped=True))["k"].level == "l1"
        assert (await cache.get_many(far, ["k"], stamped=True))["k"].level == "l1"
        alone = await cache.get_or_set(far, "other", lambda: 2, stamped=True)
        assert (alone.level, alone.stale) == ("load", False)
        assert alone.as_of > first.as_of


async def test_on_a_cluster_the_clock_of_the_owner_counts(cluster: EmbeddedCluster) -> None:
    keys = [f"k{number}" for number in range(12)]
    async with cache_of(cluster) as one, cache_of(cluster) as other:
        stamps = await one.get_or_set_many("t", keys, lambda some: dict.fromkeys(some, 1), stamped=True)
        assert {each.level for each in stamps.values()} == {"load"}
        for key in keys:
            found = await other.get("t", key, stamped=True)
            assert found is not None
            assert found.as_of == stamps[key].as_of
            assert 0 <= found.age < 60


async def test_of_a_counter_it_is_when_it_was_created(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.incr("t", "n") == 1
        first = await cache.get("t", "n", stamped=True)
        assert await cache.incr("t", "n") == 2
        second = await cache.get("t", "n", stamped=True)
        assert first is not None
        assert second is not None
        assert (second.value, second.as_of) == (2, first.as_of)


@pytest.mark.parametrize("kind", ["alone", "local", "sealed", "large"])
async def test_a_counter_stays_as_old_as_it_is(url: str, kind: str) -> None:
    """Also where its number is replaced by another value: in memory, sealed, and too large for Redis to count."""
    namespace = Namespace("t", local=kind == "local", seal=kind == "sealed")
    settings: dict[str, Any] = {"redis_enabled": False} if kind == "alone" else {"redis_url": url}
    if kind == "sealed":
        settings["seal_keys"] = "a:" + base64.b64encode(bytes(32)).decode()
    with virtual_clock() as clock:
        async with AsyncCacheManager(**settings) as cache:
            await cache.incr(namespace, "n", initial=2**60 if kind == "large" else 0, ttl=3600)
            first = await cache.get(namespace, "n", stamped=True)
            clock.advance(30)
            await cache.incr(namespace, "n")
            second = await cache.get(namespace, "n", stamped=True)
            assert first is not None
            assert second is not None
            assert (second.value, second.as_of) == (first.value + 1, first.as_of)
            assert second.age >= 30


async def test_what_is_served_stale_in_an_outage_is_noted_before_it_is_gone(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not found at first, as Redis seemed to be there. Its stamp is its own, whatever becomes of it later."""
    quotes = Namespace("t", ttl=60, grace=3600)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=f"redis://127.0.0.1:{proxy.port}", op_timeout=0.2) as cache:

            def failing(keys: Sequence[str]) -> Mapping[str, str]:
                raise OSError

            first = await cache.get_or_set_many(quotes, ["a"], lambda keys: {"a": 1}, stamped=True)
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not state_of(cache).reachable)
            clock.advance(100)
            found = Search.found

            def not_yet_away(search: Search, item: Any, _entry: Any, _value: Any, *, near: bool) -> None:
                found(search, item, None, MISS, near=near)

            def gone(event: CacheEvent) -> None:
                if isinstance(event, StaleServed):
                    state_of(cache).memory.clear()

            monkeypatch.setattr(Search, "found", not_yet_away)
            cache.observe(gone)
            away = await cache.get_or_set_many(quotes, ["a"], failing, stamped=True)
            assert (away["a"].as_of, away["a"].level, away["a"].stale) == (first["a"].as_of, "l1", True)
            assert away["a"].age >= 100


@given(st.lists(st.tuples(st.sampled_from(["set", "touch", "advance", "load"]), st.integers(1, 40)), max_size=8))
def test_a_stamp_never_makes_a_value_younger_than_it_is(steps: list[tuple[str, int]]) -> None:
    """By a model: the moment of the last `set` or load."""
    with virtual_clock() as clock, CacheManager(redis_enabled=False) as cache:
        now, made = 0, None
        for step, number in steps:
            if step == "advance":
                clock.advance(number)
                now += number
            elif step == "set":
                cache.set("t", "k", number, ttl=10_000)
                made = now
            elif step == "touch":
                cache.touch("t", "k", 10_000 + number)
            else:
                made = now if made is None else made
                cache.get_or_set("t", "k", lambda number=number: number, 10_000)  # type: ignore[misc]
            found = cache.get("t", "k", stamped=True)
            assert (found is None) is (made is None)
            if found is not None and made is not None:
                assert now - made <= found.age < now - made + 30
