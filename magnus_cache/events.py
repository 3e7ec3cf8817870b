"""What a cache tells its observers: a frozen record for each thing that happens; see `CacheManager.observe`.

A key in an event is the full name of its value in Redis, as `explain` shows it, such as ``"magnus:prices:AAPL"``. An
event about several keys has None as its key, and `count` says how many they are.

The records at the end are what `changes` yields: what changed in one namespace, by any process.
"""

from dataclasses import dataclass, fields
from typing import Literal

__all__ = [
    "BudgetExceeded",
    "CacheEvent",
    "Cleared",
    "Deleted",
    "ErrorServed",
    "Evicted",
    "FillRefused",
    "Hit",
    "LoadEnded",
    "LoadStarted",
    "Miss",
    "OutageBegan",
    "OutageEnded",
    "PeerInvalidated",
    "SourcePaused",
    "StaleServed",
    "Stored",
    "TagsInvalidated",
    "Touched",
    "Unreadable",
    "Unstorable",
    "WaitExpired",
    "WarmJobLost",
    "WarmJobTaken",
    "WarmRound",
    "WriteRefused",
]


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """The base class of all events. An observer of this class gets every event."""

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name, with the name of the event as ``"event"``: for logs."""
        return {"event": type(self).__name__, **{each.name: getattr(self, each.name) for each in fields(self)}}


# -- reads ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit(CacheEvent):
    """A caller got a value from memory (``"l1"``) or from Redis (``"l2"``)."""

    namespace: str
    key: str | None
    level: Literal["l1", "l2"]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Miss(CacheEvent):
    """A caller found no usable value."""

    namespace: str
    key: str | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class StaleServed(CacheEvent):
    """A caller got an expired value: its load failed, took too long, or is paused after a failure."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class ErrorServed(CacheEvent):
    """A caller got an error that the cache had remembered (`negative`)."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True)
class Unreadable(CacheEvent):
    """A stored value could not be decoded, and counted as a miss.

    :ivar reason: one word, as in `CacheDecodeError`.
    """

    namespace: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class WaitExpired(CacheEvent):
    """A caller stopped waiting for a load, at its `soft_timeout` or `hard_timeout`. The load continues."""

    namespace: str
    key: str


# -- loads ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadStarted(CacheEvent):
    """The cache is about to call a loader.

    This event and the `LoadEnded` of the same load are delivered in the thread or task that awaits the loader, in the
    context in which the loader runs. So a context variable that an observer sets here is seen by the loader, such as
    the current span of a trace, and can be reset at the end. The context is a copy of that of the first caller.

    :ivar load: the number of the load; the `LoadEnded` of the load has the same one. No other load of the process has.
    :ivar function: the name of the cached function or of the loader, such as ``"app.prices.load"``.
    :ivar background: whether no caller waits for it as it begins, such as a refresh before the value expires.
    """

    namespace: str
    key: str | None
    load: int
    function: str
    background: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class LoadEnded(CacheEvent):
    """A loader has returned or raised. Each `LoadStarted` is followed by one of these.

    :ivar duration: seconds that the loader took.
    :ivar error: what it raised, `CancelledError` included; None if it returned.
    """

    namespace: str
    key: str | None
    load: int
    function: str
    duration: float
    error: BaseException | None = None
    background: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class BudgetExceeded(CacheEvent):
    """A load was held back: the budget of its source is used up for now, or the source is paused.

    :ivar source: the name of the bucket, such as ``"quotes"`` or ``"quotes:schwab:*"``.
    :ivar retry_after: seconds until its turn, as far as this is known.
    :ivar waits: whether the load waits for its turn. If not, its callers get stale values or `CacheBudgetError`.
    """

    namespace: str
    key: str | None
    source: str
    retry_after: float
    waits: bool


@dataclass(frozen=True, slots=True)
class SourcePaused(CacheEvent):
    """A loader of this process has raised `RetryLater`, which pauses its source for the whole fleet.

    :ivar source: as in `BudgetExceeded`.
    """

    namespace: str
    source: str
    seconds: float


# -- writes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored(CacheEvent):
    """A value was stored.

    :ivar place: ``"redis"``, or ``"memory"`` for this process alone: without Redis, in an outage, in a local namespace.
    :ivar loaded: whether a load returned it; False for `set` and the like.
    """

    namespace: str
    key: str | None
    place: Literal["redis", "memory"]
    loaded: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class FillRefused(CacheEvent):
    """A loaded value was returned to its callers, but not stored.

    :ivar reason: ``"overtaken"``: the value was deleted, overwritten or invalidated since the load began, or the load's
        lease has expired; ``"unleased"``: Redis granted no lease, so the load could be overtaken unnoticed;
        ``"unconfirmed"``: Redis is away, and invalidations may have been missed since the load began; ``"unkept"``:
        Redis is away or not configured, and memory keeps no values of the namespace.
    """

    namespace: str
    key: str | None
    reason: Literal["overtaken", "unleased", "unconfirmed", "unkept"]
    count: int = 1


@dataclass(frozen=True, slots=True)
class WriteRefused(CacheEvent):
    """Redis refused a value, which stays in this process for now.

    :ivar reason: one word, as in `CacheUnavailableError`.
    """

    namespace: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unstorable(CacheEvent):
    """A loader returned a value that cannot be stored; its callers got the value.

    :ivar function: the name of the loader.
    :ivar problem: why, without the value.
    """

    namespace: str
    key: str
    function: str
    problem: str


@dataclass(frozen=True, slots=True)
class Touched(CacheEvent):
    """A stored value got a new time to live, in seconds."""

    namespace: str
    key: str
    ttl: float


# -- invalidations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deleted(CacheEvent):
    """The program removed values: by `delete`, `delete_many` or `invalidate`.

    :ivar keys: the first hundred keys, whether they had values or not.
    :ivar removed: how many values there were, as far as this is known.
    :ivar site: the line of the program that called, such as ``"app/users.py:31 in rename"``; None if it is not known.
    """

    namespace: str
    keys: tuple[str, ...]
    removed: int
    site: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Cleared(CacheEvent):
    """The program cleared a namespace, the whole prefix, what matches a glob, or all values of a function.

    :ivar target: what it gave to `clear`; or the name of the function.
    :ivar removed: how many values Redis removed; 0 for a function, whose values Redis keeps until they expire.
    :ivar site: as in `Deleted`.
    """

    target: str
    removed: int
    site: str | None = None


@dataclass(frozen=True, slots=True)
class TagsInvalidated(CacheEvent):
    """The program invalidated tags.

    :ivar site: as in `Deleted`.
    """

    tags: tuple[str, ...]
    site: str | None = None


@dataclass(frozen=True, slots=True)
class PeerInvalidated(CacheEvent):
    """Values that this process may have in memory were invalidated, and not by this process.

    Redis announces what another process has changed, what has expired, and what Redis has evicted alike. With
    ``tracking="prefix"`` or ``"off"``, it does not announce single keys, or not so that they could be told from those
    that this process has changed.

    :ivar scope: ``"keys"``: these values; ``"namespace"``: all values of `name`; ``"tag"``: all with the tag `name`;
        ``"all"``: all values of the cache.
    :ivar name: the namespace or the tag; None for keys and for all.
    :ivar keys: the first hundred keys, of the scope ``"keys"``.
    """

    scope: Literal["keys", "namespace", "tag", "all"]
    name: str | None = None
    keys: tuple[str, ...] = ()
    count: int = 1


# -- the cache itself -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evicted(CacheEvent):
    """Values left the memory of this process to make room, since the last such event. Redis still has them."""

    count: int


@dataclass(frozen=True, slots=True)
class OutageBegan(CacheEvent):
    """Redis does not answer.

    :ivar reason: one word, as in `CacheUnavailableError`.
    :ivar node: on a cluster, the address of the node that is away; None for Redis as a whole.
    """

    reason: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class OutageEnded(CacheEvent):
    """Redis answers again.

    :ivar duration: seconds since it failed.
    :ivar node: as in `OutageBegan`.
    """

    duration: float
    node: str | None = None


# -- jobs of `keep_warm` ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WarmJobTaken(CacheEvent):
    """From now on, this process refreshes the values of a job of `keep_warm`.

    :ivar job: its name, as in `WarmJob`.
    """

    job: str
    namespace: str


@dataclass(frozen=True, slots=True)
class WarmJobLost(CacheEvent):
    """This process no longer refreshes the values of a job of `keep_warm`.

    :ivar reason: ``"taken"``: another process has it; ``"outage"``: its lease could not be renewed, because Redis does
        not answer; ``"stopped"``: it was stopped here.
    """

    job: str
    namespace: str
    reason: Literal["taken", "outage", "stopped"]


@dataclass(frozen=True, slots=True)
class WarmRound(CacheEvent):
    """A job of `keep_warm` has asked for its keys and looked at their values.

    :ivar keys: how many keys there are.
    :ivar refreshed: values that this process has loaded for it so far.
    :ivar failed: loads that failed so far.
    """

    job: str
    namespace: str
    keys: int
    refreshed: int
    failed: int
