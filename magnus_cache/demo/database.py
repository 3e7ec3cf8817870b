"""A real SQL database, a SQLite file with slow queries, and the DB managers an application has before there is a cache.

The queries are slow because each calls ``slow(...)``, a function registered with the connection that takes as
long as the guide says and counts the query: the delay is inside the query, as with a large table, and no query can
be made without being counted.
"""

import sqlite3
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from magnus_cache.demo import data
from magnus_cache.demo.counting import CallCounter

__all__ = ["Database", "DiscordDBManager", "KalshiDBManager", "OptionsDBManager", "Rows"]

Rows = list[tuple[Any, ...]]

_SCHEMA: Final = """
CREATE TABLE options_chains (
    ticker TEXT, expiration_date TEXT, kind TEXT, strike TEXT, bid TEXT, ask TEXT, volume INTEGER, quoted_at TEXT
);
CREATE TABLE kalshi_markets (
    ticker TEXT PRIMARY KEY, title TEXT, sport TEXT, status TEXT, yes_price TEXT, close_time TEXT
);
CREATE TABLE discord_messages (id INTEGER PRIMARY KEY, channel TEXT, author TEXT, content TEXT, timestamp TEXT);
"""

# SQLite stores decimals and times as text. `sqlite3.register_converter` would convert them for the whole process;
# a row factory does it for these connections alone.
_CONVERTERS: Final[dict[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("strike", "bid", "ask", "yes_price"), Decimal),
    **dict.fromkeys(("quoted_at", "close_time", "timestamp"), datetime.fromisoformat),
}


class Database:
    """The database file: made once, then opened by each query as a DB manager does.

    :param path: the file, which must not exist.
    :param latencies: seconds that each workload's query takes.
    :param calls: counts the queries by workload.
    """

    def __init__(self, path: Path, latencies: Mapping[str, float], calls: CallCounter) -> None:
        self._path = path
        self._latencies = latencies
        self._calls = calls
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(_SCHEMA)
            for table, rows in _tables(datetime.now(UTC)).items():
                _insert(connection, table, rows)

    @contextmanager
    def get_connection(self) -> Generator[sqlite3.Connection, None, None]:
        """Open the database for one query."""
        with closing(sqlite3.connect(self._path)) as connection:
            connection.row_factory = _row
            connection.create_function("slow", 1, self._slow)
            yield connection

    def _slow(self, workload: str) -> int:
        self._calls.add(workload)
        time.sleep(self._latencies[workload])
        return 1


def _tables(now: datetime) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each table by column name."""
    messages: list[dict[str, str]] = []
    for message in data.rows(data.MESSAGES):
        written = now - timedelta(hours=float(message.pop("hours_ago")))
        messages.append({**message, "timestamp": written.isoformat(timespec="seconds")})
    return {
        "options_chains": list(data.rows(data.OPTIONS_CHAINS)),
        "kalshi_markets": list(data.rows(data.KALSHI_MARKETS)),
        "discord_messages": messages,
    }


def _insert(connection: sqlite3.Connection, table: str, rows: list[dict[str, str]]) -> None:
    columns = list(rows[0])
    places = ", ".join(f":{column}" for column in columns)
    connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)


def _row(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        _CONVERTERS[column[0]](value) if column[0] in _CONVERTERS else value
        for column, value in zip(cursor.description, row, strict=True)
    )


# In the queries, `(SELECT slow('...'))` is a subquery of its own: SQLite runs it once a query, not once a row.


class OptionsDBManager:
    """Reads options chains."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_options_chain(self, ticker: str, expiration: str) -> Rows:
        """Return a ticker's options that expire on a day, given as ``2025-03-21``."""
        with self._database.get_connection() as connection:
            cursor = connection.execute(
                "SELECT * FROM options_chains"
                " WHERE (SELECT slow('options_chain')) AND ticker = ? AND expiration_date = ? ORDER BY kind, strike",
                (ticker, expiration),
            )
            return cursor.fetchall()


class KalshiDBManager:
    """Reads prediction markets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_active_markets(self, sport: str = "NFL") -> Rows:
        """Return a sport's open markets."""
        with self._database.get_connection() as connection:
            cursor = connection.execute(
                "SELECT * FROM kalshi_markets"
                " WHERE (SELECT slow('kalshi_markets')) AND status = 'active' AND sport = ? ORDER BY ticker",
                (sport,),
            )
            return cursor.fetchall()


class DiscordDBManager:
    """Reads chat messages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_recent_messages(self, hours_back: int = 24) -> Rows:
        """Return the messages of the last hours, newest first."""
        since = datetime.now(UTC) - timedelta(hours=hours_back)
        with self._database.get_connection() as connection:
            cursor = connection.execute(
                "SELECT * FROM discord_messages"
                " WHERE (SELECT slow('discord_messages')) AND timestamp >= ? ORDER BY timestamp DESC",
                (since.isoformat(timespec="seconds"),),
            )
            return cursor.fetchall()
