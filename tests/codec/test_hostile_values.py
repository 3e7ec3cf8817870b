"""What somebody else put into Redis may cost a miss, never the memory or the time of the process that reads it."""

import collections
import struct
import time
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Network, ip_network
from pathlib import PurePosixPath
from typing import Any

import numpy
import pandas
import pytest
import redis
from psycopg2.extras import RealDictRow

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.codec import budget, decode, encode, envelope
from magnus_cache._engine.codec import builtin as builtin_types
from magnus_cache._engine.codec.budget import RATIO, counting
from magnus_cache._engine.codec.class_cache import ClassCache
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache.errors import CacheDecodeError, CacheValueTooLargeError
from tests.support.kinds import forget_what_was_made

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_what_was_made()


P = 2**61 - 1
"""Python's hashes of numbers are remainders of a division by this."""

MIB = 2**20


def marked(kind: bytes, *items: bytes) -> bytes:
    """Return a marked list as msgpack, from its items."""
    return b"\xdd" + struct.pack(">I", len(items) + 1) + b"".join(items) + b"\xd4\xb3" + kind


def colliding(count: int) -> list[int]:
    """Return integers of which all have the hash 0."""
    return [P * (2**64 + number) for number in range(count)]


def reason(payload: bytes, limit: int | None = None) -> str:
    with pytest.raises(CacheDecodeError) as caught:
        decode(payload, limit)
    return caught.value.reason


