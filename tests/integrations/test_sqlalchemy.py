"""Cached queries on SQLite: each commit is seen, nothing uncommitted is, and no two statements share a result."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    Bundle,
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
    with_loader_criteria,
)

from magnus_cache import CacheArgumentError, CacheManager, CacheTypeError, Namespace, register_namespace
from magnus_cache.integrations.sqlalchemy import QueryCache
from magnus_cache.integrations.sqlalchemy.statements import Database, planned
from magnus_cache.testing import Proxy
from tests.support.programs import output_of
from tests.support.wait import wait_until


class Base(DeclarativeBase):
    pass


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list["Order"]] = relationship(back_populates="user", passive_deletes=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    total: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2))
    user: Mapped[User] = relationship(back_populates="orders")


class Item(Base):
    """Of every type."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date | None]
    moment: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    code: Mapped[UUID | None]
    content: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    blob: Mapped[bytes | None]
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 4))
    size: Mapped[Size | None]
    flag: Mapped[bool | None]
    rate: Mapped[float | None]


NAMES: Final = select(User.id, User.name).order_by(User.id)
TOTALS: Final = (
    select(User.name, sa.func.count(Order.id)).join(User.orders, isouter=True).group_by(User.name).order_by(User.name)
)


class Counting:
    """An engine, and what it has executed."""

    def __init__(self, url: str, **options: Any) -> None:
        self.engine = sa.create_engine(url, **options)
        self.executed: list[str] = []
        event.listen(self.engine, "before_cursor_execute", lambda *call: self.executed.append(call[2]))
        event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))

    @property
    def selects(self) -> int:
        return sum(sql.lstrip().startswith("SELECT") for sql in self.executed)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


@pytest.fixture
def shop(place: str) -> Iterator[Counting]:
    shop = Counting(place)
    Base.metadata.create_all(shop.engine)
    with Session(shop.engine) as session:
        session.add_all([User(id=1, name="Ada"), User(id=2, name="Bob"), Order(id=1, user_id=1, total=Decimal("9.50"))])
        session.commit()
    shop.executed.clear()
    yield shop
    shop.engine.dispose()


@pytest.fixture
def cache(manager: CacheManager) -> CacheManager:
    return manager


@pytest.fixture
def queries(cache: CacheManager, shop: Counting) -> Iterator[QueryCache]:
    queries = QueryCache(shop.engine, cache=cache)
    yield queries
    queries.close()


