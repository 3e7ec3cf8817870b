"""What a wire is given by its owner: the bounds that it keeps, and whom it tells."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache.errors import CacheUnavailableError

__all__ = ["WireLimits", "WireListener"]


class WireListener(Protocol):
    """What a wire tells its owner, itself included; all calls come from the wire's loop and must not block.

    :ivar abandoned: the connections that all wires of the owner have given up.
    """

    abandoned: OrphanedConnections

    def invalidated(self, names: list[bytes], wire: Any) -> None:
        """Tell that the server announced a change of these keys."""

    def flushed(self, wire: Any) -> None:
        """Tell that the server announced that everything is gone."""

    def exchanged(self, wire: Any) -> None:
        """Tell that the database turned out to be another one, and the connection is about to be lost."""

    def cut(self, wire: Any) -> None:
        """Tell that a connection was lost, and with it what it would have announced."""

    def beat(self, wire: Any) -> None:
        """Tell that the wire is up and was used a moment ago; some times a second at most."""

    def measured(self, sent: float, reads: int) -> None:
        """Tell that some reads were answered, which were sent at a monotonic second."""

    def greeting(self, identity: bytes) -> Command | None:
        """Return what a server is to be sent, before anything that it says is believed, that is new to the owner."""

    def greeted(self, identity: bytes, reply: Any) -> None:
        """Tell what it answered: perhaps an error."""

    def connected(self, wire: Any) -> None:
        """Tell that the wire is up (again)."""

    def disconnected(self, wire: Any, error: CacheUnavailableError) -> None:
        """Tell that Redis cannot be reached through this wire."""


class WireLimits(NamedTuple):
    """The bounds of a wire."""

    op_timeout: float
    """Seconds that any one request, and any one attempt to connect, may take."""
    max_staleness: float
    """Seconds that an entry is trusted after the last answer was asked for."""
    max_pending: int
    """Requests that may wait at a time."""
    probe: bytes = b"magnus!probe"
    """A key that need not exist: a server that cannot say so, cannot serve."""
    marker: bytes = b"magnus!epoch"
    """A key that tells one database from another: the epoch of everything."""
    value_bytes: Callable[[], int] = lambda: 16 << 20
    """Returns how many bytes the largest value may have that any namespace allows."""
