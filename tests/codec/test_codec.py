"""The codec: exact round trips, clear refusals, and nothing but `CacheDecodeError` from any bytes."""

import dataclasses
import enum
import math
import struct
import tracemalloc
from collections import ChainMap, UserDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID, uuid4
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgpack import ExtType, Packer, Timestamp, packb

from magnus_cache._engine import codec
from magnus_cache._engine.codec import decode, encode, is_immutable, register_type
from magnus_cache._engine.codec.markers import MARK_CODE
from magnus_cache._engine.codec.values import MAX_DEPTH
from magnus_cache._engine.runtime.turns import at_once
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheEncodeError, CacheTypeError
from tests.support.effort import examples
from tests.support.kinds import damaged, decode_or_refuse
from tests.support.programs import output_of


@register_type
class Side(enum.Enum):
    BUY = "b"
    SELL = "s"


@register_type
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@register_type
class Venue(enum.StrEnum):
    NYSE = "n"


@register_type
class Right(enum.Flag):
    READ = 1
    WRITE = 2


@register_type
class Point(NamedTuple):
    x: Any
    y: Any = 0


@register_type
@dataclasses.dataclass
class Order:
    symbol: Any
    lots: list[Any] = dataclasses.field(default_factory=list)
    total: Any = dataclasses.field(init=False, default=None)

    @cached_property
    def label(self) -> str:
        return f"{self.symbol}!"


@register_type
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    price: Any
    size: Any = 1

    def __post_init__(self) -> None:
        if self.price == "refused":
            raise RuntimeError("restoring must not run this")


@register_type
class Leg(pydantic.BaseModel):
    strike: Decimal
    side: Side = Side.BUY


@register_type
class Spread(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    legs: tuple[Leg, ...] = ()
    note: str | None = None
    _seen: int = pydantic.PrivateAttr(default=0)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in type, content, order, sign of zero, NaN and time zone, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    if isinstance(one, datetime | time):
        plain = bool(one.replace(tzinfo=None) == other.replace(tzinfo=None)) and one.fold == other.fold
        return plain and same(one.tzinfo, other.tzinfo)
    if isinstance(one, timezone):
        return one.__getinitargs__() == other.__getinitargs__() and (one is UTC) == (other is UTC)  # type: ignore[attr-defined]
    if isinstance(one, ZoneInfo):
        return bool(one.key == other.key)
    if isinstance(one, UUID):
        return bool(one == other) and one.is_safe is other.is_safe
    if isinstance(one, pydantic.BaseModel):
        return same(one.__getstate__(), other.__getstate__())
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        left = list(other)
        for item in one:
            match = next((n for n, candidate in enumerate(left) if same(item, candidate)), None)
            if match is None:
                return False
            del left[match]
        return not left
    return bool(one == other)


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from([ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")]),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.just(timezone(timedelta(hours=1), "named")),
    st.just(timezone(timedelta(0), "named")),
)
any_text = st.text(st.characters(codec=None, categories=None))
moments = st.builds(lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), zones, st.integers(0, 1))
hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    any_text,
    st.binary(),
    st.complex_numbers(),
    st.decimals().filter(lambda d: not d.is_snan()),
    st.sampled_from([Decimal("-0"), Decimal("1E+10"), Decimal("1.00"), Decimal("-Infinity"), Decimal("NaN123")]),
    st.dates(),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), zones, st.integers(0, 1)),
    moments,
    st.timedeltas(),
    zones,
    st.uuids(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
    st.sampled_from([*Side, *Level, *Venue, Right.READ, Right.READ | Right.WRITE, Right(0)]),
    st.builds(ExtType, st.integers(0, 127), st.binary()),
    st.builds(Timestamp, st.integers(-(2**40), 2**40), st.integers(0, 999_999_999)),
)
leaves = st.one_of(hashable_leaves, st.binary().map(bytearray), st.just(Decimal("sNaN7")))
keys = st.recursive(
    hashable_leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3), st.builds(Point, inner, inner)
    ),
    max_leaves=5,
)


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Order, inner, st.lists(inner, max_size=2)),
        st.builds(Quote, price=inner, size=inner),
    )


