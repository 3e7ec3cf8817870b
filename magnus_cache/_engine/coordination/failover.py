"""The arrival at a server: whether what it has may be believed, and that those who come later may know that it may.

A server that is another one than before, or has become a primary, may lack the latest writes. Who meets one first
invalidates everything and leaves the identity of its history there; the others find that done.
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
    """The servers that one cache has met.

    :param values: what the names of all values begin with.
    :param outdated: called with the name of an epoch, to forget all that it is about.
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
        """Return the highest epoch seen, for a server that was not met last; None for the one that was."""
        return None if identity == self._met else self._epochs.highest

    def forget(self) -> None:
        """Meet the next server anew, whether it was met before or not."""
        self._met, self._settled = b"", None

    def arrived(self, identity: bytes, arrival: "Arrival") -> None:
        """Forget all that was known before a server that may have gone back in time."""
        epoch = arrival.epoch
        if not arrival.answered:
            if self._met is None:
                # Nobody here knows of anything that it could have lost.
                return
            # It cannot be told (a replica, an ACL, nonsense): until it is, nothing that it has is believed.
            self._outbox.record_prefix(self._values)
            self._outdated(self._epochs.root)
        else:
            if epoch:
                self._epochs.seen(self._epochs.root, epoch)
                self._outdated(self._epochs.root)
            self._settled = identity
        self._met = identity

    def restore_identity(self, connection: "Connection") -> None:
        """Leave the identity of a server's history there again, should it have been evicted or removed.

        Else the next process to arrive would take it for a server that has gone back in time, and invalidate
        everything. Asking for it also has its next removal announced.
        """
        identity = connection.identity
        if not identity or identity != self._settled:
            return
        try:
            self._client.restore_identity(self._epochs.names.server, identity)
        except CacheError:
            # It says so again when it is connected again.
            return
