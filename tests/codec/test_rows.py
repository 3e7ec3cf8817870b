"""Rows and ranges of database libraries come back as what they were, also for the first caller."""

import sqlite3
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from types import ModuleType
from typing import Any, Self

import psycopg.rows
import psycopg.types.multirange
import psycopg.types.range
import psycopg2.extras
import pytest
import sqlalchemy
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheDecodeError,
    CacheEncodeError,
    CacheManager,
    register_type,
)
from magnus_cache._engine.codec import decode, encode
from tests.support.kinds import alike, forget_what_was_made
from tests.support.programs import output_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_what_was_made()


QUERY = 'SELECT 1 AS id, \'x\' AS "na""me", NULL AS "", 2.5 AS "sel ect; --", x\'00\' AS b'


def sqlite_rows(query: str = QUERY) -> list[sqlite3.Row]:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def sqlalchemy_rows(query: str = "SELECT 1 AS id, 'x' AS name") -> list[Any]:
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            return list(connection.execute(sqlalchemy.text(query)).fetchall())
    finally:
        engine.dispose()


def dict_row(**columns: Any) -> Any:
    row = psycopg2.extras.DictRow.__new__(psycopg2.extras.DictRow)
    row.__setstate__((list(columns.values()), OrderedDict((name, place) for place, name in enumerate(columns))))
    return row


def test_rows_of_sqlite3() -> None:
    (row,) = sqlite_rows()
    back = decode(encode([row]))[0]
    assert type(back) is sqlite3.Row
    assert back == row
    assert (back.keys(), tuple(back), back["ID"]) == (row.keys(), tuple(row), 1)
    assert back['na"me'] == "x"
    (twice,) = sqlite_rows("SELECT 1 AS a, 2 AS a")
    assert decode(encode(twice)) == twice


def test_a_column_that_cannot_be_stored_is_named() -> None:
    """Not the type of its row: psycopg2 returns BYTEA as a memoryview."""
    real = psycopg2.extras.RealDictRow(id=1, raw=memoryview(b"x"))
    for row, path in ((real, 'value["rows"][0]["raw"]'), (dict_row(id=1, raw=memoryview(b"x")), 'value["rows"][0][1]')):
        with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheEncodeError, match="bytes") as refused:
            cache.set("t", "k", {"rows": [row]})
        assert refused.value.path == path


def test_rows_of_sqlalchemy() -> None:
    (row,) = sqlalchemy_rows()
    back = decode(encode(row))
    assert type(back) is type(row)
    assert back == row
    assert (back.id, back._mapping["name"], back._asdict(), back._fields) == (
        1,
        "x",
        {"id": 1, "name": "x"},
        row._fields,
    )
    mapping = decode(encode(row._mapping))
    assert type(mapping) is type(row._mapping)
    assert dict(mapping) == {"id": 1, "name": "x"}
    assert mapping == row._mapping
    # Both know which columns they have, and that one name stands for two of them.
    (twice,) = sqlalchemy_rows("SELECT 1 AS a, 2 AS a")
    assert tuple(decode(encode(twice))) == (1, 2)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def test_rows_of_the_orm_and_not_its_objects() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    try:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(User(id=1, name="x"))
            session.commit()
            (row,) = session.execute(sqlalchemy.select(User.id, User.name)).all()
    finally:
        engine.dispose()
    back = decode(encode(row))
    assert (type(back), back.name, tuple(back)) == (type(row), "x", (1, "x"))


def test_a_class_that_sqlalchemy_maps_cannot_be_taken_apart() -> None:
    from sqlalchemy.orm import MappedAsDataclass

    class Mapping(MappedAsDataclass, DeclarativeBase):
        pass

    class Item(Mapping):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(CacheArgumentError, match="SQLAlchemy maps"):
        register_type(Item)
    register_type(Item, encode=lambda item: item.id, decode=lambda number: Item(id=number))
    assert decode(encode(Item(id=5))).id == 5


def test_rows_of_psycopg2() -> None:
    row = dict_row(id=1, price=Decimal("1.5"), raw=bytearray(b"x"))
    back = decode(encode(row))
    assert type(back) is type(row)
    assert (list(back), back["price"], back[0], dict(back.items())) == (list(row), Decimal("1.5"), 1, dict(row.items()))
    real = psycopg2.extras.RealDictRow([("b", 1), ("a", bytearray(b"x"))])
    again = decode(encode({"rows": [real]}))["rows"][0]
    assert type(again) is type(real)
    assert list(again.items()) == [("b", 1), ("a", bytearray(b"x"))]
    again["c"] = 1


def test_rows_of_psycopg_are_plain_but_for_named_tuples() -> None:
    make = psycopg.rows._make_nt("utf-8", b"id", b"2nd col", b"n\xc3\xa4me")  # as namedtuple_row does
    row = make(1, 2, 3)
    assert alike(row, decode(encode(row)))


