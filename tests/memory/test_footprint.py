"""What is counted against `l1_max_bytes` is what values take, however they are kept."""

import dataclasses
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, Namespace, register_type
from magnus_cache._engine import codec
from magnus_cache._engine.memory.entry import Entry, TaggedEntry, pack_facts
from magnus_cache._engine.memory.footprint import footprint
from magnus_cache._engine.memory.store import LocalCache
from tests.support.inside import is_hot
from tests.support.memory import FOREVER, put

pytestmark = pytest.mark.anyio


@register_type(name="footprint.Row")
class Row(NamedTuple):
    symbol: str
    price: Decimal


@register_type(name="footprint.Order")
@dataclasses.dataclass
class Order:
    symbol: str
    lots: list[int]


def real(make: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        kept = make()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept is not None
    return size


VALUES: dict[str, Any] = {
    "tuples of decimals": tuple((Decimal(n) / 7, Decimal(n)) for n in range(3_000)),
    "dates": tuple(datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(3_000)),
    "ids": tuple(UUID(int=n) for n in range(3_000)),
    "numbers": tuple(range(1_000, 9_000)),
    "floats": tuple(n / 7 for n in range(8_000)),
    "small numbers": tuple(n % 100 for n in range(8_000)),
    "texts": tuple(f"some text of a row {n}" for n in range(3_000)),
    "named": tuple(Row(f"AAPL{n}", Decimal(n)) for n in range(3_000)),
    "frozen": frozenset(f"member {n}" for n in range(3_000)),
    "nested": tuple(tuple((n, (m, f"x{m}")) for m in range(1_000, 1_010)) for n in range(300)),
    "rows": [{"id": 1_000 + n, "symbol": f"AAPL{n}", "price": n / 7} for n in range(2_000)],
    "by number": {1_000 + n: n / 7 for n in range(8_000)},
    "sets": {1_000 + n for n in range(8_000)},
    "orders": [Order(f"AAPL{n}", [1_000 + n]) for n in range(2_000)],
    "array": numpy.arange(50_000),
    "text": "x" * 50_000,
    "bytes": bytes(50_000),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_estimate_is_within_a_factor_of_two(value: Any) -> None:
    payload = codec.encode(value)
    codec.decode(payload)
    size = real(lambda: codec.decode(payload))
    assert size / 2 <= footprint(codec.decode(payload), len(payload)) <= size * 2


leaves = (
    st.integers(1_000, 2**60) | st.floats(allow_nan=False) | st.decimals(allow_nan=False) | st.text("xyz", min_size=2)
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=5).map(tuple)), min_size=5))
def test_the_estimate_of_whatever_is_repeated_comes_near(items: list[Any]) -> None:
    payload = codec.encode(tuple(items * 50))
    codec.decode(payload)
    size = real(lambda: codec.decode(payload))
    # A sample may miss what is rare and large.
    assert size / 6 <= footprint(codec.decode(payload), len(payload)) <= size * 6 + 1_000


