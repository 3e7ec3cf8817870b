"""The journal on disk: what one cache's Redis could not be told, in a SQLite file that many processes may share.

One row for each key, namespace or tag, of the cache (an address and a prefix) that it is about; never a value, never
a secret. A row that is recorded again gets a new id, and rows are deleted by their ids alone: whoever has told Redis
of a row cannot delete what was recorded after he read it.

A commit is in the operating system's hands when it returns (WAL, without fsync): it survives the end of the process,
however sudden, but not a power failure, after which the processes that it was about are gone with their memory too.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from sqlite3 import Error as SQLiteError
from typing import Final, NamedTuple

from magnus_cache._engine.outage.outbox import MOST_NAMES, MOST_SCOPES, Kind, namespace_prefix
from magnus_cache._engine.runtime.forks import ForkLock

__all__ = ["JournalFile", "Known", "Row"]

_MINE: Final = 0x4D61676E
"""The application id in the file's header, ``Magn``: a file that has another one is not a journal."""

_FORMAT: Final = 1

_BUSY: Final = 0.1
"""Seconds that one statement waits for another process that writes to the same file."""

_UNUSABLE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_SCHEMA: Final = (
    "CREATE TABLE missed (id INTEGER PRIMARY KEY AUTOINCREMENT, cache TEXT NOT NULL, kind TEXT NOT NULL,"
    " name BLOB NOT NULL, UNIQUE (cache, kind, name))",
    # Follows a file that could not be read: each cache that has not been told yet distrusts everything, once.
    "CREATE TABLE loss (told TEXT PRIMARY KEY)",
    f"PRAGMA application_id = {_MINE}",
    f"PRAGMA user_version = {_FORMAT}",
)

_CACHES: Final = "SELECT DISTINCT CAST(cache AS BLOB) FROM missed"

_MAKING: Final = ForkLock()

_ABANDONED: Final[list[sqlite3.Connection]] = []


class Row(NamedTuple):
    """One thing that Redis could not be told; if the file was tampered with, of a kind that there is not."""

    id: int
    kind: str
    name: bytes


class _ForeignError(SQLiteError):
    """The file is no journal, or one of a later version."""


class Known(NamedTuple):
    """A row that stands for something in the record."""

    mark: int
    id: int


