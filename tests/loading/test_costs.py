"""What loads cost in money, and what hits save: each is counted once, and a hit calls no code of the user."""

import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from magnus_cache import (
    TTL_FOREVER,
    CacheArgumentError,
    CacheManager,
    CacheTypeError,
    Namespace,
)
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry, pack_facts, pack_windows
from magnus_cache._engine.memory.records import Bases, pack, unpack
from magnus_cache.freshness import FreshnessState
from magnus_cache.testing import Proxy
from tests.coordination.test_warm_reconnect import patient, reconnected
from tests.support.fleet_of_managers import fleet
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

PRICED: Final[dict[str, Any]] = {"number": 0.25, "function": lambda value: value["tokens"] / 4}
"""Both say the same of a value with one token."""


def money(figures: Any, namespace: str) -> tuple[float, float]:
    row = figures["namespaces"][namespace]
    return row["spent"], row["saved"]


def answers(keys: list[str]) -> dict[str, Any]:
    return {key: {"tokens": 1} for key in keys}


@pytest.fixture(params=["number", "function"])
def cost(request: pytest.FixtureRequest) -> Any:
    return PRICED[request.param]


async def test_calls_of_a_function_count_what_they_cost_and_save(url: str, cost: Any) -> None:
    async with fleet(url, 2) as (one, two):
        for manager in (one, two):

            @manager.cached("t", cost=cost)
            async def answer(question: str) -> dict[str, Any]:
                return {"tokens": 1, "text": question}

            # A load and two hits in memory; then a hit in Redis and two in memory.
            assert [(await answer("a"))["text"] for _ in range(3)] == ["a"] * 3
        assert money(await one.get_stats(), "t") == (0.25, 0.5)
        assert money(await two.get_stats(), "t") == (0, 0.75)
        ((_, row),) = (await two.get_stats())["functions"].items()
        assert (row["spent"], row["saved"]) == (0, 0.75)


async def test_blocking_calls_count_the_same(url: str, cost: Any) -> None:
    with CacheManager(redis_url=url) as one, CacheManager(redis_url=url) as two:
        for manager in (one, two):

            @manager.cached("t", cost=cost)
            def answer(question: str) -> dict[str, Any]:
                return {"tokens": 1, "text": question}

            assert [answer("a")["text"] for _ in range(3)] == ["a"] * 3
            assert answer.refresh("a")["text"] == "a"
        assert money(one.get_stats(), "t") == (0.5, 0.5)
        assert money(two.get_stats(), "t") == (0.25, 0.75)


@pytest.mark.parametrize("options", [{}, {"grace": 60}, {"l1": False}, {"share": True}, {"local": True}], ids=str)
async def test_every_kind_of_namespace_counts(url: str, cost: Any, options: dict[str, Any]) -> None:
    space = Namespace("t", **options)
    async with fleet(url, 1) as (cache,):
        for _ in range(3):
            await cache.get_or_set(space, "k", lambda: {"tokens": 1}, cost=cost)
        assert money(await cache.get_stats(), "t") == (0.25, 0.5)
        for _ in range(3):
            await cache.get_or_set_many(space, ["a", "b"], answers, cost=cost)
        assert money(await cache.get_stats(), "t") == (0.75, 1.5)

        @cache.cached_many(space, cost=cost)
        async def many(keys: list[str]) -> dict[str, Any]:
            return answers(keys)

        for _ in range(3):
            await many(["c", "d"])
        assert money(await cache.get_stats(), "t") == (1.25, 2.5)
    with CacheManager(redis_url=url, prefix="blocking") as blocking:
        for _ in range(3):
            blocking.get_or_set(space, "k", lambda: {"tokens": 1}, cost=cost)
            blocking.get_or_set_many(space, ["a"], answers, cost=cost)
        assert money(blocking.get_stats(), "t") == (0.5, 1.0)


async def test_a_function_of_any_number_of_arguments_counts(url: str, cost: Any) -> None:
    async with fleet(url, 1) as (cache,):

        @cache.cached("t", cost=cost)
        async def total(*numbers: int) -> dict[str, int]:
            return {"tokens": 1, "sum": sum(numbers)}

        for _ in range(4):
            await total(1, 2)
        assert money(await cache.get_stats(), "t") == (0.25, 0.75)


async def test_a_hit_calls_no_code_of_the_user(url: str) -> None:
    asked: list[Any] = []

    def price(value: list[int]) -> float:
        asked.append(value)
        return len(value)

    async with fleet(url, 2) as (one, two):
        for manager in (one, two):

            @manager.cached("t", cost=price)
            async def items(count: int) -> list[int]:
                return [1] * count

            for _ in range(3):
                assert await items(3) == [1, 1, 1]
        assert asked == [[1, 1, 1]]
        assert money(await two.get_stats(), "t") == (0, 9)


