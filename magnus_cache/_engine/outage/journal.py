"""The journal of one cache: a copy of its `Outbox` on disk, written by its own thread.

Every change of the outbox is queued under the outbox's lock and written in that order. Callers wait, for a bounded
time, until their invalidations are in the file; event loops never touch the disk. If the disk fails, only the outbox in
memory remains, as without a journal; once the disk works again, the outbox is written again as a whole.

The file is read back whenever a connection to Redis is made. After a connection is lost, no value from Redis is trusted
until the file was read and its invalidations were replayed (`Outbox.mark_unread`).
"""

import asyncio
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Final, get_args

from magnus_cache._engine.outage.journal_file import JournalFile, Known, Row
from magnus_cache._engine.outage.journal_queue import Batch, Change, Flush, JournalQueue, pending
from magnus_cache._engine.outage.outbox import Kind, Outbox
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.log import Warn

__all__ = ["THREAD_NAME", "Journal"]

THREAD_NAME: Final = "magnus-cache-journal"

_STEP: Final = 1_000
"""Names that are recorded at a time, because event loops need the outbox's lock too."""

_MOVES: Final = 5
"""How often other processes may replace the file during one write."""

_RETRY: Final = 1.0
"""Seconds until a failed write is retried, if there is no other request meanwhile."""

_BUSY: Final = 2.0
"""Seconds for which other processes may lock the file before that counts as a failure."""

_LAST: Final = 0.5
"""The same, once the journal is being closed."""

_FORK_WAIT: Final = 1.0
"""Seconds that a fork waits for the end of a transaction."""

_KINDS: Final[Mapping[str, Kind]] = {kind: kind for kind in get_args(Kind)}