class JournalFile:
    """The rows of one cache in a file; for one thread at a time. The file is opened when it is first needed.

    :param cache: what tells this cache's rows from those of others in the same file.
    :param root: what all values' names begin with; also an attribute.
    :ivar generation: a new one for each new file: ids are those of one file.
    :ivar aside: where a file was moved to that could not be used.
    """

    def __init__(
        self, path: Path, cache: str, root: bytes, most_names: int = MOST_NAMES, most_scopes: int = MOST_SCOPES
    ) -> None:
        self.path = path
        self.aside: Path | None = None
        self.generation = 0
        self._looked = 0
        self._cache = cache
        self.root = root
        self._most_names = most_names
        self._most_scopes = most_scopes
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    @property
    def exists(self) -> bool:
        """Whether there may be something to read: also where this user is not allowed to look."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    @property
    def identity(self) -> tuple[int, int] | None:
        """What tells the file that the path leads to from another, if there is one."""
        return _identity(self.path)

    def open(self) -> sqlite3.Connection:
        """Open the file, or make it, unless that is done.

        :raises SQLiteError: when that is impossible; see `unusable`.
        :raises OSError: likewise.
        """
        if self._connection is None:
            self._connection = self._connected(lossy=False)
        return self._connection

    @property
    def moved(self) -> bool:
        """Whether the path leads to another file by now than the one that is open: what was written is lost to others.

        Somebody has removed it, or moved it aside as damaged.
        """
        return self._connection is not None and self._identity != _identity(self.path)

    def change(self, keep: Iterable[tuple[Kind, bytes]], drop: Iterable[int]) -> dict[tuple[Kind, bytes], int]:
        """Add some rows and delete others, and return the ids of those added; all of it or nothing.

        :raises SQLiteError: when the disk is full, read-only or broken.
        :raises OSError: likewise.
        """
        ids: dict[tuple[Kind, bytes], int] = {}
        with _Transaction(self.open()) as connection:
            connection.executemany("DELETE FROM missed WHERE id = ?", ((number,) for number in drop))
            for kind, name in keep:
                ids[kind, name] = self._insert(connection, kind, name)
        return ids

    def bound(self) -> bool:
        """Let namespaces stand for too many names, and everything for too many of those; return whether that was so.

        Each process's record is bounded, and so is what they leave behind together.

        :raises SQLiteError: when the disk is full, read-only or broken.
        :raises OSError: likewise.
        """
        connection = self.open()
        if not self._overflows(connection):
            return False
        with _Transaction(connection):
            # Again, within the transaction: another process may have been faster.
            over = self._overflows(connection)
            if "names" in over:
                prefixes = {namespace_prefix(name) for name in self._names(connection, "names") if name.count(b":") > 1}
                for prefix in prefixes:
                    self._insert(connection, "prefixes", prefix)
                self._delete(connection, "names")
            if "tags" in over or "prefixes" in self._overflows(connection):
                for kind in ("tags", "prefixes"):
                    self._delete(connection, kind)
                self._insert(connection, "prefixes", self.root)
        return bool(over)

    def rows(self) -> list[Row]:
        """Return all rows of this cache, whoever has written them.

        :raises SQLiteError: when the file cannot be read.
        :raises OSError: likewise.
        """
        connection = self.open()
        self._admit_loss(connection)
        found = connection.execute(
            "SELECT id, CAST(kind AS BLOB), CAST(name AS BLOB) FROM missed WHERE cache = ? ORDER BY id", (self._cache,)
        )
        return [Row(number, kind.decode(errors="replace"), name) for number, kind, name in found]

    def others(self) -> str:
        """Return what to say, once for each file, of rows of this prefix that wait for another address; or nothing.

        They are not replayed: nobody knows whether that is this server, and if not, its rows must stay.

        :raises SQLiteError: when the file cannot be read.
        :raises OSError: likewise.
        """
        connection = self.open()
        if self._looked == self.generation:
            return ""
        self._looked = self.generation
        caches = [cache.decode(errors="replace") for (cache,) in connection.execute(_CACHES)]
        here, end = self._cache, f" {self.root[:-1].decode()}"
        refs = sorted(cache.removesuffix(end) for cache in caches if cache.endswith(end) and cache != here)
        if not refs:
            return ""
        return (
            f"in the recovery journal {self.path} invalidations wait for {', '.join(refs)}; this process uses "
            f"{here.removesuffix(end)} and does not tell them. If that is the same server, name it as before"
        )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def forsake(self) -> None:
        """Close a file that the path does not lead to any more; the next one is another, even if it looks the same."""
        self.close()
        # File systems give the number of a removed file to the next.
        self._identity = None

    def abandon(self) -> None:
        """Forget the file without a word to SQLite, in a child that was forked while it was open."""
        if self._connection is not None:
            # Never collected: SQLite's end of it would undo what the parent relies on.
            _ABANDONED.append(self._connection)
        self._connection = None

    def unusable(self, error: Exception) -> bool:
        """Whether an error means that the file is damaged, and not the disk full or the file locked."""
        code = getattr(error, "sqlite_errorcode", 0)
        return isinstance(error, _ForeignError) or (code & 0xFF) in _UNUSABLE

    def busy(self, error: Exception) -> bool:
        """Whether an error means that another process has the file locked: soon it may have let go."""
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_BUSY

    def replace(self) -> None:
        """Move a file aside that cannot be used, and begin a new one that says so to each cache; nothing is deleted.

        :raises OSError: if that is not allowed.
        """
        before = self._identity
        self.forsake()
        if before is None or before == _identity(self.path):
            # Not if another process has just done so: then the path leads to a good one.
            self.aside = self._put_aside()
        self._connection = self._connected(lossy=True)

    def _put_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return aside

    # -- opening --------------------------------------------------------------------------------------------

    def _connected(self, *, lossy: bool) -> sqlite3.Connection:
        self._make()
        identity = _identity(self.path)
        self.generation += identity != self._identity
        self._identity = identity
        # Its own thread uses it, and whoever forks closes it.
        connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection, lossy=lossy)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Make the file, unless it is there: here and not by SQLite, for its mode, which the files beside it get too.

        One that is there must not be opened except by SQLite. With the end of any descriptor of a file, a process lets
        go of all its locks on it, also of another connection's: the next to end then removes what is still in use.
        """
        # Nobody of this process has it open yet, and all who are about to come this way.
        with _MAKING(), contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _prepare(self, connection: sqlite3.Connection, *, lossy: bool) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        if self._is_new(connection):
            with _Transaction(connection):
                # Again, within the transaction: another process may have been faster.
                if self._is_new(connection):
                    for statement in _SCHEMA:
                        connection.execute(statement)
        # Refused while another process is about to open it: then this is a slower way to the same end, until next time.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise _ForeignError("it is damaged")
        if lossy:
            connection.execute("INSERT OR IGNORE INTO loss VALUES ('')")

    def _admit_loss(self, connection: sqlite3.Connection) -> None:
        """Distrust everything, once, if what was known of it was lost with another file."""
        told = {name for (name,) in connection.execute("SELECT told FROM loss WHERE told IN ('', ?)", (self._cache,))}
        if told == {""}:
            with _Transaction(connection):
                connection.execute("INSERT OR REPLACE INTO loss VALUES (?)", (self._cache,))
                self._insert(connection, "prefixes", self.root)

    @staticmethod
    def _is_new(connection: sqlite3.Connection) -> bool:
        """Whether it holds nothing at all yet.

        :raises _ForeignError: if what it holds is no journal, or one of a later version.
        """
        (mine,), (version,), (tables,) = (
            connection.execute(question).fetchone()
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if mine == _MINE and version == _FORMAT:
            return False
        if mine or version or tables:
            raise _ForeignError("it is of a later version" if mine == _MINE else "it is not a journal of this cache")
        return True

    # -- rows -----------------------------------------------------------------------------------------------

    def _insert(self, connection: sqlite3.Connection, kind: str, name: bytes) -> int:
        statement = "INSERT OR REPLACE INTO missed (cache, kind, name) VALUES (?, ?, ?)"
        number = connection.execute(statement, (self._cache, kind, name)).lastrowid
        assert number is not None
        return number

    def _delete(self, connection: sqlite3.Connection, kind: str) -> None:
        connection.execute("DELETE FROM missed WHERE cache = ? AND kind = ?", (self._cache, kind))

    def _names(self, connection: sqlite3.Connection, kind: str) -> list[bytes]:
        statement = "SELECT CAST(name AS BLOB) FROM missed WHERE cache = ? AND kind = ?"
        return [name for (name,) in connection.execute(statement, (self._cache, kind))]

    def _overflows(self, connection: sqlite3.Connection) -> set[str]:
        statement = "SELECT kind, count(*) FROM missed WHERE cache = ? GROUP BY kind"
        counts: Mapping[str, int] = dict(connection.execute(statement, (self._cache,)).fetchall())
        return {
            kind
            for kind, count in counts.items()
            if count > (self._most_names if kind == "names" else self._most_scopes)
        }


class _Transaction:
    """All of it or nothing, with the right to write taken at once: two readers that both want to write would clash."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            # Some failures, such as a full disk, have rolled it back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
