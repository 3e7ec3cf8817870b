"""The text of keys, the names built from it, and what a clear covers."""

import datetime as dt
import enum
import math
import re
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr

from magnus_cache._engine.keys.canonical import canonical, escape_bytes
from magnus_cache._engine.keys.globs import is_pattern, prefix_pattern
from magnus_cache._engine.keys.identity import IdentityMap, Tokens
from magnus_cache._engine.keys.names import Keyspace, KeyText, key_text, lease_name
from magnus_cache._engine.policy.namespaces import CacheNamespaces, Namespace
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from tests.support.effort import examples
from tests.support.inside import glob_regex

ALPHABET = st.characters(codec=None) | st.sampled_from("~%{}(),=:'#*?[]\\ \n\x00\ud800") | st.sampled_from("ab1")
TEXTS = st.text(ALPHABET, max_size=12)


# -- equality that knows types, as a model of what must share a text ---------------------------------------------


def model(value: Any) -> Any:
    """Something that is equal for two values exactly if they must have one text."""
    kind = type(value)
    if kind in (tuple, list):
        return kind, tuple(map(model, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(model, value))
    if kind is dict:
        return kind, frozenset((model(key), model(item)) for key, item in value.items())
    if kind is float:
        return kind, "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if kind is Decimal:
        return kind, str(value)
    if kind in (dt.datetime, dt.time):
        return kind, value.isoformat(), str(value.tzinfo), value.fold
    return kind, value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf])
    | TEXTS
    | st.binary(max_size=6)
    | st.sampled_from(["1", "~1", "True", "None", "1.0", "a,b", "a:b", "~(a,b)", "'',", "~''"])
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(ZoneInfo("Europe/Berlin")))
    | st.timedeltas()
    | st.uuids()
)


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    """As `SCALARS`, with a short repr: Hypothesis writes it out for each strategy around it."""
    return draw(SCALARS)


HASHABLE = st.recursive(
    scalars(), lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3)
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.recursive(
    st.text(ALPHABET, min_size=1, max_size=12)
    | st.text("ab~%", min_size=190, max_size=210)
    | st.integers()
    | st.booleans()
    | st.binary(min_size=1, max_size=6)
    | st.uuids(),
    lambda inner: st.lists(inner | st.just("") | st.just(b"") | st.just(()), min_size=1, max_size=3).map(tuple),
    max_leaves=6,
)


@settings(max_examples=examples(500))
@given(VALUES, VALUES)
def test_canonical_text_is_injective(one: Any, other: Any) -> None:
    """Values of different type or value never share a text, and equal ones always do."""
    assert (canonical(one) == canonical(other)) is (model(one) == model(other))


@settings(max_examples=examples(500))
@given(KEYS, KEYS)
def test_keys_are_injective(one: Any, other: Any) -> None:
    """For the keys of `get` and `set`."""
    assert (key_text(one) == key_text(other)) is (model(one) == model(other))


@given(st.lists(st.tuples(HASHABLE, scalars()), max_size=5, unique_by=lambda pair: pair[0]), st.randoms())
def test_order_of_dicts_and_sets_does_not_matter(items: list[tuple[Any, Any]], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert canonical(dict(items)) == canonical(dict(shuffled))
    assert canonical({key for key, _ in items}) == canonical({key for key, _ in shuffled})


def test_the_collisions_of_others() -> None:
    """The very pairs that collide in cashews."""
    pairs = [(1, "1"), (True, "true"), (("1:2", "3"), ("1", "2:3")), (1, True), (1, 1.0), (None, ""), (None, "None")]
    pairs += [(("a", "b"), "a:b"), (("a", "b"), ["a", "b"]), ((1,), 1), (b"a", "a"), ("", ()), (("",), ()), ({}, set())]
    for one, other in pairs:
        assert canonical(one) != canonical(other), (one, other)


@given(KEYS)
def test_a_text_is_safe_in_names_and_within_bounds(key: Any) -> None:
    text = key_text(key)
    assert not re.search(r"[\s{}\x00-\x20\x7f]", text)
    assert len(text.encode()) <= 200


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("AAPL_2025-03-21", "AAPL_2025-03-21"),
        ("user@example.com:8/x+y=(z),1", "user@example.com:8/x+y=(z),1"),
        ("M\u00fcller", "M\u00fcller"),
        ("a b{c}%~", "a%20b%7Bc%7D%25%7E"),
        ("\u2028", "%E2%80%A8"),
        (5, "~5"),
        (-5, "~-5"),
        (True, "~True"),
        (b"raw\xff", "~b:raw%FF"),
        (uuid.UUID(int=5), "~uuid:00000000-0000-0000-0000-000000000005"),
        (("AAPL", 2025), "~(AAPL,~2025)"),
        (("", ("a,b",)), "~(~'',~(a%2Cb))"),
        (Namespace("portfolio"), "portfolio"),
    ],
)
def test_a_text_can_be_read(key: Any, text: str) -> None:
    assert key_text(key) == text


