"""A load never loses its result: what cannot be stored is returned to all who waited, counted, and reported once."""

import asyncio
import dataclasses
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy
import pytest

from magnus_cache import (
    AsyncCacheManager,
    CacheBatchError,
    CacheEncodeError,
    CacheManager,
    CacheTypeError,
    CacheValueTooLargeError,
    Namespace,
    register_type,
)
from magnus_cache.errors import CacheBatchEncodeError
from tests.support.inside import waits_for_a_lease
from tests.support.wait import wait_until, wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

TINY = Namespace("tiny", max_value_bytes=20)
DEPTH = 5_000


@dataclasses.dataclass
class Box:
    items: list[Any]
    raw: bytearray
    numbers: Any


class Thing:
    """What the cache knows nothing about."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items = items if items is not None else []


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(DEPTH):
        value = [value]
    return value


def large() -> list[str]:
    return ["x" * 100]


MAKERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "type": ("t", lambda: {"rows": [{"price": 1}, {"price": Thing()}]}),
    "depth": ("t", deep),
    "size": (TINY, large),
}


@pytest.fixture(params=["shared", "alone"])
def manager(request: pytest.FixtureRequest, url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) if request.param == "shared" else CacheManager(redis_enabled=False) as manager:
        yield manager


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncCacheManager]:
    async with AsyncCacheManager(redis_url=url) as manager:
        yield manager


def count_of(records: list[Any], text: str) -> int:
    return sum(text in record.getMessage() for record in records)


# -- returned, counted, reported once --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("how", ["cached", "get_or_set"])
def test_a_blocking_load_returns_what_cannot_be_stored(
    manager: CacheManager, how: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    namespace, make = MAKERS[what]
    calls: list[Any] = []

    def load() -> Any:
        calls.append(make())
        return calls[-1]

    ask = (
        manager.cached(namespace, key="k")(load)
        if how == "cached"
        else lambda: manager.get_or_set(namespace, "k", load)
    )
    assert ask() is calls[0]
    assert ask() is calls[1]
    assert manager.get(namespace, "k") is None
    figures = manager.get_stats()
    assert figures["unstorable"] == figures["namespaces"][namespace]["unstorable"] == 2
    assert figures["namespaces"][namespace]["load_errors"] == 0
    assert count_of(caplog.records, "test_unstorable.test_a_blocking_load_returns_what_cannot_be_stored") == 1


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("how", ["cached", "get_or_set"])
async def test_an_async_load_returns_what_cannot_be_stored(url: str, how: str, what: str) -> None:
    namespace, make = MAKERS[what]
    calls: list[Any] = []

    async def load() -> Any:
        calls.append(make())
        return calls[-1]

    async with opened(url) as cache:
        cached = cache.cached(namespace, key="k")(load)
        for number in range(2):
            got = await (cached() if how == "cached" else cache.get_or_set(namespace, "k", load))
            assert got is calls[number]
        assert (await cache.get_stats())["unstorable"] == 2


@pytest.mark.parametrize("how", ["cached_many", "get_or_set_many"])
def test_a_batch_returns_what_cannot_be_stored_with_the_rest(manager: CacheManager, how: str) -> None:
    asked: list[list[str]] = []
    thing = Thing()

    def load(keys: list[str]) -> dict[str, Any]:
        asked.append(keys)
        return {key: thing if key == "bad" else key.upper() for key in keys}

    ask = (
        manager.cached_many("t", key="{keys}")(load)
        if how == "cached_many"
        else lambda keys: manager.get_or_set_many("t", keys, load)
    )
    assert ask(["a", "bad", "b"]) == {"a": "A", "bad": thing, "b": "B"}
    assert ask(["a", "bad", "b"]) == {"a": "A", "bad": thing, "b": "B"}
    assert asked == [["a", "bad", "b"], ["bad"]]
    assert manager.get_stats()["unstorable"] == 2


def test_warming_counts_what_cannot_be_stored(manager: CacheManager) -> None:
    report = manager.warm_cache("t", lambda key: Thing() if key == "bad" else key, ["a", "bad"])
    assert (report.total, report.loaded, report.failed, report.unstorable) == (2, 1, 0, 1)
    assert isinstance(report.errors["bad"], CacheEncodeError)
    assert "1 cannot be stored" in str(report)
    assert manager.get("t", "a") == "a"


def test_each_function_and_each_type_is_reported(manager: CacheManager, caplog: pytest.LogCaptureFixture) -> None:
    @dataclasses.dataclass
    class Other:
        n: int

    @manager.cached("t")
    def one(value: int) -> Any:
        return {"rows": [{}, {"it's": (Thing() if value else Other(1))}]}

    @manager.cached("t")
    def two() -> Any:
        return [Thing()]

    for _ in range(2):
        one(0), one(1), two()
    lines = [record.getMessage() for record in caplog.records if "is not cached" in record.getMessage()]
    assert len(lines) == 3
    assert ".one returned" in lines[0]
    assert 'result["rows"][1]["it\'s"] is of type' in lines[0]
    assert "Other" in lines[0]
    assert "register_type(Other)" in lines[0]
    assert "annotate" in lines[0]
    assert "Thing" in lines[1]
    assert "local=True" in lines[1]
    assert ".two returned" in lines[2]
    assert "result[0] is of type" in lines[2]


def test_a_refresh_leaves_nothing_older_behind(manager: CacheManager) -> None:
    """The next call loads again, instead of getting what was refreshed."""
    values: list[Any] = [["old"], Thing(), ["new"]]

    @manager.cached("t", key="k")
    def load() -> Any:
        return values.pop(0)

    assert load() == ["old"]
    assert isinstance(load.refresh(), Thing)
    assert manager.get("t", "k") is None
    assert load() == ["new"]


def test_a_stale_value_gives_way_to_what_cannot_be_stored(manager: CacheManager) -> None:
    namespace = Namespace("graceful", ttl="40ms", grace=60)
    manager.get_or_set(namespace, "k", lambda: ["old"])
    wait_until(lambda: manager.get(namespace, "k") is None)
    assert isinstance(manager.get_or_set(namespace, "k", Thing), Thing)
    assert isinstance(manager.get_or_set(namespace, "k", Thing), Thing)


async def test_a_refresh_for_nobody_is_not_tried_all_the_time(url: str) -> None:
    """Of a value that is refreshed in the background: its stale predecessor is served, and `retry` counts."""
    namespace = Namespace("graceful", ttl="40ms", grace=60, soft_timeout=0, retry=60)
    calls = 0

    async def load() -> Any:
        nonlocal calls
        calls += 1
        return ["old"] if calls == 1 else Thing()

    async with opened(url) as cache:
        await cache.get_or_set(namespace, "k", load)

        async def is_stale() -> bool:
            return await cache.get(namespace, "k") is None

        await wait_until_answered(is_stale)
        assert await cache.get_or_set(namespace, "k", load) == ["old"]
        figures = cache._state.stats.of(namespace)
        await wait_until_async(lambda: figures.unstorable == 1)
        await wait_until_async(lambda: len(cache._state.flights) == 0)
        for _ in range(5):
            assert await cache.get_or_set(namespace, "k", load) == ["old"]
            await wait_until_async(lambda: len(cache._state.flights) == 0)
        assert calls == 2


# -- joiners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["type", "size", "skip_if", "data"])
async def test_those_who_joined_get_objects_of_their_own(url: str, what: str) -> None:
    namespace = TINY if what == "size" else "t"
    go = asyncio.Event()

    async def load() -> Any:
        await go.wait()
        if what == "data":
            return [{"thing": Box(["inner"], bytearray(b"bytes"), numpy.arange(3)), "other": Thing()}]
        return ["x" * 100] if what == "size" else [{"thing": Thing(["inner"])}]

    async with opened(url) as cache:
        skip = {"skip_if": lambda _: True} if what == "skip_if" else {}
        cached = cache.cached(namespace, key="k", **skip)(load)
        calls = [asyncio.create_task(cached()) for _ in range(3)]
        await wait_until_async(lambda: cache._state.flights.joined == 2)
        go.set()
        one, two, three = await asyncio.gather(*calls)
    one.append("changed")
    if what != "size":
        one[0]["thing"].items.append("changed")
        assert two[0]["thing"].items == three[0]["thing"].items == ["inner"]
    assert len(two) == len(three) == 1
    assert two is not three


def test_threads_that_joined_get_objects_of_their_own(manager: CacheManager) -> None:
    go = threading.Event()

    @manager.cached("t", key="k")
    def load() -> Any:
        go.wait(10)
        return [[Thing()]]

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(load) for _ in range(3)]
        wait_until(lambda: manager._state.flights.joined == 2)
        go.set()
        results = [call.result() for call in calls]
    assert len({id(result) for result in results}) == 3
    assert len({id(result[0]) for result in results}) == 3
    assert manager.get_stats()["unstorable"] == 1


@pytest.mark.parametrize("kind", ["lock", "client"])
async def test_what_cannot_be_copied_is_shared_and_that_is_said(
    url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Client:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.requests: list[str] = []

    inner = threading.Lock() if kind == "lock" else Client()
    go = asyncio.Event()

    async def load() -> Any:
        await go.wait()
        return {"rows": [1], "inner": inner}

    async with opened(url) as cache:
        calls = [asyncio.create_task(cache.get_or_set("t", "k", load)) for _ in range(2)]
        await wait_until_async(lambda: cache._state.flights.joined == 1)
        go.set()
        one, two = await asyncio.gather(*calls)
    assert one["inner"] is two["inner"] is inner
    one["rows"].append(2)
    assert two["rows"] == [1]
    assert count_of(caplog.records, "share its result") == 1


async def test_a_value_of_very_many_parts_is_not_copied(url: str, caplog: pytest.LogCaptureFixture) -> None:
    go = asyncio.Event()

    async def load() -> Any:
        await go.wait()
        return [Thing(), *([number] for number in range(120_000))]

    async with opened(url) as cache:
        calls = [asyncio.create_task(cache.get_or_set("t", "k", load)) for _ in range(2)]
        await wait_until_async(lambda: cache._state.flights.joined == 1)
        go.set()
        one, two = await asyncio.gather(*calls)
    assert one is two
    assert count_of(caplog.records, "share its result") == 1


async def test_callers_after_the_load_begin_another(url: str) -> None:
    """Nobody joins a load for whom there is no copy."""
    calls = 0

    async def load() -> Any:
        nonlocal calls
        calls += 1
        return [Thing()]

    async with opened(url) as cache:
        seen: list[Any] = [await cache.get_or_set("t", "k", load) for _ in range(3)]
    assert calls == 3
    assert len({id(value) for value in seen}) == 3


# -- strict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("how", ["cached", "get_or_set", "Namespace"])
def test_strict_raises(manager: CacheManager, how: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    namespace, make = MAKERS[what]
    if how == "cached":
        ask = manager.cached(namespace, key="k", strict=True)(make)
    elif how == "get_or_set":

        def ask() -> Any:
            return manager.get_or_set(namespace, "k", make, strict=True)
    else:
        limit = 20 if what == "size" else None
        ask = manager.cached(Namespace("strict", strict=True, max_value_bytes=limit), key="k")(make)
    with pytest.raises(CacheEncodeError) as caught:
        ask()
    if what == "type":
        assert caught.value.path == 'result["rows"][1]["price"]'
        assert caught.value.type_name.endswith("Thing")
    assert isinstance(caught.value, CacheValueTooLargeError) is (what == "size")
    assert not count_of(caplog.records, "is not cached")


def test_a_call_may_be_less_strict_than_its_namespace(manager: CacheManager) -> None:
    namespace = Namespace("strict", strict=True)
    assert isinstance(manager.get_or_set(namespace, "k", Thing, strict=False), Thing)
    assert manager.get_or_set_many(namespace, ["k"], lambda keys: dict.fromkeys(keys, len), strict=False)
    with pytest.raises(CacheTypeError, match="^strict: "):
        manager.cached("t", strict="yes")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(CacheTypeError, match="^strict: "):
        Namespace("n", strict=1)  # type: ignore[arg-type]  # likewise


async def test_strict_callers_all_get_the_error_and_others_the_value(url: str) -> None:
    go = asyncio.Event()

    async def load() -> Any:
        await go.wait()
        return Thing()

    async with opened(url) as cache:
        strict = [asyncio.create_task(cache.get_or_set("t", "k", load, strict=True)) for _ in range(2)]
        await wait_until_async(lambda: cache._state.flights.joined == 1)
        other = asyncio.create_task(cache.get_or_set("t", "k", load))
        await wait_until_async(lambda: cache._state.flights.joined == 2)
        go.set()
        first, second = await asyncio.gather(*strict, return_exceptions=True)
        assert isinstance(first, CacheEncodeError)
        assert first is second
        assert isinstance(await other, Thing)


@pytest.mark.parametrize("how", ["cached_many", "get_or_set_many"])
def test_strict_batches_raise_with_the_results_of_the_others(manager: CacheManager, how: str) -> None:
    def load(keys: list[str]) -> dict[str, Any]:
        return {key: Thing() if key.startswith("bad") else key for key in keys}

    ask = (
        manager.cached_many("t", strict=True)(load)
        if how == "cached_many"
        else lambda keys: manager.get_or_set_many("t", keys, load, strict=True)
    )
    with pytest.raises(CacheEncodeError) as caught:
        ask(["a", "bad", "bad too"])
    error = caught.value
    assert isinstance(error, CacheBatchError)
    assert error.results == {"a": "a"}
    assert set(error.errors) == {"bad", "bad too"}
    with pytest.raises(CacheEncodeError):
        ask(["bad"])


def test_errors_of_batches_travel() -> None:
    error = CacheBatchEncodeError({"a": 1}, {"b": CacheEncodeError("m.T", "no", "result.b")})
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.results) == (str(error), "result.b", {"a": 1})
    assert pickle.loads(pickle.dumps(error.errors["b"])).path == "result.b"
    too_large = pickle.loads(pickle.dumps(CacheValueTooLargeError("t", 5, 4)))
    assert (too_large.size, too_large.limit) == (5, 4)


def test_set_always_raises(manager: CacheManager) -> None:
    with pytest.raises(CacheEncodeError, match=r'value\["rows"\]\[1\] is of type .*Thing') as caught:
        manager.set("t", "k", {"rows": [1, Thing()]})
    assert caught.value.path == 'value["rows"][1]'
    with pytest.raises(CacheEncodeError):
        manager.set_many("t", {"a": 1, "b": Thing()})
    with pytest.raises(CacheValueTooLargeError):
        manager.set(TINY, "k", "x" * 100)


# -- in the fleet ----------------------------------------------------------------------------------------------------


async def test_other_processes_load_at_once_and_at_the_same_time(url: str) -> None:
    """Those who wait for another's lease are told that no value will come, and do not wait for each other."""
    go, started = asyncio.Event(), 0

    async def slow() -> Any:
        nonlocal started
        started += 1
        if started > 1:
            # Of those who waited, each must have begun before any ends.
            await wait_until_async(lambda: started == 4)
        else:
            await go.wait()
        return Thing()

    managers = [AsyncCacheManager(redis_url=url, lease=30, wait_timeout=60) for _ in range(4)]
    try:
        first = asyncio.create_task(managers[0].get_or_set("t", "k", slow))
        await wait_until_async(lambda: started == 1)
        others = [asyncio.create_task(manager.get_or_set("t", "k", slow)) for manager in managers[1:]]
        await wait_until_async(lambda: all(map(waits_for_a_lease, managers[1:])))
        for manager in managers[1:]:
            # What they ask when they begin to wait is answered before this is.
            await manager.get("t", "other")
            await manager.get("t", "other")
        go.set()
        results = await asyncio.gather(first, *others)
    finally:
        for manager in managers:
            await manager.aclose()
    assert all(isinstance(result, Thing) for result in results)
    assert started == 4


