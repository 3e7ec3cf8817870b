"""What waits for a journal's thread: bounded, as the record is that all of it can be written from."""

from collections.abc import Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, TypeAlias

from magnus_cache._engine.outage.outbox import MOST_NAMES, Kind

__all__ = ["Batch", "Change", "Flush", "JournalQueue", "pending"]

_AT_ONCE: Final = 1_000
"""Requests that are written in one transaction at most."""

_MOST: Final = 2 * MOST_NAMES
"""Names that wait to be written at most; beyond, the record is written as a whole, which is bounded itself."""


class Change(NamedTuple):
    """Something that was recorded, or need not be told any more.

    :ivar number: how much had been recorded by then.
    """

    number: int
    kept: bool
    kind: Kind
    marks: Mapping[bytes, int]


class Flush(NamedTuple):
    """Somebody who waits until all before it is written; and, if he asks for it, until all there is has been read."""

    done: "Future[None]"
    doubt: int = 0


_Request: TypeAlias = Change | Flush | None
"""None asks the thread to end."""


class Batch(NamedTuple):
    """What is to be done next.

    :ivar whole: whether changes are missing, so that the record is to be written as a whole.
    :ivar last: whether the thread is to end then.
    """

    changes: list[Change]
    waiting: list[Flush]
    whole: bool
    last: bool


class JournalQueue:
    """What any thread asks one thread to do, in its order. Changes are added under the record's lock."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._skipped = False
        # Each is counted by one thread at a time: names that went in, and those that are dealt with.
        self._added = 0
        self._done = 0

    def change(self, change: Change) -> None:
        """Add a change, unless there are too many: then it is found in the record."""
        if self._added - self._done < _MOST:
            self._added += len(change.marks)
            self._requests.put(change)
        elif not self._skipped:
            self._skipped = True
            # The thread must hear of it, even if it has emptied the queue just now.
            self._requests.put(Flush(pending()))

    def ask(self, request: Flush | None) -> None:
        """Add somebody who waits, or the end."""
        self._requests.put(request)

    def batch(self, timeout: float | None, *, whole: bool) -> Batch:
        """Wait for something to do; after `timeout` seconds, that is nothing.

        :param whole: asks for all there is at once.
        """
        try:
            requests = [self._requests.get(timeout=timeout)]
        except Empty:
            return Batch([], [], whole=False, last=False)
        # In this order, and then all there is: what is skipped from here on makes the record be written once more, and
        # no row is written later whose end is missing.
        whole, self._skipped = whole or self._skipped, False
        while requests[-1] is not None and (whole or len(requests) < _AT_ONCE):
            try:
                requests.append(self._requests.get_nowait())
            except Empty:
                break
        changes = [request for request in requests if isinstance(request, Change)]
        waiting = [request for request in requests if isinstance(request, Flush)]
        return Batch(changes, waiting, whole, last=requests[-1] is None)

    def done(self, changes: list[Change]) -> None:
        """Make room, as these are dealt with."""
        self._done += sum(len(change.marks) for change in changes)


def pending() -> "Future[None]":
    """Return a future that nobody who waits for it can cancel."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()
    return done
