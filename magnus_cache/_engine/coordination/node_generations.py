"""Outage generations of a cluster: its nodes come and go one by one, so each value has an outage of its own.

A value needs the owner of its slot, and the node that has the epochs of its group, which is the same one for most. It
is in an outage while one of them is away. The generation of a trust is the monotonic second when it began. A value was
good when the present outage of its nodes began if its trust began after all of

- the last moment when one of its nodes was away and came back: before, it may have been changed unheard;
- the last move of its slot: since then, another node announces its changes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.generations import OfflineTrust, OutageGenerations
from magnus_cache._engine.runtime.clock import Clock

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["NodeGenerations", "Places"]


class Places(Protocol):
    """What is known of the nodes of a cluster; see `ClusterTopology`."""

    def nodes_of(self, key: bytes) -> tuple[str, ...]:
        """Return the ids of the nodes that a value needs."""
        ...

    def node_id(self, connection: "Connection") -> str:
        """Return the id of the node that a connection leads to."""
        ...

    def moved(self, key: bytes) -> float:
        """Return the monotonic second at which the slot of a key has moved; -inf if it never did."""
        ...


class NodeGenerations(OutageGenerations):
    """See the module, and `OutageGenerations`."""

    __slots__ = ("_clock", "_lapsed_at", "_offline", "_places", "_since")

    def __init__(
        self, max_staleness: float, contact: Callable[[bytes], float], places: Places, clock: Clock
    ) -> None:  # fmt: skip
        self._places = places
        self._clock = clock
        self._begin()
        super().__init__(max_staleness, contact)

    def _begin(self) -> None:
        self._since: dict[str, float] = {}
        self._lapsed_at: dict[str, float] = {}
        # By all nodes that a value needs.
        self._offline: dict[tuple[str, ...], OfflineTrust] = {}

    def connected(self, connection: "Connection", *, first: bool) -> None:
        """Note a new connection, which has a new trust.

        :param first: whether it is the only one to its node: then an outage of that node has ended.
        """
        node, now = self._places.node_id(connection), self._clock()
        before, self._trusts[connection] = self._trusts.get(connection), connection.trust
        if before is not None and before is not connection.trust:
            before.retire()
        if first:
            self._since[node] = now
        connection.trust.generation = now
        self._confirm(lambda nodes: node in nodes)

    def flushed(self, connection: "Connection") -> None:
        """Note the new trust of a connection whose database was emptied."""
        super().flushed(connection)
        connection.trust.generation = self._clock()

    def cut(self, connection: "Connection") -> None:
        """Note that a connection was lost, if it had been established."""
        if self._trusts.get(connection) is connection.trust:
            node = self._places.node_id(connection)
            self._lapsed_at[node] = max(self._lapsed_at.get(node, -math.inf), connection.trust.lapsed)

    def remapped(self) -> None:
        """Have everything confirmed that was stored while a node was away: another one may have its slots by now."""
        self._confirm(lambda _: True)

    def _confirm(self, is_concerned: Callable[[tuple[str, ...]], bool]) -> None:
        """Have the values confirmed that were stored while some nodes were away."""
        for nodes in filter(is_concerned, list(self._offline)):
            if (offline := self._offline.pop(nodes, None)) is not None:
                offline.kill()

    def confirmed(self, name: bytes, connections: "Iterable[Connection]") -> float:
        """Return the monotonic second when all nodes of a value had last confirmed it; -inf if one never did.

        :param connections: all that are up.
        """
        up = [(self._places.node_id(connection), connection.trust.lapsed) for connection in connections]
        lapsed = [self._lapse_of(node, up) for node in self._places.nodes_of(name)]
        return min(lapsed) - self._max_staleness

    def _lapse_of(self, node: str, up: Sequence[tuple[str, float]]) -> float:
        return max([self._lapsed_at.get(node, -math.inf), *(lapsed for each, lapsed in up if each == node)])

    # -- what memory may serve while a node is away -----------------------------------------------------------

    def now(self, name: bytes) -> float:
        """Return the generation of a trust that begins now."""
        return self._clock()

    def offline_of(self, name: bytes) -> OfflineTrust:
        """Return the trust of a value that is stored while a node of it is away; killed when that is back."""
        nodes = self._places.nodes_of(name)
        offline = self._offline.get(nodes)
        if offline is None:
            offline = self._offline.setdefault(nodes, OfflineTrust(math.inf, self._clock()))
        return offline

    def heard(self, trust: Trust, name: bytes) -> bool:
        """Return whether a value was good when the present outage of its nodes began; see the module."""
        since = max(self._since.get(node, 0.0) for node in self._places.nodes_of(name))
        return trust.generation >= max(since, self._places.moved(name))

    def end(self) -> None:
        """Make what was stored in an outage suspect, as the cache is closed."""
        for offline in list(self._offline.values()):
            offline.kill()

    def reset(self) -> None:
        """Start empty in a forked child."""
        self._begin()
        super().reset()
