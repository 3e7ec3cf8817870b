"""Collections, paths, fractions, network addresses and named tuples come back exactly, without registration."""

import collections
import copy
import ipaddress
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import pytest
from dateutil.tz import tzoffset, tzutc
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import TzInfo

from magnus_cache import AsyncCacheManager, CacheDecodeError, CacheEncodeError, CacheManager, Namespace, register_type
from magnus_cache._engine.codec import decode, encode, is_immutable, registry
from magnus_cache._engine.codec.named_tuples import is_rebuilt
from magnus_cache._engine.memory.footprint import footprint
from tests.support.kinds import alike, damaged, decode_or_refuse, forget_what_was_made

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_what_was_made()


namedtuple: Any = getattr(collections, "named" + "tuple")
"""As libraries do it: without types."""

Options = namedtuple("Options", ["calls", "puts", "underlying"])


class Typed(NamedTuple):
    """Only fields, so nothing is lost."""

    symbol: str
    price: Decimal


class Rich(NamedTuple):
    bid: int

    def half(self) -> float:
        return self.bid / 2


class WithDefault(NamedTuple):
    bid: int = 5


moved = OrderedDict(a=1, b=2, c=3)
moved.move_to_end("a")

VALUES = [
    OrderedDict(), moved, OrderedDict({1: {2: OrderedDict(x=bytearray(b"x"))}, (1, 2): None}),
    defaultdict(list, {"a": [1]}), defaultdict(None, {1: 2}), defaultdict(int, a=3), defaultdict(set, a={1}),
    Counter("aabc"), Counter({"a": -1, (1, "b"): 0}), Counter(),
    deque(), deque([1, (2,), bytearray(b"y")]), deque([1, 2], maxlen=2), deque(maxlen=0),
    Path("/a/b"), Path(), PurePosixPath("//a/../b"), PureWindowsPath("c:\\a\\b"), PurePosixPath("\udcff"),
    Fraction(1, 3), Fraction(-(10**50), 7), Fraction(0),
    ipaddress.ip_address("1.2.3.4"), ipaddress.ip_address("fe80::1%eth0"), ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("2001:db8::/32"), ipaddress.ip_interface("1.2.3.4/24"), ipaddress.ip_interface("::1/64"),
    Options([1], {"a": 2}, None), Typed("AAPL", Decimal("1.50")), namedtuple("Empty", [])(),
    namedtuple("Renamed", ["a", "class", "a"], rename=True)(1, 2, 3), namedtuple("Größe", ["länge"])(5),
    Options(Options(1, 2, 3), moved, bytearray(b"z")),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{len(repr(value))}")
def test_each_comes_back_as_it_is(value: Any) -> None:
    for wrapped in (value, [value], {"k": (value, value)}, OrderedDict(x=value)):
        assert alike(wrapped, decode(encode(wrapped)))
    try:
        hash(value)
    except TypeError:
        return
    assert alike({value: 1}, decode(encode({value: 1})))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.decimals(allow_nan=False), st.dates(),
    st.fractions(), st.ip_addresses(), st.binary(max_size=4),
    st.builds(PurePosixPath, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)),
    st.builds(PureWindowsPath, st.sampled_from(["c:\\a", "\\\\host\\share\\x", "a/b", ""])),
    st.builds(ipaddress.IPv4Network, st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), st.just(False)),
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "value", "x1", "größe"])


def _named(name: str, fields: list[str], values: list[Any]) -> Any:
    return namedtuple(name, fields)._make([*values, *[None] * len(fields)][: len(fields)])


VALUE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(SCALARS, inner, max_size=4),
        st.builds(OrderedDict, st.lists(st.tuples(SCALARS, inner), max_size=4)),
        st.builds(
            defaultdict, st.sampled_from([None, list, dict, int, str]), st.dictionaries(SCALARS, inner, max_size=4)
        ),
        st.builds(Counter, st.dictionaries(SCALARS, st.integers(), max_size=4)),
        st.builds(deque, st.lists(inner, max_size=4), st.none() | st.integers(4, 9)),
        st.builds(_named, NAMES, st.lists(NAMES, unique=True), st.lists(inner, max_size=4)),
    ),
    max_leaves=12,
)


