"""The arrival at a server: whether what it has may be believed, and that those who come later may know that it may.

A server that is another one than before, or has become a primary, may lack the latest writes. Who meets one first
invalidates everything and leaves the identity of its history there; the others find that done.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magnus_cache._engine.coherence.epochs import Epochs, epoch_of
from magnus_cache._engine.coordination.leases import NOBODY
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.redis import commands, scripts
from magnus_cache._engine.redis.commands import Command
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.pipeline import Source
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["FailoverGuard"]


class FailoverGuard:
    """The servers that one cache has met.

    :param values: what the names of all values begin with.
    :param outdated: called with the name of an epoch, to forget all that it is about.
    """

    def __init__(self, epochs: Epochs, outbox: Outbox, values: bytes, outdated: Callable[[bytes], None]) -> None:
        self._epochs = epochs
        self._recovery = outbox
        self._values = values
        self._outdated = outdated
        self._met: bytes | None = None
        self._settled: bytes | None = None

    def greeting(self, identity: bytes) -> Command | None:
        """Return what a server is sent that was not met last: whether all became invalid with its arrival."""
        return None if identity == self._met else scripts.arrive(self._epochs.names, identity, self._epochs.highest)

    def forget(self) -> None:
        """Meet the next server anew, whether it was met before or not."""
        self._met, self._settled = b"", None

    def greeted(self, identity: bytes, reply: Any) -> None:
        """Forget all that was known before a server that may have gone back in time."""
        epoch = epoch_of(reply)
        if not epoch and reply != b"":
            if self._met is None:
                # Nobody here knows of anything that it could have lost.
                return
            # It cannot be told (a replica, an ACL, nonsense): until it is, nothing that it has is believed.
            self._recovery.record_prefix(self._values)
            self._outdated(self._epochs.root)
        else:
            if epoch:
                self._epochs.seen(self._epochs.root, epoch)
                self._outdated(self._epochs.root)
            self._settled = identity
        self._met = identity

    def vouch(self, wire: "Wire") -> None:
        """Leave the identity of a server's history there again, should it have been evicted or removed.

        Else the next process to arrive would take it for a server that has gone back in time, and invalidate
        everything. Asking for it also has its next removal announced.
        """
        identity = wire.server.identity
        if not identity or identity != self._settled:
            return
        try:
            wire.call(commands.restore(self._epochs.names.server, identity), _ignored, NOBODY)
        except CacheError:
            # It says so again when it is connected again.
            return


def _ignored(_reply: Any, _source: "Source", _sent: float) -> None:
    return None