async def test_each_value_saves_what_it_has_cost_itself(url: str) -> None:
    async with fleet(url, 1) as (cache,):

        @cache.cached("t", cost=lambda count: count)
        async def count(number: int) -> int:
            return number

        for number, calls in ((1, 2), (10, 3), (100, 1)):
            for _ in range(calls):
                await count(number)
        assert money(await cache.get_stats(), "t") == (111, 1 + 20)


async def test_a_touched_value_still_knows_its_price(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        loaded = lambda: [1] * 5  # noqa: E731
        await cache.get_or_set("t", "k", loaded, cost=len)
        assert await cache.touch("t", "k", 900)
        await cache.get_or_set("t", "k", loaded, cost=len)
        await cache.get_or_set("t", "k", loaded, cost=len)
        assert money(await cache.get_stats(), "t") == (5, 10)


async def test_a_value_that_is_compared_after_a_reconnect_still_knows_its_price(proxy: Proxy) -> None:
    async with patient(proxy.url) as cache:
        for _ in range(2):
            await cache.get_or_set("t", "k", lambda: "x" * 5_000, cost=len)
        await reconnected(cache, proxy)
        before = proxy.counts.bytes_to_client
        for _ in range(2):
            await cache.get_or_set("t", "k", lambda: "x" * 5_000, cost=len)
        assert money(await cache.get_stats(), "t") == (5_000, 15_000)
        # It was compared, and not sent again.
        assert proxy.counts.bytes_to_client - before < 5_000


async def test_a_stale_value_saves_nothing(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        calls = iter([lambda: 1, lambda: 1 / 0])

        async def load() -> None:
            await cache.get_or_set(
                "t", "k", next(calls), cost=1, grace=60, state_of=lambda value, age: FreshnessState.STALE
            )

        await load()
        await load()
        row = (await cache.get_stats())["namespaces"]["t"]
        assert (row["stale_hits"], row["spent"], row["saved"]) == (1, 1, 0)


async def test_a_load_that_fails_costs_nothing(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        with pytest.raises(ZeroDivisionError):
            await cache.get_or_set("t", "k", lambda: 1 / 0, cost=1)
        assert money(await cache.get_stats(), "t") == (0, 0)


async def test_an_early_refresh_is_paid_for(url: str) -> None:
    async with fleet(url, 1) as (cache,):

        async def look() -> None:
            await cache.get_or_set("t", "k", lambda: 1, cost=2, state_of=lambda value, age: FreshnessState.EARLY)

        await look()
        await look()

        async def paid() -> bool:
            return money(await cache.get_stats(), "t") == (4, 2)

        await wait_until_async(lambda: cache._engine.state.stats.by_namespace()["t"].loads == 2)
        assert await paid()


async def test_a_result_that_cannot_be_stored_is_paid_for_each_time(url: str, cost: Any) -> None:
    async with fleet(url, 1) as (cache,):
        for _ in range(2):
            await cache.get_or_set("t", "k", lambda: {"tokens": 1, "bad": object()}, cost=cost)
        assert money(await cache.get_stats(), "t") == (0.5, 0)


@pytest.mark.parametrize(
    "amount", [Decimal("0.5"), np.float64(0.5), np.float32(0.5), 0.5], ids=["Decimal", "float64", "float32", "float"]
)
async def test_an_amount_is_any_number(amount: Any) -> None:
    with CacheManager(redis_enabled=False) as cache:
        cache.get_or_set("t", "k", lambda: 1, cost=amount)
        cache.get_or_set("u", "k", lambda: 1, cost=lambda _: amount)
        cache.get_or_set("v", "k", lambda: 1, cost=lambda _: None)
        figures = cache.get_stats()
        assert [money(figures, name)[0] for name in ("t", "u", "v")] == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("amount", "problem"),
    [(-1, "0 or more"), (float("nan"), "0 or more"), (1e9, "below a billion"), ("1", "not '1'"), (True, "not True")],
    ids=["negative", "nan", "huge", "text", "bool"],
)
def test_another_amount_is_refused(amount: Any, problem: str, caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_enabled=False) as cache:
        for refused in (
            lambda: cache.cached("t", cost=amount),
            lambda: cache.cached_many("t", cost=amount),
            lambda: cache.get_or_set("t", "k", lambda: 1, cost=amount),
            lambda: cache.get_or_set_many("t", ["k"], lambda keys: {}, cost=amount),
        ):
            with pytest.raises((CacheArgumentError, CacheTypeError), match=f"^cost: .*{problem}"):
                refused()
        # What its function returns is too late to be refused: the result is not lost.
        with caplog.at_level(logging.WARNING):
            assert cache.get_or_set("u", "k", lambda: 7, cost=lambda _: amount) == 7
            assert cache.get_or_set("u", "j", lambda: 7, cost=lambda _: amount) == 7
        assert money(cache.get_stats(), "u") == (0, 0)
        assert len([record for record in caplog.records if "is not counted" in record.message]) == 1


def test_a_cost_that_raises_loses_no_result(caplog: pytest.LogCaptureFixture) -> None:
    with CacheManager(redis_enabled=False) as cache, caplog.at_level(logging.WARNING):
        assert cache.get_or_set("t", "k", lambda: {"a": 1}, cost=lambda value: value["usage"]) == {"a": 1}
        assert cache.get_or_set("t", "k", lambda: {"a": 2}, cost=lambda value: value["usage"]) == {"a": 1}
        assert money(cache.get_stats(), "t") == (0, 0)
    assert "raised KeyError" in caplog.text


# -- where the price is noted -----------------------------------------------------------------------------------

_TIMES: Final = st.floats(0, TTL_FOREVER).filter(lambda seconds: seconds == 0 or seconds > 0.001)


@given(
    version=st.integers(0, 2**64 - 1), fresh=_TIMES, stale=_TIMES, negative=st.booleans(),
    as_of=st.integers(0, 2**64 - 1), paid=st.integers(0, 10**18), size=st.integers(0, 2**38),
)  # fmt: skip
@example(version=1, fresh=1.0, stale=2.0, negative=False, as_of=3, paid=10**18, size=5)
def test_an_entry_notes_its_price_beside_all_else(
    version: int, fresh: float, stale: float, negative: bool, as_of: int, paid: int, size: int
) -> None:
    trust = Trust(float("inf"), 0)
    plain = Entry("v", None, 100.0, trust, size, pack_facts(version, pack_windows(fresh, stale), as_of))
    entry = Entry(
        "v", None, 100.0, trust, size, pack_facts(version, pack_windows(fresh, stale, negative=negative), as_of, paid)
    )
    for same in (entry, entry.until(100.0, trust), entry.decoded("v", size, shared=False)):
        assert (same.paid, same.version, same.size, same.negative) == (paid, version, size, negative)
        assert (same.fresh_until, same.end, same.as_of) == (plain.fresh_until, plain.end, as_of)
    again = entry.until(200.0, trust, pack_windows(0.0, 7.0))
    assert (again.paid, again.version, again.fresh_until, again.end) == (paid, version, 200.0, 207.0)
    cold = unpack(pack(entry, bases := Bases()), bases)
    assert bases.known
    assert (cold.paid, cold.facts, cold.end) == (paid, entry.facts, entry.end)


@given(
    paid=st.integers(0, 10**18), payload=st.binary(max_size=200), tags=st.lists(st.text(max_size=5), max_size=3),
    validator=st.none() | st.text(max_size=5), compress=st.sampled_from([False, "zlib"]),
)  # fmt: skip
@example(paid=5, payload=b"x", tags=["t"], validator="v", compress=False)
def test_a_stored_value_notes_its_price_beside_all_else(
    paid: int, payload: bytes, tags: list[str], validator: str | None, compress: Any
) -> None:
    raw = envelope.pack(
        payload, tags=tags, validator=validator, compress=compress, paid=paid, version=7, fresh_until=11
    )
    found = envelope.unpack(raw, 1_000)
    assert (found[3], found[4], found[8]) == (tuple(tags), payload, paid)
    header = envelope.read_header(raw)
    assert envelope.read_validator(raw, header)[0] == validator
    again = envelope.unpack(envelope.renewed(raw, version=8, fresh_until=12, life=1.0), 1_000)
    assert (again[4], again[8]) == (payload, paid)


def test_a_price_that_is_cut_off_is_not_read() -> None:
    raw = envelope.pack(b"", paid=5, version=7, fresh_until=11)
    header = envelope.read_header(raw)
    short = raw[: envelope.HEADER_BYTES + 3]
    with pytest.raises(Exception, match="price cannot be read"):
        envelope.open_payload(short, header, 100)


def test_a_sealed_value_hides_its_price(url: str) -> None:
    key = "k1:" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
    sealed = Namespace("t", seal=True)
    with CacheManager(redis_url=url, seal_keys=key) as one, CacheManager(redis_url=url, seal_keys=key) as two:
        loaded: Callable[[], list[int]] = lambda: [1] * 5  # noqa: E731
        one.get_or_set(sealed, "k", loaded, cost=len)
        two.get_or_set(sealed, "k", loaded, cost=len)
        assert money(two.get_stats(), "t") == (0, 5)
