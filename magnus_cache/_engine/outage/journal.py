"""The journal of one cache: what its `Outbox` holds, kept on disk by a thread of its own.

Every change of the record is queued under the record's lock and written in that order. Callers wait, for a bounded
time, until what they have invalidated is in the file; event loops never touch the disk. If the disk fails, the record
in memory is all there is, as without a journal; once the disk works again, it is written anew.

What is in the file is read back whenever a connection to Redis is made. From the moment that one is lost until that is
done, and Redis has been told, nothing that Redis says is believed (`Outbox.begin_doubt`).
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
"""Names that are recorded at a time: the record's lock is wanted by event loops too."""

_MOVES: Final = 5
"""How often a file may be replaced by others while something is written to it."""

_RETRY: Final = 1.0
"""Seconds until what could not be written is tried again, if nothing else is asked for meanwhile."""

_BUSY: Final = 2.0
"""Seconds that a file may be locked by others until that counts as a failure."""

_LAST: Final = 0.5
"""Seconds that remain for that once the journal is being closed."""

_FORK_WAIT: Final = 1.0
"""Seconds that a fork waits for the end of a transaction."""

_KINDS: Final[Mapping[str, Kind]] = {kind: kind for kind in get_args(Kind)}


class Journal:
    """Keeps a record on disk, and reads back what other lives and processes have left there. Thread-safe.

    Its thread is started by the first thing there is to write or to read, and ended by `close`.

    :param file: where to.
    :param warn: takes a topic, a message and perhaps what caused it, once in a while.
    :param timeout: seconds that a caller waits for the disk.
    """

    def __init__(self, file: JournalFile, outbox: Outbox, warn: Warn, timeout: float) -> None:
        self._file = file
        self._recovery = outbox
        self._warn = warn
        self._timeout = timeout
        # Held while the file is in use; whoever forks waits for it.
        self._busy = threading.Lock()
        self._damaged: tuple[int, int] | None = None
        self._begin()
        outbox.keeper = self

    def _begin(self) -> None:
        self._lock = section()
        self._queue = JournalQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._until = math.inf
        self._behind = False
        self._late = False
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
        """Where the file is."""
        return self._file.path

    def figures(self) -> dict[str, int]:
        """Return how many rows stand for this record, how many were read back, and how often the disk failed."""
        return {"rows": len(self._rows), "restored": self._restored, "failures": self._failures}

    # -- what the record tells us -----------------------------------------------------------------------------

    def keep(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        """Write what was recorded."""
        self._kept += 1
        self._queue.change(Change(self._kept, True, kind, marks))

    def begin(self) -> None:
        """Start the thread, unless it was."""
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
            # Interrupted, or there can be no thread: the next one tries again.
            if self._thread is thread:
                self._thread = None
            if not isinstance(error, RuntimeError) or isinstance(error, RecursionError):
                raise
            self._warn("journal", f"the recovery journal is not written, as its thread cannot be started ({error})")

    def drop(self, kind: Kind, marks: Mapping[bytes, int]) -> None:
        """Delete what need not be told any more."""
        if self._thread is not None:
            self._queue.change(Change(self._kept, False, kind, marks))

    # -- waiting ----------------------------------------------------------------------------------------------

    def begin_doubt(self) -> None:
        """Distrust Redis until what is in the file has been read, if there is one."""
        if self._file.exists:
            self._recovery.begin_doubt()

    async def written(self) -> None:
        """Return once all that was recorded so far is in the file; or when the disk takes too long, having said so."""
        if self._kept != self._written and not self._late and not self._closed:
            await self._answered(self._ask(Flush(pending())))

    async def read(self) -> bool:
        """Return whether the record holds all that is in the file; if not in time, nothing is to be believed yet.

        Nothing is told to others for that: what nobody here can read now may be read later, or hold nothing at all.
        """
        doubt = self._recovery.doubt
        if not doubt:
            return True
        reading = self._reading
        if reading is None or reading.done.done() or not (self._late or reading.doubt == doubt):
            # While the disk hangs, one waits for it at a time.
            reading = self._reading = self._ask(Flush(pending(), doubt))
        if not self._late:
            await self._answered(reading)
        if self._recovery.doubt != doubt:
            return True
        self._warn(
            "journal:unread",
            f"the recovery journal {self.path} cannot be read now; until it can, nothing that Redis has is believed by "
            "this process, whose loads go on. Look for who keeps it locked, and let this user read it",
        )
        return False

    def wait(self, timeout: float) -> bool:
        """Block until all that was recorded so far is in the file; return whether that was in time.

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
            # Nobody else waits for a disk that hangs, until it has moved on.
            self._late = True
            self._warn(
                "journal",
                f"the recovery journal {self.path} takes longer than {self._timeout:g} s; invalidations of an outage "
                "are kept in memory meanwhile. Put MAGNUS_CACHE_RECOVERY_PATH on a local disk",
            )

    # -- the end ----------------------------------------------------------------------------------------------

    def end(self) -> "Future[None] | None":
        """Begin to end: what is queued is still written. Returns what tells the end, if there is one to wait for."""
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
        """Write what is queued, and end the thread.

        :param timeout: seconds to wait for the disk.
        """
        done = self.end()
        if done is not None and (await asyncio.wait([asyncio.wrap_future(done)], timeout=timeout))[0] and self._thread:
            self._thread.join(timeout)

    def close(self, timeout: float) -> None:
        """Do what `aclose` does, for a thread.

        :param timeout: seconds to wait for the disk.
        """
        if self.end() is not None and self._thread is not None:
            self._thread.join(timeout)

    # -- forks ------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the file: SQLite's idea of what is locked must not be copied into another process."""
        if self._busy.acquire(timeout=_FORK_WAIT):
            self._forking = True
            self._file.close()

    def after_fork_in_parent(self) -> None:
        """Go on; the file is opened again when it is needed."""
        if self._forking:
            self._forking = False
            self._busy.release()

    def reset(self) -> None:
        """Begin anew in a forked child: the rows are its parent's."""
        self._file.abandon()
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
            batch = self._queue.batch(_RETRY if self._behind else None, whole=self._closed)
            last = batch.last
            with self._busy:
                self._handle(batch)
        with self._busy:
            self._file.close()

    def _handle(self, batch: Batch) -> None:
        changes, waiting = batch.changes, batch.waiting
        doubts = [sync.doubt for sync in waiting if sync.doubt]
        self._behind = self._behind or batch.whole
        # Before the record is looked at: what is kept has been recorded.
        written = self._kept if self._behind else max((change.number for change in changes), default=self._written)
        try:
            try:
                self._do_patiently(changes, doubts)
            except Exception as error:
                if not self._file.unusable(error):
                    raise
                self._replace(error, doubts)
                if not doubts:
                    self._recovery.begin_doubt()
                self._do_patiently(changes, doubts)
        # An invalidation that cannot be written must not fail for its caller: it stands in memory.
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        else:
            self._late = False
        finally:
            self._written = max(written, self._written)
            self._queue.done(changes)
            for sync in waiting:
                sync.done.set_result(None)

    def _do_patiently(self, changes: list[Change], doubts: list[int]) -> None:
        """Try again while others have the file locked, in steps: the end must not wait for them."""
        until = time.monotonic() + _BUSY
        while True:
            try:
                return self._do(changes, doubts)
            except sqlite3.Error as error:
                if not self._file.busy(error) or time.monotonic() > min(until, self._until):
                    raise
                # What was begun is done as a whole.
                self._behind = True
                time.sleep(0.01)

    def _do(self, changes: list[Change], doubts: list[int]) -> None:
        for _ in range(_MOVES):
            if self._file.moved:
                # Moved aside, or removed: what is written there is where nobody looks for it.
                self._file.forsake()
            self._file.open()
            if self._file.generation != self._rows_of:
                self._rows, self._rows_of, self._behind = {}, self._file.generation, True
            if self._behind:
                self._write_all()
            else:
                self._write(changes)
            if doubts:
                self._restore(self._file.rows())
                if others := self._file.others():
                    self._warn("journal:others", others)
            if not self._file.moved:
                break
        for doubt in doubts:
            self._recovery.believe(doubt)

    def _write(self, changes: list[Change]) -> None:
        keep: dict[tuple[Kind, bytes], int] = {}
        drop: set[tuple[Kind, bytes]] = set()
        for change in changes:
            for name, mark in change.marks.items():
                place = (change.kind, name)
                if change.kept:
                    keep[place] = mark
                    continue
                if keep.get(place, mark + 1) <= mark:
                    del keep[place]
                known = self._rows.get(place)
                if known is not None and known.mark <= mark:
                    drop.add(place)
        self._change(keep, drop)

    def _write_all(self) -> None:
        """Bring the file up to the record, after it was another one, or could not be written."""
        missed = self._recovery.take()
        # Also what there is a row of: if that is another process's, it goes when that one has told Redis of its own.
        keep = {(kind, name): mark for kind in get_args(Kind) for name, mark in getattr(missed, kind).items()}
        self._behind = False
        self._change(keep, self._rows.keys() - keep.keys())

    def _change(self, keep: Mapping[tuple[Kind, bytes], int], drop: Iterable[tuple[Kind, bytes]]) -> None:
        gone = list(drop)
        if not keep and not gone:
            return
        self._behind = True
        ids = self._file.change(keep, [self._rows[place].id for place in gone])
        self._behind = False
        for place in gone:
            del self._rows[place]
        for place, number in ids.items():
            self._rows[place] = Known(keep[place], number)
        if keep and self._file.bound():
            # Namespaces stand for what was written by name, maybe by others: they are to be told too.
            self._recovery.begin_doubt()

    def _restore(self, rows: list[Row]) -> None:
        """Record what others have left, and what this process recorded in another life."""
        news: dict[Kind, list[Row]] = {kind: [] for kind in get_args(Kind)}
        damaged: list[Row] = []
        for row in rows:
            kind = _KINDS.get(row.kind)
            if kind is None or not self._recovery.fits(kind, row.name):
                damaged.append(row)
                continue
            known = self._rows.get((kind, row.name))
            if known is None or known.id != row.id:
                news[kind].append(row)
        if damaged:
            # Somebody has edited the file, or the disk is bad: whatever was meant, everything covers it.
            mark = self._recovery.record_prefix(b"")
            ids = self._file.change([("prefixes", self._file.root)], [row.id for row in damaged])
            for place, number in ids.items():
                self._rows[place] = Known(mark, number)
            self._warn(
                "journal:rows",
                f"{len(damaged)} rows of the recovery journal {self.path} cannot be read; they may be about any "
                "key, so all values of this cache count as invalid. Check its disk",
            )
        for kind, found in news.items():
            for start in range(0, len(found), _STEP):
                self._restore_some(kind, found[start : start + _STEP])

    def _restore_some(self, kind: Kind, found: list[Row]) -> None:
        mark = self._recovery.restore(kind, [row.name for row in found])
        for row in found:
            self._rows[kind, row.name] = Known(mark, row.id)
        self._restored += len(found)

    def _replace(self, error: Exception, doubts: list[int]) -> None:
        """Have a new file instead of a damaged one; where that is not allowed, everything is distrusted, once."""
        damaged = self._file.identity
        try:
            self._file.replace()
        except OSError:
            if damaged is None or damaged != self._damaged:
                self._recovery.record_prefix(b"")
            self._damaged = damaged
            for doubt in doubts:
                self._recovery.believe(doubt)
            raise
        self._say_moved(error)

    def _say_moved(self, error: Exception) -> None:
        if self._file.aside is not None:
            what = f"the recovery journal {self.path} could not be read ({error}) and was moved to "
            then = "; it may have been about any key, so all values of this cache count as invalid"
            self._warn("journal:moved", f"{what}{self._file.aside.name}{then}", error)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        # Also where not even opening it was possible: what was asked for is in the record alone.
        self._behind = True
        self._warn(
            "journal",
            f"the recovery journal {self.path} cannot be used ({error}); invalidations of an outage are kept in memory "
            "only, and end with this process. Make room on the disk, and let this user write to file and folder",
            error,
        )
