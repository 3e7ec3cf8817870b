"""`cached` on everything it can be put on, blocking and async."""

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager, CacheNamespaces
from magnus_cache.errors import CacheArgumentError, CacheTypeError


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as manager:
        yield manager


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


def test_a_function_is_called_once(cache: CacheManager) -> None:
    calls: list[tuple[str, int]] = []

    @cache.cached("t")
    def price(ticker: str, days: int = 5) -> dict[str, int]:
        """Return a price."""
        calls.append((ticker, days))
        return {ticker: days}

    assert price("AAPL") == price("AAPL", 5) == price(ticker="AAPL") == price(days=5, ticker="AAPL") == {"AAPL": 5}
    assert price("AAPL", 6) == {"AAPL": 6}
    assert calls == [("AAPL", 5), ("AAPL", 6)]
    assert (price.__name__, price.__doc__) == ("price", "Return a price.")
    assert list(inspect.signature(price).parameters) == ["ticker", "days"]
    assert price.__wrapped__("AAPL") == {"AAPL": 5}


@pytest.mark.anyio
async def test_a_coroutine_function_is_awaited_once(cache: CacheManager) -> None:
    calls: list[str] = []

    @cache.cached("t")
    async def price(ticker: str) -> str:
        calls.append(ticker)
        await asyncio.sleep(0)
        return ticker.lower()

    assert inspect.iscoroutinefunction(price)
    assert await asyncio.gather(*(price("AAPL") for _ in range(50))) == ["aapl"] * 50
    assert calls == ["AAPL"]
    assert await price.invalidate("AAPL") is True
    assert await price.invalidate("AAPL") is False
    assert await price("AAPL") == "aapl"
    assert await price.refresh("AAPL") == "aapl"
    assert len(calls) == 3
    assert price.cache_info().loads == 3


@pytest.mark.anyio
async def test_both_managers_decorate_both_kinds(cache: CacheManager) -> None:
    @cache.aio.cached("t")
    def blocking() -> int:
        return 1

    @cache.cached("t")
    async def awaited() -> int:
        return 2

    assert await asyncio.to_thread(blocking) == 1
    assert await awaited() == 2


def test_types_of_arguments_are_told_apart_on_a_hit_too(memory: CacheManager) -> None:
    """1, True, 1.0 and "1" hash alike or look alike; the memo of plain arguments must not mix them."""

    @memory.cached("t")
    def kind(value: object) -> str:
        return repr(value)

    for value in (1, True, 1.0, "1", b"1", None, "None", 0, False, 0.0, -0.0, "", (1,), (True,)):
        for _ in range(3):
            assert kind(value) == repr(value)


def test_the_memo_of_arguments_is_bounded(memory: CacheManager) -> None:
    @memory.cached("t")
    def double(number: int) -> int:
        return 2 * number

    for number in range(10_000):
        assert double(number) == 2 * number
    assert double(3) == 6


def test_key_func_and_template_give_exactly_their_text(cache: CacheManager, raw: redis.Redis) -> None:
    @cache.cached(CacheNamespaces.STOCK_PRICES, key_func=lambda ticker: ticker)
    def price(ticker: str) -> int:
        return 1

    @cache.cached(CacheNamespaces.OPTIONS_CHAINS, key="{ticker}_{expiration}")
    def chain(ticker: str, expiration: str) -> list[int]:
        return [2]

    price("AAPL")
    chain("AAPL", expiration="2025-03-21")
    assert sorted(raw.keys("magnus:*")) == [b"magnus:options_chains:AAPL_2025-03-21", b"magnus:stock_prices:AAPL"]
    assert cache.get("stock_prices", "AAPL") == 1
    assert cache.delete(CacheNamespaces.STOCK_PRICES, "AAPL") is True
    assert cache.get("options_chains", chain.cache_key("AAPL", "2025-03-21")) == [2]


def test_cache_key_reads_what_the_function_stored(cache: CacheManager) -> None:
    @cache.cached("t")
    def rows(query: str, limit: int = 10) -> list[str]:
        return [query] * limit

    rows("select {braces} from 'x'", limit=2)
    assert cache.get("t", rows.cache_key("select {braces} from 'x'", 2)) == ["select {braces} from 'x'"] * 2


def test_arguments_may_be_left_out_of_the_key(memory: CacheManager) -> None:
    """A database session does not end up in a key."""
    calls: list[object] = []

    @memory.cached("t", exclude=("db", "session"))
    def user(db: object, user_id: int, session: object = None) -> int:
        calls.append(db)
        return user_id

    assert user(object(), 1) == user(object(), 1, session=object()) == 1
    assert len(calls) == 1


