"""psycopg 2 and 3, and SQLAlchemy, on a real PostgreSQL with this cache: `nox -s postgres` runs this module.

The guide's queries, in each form in which the drivers return rows: they are stored, and come back the same, cold, warm,
from another process and in an outage. What is committed is seen by the next query, through each engine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import psycopg.rows
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from psycopg.types.range import Range
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from magnus_cache import CacheEncodeError, CacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.sqlalchemy import QueryCache
from magnus_cache.testing import Proxy
from tests.foreign.rehearsal import rehearse, rehearse_async
from tests.guide import databases
from tests.guide.databases import PostgresServer

pytestmark = pytest.mark.anyio

SCHEMA = """
CREATE TABLE options_chains (
    id INTEGER PRIMARY KEY, ticker TEXT, expiration_date DATE, strike NUMERIC(10, 2), iv DOUBLE PRECISION,
    quoted TIMESTAMPTZ, noted TIMESTAMP, at_time TIME, account UUID, legs JSONB, tags TEXT[], raw BYTEA,
    life INTERVAL, spread NUMRANGE, days DATERANGE, active BOOLEAN, missing TEXT
);
INSERT INTO options_chains
SELECT number, 'AAPL', '2025-03-21', 190.5 + number, 0.31, '2025-03-01T09:30:00.123456-05:00', '2025-03-01T09:30:00',
    '09:30', '00000000-0000-0000-0000-00000000002a', '{"legs": [1, 2.5, null], "side": "call"}', '{a,"b c"}',
    '\\x0001ff', '3 days 04:00:00.5', '[1.5,2.5)', '[2025-03-01,2025-03-21)', true, NULL
