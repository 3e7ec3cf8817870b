"""Real databases behind the guide's `psycopg2`: PostgreSQL where it can be started, and always SQLite.

The guide's queries are written for PostgreSQL and `psycopg2`, so that is what they run on where its server and
the driver are installed. They need not be: SQLite comes with Python, and a thin layer over it translates the two
things that the guide's SQL has and SQLite does not, ``%s`` and ``NOW() - INTERVAL``. The rows are the same.
"""

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import EllipsisType, SimpleNamespace
from typing import Any, Protocol

from tests.support.wait import wait_until

NOW = datetime.now(UTC).replace(microsecond=123456)

OPTIONS = [
    (1, "AAPL", date(2025, 3, 21), "call", Decimal("210.00"), Decimal("4.35"), 0.2871, 1250, NOW),
    (2, "AAPL", date(2025, 3, 21), "put", Decimal("210.00"), Decimal("3.90"), None, 871, NOW),
    (3, "AAPL", date(2025, 6, 20), "call", Decimal("220.00"), Decimal("9.05"), 0.3012, 40, NOW),
    (4, "MSFT", date(2025, 3, 21), "call", Decimal("480.00"), Decimal("12.10"), 0.2205, 99, NOW),
]
MARKETS = [
    (1, "NFL", "active", "Chiefs win", Decimal("0.62"), NOW + timedelta(days=3)),
    (2, "NFL", "closed", "Bills win", Decimal("1.00"), NOW - timedelta(days=3)),
    (3, "NBA", "active", "Celtics win", Decimal("0.55"), NOW + timedelta(days=1)),
]
# Newest first, as the guide asks for them; an hour, five hours and thirty hours old.
MESSAGES = [
    (1, "trades", "ana", "Rolled my AAPL calls \u2013 \U0001f680", NOW - timedelta(hours=1)),
    (2, "trades", "ben", "", NOW - timedelta(hours=5)),
    (3, "general", "ana", "Good morning", NOW - timedelta(hours=30)),
]
PORTFOLIOS = [("user1", Decimal("10250.75")), ("user2", Decimal("99.10"))]

_TABLES = {
    "options_chains": (
        "id INTEGER, ticker TEXT, expiration_date {date}, kind TEXT, strike {decimal}, bid {decimal}, "
        "implied_volatility DOUBLE PRECISION, open_interest INTEGER, updated {moment}",
        OPTIONS,
    ),
    "kalshi_markets": ("id INTEGER, sport TEXT, status TEXT, title TEXT, price {decimal}, closes {moment}", MARKETS),
    "discord_messages": ("id INTEGER, channel TEXT, author TEXT, content TEXT, timestamp {moment}", MESSAGES),
    "portfolios": ("user_id TEXT, equity {decimal}", PORTFOLIOS),
}


class Database(Protocol):
    """A database with the guide's tables, as `psycopg2` shows it.

    :ivar queries: how many statements it was asked to execute.
    """

    queries: int

    def connect(self, dsn: EllipsisType) -> Any:
        """Return a connection. The guide leaves the data source out: ``psycopg2.connect(...)``, literally."""

    def close(self) -> None:
        """Close what is open."""


def psycopg2_for(database: Database) -> SimpleNamespace:
    """Return what the guide's code finds under the name `psycopg2`."""
    return SimpleNamespace(connect=database.connect)


def _fill(cursor: Any, **types: str) -> None:
    for table, (columns, rows) in _TABLES.items():
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"CREATE TABLE {table} ({columns.format(**types)})")
        places = ", ".join(["%s"] * len(rows[0]))
        for row in rows:
            cursor.execute(f"INSERT INTO {table} VALUES ({places})", row)


# -- SQLite -------------------------------------------------------------------------------------------------

# Names of our own, declared in the tables: what Python knows as "date" and "timestamp" is deprecated. Each contains
# TEXT, which is how SQLite is told to leave the values alone.
sqlite3.register_converter("decimaltext", lambda data: Decimal(data.decode()))
sqlite3.register_converter("datetext", lambda data: date.fromisoformat(data.decode()))
sqlite3.register_converter("momenttext", lambda data: datetime.fromisoformat(data.decode()))