def test_results_may_be_left_out_of_the_cache(memory: CacheManager) -> None:
    calls: list[int] = []

    @memory.cached("t", skip_if=lambda value: value is None)
    def find(number: int) -> int | None:
        calls.append(number)
        return number or None

    assert [find(0), find(0), find(1), find(1)] == [None, None, 1, 1]
    assert calls == [0, 0, 1]


def test_the_time_to_live_may_depend_on_the_value(cache: CacheManager) -> None:
    @cache.cached("t", ttl=lambda value: "1h" if value else None, key="{number}")
    def value(number: int) -> int:
        return number

    value(0)
    value(1)
    assert 299 < (cache.ttl("t", "0") or 0) <= 300
    assert 3599 < (cache.ttl("t", "1") or 0) <= 3600


class Client:
    """Constructed without arguments: all instances are the same to the cache."""

    def __init__(self) -> None:
        self.calls = 0


def test_methods_of_interchangeable_instances_share(memory: CacheManager) -> None:
    class Shared(Client):
        @memory.cached("t")
        def rows(self, sport: str = "NFL") -> str:
            self.calls += 1
            return sport

    one, two = Shared(), Shared()
    assert one.rows() == two.rows("NFL") == "NFL"
    assert (one.calls, two.calls) == (1, 0)
    assert two.rows.invalidate() is True
    assert two.rows.refresh("NFL") == "NFL"
    assert (one.calls, two.calls) == (1, 1)
    assert one.rows.cache_info().loads == 2
    assert Shared.rows(one) == "NFL"
    assert Shared.rows.cache_key(one) == one.rows.cache_key("NFL")


def test_instances_never_get_each_others_values(memory: CacheManager, caplog: pytest.LogCaptureFixture) -> None:
    """Invariant 8: not even when an instance takes over the address of a dead one."""

    class Account:
        def __init__(self, name: str) -> None:
            self.name = name

        @memory.cached("t")
        def owner(self) -> str:
            return self.name

    for number in range(200):
        assert Account(f"user{number}").owner() == f"user{number}"
    account = Account("again")
    assert account.owner() == account.owner() == "again"
    warnings = [record.getMessage() for record in caplog.records if "__cache_key__" in record.getMessage()]
    assert len(warnings) == 1


def test_instances_may_say_what_they_are(memory: CacheManager) -> None:
    class Account:
        def __init__(self, name: str) -> None:
            self.name = name
            self.calls = 0

        def __cache_key__(self) -> str:
            return self.name

        @memory.cached("t")
        def owner(self) -> str:
            self.calls += 1
            return self.name

    one, same, other = Account("a"), Account("a"), Account("b")
    assert (one.owner(), same.owner(), other.owner()) == ("a", "a", "b")
    assert (one.calls, same.calls, other.calls) == (1, 0, 1)


def test_same_named_methods_of_two_classes_are_apart(memory: CacheManager) -> None:

    class One(Client):
        @memory.cached("t")
        def name(self) -> str:
            return "one"

    class Two(Client):
        @memory.cached("t")
        def name(self) -> str:
            return "two"

    assert (One().name(), Two().name(), One().name()) == ("one", "two", "one")


def test_classmethods_and_staticmethods_in_either_order(memory: CacheManager) -> None:
    calls: list[str] = []

    class Base:
        @memory.cached("t")
        @classmethod
        def outer(cls, number: int) -> str:
            calls.append("outer")
            return f"{cls.__name__}{number}"

        @classmethod
        @memory.cached("t")
        def inner(cls, number: int) -> str:
            calls.append("inner")
            return f"{cls.__name__}{number}"

        @memory.cached("t")
        @staticmethod
        def static_outer(number: int) -> int:
            calls.append("static_outer")
            return number

        @staticmethod
        @memory.cached("t")
        def static_inner(number: int) -> int:
            calls.append("static_inner")
            return number

    class Derived(Base):
        pass

    for _ in range(2):
        assert Base.outer(1) == Base().outer(1) == "Base1"
        assert Derived.outer(1) == "Derived1"
        assert Base.inner(1) == "Base1"
        assert Derived.inner(1) == Derived().inner(1) == "Derived1"
        assert Base.static_outer(1) == Base().static_outer(1) == 1
        assert Base.static_inner(1) == Derived.static_inner(1) == 1
    assert sorted(calls) == ["inner", "inner", "outer", "outer", "static_inner", "static_outer"]
    assert Derived.outer.invalidate(1) is True
    assert Base.static_outer.invalidate(1) is True
    assert Base.static_inner.cache_info().loads == 1


@pytest.mark.anyio
async def test_async_methods(memory: CacheManager) -> None:
    class Service(Client):
        @memory.cached("t")
        async def rows(self, sport: str) -> list[str]:
            self.calls += 1
            return [sport]

    service = Service()
    assert inspect.iscoroutinefunction(service.rows)
    assert await service.rows("NFL") == await service.rows(sport="NFL") == ["NFL"]
    assert await service.rows.invalidate("NFL") is True
    assert await service.rows.refresh("NFL") == ["NFL"]
    assert service.calls == 2


