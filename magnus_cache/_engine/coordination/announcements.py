"""Reactions to the server's announcements (CLIENT TRACKING). Each announcement is a question, not a fact.

Redis announces a name when its key changed. It also announces names that it merely stops tracking because its table is
full, and it announces the names of all databases alike. So an announcement does not say what happened:

- A value is dropped at once. If it was unchanged, that costs one miss; see `own_writes` for those of this process.
- The holder of a lease asks Redis whether the lease is still valid. Until the answer, callers who want to join the load
  ask too.
- An epoch is read again. If it rose, all that it covers is outdated. Until the answer, the trust in values of this
  connection is not extended (see `KnownEpochs.trusted_from`), so the staleness bound counts from before it.
- A load that waits for another's lease checks again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from magnus_cache._engine.coordination.epoch_sync import EpochSync
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.coordination.own_writes import OwnWrites
from magnus_cache._engine.keys.names import value_name

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Announcements"]


class Announcements:
    """Reacts to the announcements on all connections of one cache. Each method is called on the connection's loop.

    :param values: the prefix of all values' names.
    :param local: the local state that an announcement invalidates.
    :param own: keeps values of this process where its own writes are announced, too; None on a cluster.
    :param changed: called with the names of values that other processes have changed, as far as this is known.
    """

    def __init__(
        self, values: bytes, local: Invalidation, failover: FailoverGuard, epochs: EpochSync, own: OwnWrites | None,
        changed: Callable[[Sequence[bytes]], object],
    ) -> None:  # fmt: skip
        self._values = values
        self._changed = changed
        self._server = local.epochs.names.server
        self._memory = local.memory
        self._leases = local.leases
        self._sources = local.sources
        self._flights = local.flights
        self._failover = failover
        self._epochs = epochs
        self._own = own

    def changed(self, names: list[bytes], connection: "Connection") -> None:
        """Drop the named values, and ask Redis about the named leases and epochs."""
        own = self._own.among(names) if connection.broadcasts and self._own is not None else ()
        values: list[bytes] = []
        for name in names:
            if name.startswith(self._values):
                self._memory.invalidate(name)
                self._leases.notify(name)
                values.append(name)
            elif name.startswith(b"{"):
                self._leases.announced(value_name(name), connection)
            elif name == self._server:
                self._restore_identity(connection)
            elif name == self._sources.pauses_key:
                self._sources.announced(connection)
            else:
                self._epochs.announced(name, connection, needed=bool(len(self._flights)))
        if own and self._own is not None:
            self._own.ask(own)
        if values and not connection.broadcasts:
            # By prefix, Redis announces the writes of this process, too, and values that it has never read.
            self._changed(values)

    def flushed(self, connection: "Connection") -> None:
        """Ask Redis about all leases, because a database was emptied, perhaps this one.

        Values read through this connection are void already. Epochs are read again when they are needed.
        """
        self._leases.flushed(connection)
        self._restore_identity(connection)

    def cut(self, connection: "Connection") -> None:
        """Treat unanswered questions of a lost connection as changes, and wake loads that wait for an announcement."""
        self._epochs.cut(connection)
        self._leases.notify_all()

    def _restore_identity(self, connection: "Connection") -> None:
        connection.questions.put(self._server, partial(self._failover.restore_identity, connection))
