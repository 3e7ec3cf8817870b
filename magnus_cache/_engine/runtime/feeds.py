"""Feeds: what changed in a namespace, until one consumer takes it. Bounded: each change waits once.

- A change that waits already is not added again: whoever takes it reads the key afterwards.
- A `Lost` that waits stands for all that follows until it is taken, and so does an `Invalidated` of all values for the
  keys that follow.
- If more changes wait than there is room for, one `Lost` takes the place of all of them.
"""

from collections.abc import Callable
from typing import Any

from magnus_cache._engine.runtime.critical import section
from magnus_cache.changes import Change, Changed, Invalidated, Lost
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Change", "Changed", "Feed", "Invalidated", "Lost"]


class Feed:
    """The changes of one namespace for one consumer. Thread-safe.

    :param most: changes that wait at most.
    :param key_of: returns the key to tell for the name of a value; None for values that the consumer does not want.
    :param local: whether the values of the namespace are in this process alone.
    :ivar watching: whether changes of other processes arrive at present.
    :ivar ready: whether it was decided, once, whether they arrive: what changes from then on is told, or a `Lost` is.
    :ivar ended: whether nothing is added any more.
    :ivar error: why it ended, if the consumer did not end it.
    """

    __slots__ = (
        "_all", "_lock", "_lost", "_pending", "_wakers", "ended", "error", "key_of", "local", "most", "namespace",
        "ready", "watching",
    )  # fmt: skip

    def __init__(self, namespace: str, most: int, key_of: Callable[[bytes], Any], *, local: bool = False) -> None:
        self.namespace = namespace
        self.local = local
        self.most = most
        self.key_of = key_of
        self.watching = self.ready = self.ended = False
        self.error: CacheUnavailableError | None = None
        self._lock = section()
        self._pending: dict[Change, None] = {}
        self._lost = self._all = False
        self._wakers: list[Callable[[], object]] = []

    def __len__(self) -> int:
        """Return how many changes wait."""
        return len(self._pending)

    # -- what is added ------------------------------------------------------------------------------------------

    def changed(self, name: bytes) -> None:
        """Add the change of a value, if the consumer wants it."""
        if self._lost or self._all:
            return
        key = self.key_of(name)
        if key is not None:
            self.put(Changed(self.namespace, key))

    def put(self, change: Change) -> None:
        """Add a change, unless what waits already stands for it."""
        with self._lock:
            if self.ended or self._lost or change in self._pending:
                return
            if len(self._pending) >= self.most and not isinstance(change, Lost):
                change = Lost(self.namespace, "overflow")
            if isinstance(change, Lost):
                self._pending.clear()
                self._lost, self._all = True, False
            elif isinstance(change, Invalidated) and change.tag is None and change.function is None:
                self._all = True
            self._pending[change] = None
            wakers = self._woken()
        _call(wakers)

    def begin(self, *, watching: bool) -> None:
        """Let the consumer start."""
        with self._lock:
            self.watching, self.ready = watching, True
            wakers = self._woken()
        _call(wakers)

    def end(self, error: CacheUnavailableError | None = None) -> None:
        """Add nothing any more, and wake the consumer. Idempotent."""
        with self._lock:
            if not self.ended:
                self.ended, self.watching, self.error = True, False, error
            wakers = self._woken()
        _call(wakers)

    def abandon(self) -> None:
        """End in a forked child, without waking anything of the parent."""
        self._lock = section()
        self.ended, self.watching, self._wakers = True, False, []
        self._pending.clear()

    def _woken(self) -> list[Callable[[], object]]:
        wakers, self._wakers = self._wakers, []
        return wakers

    # -- what the consumer does -----------------------------------------------------------------------------------

    def take(self) -> Change | None:
        """Return the change that waits for longest, None without one."""
        with self._lock:
            for change in self._pending:
                del self._pending[change]
                if isinstance(change, Lost):
                    self._lost = False
                elif isinstance(change, Invalidated) and change.tag is None and change.function is None:
                    self._all = False
                return change
        return None

    def wait(self, wake: Callable[[], object], *, started: bool = True) -> bool:
        """Have a function called once there is something to do; return False, without that, if there is already.

        :param wake: must not block, and may be called from any thread.
        :param started: whether the consumer has started: if not, it waits for that alone.
        """
        with self._lock:
            if self.ended or (bool(self._pending) if started else self.ready):
                return False
            self._wakers.append(wake)
            return True

    def forget(self, wake: Callable[[], object]) -> None:
        """Call a function no more that `wait` was given."""
        with self._lock:
            if wake in self._wakers:
                self._wakers.remove(wake)


def _call(wakers: list[Callable[[], object]]) -> None:
    # Outside of the section: a call on a loop enters code of asyncio, or of another loop.
    for wake in wakers:
        wake()