def test_fifty_threads_load_once(cache: CacheManager) -> None:
    """Invariant 3 within a process."""
    calls: list[int] = []
    gate = threading.Barrier(50)

    @cache.cached("t")
    def slow() -> list[int]:
        calls.append(1)
        return [1]

    found: list[list[int]] = []

    def caller() -> None:
        gate.wait()
        found.append(slow())

    threads = [threading.Thread(target=caller) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1]] * 50
    assert calls == [1]
    assert len({id(value) for value in found}) == 50


@pytest.mark.anyio
async def test_a_delete_during_a_load_wins(cache: CacheManager) -> None:
    """Invariant 2 within a process: a load overtaken by a delete is not stored, here or in Redis."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @cache.cached("t", key="k")
    async def load() -> str:
        begun.set()
        await go_on.wait()
        return "old"

    task = asyncio.create_task(load())
    await begun.wait()
    await cache.aio.delete("t", "k")
    go_on.set()
    assert await task == "old"
    assert await cache.aio.get("t", "k") is None


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["set", "clear", "pattern", "set_many"])
async def test_a_write_during_a_load_wins(cache: CacheManager, how: str) -> None:
    """Invariant 2 within a process, for the other ways to overtake a load."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await go_on.wait()
        return "old"

    task = asyncio.create_task(cache.aio.get_or_set("t", "k", load))
    await begun.wait()
    match how:
        case "set":
            await cache.aio.set("t", "k", "new")
        case "set_many":
            await cache.aio.set_many("t", {"k": "new"})
        case "clear":
            await cache.aio.clear("t")
        case _:
            await cache.aio.clear("magnus:t:*")
    go_on.set()
    assert await task == "old"
    assert await cache.aio.get("t", "k") == ("new" if how.startswith("set") else None)


def test_a_result_that_cannot_be_stored_is_returned_and_says_so(
    memory: CacheManager, caplog: pytest.LogCaptureFixture
) -> None:
    class Unknown:
        pass

    @memory.cached("t")
    def make() -> Unknown:
        return Unknown()

    assert isinstance(make(), Unknown)
    assert re.search(r"make returned.*result is of type .*Unknown.*register_type", caplog.text)


def test_a_result_over_the_limit_is_returned_and_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_enabled=False, max_value_bytes=100) as cache:

        @cache.cached("t", key="k")
        def large() -> str:
            return "x" * 1_000

        assert large() == large() == "x" * 1_000
        assert cache.get("t", "k") is None
    assert sum("max_value_bytes" in record.getMessage() for record in caplog.records) == 1


def test_what_cannot_be_cached(memory: CacheManager) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    def plain(ticker: str) -> str:
        return ticker

    for function in (generator, async_generator):
        with pytest.raises(CacheTypeError, match="generator"):
            memory.cached("t")(function)
    with pytest.raises(CacheTypeError, match="function"):
        memory.cached("t")(42)  # type: ignore[call-overload]
    with pytest.raises(CacheTypeError, match="class"):
        memory.cached("t")(Client)
    with pytest.raises(CacheArgumentError, match="key"):
        memory.cached("t", key="{nobody}")(plain)
    with pytest.raises(CacheArgumentError, match="exclude"):
        memory.cached("t", exclude=("nobody",))(plain)
    with pytest.raises(CacheArgumentError, match="key"):
        memory.cached("t", key="{ticker}", key_func=lambda ticker: ticker)(plain)
    with pytest.raises(CacheArgumentError, match="ttl"):
        memory.cached("t", ttl=0)
    with pytest.raises(CacheTypeError, match="namespace"):
        memory.cached(42)  # type: ignore[arg-type]


@pytest.mark.parametrize("nonsense", [None, [], {}, object(), 1.5])
def test_key_func_that_returns_nonsense(memory: CacheManager, nonsense: Any) -> None:
    @memory.cached("t", key_func=lambda: nonsense)
    def function() -> int:
        return 1

    with pytest.raises(CacheArgumentError, match="key_func"):
        function()


def test_wrong_arguments_raise_what_the_function_would(memory: CacheManager) -> None:
    @memory.cached("t")
    def function(a: int) -> int:
        return a

    with pytest.raises(TypeError, match="unexpected keyword argument|missing"):
        function(b=1)  # type: ignore[call-arg]


def test_decorating_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import-safe: no connection, no thread, no loop before the first call."""
    before = threading.active_count()
    manager = CacheManager(redis_url="redis://127.0.0.1:1/0")

    @manager.cached("t")
    def function() -> int:
        return 1

    assert threading.active_count() == before
    assert manager.redis_available is False
    manager.close()