FROM generate_series(1, 3) AS number;
CREATE VIEW calls AS SELECT * FROM options_chains WHERE active;
"""
COLUMNS = (
    "id, ticker, expiration_date, strike, iv, quoted, noted, at_time, account, legs, tags, life, spread, days, active, "
    "missing"
)
"""All but BYTEA, which psycopg2 returns as a memoryview."""
QUERY = "SELECT * FROM options_chains WHERE ticker = %s AND expiration_date = %s ORDER BY id"
ASKED = ("AAPL", date(2025, 3, 21))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL with the guide's table. Not there is a failure, not a reason to skip."""
    assert databases.postgres_installed(), "there is no PostgreSQL server; on Debian: apt-get install postgresql"
    with closing(PostgresServer()) as started:
        with closing(psycopg2.connect(**started.dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(SCHEMA)
        yield started


class Counted:
    """How often the database was asked."""

    def __init__(self) -> None:
        self.queries = 0


# -- the drivers ------------------------------------------------------------------------------------------------


@dataclass
class Chain:
    id: int
    strike: Decimal
    quoted: datetime


PSYCOPG2: dict[str, Any] = {
    "tuple": None,
    "DictCursor": psycopg2.extras.DictCursor,
    "RealDictCursor": psycopg2.extras.RealDictCursor,
    "NamedTupleCursor": psycopg2.extras.NamedTupleCursor,
}
PSYCOPG3: dict[str, tuple[Any, str, Any]] = {
    "tuple_row": (psycopg.rows.tuple_row, "*", None),
    "dict_row": (psycopg.rows.dict_row, "*", None),
    "namedtuple_row": (psycopg.rows.namedtuple_row, "*", None),
    "class_row": (psycopg.rows.class_row(Chain), "id, strike, quoted", list[Chain]),
    "scalar_row": (psycopg.rows.scalar_row, "spread", None),
    "args_row": (psycopg.rows.args_row(lambda *columns: columns[1:]), "*", None),
}


@pytest.mark.parametrize("cursor", PSYCOPG2)
def test_psycopg2(server: EmbeddedServer, postgres: PostgresServer, cursor: str) -> None:
    counted = Counted()

    def load(_: int) -> Any:
        counted.queries += 1
        with closing(psycopg2.connect(**postgres.dsn)) as connection:
            with connection.cursor(cursor_factory=PSYCOPG2[cursor]) as opened:
                opened.execute(QUERY.replace("*", COLUMNS), ASKED)
                return opened.fetchall()

    rows = rehearse(server, load, lambda: counted.queries)
    assert len(rows) == 3


@pytest.mark.parametrize("cursor", PSYCOPG2)
async def test_psycopg2_awaited(server: EmbeddedServer, postgres: PostgresServer, cursor: str) -> None:
    counted = Counted()

    def load(_: int) -> Any:
        counted.queries += 1
        with closing(psycopg2.connect(**postgres.dsn)) as connection:
            with connection.cursor(cursor_factory=PSYCOPG2[cursor]) as opened:
                opened.execute(QUERY.replace("*", COLUMNS), ASKED)
                return opened.fetchone()

    assert (await rehearse_async(server, load, lambda: counted.queries)) is not None


@pytest.mark.parametrize("cursor", PSYCOPG2)
def test_the_bytes_of_psycopg2_are_views(url: str, postgres: PostgresServer, cursor: str) -> None:
    """They are returned, and the error names the column; `bytes(view)` is stored."""
    with closing(psycopg2.connect(**postgres.dsn)) as connection, CacheManager(redis_url=url) as cache:
        with connection.cursor(cursor_factory=PSYCOPG2[cursor]) as opened:
            opened.execute("SELECT id, raw FROM options_chains WHERE id = 1")
            row = opened.fetchone()
        assert cache.get_or_set("trial", "k", lambda: row) is row
        with pytest.raises(CacheEncodeError, match=r"bytes\(view\)") as refused:
            cache.set("trial", "k", row)
        assert refused.value.path in {"value[1]", 'value["raw"]', "value.raw"}


@pytest.mark.parametrize("form", PSYCOPG3)
def test_psycopg3(server: EmbeddedServer, postgres: PostgresServer, form: str) -> None:
    factory, columns, returns = PSYCOPG3[form]
    counted = Counted()

    def load(_: int) -> Any:
        counted.queries += 1
        with psycopg.connect(**postgres.dsn, row_factory=factory) as connection:
            return connection.execute(QUERY.replace("*", columns), ASKED).fetchall()

    rows = rehearse(server, load, lambda: counted.queries, returns)
    assert len(rows) == 3
    if form == "dict_row":
        assert rows[0]["account"] == UUID(int=42)
        assert rows[0]["quoted"].astimezone(UTC) == datetime(2025, 3, 1, 14, 30, 0, 123456, UTC)
        assert rows[0]["life"] == timedelta(days=3, hours=4, seconds=0.5)
        assert (rows[0]["raw"], rows[0]["legs"]["legs"]) == (b"\x00\x01\xff", [1, 2.5, None])
        assert rows[0]["spread"] == Range(Decimal("1.5"), Decimal("2.5"))


@pytest.mark.parametrize("form", PSYCOPG3)
async def test_psycopg3_awaited(server: EmbeddedServer, postgres: PostgresServer, form: str) -> None:
    factory, columns, returns = PSYCOPG3[form]
    counted = Counted()

    async def load(_: int) -> Any:
        counted.queries += 1
        async with await psycopg.AsyncConnection.connect(**postgres.dsn, row_factory=factory) as connection:
            return await (await connection.execute(QUERY.replace("*", columns), ASKED)).fetchall()

    assert len(await rehearse_async(server, load, lambda: counted.queries, returns)) == 3


# -- SQLAlchemy -------------------------------------------------------------------------------------------------

TABLE = sa.Table(
    "options_chains", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("ticker", sa.Text),
    sa.Column("strike", sa.Numeric(10, 2)), sa.Column("iv", sa.Float), sa.Column("quoted", sa.DateTime(timezone=True)),
    sa.Column("account", sa.Uuid),
)  # fmt: skip
STATEMENT = sa.select(TABLE).where(TABLE.c.ticker == "AAPL").order_by(TABLE.c.id)


def engine_url(postgres: PostgresServer, driver: str) -> tuple[Any, dict[str, Any]]:
    parts = dict(postgres.dsn)
    query = {"host": parts["host"], "options": parts["options"]}
    return sa.URL.create(f"postgresql+{driver}", parts["user"], database=parts["dbname"], query=query), {}


@pytest.fixture(params=["psycopg2", "psycopg"])
def engine(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[sa.Engine]:
    url, options = engine_url(postgres, request.param)
    engine = sa.create_engine(url, **options)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    url, options = engine_url(postgres, "psycopg")
    engine = create_async_engine(url, **options)
    yield engine
    await engine.dispose()


def selects_of(engine: sa.Engine) -> Callable[[], int]:
    executed: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *call: executed.append(call[2]))
    return lambda: sum(sql.lstrip().startswith("SELECT") and "options_chains" in sql for sql in executed)


def test_rows_of_sqlalchemy(server: EmbeddedServer, engine: sa.Engine) -> None:
    asked = selects_of(engine)

    def load(_: int) -> Any:
        with engine.connect() as connection:
            return connection.execute(STATEMENT).fetchall()

    rows = rehearse(server, load, asked)
    assert rows[0].account == UUID(int=42)


def test_a_query_is_cached_until_its_table_is_written(server: EmbeddedServer, engine: sa.Engine) -> None:
    """Two processes on one Redis, then one that is cut off from it: no query fails, and its own commits are seen."""
    asked = selects_of(engine)
    with (
        Proxy(server.port) as proxy,
        CacheManager(redis_url=proxy.url, op_timeout=0.3) as near,
        CacheManager(redis_url=server.url) as far,
    ):
        here, there = QueryCache(engine, cache=near), QueryCache(engine, cache=far)

        def strikes(queries: QueryCache) -> list[Any]:
            with engine.connect() as connection:
                return [row.strike for row in queries.execute(connection, STATEMENT)]

        def write(change: int) -> None:
            with engine.begin() as connection:
                connection.execute(sa.update(TABLE).values(strike=TABLE.c.strike + change))

        first = strikes(here)
        assert strikes(here) == strikes(there) == first
        assert asked() == 1
        write(1)
        assert strikes(here) == strikes(there) == [strike + 1 for strike in first]
        assert asked() == 2
        with engine.connect() as connection:
            connection.execute(sa.update(TABLE).values(strike=0))
            assert {row.strike for row in here.execute(connection, STATEMENT)} == {Decimal("0.00")}
        assert strikes(here) == [strike + 1 for strike in first]
        assert asked() == 3
        proxy.refuse()
        proxy.cut()
        assert strikes(here) == [strike + 1 for strike in first]
        write(-1)
        assert strikes(here) == first
        for queries in (here, there):
            queries.close()


async def test_a_query_of_an_async_engine(server: EmbeddedServer, async_engine: AsyncEngine) -> None:
    asked = selects_of(async_engine.sync_engine)
    with Proxy(server.port) as proxy, CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        queries = QueryCache(async_engine, cache=cache)

        async def strikes() -> list[Any]:
            async with async_engine.connect() as connection:
                return [row.strike for row in await queries.execute(connection, STATEMENT)]

        async def write(change: int) -> None:
            async with async_engine.begin() as connection:
                await connection.execute(sa.update(TABLE).values(strike=TABLE.c.strike + change))

        first = await strikes()
        assert [await strikes() for _ in range(3)] == [first] * 3
        assert asked() == 1
        together = await asyncio.gather(*(strikes() for _ in range(4)))
        assert together == [first] * 4
        await write(1)
        assert await strikes() == [strike + 1 for strike in first]
        assert asked() == 2
        proxy.refuse()
        proxy.cut()
        assert await strikes() == [strike + 1 for strike in first]
        await write(-1)
        assert await strikes() == first
        queries.close()


def test_a_view_depends_on_its_table(url: str, engine: sa.Engine) -> None:
    view = sa.table("calls", sa.column("id"), sa.column("strike"))
    with CacheManager(redis_url=url) as cache:
        queries = QueryCache(engine, cache=cache, depends={"calls": [TABLE]})

        def total() -> Any:
            with engine.connect() as connection:
                return queries.execute(connection, sa.select(sa.func.sum(view.c.strike))).scalar_one()

        first = total()
        assert total() == first
        for change in (10, -10):
            with engine.begin() as connection:
                connection.execute(sa.update(TABLE).values(strike=TABLE.c.strike + change))
            assert total() == first + (30 if change > 0 else 0)
        queries.close()
