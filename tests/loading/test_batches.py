"""Many keys, one call: `get_or_set_many` and `cached_many`, alone, among each other and beside single loads."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from magnus_cache import AsyncCacheManager, CacheBatchError, CacheDeadlockError, CacheManager, CacheRecursionError
from magnus_cache._engine.keys.names import lease_name
from magnus_cache.errors import CacheArgumentError
from tests.support.fleet_of_managers import fleet, near
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.anyio


class Source:
    """A batch loader that notes its calls; keys that begin with "no" are unknown to it, with "bad" fail."""

    def __init__(self, pause: float = 0.0) -> None:
        self.calls: list[list[Any]] = []
        self.pause = pause

    async def __call__(self, keys: list[Any]) -> dict[Any, Any]:
        self.calls.append(keys)
        await asyncio.sleep(self.pause)
        return self.answer(keys)

    def answer(self, keys: list[Any]) -> dict[Any, Any]:
        answers: dict[Any, Any] = {}
        for key in reversed(keys):
            if str(key).startswith("bad"):
                answers[key] = LookupError(f"no {key}")
            elif not str(key).startswith("no"):
                answers[key] = [key]
        return answers

    def blocking(self, keys: list[Any]) -> dict[Any, Any]:
        self.calls.append(keys)
        threading.Event().wait(self.pause)
        return self.answer(keys)


async def test_only_the_missing_keys_in_one_call_and_the_callers_order(url: str) -> None:
    source = Source()
    async with fleet(url) as (one, two):
        await two.set_many("t", {"b": ["b"], "d": ["d"]})
        found = await one.get_or_set_many("t", ["e", "d", "none", "c", "b", "a", "c"], source)
        assert list(found.items()) == [("e", ["e"]), ("d", ["d"]), ("c", ["c"]), ("b", ["b"]), ("a", ["a"])]
        assert source.calls == [["e", "none", "c", "a"]]
        assert await two.get_or_set_many("t", list("abcde"), source) == {key: [key] for key in "abcde"}
        assert len(source.calls) == 1
        assert near(two, "t", "c")


async def test_invariant_3_a_fleet_of_batches_loads_each_key_once(url: str) -> None:
    source = Source(0.1)
    async with fleet(url, 4) as managers:
        wanted = [[f"k{(start + n) % 40}" for n in range(20)] for start in range(0, 40, 5)]
        jobs = [managers[n % 4].get_or_set_many("t", keys, source) for n, keys in enumerate(wanted)]
        singles = [managers[n % 4].get_or_set("t", f"k{n}", lambda n=n: single(f"k{n}")) for n in range(0, 40, 3)]
        alone: list[str] = []

        async def single(key: str) -> list[str]:
            alone.append(key)
            await asyncio.sleep(0.1)
            return [key]

        results = await asyncio.gather(*jobs, *singles)
        for keys, result in zip(wanted, results, strict=False):
            assert list(result.items()) == [(key, [key]) for key in keys]
        loaded = [key for call in source.calls for key in call] + alone
        assert sorted(loaded) == sorted(f"k{n}" for n in range(40))


async def test_one_failing_key_fails_alone(url: str, raw: Any) -> None:
    source = Source()
    async with fleet(url) as (one, two):
        with pytest.raises(CacheBatchError) as caught:
            await one.get_or_set_many("t", ["a", "bad1", "b", "bad2"], source)
        assert caught.value.results == {"a": ["a"], "b": ["b"]}
        assert list(caught.value.errors) == ["bad1", "bad2"]
        assert "LookupError" in str(caught.value)
        assert "no bad1" not in str(caught.value)
        assert isinstance(caught.value.__cause__, LookupError)
        assert await two.get_many("t", ["a", "bad1", "b"]) == {"a": ["a"], "b": ["b"]}
        await wait_until_async(lambda: not list(raw.scan_iter("{*")))


async def test_a_loader_that_raises_raises_as_it_is(url: str, raw: Any) -> None:
    async def fails(keys: list[str]) -> dict[str, int]:
        raise ConnectionError("the source is away")

    async with fleet(url) as (one, two):
        with pytest.raises(ConnectionError, match="the source is away"):
            await one.get_or_set_many("t", ["a", "b"], fails)
        await wait_until_async(lambda: not list(raw.scan_iter("{*")))
        assert await two.get_or_set_many("t", ["a", "b"], Source()) == {"a": ["a"], "b": ["b"]}


async def test_a_loader_that_returns_no_mapping_is_told_so(url: str) -> None:
    async with fleet(url, 1) as (one,):
        with pytest.raises(CacheArgumentError, match="batch_loader: it has to return a mapping"):
            await one.get_or_set_many("t", ["a"], lambda keys: [1])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("keys", ["abc", 7, None, ["a", 1.5], ["a", ""]])
async def test_keys_that_cannot_be_meant(keys: Any) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        with pytest.raises(CacheArgumentError):
            await cache.get_or_set_many("t", keys, Source())


async def test_what_a_delete_overtakes_is_not_stored(url: str) -> None:
    """Invariant 2, for the keys of a batch one by one."""
    began, go = asyncio.Event(), asyncio.Event()

    async def load(keys: list[str]) -> dict[str, str]:
        began.set()
        await go.wait()
        return dict.fromkeys(keys, "old")

    async with fleet(url) as (one, two):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b", "c"], load))
        await began.wait()
        await two.delete("t", "b")
        await one.get_stats()
        go.set()
        assert await call == dict.fromkeys("abc", "old")
        for manager in (one, two):
            assert await manager.get_many("t", list("abc")) == {"a": "old", "c": "old"}


async def test_a_cancelled_batch_gives_its_leases_back(url: str, raw: Any) -> None:
    """Invariant 4: and whoever waits for one of its keys in another call gets it all the same."""
    began = asyncio.Event()

    async def never(keys: list[str]) -> dict[str, str]:
        began.set()
        await asyncio.Event().wait()
        return {}

    async with fleet(url, 1, wait_timeout=1.0) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b"], never))
        await began.wait()
        single = asyncio.create_task(one.get_or_set("t", "a", lambda: "single"))
        await wait_until_async(lambda: one._engine.state.flights.joined == 1)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert await single == "single"
        await one.get_stats()
        assert not raw.exists(lease_name(b"magnus:t:a"), lease_name(b"magnus:t:b"))


async def test_keys_left_out_are_loaded_by_whoever_else_wants_them(url: str) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def nothing(keys: list[str]) -> dict[str, str]:
        began.set()
        await go.wait()
        return {}

    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b"], nothing))
        await began.wait()
        others = [
            asyncio.create_task(one.get_or_set("t", "a", lambda: "single")),
            asyncio.create_task(one.get_or_set_many("t", ["b"], Source())),
        ]
        await wait_until_async(lambda: one._engine.state.flights.joined == 2)
        go.set()
        assert await call == {}
        assert await asyncio.gather(*others) == ["single", {"b": ["b"]}]


def test_blocking_batches_call_the_loader_in_the_callers_thread(url: str) -> None:
    threads: list[str] = []
    source = Source()

    def load(keys: list[str]) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return source.blocking(keys)

    with CacheManager(redis_url=url) as cache:
        assert cache.get_or_set_many("t", ["a", "none", "b"], load) == {"a": ["a"], "b": ["b"]}
        assert cache.get_or_set_many("t", ["b", "c"], load) == {"b": ["b"], "c": ["c"]}
        assert source.calls == [["a", "none", "b"], ["c"]]
        assert threads == [threading.current_thread().name] * 2
        assert cache.get_or_set_many("t", ["d"], source) == {"d": ["d"]}
        with pytest.raises(CacheBatchError) as caught:
            cache.get_or_set_many("t", ["x", "bad"], load)
        assert caught.value.results == {"x": ["x"]}
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set_many("t", ["y"], lambda keys: 1 // 0)  # type: ignore[arg-type,return-value]

        async def coroutine(keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, 1)

        assert cache.get_or_set_many("t", ["z"], lambda keys: coroutine(keys)) == {"z": 1}


def test_threads_share_the_loads_of_their_batches(url: str) -> None:
    source = Source(0.1)
    with CacheManager(redis_url=url) as cache:
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(cache.get_or_set_many("t", [n, n + 1], source.blocking)))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(results, key=str) == [{n: [n], n + 1: [n + 1]} for n in range(6)]
        assert sorted(key for call in source.calls for key in call) == list(range(7))


def test_a_loader_that_needs_its_own_keys_is_an_error_and_not_a_standstill(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        def load(keys: list[str]) -> dict[str, Any]:
            return {key: cache.get_or_set("t", "b", lambda: 1) for key in keys}

        with pytest.raises(CacheRecursionError):
            cache.get_or_set_many("t", ["a", "b", "c"], load)


def test_an_interrupted_thread_leaves_nothing_behind(url: str, raw: Any) -> None:
    with CacheManager(redis_url=url) as cache:

        def load(keys: list[str]) -> dict[str, Any]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set_many("t", ["a", "b"], load)
        assert cache.get_or_set_many("t", ["a", "b"], Source().blocking) == {"a": ["a"], "b": ["b"]}
        wait_until(lambda: not list(raw.scan_iter("{*")))


@pytest.mark.parametrize("enabled", [True, False])
async def test_modes(url: str, enabled: bool) -> None:
    source = Source()
    async with AsyncCacheManager(redis_url=url, redis_enabled=enabled) as cache:
        await cache.set("t", "a", "old")
        with cache.disabled():
            assert await cache.get_or_set_many("t", ["a", "none", "b"], source) == {"a": ["a"], "b": ["b"]}
        assert await cache.get_many("t", ["a", "b"]) == {"a": "old"}
        with cache.bypass():
            assert await cache.get_or_set_many("t", ["a"], source) == {"a": ["a"]}
        assert await cache.get("t", "a") == ["a"]
        assert await cache.get_or_set_many("t", [], source) == {}
        assert source.calls == [["a", "none", "b"], ["a"]]


async def test_a_key_that_somebody_else_is_loading_holds_up_no_other(url: str, raw: Any) -> None:
    """The loader is called for what this process has leased; and once more for what falls to it later."""
    source = Source()
    raw.set(lease_name(b"magnus:t:a"), "somebody:1:slow", px=60_000)
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set_many("t", ["a", "b", "c"], source))
        await wait_until_async(lambda: source.calls and raw.exists("magnus:t:b"))
        assert await one.get("t", "b") == ["b"]
        raw.delete(lease_name(b"magnus:t:a"))
        assert await call == {"a": ["a"], "b": ["b"], "c": ["c"]}
        assert source.calls == [["b", "c"], ["a"]]


async def test_a_thousand_keys(url: str) -> None:
    source = Source()
    async with fleet(url, 1) as (one,):
        found = await one.get_or_set_many("t", range(1_200), source)
        assert found == {n: [n] for n in range(1_200)}
        assert [len(call) for call in source.calls] == [500, 500, 200]
        assert await one.get_or_set_many("t", range(1_200), source) == found
        assert len(source.calls) == 3


async def test_while_redis_is_away_batches_load_and_keep_here(proxy: Any) -> None:
    source = Source()
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        proxy.black_hole()
        assert await cache.get_or_set_many("t", ["a", "b"], source) == {"a": ["a"], "b": ["b"]}
        assert await cache.get_or_set_many("t", ["b", "a"], source) == {"b": ["b"], "a": ["a"]}
        assert source.calls == [["a", "b"]]


# -- cached_many --------------------------------------------------------------------------------------------------


async def test_a_decorated_batch_loader(url: str) -> None:
    calls: list[tuple[list[str], str]] = []
    async with fleet(url) as (one, two):

        @one.cached_many("prices", ttl="1m", tags=("currency:{currency}",))
        async def prices(tickers: list[str], currency: str = "USD") -> dict[str, str]:
            """Prices by ticker."""
            calls.append((tickers, currency))
            return {ticker: currency + ticker for ticker in tickers if ticker != "UNKNOWN"}

        assert prices.__name__ == "prices"
        assert await prices(["A", "UNKNOWN", "B"]) == {"A": "USDA", "B": "USDB"}
        assert await prices(["B", "C"], currency="USD") == {"B": "USDB", "C": "USDC"}
        assert await prices(tickers=["B"], currency="EUR") == {"B": "EURB"}
        assert calls == [(["A", "UNKNOWN", "B"], "USD"), (["C"], "USD"), (["B"], "EUR")]
        assert await two.get("prices", prices.cache_key("A")) == "USDA"
        assert prices.cache_key("A") == prices.cache_key("A", "USD") != prices.cache_key("A", "EUR")
        assert await prices.invalidate(["A"]) is True
        assert await prices(["A", "B"]) == {"A": "USDA", "B": "USDB"}
        assert calls[3:] == [(["A"], "USD")]
        assert await prices.refresh(["A", "B"]) == {"A": "USDA", "B": "USDB"}
        assert calls[4:] == [(["A", "B"], "USD")]
        await two.invalidate_tags("currency:USD")
        await one.get_stats()
        await prices(["B"])
        await prices(["B"], "EUR")
        assert calls[5:] == [(["B"], "USD")]
        info = prices.cache_info()
        assert (info.namespace, info.ttl, info.loads) == ("prices", 60.0, 8)


def test_decorated_methods_and_keys_of_their_own(url: str, raw: Any) -> None:
    with CacheManager(redis_url=url) as cache:

        class Client:
            calls: ClassVar[list[list[str]]] = []

            @cache.cached_many("quotes", key="{tickers}")
            def quotes(self, tickers: list[str]) -> dict[str, int]:
                self.calls.append(tickers)
                return {ticker: len(ticker) for ticker in tickers}

            @classmethod
            @cache.cached_many("names", key_func=lambda number: f"n{number}")
            def names(cls, numbers: list[int]) -> dict[int, str]:
                return {number: f"{cls.__name__}{number}" for number in numbers}

        client = Client()
        assert client.quotes(["A", "BB"]) == {"A": 1, "BB": 2}
        assert client.quotes(["BB", "CCC"]) == {"BB": 2, "CCC": 3}
        assert client.calls == [["A", "BB"], ["CCC"]]
        assert cache.get("quotes", "A") == 1
        assert client.quotes.invalidate(["A"])
        assert cache.get("quotes", "A") is None
        assert Client.names([1, 2]) == {1: "Client1", 2: "Client2"}
        assert raw.exists("magnus:names:n1")
        with pytest.raises(TypeError):
            client.quotes()  # type: ignore[call-arg]


def test_a_blocking_batch_is_refreshed(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        calls: list[list[str]] = []

        @cache.cached_many("t")
        def load(keys: list[str]) -> dict[str, int]:
            calls.append(keys)
            return dict.fromkeys(keys, len(calls))

        assert load(["a", "b"]) == load(["b", "a"]) == {"a": 1, "b": 1}
        assert load.refresh(["a"]) == {"a": 2}
        assert load(["a", "b"]) == {"a": 2, "b": 1}
        assert calls == [["a", "b"], ["a"]]


def test_what_cannot_be_a_batch_loader() -> None:
    with CacheManager(redis_enabled=False) as cache:
        makers: list[Callable[[], object]] = [
            lambda: cache.cached_many("t")(dict),
            lambda: cache.cached_many("t")(7),  # type: ignore[call-overload]
            lambda: cache.cached_many("t", ttl=0),
            lambda: cache.cached_many("a b"),
            lambda: cache.cached_many("t")(lambda *, keys: {}),
        ]
        for make in makers:
            with pytest.raises(CacheArgumentError):
                make()


# -- what loaders come up with ----------------------------------------------------------------------------------


class Torn(dict[str, int]):
    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("the mapping is lazy, and its source away")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda keys: {key: StopIteration() for key in keys}, RuntimeError),
        (lambda keys: Torn(), ConnectionError),
        (lambda keys: next(iter(())), RuntimeError),
    ],
)
@pytest.mark.parametrize("blocking", [False, True])
async def test_no_answer_leaves_anybody_waiting(url: str, raw: Any, answer: Any, error: Any, blocking: bool) -> None:
    async def coroutine(keys: list[str]) -> Any:
        return answer(keys)

    async with fleet(url, 1) as (one,):
        with pytest.raises((error, CacheBatchError)):
            if blocking:
                await asyncio.to_thread(one.sync.get_or_set_many, "t", ["a", "b"], answer)
            else:
                await one.get_or_set_many("t", ["a", "b"], coroutine)
        await wait_until_async(lambda: not list(raw.scan_iter("{*")))
        assert len(one._engine.state.flights) == 0


async def test_a_cancelled_batch_goes_on_for_those_who_joined_it(url: str) -> None:
    """Invariant 4: cancelled at any turn, it harms nobody else; one load, as long as somebody wants it."""
    async with fleet(url, 1, wait_timeout=60) as (one,):
        await one.get("t", "x")
        for before in range(10):
            for after in range(5):
                source, key = Source(0.001), f"k{before}.{after}"
                call = asyncio.create_task(one.get_or_set_many("t", [key, "none"], source))
                for _ in range(before):
                    await asyncio.sleep(0)
                joined = asyncio.create_task(one.get_or_set_many("t", [key], source))
                for _ in range(after):
                    await asyncio.sleep(0)
                call.cancel()
                async with asyncio.timeout(10):
                    assert await joined == {key: [key]}


def test_keys_that_are_stored_at_one_place_are_one(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        calls: list[list[str]] = []

        @cache.cached_many("t", key_func=str.upper)
        def lengths(tickers: list[str]) -> dict[str, int]:
            calls.append(tickers)
            return {ticker: len(ticker) for ticker in tickers}

        assert lengths(["aapl", "AAPL", "msft"]) == {"aapl": 4, "AAPL": 4, "msft": 4}
        assert calls == [["aapl", "msft"]]


def test_equal_keys_of_different_types_are_told_apart_or_refused(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        assert cache.get_or_set_many("t", [1, "1"], lambda keys: {key: repr(key) for key in keys}) == {
            1: "1",
            "1": "'1'",
        }
        with pytest.raises(CacheArgumentError, match="equal to a key of another type"):
            cache.get_or_set_many("t", [1, True], lambda keys: dict.fromkeys(keys, 1))


def test_defaults_and_keys_that_cannot_be_hashed() -> None:
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached_many("t")
        def numbers(ids: Any = ("a", "b")) -> dict[Any, int]:
            return dict.fromkeys(ids, 1)

        assert numbers() == {"a": 1, "b": 1}
        with pytest.raises(CacheArgumentError, match="hashable"):
            numbers([[1]])


def test_a_blocking_batch_on_the_caches_own_loop_is_an_error(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        async def load() -> Any:
            return cache.get_or_set_many("t", ["a"], lambda keys: dict.fromkeys(keys, 1))

        with pytest.raises(CacheDeadlockError):
            cache.get_or_set("t", "k", load)
        assert cache.get_or_set("t", "k", lambda: 1) == 1
