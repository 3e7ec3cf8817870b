"""The accesses of one cache while they are recorded, in memory: what a writer takes from here goes to a file.

A record is a tuple with the time, its kind and a reference, appended to a deque: no lock is taken, nothing is hashed,
no name is looked up. `access_writer` does all that in a thread of its own. The deque is bounded: when more comes than
the writer takes, records are counted as lost.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from magnus_cache._engine.runtime.access_format import Kind
from magnus_cache._engine.runtime.clock import Clock

__all__ = ["AccessLog", "RawRecord", "StoredValue"]

_MOST: Final = 500_000
"""Records that wait for the writer at most: a tenth of a gigabyte of Python's objects."""


class StoredValue(NamedTuple):
    """What is recorded of a value as it is stored."""

    record: Any
    """The `Record` of the store, which has its size and tags; None if only the fact is known."""
    ttl: float
    loaded: bool


class RawRecord(NamedTuple):
    """A record before it is hashed. Plain tuples of this form are appended, which are made ten times as fast."""

    at: float
    kind: Kind
    what: Any
    """A `KeyRef`, or the bytes of a name, or None."""
    detail: Any


# Looking members up in the class costs more than all the rest.
_NEAR, _FAR, _MISS = Kind.NEAR_HIT, Kind.FAR_HIT, Kind.MISS
_BY_EVENT: Final = {"Miss": Kind.MISS, "StaleServed": Kind.STALE, "ErrorServed": Kind.ERROR}


class AccessLog:
    """Notes what happens to one cache, for a writer. Thread-safe; called by `Observers`, in the caller's thread.

    :param wake: called when there is something to write and nothing is written yet; starts the writer.
    :ivar lost: records that were left out.
    """

    def __init__(self, clock: Clock, wake: Callable[[], object]) -> None:
        self._clock = clock
        self._wake = wake
        self.reset()

    def reset(self) -> None:
        """Forget what waits, as in a forked child: its parent writes it."""
        self.waiting: deque[tuple[float, Kind, Any, Any]] = deque()
        self.awake = False
        self.lost = 0

    def _add(self, kind: Kind, what: Any, detail: Any = None) -> None:
        waiting = self.waiting
        if not self.awake:
            self._wake()
        if len(waiting) < _MOST:
            waiting.append((self._clock(), kind, what, detail))
        else:
            self.lost += 1

    def found(self, ref: Any, *, hit: bool, near: bool) -> None:
        """Note what a caller has found."""
        # `_add`, written out: a hit in memory takes little more than this.
        waiting = self.waiting
        if not self.awake:
            self._wake()
        if len(waiting) < _MOST:
            waiting.append((self._clock(), (_NEAR if near else _FAR) if hit else _MISS, ref, None))
        else:
            self.lost += 1

    def happened(self, event: str, ref: Any, fields: Sequence[Any]) -> None:
        """Note an event about a value, by its name and its fields beside the key."""
        if event == "Hit":
            self._add(_NEAR if fields[0] == "l1" else _FAR, ref)
        elif (kind := _BY_EVENT.get(event)) is not None:
            self._add(kind, ref)

    def loaded(self, name: bytes, duration: float, *, failed: bool) -> None:
        """Note the end of a load, in seconds."""
        self._add(Kind.LOAD, name, (duration, failed))

    def stored(self, ref: Any, value: StoredValue) -> None:
        """Note that a value is stored."""
        self._add(Kind.STORE, ref, value)

    def touched(self, name: bytes, ttl: float) -> None:
        """Note the new time to live of a value, in seconds."""
        self._add(Kind.TOUCH, name, ttl)

    def deleted(self, names: Iterable[bytes]) -> None:
        """Note that the program has removed values."""
        for name in names:
            self._add(Kind.DELETE, name)

    def cleared(self, scope: Any) -> None:
        """Note that the program has cleared what a `ClearScope` covers."""
        self._add(Kind.CLEAR, None, scope)

    def invalidated(self, tags: Sequence[str]) -> None:
        """Note that the program has invalidated tags."""
        self._add(Kind.TAGS, None, tuple(tags))
