"""A SQL database with slow queries: a SQLite file with made-up rows, and the DB managers of an application.

A connection takes SQL as ``psycopg2`` does, so that the queries are the guide's: ``%s`` for a parameter, and ``NOW()
- INTERVAL``. Each query calls ``slow(...)``, a function registered with the connection that takes as long as the guide
says: the delay is inside the query, as with a large table. No price, market or message in here is real.
"""

import csv
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from magnus_cache.demo.call_counter import CallCounter

__all__ = ["TABLES", "Database", "DiscordDBManager", "KalshiDBManager", "OptionsDBManager", "Rows", "Table"]

Rows = list[tuple[Any, ...]]

_FROM_TEXT: Final[dict[type, Callable[[str], Any]]] = {
    str: str, int: int, float: float, Decimal: Decimal, date: date.fromisoformat, datetime: datetime.fromisoformat,
}  # fmt: skip
"""By type of a column: the function that makes a value from its text."""

_SQL_TYPES: Final = {int: "INTEGER", float: "REAL"}
"""SQLite stores values of all other types as text."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the database.

    :ivar columns: each column's name and type: a key of `_FROM_TEXT`.
    :ivar text: its rows in CSV. A number or time that is left out is None; ``-3h`` is a time three hours ago.
    """

    columns: Mapping[str, type]
    text: str

    def rows(self, now: datetime) -> Rows:
        """Return the rows as a database returns them."""
        kinds = self.columns.values()
        return [
            tuple(_cell(kind, text, now) for kind, text in zip(kinds, line, strict=True))
            for line in csv.reader(self.text.splitlines())
        ]


def _cell(kind: type, text: str, now: datetime) -> Any:
    if kind is datetime and text.startswith("-"):
        return now - timedelta(hours=float(text[1:-1]))
    return _FROM_TEXT[kind](text) if text or kind is str else None


TABLES: Final[Mapping[str, Table]] = {
    "options_chains": Table(
        {
            "ticker": str, "expiration_date": date, "kind": str, "strike": Decimal, "bid": Decimal, "ask": Decimal,
            "implied_volatility": float, "volume": int, "quoted_at": datetime,
        },
        """\
AAPL,2025-03-21,call,205,9.25,9.40,0.4113,1834,2025-03-20T19:59:58+00:00
AAPL,2025-03-21,call,210,4.70,4.80,0.3127,9120,2025-03-20T19:59:59.123456+00:00
AAPL,2025-03-21,call,215,1.19,1.22,0.2871,31477,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,call,220,0.11,0.12,0.2902,22040,2025-03-20T19:59:57+00:00
AAPL,2025-03-21,put,205,0.09,0.10,,15402,2025-03-20T19:59:58+00:00
AAPL,2025-03-21,put,210,0.52,0.54,0.3094,27815,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,put,215,2.02,2.07,0.2856,8793,2025-03-20T19:59:59+00:00
AAPL,2025-03-21,put,220,5.90,6.05,0.2950,1120,2025-03-20T19:59:56+00:00
AAPL,2025-06-20,call,220,9.05,9.20,0.3012,40,2025-03-20T19:59:41+00:00
MSFT,2025-03-21,call,390,3.35,3.45,0.2205,6120,2025-03-20T19:59:58+00:00
MSFT,2025-03-21,put,390,2.10,2.16,0.2198,5207,2025-03-20T19:59:58+00:00
""",
    ),
    "kalshi_markets": Table(
        {
            "ticker": str, "title": str, "sport": str, "status": str, "yes_price": Decimal, "close_time": datetime,
        },
        """\
NFL-KC-BUF,Kansas City beats Buffalo,NFL,active,0.54,2025-09-07T20:25:00+00:00
NFL-PHI-DAL,Philadelphia beats Dallas,NFL,active,0.61,2025-09-05T00:20:00+00:00
NFL-DET-GB,Detroit beats Green Bay,NFL,active,0.48,2025-09-07T17:00:00+00:00
NFL-SF-SEA,San Francisco beats Seattle,NFL,active,0.57,2025-09-07T20:05:00+00:00
NFL-NYG-WAS,New York beats Washington,NFL,closed,0.00,2024-11-03T18:00:00+00:00
NBA-BOS-NYK,Boston beats New York,NBA,active,0.66,2025-04-08T23:30:00+00:00
""",
    ),
    # Newest first, with ages in place of times, so that "the last 24 hours" is never empty. One message has no text.
    "discord_messages": Table(
        {"id": int, "channel": str, "author": str, "content": str, "timestamp": datetime},
        """\
1,alerts,ana,NVDA breaks above yesterday's high,-0.5h
2,alerts,ben,Sold the AAPL 215 calls into the close \u2013 \U0001f680,-3h
3,lounge,cho,,-7h
4,alerts,ana,TSLA put spread filled at 1.85,-15h
5,lounge,dev,Weekend hackathon: bring your own dashboards,-22h
6,alerts,ben,MSFT earnings call moved to Thursday,-30h
7,lounge,cho,Welcome to everyone who joined this week,-70h
""",
    ),
}  # fmt: skip