@given(VALUE)
def test_whatever_is_made_of_them_comes_back_as_it_is(value: Any) -> None:
    assert alike(value, decode(encode(value)))


@given(VALUE, st.data())
def test_damaged_bytes_raise_nothing_but_the_decode_error(value: Any, data: st.DataObject) -> None:
    decode_or_refuse(damaged(encode(value), data))


NAMED = (
    "deque", "OrderedDict", "defaultdict", "Counter", "Fraction", "PosixPath", "IPv4Network", "list", "A", "a",
    "sqlite3.Row", "sqlalchemy.engine.Row", "psycopg2.extras.DictRow", "psycopg.types.range.Range", "[)",
    "pydantic_core.TzInfo", "dateutil.tz.tzoffset",
)  # fmt: skip
ITEM = st.one_of(
    st.sampled_from(NAMED), st.none(), st.integers(-(2**70), 2**70), st.binary(max_size=3), st.floats(),
    st.text(max_size=3),
)  # fmt: skip
PARTS = st.lists(
    ITEM | st.lists(ITEM, max_size=3) | st.dictionaries(st.text(max_size=2) | st.integers(), ITEM, max_size=3),
    max_size=5,
)


@given(PARTS, st.sampled_from([b"e", b"o", b"N", b"w"]))
def test_hostile_parts_raise_nothing_but_the_decode_error(parts: list[Any], kind: bytes) -> None:
    payload = bytes([0x90 + len(parts) + 1]) + b"".join(map(encode, parts)) + b"\xd4\xb3" + kind
    try:
        decode(payload)
    except CacheDecodeError:
        pass


ZONES = [TzInfo(0), TzInfo(19800), TzInfo(-3600), tzutc(), tzoffset(None, 3600), tzoffset("X", -1.5)]


@pytest.mark.parametrize("zone", ZONES, ids=repr)
def test_moments_keep_the_zones_that_libraries_gave_them(zone: Any) -> None:
    """pydantic gives its own zone to each moment that it reads, and botocore dateutil's."""
    for moment in (datetime(2025, 1, 1, 12, 30, 0, 5, tzinfo=zone), datetime(2025, 1, 1, fold=1, tzinfo=zone)):
        back = decode(encode([moment]))[0]
        assert back == moment
        assert type(back.tzinfo) is type(zone)
        assert (back.utcoffset(), back.tzname(), back.fold) == (moment.utcoffset(), moment.tzname(), moment.fold)
    assert decode(encode(zone)) == zone


def test_zones_of_models_that_read_text_are_stored(url: str) -> None:
    class Quote(BaseModel):
        at: datetime

    quote = Quote.model_validate_json('{"at": "2025-09-01T14:00:00Z"}')
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as other:
        cache.get_or_set("quotes", "k", lambda: quote, returns=Quote)
        assert cache.get("quotes", "k") == other.get("quotes", "k") == quote
        assert type(other.get("quotes", "k").at.tzinfo) is type(quote.at.tzinfo)


@pytest.mark.parametrize("name", ["pydantic_core.TzInfo", "dateutil.tz.tzutc", "dateutil.tz.tzoffset"])
def test_hostile_zones_raise_nothing_but_the_decode_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = encode(Fraction(1, 2))[-3:]
    for parts in ([], ["x"], [10**9], [None, "x"], [1, 2.0], [None, 1e300], [[], []], ["X", float("nan")]):
        decode_or_refuse(bytes([0x92 + len(parts)]) + b"".join(map(encode, [name, *parts])) + mark)
    monkeypatch.delitem(sys.modules, name.rpartition(".")[0])
    with pytest.raises(CacheDecodeError, match="has not imported"):
        decode(b"\x92" + encode(name) + mark)


def test_subclasses_and_other_factories_are_refused() -> None:
    class Sub(OrderedDict[str, int]):
        pass

    class Home(PurePosixPath):
        pass

    for value in (Sub(a=1), Home("/x")):
        with pytest.raises(CacheEncodeError, match="register_type"):
            encode([value])
    for factory in (lambda: 0, Decimal, date.today):
        with pytest.raises(CacheEncodeError, match=r"return dict\(value\)"):
            encode(defaultdict(factory))