async def test_a_later_caller_gets_the_lease_and_stores(url: str) -> None:
    """What is left for those who waited is in nobody's way."""
    async with opened(url) as one, opened(url) as two:
        assert isinstance(await one.get_or_set("t", "k", Thing), Thing)
        assert await two.get_or_set("t", "k", lambda: "good") == "good"
        assert await one.get("t", "k") == "good"


# -- what is said of the parts ---------------------------------------------------------------------------------------


@register_type
@dataclasses.dataclass
class Quote:
    price: Any
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_paths(manager: CacheManager) -> None:
    thing = Thing()
    circle: dict[str, Any] = {"children": [1]}
    circle["children"].append({"parent": circle})
    cases: list[tuple[Any, str]] = [
        (thing, "value"),
        ({"rows": [0, 1, 2, Quote(thing)]}, 'value["rows"][3].price'),
        ([Quote(1, {"a": (1, {2: thing})})], 'value[0].more["a"][1][2]'),
        ({thing: 1}, "value (key <Thing>)"),
        ([{1, thing}], "value[0] (an item)"),
        ({"x" * 100: thing}, 'value["' + "x" * 40 + '…"]'),
        ({None: {True: thing}}, "value[None][True]"),
        ([*range(100_000), thing], "value[100000]"),
        (circle, 'value["children"][1]["parent"]'),
    ]
    for value, path in cases:
        with pytest.raises(CacheEncodeError) as caught:
            manager.set("t", "k", value)
        assert caught.value.path == path
        assert str(caught.value).startswith(path)
    with pytest.raises(CacheEncodeError, match="nested deeper than"):
        manager.set("t", "k", deep())
    with pytest.raises(CacheEncodeError, match="contains itself"):
        manager.set("t", "k", circle)


def test_no_value_is_in_a_message(manager: CacheManager) -> None:
    class Secret(str):
        def __repr__(self) -> str:
            raise AssertionError("nobody is to look")

    with pytest.raises(CacheEncodeError) as caught:
        manager.set("t", "k", {"token": Secret("hidden"), ("hidden", Secret("hidden")): 1})
    assert "hidden" not in str(caught.value)