# -- SQL of psycopg2 ----------------------------------------------------------------------------------------------

_TABLE: Final = re.compile(r"\b(?:FROM|UPDATE)\s+(\w+)")
_HOURS_AGO: Final = re.compile(r"NOW\(\) - INTERVAL '%s hours'")


def _translated(sql: str, table: str) -> str:
    """Return a query in SQLite's dialect, with the delay in it."""
    sql = _HOURS_AGO.sub("datetime('now', '-' || ? || ' hours')", sql).replace("%s", "?")
    # A subquery of its own: SQLite runs it once a query, not once a row.
    return sql.replace("WHERE", f"WHERE (SELECT slow('{table}')) AND", 1)


def _to_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        # With a space, as in the result of `datetime('now')`, so that the two compare.
        return value.astimezone(UTC).isoformat(sep=" ")
    return str(value) if isinstance(value, Decimal | date) else value


class _Connection(sqlite3.Connection):
    calls: CallCounter

    def cursor(self) -> "_Cursor":  # type: ignore[override]  # as psycopg2 has it
        return super().cursor(_Cursor)


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> "_Cursor":  # type: ignore[override]
        assert isinstance(self.connection, _Connection)
        found = _TABLE.search(sql)
        assert found is not None, sql
        self.connection.calls.add(found[1])
        super().execute(_translated(sql, found[1]), [_to_sqlite(value) for value in parameters])
        return self


# -- the database and its managers --------------------------------------------------------------------------------


class Database:
    """The database file: created once, then opened by each query, as a DB manager does.

    :param path: the file, which must not exist.
    :param latencies: seconds that a query of each table takes; at once for a table that is not listed.
    :param calls: counts the queries by table.
    :param now: what the ages of rows are counted from; the present if None.
    :ivar rows: what each table contained when it was created.
    """

    def __init__(
        self,
        path: Path,
        latencies: Mapping[str, float],
        calls: CallCounter,
        tables: Mapping[str, Table] = TABLES,
        now: datetime | None = None,
    ) -> None:
        self._path = path
        self._latencies = latencies
        self._calls = calls
        self._types = {column: kind for table in tables.values() for column, kind in table.columns.items()}
        now = now or datetime.now(UTC)
        self.rows = {name: table.rows(now) for name, table in tables.items()}
        with closing(sqlite3.connect(path)) as connection, connection:
            for name, table in tables.items():
                columns = ", ".join(
                    f"{column} {_SQL_TYPES.get(kind, 'TEXT')}" for column, kind in table.columns.items()
                )
                connection.execute(f"CREATE TABLE {name} ({columns})")
                places = ", ".join("?" for _ in table.columns)
                stored = ([_to_sqlite(value) for value in row] for row in self.rows[name])
                connection.executemany(f"INSERT INTO {name} VALUES ({places})", stored)

    def connect(self) -> sqlite3.Connection:
        """Return a connection that takes SQL as ``psycopg2`` does; its caller closes it, from any thread."""
        connection = sqlite3.connect(self._path, factory=_Connection, check_same_thread=False)
        connection.calls = self._calls
        # `sqlite3.register_converter` would convert decimals and times for the whole process.
        connection.row_factory = self._row
        connection.create_function("slow", 1, self._slow)
        return connection

    def query(self, sql: str, parameters: Iterable[Any]) -> Rows:
        """Return the rows of a query, which gets a connection of its own."""
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql, tuple(parameters))
            return cursor.fetchall()

    def _slow(self, table: str) -> int:
        time.sleep(self._latencies.get(table, 0.0))
        return 1

    def _row(self, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        kinds = (self._types[column[0]] for column in cursor.description)
        return tuple(None if value is None else _FROM_TEXT[kind](value) for kind, value in zip(kinds, row, strict=True))


class _DBManager:
    def __init__(self, database: Database) -> None:
        self._database = database


class OptionsDBManager(_DBManager):
    """Reads options chains."""

    def get_options_chain(self, ticker: str, expiration: str) -> Rows:
        """Return a ticker's options that expire on a day, given as ``2025-03-21``."""
        return self._database.query(
            "SELECT * FROM options_chains WHERE ticker = %s AND expiration_date = %s ORDER BY kind, strike",
            (ticker, expiration),
        )


class KalshiDBManager(_DBManager):
    """Reads prediction markets."""

    def get_active_markets(self, sport: str = "NFL") -> Rows:
        """Return a sport's open markets."""
        return self._database.query(
            "SELECT * FROM kalshi_markets WHERE status = 'active' AND sport = %s ORDER BY ticker", (sport,)
        )


class DiscordDBManager(_DBManager):
    """Reads chat messages."""

    def get_recent_messages(self, hours_back: int = 24) -> Rows:
        """Return the messages of the last hours, newest first."""
        return self._database.query(
            "SELECT * FROM discord_messages WHERE timestamp >= NOW() - INTERVAL '%s hours' ORDER BY timestamp DESC",
            (hours_back,),
        )
