"""What the paths through the cache pass on: where a value lives, what is known of it, and that there is none."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from magnus_cache._engine.coherence.realms import EpochNames
from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache.freshness import Freshness

__all__ = ["LARGE", "MISS", "KeyRef", "Large", "Lifespan", "Missing", "Record", "TagState"]


class Missing:
    """The type of `MISS`, which stands for "not there": None is a value like any other."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISS"


MISS: Final = Missing()


class Large:
    """The type of `LARGE`, which stands for a value that takes too long to be decoded in one step."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "LARGE"


LARGE: Final = Large()


class KeyRef:
    """Where a value lives: its namespace's policy and epoch, its name in Redis, and the counters it counts in.

    :ivar freshness: the namespace's policy of freshness, or the call's own.
    """

    __slots__ = ("counters", "epoch_names", "freshness", "name", "namespace")

    def __init__(
        self, namespace: Namespace, name: bytes, counters: Counters, epoch_names: EpochNames, freshness: Freshness
    ) -> None:
        self.namespace = namespace
        self.freshness = freshness
        self.name = name
        self.counters = counters
        self.epoch_names = epoch_names


# Plain tuples, as each read makes one of both: a named tuple takes ten times as long to make.

Lifespan: TypeAlias = tuple[float, float, float | None]
"""The life of a value in this process, in monotonic seconds: when it ceases to be fresh, since when its life in this
process is counted, and when it was stored, if that is known."""

TagState: TypeAlias = tuple[int, Sequence[TagStamp]]
"""What was known of a value's tags before it was known that none of them is invalid: the memory's generation, and the
stamps of the tags."""


class Record(NamedTuple):
    """What an entry is made of: the value itself where callers may share it, else its payload."""

    value: Any
    payload: bytes | None
    size: int
    """Bytes of the value as it is kept, encoded or decoded."""
    version: int
    """The unique version in its envelope."""
    epoch: int = 0
    """The highest epoch that its maker had seen before it was loaded."""
    tags: tuple[str, ...] = ()
    cost: float = 0.0
    """Seconds that its load took."""
    negative: bool = False
    """Whether it stands for an error."""
    validator: str | None = None
    encoded: bytes | None = None
    """The payload of a decoded value, where memory may have to pack it; it counts for the size."""