values = st.recursive(leaves, _wider, max_leaves=15)


@given(values)
@settings(max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_every_supported_value_comes_back_exactly(value: Any) -> None:
    payload = encode(value)
    assert same(decode(payload), value)
    assert same(decode(memoryview(payload)), value)


@given(st.lists(values, max_size=3), st.sampled_from(list("tsfyicrdDhHmMlzZuRnp")))
def test_a_plain_list_is_never_taken_for_a_marked_one(items: list[Any], kind: str) -> None:
    """Whatever a list ends in, also things that look like marks, it stays a list."""
    for last in (kind, kind.encode(), ExtType(-MARK_CODE, kind.encode()), [kind], {kind: kind}):
        assert same(decode(encode([*items, last])), [*items, last])
    with pytest.raises(ValueError):
        ExtType(MARK_CODE, kind.encode())


def test_none_is_a_value() -> None:
    """`None` is cached like anything else."""
    assert decode(encode(None)) is None
    assert encode(None) != b""


@pytest.mark.parametrize("value", [-1, -(2**63), -(2**70), 0, "", b"", (), [], {}, set(), frozenset(), bytearray()])
def test_negative_numbers_and_empty_values_come_back(value: Any) -> None:
    """Negative ints and empty values are neither misses nor errors."""
    assert same(decode(encode(value)), value)
    assert encode(value)


@pytest.mark.parametrize(
    "value", [True, False, 1, 0, 1.0, -0.0, math.nan, math.inf, Decimal("sNaN12"), Decimal("-0E-9")]
)
def test_look_alikes_stay_what_they_are(value: Any) -> None:
    assert same(decode(encode(value)), value)
    assert same(decode(encode([value])), [value])
    if not (isinstance(value, Decimal) and value.is_snan()):  # the one value without a hash
        assert same(decode(encode({(value,): value})), {(value,): value})


def test_a_fold_and_the_zone_survive() -> None:
    zone = ZoneInfo("America/New_York")
    for fold in (0, 1):
        moment = datetime(2025, 11, 2, 1, 30, 0, 7, tzinfo=zone, fold=fold)
        back = decode(encode(moment))
        assert (back.fold, back.tzinfo, back.utcoffset()) == (fold, zone, moment.utcoffset())
    assert decode(encode(datetime(2025, 1, 1, tzinfo=UTC))).tzinfo is UTC


def test_an_offset_below_a_second_survives() -> None:
    """`fromisoformat` reads such an offset as UTC."""
    for offset in (timedelta(microseconds=1), timedelta(hours=1, microseconds=5), timedelta(seconds=-1)):
        moment = datetime(2025, 1, 1, tzinfo=timezone(offset))
        assert decode(encode(moment)).utcoffset() == offset
        assert decode(encode(moment.timetz())).utcoffset() == offset


def test_uuid_keeps_its_safety() -> None:
    assert decode(encode(UUID(int=5, is_safe=SafeUUID.safe))).is_safe is SafeUUID.safe


def test_lone_surrogates_come_back_exactly() -> None:
    for text in ("\udc80", "a\ud800\udc00b", "\ud83d\ude00"):
        assert decode(encode([text, {text: (text,)}])) == [text, {text: (text,)}]


def test_a_bytearray_stays_one_wherever_it_hides() -> None:
    value = {"a": [bytearray(b"x")], "b": (b"x", (bytearray(b"y"),)), "c": Order(bytearray(b"z"), [[bytearray()]])}
    assert same(decode(encode(value)), value)
    for view in (memoryview(b"x"), [memoryview(b"x")], {"a": (memoryview(b"x"),)}, {memoryview(b"x"): 1}):
        with pytest.raises(CacheEncodeError, match="memoryview"):
            encode(view)


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "zone"

    def dst(self, _: datetime | None) -> None:
        return None


class Unregistered(enum.IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int

    def double(self) -> int:
        return 2 * self.a


@dataclasses.dataclass
class Plain:
    a: int


@pytest.mark.parametrize(
    "value",
    [
        Text("x"), Unregistered.ONE, Pair(1), Plain(1), ChainMap({"a": 1}), UserDict(a=1), object(), Order, len,
        iter([1]), datetime(2025, 1, 1, tzinfo=Zone()), ValueError("x"),
    ],
)  # fmt: skip
def test_an_unregistered_class_is_refused_by_name(value: Any) -> None:
    kind = type(value.tzinfo) if isinstance(value, datetime) else type(value)
    for wrapped in (value, [value], {"k": (value,)}, {1: {2: Order(value)}}):
        with pytest.raises(CacheEncodeError, match=r"register_type\(") as caught:
            encode(wrapped)
        assert caught.value.type_name == f"{kind.__module__}.{kind.__qualname__}"
        assert encode([1, (2,)]) == packb([1, [2, ExtType._make((MARK_CODE, b"t"))]])  # no residue in the packer


def test_containers_that_contain_themselves_or_nest_too_deep_are_refused() -> None:
    loop: list[Any] = [bytearray()]
    loop.append(loop)
    table: dict[str, Any] = {}
    table["self"] = table
    deep: Any = 1
    for _ in range(MAX_DEPTH + 100):
        deep = (deep,)
    for value in (loop, table, deep, Order(loop), [deep]):
        with pytest.raises(CacheEncodeError, match="deeper than 1000 levels, or contains itself"):
            encode(value)


def test_nesting_up_to_the_limit_works() -> None:
    deep: Any = ()
    for level in range(MAX_DEPTH - 1):
        deep = [deep] if level % 2 else (deep,)
    again, depth = decode(encode(deep)), 1
    while again:
        again, depth = again[0], depth + 1
    assert depth == MAX_DEPTH


# Registered types


def test_fields_are_restored_without_running_the_class() -> None:
    order = Order("A", [1])
    order.total = 3
    assert order.label == "A!"
    back = decode(encode(order))
    assert (back, back.total) == (order, 3)
    assert "label" not in vars(back)
    refused = object.__new__(Quote)
    object.__setattr__(refused, "price", "refused")
    object.__setattr__(refused, "size", 1)
    assert decode(encode(refused)) == refused


def test_attributes_beside_the_fields_are_kept() -> None:
    order = Order("A")
    order.extra = (1, 2)  # type: ignore[attr-defined]
    assert decode(encode(order)).extra == (1, 2)


def test_an_unset_field_is_refused() -> None:
    order = object.__new__(Order)
    with pytest.raises(CacheEncodeError, match="not set"):
        encode(order)


def test_pydantic_models_keep_nested_models_extras_private_and_set_fields() -> None:
    spread = Spread(legs=(Leg(strike=Decimal("1.50")),), colour={"x": 1})  # type: ignore[call-arg]
    spread._seen = 4
    back = decode(encode(spread))
    assert back == spread
    assert same(back, spread)
    assert (back._seen, back.model_extra, back.model_fields_set) == (4, {"colour": {"x": 1}}, spread.model_fields_set)
    assert type(back.legs[0]) is Leg


def _remade(name: str, **fields: Any) -> type[Any]:
    kinds = [(field, Any, default) if default is not ... else (field, Any) for field, default in fields.items()]
    cls = dataclasses.make_dataclass(name, kinds, namespace={"__module__": __name__})
    return register_type(cls)


def test_a_changed_class_is_a_miss_unless_defaults_help() -> None:
    first = _remade("Remade", a=..., b=...)
    payload = encode(first(1, 2))
    assert decode(encode(_remade("Remade", a=..., b=...)(1, 2))).b == 2  # as after a reload
    assert dataclasses.astuple(decode_with(payload, b=..., a=..., c=7)) == (2, 1, 7)
    for fields in ({"a": ...}, {"a": ..., "b": ..., "c": ...}):
        with pytest.raises(CacheDecodeError) as caught:
            decode_with(payload, **fields)
        assert caught.value.reason == "malformed"
    with pytest.raises(CacheEncodeError):
        encode(first(1, 2))  # an instance of the class before the reload


def decode_with(payload: bytes, **fields: Any) -> Any:
    _remade("Remade", **fields)
    return decode(payload)


def test_a_changed_model_or_tuple_is_a_miss_unless_defaults_help() -> None:
    model = register_type(pydantic.create_model("Remodel", __module__=__name__, a=(int, ...)))
    payload = encode(model(a=1))
    register_type(pydantic.create_model("Remodel", __module__=__name__, a=(int, ...), b=(list[int], [5])))
    assert decode(payload).b == [5]
    register_type(pydantic.create_model("Remodel", __module__=__name__, a=(int, ...), b=(int, ...)))
    with pytest.raises(CacheDecodeError):
        decode(payload)
    payload = encode(Point(1, 2)).replace(b"\xa1y", b"\xa1z")
    with pytest.raises(CacheDecodeError):
        decode(payload)


class Money:
    def __init__(self, amount: Any) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.amount == self.amount

    __hash__ = None  # type: ignore[assignment]


def test_other_classes_bring_both_functions() -> None:
    with pytest.raises(CacheArgumentError, match="encode="):
        register_type(Money)
    with pytest.raises(CacheArgumentError, match="both"):
        register_type(Money, encode=lambda money: money.amount)
    with pytest.raises(CacheArgumentError, match="both"):
        register_type(Money, decode=Money)
    assert register_type(Money, name="money", encode=lambda money: money.amount, decode=Money) is Money
    value = [Money(Decimal(5)), {"a": Money(bytearray(b"x"))}]
    assert decode(encode(value)) == value
    assert type(decode(encode(value))[1]["a"].amount) is bytearray
    assert register_type(name="money2", encode=lambda money: money.amount, decode=Money)(Money) is Money
    assert decode(encode(Money(1)).replace(b"\xa6money2", b"\xa5money")) == Money(1)  # the old name is still read


def test_functions_that_fail_are_encode_and_decode_errors() -> None:
    class Broken:
        pass

    def fail(_: Any) -> Any:
        raise LookupError("secret")

    register_type(Broken, encode=fail, decode=fail)
    with pytest.raises(CacheEncodeError, match="LookupError") as caught:
        encode([Broken()])
    assert "secret" not in str(caught.value)
    register_type(Broken, encode=lambda _: None, decode=fail)
    with pytest.raises(CacheDecodeError) as refused:
        decode(encode([Broken()]))
    assert refused.value.reason == "malformed"
    assert "secret" not in str(refused.value)
    register_type(Broken, encode=lambda broken: broken, decode=fail)
    with pytest.raises(CacheEncodeError):
        encode(Broken())


def test_an_encode_function_may_encode() -> None:
    class Boxed:
        def __init__(self, item: Any) -> None:
            self.item = item

    register_type(Boxed, encode=lambda boxed: encode(boxed.item), decode=lambda data: Boxed(decode(data)))
    back = decode(encode([1, Boxed([2, Boxed((3,))]), 4]))
    assert (back[0], back[1].item[0], back[1].item[1].item, back[2]) == (1, 2, (3,), 4)


def test_one_name_stands_for_one_class() -> None:
    with pytest.raises(CacheArgumentError, match="already stands for"):
        register_type(Pair, name=f"{Point.__module__}.Point")
    for wrong in (int, tuple, dict, datetime, object, bytearray):
        with pytest.raises(CacheArgumentError):
            register_type(wrong)
    with pytest.raises(CacheTypeError):
        register_type(Point(1, 2))  # type: ignore[call-overload]
    for name in ("", 5):
        with pytest.raises(CacheTypeError):
            register_type(Pair, name=name)  # type: ignore[arg-type]


def test_a_dataclass_with_state_outside_its_fields_needs_functions() -> None:
    class Base:
        __slots__ = ("hidden",)

    @dataclasses.dataclass
    class Child(Base):
        a: int

    @dataclasses.dataclass
    class Mapping(dict[str, int]):
        a: int

    for cls in (Child, Mapping):
        with pytest.raises(CacheArgumentError, match="encode="):
            register_type(cls)


# Bytes from elsewhere


def _reason(payload: bytes) -> str:
    with pytest.raises(CacheDecodeError) as caught:
        decode(payload)
    return caught.value.reason


def _marked(kind: bytes, *items: Any) -> bytes:
    payload: bytes = packb([*items, ExtType._make((MARK_CODE, kind))])
    return payload


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        # How what a codec of the user's own has made begins.
        (b"\xc1", "codec"),
        (encode({"a": [1, "b"]})[:-1], "truncated"),
        (b"\xc0\xc0", "trailing"),
        (b"\x91" * 2000 + b"\xc0", "too_deep"),
        (b"\xdd\xff\xff\xff\xff", "truncated"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\xdb\xff\xff\xff\xffx", "truncated"),
        (b"\x81\x90\xc0", "malformed"),
        (_marked(b"?", 1), "malformed"),
        (_marked(b"R", "no.such.Class", 1), "unknown_type"),
        (_marked(b"R", ["unhashable"], 1), "malformed"),
        (_marked(b"y", 10**12), "malformed"),
        (_marked(b"d", "many"), "malformed"),
        (_marked(b"d"), "malformed"),
        (_marked(b"Z", "../../etc/passwd"), "malformed"),
        (_marked(b"Z", "No/Where"), "malformed"),
        (_marked(b"s", []), "malformed"),
        (_marked(b"m", 5), "malformed"),
        (_marked(b"n", "array", "|u1", [10**15], "C", b""), "malformed"),
        (_marked(b"n", "array", "O", [1], "C", b"12345678"), "malformed"),
        (_marked(b"n", "array", "V0", [10**15], "C", b""), "malformed"),
        (_marked(b"p", "frame", 1, 2, 3, 4), "malformed"),
        (packb(ExtType._make((MARK_CODE, b"t"))), "malformed"),
        (packb(ExtType._make((-5, b"t"))), "malformed"),
    ],
)
def test_bad_bytes_give_the_reason(payload: bytes, reason: str) -> None:
    assert _reason(payload) == reason


@given(st.binary(max_size=200))
@settings(max_examples=examples(1000))
def test_arbitrary_bytes_raise_nothing_but_a_decode_error(payload: bytes) -> None:
    decode_or_refuse(payload)


@given(values, st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_damaged_payloads_raise_nothing_but_a_decode_error(value: Any, data: st.DataObject) -> None:
    decode_or_refuse(damaged(encode(value), data))


@given(st.sampled_from("tsfyicrdDhHmMlzZuRnp"), st.lists(values, max_size=4))
@settings(max_examples=examples(500), suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_marks_with_arbitrary_items_raise_nothing_but_a_decode_error(kind: str, items: list[Any]) -> None:
    decode_or_refuse(encode([*items, ExtType._make((MARK_CODE, kind.encode()))]))


def test_claimed_lengths_take_no_memory() -> None:
    fence = b"\xdd\x00\x00\x27\x10"  # an array of ten thousand, in an array of ten thousand, ...
    payload = fence * 900 + b"\xc0" * 10_000
    tracemalloc.start()
    try:
        assert _reason(payload) == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_other_errors_pass_through() -> None:
    class Stop:
        pass

    def stop(_: Any) -> Any:
        raise KeyboardInterrupt

    register_type(Stop, encode=lambda _: 1, decode=stop)
    with pytest.raises(KeyboardInterrupt):
        decode(encode(Stop()))


# Sharing, threads, import


@pytest.mark.parametrize(
    "value",
    [
        1, "a", b"", None, 1.5, True, Decimal(1), date.today(), datetime.now(UTC), time(), timedelta(1), uuid4(), UTC,
        (), (1, ("a", frozenset({(1, 2)}))), Side.BUY, (Level.LOW,), Point(1, (2,)), range(3),
    ],
)  # fmt: skip
def test_immutable_values_are_shareable(value: Any) -> None:
    assert is_immutable(value)


@pytest.mark.parametrize(
    "value",
    [
        [], {}, set(), bytearray(), ([],), (1, ({},)), Point(1, []), Order("a"), Quote(price=1), Text("x"), Pair(1),
        object(), (Money(1),), ExtType(1, b""), Leg(strike=Decimal(1)),
    ],
)  # fmt: skip
def test_mutable_or_unknown_values_are_not_shareable(value: Any) -> None:
    assert not is_immutable(value)


def test_a_tuple_class_with_functions_of_its_own_is_not_shareable() -> None:
    class Odd(tuple[int, ...]):
        """Who knows what else it holds."""

    register_type(Odd, encode=list, decode=Odd)
    assert not is_immutable(Odd([1]))


def test_deep_tuples_do_not_recurse() -> None:
    deep: Any = ()
    for _ in range(100_000):
        deep = (deep,)
    assert is_immutable(deep)
    while deep:
        (deep,) = deep


def test_threads_encode_at_once() -> None:
    def work(number: int) -> bool:
        value = [{"n": number, "rows": [(number, Decimal(number), "x" * number)] * 20, "bad": b"\xc4"}]
        for _ in range(50):
            assert same(decode(encode(value)), value)
            with pytest.raises(CacheEncodeError):
                encode([value, object()])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_importing_the_codec_imports_no_heavy_library() -> None:
    code = (
        "import sys; from magnus_cache._engine.codec import encode, decode; decode(encode([1, (2,)]))\n"
        "print(*({'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    assert output_of("-c", code).strip() == ""


def test_public_names() -> None:
    steps = ["LARGE", "decode_steps", "encode_steps", "is_heavy", "is_long", "size_steps"]
    types = ["changed_so_far", "on_replaced", "register_hint", "register_result", "register_type", "renewed"]
    plans = ["CopyPlan", "MOST_PLANNED_BYTES", "SMALL_BYTES", "plan_for"]
    users = ["Codec", "decode_by", "encode_by", "is_opaque", "mismatch"]
    assert sorted(codec.__all__) == sorted([*steps, *types, *plans, *users, "decode", "encode", "is_immutable"])


@pytest.mark.parametrize("value", [b"\xde\xdf\xd4", "text", "\N{EURO SIGN}", "\ud800 alone"])
@pytest.mark.parametrize("size", [codec.LARGE - 1, codec.LARGE, codec.LARGE + 70_000])
def test_large_bytes_and_texts_are_packed_as_a_packer_packs_them(value: bytes | str, size: int) -> None:
    """They take no packer, as its buffer would be copied each time that it grows."""
    large = (value * (size // len(value) + 1))[:size]
    payload = codec.encode(large)
    assert payload == Packer(unicode_errors="surrogatepass").pack(large)
    for found in (codec.decode(payload), at_once(codec.decode_steps(payload)), codec.decode(codec.encode([large]))[0]):
        assert found == large
        assert type(found) is type(large)
    with pytest.raises(CacheDecodeError):
        codec.decode(payload[:-1])
    with pytest.raises(CacheDecodeError):
        codec.decode(payload + b"x")