class Journal:
    """Keeps an outbox on disk, and reads back what earlier runs and other processes have left there. Thread-safe.

    The first write or read starts its thread, and `close` ends it.

    :param file: the file to write to.
    :param warn: logs a warning: takes a topic, a message and optionally its cause.
    :param timeout: seconds that a caller waits for the disk.
    """

    def __init__(self, file: JournalFile, outbox: Outbox, warn: Warn, timeout: float) -> None:
        self._file = file
        self._outbox = outbox
        self._warn = warn
        self._timeout = timeout
        # Held while the file is in use; a fork waits for it.
        self._busy = threading.Lock()
        self._damaged: tuple[int, int] | None = None
        self._begin()
        outbox.store = self

    def _begin(self) -> None:
        self._lock = section()
        self._queue = JournalQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._until = math.inf
        self._dirty = False
        self._stalled = False
        self._forking = False
        self._kept = 0
        self._written = 0
        self._restored = 0
        self._failures = 0
        self._rows: dict[tuple[Kind, bytes], Known] = {}
        self._rows_of = 0
        self._reading: Flush | None = None

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._file.path

    def as_dict(self) -> dict[str, int]:
        """Return how many rows this outbox has in the file, how many were read back, and how often the disk failed."""
        return {"rows": len(self._rows), "restored": self._restored, "failures": self._failures}

    # -- changes of the outbox -----------------------------------------------------------------------------

    def keep(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        """Write new records."""
        self._kept += 1
        self._queue.change(Change(self._kept, True, kind, positions))

    def begin(self) -> None:
        """Start the thread, unless it was started."""
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
        try:
            with self._lock:
                if self._thread is not None or self._closed:
                    return
                self._thread = thread
            # Without the lock, which it may need.
            thread.start()
        except BaseException as error:
            # Interrupted, or no thread can be started: the next call tries again.
            if self._thread is thread:
                self._thread = None
            if not isinstance(error, RuntimeError) or isinstance(error, RecursionError):
                raise
            self._warn("journal", f"the recovery journal is not written, as its thread cannot be started ({error})")

    def drop(self, kind: Kind, positions: Mapping[bytes, int]) -> None:
        """Delete records that need no replay any more."""
        if self._thread is not None:
            self._queue.change(Change(self._kept, False, kind, positions))

    # -- waiting ----------------------------------------------------------------------------------------------

    def mark_unread(self) -> None:
        """Trust no value from Redis until the file has been read, if it exists."""
        if self._file.exists:
            self._outbox.mark_unread()

    async def written(self) -> None:
        """Return when everything recorded so far is in the file, or with a warning when the disk takes too long."""
        if self._kept != self._written and not self._stalled and not self._closed:
            await self._answered(self._ask(Flush(pending())))

    async def read(self) -> bool:
        """Return whether the outbox holds everything in the file. If False, no value from Redis may be trusted yet.

        Other processes are not affected: an unreadable file may become readable later, or may be empty.
        """
        unread = self._outbox.unread
        if not unread:
            return True
        reading = self._reading
        if reading is None or reading.done.done() or not (self._stalled or reading.unread == unread):
            # While the disk hangs, only one read waits for it at a time.
            reading = self._reading = self._ask(Flush(pending(), unread))
        if not self._stalled:
            await self._answered(reading)
        if self._outbox.unread != unread:
            return True
        self._warn(
            "journal:unread",
            f"the recovery journal {self.path} cannot be read now; until it can, this process trusts no value in Redis "
            "and loads instead. Look for the process that keeps it locked, and let this user read it",
        )
        return False

    def wait(self, timeout: float) -> bool:
        """Block until everything recorded so far is in the file; return whether that was in time.

        :param timeout: seconds.
        """
        try:
            self._ask(Flush(pending())).done.result(timeout)
        except FutureTimeoutError:
            return False
        return True

    async def _answered(self, sync: Flush) -> None:
        done, _ = await asyncio.wait([asyncio.wrap_future(sync.done)], timeout=self._timeout)
        if not done:
            # No other caller waits for a disk that hangs, until it responds again.
            self._stalled = True
            self._warn(
                "journal",
                f"the recovery journal {self.path} takes longer than {self._timeout:g} s; invalidations of an outage "
                "are kept in memory meanwhile. Put MAGNUS_CACHE_RECOVERY_PATH on a local disk",
            )

    # -- the end ----------------------------------------------------------------------------------------------

    def end(self) -> "Future[None] | None":
        """Start closing: queued changes are still written. Return a future of the end, or None without a thread."""
        with self._lock:
            if not self._closed:
                self._until = time.monotonic() + _LAST
            self._closed = True
            if self._thread is None or not self._thread.is_alive():
                return None
            sync = Flush(pending())
            self._queue.ask(sync)
            self._queue.ask(None)
            return sync.done

    async def aclose(self, timeout: float) -> None:
        """Write queued changes, and end the thread.

        :param timeout: seconds to wait for the disk.
        """
        done = self.end()
        if done is not None and (await asyncio.wait([asyncio.wrap_future(done)], timeout=timeout))[0] and self._thread:
            self._thread.join(timeout)

    def close(self, timeout: float) -> None:
        """Write queued changes and end the thread, for a blocking caller.

        :param timeout: seconds to wait for the disk.
        """
        if self.end() is not None and self._thread is not None:
            self._thread.join(timeout)

    # -- forks ------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the file: SQLite's state of its locks must not be copied into another process."""
        if self._busy.acquire(timeout=_FORK_WAIT):
            self._forking = True
            self._file.close()

    def after_fork_in_parent(self) -> None:
        """Continue; the file is opened again when it is needed."""
        if self._forking:
            self._forking = False
            self._busy.release()

    def reset(self) -> None:
        """Start empty in a forked child: the rows belong to its parent."""
        self._file.leak_to_parent()
        self._busy = threading.Lock()
        self._begin()

    # -- the thread -------------------------------------------------------------------------------------------

    def _ask(self, sync: Flush) -> Flush:
        self.begin()
        self._queue.ask(sync)
        return sync

    def _serve(self) -> None:
        last = False
        while not last:
            batch = self._queue.batch(_RETRY if self._dirty else None, whole=self._closed)
            last = batch.last
            with self._busy:
                self._handle(batch)
        with self._busy:
            self._file.close()

    def _handle(self, batch: Batch) -> None:
        changes, waiting = batch.changes, batch.waiting
        unread = [sync.unread for sync in waiting if sync.unread]
        self._dirty = self._dirty or batch.whole
        # Before the outbox is read: everything counted here has been recorded.
        written = self._kept if self._dirty else max((change.number for change in changes), default=self._written)
        try:
            try:
                self._do_patiently(changes, unread)
            except Exception as error:
                if not self._file.unusable(error):
                    raise
                self._replace(error, unread)
                if not unread:
                    self._outbox.mark_unread()
                self._do_patiently(changes, unread)
        # An invalidation that cannot be written must not fail for its caller: it is in memory.
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        else:
            self._stalled = False
        finally:
            self._written = max(written, self._written)
            self._queue.done(changes)
            for sync in waiting:
                sync.done.set_result(None)

    def _do_patiently(self, changes: list[Change], unread: list[int]) -> None:
        """Retry while other processes lock the file, in short steps, so that closing does not wait for them."""
        until = time.monotonic() + _BUSY
        while True:
            try:
                return self._do(changes, unread)
            except sqlite3.Error as error:
                if not self._file.busy(error) or time.monotonic() > min(until, self._until):
                    raise
                # The retry writes the whole outbox.
                self._dirty = True
                time.sleep(0.01)

    def _do(self, changes: list[Change], unread: list[int]) -> None:
        for _ in range(_MOVES):
            if self._file.moved:
                # Moved aside, or removed: no process reads what would be written there.
                self._file.detach()
            self._file.open()
            if self._file.generation != self._rows_of:
                self._rows, self._rows_of, self._dirty = {}, self._file.generation, True
            if self._dirty:
                self._write_all()
            else:
                self._write(changes)
            if unread:
                self._restore(self._file.rows())
                if others := self._file.others():
                    self._warn("journal:others", others)
            if not self._file.moved:
                break
        for number in unread:
            self._outbox.mark_read(number)

    def _write(self, changes: list[Change]) -> None:
        keep: dict[tuple[Kind, bytes], int] = {}
        drop: set[tuple[Kind, bytes]] = set()
        for change in changes:
            for name, position in change.positions.items():
                place = (change.kind, name)
                if change.kept:
                    keep[place] = position
                    continue
                if keep.get(place, position + 1) <= position:
                    del keep[place]
                known = self._rows.get(place)
                if known is not None and known.position <= position:
                    drop.add(place)
        self._change(keep, drop)

    def _write_all(self) -> None:
        """Write the whole outbox, after the file was replaced or could not be written."""
        missed = self._outbox.take()
        # Also records that have a row already: another process deletes its own row after its own replay.
        keep = {(kind, name): position for kind in get_args(Kind) for name, position in getattr(missed, kind).items()}
        self._dirty = False
        self._change(keep, self._rows.keys() - keep.keys())

    def _change(self, keep: Mapping[tuple[Kind, bytes], int], drop: Iterable[tuple[Kind, bytes]]) -> None:
        gone = list(drop)
        if not keep and not gone:
            return
        self._dirty = True
        ids = self._file.change(keep, [self._rows[place].id for place in gone])
        self._dirty = False
        for place in gone:
            del self._rows[place]
        for place, number in ids.items():
            self._rows[place] = Known(keep[place], number)
        if keep and self._file.bound():
            # Namespaces replace names, maybe those of other processes: they need a replay too.
            self._outbox.mark_unread()

    def _restore(self, rows: list[Row]) -> None:
        """Record what other processes, or earlier runs of this one, have left."""
        news: dict[Kind, list[Row]] = {kind: [] for kind in get_args(Kind)}
        damaged: list[Row] = []
        for row in rows:
            kind = _KINDS.get(row.kind)
            if kind is None or not self._outbox.fits(kind, row.name):
                damaged.append(row)
                continue
            known = self._rows.get((kind, row.name))
            if known is None or known.id != row.id:
                news[kind].append(row)
        if damaged:
            # The file was edited, or the disk is bad: everything is invalidated, which covers any meaning.
            position = self._outbox.record_prefix(b"")
            ids = self._file.change([("prefixes", self._file.root)], [row.id for row in damaged])
            for place, number in ids.items():
                self._rows[place] = Known(position, number)
            self._warn(
                "journal:rows",
                f"{len(damaged)} rows of the recovery journal {self.path} cannot be read; they may be about any "
                "key, so all values of this cache count as invalid. Check its disk",
            )
        for kind, found in news.items():
            for start in range(0, len(found), _STEP):
                self._restore_some(kind, found[start : start + _STEP])

    def _restore_some(self, kind: Kind, found: list[Row]) -> None:
        position = self._outbox.restore(kind, [row.name for row in found])
        for row in found:
            self._rows[kind, row.name] = Known(position, row.id)
        self._restored += len(found)

    def _replace(self, error: Exception, unread: list[int]) -> None:
        """Replace a damaged file by a new one; where that is not allowed, invalidate everything, once."""
        damaged = self._file.identity
        try:
            self._file.replace()
        except OSError:
            if damaged is None or damaged != self._damaged:
                self._outbox.record_prefix(b"")
            self._damaged = damaged
            for number in unread:
                self._outbox.mark_read(number)
            raise
        self._say_moved(error)

    def _say_moved(self, error: Exception) -> None:
        if self._file.aside is not None:
            what = f"the recovery journal {self.path} could not be read ({error}) and was moved to "
            then = "; it may have been about any key, so all values of this cache count as invalid"
            self._warn("journal:moved", f"{what}{self._file.aside.name}{then}", error)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        # Also if even opening failed: the requested changes are only in memory.
        self._dirty = True
        self._warn(
            "journal",
            f"the recovery journal {self.path} cannot be used ({error}); invalidations of an outage are kept in memory "
            "only, and end with this process. Make room on the disk, and let this user write to file and folder",
            error,
        )