def test_long_texts_are_hashed_and_keep_a_readable_beginning() -> None:
    short, long = "x" * 200, "x" * 201
    assert key_text(short) == short
    assert re.fullmatch(r"x{60}~#[0-9a-f]{32}", key_text(long))
    # The shown text of a long key, given as a key, is another key.
    assert key_text(key_text(long)[:]) != key_text(long)
    assert not re.search(r"%.?~#", key_text("a" * 59 + "%" * 300))


def test_huge_ints_have_a_text() -> None:
    assert len(key_text(10**5000)) <= 200
    assert key_text(10**5000) != key_text(10**5000 + 1)


def test_a_finished_text_is_taken_as_it_is() -> None:
    assert key_text(KeyText("m.f~(a=~1)")) == "m.f~(a=~1)"
    assert key_text("m.f~(a=~1)") != "m.f~(a=~1)"


class Color(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


class Pair(NamedTuple):
    a: int
    b: int


def test_subclasses_are_keys_by_what_they_equal() -> None:
    assert key_text(Color.RED) == "red"
    assert key_text((Color.RED, Size.SMALL)) == key_text(("red", 1))
    assert key_text(Pair(1, 2)) == key_text((1, 2))


@pytest.mark.parametrize("key", ["", b"", (), Namespace.__mro__[1]("")])
def test_an_empty_key_is_refused(key: Any) -> None:
    with pytest.raises(CacheArgumentError, match="^key: the key is an empty") as caught:
        key_text(key)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, TypeError)


@pytest.mark.parametrize("key", [None, 1.0, [1], {"a": 1}, {1}, object(), ("a", None), ("a", ["b"]), dt.date.today()])
def test_a_key_of_another_type_is_refused(key: Any) -> None:
    with pytest.raises(CacheTypeError, match="^ticker: .*str, int, bytes, UUID"):
        key_text(key, "ticker")


def test_a_bottomless_key_is_refused() -> None:
    key: Any = "a"
    for _ in range(5000):
        key = (key,)
    with pytest.raises(CacheTypeError, match="too deeply"):
        key_text(key)


# -- canonical text of objects -----------------------------------------------------------------------------------


@dataclass
class Query:
    ticker: str
    depth: int = 5


@dataclass
class OtherQuery:
    ticker: str
    depth: int = 5


class PlainSubclass(Query):
    pass


class Model(BaseModel):
    ticker: str
    _note: str = PrivateAttr("")


class Flags(enum.Flag):
    A = 1
    B = 2


class Keyed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        return self.key


class Money(float):
    pass


def test_objects_count_by_class_and_fields() -> None:
    different = [
        Query("A"), Query("B"), Query("A", 6), OtherQuery("A"), Pair(1, 2), (1, 2), Model(ticker="A"),
        Model(ticker="B"),
        Color.RED, "red", Size.SMALL, 1, Flags.A, Flags.A | Flags.B, Keyed(1), Keyed(2), Keyed("1"), Query, Pair, len,
        test_huge_ints_have_a_text, Money(1), 1.0, dt.date(2025, 1, 1), dt.datetime(2025, 1, 1),
        dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 1, 1, tzinfo=ZoneInfo("UTC")),
    ]  # fmt: skip
    assert len({canonical(value) for value in different}) == len(different)
    assert canonical(Query("A")) == canonical(Query("A", 5))
    assert canonical(Model(ticker="A")) == canonical(Model(ticker="A"))


def test_private_attributes_of_a_model_count() -> None:
    one, other = Model(ticker="A"), Model(ticker="A")
    other._note = "x"
    assert canonical(one) != canonical(other)


