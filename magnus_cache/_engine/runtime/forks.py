"""Forks: locks that a child can use, and what it has to begin anew."""

import os
import threading
import weakref
from typing import Final, Protocol

from magnus_cache._engine.runtime.critical import section

__all__ = ["ForkAware", "ForkLock", "ForkQuiesced", "part", "watch", "watched"]


class ForkAware(Protocol):
    """What does not survive a fork unchanged."""

    def after_fork(self) -> None:
        """Begin anew in the child."""


class ForkQuiesced(Protocol):
    """What must not be in use at the moment of a fork."""

    def before_fork(self) -> None:
        """Get ready, in the thread that forks."""

    def after_fork_in_parent(self) -> None:
        """Go on in the parent."""


class ForkLock:
    """A lock for steps that may take long, such as those on a disk, and that a forked child finds free.

    One lock for each process: the thread that would have to let go of the parent's does not exist in the child.
    What it guards must be in order at every step, as the child may see it half-way.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """Return the lock of this process, for a ``with`` statement: an `__enter__` of Python could be interrupted."""
        # `setdefault` is one step: of two threads that come first, both get the same lock.
        return self._locks.setdefault(os.getpid(), threading.Lock())


_WATCHED: Final[weakref.WeakSet[ForkAware]] = weakref.WeakSet()
_PARTED: Final[weakref.WeakSet[ForkQuiesced]] = weakref.WeakSet()
_watching = False


def watch(thing: ForkAware) -> None:
    """Have `after_fork` called in every child that this process forks, as long as the thing lives."""
    with section():
        _WATCHED.add(thing)
        _register()


def watched() -> list[ForkAware]:
    """Return the things that `watch` was told of and that live."""
    with section():
        return list(_WATCHED)


def part(thing: ForkQuiesced) -> None:
    """Have a thing told before and after every fork of this process, as long as it lives."""
    with section():
        _PARTED.add(thing)
        _register()


def _register() -> None:
    global _watching
    # Registered with the first one, not at import: importing this package has no side effect.
    if not _watching and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
        _watching = True


def _before() -> None:
    for thing in list(_PARTED):
        thing.before_fork()


def _in_parent() -> None:
    for thing in list(_PARTED):
        thing.after_fork_in_parent()


def _in_child() -> None:
    for thing in list(_WATCHED):
        thing.after_fork()
