"""One connection of the lane: how long it may be used, what stands on it, and how epochs are asked for through it."""

import math
from typing import TYPE_CHECKING, Any, Final, cast

from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.redis.exchange import Connection

if TYPE_CHECKING:
    from magnus_cache._engine.redis.lane_connection import LaneConnection
    from magnus_cache._engine.redis.server_time import RedisTime
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Plan", "Session", "bulk"]

_IDLE: Final = 30.0
"""Seconds without use after which the connection is made anew: it may be half-open, which only a timeout would tell."""

_MOST_PLANS: Final = 1_024
"""Namespaces and functions whose epochs' names are remembered as they are asked for."""

_DEAD: Final = -math.inf


def bulk(name: bytes) -> bytes:
    """Return a name as it stands in a command."""
    return b"$%d\r\n%b\r\n" % (len(name), name)


class _Source:
    """What a value that came through the lane is judged by: as much of a `Connection` as the judge looks at."""

    __slots__ = ("known", "time", "tracking", "trust")

    def __init__(self, trust: Trust, known: KnownEpochs, time: "RedisTime") -> None:
        self.trust = trust
        self.known = known
        self.time = time
        # By the wire that hears of changes.
        self.tracking = True


class Plan:
    """How a value of a namespace or function is asked for with its epochs, and what it is judged by if they agree.

    :param tags: the names of the epochs of further tags.
    :ivar names: of the epochs that are its own: all but the root's.
    :ivar packed: these names as they stand in a command.
    :ivar begin: the command for one value, up to its name.
    :ivar end: what follows that.
    :ivar size: how many values it brings.
    :ivar agreed: the server's identity and the epochs that were last found to be those that are known.
    """

    __slots__ = ("agreed", "begin", "end", "names", "packed", "size", "source")

    def __init__(
        self, epochs: Epochs, epoch_names: EpochNames, tags: tuple[bytes, ...], session: "Session"
    ) -> None:  # fmt: skip
        self.names = tuple(dict.fromkeys((epoch_names.control, *epoch_names.names, *tags)))
        self.packed = b"".join(map(bulk, self.names))
        self.size = 3 + len(self.names)
        self.begin = b"*%d\r\n$4\r\nMGET\r\n" % (1 + self.size)
        self.end = bulk(epochs.names.server) + bulk(epochs.root) + self.packed
        self.agreed: list[bytes] = []
        known = KnownEpochs()
        # Just these: a value with any other tag cannot be judged by them, and the judge says so.
        known.current.update((epochs.root, *self.names))
        self.source = cast("Connection", _Source(session.trust, known, session.wire.time))


class Session:
    """One connection of the lane, and what it shares with the connection of the wire that hears of changes for it.

    :ivar trust: what the values that it brings stand on.
    :ivar announces: whether changes of what it reads are announced to the wire; None if that was not asked for.
    """

    def __init__(self, connection: "LaneConnection", wire: "Wire", began: float) -> None:
        self.connection = connection
        self.wire = wire
        # The trust first: `stands` looks at it again, and each connection of the wire has a new one.
        self.wire_trust, self.wire_known = wire.trust, wire.known
        self.server = wire.server
        # All that it will read is as of now at least.
        self.trust = Trust(began + wire.max_staleness, self.wire_trust.generation)
        self.announces: bool | None = None
        self.plans: dict[EpochNames | tuple[EpochNames, tuple[str, ...]], Plan] = {}
        self.used = began
        # An exchange: when it was sent, and when it was answered.
        self._sent = self._answered = began

    def stands(self, wire: "Wire", now: float) -> bool:
        """Whether the connection may be used: it is in step, and this wire is connected as it was."""
        connection = self.connection
        return (
            wire.trust is self.wire_trust and not connection.busy and not connection.broken
            and now - self.used < _IDLE and self.wire_trust.deadline != _DEAD
        )  # fmt: skip

    def plan(self, epochs: Epochs, epoch_names: EpochNames, tags: tuple[str, ...]) -> Plan:
        """Return how to ask for the epochs of a namespace or function, and of further tags if the wire knows them.

        Changes of those that it does not know would not be announced.
        """
        if not tags:
            return self.plans.get(epoch_names) or self._planned(epochs, epoch_names, epoch_names, ())
        names = tuple(map(epochs.tag_name, tags))
        if not self.wire_known.current.issuperset(names):
            return self.plan(epochs, epoch_names, ())
        key = epoch_names, tags
        return self.plans.get(key) or self._planned(epochs, epoch_names, key, names)

    def _planned(self, epochs: Epochs, epoch_names: EpochNames, key: Any, tags: tuple[bytes, ...]) -> Plan:
        if len(self.plans) >= _MOST_PLANS:
            self.plans.clear()
        plan = self.plans[key] = Plan(epochs, epoch_names, tags, self)
        return plan

    def prove(self, sent: float, answered: float) -> None:
        """Note an exchange; renew the trust if the wire was answered after an earlier one."""
        wire_trust, self.used = self.wire_trust, answered
        wire_trust.used = True
        lasts = self.wire.max_staleness
        if wire_trust.deadline - lasts > self._answered:
            self.trust.deadline = self._sent + lasts
            self._sent, self._answered = sent, answered
            if wire_trust.deadline == _DEAD:
                # It ended in between.
                self.trust.kill()

    def end(self) -> None:
        """Close the connection: nothing that it has read is announced any more."""
        self.trust.kill()
        self.connection.close()
