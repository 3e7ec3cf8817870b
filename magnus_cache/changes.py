"""What `changes` of a cache yields: a frozen record for each change in a namespace, and where some may be missing."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Change", "Changed", "Invalidated", "Lost"]


@dataclass(frozen=True, slots=True)
class Change:
    """The base class of what `changes` yields: something changed in a namespace."""

    namespace: str


@dataclass(frozen=True, slots=True)
class Changed(Change):
    """The value of one key was stored, replaced, removed or prolonged, or it expired or was evicted in Redis.

    Redis does not tell which; read the key to see.

    :ivar key: the key as `scan` yields it, a text that every operation takes as key; or, with ``keys=``, the key as the
        caller gave it there.
    """

    key: Any


@dataclass(frozen=True, slots=True)
class Invalidated(Change):
    """All values of the namespace were invalidated, or all that have a tag, or all of a cached function.

    :ivar tag: the tag; None for all values, and for those of a function. A tag that values of other namespaces have is
        told as well: nothing lists the values of a tag.
    :ivar function: the name of the cached function whose `clear` was called; None otherwise.
    """

    tag: str | None = None
    function: str | None = None


@dataclass(frozen=True, slots=True)
class Lost(Change):
    """Changes may have been missed: anything may have changed, so read again what you show. From here on, all is told.

    :ivar reason: ``"connection"``: the connection to Redis was lost, and is back; ``"moved"``: slots of a cluster have
        moved, or another server is the primary; ``"flushed"``: a database of Redis was emptied; ``"overflow"``: too
        many changes were waiting to be taken.
    :ivar since: up to when all changes were told, in seconds since 1970 by the clock of Redis; None if that is unknown,
        and after an overflow.
    """

    reason: Literal["connection", "moved", "flushed", "overflow"]
    since: float | None = None
