"""The journal on disk: a cache's unconfirmed invalidations, in a SQLite file that many processes may share.

It has one row for each key, namespace or tag of a cache (an address and a prefix), and never a value or a secret. A row
that is recorded again gets a new id, and rows are deleted only by their ids. So a process that has replayed a row
cannot delete what was recorded after its read.

When a commit returns, the operating system has the data (WAL, without fsync). It survives any end of the process, but
not a power failure, which also ends the processes whose memory the rows concern.
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

_APPLICATION_ID: Final = 0x4D61676E
"""The application id in the file's header, ``Magn``: a file with another id is not a journal."""

_FORMAT: Final = 1

_BUSY: Final = 0.1
"""Seconds that one statement waits for another process that writes to the same file."""

_UNUSABLE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_SCHEMA: Final = (
    "CREATE TABLE missed (id INTEGER PRIMARY KEY AUTOINCREMENT, cache TEXT NOT NULL, kind TEXT NOT NULL,"
    " name BLOB NOT NULL, UNIQUE (cache, kind, name))",
    # Follows an unreadable file: each cache that is not listed here yet invalidates everything, once.
    "CREATE TABLE loss (told TEXT PRIMARY KEY)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_FORMAT}",
)

_CACHES: Final = "SELECT DISTINCT CAST(cache AS BLOB) FROM missed"

_MAKING: Final = ForkLock()

_LEAKED: Final[list[sqlite3.Connection]] = []


class Row(NamedTuple):
    """One unconfirmed invalidation; if the file was tampered with, its kind may be unknown."""

    id: int
    kind: str
    name: bytes


class _ForeignError(SQLiteError):
    """The file is not a journal, or one of a later version."""


class Known(NamedTuple):
    """A row of something in the outbox, with its position there."""

    position: int
    id: int


class JournalFile:
    """The rows of one cache in a file; for one thread at a time. The first use opens the file.

    :param cache: identifies this cache's rows among those of others in the same file.
    :param root: the prefix of all values' names; also an attribute.
    :ivar generation: rises with each new file, because ids belong to one file.
    :ivar aside: where an unusable file was moved to.
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
        """Whether the file may exist: also True if this user has no access."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    @property
    def identity(self) -> tuple[int, int] | None:
        """Identifies the file at the path; None without one."""
        return _identity(self.path)

    def open(self) -> sqlite3.Connection:
        """Return the connection to the file, which is opened or created if needed.

        :raises SQLiteError: when that is impossible; see `unusable`.
        :raises OSError: likewise.
        """
        if self._connection is None:
            self._connection = self._connected(lossy=False)
        return self._connection

    @property
    def moved(self) -> bool:
        """Whether the path leads to another file than the open one, so that other processes do not see what is written.

        The file was removed, or moved aside as damaged.
        """
        return self._connection is not None and self._identity != _identity(self.path)

    def change(self, keep: Iterable[tuple[Kind, bytes]], drop: Iterable[int]) -> dict[tuple[Kind, bytes], int]:
        """Add some rows and delete others, in one transaction, and return the ids of the added rows.

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
        """Replace too many names by their namespaces, and too many of these by everything; return whether it did.

        Each process's outbox is bounded, and this bounds what all of them leave in the file.

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
        """Return all rows of this cache, of any process.

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
        """Return a warning, once for each file, about rows of this prefix for other addresses; or an empty text.

        Such rows are not replayed: the address may be another server, and then its rows must stay.

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
            f"{here.removesuffix(end)} and does not replay them. If that is the same server, use the former address"
        )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def detach(self) -> None:
        """Close a file that was moved away; the next file counts as new, even with the same identity."""
        self.close()
        # File systems reuse the number of a removed file.
        self._identity = None

    def leak_to_parent(self) -> None:
        """Forget the connection without closing it, in a child that was forked while the file was open."""
        if self._connection is not None:
            # Kept forever: closing it would release locks that the parent relies on.
            _LEAKED.append(self._connection)
        self._connection = None

    def unusable(self, error: Exception) -> bool:
        """Return whether an error means that the file is damaged, not that the disk is full or the file locked."""
        code = getattr(error, "sqlite_errorcode", 0)
        return isinstance(error, _ForeignError) or (code & 0xFF) in _UNUSABLE

    def busy(self, error: Exception) -> bool:
        """Return whether an error means that another process locks the file, perhaps for a short time."""
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_BUSY

    def replace(self) -> None:
        """Move an unusable file aside, and create one that reports the loss to each cache; nothing is deleted.

        :raises OSError: if that is not allowed.
        """
        before = self._identity
        self.detach()
        if before is None or before == _identity(self.path):
            # Not if another process has just done so: then the path leads to a good file.
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
        # The journal's thread uses it, and a thread that forks closes it.
        connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection, lossy=lossy)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Create the file if it is missing. SQLite does not, so that the mode, also of its side files, is set here.

        An existing file must only be opened by SQLite. When a process closes any descriptor of a file, it releases all
        its locks on the file, even another connection's: the next connection to close then removes files in use.
        """
        # No connection of this process has it open yet, and all of them pass here first.
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
        # Refused while another process is about to open it: then commits are slower, with the same result, until the
        # file is opened again.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise _ForeignError("it is damaged")
        if lossy:
            connection.execute("INSERT OR IGNORE INTO loss VALUES ('')")

    def _admit_loss(self, connection: sqlite3.Connection) -> None:
        """Invalidate everything, once, if this cache's rows were lost with an earlier file."""
        told = {name for (name,) in connection.execute("SELECT told FROM loss WHERE told IN ('', ?)", (self._cache,))}
        if told == {""}:
            with _Transaction(connection):
                connection.execute("INSERT OR REPLACE INTO loss VALUES (?)", (self._cache,))
                self._insert(connection, "prefixes", self.root)

    @staticmethod
    def _is_new(connection: sqlite3.Connection) -> bool:
        """Return whether the file is still empty.

        :raises _ForeignError: if it is not a journal, or one of a later version.
        """
        (mine,), (version,), (tables,) = (
            connection.execute(question).fetchone()
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if mine == _APPLICATION_ID and version == _FORMAT:
            return False
        if mine or version or tables:
            ours = mine == _APPLICATION_ID
            raise _ForeignError("it is of a later version" if ours else "it is not a journal of this cache")
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
    """A transaction that takes the write lock at once, because two readers that both start to write would conflict."""

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
