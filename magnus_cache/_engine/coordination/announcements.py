"""What is made of the server's announcements. Each says "ask", and none says what has happened.

Redis announces a name when a key of it was changed, but also when it merely ceases to track the name, as its table of
tracked names is full, and it announces the names of all databases alike. What a connection holds is right until it
turns out that it is not:

- a value is let go of at once: should it be unchanged, that costs a miss;
- of a lease that is held, Redis is asked whether it stands; until it says so, callers who would join the load ask, too;
- an epoch is read again, and what it is about is outdated if it rose. Until then, no answer extends the trust in what
  the connection has brought (see `Wire`), so that the staleness bound counts from before the announcement;
- who waits for another's load looks again.
"""

from functools import partial
from typing import TYPE_CHECKING

from magnus_cache._engine.coordination.epoch_sync import EpochSync
from magnus_cache._engine.coordination.failover import FailoverGuard
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.keys.names import value_name

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Announcements"]


class Announcements:
    """Takes what the connections of one cache hear; every method is called on the connection's loop.

    :param values: what the names of all values begin with.
    :param held: what this process holds of them.
    """

    def __init__(self, values: bytes, held: Invalidation, failover: FailoverGuard, epochs: EpochSync) -> None:
        self._values = values
        self._server = held.epochs.names.server
        self._memory = held.memory
        self._leases = held.leases
        self._flights = held.flights
        self._failover = failover
        self._epochs = epochs

    def changed(self, names: list[bytes], connection: "Connection") -> None:
        """Let go of values, and ask about leases and epochs."""
        for name in names:
            if name.startswith(self._values):
                self._memory.invalidate(name)
                self._leases.notify(name)
            elif name.startswith(b"{"):
                self._leases.announced(value_name(name), connection)
            elif name == self._server:
                self._restore_identity(connection)
            else:
                self._epochs.announced(name, connection, needed=bool(len(self._flights)))

    def flushed(self, connection: "Connection") -> None:
        """Ask about all leases: a database was emptied, perhaps this one. Epochs are read again when needed.

        Of values, nothing is left that was read through the connection.
        """
        self._leases.flushed(connection)
        self._restore_identity(connection)

    def cut(self, connection: "Connection") -> None:
        """Take what was not answered on a lost connection for changed, and wake those who wait for an announcement."""
        self._epochs.cut(connection)
        self._leases.notify_all()

    def _restore_identity(self, connection: "Connection") -> None:
        connection.questions.put(self._server, partial(self._failover.restore_identity, connection))
