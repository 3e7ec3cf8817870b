"""Stamped values: a value with the moment at which its load began, its age, and where it came from.

A call that wants stamps passes a `Note` along with its request. Whoever finds or loads the value writes on it, on slow
paths only, and the call makes a `Stamped` of it as it returns: then the age is that of the moment of the return.
"""

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.store.records import Began

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["Level", "Note", "Stamped"]

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_LATEST: Final = 253_402_300_799 * MICROSECONDS
"""Microseconds of the epoch: the last second that a `datetime` can have."""

Level: TypeAlias = Literal["l1", "l2", "load"]
"""Where a value came from: the memory of this process, Redis, or a load of this process."""


class Stamped(NamedTuple, Generic[T]):
    """A value, with when its load began and how old it is. It unpacks as a tuple.

    The source was asked after `as_of`, so what it said before is no later than the value. Of a value that was given to
    `set`, `as_of` is when that call began; of a counter, when it was created.

    :ivar value: the value.
    :ivar as_of: when its load began, by the clock of Redis, as an aware datetime in UTC; the clock of this host counts
        without Redis, and until it was reached for the first time. It is the same in all processes. A value without
        that in its header counts as one of 1970.
    :ivar age: seconds since `as_of`, at the moment of the return, by the clock of Redis; 0 or more.
    :ivar level: where it came from: ``"l1"``, memory; ``"l2"``, Redis, also if the call waited there for another
        process to load it; ``"load"``, a load of this process, this call's own or one that it joined.
    :ivar stale: whether it is past its TTL, and was served within its grace.
    """

    value: T
    as_of: datetime
    age: float
    level: Level
    stale: bool


class Note:
    """What a call is told of the value that it gets."""

    __slots__ = ("_began", "_level", "_stale")

    def __init__(self) -> None:
        # Nothing of it is used before a value is found or loaded.
        self._began = Began.elsewhere(0)
        self._level: Level = "load"
        self._stale = False

    @classmethod
    def of(cls, entry: Entry, *, near: bool) -> "Note":
        """Return a note of a fresh value that was found; see `found`."""
        self = cls()
        self.found(entry, near=near)
        return self

    def found(self, entry: Entry, *, near: bool, stale: bool = False) -> None:
        """Note that a value was found.

        :param near: whether it was in memory.
        :param stale: whether it is past its TTL.
        """
        self._began, self._level, self._stale = Began.elsewhere(entry.as_of), "l1" if near else "l2", stale

    def loaded(self, began: Began | None) -> None:
        """Note that a value was loaded.

        :param began: when the load began, here or in another process.
        """
        self._began = Began.elsewhere(0) if began is None else began
        self._level = "l2" if began is not None and began.at == -math.inf else "load"
        self._stale = False

    def stamped(self, value: T, state: "State", name: bytes) -> Stamped[T]:
        """Return the value with its stamp, at the moment of the return.

        :param name: the name of the value in Redis.
        """
        time, began = state.topology.time_of(name), self._began
        # One that was stored has the same moment in its header.
        as_of = began.as_of if began.as_of or began.at == -math.inf else began.told(time)
        age = max(0.0, (time.at(state.clock()) - as_of) / MICROSECONDS)
        return Stamped(value, _EPOCH + timedelta(microseconds=min(as_of, _LATEST)), age, self._level, self._stale)
