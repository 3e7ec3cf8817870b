"""The interface between a wire and its owner: the limits of a wire, and its events."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from magnus_cache._engine.coherence.epochs import ControlNames
from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.tracking import Tracking
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Arrival", "WireLimits", "WireListener"]


class Arrival(NamedTuple):
    """The answer of a server to a process that is new to it."""

    answered: bool
    """Whether it could answer: an ACL may forbid it, and a replica cannot."""
    epoch: int
    """The epoch that has invalidated everything; 0 for none."""


class WireListener(Protocol):
    """Receives the events of a wire. All calls come from the wire's loop, and must not block.

    :ivar abandoned: connections of all wires of the owner that were lost with commands unanswered.
    """

    abandoned: OrphanedConnections

    def invalidated(self, names: list[bytes], connection: Connection) -> None:
        """The server announced a change of these keys."""

    def flushed(self, connection: Connection) -> None:
        """The server announced that a database was emptied."""

    def moved(self, covers: Callable[[bytes], bool], connection: Connection) -> None:
        """Slots of a cluster have moved; `covers` tells whether a name is in one. The server announces none of them."""

    def exchanged(self, connection: Connection) -> None:
        """The database was swapped for another one; the connection is about to close."""

    def cut(self, connection: Connection) -> None:
        """A connection was lost, and pending announcements with it."""

    def beat(self, connection: Connection) -> None:
        """The wire is up and in use; called several times a second at most."""

    def measured(self, sent: float, reads: int) -> None:
        """Some reads were answered, which were sent at a monotonic second."""

    def knows(self, identity: bytes) -> int | None:
        """Return the highest epoch known here for a server that is new to the owner; None for the last one met."""
        ...

    def arrived(self, identity: bytes, arrival: Arrival) -> None:
        """A new server has answered the handshake; called before any of its values is trusted."""

    def connected(self, connection: Connection) -> None:
        """The wire is up (again)."""

    def remapped(self) -> None:
        """Slots of a cluster have moved, or the nodes have other addresses; called in any thread."""

    def vanished(self, connection: Connection) -> None:
        """The loop of a wire ended without closing it, so its loss went unnoticed; called in any thread."""

    def warned(self, topic: str, problem: str) -> None:
        """Something is wrong with the servers, and they can be used nevertheless.

        :param topic: tells this problem from others.
        :param problem: what is wrong, and the remedy.
        """

    def disconnected(self, connection: Connection, error: CacheUnavailableError) -> None:
        """Redis cannot be reached through this wire."""


class WireLimits(NamedTuple):
    """The limits of a wire."""

    op_timeout: float
    """Seconds that one request, or one attempt to connect, may take."""
    max_staleness: float
    """Seconds that an entry is trusted after the last answered request was sent."""
    max_pending: int
    """Requests that may wait at the same time."""
    controls: ControlNames
    """The control keys. The root epoch among them identifies the database."""
    value_bytes: Callable[[], int]
    """Returns how many bytes the largest allowed value of any namespace has."""
    tracking: Tracking
    """What the servers are asked to announce."""