def test_zones_with_one_offset_are_told_apart() -> None:
    winter = dt.datetime(2025, 1, 1, 12)
    zones = [ZoneInfo("Europe/Berlin"), ZoneInfo("Africa/Lagos"), dt.timezone(dt.timedelta(hours=1))]
    assert len({canonical(winter.replace(tzinfo=zone)) for zone in zones}) == 3


def test_local_classes_of_one_name_are_told_apart() -> None:
    def make() -> Any:
        @dataclass
        class Local:
            a: int

        return Local

    one, other = make(), make()
    assert canonical(one(1)) == canonical(one(1)) != canonical(other(1))


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 1, [].append, OrderedDict(a=1), PlainSubclass("A"), iter([]), [[object()]], Keyed(object())],
)
def test_what_has_no_text_is_refused_with_the_remedies(value: Any) -> None:
    with pytest.raises(CacheTypeError) as caught:
        canonical(value, "db")
    message = str(caught.value)
    assert message.startswith("db: ")
    assert all(remedy in message for remedy in ("key_func=", 'key="', 'exclude=("db",)', "__cache_key__"))
    assert " at 0x" not in message


def test_a_subclass_with_more_than_its_value_is_refused() -> None:
    price = Money(1)
    price.currency = "EUR"  # type: ignore[attr-defined]
    with pytest.raises(CacheTypeError, match="holds more than its float"):
        canonical(price)


def test_a_value_within_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CacheTypeError, match="nested deeper"):
        canonical(loop)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_escaped_bytes_are_injective(one: bytes, other: bytes) -> None:
    assert (escape_bytes(one) == escape_bytes(other)) is (one == other)


# -- tokens ------------------------------------------------------------------------------------------------------


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def test_tokens_go_by_identity_and_are_never_handed_out_twice() -> None:
    tokens = Tokens()
    seen = {tokens.of(Unhashable()) for _ in range(1000)}
    kept = Unhashable()
    assert len(seen) == 1000
    assert tokens.of(kept) == tokens.of(kept) not in seen
    assert Tokens().of(kept) != tokens.of(kept)


def test_a_forked_child_has_tokens_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, thing = Tokens(), Unhashable()
    before = tokens.of(thing)
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert tokens.of(thing) not in (before, before.replace("-1", "-2"))


def test_an_identity_map_forgets_the_dead() -> None:
    held: IdentityMap[int] = IdentityMap()
    thing = Unhashable()
    held.put(thing, 5)
    assert held.get(thing) == 5
    assert held.get(Unhashable()) is None
    del thing
    assert len(held) == 0


# -- names -------------------------------------------------------------------------------------------------------


def test_names() -> None:
    space = Keyspace()
    name = space.value_name(CacheNamespaces.OPTIONS_CHAINS, "AAPL_2025-03-21")
    assert name == b"magnus:options_chains:AAPL_2025-03-21"
    assert lease_name(name) == b"{magnus:options_chains:AAPL_2025-03-21}:lease"
    assert space.namespace_prefix("portfolio") == b"magnus:portfolio:"
    assert prefix_pattern(b"magnus:portfolio:") == b"magnus:portfolio:*"
    assert space.control_name("clock") == b"magnus!clock"
    assert space.control_name("tag", "a b") == b"magnus!tag:a%20b"


@given(KEYS)
def test_a_lease_has_one_hash_tag_which_is_the_name(key: Any) -> None:
    name = Keyspace().value_name("n", key)
    assert b"{" not in name
    assert b"}" not in name


@pytest.mark.parametrize("prefix", ["", "a:b", "a!b", "a*", "a[b", "a b", "a{b", "a\n", "a\\b"])
def test_a_bad_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(CacheArgumentError, match="^prefix: "):
        Keyspace(prefix)


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "a{", "a\x00", "a\u2028", "\ud800"])
def test_a_bad_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(CacheArgumentError, match="^namespace: "):
        Keyspace().value_name(namespace, "k")


@pytest.mark.parametrize("namespace", [None, 5, b"portfolio", ["a"]])
def test_a_namespace_of_another_type_is_refused(namespace: Any) -> None:
    with pytest.raises(CacheTypeError, match="^namespace: "):
        Keyspace().value_name(namespace, "k")


