"""Forks: locks that a child can use, and what it has to begin anew."""

import os
import threading
import weakref
from types import TracebackType
from typing import Final, Protocol

__all__ = ["ForkLock", "Forked", "watch"]


class Forked(Protocol):
    """What does not survive a fork unchanged."""

    def after_fork(self) -> None:
        """Begin anew in the child."""


class ForkLock:
    """A lock that a forked child finds free, whoever held it in the parent.

    One lock for each process: the thread that would have to let go of the parent's does not exist in the child.
    What it guards must be in order at every step, as the child may see it half-way.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        # `setdefault` is one step: of two threads that come first, both get the same lock.
        self._locks.setdefault(os.getpid(), threading.Lock()).acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._locks[os.getpid()].release()


_WATCHED: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()
_lock: Final = ForkLock()
_watching = False


def watch(thing: Forked) -> None:
    """Have `after_fork` called in every child that this process forks, as long as the thing lives."""
    global _watching
    with _lock:
        _WATCHED.add(thing)
        # Registered with the first one, not at import: importing this package has no side effect.
        if not _watching and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_in_child)
            _watching = True


def _in_child() -> None:
    for thing in list(_WATCHED):
        thing.after_fork()