def rows(queries: QueryCache, shop: Counting, statement: Any = NAMES, **options: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a statement, in a session of its own."""
    with Session(shop.engine) as session:
        return [tuple(row) for row in queries.execute(session, statement, **options)]


ADA_AND_BOB: Final = [(1, "Ada"), (2, "Bob")]


# -- results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["connection", "session", "scoped"])
def test_a_result_is_read_once_and_is_the_same_each_time(queries: QueryCache, shop: Counting, target: str) -> None:
    for _ in range(3):
        opened: Any = shop.engine.connect() if target == "connection" else Session(shop.engine)
        with opened:
            given: Any = scoped_session(lambda opened=opened: opened) if target == "scoped" else opened
            result = queries.execute(given, NAMES)
            assert list(result.keys()) == ["id", "name"]
            first, second = result.all()
            assert isinstance(first, sa.Row)
            assert (first, first.name, first[0], second._mapping["name"]) == ((1, "Ada"), "Ada", 1, "Bob")
            assert first._mapping[User.id if target != "connection" else User.__table__.c.id] == 1
            assert queries.execute(given, NAMES).scalars().all() == [1, 2]
            assert queries.execute(given, NAMES).mappings().first() == {"id": 1, "name": "Ada"}
            assert queries.execute(given, NAMES.where(User.id == 2)).one().name == "Bob"
    assert shop.selects == 2


def test_a_hit_takes_no_connection(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    taken: list[Any] = []
    event.listen(shop.engine, "checkout", lambda *_: taken.append(1))
    assert rows(queries, shop) == ADA_AND_BOB
    assert taken == []


def test_another_process_finds_it(queries: QueryCache, shop: Counting, place: str, url: str) -> None:
    rows(queries, shop)
    other = Counting(place)
    with CacheManager(redis_url=url) as manager:
        theirs = QueryCache(other.engine, cache=manager)
        assert rows(theirs, other) == ADA_AND_BOB
        assert other.executed == []
        theirs.close()
    other.engine.dispose()


def test_values_of_every_type_come_back_the_same(queries: QueryCache, shop: Counting) -> None:
    full = Item(
        id=1, day=date(2025, 1, 2), moment=datetime(2025, 1, 2, 3, tzinfo=UTC), code=UUID(int=5), size=Size.LARGE,
        content={"a": [1, None, {"b": 1.5}]}, blob=b"\0\xff", price=Decimal("1.5000"), flag=True, rate=0.1,
    )  # fmt: skip
    with Session(shop.engine) as session:
        session.add_all([full, Item(id=2)])
        session.commit()
    everything = select(*Item.__table__.columns).order_by(Item.id)
    with Session(shop.engine) as session:
        direct = session.execute(everything).all()
        first = queries.execute(session, everything).all()
    with Session(shop.engine) as session:
        second = queries.execute(session, everything).all()
    assert shop.selects == 2
    for result in (first, second):
        assert result == direct
        assert [[type(value) for value in row] for row in result] == [[type(value) for value in row] for row in direct]
    second[0].content["a"].append("changed")
    with Session(shop.engine) as session:
        assert queries.execute(session, everything).all() == direct


def test_columns_of_one_name_stay_apart(queries: QueryCache, shop: Counting) -> None:
    both = select(User.id, Order.id).join(Order).order_by(Order.id)
    text = sa.text("SELECT u.id, o.id FROM users u JOIN orders o ON o.user_id = u.id")
    for _ in range(2):
        with Session(shop.engine) as session:
            result = queries.execute(session, both)
            assert list(result.keys()) == ["id", "id_1"]
            assert result.all() == [(1, 1)]
            row = queries.execute(session, text, tables=[User, "orders"]).one()
            assert tuple(row) == (1, 1)
            with pytest.raises(sa.exc.InvalidRequestError):
                _ = row.id


# -- writes -----------------------------------------------------------------------------------------------------


ALIAS: Final = aliased(User)


def _by_flush(session: Session) -> None:
    session.get_one(User, 1).name = "Eve"


WRITES: Final[dict[str, Callable[[Session], Any]]] = {
    "flush": _by_flush,
    "add": lambda session: session.add(User(id=3, name="Eve")),
    "delete": lambda session: session.delete(session.get_one(User, 2)),
    "update": lambda session: session.execute(sa.update(User).where(User.id == 1).values(name="Eve")),
    "bulk insert": lambda session: session.execute(sa.insert(User), [{"id": 8, "name": "x"}, {"id": 9, "name": "y"}]),
    "core": lambda session: session.connection().execute(User.__table__.delete()),
    "text": lambda session: session.execute(sa.text("UPDATE users SET name = 'Eve' WHERE id = 1")),
    "with": lambda session: session.execute(sa.text("WITH a AS (SELECT 1) UPDATE users SET name = 'Eve'")),
    "driver": lambda session: session.connection().exec_driver_sql("DELETE FROM users WHERE id = 2"),
    "ddl": lambda session: session.connection().execute(sa.DDL("DROP TABLE IF EXISTS orders")),
    "alias": lambda session: session.execute(
        sa.delete(User.__table__).where(User.__table__.c.id.in_(select(ALIAS.id).where(ALIAS.id == 2)))
    ),
    "insert from": lambda session: session.execute(
        sa.insert(User.__table__).from_select(["id", "name"], select(Order.id + 10, sa.literal("x")))
    ),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_commit_is_seen_and_a_rollback_is_not(
    queries: QueryCache, shop: Counting, write: Callable[[Session], Any]
) -> None:
    assert rows(queries, shop) == ADA_AND_BOB
    with Session(shop.engine) as session:
        write(session)
        session.rollback()
    executed = shop.selects
    assert rows(queries, shop) == ADA_AND_BOB
    # What is defined stays defined, here.
    assert shop.selects == executed or write is WRITES["ddl"]
    with Session(shop.engine) as session:
        write(session)
        session.commit()
    with shop.engine.connect() as connection:
        direct = [tuple(row) for row in connection.execute(NAMES)]
    assert direct != ADA_AND_BOB or write is WRITES["ddl"]
    executed = shop.selects
    assert rows(queries, shop) == direct
    assert shop.selects == executed + 1


def test_a_commit_of_another_process_is_seen(queries: QueryCache, shop: Counting, place: str, url: str) -> None:
    rows(queries, shop)
    other = sa.create_engine(place)
    with CacheManager(redis_url=url) as manager:
        theirs = QueryCache(other, cache=manager)
        with other.begin() as connection:
            connection.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        deadline = time.monotonic() + 5
        while rows(queries, shop)[0] != (1, "Eve"):
            assert time.monotonic() < deadline
        theirs.close()
    other.dispose()


def test_other_tables_are_left_alone(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    rows(queries, shop, TOTALS)
    with shop.engine.begin() as connection:
        connection.execute(sa.insert(Order).values(id=5, user_id=2, total=1))
    executed = shop.selects
    assert rows(queries, shop) == ADA_AND_BOB
    assert shop.selects == executed
    assert rows(queries, shop, TOTALS) == [("Ada", 1), ("Bob", 1)]


def test_what_a_foreign_key_deletes_is_invalidated(queries: QueryCache, shop: Counting) -> None:
    count = select(sa.func.count()).select_from(Order)
    assert rows(queries, shop, count) == [(1,)]
    with shop.engine.begin() as connection:
        connection.execute(sa.delete(User).where(User.id == 1))
    assert rows(queries, shop, count) == [(0,)]


def test_a_savepoint_that_is_rolled_back_hides_no_write(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    with Session(shop.engine) as session:
        session.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        with session.begin_nested() as savepoint:
            session.execute(sa.delete(User))
            savepoint.rollback()
        session.commit()
    assert rows(queries, shop) == [(1, "Eve"), (2, "Bob")]


def test_statements_that_commit_themselves_are_seen_at_once(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    with shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        assert rows(queries, shop)[0] == (1, "Eve")


def test_a_commit_whose_outcome_is_unknown_invalidates(
    queries: QueryCache, shop: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(queries, shop)
    queries.close()

    def lost(connection: Any) -> None:
        connection.commit()
        raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(shop.engine.dialect, "do_commit", lost)
    watched = QueryCache(shop.engine, cache=queries._manager)
    with Session(shop.engine) as session:
        session.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        with pytest.raises(sa.exc.OperationalError):
            session.commit()
    assert rows(watched, shop)[0] == (1, "Eve")
    watched.close()


def test_text_can_say_what_it_writes(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    for written, seen in ((["orders"], "Ada"), ([], "Ada"), ("users", "Eve"), ([User], "Eve")):
        text = sa.text("UPDATE users SET name = 'Eve' WHERE id = 1").execution_options(magnus_cache_writes=written)
        with shop.engine.begin() as connection:
            connection.execute(text)
        assert rows(queries, shop)[0] == (1, seen)


def test_tables_can_be_invalidated_by_name(queries: QueryCache, shop: Counting, place: str) -> None:
    async def awaited() -> None:
        await queries.ainvalidate("users")

    past = sa.create_engine(place)
    for number, invalidate in enumerate((
        lambda: queries.invalidate("USERS"), lambda: queries.invalidate(User), lambda: asyncio.run(awaited()),
        lambda: queries.invalidate("main.users"), lambda: queries.invalidate(Order.__table__, User.__table__),
    )):  # fmt: skip
        rows(queries, shop)
        with past.begin() as connection:
            connection.execute(sa.update(User).where(User.id == 1).values(name=f"{number}"))
        invalidate()
        assert rows(queries, shop)[0] == (1, f"{number}")
    past.dispose()


def test_a_view_depends_on_its_tables(cache: CacheManager, shop: Counting) -> None:
    with shop.engine.begin() as connection:
        connection.execute(sa.text("CREATE VIEW names AS SELECT name FROM users"))
    queries = QueryCache(shop.engine, cache=cache, depends={"names": ["all_users"], "all_users": [User]})
    view = select(sa.table("names", sa.column("name")))
    assert rows(queries, shop, view) == [("Ada",), ("Bob",)]
    with shop.engine.begin() as connection:
        connection.execute(sa.delete(User).where(User.id == 2))
    assert rows(queries, shop, view) == [("Ada",)]
    queries.close()


def test_after_close_nothing_is_listened_to(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    plain = type(shop.engine.dialect).do_commit
    assert (
        shop.engine.dialect.do_commit.__func__ is not plain
        if hasattr(shop.engine.dialect.do_commit, "__func__")
        else True
    )
    queries.close()
    assert shop.engine.dialect.do_commit.__func__ is plain
    with pytest.raises(CacheArgumentError, match="^connection: .*QueryCache"):
        rows(queries, shop)


def test_a_closed_cache_does_not_fail_a_commit(
    queries: QueryCache, cache: CacheManager, shop: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    cache.close()
    with shop.engine.begin() as connection:
        connection.execute(sa.delete(User))
    assert "the cache was closed" in caplog.text


def test_a_refusal_of_redis_does_not_fail_a_commit(
    url: str, raw: redis.Redis, shop: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    raw.acl_setuser(
        "reader", enabled=True, passwords=["+p"], keys=["*"], channels=["*"], commands=["+@all", "-evalsha"]
    )
    try:
        with CacheManager(redis_url=url, redis_username="reader", redis_password="p") as cache:
            queries = QueryCache(shop.engine, cache=cache)
            with shop.engine.begin() as connection:
                connection.execute(sa.delete(User).where(User.id == 2))
            assert "may not be invalidated" in caplog.text
            assert rows(queries, shop) == [(1, "Ada")]
            queries.close()
    finally:
        raw.acl_deluser("reader")


# -- transactions -----------------------------------------------------------------------------------------------


def test_a_transaction_reads_its_own_writes_and_no_one_else_does(queries: QueryCache, shop: Counting) -> None:
    for warm in (False, True):
        with Session(shop.engine) as session:
            session.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
            assert queries.execute(session, NAMES).all()[0] == (1, "Eve")
            assert rows(queries, shop) == ADA_AND_BOB
            session.rollback()
            if warm:
                assert queries.execute(session, NAMES).all() == ADA_AND_BOB
        assert rows(queries, shop) == ADA_AND_BOB


def test_what_a_session_has_not_flushed_counts(queries: QueryCache, shop: Counting) -> None:
    rows(queries, shop)
    with Session(shop.engine) as session:
        session.get_one(User, 1).name = "Eve"
        assert queries.execute(session, NAMES).all()[0] == (1, "Eve")
        session.rollback()
        session.add(User(id=7, name="Eve"))
        assert queries.execute(session, NAMES).all()[-1] == (7, "Eve")
    assert rows(queries, shop) == ADA_AND_BOB


def test_a_connection_that_was_left_without_commit_is_clean(queries: QueryCache, shop: Counting) -> None:
    connection = shop.engine.connect()
    connection.execute(sa.update(User).values(name="Eve"))
    connection.close()
    executed = shop.selects
    assert rows(queries, shop) == rows(queries, shop) == ADA_AND_BOB
    assert shop.selects == executed + 1


def test_an_older_snapshot_is_not_stored(queries: QueryCache, shop: Counting, place: str) -> None:
    with shop.engine.connect() as wal:
        wal.exec_driver_sql("PRAGMA journal_mode=WAL")
    with shop.engine.connect() as old:
        old.exec_driver_sql("BEGIN")
        assert old.execute(sa.text("SELECT count(*) FROM users")).scalar() == 2
        with shop.engine.begin() as connection:
            connection.execute(sa.delete(User).where(User.id == 2))
        assert queries.execute(old, NAMES).all() == ADA_AND_BOB
        assert rows(queries, shop) == [(1, "Ada")]


class Held:
    """Holds each query back, after it was executed, until it is released."""

    def __init__(self, engine: sa.Engine) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self._engine = engine
        event.listen(engine, "after_cursor_execute", self._hold)

    def _hold(self, conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("SELECT") and not self.release.is_set():
            self.reached.set()
            assert self.release.wait(30)


def test_a_load_that_began_before_a_commit_is_not_stored(queries: QueryCache, shop: Counting) -> None:
    with shop.engine.connect() as wal:
        wal.exec_driver_sql("PRAGMA journal_mode=WAL")
    held = Held(shop.engine)
    with ThreadPoolExecutor(1) as threads:
        # SQLite steps through rows as they are fetched, so what it reads is settled by the first.
        early = threads.submit(rows, queries, shop, NAMES)
        assert held.reached.wait(30)
        with shop.engine.begin() as connection:
            connection.execute(sa.update(User).where(User.id == 2).values(name="Eve"))
        held.release.set()
        assert early.result() in (ADA_AND_BOB, [(1, "Ada"), (2, "Eve")])
    executed = shop.selects
    assert rows(queries, shop) == [(1, "Ada"), (2, "Eve")]
    assert shop.selects == executed + 1


def test_many_callers_of_one_query_make_one_load(queries: QueryCache, shop: Counting) -> None:
    held = Held(shop.engine)
    with ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(rows, queries, shop) for _ in range(6)]
        assert held.reached.wait(30)
        held.release.set()
        assert [each.result() for each in waiting] == [ADA_AND_BOB] * 6
    assert shop.selects == 1


def test_an_error_of_one_connection_is_not_that_of_another(
    queries: QueryCache, cache: CacheManager, shop: Counting
) -> None:
    reached, release = threading.Event(), threading.Event()

    def fail(conn: Any, *_: Any) -> None:
        if conn.get_execution_options().get("broken"):
            reached.set()
            assert release.wait(30)
            raise ConnectionError("of this connection")

    event.listen(shop.engine, "before_cursor_execute", fail)

    def on_broken() -> None:
        with shop.engine.connect().execution_options(broken=True) as connection:
            queries.execute(connection, NAMES, execution_options={"broken": True})

    def on_sound() -> list[Any]:
        with shop.engine.connect() as connection:
            return list(queries.execute(connection, NAMES.execution_options(broken=True)))

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(on_broken)
        assert reached.wait(30)
        sound = threads.submit(on_sound)
        wait_until(lambda: cache.get_stats()["flights_joined"] == 1)
        release.set()
        with pytest.raises(ConnectionError, match="of this connection"):
            failing.result()
        assert sound.result() == ADA_AND_BOB


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "update", "delete", "flush", "text"]), st.integers(1, 4), st.booleans(),
            st.sampled_from([NAMES, TOTALS, select(sa.func.count()).select_from(User)]),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_a_commit_is_always_seen(steps: list[tuple[str, int, bool, Any]]) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    with CacheManager(redis_enabled=False) as manager:
        queries = QueryCache(engine, cache=manager)
        for what, number, commit, statement in steps:
            with Session(engine) as session:
                queries.execute(session, statement)
                match what:
                    case "insert":
                        session.execute(sa.insert(User).prefix_with("OR IGNORE").values(id=number, name=what))
                    case "update":
                        session.execute(sa.update(User).values(name=f"{what}{number}"))
                    case "delete":
                        session.execute(sa.delete(User).where(User.id == number))
                    case "text":
                        session.execute(sa.text("UPDATE users SET name = 'text' WHERE id = :id"), {"id": number})
                    case _:
                        session.add(Order(user_id=number, total=Decimal(1)))
                for each in (NAMES, TOTALS):
                    assert queries.execute(session, each).all() == session.execute(each).all()
                if commit:
                    session.commit()
            with Session(engine) as session:
                for each in (NAMES, TOTALS, statement):
                    assert queries.execute(session, each).all() == session.execute(each).all()
        queries.close()
    engine.dispose()


# -- keys -------------------------------------------------------------------------------------------------------

_COLUMNS: Final = [
    User.id,
    User.name,
    Order.id,
    Order.total,
    sa.literal(1),
    sa.literal("1"),
    sa.type_coerce(User.id, sa.String),
]
_VALUES: Final = st.one_of(
    st.integers(-3, 3), st.booleans(), st.none(), st.text("ab'1,", max_size=3), st.decimals(-3, 3, places=1),
    st.dates(date(2025, 1, 1), date(2025, 1, 3)), st.lists(st.integers(0, 3), max_size=3), st.binary(max_size=2),
)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn) -> Any:
    statement = select(*draw(st.lists(st.sampled_from(_COLUMNS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        column, value = draw(st.sampled_from([User.id, User.name, Order.total])), draw(_VALUES)
        statement = statement.where(column.in_(value) if isinstance(value, list) else column == value)
    if draw(st.booleans()):
        statement = statement.limit(draw(st.integers(1, 2)))
    if draw(st.booleans()):
        statement = statement.distinct()
    return statement


def meaning(statement: Any, dialect: Any) -> Any:
    """Return all that SQLAlchemy sends for a statement, with the types of values, and what it makes of the result."""
    compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    values = [(name, type(value).__name__, repr(value)) for name, value in sorted(compiled.params.items())]
    return str(compiled), values, [repr(column.type) for column in statement.selected_columns]


DATABASE: Final = Database(sa.make_url("sqlite:///shop.db"))


def key_of(
    statement: Any, parameters: Any = None, vary: Any = None, database: Database = DATABASE, **options: Any
) -> str:
    dialect = sa.create_engine("sqlite://").dialect
    return planned(statement, dialect, parameters, options).key(database, vary)


@settings(max_examples=100)
@given(statements(), statements())
def test_statements_share_a_key_if_and_only_if_they_mean_the_same(one: Any, two: Any) -> None:
    dialect = sa.create_engine("sqlite://").dialect
    same = meaning(one, dialect) == meaning(two, dialect)
    assert (key_of(one) == key_of(two)) == same


_ID: Final = User.__table__.c.id


class Celsius(sa.TypeDecorator[int]):
    impl = sa.Integer
    cache_ok = True


class Money(sa.TypeDecorator[str]):
    """Of a currency, of which its `repr` tells nothing."""

    impl = sa.Integer
    cache_ok = True

    def __init__(self, currency: str) -> None:
        super().__init__()
        self.currency = currency

    def process_result_value(self, value: Any, _: Any) -> str:
        return f"{value} {self.currency}"


@pytest.mark.parametrize(
    "pair",
    [
        (select(User.id).where(User.id == 1), select(User.id).where(User.id == 2)),
        (select(_ID).where(_ID.in_([1, 2])), select(_ID).where(_ID.in_([1, 2, 3]))),
        (select(_ID).where(_ID.in_([12])), select(_ID).where(_ID.in_([1, 2]))),
        (select(_ID), select(sa.type_coerce(_ID, sa.String).label("id"))),
        (select(_ID), select(sa.type_coerce(_ID, Celsius).label("id"))),
        (select(sa.type_coerce(_ID, Money("EUR"))), select(sa.type_coerce(_ID, Money("USD")))),
        (select(sa.type_coerce(_ID, sa.ARRAY(Money("EUR")))), select(sa.type_coerce(_ID, sa.ARRAY(Money("USD"))))),
        (sa.text("SELECT a, b").columns(a=Celsius), sa.text("SELECT a, b").columns(b=Celsius)),
        (select(sa.bindparam("x", 1)), select(sa.bindparam("x", True))),
        (select(sa.bindparam("x", 1)), select(sa.bindparam("x", "1"))),
        (select(sa.bindparam("x", 1, sa.Integer)), select(sa.bindparam("x", 1, Celsius))),
        (select(sa.bindparam("x", None, sa.Integer)), select(sa.bindparam("x", None, sa.String))),
        (select(sa.bindparam("x", Decimal(1))), select(sa.bindparam("x", Decimal("1.0")))),
        (select(_ID).limit(1), select(_ID).limit(2)),
        (select(_ID).limit(1), select(_ID).offset(1)),
        (select(_ID), select(aliased(User).id)),
        (select(_ID).union(select(_ID)), select(_ID).union_all(select(_ID))),
        (select(_ID).order_by(_ID), select(_ID).order_by(_ID.desc())),
    ],
)  # fmt: skip
def test_what_differs_has_another_key(pair: tuple[Any, Any]) -> None:
    assert key_of(pair[0]) != key_of(pair[1])
    assert key_of(pair[0]) == key_of(pair[0])


def test_all_that_a_result_depends_on_is_in_the_key() -> None:
    statement, text = select(_ID).where(sa.bindparam("x") == _ID), sa.text("SELECT 1 WHERE 1 = :x")
    keys = [
        key_of(statement, {"x": 1}), key_of(statement, {"x": 2}), key_of(statement, {"x": "1"}), key_of(text, {"x": 1}),
        key_of(statement, {"x": 1}, vary="a"), key_of(statement, {"x": 1}, vary=("a",)),
        key_of(statement, {"x": 1}, schema_translate_map={None: "a"}),
        key_of(statement, {"x": 1}, schema_translate_map={None: "b"}),
        key_of(statement, {"x": 1}, include_deleted=True),
        *(
            key_of(statement, {"x": 1}, database=Database(sa.make_url(url)))
            for url in (
                "sqlite:///other.db", "sqlite://", "sqlite://", "sqlite:///:memory:", "sqlite:///file:a?mode=memory&uri=true",
                "mysql+pymysql://u@h/d", "mysql+pymysql://v@h/d", "mysql+pymysql://u@i/d", "mysql+pymysql://u@h:1/d",
                "mysql+mysqldb://u@h/d", "mysql+pymysql://u@h/e", "mysql+pymysql://u@h/d?charset=x",
            )
        ),
    ]  # fmt: skip
    assert len({*keys}) == len(keys)
    # How rows are fetched is not what they are.
    assert key_of(statement, {"x": 1}, stream_results=True, logging_token="t") == keys[0]


def test_no_secret_is_in_a_key_or_changes_it() -> None:
    urls = [
        f"postgresql+psycopg://u:{secret}@h/d?sslmode=require&sslpassword={secret}" for secret in ("s3cret", "other")
    ]
    identities = {Database(sa.make_url(url)).identity for url in urls}
    assert len(identities) == 1
    assert "s3cret" not in repr(identities)
    parameter = select(User.id).where(User.name == "s3cret")
    assert "s3cret" not in key_of(parameter)
    assert key_of(parameter).startswith("users:")


def test_a_named_database_is_named_so_everywhere() -> None:
    one, two = (Database(sa.make_url(url), "shop") for url in ("mysql://a/d", "mysql://b/d"))
    assert key_of(NAMES, database=one) == key_of(NAMES, database=two)


# -- what other listeners and settings do -----------------------------------------------------------------------


def test_a_filter_that_a_listener_adds_never_crosses_over(
    queries: QueryCache, shop: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    makers = sessionmaker(shop.engine)

    def only_own(state: Any) -> None:
        own = state.session.info["user"]
        state.statement = state.statement.options(with_loader_criteria(User, lambda cls: cls.id == own))

    event.listen(makers, "do_orm_execute", only_own)

    def seen(user: int, **options: Any) -> list[Any]:
        with makers(info={"user": user}) as session:
            return list(queries.execute(session, NAMES, **options))

    assert [seen(1), seen(2), seen(1)] == [[(1, "Ada")], [(2, "Bob")], [(1, "Ada")]]
    assert "a listener has changed a statement" in caplog.text
    executed = shop.selects
    for user in (1, 2, 1, 2):
        assert seen(user, vary=user) == [ADA_AND_BOB[user - 1]]
    assert shop.selects == executed + 2
    assert rows(queries, shop) == ADA_AND_BOB


def test_who_has_no_filter_leaves_nothing_for_those_who_have(queries: QueryCache, shop: Counting) -> None:
    makers = sessionmaker(shop.engine)
    queries.attach(makers)

    def only_own(state: Any) -> None:
        if own := state.session.info.get("user"):
            state.statement = state.statement.options(with_loader_criteria(User, User.id == own))

    event.listen(makers, "do_orm_execute", only_own)

    def seen(user: int | None, *, attached: bool, **options: Any) -> list[Any]:
        with makers(info={"user": user}) as session:
            if attached:
                return list(session.execute(NAMES.execution_options(magnus_cache=options or True)))
            return list(queries.execute(session, NAMES, **options))

    for attached in (False, True):
        assert seen(None, attached=attached) == ADA_AND_BOB
        assert seen(2, attached=attached) == [(2, "Bob")]
        assert seen(None, attached=attached, vary=()) == ADA_AND_BOB
        assert seen(2, attached=attached, vary=2) == [(2, "Bob")]


def test_a_filter_before_ours_is_part_of_the_key(queries: QueryCache, shop: Counting) -> None:
    makers = sessionmaker(shop.engine)

    def only_own(state: Any) -> None:
        if own := state.session.info.get("user"):
            state.statement = state.statement.options(with_loader_criteria(User, User.id == own))

    event.listen(makers, "do_orm_execute", only_own)
    queries.attach(makers)
    for user, expected in [(None, ADA_AND_BOB), (2, [(2, "Bob")]), (1, [(1, "Ada")])] * 2:
        with makers(info={"user": user}) as session:
            assert session.execute(NAMES.execution_options(magnus_cache=True)).all() == expected
    assert shop.selects == 3


@pytest.mark.parametrize("changes", ["before_execute", "before_cursor_execute"])
def test_a_filter_of_an_engine_never_crosses_over(queries: QueryCache, shop: Counting, changes: str) -> None:
    user: int | None = 1

    def of_statement(_: Any, clause: Any, multiple: Any, parameters: Any, __: Any) -> Any:
        return clause.where(User.id == user) if user else clause, multiple, parameters

    def of_text(_: Any, __: Any, sql: str, parameters: Any, *___: Any) -> Any:
        # And what tracing adds, which differs each time.
        return f"{sql.replace('ORDER', f'WHERE id = {user} ORDER')} /* trace {user} */", parameters

    listener: Any = of_statement if changes == "before_execute" else of_text
    event.listen(shop.engine, changes, listener, retval=True)
    for user in (1, 2) if changes == "before_cursor_execute" else (None, 1, 2):
        with shop.engine.connect() as connection:
            expected = ADA_AND_BOB if user is None else [ADA_AND_BOB[user - 1]]
            assert queries.execute(connection, NAMES).all() == expected


def test_comments_that_tracing_adds_change_nothing(queries: QueryCache, shop: Counting) -> None:
    def traced(_: Any, __: Any, sql: str, parameters: Any, *___: Any) -> Any:
        return f"{sql} /*traceparent='{len(shop.executed)}'*/", parameters

    event.listen(shop.engine, "before_cursor_execute", traced, retval=True)
    assert [rows(queries, shop) for _ in range(2)] == [ADA_AND_BOB] * 2
    assert shop.selects == 1


def test_a_session_that_is_sent_elsewhere_gets_what_is_there(cache: CacheManager, shop: Counting, place: str) -> None:
    other = Counting(place.replace("shop.db", "shard.db"))
    Base.metadata.create_all(other.engine)
    queries = QueryCache(shop.engine, other.engine, cache=cache)
    makers = sessionmaker(shop.engine)
    queries.attach(makers)
    cached = NAMES.execution_options(magnus_cache=True)
    for engine, expected in [(shop.engine, ADA_AND_BOB), (other.engine, [])] * 2:
        with makers() as session:
            assert session.execute(cached, bind_arguments={"bind": engine}).all() == expected
    assert (shop.selects, other.selects) == (1, 1)
    queries.close()
    other.engine.dispose()


def test_a_temporary_table_is_no_one_elses(queries: QueryCache, shop: Counting) -> None:
    with shop.engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE users (id INTEGER, name TEXT)")
        connection.exec_driver_sql("INSERT INTO users VALUES (9, 'Temporary')")
        connection.commit()
        assert queries.execute(connection, NAMES).all() == [(9, "Temporary")]
        assert rows(queries, shop) == ADA_AND_BOB
        assert queries.execute(connection, NAMES).all() == [(9, "Temporary")]


def test_what_is_not_committed_is_not_stored(cache: CacheManager) -> None:
    # Connections that share one memory can read what others have not committed.
    engine = sa.create_engine(
        "sqlite:///file:dirty?mode=memory&cache=shared&uri=true", isolation_level="READ UNCOMMITTED",
        poolclass=sa.QueuePool,
    )  # fmt: skip
    Base.metadata.create_all(engine)
    queries = QueryCache(engine, cache=cache)
    with engine.connect() as writing, engine.connect() as reading:
        writing.execute(sa.insert(User).values(id=5, name="never"))
        assert queries.execute(reading, NAMES).all() == [(5, "never")]
        writing.rollback()
        reading.rollback()
        assert queries.execute(reading, NAMES).all() == []
    queries.close()
    engine.dispose()


def test_callers_who_wait_for_a_changed_statement_get_their_own(queries: QueryCache, shop: Counting) -> None:
    makers = sessionmaker(shop.engine)

    def only_own(state: Any) -> None:
        own = state.session.info["user"]
        state.statement = state.statement.options(with_loader_criteria(User, lambda cls: cls.id == own))

    event.listen(makers, "do_orm_execute", only_own)
    held = Held(shop.engine)

    def seen(user: int) -> list[Any]:
        with makers(info={"user": user}) as session:
            return list(queries.execute(session, NAMES))

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(seen, user) for user in (1, 2, 1, 2)]
        assert held.reached.wait(30)
        held.release.set()
        assert [each.result() for each in waiting] == [[(1, "Ada")], [(2, "Bob")]] * 2


@pytest.mark.parametrize(
    "changed",
    [
        "ATTACH ':memory:' AS other", "SET search_path TO other", "SELECT set_config('a', 'b', false)",
        "-- of a tool\nSET ROLE other", "/* of a tool */ SET ROLE other", "RESET ROLE",
    ],
)  # fmt: skip
def test_a_connection_with_settings_of_its_own_is_apart(
    queries: QueryCache, shop: Counting, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert rows(queries, shop) == ADA_AND_BOB
    with shop.engine.connect() as connection:
        try:
            connection.exec_driver_sql(changed)
        except sa.exc.OperationalError:
            connection.rollback()  # of another database; what counts is that it was sent
        executed = shop.selects
        for _ in range(2):
            assert queries.execute(connection, NAMES).all() == ADA_AND_BOB
        assert shop.selects == executed + 2
        assert caplog.text.count("vary=tenant") == 1
        for _ in range(2):
            assert queries.execute(connection, NAMES, vary="other").all() == ADA_AND_BOB
        assert shop.selects == executed + 3


# -- execution option -------------------------------------------------------------------------------------------


def test_sessions_cache_what_has_the_option(queries: QueryCache, shop: Counting) -> None:
    makers = sessionmaker(shop.engine)
    queries.attach(makers)
    for asked in (True, "5m", {"ttl": 60, "tags": ["people"], "vary": 1}):
        executed = shop.selects
        for _ in range(2):
            with makers() as session:
                assert session.execute(NAMES.execution_options(magnus_cache=asked)).all() == ADA_AND_BOB
                assert session.scalars(NAMES, execution_options={"magnus_cache": asked}).all() == [1, 2]
        assert shop.selects == executed + (1 if asked != "5m" else 0)
        with makers() as session:
            session.execute(NAMES)
            session.execute(NAMES, execution_options={"magnus_cache": False})
        queries._manager.sync.invalidate_tags("people")
    with makers() as session, pytest.raises(CacheArgumentError, match="^magnus_cache: "):
        session.execute(NAMES.execution_options(magnus_cache={"time": 1}))


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "statement", "options"),
    [
        ("statement", select(User), {}),
        ("statement", select(User.id, aliased(Order)), {}),
        ("statement", select(Bundle("b", User.id)), {}),
        ("statement", sa.update(User).values(name="x"), {}),
        ("statement", sa.text("DELETE FROM users").columns(sa.column("id")), {"tables": [User]}),
        ("statement", "SELECT 1", {}),
        ("tables", sa.text("SELECT 1"), {}),
        ("tables", select(sa.text("name FROM users")), {}),
        ("tables", select(User.id).where(sa.text("EXISTS (SELECT 1 FROM orders)")), {}),
        ("tables", select(sa.literal_column("(SELECT 1 FROM orders)")), {}),
        ("tables", select(sa.column("id")).select_from(sa.text("users")), {}),
        ("tables", NAMES, {"tables": [5]}),
        ("parameters", NAMES, {"parameters": [{}, {}]}),
        ("parameters", select(sa.bindparam("x", type_=sa.PickleType)), {"parameters": {"x": object()}}),
        ("vary", NAMES, {"vary": object()}),
    ],
)  # fmt: skip
def test_what_cannot_be_cached_is_refused(
    queries: QueryCache, shop: Counting, argument: str, statement: Any, options: dict[str, Any]
) -> None:
    with Session(shop.engine) as session:
        with pytest.raises(CacheArgumentError, match=f"^{argument}: "):
            queries.execute(session, statement, **options)
    assert shop.executed == []


def test_text_that_names_no_table_needs_no_names(queries: QueryCache, shop: Counting) -> None:
    assert rows(queries, shop, NAMES.where(sa.text("id > 1"))) == [(2, "Bob")]
    assert rows(queries, shop, sa.text("SELECT :x").bindparams(x=5), tables=[]) == [(5,)]


def test_a_write_within_a_query_is_refused_and_seen(cache: CacheManager) -> None:
    engine = sa.create_engine("postgresql+psycopg://h/d")
    queries = QueryCache(engine, cache=cache)
    new = sa.insert(User).values(id=5, name="x").returning(User.id).cte("new")
    with pytest.raises(CacheArgumentError, match="^statement: "):
        planned(select(new.c.id), engine.dialect, None, {})
    with pytest.raises(CacheArgumentError, match="locks"):
        planned(NAMES.with_for_update(), engine.dialect, None, {})
    from magnus_cache.integrations.sqlalchemy.tables import written_by

    statement = select(new.c.id)
    written = written_by(statement, str(statement.compile(dialect=engine.dialect)), engine.dialect)
    assert [table.name for table in written or ()] == ["users"]
    assert written_by(NAMES, str(NAMES), engine.dialect) == []
    queries.close()


def test_a_wrong_argument_of_the_cache_is_named(cache: CacheManager, shop: Counting) -> None:
    with pytest.raises(CacheArgumentError, match="^namespace: grace, early: "):
        QueryCache(shop.engine, cache=cache, namespace=Namespace("sql", grace="1m", early=1.0))
    with pytest.raises(CacheTypeError, match="^engines: "):
        QueryCache("sqlite://", cache=cache)  # type: ignore[arg-type]
    with pytest.raises(CacheTypeError, match="^cache: "):
        QueryCache(shop.engine, cache=object())  # type: ignore[arg-type]
    with pytest.raises(CacheArgumentError, match="^namespace: audit: "):
        QueryCache(shop.engine, cache=cache, namespace=Namespace("sql", audit=0.5))
    queries = QueryCache(shop.engine, cache=cache)
    with pytest.raises(CacheTypeError, match="^connection: "):
        queries.execute(shop.engine, NAMES)  # type: ignore[call-overload]
    with pytest.raises(CacheArgumentError, match="^tables: "):
        queries.invalidate()
    queries.close()


def test_a_name_is_registered_with_a_policy_that_cannot_be_used(cache: CacheManager, shop: Counting) -> None:
    registered = register_namespace(Namespace("sql-policy-before", grace="1m"), replace=True)
    with pytest.raises(CacheArgumentError, match="^namespace: grace: "):
        QueryCache(shop.engine, cache=cache, namespace=str(registered))
    queries = QueryCache(shop.engine, cache=cache, namespace="sql-policy-after")
    assert rows(queries, shop) == rows(queries, shop)
    assert shop.selects == 1
    # Registered when the object is there already: what is stored is found, and no load begins under that policy.
    register_namespace(Namespace("sql-policy-after", soft_timeout=0, grace="1m"), replace=True)
    assert rows(queries, shop)
    cache.clear("sql-policy-after")
    with pytest.raises(CacheArgumentError, match="^namespace: grace, soft_timeout: "):
        rows(queries, shop)
    register_namespace(Namespace("sql-policy-after", ttl="1m"), replace=True)
    assert rows(queries, shop)
    queries.close()


# -- outages ----------------------------------------------------------------------------------------------------


def test_an_outage_holds_up_no_query_and_no_commit(proxy: Proxy, shop: Counting) -> None:
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as manager:
        queries = QueryCache(shop.engine, cache=manager)
        rows(queries, shop)
        proxy.freeze()
        began = time.monotonic()
        with shop.engine.begin() as connection:
            connection.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        assert rows(queries, shop)[0] == rows(queries, shop)[0] == (1, "Eve")
        assert time.monotonic() - began < 3
        proxy.thaw()
        queries.close()


# -- async ------------------------------------------------------------------------------------------------------


def test_blocking_programs_need_no_greenlet() -> None:
    """SQLAlchemy 2.1 does not bring it by itself, and its asyncio module cannot be imported without it."""
    output_of("-c", """
import sys
sys.modules["greenlet"] = None
import sqlalchemy
from magnus_cache import CacheManager, CacheTypeError
from magnus_cache.integrations.sqlalchemy import QueryCache
five, engine = sqlalchemy.select(sqlalchemy.literal(5)), sqlalchemy.create_engine("sqlite://")
with CacheManager(redis_enabled=False) as cache, engine.connect() as connection:
    queries = QueryCache(engine, cache=cache)
    assert [queries.execute(connection, five).scalar() for _ in "12"] == [5, 5]
    try:
        queries.execute(engine, five)
    except CacheTypeError as error:
        assert "not Engine" in str(error)
    else:
        raise AssertionError
""")  # fmt: skip


@pytest.fixture
async def async_shop(place: str, shop: Counting, anyio_backend: Any) -> Any:
    engine = create_async_engine(place.replace("sqlite", "sqlite+aiosqlite"))
    yield engine
    await engine.dispose()


@pytest.mark.anyio
async def test_async_connections_and_sessions(cache: CacheManager, shop: Counting, async_shop: AsyncEngine) -> None:
    queries = QueryCache(shop.engine, async_shop, cache=cache)
    executed: list[str] = []
    event.listen(async_shop.sync_engine, "before_cursor_execute", lambda *call: executed.append(call[2]))
    for _ in range(2):
        async with async_shop.connect() as connection:
            result = await queries.execute(connection, NAMES)
            assert result.all() == ADA_AND_BOB
        async with AsyncSession(async_shop) as session:
            assert (await queries.execute(session, NAMES)).scalars().all() == [1, 2]
    assert len(executed) == 1
    async with AsyncSession(async_shop) as session:
        (await session.get_one(User, 1)).name = "Eve"
        assert (await queries.execute(session, NAMES)).first() == (1, "Eve")
        assert rows(queries, shop)[0] == (1, "Ada")
        await session.commit()
    assert rows(queries, shop)[0] == (1, "Eve")
    with shop.engine.begin() as blocking:
        blocking.execute(sa.delete(User).where(User.id == 2))
    async with async_shop.connect() as connection:
        assert (await queries.execute(connection, NAMES)).all() == [(1, "Eve")]
    queries.close()


@pytest.mark.anyio
async def test_async_sessions_cache_what_has_the_option(cache: CacheManager, async_shop: AsyncEngine) -> None:
    queries = QueryCache(async_shop, cache=cache)

    class Cached(Session):
        pass

    queries.attach(Cached)
    executed: list[str] = []
    event.listen(async_shop.sync_engine, "before_cursor_execute", lambda *call: executed.append(call[2]))
    for _ in range(2):
        async with AsyncSession(async_shop, sync_session_class=Cached) as session:
            assert (await session.execute(NAMES.execution_options(magnus_cache=True))).all() == ADA_AND_BOB
    assert len(executed) == 1
    queries.close()


class HeldAsync:
    """Holds back the first async query after it was executed."""

    def __init__(self, engine: AsyncEngine) -> None:
        from sqlalchemy.util import await_only

        self.reached, self.release = asyncio.Event(), asyncio.Event()
        self.executed = 0

        def hold(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
            if not sql.startswith("SELECT"):
                return
            self.executed += 1
            if self.executed == 1:
                self.reached.set()
                await_only(self.release.wait())

        event.listen(engine.sync_engine, "after_cursor_execute", hold)


async def _awaited_rows(queries: QueryCache, engine: AsyncEngine) -> list[Any]:
    async with AsyncSession(engine) as session:
        return list((await queries.execute(session, NAMES)).all())


@pytest.mark.anyio
async def test_an_async_load_that_began_before_a_commit_is_not_stored(
    cache: CacheManager, shop: Counting, async_shop: AsyncEngine
) -> None:
    queries = QueryCache(shop.engine, async_shop, cache=cache)
    with shop.engine.connect() as wal:
        wal.exec_driver_sql("PRAGMA journal_mode=WAL")
    held = HeldAsync(async_shop)
    early = asyncio.create_task(_awaited_rows(queries, async_shop))
    await held.reached.wait()
    async with async_shop.begin() as connection:
        await connection.execute(sa.update(User).where(User.id == 2).values(name="Eve"))
    held.release.set()
    await early
    assert await _awaited_rows(queries, async_shop) == [(1, "Ada"), (2, "Eve")]
    assert held.executed == 2
    queries.close()


@pytest.mark.anyio
async def test_a_cancelled_caller_leaves_the_others_their_own_connection(
    cache: CacheManager, async_shop: AsyncEngine
) -> None:
    queries = QueryCache(async_shop, cache=cache)
    held = HeldAsync(async_shop)
    first = asyncio.create_task(_awaited_rows(queries, async_shop))
    await held.reached.wait()
    others = [asyncio.create_task(_awaited_rows(queries, async_shop)) for _ in range(3)]
    while cache.get_stats()["flights_joined"] < 3:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.gather(*others) == [ADA_AND_BOB] * 3
    assert held.executed == 2
    queries.close()


@pytest.mark.anyio
async def test_a_commit_that_is_cancelled_is_seen(cache: CacheManager, shop: Counting, async_shop: AsyncEngine) -> None:
    queries = QueryCache(shop.engine, async_shop, cache=cache)
    rows(queries, shop)
    done = asyncio.Event()
    original = async_shop.sync_engine.dialect.do_commit

    async def write() -> None:
        async with AsyncSession(async_shop) as session:
            await session.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
            await session.commit()

    watch, invalidate = queries._awaited, queries._awaited.invalidate

    def cancelled_within(tags: set[str]) -> None:
        asyncio.get_running_loop().call_soon(task.cancel)
        done.set()
        invalidate(tags)

    watch.invalidate = cancelled_within  # type: ignore[method-assign]
    task = asyncio.create_task(write())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
    assert original is not None
    while rows(queries, shop)[0] != (1, "Eve"):
        await asyncio.sleep(0)
    queries.close()


@pytest.mark.anyio
async def test_an_outage_holds_up_no_async_query(proxy: Proxy, async_shop: AsyncEngine) -> None:
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as manager:
        queries = QueryCache(async_shop, cache=manager)
        await _awaited_rows(queries, async_shop)
        proxy.freeze()
        began = time.monotonic()
        async with async_shop.begin() as connection:
            await connection.execute(sa.update(User).where(User.id == 1).values(name="Eve"))
        assert (await _awaited_rows(queries, async_shop))[0] == (1, "Eve")
        assert time.monotonic() - began < 3
        proxy.thaw()
        queries.close()