_HOURS_AGO = re.compile(r"NOW\(\) - INTERVAL '%s hours'")


def _translated(sql: str) -> str:
    return _HOURS_AGO.sub("datetime('now', '-' || ? || ' hours')", sql).replace("%s", "?")


def _adapted(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ")
    return str(value) if isinstance(value, Decimal | date) else value


class Sqlite:
    """A SQLite file that takes the SQL of `psycopg2`."""

    def __init__(self, folder: Path) -> None:
        self.queries = 0
        self._path = folder / "guide.sqlite"
        self._connections: list[sqlite3.Connection] = []
        with self.connect(...) as connection:
            _fill(connection.cursor(), decimal="DECIMALTEXT", date="DATETEXT", moment="MOMENTTEXT")
        self.queries = 0

    def connect(self, dsn: EllipsisType) -> sqlite3.Connection:
        assert dsn is ...
        database = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Sequence[object] = ()) -> "Cursor":  # type: ignore[override]
                database.queries += 1
                super().execute(_translated(sql), [_adapted(value) for value in parameters])
                return self

        class Connection(sqlite3.Connection):
            def cursor(self) -> Cursor:  # type: ignore[override]  # as psycopg2 has it
                return super().cursor(Cursor)

        connection = sqlite3.connect(
            self._path, detect_types=sqlite3.PARSE_DECLTYPES, factory=Connection, check_same_thread=False
        )
        # The guide's code closes none of them.
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


# -- PostgreSQL ---------------------------------------------------------------------------------------------


def _postgres_binaries() -> Path | None:
    """Return the folder with the server's programs; Debian does not put it on the PATH."""
    on_path = shutil.which("initdb")
    places = [*([Path(on_path)] if on_path else []), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[::-1]]
    for place in places:
        folder = place.resolve().parent
        if (folder / "postgres").exists():
            return folder
    return None


def postgres_installed() -> bool:
    """Return whether both a PostgreSQL server and its driver are there."""
    return importlib.util.find_spec("psycopg2") is not None and _postgres_binaries() is not None


class PostgresServer:
    """A PostgreSQL of its own, on a socket in a folder of its own."""

    def __init__(self) -> None:
        binaries = _postgres_binaries()
        assert binaries is not None
        self._folder = Path(tempfile.mkdtemp(prefix="guide-pg-"))
        # The server refuses to run for root, as CI containers do; it must be somebody who owns the data.
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        data, log = self._folder / "data", self._folder / "server.log"
        options: dict[str, Any] = {"cwd": self._folder, "stdin": subprocess.DEVNULL, **user}
        initdb = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "guide",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, capture_output=True, **options)
        server = [binaries / "postgres", "-D", data, "-k", self._folder, "-c", "listen_addresses=", "-c", "fsync=off"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(server, stdout=output, stderr=output, **options)
        wait_until(self._answers)

    @property
    def dsn(self) -> dict[str, str]:
        """Where it is. Its clients are in a time zone with an offset, so that rows have one."""
        zone = "-c timezone=America/New_York"
        return {"host": str(self._folder), "user": "guide", "dbname": "postgres", "options": zone}

    def _answers(self) -> bool:
        import psycopg2

        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(**self.dsn).close()
            return True
        return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


class Postgres:
    """A PostgreSQL database, through `psycopg2` itself."""

    def __init__(self, server: PostgresServer) -> None:
        self.queries = 0
        self._dsn = server.dsn
        self._connections: list[Any] = []
        with self.connect(...) as connection:
            _fill(connection.cursor(), decimal="NUMERIC(10, 2)", date="DATE", moment="TIMESTAMPTZ")
        self.queries = 0

    def connect(self, dsn: EllipsisType) -> Any:
        import psycopg2.extensions

        assert dsn is ...
        database = self

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, sql: str, parameters: Sequence[object] | None = None) -> None:
                database.queries += 1
                super().execute(sql, parameters)

        connection = psycopg2.connect(**self._dsn, cursor_factory=Cursor)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