RANGES = [
    psycopg2.extras.NumericRange(1, 2, "[]"), psycopg2.extras.DateRange(None, None), psycopg2.extras.Range(empty=True),
    psycopg2.extras.DateTimeTZRange(1, None, "()"),
    psycopg.types.range.Range(1, Decimal(5)), psycopg.types.range.Int4Range(empty=True),
    psycopg.types.range.Range(None, 5, "(]"),
    psycopg.types.multirange.Multirange([psycopg.types.range.Range(1, 2)]), psycopg.types.multirange.Int8Multirange(),
    Range(1, 2, bounds="[]"), Range(empty=True), MultiRange([Range(1, 2)]),
]  # fmt: skip


@pytest.mark.parametrize("value", RANGES, ids=repr)
def test_ranges(value: Any) -> None:
    back = decode(encode([value]))[0]
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


ROWS = {
    "sqlite3": lambda: sqlite_rows()[0],
    "sqlalchemy": lambda: sqlalchemy_rows()[0],
    "mapping": lambda: sqlalchemy_rows()[0]._mapping,
    "dict": lambda: dict_row(a=1),
    "real dict": lambda: psycopg2.extras.RealDictRow(a=1),
}


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
async def test_the_first_caller_gets_what_the_later_ones_get(url: str, make: Any) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
        made = make()

        @cache.cached("rows")
        async def rows() -> Any:
            return [made]

        first, second = await rows(), await rows()
        far = await other.get("rows", rows.cache_key())
        assert type(first[0]) is type(second[0]) is type(far[0]) is type(made)
        assert first == second == far == [made]
        # What a library can do only with its own, such as finding a column by its object, none of them can.
        assert first[0] is not made


def test_rows_by_blocking_calls(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        row = sqlite_rows()[0]
        first = cache.get_or_set("rows", "k", lambda: row)
        assert first is not row
        assert first == cache.get("rows", "k") == row


def test_a_row_of_a_library_that_is_not_imported_is_a_miss() -> None:
    payloads = [encode(make()) for make in ROWS.values()]
    script = (
        "import sys\nfrom magnus_cache._engine.codec import decode\nfrom magnus_cache import CacheDecodeError\n"
        f"for payload in {payloads!r}:\n"
        "    try: decode(payload)\n"
        "    except CacheDecodeError as error: print(error.reason)\n"
        "print(sorted({'sqlite3', 'sqlalchemy', 'psycopg2', 'psycopg'} & set(sys.modules)))\n"
    )
    assert output_of("-c", script).split("\n") == ["unknown_type"] * len(ROWS) + ["[]", ""]


# -- asyncpg ----------------------------------------------------------------------------------------------------


class Record:
    """As asyncpg's: it cannot be made by calling its class."""

    def __new__(cls) -> Self:
        raise TypeError("cannot create instances")

    def keys(self) -> Iterator[str]:
        return iter(self.names)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    names: tuple[str, ...]
    values: tuple[Any, ...]


class AsyncpgUUID(uuid.UUID):
    def __init__(self, raw: bytes) -> None:
        super().__init__(bytes=raw)


class AsyncpgRange:
    def __init__(
        self, lower: Any = None, upper: Any = None, *, lower_inc: bool = True, upper_inc: bool = False,
        empty: bool = False,
    ) -> None:  # fmt: skip
        self.lower, self.upper, self.lower_inc, self.upper_inc, self.isempty = lower, upper, lower_inc, upper_inc, empty

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncpgRange) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def record(*columns: tuple[str, Any]) -> Any:
    row = object.__new__(Record)
    row.names, row.values = tuple(name for name, _ in columns), tuple(value for _, value in columns)
    return row


def made(places: dict[str, int], values: tuple[Any, ...]) -> Any:
    return record(*zip(places, values, strict=True))