@pytest.mark.parametrize(
    "part",
    ["", "x", b"", b"x", "xy", b"xy", 0, 256, 257, -6, 2.5, 1j, True, False, None, int, Decimal(1), timedelta(1),
     datetime(2025, 1, 1, tzinfo=UTC)],
    ids=repr,
)  # fmt: skip
def test_a_part_counts_for_what_it_takes_once_and_what_python_shares_for_nothing(part: Any) -> None:
    shared = part is None or type(part) in (bool, type) or part in ("", "x", b"", b"x", 0, 256)
    own = 0 if shared else -(-sys.getsizeof(part) // 16) * 16
    for value in ([part], (part,), {part}, {"xyz": part}):
        empty = footprint(type(value)(), 0)
        rest = -(-sys.getsizeof(value) // 16) * 16 + (sys.getsizeof("xyz") + 15) // 16 * 16 * isinstance(value, dict)
        assert footprint(value, 0) == rest + own
        assert empty <= rest
    assert footprint([part] * 10, 0) == -(-sys.getsizeof([part] * 10) // 16) * 16 + own


def test_an_estimate_looks_at_few_parts_and_at_no_deep_ones() -> None:
    deep: Any = ()
    for _ in range(900):
        deep = (deep,)
    assert 3_600 <= footprint(deep, 3_600) < 10**6


@pytest.mark.parametrize("share", [False, True])
async def test_memory_counts_decoded_values_as_what_they_take(url: str, share: bool) -> None:
    rows = VALUES["tuples of decimals"] if not share else VALUES["rows"]
    namespace = Namespace("t", share=share)
    async with AsyncCacheManager(redis_url=url) as writer:
        for key in range(5):
            await writer.set(namespace, key, rows, tags=["tag"] if key % 2 else ())
        size = real(lambda: codec.decode(codec.encode(rows)))
        assert writer._engine.state.memory.bytes >= size * 5 / 2
        async with AsyncCacheManager(redis_url=url) as reader:
            memory = reader._engine.state.memory
            for key in range(5):
                await reader.get(namespace, key)
            for key in range(5):
                assert await reader.get(namespace, key) is await reader.get(namespace, key)
            assert size * 5 / 2 <= memory.bytes <= size * 5 * 2
            for key in range(5):
                await reader.delete(namespace, key)
            assert memory.bytes == 0


async def test_decoded_values_make_room_for_others(url: str) -> None:
    rows = VALUES["tuples of decimals"]
    most = 4 * real(lambda: codec.decode(codec.encode(rows)))
    async with (
        AsyncCacheManager(redis_url=url) as writer,
        AsyncCacheManager(redis_url=url, l1_max_bytes=most) as reader,
    ):
        for key in range(20):
            await writer.set("t", key, rows)
        memory = reader._engine.state.memory
        for key in range(20):
            await reader.get("t", key)
        assert memory.bytes <= most
        assert len(memory) < 10


async def test_a_value_without_room_for_it_decoded_is_kept_encoded(url: str) -> None:
    rows = VALUES["tuples of decimals"]
    payload = len(codec.encode(rows))
    async with (
        AsyncCacheManager(redis_url=url) as writer,
        AsyncCacheManager(redis_url=url, l1_max_bytes=2 * payload) as reader,
    ):
        await writer.set("t", "k", rows)
        await reader.set("t", "mine", rows)
        memory = reader._engine.state.memory
        assert payload <= memory.bytes <= 2 * payload
        assert await reader.get("t", "k") == rows
        assert await reader.get("t", "k") == rows
        assert payload <= memory.bytes <= 2 * payload


async def test_a_large_memory_keeps_the_payload_of_what_it_could_not_encode_again() -> None:
    """And counts it. Pushed out of the hot table, it is packed, and is there again when it is asked for."""
    rows = tuple((Decimal(n) / 7, Decimal(n)) for n in range(20))
    async with AsyncCacheManager(redis_enabled=False, l1_max_entries=40_000, l1_max_bytes=2**28) as cache:
        memory = cache._engine.state.memory
        await cache.set("t", "rows", rows)
        await cache.set("t", "text", "plain")
        held = memory.get_untrusted(b"magnus:t:rows")
        plain = memory.get_untrusted(b"magnus:t:text")
        assert held is not None
        assert plain is not None
        assert (held.value, held.payload, held.encoded) == (rows, None, codec.encode(rows))
        assert held.size >= footprint(rows, 0) + len(codec.encode(rows))
        assert (plain.value, plain.encoded) == ("plain", None)
        for number in range(17_000):
            put(memory, b"other:%d" % number, Entry(number, None, float("inf"), FOREVER, 8))
            memory.hit(b"other:%d" % number)
        assert not is_hot(memory, b"magnus:t:rows")
        assert await cache.get("t", "rows") == rows
        assert await cache.get("t", "rows") == rows
        assert await cache.get("t", "text") == "plain"


@pytest.mark.parametrize("with_tag", [False, True])
@pytest.mark.parametrize("count", [11_000, 16_000])
def test_an_entry_of_the_hot_table_takes_no_more_than_it_counts_for(count: int, with_tag: bool) -> None:
    """Just after the tables have grown, and when they are nearly full."""
    memory = LocalCache(count, 2**30)
    put(memory, b"first", Entry(None, b"", float("inf"), FOREVER, 0))
    tracemalloc.start()
    for number in range(count):
        facts, deadline = pack_facts(2**63 + number, 0, 1_764_300_000_000_000), 1e6 + number
        made = (TaggedEntry if with_tag else Entry)(None, b"%020d" % number, deadline, FOREVER, 20, facts)
        if isinstance(made, TaggedEntry):
            made.stamps, made.epoch, made.generation = (), 10**15 + number, memory.generation
        put(memory, b"magnus:t:%011d" % number, made)
    took, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(memory) == count
    assert 0.75 * memory.bytes < took < 1.1 * memory.bytes