def test_a_registration_of_such_a_class_goes_before_ours() -> None:
    register_type(deque, name="tests.deque", encode=list, decode=lambda items: deque([0, *items]))
    try:
        assert decode(encode([deque([1])])) == [deque([0, 1])]
    finally:
        del registry._by_class[deque], registry._by_name["tests.deque"]


# -- named tuples -----------------------------------------------------------------------------------------------


def test_a_named_tuple_made_anew_for_each_call_comes_back_as_one_class() -> None:
    one = decode(encode(namedtuple("Options", ["calls", "puts"])(1, 2)))
    two = decode(encode(namedtuple("Options", ["calls", "puts"])(3, 4)))
    assert type(one) is type(two)
    assert (one.calls, one._asdict(), one._replace(puts=5)) == (1, {"calls": 1, "puts": 2}, (1, 5))
    assert repr(one) == "Options(calls=1, puts=2)"
    assert alike(one, decode(encode(one)))


def test_what_came_back_can_be_copied_and_pickled() -> None:
    value = decode(encode(Typed("A", Decimal(1))))
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(again) is type(value)
        assert again == value


@pytest.mark.parametrize("look", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_named_tuple_that_was_copied_is_stored(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both add an attribute to its class."""
    cls = namedtuple("Record", ["id", "price"])
    cls.__module__ = __name__
    monkeypatch.setattr(f"{__name__}.Record", cls, raising=False)
    look(cls(1, 2.5))
    assert "__slotnames__" in vars(cls)
    assert alike(decode(encode(cls(1, 2.5))), cls(1, 2.5))


def test_a_named_tuple_that_would_lose_something_is_refused() -> None:
    class Loose(Typed):
        pass

    loose = Loose("A", Decimal(1))
    for value in (Rich(1), WithDefault(), loose):
        with pytest.raises(CacheEncodeError, match="register_type"):
            encode([value])


def test_a_registered_named_tuple_is_itself() -> None:
    cls = register_type(NamedTuple("Registered", [("a", int)]))
    assert type(decode(encode(cls(1)))) is cls


def test_immutable_ones_are_shared_between_callers() -> None:
    again = decode(encode(Typed("A", Decimal(1))))
    assert is_rebuilt(type(again))
    assert is_immutable(again)
    assert is_immutable((Path("/x"), Fraction(1, 2), ipaddress.ip_address("::1")))
    # What is stored as it was given would come back as another class; what can be changed would be changed for others.
    assert not is_immutable(Typed("A", Decimal(1)))
    assert not is_immutable(decode(encode(Options([1], 2, 3))))
    for value in (deque([1]), OrderedDict(a=1), ipaddress.ip_network("10.0.0.0/8")):
        assert not is_immutable(value)


def test_what_is_kept_decoded_is_counted() -> None:
    big = {number: f"{number:050}" for number in range(1_000)}
    for value in (OrderedDict(big), Counter(dict.fromkeys(big, 1)), deque(big.values()), defaultdict(list, big)):
        assert footprint(value, 10) > 30_000


@pytest.mark.parametrize("share", [False, True])
async def test_the_first_caller_gets_what_the_later_ones_get(url: str, share: bool) -> None:
    space = Namespace(f"kinds{share}", share=share)
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:

        @cache.cached(space)
        async def options(ticker: str) -> Any:
            return namedtuple("Options", ["calls", "puts"])([ticker], Path("/x"))

        first, second = await options("A"), await options("A")
        far = await other.get(space, options.cache_key("A"))
        assert first == second == far == (["A"], Path("/x"))
        assert type(first) is type(second) is type(far)
        batch = await cache.get_or_set_many(space, ["b"], lambda keys: {key: Options(1, 2, 3) for key in keys})
        assert type(batch["b"]) is type((await cache.get_many(space, ["b"]))["b"])


def test_the_first_blocking_caller_gets_what_the_later_ones_get(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        first = cache.get_or_set("kinds", "k", lambda: [Options(1, 2, 3)])
        assert type(first[0]) is type(cache.get("kinds", "k")[0])
        assert cache.set("kinds", "set", Typed("A", Decimal(1)))
        assert type(cache.get("kinds", "set")).__name__ == "Typed"
        assert type(cache.get("kinds", "set")) is not Typed
