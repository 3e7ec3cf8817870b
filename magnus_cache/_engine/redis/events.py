"""What a wire is given by its owner: the bounds that it keeps, and whom it tells."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from magnus_cache._engine.coherence.epochs import ControlNames
from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Arrival", "WireLimits", "WireListener"]


class Arrival(NamedTuple):
    """What a server says to a process that has not met it before."""

    answered: bool
    """Whether it could tell: an ACL may forbid it, and a replica cannot."""
    epoch: int
    """The epoch by which everything has become invalid; 0 for none."""


class WireListener(Protocol):
    """What a wire tells its owner, itself included; all calls come from the wire's loop and must not block.

    :ivar abandoned: the connections that all wires of the owner have given up.
    """

    abandoned: OrphanedConnections

    def invalidated(self, names: list[bytes], connection: Connection) -> None:
        """Tell that the server announced a change of these keys."""

    def flushed(self, connection: Connection) -> None:
        """Tell that the server announced that everything is gone."""

    def exchanged(self, connection: Connection) -> None:
        """Tell that the database turned out to be another one, and the connection is about to be lost."""

    def cut(self, connection: Connection) -> None:
        """Tell that a connection was lost, and with it what it would have announced."""

    def beat(self, connection: Connection) -> None:
        """Tell that the wire is up and was used a moment ago; some times a second at most."""

    def measured(self, sent: float, reads: int) -> None:
        """Tell that some reads were answered, which were sent at a monotonic second."""

    def knows(self, identity: bytes) -> int | None:
        """Return the highest epoch known here, for a server that is new to the owner; None for the one met last."""
        ...

    def arrived(self, identity: bytes, arrival: Arrival) -> None:
        """Tell what came of the arrival at a server that is new, before anything that it says is believed."""

    def connected(self, connection: Connection) -> None:
        """Tell that the wire is up (again)."""

    def vanished(self, connection: Connection) -> None:
        """Tell, from any thread, that the loop of a wire has ended without a word: nobody would notice its loss."""

    def disconnected(self, connection: Connection, error: CacheUnavailableError) -> None:
        """Tell that Redis cannot be reached through this wire."""


class WireLimits(NamedTuple):
    """The bounds of a wire."""

    op_timeout: float
    """Seconds that any one request, and any one attempt to connect, may take."""
    max_staleness: float
    """Seconds that an entry is trusted after the last answer was asked for."""
    max_pending: int
    """Requests that may wait at a time."""
    controls: ControlNames
    """The control keys. Of these, the epoch of everything tells one database from another."""
    value_bytes: Callable[[], int]
    """Returns how many bytes the largest value may have that any namespace allows."""
