"""Real databases behind the guide's `psycopg2`: PostgreSQL where it can be started, and always SQLite.

The guide's queries are written for PostgreSQL and `psycopg2`, so that is what they run on where its server and
the driver are installed. They need not be: the demo's SQLite takes the same SQL. Both have the demo's tables.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import EllipsisType, SimpleNamespace
from typing import Any, Protocol

from magnus_cache.demo import database
from magnus_cache.demo.call_counter import CallCounter
from tests.support.wait import wait_until

NOW = datetime.now(UTC).replace(microsecond=123456)

TABLES = {
    **database.TABLES,
    "portfolios": database.Table({"user_id": str, "equity": Decimal}, "user1,10250.75\nuser2,99.10\n"),
}
ROWS = {name: table.rows(NOW) for name, table in TABLES.items()}


class Database(Protocol):
    """A database with the guide's tables, as `psycopg2` shows it."""

    @property
    def queries(self) -> int:
        """How many statements it was asked to execute."""
        ...

    def connect(self, dsn: EllipsisType) -> Any:
        """Return a connection. The guide leaves the data source out: ``psycopg2.connect(...)``, literally."""

    def close(self) -> None:
        """Close what is open."""


def psycopg2_for(database: Database) -> SimpleNamespace:
    """Return what the guide's code finds under the name `psycopg2`."""
    return SimpleNamespace(connect=database.connect)


class Sqlite:
    """The demo's database, whose queries return at once."""

    def __init__(self, folder: Path) -> None:
        self._calls = CallCounter()
        self._database = database.Database(folder / "guide.sqlite", {}, self._calls, TABLES, NOW)
        self._connections: list[sqlite3.Connection] = []

    @property
    def queries(self) -> int:
        return self._calls.snapshot().total()

    def connect(self, dsn: EllipsisType) -> sqlite3.Connection:
        assert dsn is ...
        connection = self._database.connect()
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
        # The server refuses to run for root, as CI containers do; its user must own the data.
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


_POSTGRES_TYPES = {
    str: "TEXT", int: "INTEGER", float: "DOUBLE PRECISION", Decimal: "NUMERIC(10, 2)", date: "DATE",
    datetime: "TIMESTAMPTZ",
}  # fmt: skip


def _fill(cursor: Any) -> None:
    for name, table in TABLES.items():
        columns = ", ".join(f"{column} {_POSTGRES_TYPES[kind]}" for column, kind in table.columns.items())
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
        cursor.execute(f"CREATE TABLE {name} ({columns})")
        places = ", ".join(["%s"] * len(table.columns))
        for row in ROWS[name]:
            cursor.execute(f"INSERT INTO {name} VALUES ({places})", row)


class Postgres:
    """A PostgreSQL database, through `psycopg2` itself."""

    def __init__(self, server: PostgresServer) -> None:
        self.queries = 0
        self._dsn = server.dsn
        self._connections: list[Any] = []
        with self.connect(...) as connection:
            _fill(connection.cursor())
        self.queries = 0

    def connect(self, dsn: EllipsisType) -> Any:
        import psycopg2.extensions

        assert dsn is ...
        counted = self

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, sql: str, parameters: Sequence[object] | None = None) -> None:
                counted.queries += 1
                super().execute(sql, parameters)

        connection = psycopg2.connect(**self._dsn, cursor_factory=Cursor)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
