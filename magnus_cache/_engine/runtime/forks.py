"""Forks: locks that a child can use, and callbacks around a fork."""

import os
import threading
import weakref
from typing import Final, Protocol

from magnus_cache._engine.runtime.critical import section

__all__ = ["ForkAware", "ForkLock", "ForkQuiesced", "around_fork", "fork_aware", "on_fork_child"]


class ForkAware(Protocol):
    """An object that has to be reset in a forked child."""

    def after_fork(self) -> None:
        """Reset the object in the child."""


class ForkQuiesced(Protocol):
    """An object that must not be in use during a fork."""

    def before_fork(self) -> None:
        """Stop using the resource, in the thread that forks."""

    def after_fork_in_parent(self) -> None:
        """Continue in the parent."""


class ForkLock:
    """A lock for steps that may take long, such as those on a disk; a forked child finds it free.

    Each process has its own lock: the child does not have the thread that would release the parent's. The guarded
    state must be consistent at every step, because the child may see it half-way.
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """Return the lock of this process, for a ``with`` statement: an `__enter__` of Python could be interrupted."""
        # `setdefault` is atomic: two first threads get the same lock.
        return self._locks.setdefault(os.getpid(), threading.Lock())


_FORK_AWARE: Final[weakref.WeakSet[ForkAware]] = weakref.WeakSet()
_QUIESCED: Final[weakref.WeakSet[ForkQuiesced]] = weakref.WeakSet()
_registered = False


def on_fork_child(thing: ForkAware) -> None:
    """Call the object's `after_fork` in every child that this process forks, as long as the object lives."""
    with section():
        _FORK_AWARE.add(thing)
        _register()


def fork_aware() -> list[ForkAware]:
    """Return the living objects that `on_fork_child` has registered."""
    with section():
        return list(_FORK_AWARE)


def around_fork(thing: ForkQuiesced) -> None:
    """Call the object's methods before and after every fork of this process, as long as the object lives."""
    with section():
        _QUIESCED.add(thing)
        _register()


def _register() -> None:
    global _registered
    # Registered with the first one, not at import: importing this package has no side effect.
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
        _registered = True


def _before() -> None:
    for thing in list(_QUIESCED):
        thing.before_fork()


def _in_parent() -> None:
    for thing in list(_QUIESCED):
        thing.after_fork_in_parent()


def _in_child() -> None:
    for thing in list(_FORK_AWARE):
        thing.after_fork()
