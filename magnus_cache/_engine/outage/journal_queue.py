"""The bounded queue of a journal's thread. What does not fit is written from the outbox as a whole."""

from collections.abc import Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, TypeAlias

from magnus_cache._engine.outage.outbox import MOST_NAMES, Kind

__all__ = ["Batch", "Change", "Flush", "JournalQueue", "pending"]

_AT_ONCE: Final = 1_000
"""Requests that are written in one transaction at most."""

_MOST: Final = 2 * MOST_NAMES
"""Names in the queue at most; past this limit the whole outbox is written, which is bounded itself."""


class Change(NamedTuple):
    """Records that were added, or that need no replay any more.

    :ivar number: how many additions there had been by then.
    """

    number: int
    kept: bool
    kind: Kind
    positions: Mapping[bytes, int]


class Flush(NamedTuple):
    """A request to report when everything before it is written, and, with `unread`, when the whole file was read."""

    done: "Future[None]"
    unread: int = 0


_Request: TypeAlias = Change | Flush | None
"""None asks the thread to end."""


class Batch(NamedTuple):
    """The next requests for the thread.

    :ivar whole: whether changes are missing, so that the whole outbox has to be written.
    :ivar last: whether the thread has to end afterwards.
    """

    changes: list[Change]
    waiting: list[Flush]
    whole: bool
    last: bool


class JournalQueue:
    """Requests of any thread to the journal's thread, in order. Changes are added under the outbox's lock."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._skipped = False
        # Each is counted by one thread at a time: names added, and names processed.
        self._added = 0
        self._done = 0

    def change(self, change: Change) -> None:
        """Add a change, unless the queue is full: then the change is found in the outbox."""
        if self._added - self._done < _MOST:
            self._added += len(change.positions)
            self._requests.put(change)
        elif not self._skipped:
            self._skipped = True
            # The thread must wake for it, even if it has just emptied the queue.
            self._requests.put(Flush(pending()))

    def ask(self, request: Flush | None) -> None:
        """Add a flush, or with None the end."""
        self._requests.put(request)

    def batch(self, timeout: float | None, *, whole: bool) -> Batch:
        """Return the next requests; after `timeout` seconds without any, an empty batch.

        :param whole: take all requests at once.
        """
        try:
            requests = [self._requests.get(timeout=timeout)]
        except Empty:
            return Batch([], [], whole=False, last=False)
        # In this order, and then the whole queue: a change skipped from here on causes another write of the whole
        # outbox, and no row is written later whose deletion was skipped.
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
        """Make room for more, because these changes were processed."""
        self._done += sum(len(change.positions) for change in changes)


def pending() -> "Future[None]":
    """Return a future that waiting callers cannot cancel."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()
    return done
