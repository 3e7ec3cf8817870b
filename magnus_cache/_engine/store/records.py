"""Key references, records of values, and the MISS and LARGE sentinels."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self, TypeAlias

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache.freshness import NO_POLICY, Freshness

__all__ = ["LARGE", "MISS", "Began", "KeyRef", "Large", "Lifespan", "Missing", "Record", "TagState", "age_of"]


class Missing:
    """The type of `MISS`, the result of a miss. None is a value like any other."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISS"


MISS: Final = Missing()


class Large:
    """The type of `LARGE`, which stands for a value that takes too long to decode in one step."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "LARGE"


LARGE: Final = Large()


class KeyRef:
    """The reference of a value: its name in Redis, its namespace, and the epochs and counters of the namespace.

    :ivar freshness: the freshness policy of the namespace, or of the call.
    :ivar others: for a sealed value, if there are several keys: a reference for the name by each key, this one's first.
    :ivar is_far: whether the value is never kept in memory, is not sealed, and has no freshness policy and no codec:
        a read needs its payload only.
    """

    __slots__ = ("counters", "epoch_names", "freshness", "is_far", "name", "namespace", "others")

    def __init__(
        self, namespace: Namespace, name: bytes, counters: Counters, epoch_names: EpochNames, freshness: Freshness,
        others: "tuple[KeyRef, ...]" = (),
    ) -> None:  # fmt: skip
        self.namespace = namespace
        self.freshness = freshness
        self.name = name
        self.counters = counters
        self.epoch_names = epoch_names
        self.others = others
        self.is_far = (
            freshness is NO_POLICY and not namespace.l1 and not namespace.local
            and not namespace.seal and namespace.codec is None
        )  # fmt: skip

    def with_entry(self) -> "KeyRef":
        """Return a reference whose reads return an entry, and never a payload alone."""
        if not self.is_far:
            return self
        ref = KeyRef(self.namespace, self.name, self.counters, self.epoch_names, self.freshness)
        ref.is_far = False
        return ref

    def each(self) -> "tuple[KeyRef, ...]":
        """Return a reference for each name that the value may have."""
        return self.others or (self,)


# Plain tuples: each read makes one of both, and a named tuple takes ten times as long to make.

Lifespan: TypeAlias = tuple[float, float, int]
"""The life of a value in this process, in monotonic seconds: when the value becomes stale, and from when on its life in
this process counts. And when its load or write began, in microseconds of Redis' clock; 0 if that is not known."""

TagState: TypeAlias = tuple[int, Sequence[TagStamp]]
"""The memory's generation and the stamps of a value's tags. Take them before the value is judged: an invalidation that
comes after the verdict then finds the entry older than itself."""


class Began:
    """When the load or the write of values of this process began.

    :ivar at: monotonic seconds.
    :ivar as_of: the same in microseconds of Redis' clock, as it is stored with the values; 0 until that is known.
    """

    __slots__ = ("as_of", "at")

    def __init__(self, at: float, as_of: int = 0) -> None:
        self.at = at
        self.as_of = as_of

    @classmethod
    def elsewhere(cls, as_of: int) -> Self:
        """Return when a load of another process began, which its value tells; its `at` is minus infinity."""
        return cls(-math.inf, as_of)

    def told(self, time: RedisTime) -> int:
        """Return it in microseconds of Redis' clock, by the present estimate of that; it is remembered."""
        if self.at > -math.inf:
            self.as_of = max(0, time.at(self.at))
        return self.as_of


def age_of(as_of: int, time: RedisTime, now: float) -> float:
    """Return the seconds since the load or write of a value began; infinity if that is not known.

    :param as_of: when it began, in microseconds of Redis' clock; 0 if that is not known.
    :param time: that clock.
    :param now: monotonic seconds.
    """
    return max(0.0, (time.at(now) - as_of) / MICROSECONDS) if as_of else math.inf


class Record(NamedTuple):
    """The content of an entry: the value itself if callers may share it, else its payload."""

    value: Any
    payload: bytes | None
    size: int
    """Bytes of the value or of its payload, whichever is kept."""
    version: int
    """The unique version in the envelope."""
    epoch: int = 0
    """The highest epoch that the writing process had seen before the load or the write."""
    tags: tuple[str, ...] = ()
    cost: float = 0.0
    """Seconds that the load took."""
    negative: bool = False
    """Whether the payload is a remembered error."""
    validator: str | None = None
    encoded: bytes | None = None
    """The payload of a decoded value, where memory may have to pack it; it counts for the size."""
    shared: bool = False
    """Whether the value is a mutable object that only callers may get whose namespace shares it."""
    began: Began | None = None
    """When the load or the write began; None for a value from Redis, whose header tells."""
    paid: int = 0
    """Billionths of the money that the load has cost, if that depends on the value."""
