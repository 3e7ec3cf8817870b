"""Critical sections: short steps that one thread of the process makes at a time.

A signal handler or a finalizer interrupts its thread at any point, and may call the cache there. So all sections of
the process share one lock, which is reentrant and knows its owner:

- The same thread can enter a section that it has interrupted. Such a call only removes (an entry, a placeholder, a
  load from the registry). Every section tolerates a removal between any two of its calls.
- `engaged` returns whether the calling thread is within a section. Such a call must not wait for another thread, which
  may need the section: the operations of `api/blocking` defer or refuse their work then.

A section calls no user code and waits for nothing. It is entered by a ``with`` statement on the lock itself: CPython
runs no signal handler between taking a lock of C and the body, but may run one in an `__enter__` of Python.
"""

import os
import sys
import threading
from contextlib import AbstractContextManager
from typing import Any, Final

from magnus_cache.errors import CacheClosedError, CacheDeadlockError

__all__ = ["check_waiting", "engaged", "section"]

_locks: Final[dict[int, Any]] = {}
"""By process: a forked child does not have the thread that would release the parent's lock."""


def section() -> AbstractContextManager[object]:
    """Return the lock of all critical sections of this process; another one in a forked child."""
    process = os.getpid()
    lock = _locks.get(process)
    # `setdefault` is atomic: two first threads get the same lock.
    return _locks.setdefault(process, threading.RLock()) if lock is None else lock  # type: ignore[no-any-return]


def engaged() -> bool:
    """Return whether the calling thread is within a critical section: it runs a signal handler or a finalizer."""
    lock = _locks.get(os.getpid())
    # `threading.Condition` uses the same method.
    return lock is not None and lock._is_owned()


def check_waiting() -> None:
    """Check that the calling thread may wait for another one.

    :raises CacheDeadlockError: within a critical section: the other thread may need it.
    :raises CacheClosedError: while the interpreter shuts down: the other threads do not run any more.
    """
    if sys.is_finalizing():
        raise CacheClosedError(
            "the interpreter is shutting down; use the cache before its end, or in an atexit handler"
        )
    if engaged():
        raise CacheDeadlockError(
            "a signal handler or a finalizer has interrupted the cache in this thread, and cannot wait for it; "
            "have the handler set a flag, and call the cache where the flag is checked"
        )