def test_checked_namespaces_are_remembered_within_bounds() -> None:
    space = Keyspace()
    for number in range(3000):
        space.namespace_prefix(f"n{number}")
    assert len(space._heads) <= 1024


# -- what a clear covers -------------------------------------------------------------------------------------------

NAMES = [
    b"magnus:stock:AAPL", b"magnus:stock_prices:AAPL", b"magnus:stock_prices:MSFT", b"magnus!epoch:stock",
    b"magnus2:stock:AAPL", b"other:stock:AAPL", b"{magnus:stock:AAPL}:lease", b"stock:AAPL",
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "covered"),
    [
        ("stock", [0]),
        (Namespace("stock"), [0]),
        ("stock_prices", [1, 2]),
        ("magnus:*", [0, 1, 2]),
        ("*", [0, 1, 2]),
        ("**", [0, 1, 2]),
        ("?*", [0, 1, 2]),
        ("magnus*", [0, 1, 2]),
        ("m?gnus:*", [0, 1, 2]),
        ("*:AAPL", [0, 1]),
        ("*:stock:*", [0]),
        ("magnus:stock*", [0, 1, 2]),
        ("magnus:stock:*", [0]),
        ("stock:*", [0]),
        ("stock*:A*", [0, 1]),
        ("magnus:stock[_]prices:[A-M]*", [1, 2]),
        ("magnus:stock:AAP\\L", [0]),
        ("other:*", []),
        ("magnus2:*", []),
        ("magnus!*", []),
        ("{*", []),
    ],
)
def test_what_a_clear_covers(target: str, covered: list[int]) -> None:
    scope = Keyspace().scope(target)
    assert [number for number, name in enumerate(NAMES) if scope.covers(name)] == covered
    if scope.glob is not None:
        # The near cache and the flights go by the glob alone.
        assert [number for number, name in enumerate(NAMES) if scope.glob.fullmatch(name)] == covered
    for name in (NAMES[number] for number in covered):
        assert name.startswith(scope.prefix)
        assert glob_regex(scope.pattern.decode()).match(name.decode())
    assert scope.pattern.startswith(b"magnus:")


def test_a_clear_of_what_is_no_name_is_refused() -> None:
    with pytest.raises(CacheArgumentError, match="^namespace_or_pattern: "):
        Keyspace().scope("magnus:portfolio")
    with pytest.raises(CacheTypeError, match="^namespace_or_pattern: "):
        Keyspace().scope(5)  # type: ignore[arg-type]
    assert not is_pattern("stock_prices")


def redis_match(p: bytes, s: bytes) -> bool:
    """`stringmatchlen` of Redis' util.c, line by line."""
    while p and s:
        if p[0] == ord("*"):
            while len(p) > 1 and p[1] == ord("*"):
                p = p[1:]
            return len(p) == 1 or any(redis_match(p[1:], s[start:]) for start in range(len(s) + 1))
        if p[0] == ord("["):
            p = p[1:]
            negated = p[:1] == b"^"
            p = p[negated:]
            found = False
            while True:
                if len(p) >= 2 and p[0] == ord("\\"):
                    p = p[1:]
                    found |= p[0] == s[0]
                elif p[:1] == b"]" or not p:
                    break
                elif len(p) >= 3 and p[1] == ord("-"):
                    found |= min(p[0], p[2]) <= s[0] <= max(p[0], p[2])
                    p = p[2:]
                else:
                    found |= p[0] == s[0]
                p = p[1:]
            if found is negated:
                return False
        elif p[0] != ord("?"):
            if p[0] == ord("\\") and len(p) >= 2:
                p = p[1:]
            if p[0] != s[0]:
                return False
        s, p = s[1:], p[1:]
        if not s:
            p = p.lstrip(b"*")
    return not p and not s


@settings(max_examples=examples(1500))
@given(st.text("ab-*?[]^\\c", max_size=9), st.text("abc-]^\\*", max_size=6))
def test_globs_match_as_in_redis(glob: str, name: str) -> None:
    # Redis' own loop does not let a trailing star match an empty name.
    if name:
        assert bool(glob_regex(glob).fullmatch(name)) is redis_match(glob.encode(), name.encode())


def test_a_hostile_glob_takes_no_exponential_time() -> None:
    assert not glob_regex("*a" * 40 + "b").match("a" * 5000)