def array_of(count: int, item: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + item * count


BOMBS = {
    "empty dicts": b"\x80",
    "empty lists": b"\x90",
    "dicts": b"\x81\x01\x01",
    "lists": b"\x91\x01",
    "negative numbers": b"\xf0",
    "sets": b"\x92\x01\xd4\xb3s",
    "long maps": b"\xde\x00\x01\xcd\x11\x11\xc0",
    "deques": encode(deque()),
    "ordered dicts": encode(OrderedDict()),
    "counters": encode(Counter()),
    "fractions": encode(Fraction(1, 3)),
    "networks": encode(ip_network("10.0.0.0/8")),
    "named tuples": encode(collections.namedtuple("A", "a")(0)),  # type: ignore[misc]  # noqa: PYI024
    "rows": encode(RealDictRow()),
}


@pytest.mark.parametrize("item", BOMBS.values(), ids=BOMBS)
def test_a_value_that_grows_too_much_is_refused_before_it_is_built(item: bytes) -> None:
    payload = array_of(4 * MIB // len(item), item)
    tracemalloc.start()
    try:
        assert reason(payload, limit=MIB) == "too_costly"
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()


ROWS = [
    {"id": number, "symbol": f"AAPL{number}", "name": "日本語テキスト", "price": number / 7, "ok": True, "none": None}
    for number in range(20_000)
]
Quote: Any = collections.namedtuple("Quote", "id symbol name price ok none")  # noqa: PYI024  # not to be registered
VALUES = {
    "rows": ROWS,
    "tuples": [tuple(row.values()) for row in ROWS],
    "decimals": [(Decimal(number) / 7, f"x{number}") for number in range(20_000)],
    "floats": [number * 1.1 for number in range(100_000)],
    "numbers by number": {number: number for number in range(50_000)},
    "text by text": {f"k{number}": f"v{number}" for number in range(50_000)},
    "small numbers": [number % 100 for number in range(500_000)],
    "raw": bytes(range(256)) * 4_000,
    "text": "日本語" * 100_000,
    "ordered dicts": [OrderedDict(row) for row in ROWS],
    "defaultdicts": [defaultdict(list, row) for row in ROWS],
    "deques": [deque(row.values()) for row in ROWS],
    "paths": [PurePosixPath(f"/a/b/{number}") for number in range(20_000)],
    "addresses": [ip_network(number << 8).network_address for number in range(20_000)],
    "networks": [IPv4Network((number << 8, 24)) for number in range(20_000)],
    "named tuples": [Quote(*row.values()) for row in ROWS],
    "real dict rows": [RealDictRow(row) for row in ROWS],
}


def decoded_size(payload: bytes, expected: Any) -> int:
    """Return the bytes of memory that a decoded payload takes, and check that it is the expected value."""
    tracemalloc.start()
    try:
        again = decode(payload)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert again == expected
    return size


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_estimate_comes_near_the_truth(value: Any) -> None:
    payload = encode(value)
    real = decoded_size(payload, value)
    # Counted token by token, as at 0 nothing is certain to fit.
    estimate = at_once(counting(payload, RATIO * len(payload)))
    assert real / 2.2 < estimate
    # A dict of numbers takes twenty times its bytes. All others may be as large as their namespace allows.
    assert value is VALUES["numbers by number"] or estimate <= RATIO * len(payload)


@pytest.mark.parametrize(
    "make", [deque, lambda: OrderedDict.fromkeys(range(15)), lambda: OrderedDict.fromkeys(range(100)), RealDictRow]
)
def test_the_estimate_of_small_collections_is_not_too_low(make: Any) -> None:
    value = [make() for _ in range(3_000)]
    payload = encode(value)
    real = decoded_size(payload, value)
    # Counted token by token, whatever a count of bytes makes of it.
    assert real / 2.2 < at_once(budget._walk(payload, 10**12))


async def test_a_bomb_in_redis_is_a_counted_miss(url: str, raw: redis.Redis) -> None:
    payload = array_of(16 * MIB - 5, b"\x80")
    later = int((time.time() + 3600) * 1e6)  # of no invalidation, and within what can be
    value = envelope.pack(payload, version=1, fresh_until=2**62, epoch=later, life=1e6, compress=True)
    raw.set("magnus:ns:k", value)
    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.get("ns", "k", "default") == "default"
        assert (await cache.get_stats())["namespaces"]["ns"]["unreadable"] >= 1


async def test_a_value_that_could_not_be_read_is_not_stored(url: str) -> None:
    async with AsyncCacheManager(redis_url=url, max_value_bytes=2 * MIB) as cache:
        value = [{} for _ in range(MIB)]
        with pytest.raises(CacheValueTooLargeError, match="16 times max_value_bytes") as caught:
            await cache.set("ns", "k", value)
        assert caught.value.decoded
        assert await cache.get_or_set("ns", "k", lambda: value) == value
        assert await cache.get("ns", "k") is None


def test_members_that_share_a_hash_are_refused() -> None:
    members = [encode(number) for number in colliding(20_000)]
    began = time.thread_time()
    assert reason(marked(b"s", *members)) == "too_costly"
    assert reason(marked(b"f", *members)) == "too_costly"
    # Unchecked, each of the two takes seconds.
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("make", [int, Decimal, lambda n: (n, 1), lambda n: (1, (n, "x"))])
def test_keys_that_share_a_hash_are_refused(make: Any) -> None:
    keys = [encode(make(number)) for number in colliding(3_000)]
    payload = b"\xdf" + struct.pack(">I", len(keys)) + b"".join(key + b"\xc0" for key in keys)
    assert reason(payload) == "too_costly"
    assert reason(array_of(1, payload)) == "too_costly"


def test_a_table_that_fills_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr("magnus_cache._engine.codec.hash_collisions.thread_time", lambda: float(next(ticks)))
    payload = encode(set(range(5_000)))
    assert reason(payload) == "too_costly"
    assert reason(encode(dict.fromkeys(range(5_000)))) == "too_costly"


def test_ordinary_sets_and_keys_pass() -> None:
    near = range(-2, 2)
    for value in (
        set(range(100_000)),
        {number << 40 for number in range(5_000)},
        {f"k{number}" for number in range(10_000)},
        {Decimal(number) / 7 for number in range(5_000)},
        frozenset((a, b, c, f"{d}") for a in near for b in near for c in near for d in range(100)),
        {number: {"id": number, (number, 1): "x"} for number in range(5_000)},
        {(f"a{number}", number): None for number in range(5_000)},
        [{1: number, 2: "x" * 10} for number in range(2_000)],
    ):
        assert decode(encode(value)) == value


def test_members_as_keys_that_cannot_be_any_are_malformed() -> None:
    assert reason(marked(b"s", *[b"\x90"] * 10_000)) == "malformed"


def test_a_single_value_does_not_become_a_column() -> None:
    single = encode(numpy.array(5))
    index = encode(["range", 0, 2**40, 1, None])
    assert reason(b"\x96" + encode("series") + single + index + b"\xc0\xc0" + b"\xd4\xb3p") == "malformed"


@pytest.mark.parametrize("spec", ["i4," * 4_999 + "i4", [[f"f{number}", "<i4"] for number in range(5_000)]])
def test_a_dtype_of_very_many_fields_is_malformed(spec: Any) -> None:
    items = ["array", spec, [1], "C", b"x" * 20_000]
    assert reason(b"\x96" + b"".join(map(encode, items)) + b"\xd4\xb3n") == "malformed"


def test_a_dtype_that_could_not_be_read_is_not_written() -> None:
    dtype = numpy.dtype([(f"f{number}", "<i4") for number in range(5_000)])
    with pytest.raises(TypeError, match="numpy array"):
        encode(numpy.zeros(2, dtype))
    few = numpy.zeros(2, [("a", "<i4"), ("b", [("c", "<f8", (2,))])])
    assert decode(encode(few)).dtype == few.dtype


def test_categories_that_share_a_hash_are_refused() -> None:
    index = pandas.Index(numpy.array(colliding(100), dtype=object))
    assert reason(encode(index)) == "too_costly"


def test_a_zone_is_read_from_its_file_once() -> None:
    restore = builtin_types.RESTORERS[b"Z"]
    # More than ZoneInfo keeps itself of those that are not in use.
    names = [f"Etc/GMT+{hours}" for hours in range(1, 13)]
    first = [id(restore([name])) for name in names]
    assert [id(restore([name])) for name in names] == first


# -- what is made from names ------------------------------------------------------------------------------------


def named(name: str, fields: str, *values: Any) -> bytes:
    return marked(b"N", *map(encode, (name, fields, *values)))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("A", "a b"), ("A", ""), ("A", "a-b"), ("A", "class"), ("A", "_a"), ("A", "_1"), ("A", "1"), ("", "a"),
        ("class", "a"), ("A b", "a"), ("A(", "a"), ("A", "a)"), ("A" * 256, "a"), ("A", "a" * 256), ("A\n", "a"),
        ("A", "\udcff"), ("A", " "), ("A", "a\n"),
    ],
)  # fmt: skip
def test_names_that_no_named_tuple_has_are_malformed(name: str, fields: str) -> None:
    assert reason(named(name, fields, 1)) == "malformed"