@pytest.fixture
def asyncpg(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand-ins for what asyncpg returns, under its names."""
    parts = {
        "record": ("asyncpg.protocol.record", {"Record": Record}),
        "protocol": ("asyncpg.protocol.protocol", {"_create_record": made}),
        "types": ("asyncpg.types", {"Range": AsyncpgRange}),
        "pgproto": ("asyncpg.pgproto.pgproto", {"UUID": AsyncpgUUID}),
    }
    for name, attributes in parts.values():
        module = ModuleType(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
            if isinstance(value, type):
                value.__module__, value.__name__ = name, attribute
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["asyncpg.protocol.protocol"]


def test_records_of_asyncpg(asyncpg: ModuleType) -> None:
    number = AsyncpgUUID(bytes(range(16)))
    row = record(("id", number), ("raw", bytearray(b"x")), ("span", AsyncpgRange(1, None, upper_inc=True)))
    (back,) = decode(encode([row]))
    assert type(back) is Record
    assert (list(back.keys()), list(back)) == (list(row.keys()), list(row))
    assert [type(value) for value in back] == [AsyncpgUUID, bytearray, AsyncpgRange]
    assert decode(encode(AsyncpgRange(empty=True))) == AsyncpgRange(empty=True)


async def test_records_are_cached_for_first_and_later_callers(asyncpg: ModuleType, url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, AsyncCacheManager(redis_url=url) as other:
        rows = [record(("id", 1), ("name", "x"))]
        for manager in (cache, cache, other):
            got = await manager.get_or_set("records", "k", lambda: rows)
            assert [(type(row), list(row.keys()), list(row)) for row in got] == [(Record, ["id", "name"], [1, "x"])]
            assert got is not rows


@pytest.mark.parametrize("why", ["columns of one name", "another version"])
def test_a_record_that_cannot_be_made_again_is_refused(
    asyncpg: ModuleType, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    row, payload = record(("id", 1), ("name", 2)), encode(record(("id", 1)))
    if why == "another version":
        monkeypatch.delattr(asyncpg, "_create_record")
        with pytest.raises(CacheDecodeError) as caught:
            decode(payload)
        assert caught.value.reason == "unknown_type"
    else:
        row = record(("id", 1), ("id", 2))
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheEncodeError, match=r"dict\(row\)"):
        cache.set("t", "k", [row])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("asyncpg.protocol.record.Record", (["a", "a"], [1, 2])),
        ("asyncpg.protocol.record.Record", (["a"], [1, 2])),
        ("asyncpg.protocol.record.Record", ([1], [1])),
        ("asyncpg.types.Range", (1, 2, True, False, 0)),
        ("asyncpg.types.Range", (1, 2, True)),
        ("asyncpg.pgproto.pgproto.UUID", (b"x",)),
        ("asyncpg.pgproto.pgproto.UUID", ("x" * 16,)),
    ],
)
def test_records_that_cannot_be_are_misses(asyncpg: ModuleType, name: str, parts: tuple[Any, ...]) -> None:
    with pytest.raises(CacheDecodeError):
        decode(row_of(name, *parts))


# -- hostile ----------------------------------------------------------------------------------------------------


def row_of(name: str, *parts: Any) -> bytes:
    return bytes([0x90 + len(parts) + 2]) + b"".join(map(encode, (name, *parts))) + b"\xd4\xb3w"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sqlite3.Row", (["a"], [1, 2])),
        ("sqlite3.Row", ([], [])),
        ("sqlite3.Row", (["a\0b"], [1])),
        ("sqlite3.Row", (["a"] * 2_001, [1] * 2_001)),
        ("sqlite3.Row", (["a" * 70_000], [1])),
        ("sqlite3.Row", ([b"a"], [1])),
        ("sqlite3.Row", ("a", [1])),
        ("sqlite3.Connection", (":memory:",)),
        ("sqlalchemy.engine.Row", (["a"], [])),
        ("sqlalchemy.engine.Row", ([1], [1])),
        ("sqlalchemy.engine.create_engine", ("sqlite://",)),
        ("psycopg2.extras.DictRow", ({"a": 1}, [1])),
        ("psycopg2.extras.DictRow", ({"a": -1}, [1])),
        ("psycopg2.extras.DictRow", ({1: 0}, [1])),
        ("psycopg2.extras.RealDictRow", ({1: 0},)),
        ("psycopg2.extras.RealDictRow", ([],)),
        ("psycopg2.extras.NumericRange", (1, 2, "[[")),
        ("psycopg.types.range.Range", (1, 2, ["[)"])),
        ("psycopg.types.multirange.Multirange", ([1],)),
        ("os.system", ("true",)),
        ("", ()),
    ],
)
def test_rows_that_cannot_be_are_misses(name: str, parts: tuple[Any, ...]) -> None:
    with pytest.raises(CacheDecodeError):
        decode(row_of(name, *parts))


@pytest.mark.parametrize("column", ['"', '""', 'a" FROM x; --', "'", "[a]", "a,b", "?", ":a", "名", "a\nb", "\\"])
def test_column_names_are_names_whatever_they_are(column: str) -> None:
    row = decode(row_of("sqlite3.Row", [column], [5]))
    assert (row.keys(), tuple(row)) == ([column], (5,))


@pytest.mark.parametrize("name", ["sqlite3.Row", "sqlalchemy.engine.Row"])
def test_rows_of_ever_new_columns_are_given_up(name: str) -> None:
    many = b"\xdd" + (20_000).to_bytes(4, "big")
    payload = many + b"".join(row_of(name, [f"c{number}"], [1]) for number in range(20_000))
    with pytest.raises(CacheDecodeError) as caught:
        decode(payload)
    assert caught.value.reason == "too_costly"
