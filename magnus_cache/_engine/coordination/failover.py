"""Failover detection: whether a server still has all writes that this process knows of.

After a failover or a restart a server may lack the latest writes, so deleted values may be back. The first process that
connects to such a server invalidates everything and stores the identity of the server's history there. Later processes
find that identity and keep their values.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.events import Arrival
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["FailoverGuard"]


class FailoverGuard:
    """Remembers which server one cache met last, and invalidates everything when it meets another.

    :param values: the prefix of all values' names.
    :param outdated: called with the name of an epoch to drop all values that it covers.
    """

    def __init__(
        self, epochs: Epochs, client: "Client", outbox: Outbox, values: bytes, outdated: Callable[[bytes], None]
    ) -> None:
        self._epochs = epochs
        self._client = client
        self._outbox = outbox
        self._values = values
        self._outdated = outdated
        self._met: bytes | None = None
        self._settled: bytes | None = None

    def knows(self, identity: bytes) -> int | None:
        """Return the highest epoch seen if the server is not the last one met; else None."""
        return None if identity == self._met else self._epochs.highest

    def forget(self) -> None:
        """Treat the next server as new, even if it was met before."""
        self._met, self._settled = b"", None

    def arrived(self, identity: bytes, arrival: "Arrival") -> None:
        """Take the result of the handshake with a new server: invalidate everything if it may have lost writes."""
        epoch = arrival.epoch
        if not arrival.answered:
            if self._met is None:
                # The first server: this process knows of no write that it could have lost.
                return
            # No usable answer (a replica, an ACL, nonsense): until there is one, no value of this server is trusted.
            self._outbox.record_prefix(self._values)
            self._outdated(self._epochs.root)
        else:
            # Not if another connection has read it already: loads that began since are newer than that epoch.
            if epoch and self._epochs.seen(self._epochs.root, epoch) < epoch:
                self._outdated(self._epochs.root)
            self._settled = identity
        self._met = identity

    def restore_identity(self, connection: "Connection") -> None:
        """Store the identity of the server's history again if it was evicted or removed.

        Without it, the next process to connect would assume lost writes and invalidate everything. The command also
        reads the key, so that the server announces its next removal.
        """
        identity = connection.identity
        if not identity or identity != self._settled:
            return
        try:
            self._client.restore_identity(self._epochs.names.server, identity)
        except CacheError:
            # The next connection tries again.
            return