def test_a_field_stands_in_a_named_tuple_once_and_of_them_there_are_not_too_many() -> None:
    assert reason(named("A", "a a", 1, 2)) == "malformed"
    fields = [f"f{number}" for number in range(1_665)]
    assert reason(named("A", " ".join(fields), *fields)) == "malformed"
    assert reason(marked(b"N", encode("A"))) == "malformed"
    assert reason(marked(b"N", encode(b"A"), encode("a"), encode(1))) == "malformed"


def test_ever_new_named_tuples_are_given_up() -> None:
    payload = marked(b"t", *(named(f"Hostile{number}", "a", 1) for number in range(20_000)))
    began = time.thread_time()
    assert reason(payload) == "too_costly"
    # Unchecked, it takes a second.
    assert time.thread_time() - began < 0.5


class Ticking:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_from_the_wire_are_limited_in_time_and_in_all() -> None:
    clock = Ticking()
    cache: ClassCache[int, list[int]] = ClassCache(lambda key: [key], lambda _: 42, 10, clock)
    made = [cache.from_wire(number) for number in range(20)]
    assert len(cache) == 10
    with pytest.raises(CacheDecodeError) as caught:
        cache.from_wire(20)
    assert caught.value.reason == "too_costly"
    # What is there costs nothing, and what the program itself makes is not counted.
    assert cache.from_wire(19) is made[19]
    assert cache.own(20) == [20]
    assert cache.from_wire(20) is cache.own(20)
    clock.now = 0.2
    assert cache.from_wire(21) == [21]
    assert len(cache) == 10


def test_keys_of_other_dicts_that_share_a_hash_are_refused() -> None:
    keys = [(P * number,) for number in range(300)]  # few enough for a plain dict
    assert decode(encode(dict.fromkeys(keys))) == dict.fromkeys(keys)
    # To fill this one takes several times as long.
    assert reason(encode(OrderedDict.fromkeys(keys))) == "too_costly"


def test_fractions_that_take_long_to_reduce_are_refused() -> None:
    large = 3**200_000
    assert reason(marked(b"e", encode("Fraction"), encode(large), encode(2 * large))) == "too_costly"
    with pytest.raises(TypeError, match="Fraction"):
        encode(Fraction(large, 2))
    assert decode(encode(Fraction(3**5_000, 2))) == Fraction(3**5_000, 2)
