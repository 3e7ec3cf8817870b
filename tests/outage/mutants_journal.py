"""The guards that `test_journal` sees missing."""

import asyncio
import math
import os
from typing import Any, Final

from magnus_cache._engine.outage import journal, journal_file, journal_queue, outbox
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/outage/test_journal.py"


@guard(HERE)
def without_doubt_until_the_journal_is_read() -> None:
    put(outbox.Outbox, "mark_unread", nothing)


@guard(HERE)
def without_waiting_for_the_journal() -> None:
    async def written(_: Any) -> None:
        return None

    put(journal.Journal, "written", written)


@guard(HERE)
def without_a_new_id_for_what_is_recorded_again() -> None:
    original = journal_file.JournalFile._insert

    def insert(self: Any, connection: Any, kind: str, name: bytes) -> int:
        found = connection.execute("SELECT id FROM missed WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        return found[0] if found else original(self, connection, kind, name)

    put(journal_file.JournalFile, "_insert", insert)


@guard(HERE)
def without_a_bound_on_what_processes_leave_together() -> None:
    put(journal_file.JournalFile, "bound", lambda _: False)


@guard(HERE)
def without_distrust_after_a_damaged_journal() -> None:
    put(journal_file.JournalFile, "_admit_loss", nothing)


@guard(HERE)
def without_a_look_where_the_journal_is() -> None:
    put(journal_file.JournalFile, "moved", False)


@guard(HERE)
def without_writing_the_journal_anew() -> None:
    put(journal.Journal, "_write_all", lambda self: put(self, "_dirty", False))


@guard(HERE)
def without_the_bound_on_waiting_for_the_disk() -> None:
    async def answered(_: Any, sync: Any) -> None:
        await asyncio.wrap_future(sync.done)

    put(journal.Journal, "_answered", answered)


@guard(HERE)
def without_dropping_what_was_told_from_the_journal() -> None:
    put(journal.Journal, "drop", nothing)


@guard(HERE)
def without_leaving_an_open_journal_to_sqlite() -> None:
    def make(self: Any) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    put(journal_file.JournalFile, "_make", make)


@guard(HERE)
def without_a_look_at_what_rows_say() -> None:
    put(outbox.Outbox, "fits", lambda *_: True)


@guard(HERE)
def without_telling_a_journal_that_is_locked_from_a_damaged_one() -> None:
    original = journal.Journal.read

    async def read(self: Any) -> bool:
        doubt = self._outbox.unread
        if not await original(self):
            self._outbox.record_prefix(b"")
            self._outbox.mark_read(doubt)
        return True

    put(journal.Journal, "read", read)


@guard(HERE)
def without_another_attempt_to_write_the_journal() -> None:
    original = journal.Journal._failed

    def failed(self: Any, error: Exception) -> None:
        behind = self._dirty
        original(self, error)
        self._dirty = behind

    put(journal.Journal, "_failed", failed)


@guard(HERE)
def without_a_bound_on_what_waits_for_the_journal() -> None:
    put(journal_queue, "_MOST", math.inf)


@guard(HERE)
def without_a_bound_on_the_last_wait_for_a_locked_journal() -> None:
    put(journal, "_LAST", math.inf)


@guard(HERE)
def without_patience_with_a_locked_journal() -> None:
    put(journal, "_BUSY", 0)


@guard(HERE)
def without_a_look_at_what_waits_for_other_addresses() -> None:
    put(journal_file.JournalFile, "others", lambda _: "")
