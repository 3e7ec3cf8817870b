"""Which nodes of a cluster a value needs, which of them are away, and their figures, for people."""

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis.cluster_loop import ClusterLoop
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.commands import count
from magnus_cache._engine.redis.endpoint import shown
from magnus_cache._engine.redis.slots import GROUPS, SLOTS, anchor_tag, group_of, key_slot
from magnus_cache._engine.redis.topology import Topology

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["ClusterNodes"]

_MOST_PROBES: Final = 100_000
"""Names that are tried to find a key of each primary: six for each slot."""


class ClusterNodes(Topology):
    """The part of a `ClusterTopology` that knows which node does what. Thread-safe.

    :ivar view: what is known of the cluster.
    """

    view: ClusterView
    _loops: dict[asyncio.AbstractEventLoop, ClusterLoop]
    _breakers: dict[str, Breaker]
    _prefix: bytes

    def breaker_for(self, node_id: str) -> Breaker:
        """Return the breaker of a node, which all loops share."""
        raise NotImplementedError

    def nodes_of(self, key: bytes) -> tuple[str, ...]:
        """Return the ids of the nodes that a value needs: the owner of its slot, and, if another one, of its epochs.

        The id of no node is empty.
        """
        owner, slot = self.view.map.owner, key_slot(key)
        node, judge = owner(slot), owner(_anchor_slots()[group_of(slot)])
        ids = "" if node is None else node.id, "" if judge is None else judge.id
        return ids[:1] if node is judge else ids

    def reaches(self, key: bytes) -> bool:
        """Return whether some loop has connections to all nodes that a value needs, and would notice the loss."""
        return all(map(self._answers, self.nodes_of(key)))

    def is_only(self, connection: "Connection") -> bool:
        """Return whether no other connection leads to the same node and is up."""
        node_id = self.node_id(connection)
        return not any(wire is not connection and self.node_id(wire) == node_id for wire in self.established())

    def breaker_of(self, key: bytes) -> Breaker:
        """Return the breaker of the owner of a key."""
        node = self.view.map.owner(key_slot(key))
        return self._breaker if node is None else self._breakers.get(node.id, self._breaker)

    def owners_since(self, at: float) -> "list[Wire]":
        """Return the running loop's connections to the owners of all slots that have moved since a monotonic second.

        :raises CacheUnavailableError: after `aclose`.
        """
        owner, moved_at = self.view.map.owner, self.view.moved_at
        moved = {owner(slot) for slot in range(SLOTS) if moved_at[slot] >= at}
        present = {self.node_id(wire): wire for wire in self.servers()} if moved else {}
        return [present[node.id] for node in moved if node is not None and node.id in present]

    async def primaries(self) -> "list[Wire]":
        """Return the running loop's connections to all primaries, once they are known.

        :raises CacheUnavailableError: when no node tells them.
        """
        if not self.view.map.nodes:
            # Any node answers a read, a replica by naming the owner; nothing else of a replica counts.
            probe = self._prefix + b"probe"
            await self.wire(probe).execute(count([probe]))
        return self.servers()

    def breakers(self) -> list[Breaker]:
        """Return the breakers of all nodes that were ever asked."""
        return list(self._breakers.values())

    def slot_of(self, key: bytes) -> int | None:
        """Return the slot of a key."""
        return key_slot(key)

    def node_of(self, key: bytes) -> str | None:
        """Return the address of the primary that has a key, as ``host:port``; None while no node is known to."""
        node = self.view.map.owner(key_slot(key))
        return None if node is None else shown(*node.address)

    def node_led_to(self, connection: "Connection") -> str | None:
        """Return the address of the primary that a connection leads to, as ``host:port``; None for other nodes."""
        node = self.view.map.nodes.get(self.node_id(connection))
        return None if node is None else shown(*node.address)

    def primaries_known(self) -> dict[str, bytes]:
        """Return for each primary, by its address, a key that it has."""
        owner, left = self.view.map.owner, dict(self.view.map.nodes)
        found: dict[str, bytes] = {}
        for number in range(_MOST_PROBES):
            if not left:
                break
            key = b"%bprobe{%d}" % (self._prefix, number)
            node = owner(key_slot(key))
            if node is not None and left.pop(node.id, None) is not None:
                found[shown(*node.address)] = key
        return found

    def figures(self, now: float) -> dict[str, dict[str, Any]]:
        """Return the figures of each primary by its address."""
        known, slots = self.view.map, dict[str, int]()
        for first, last, node in known.ranges:
            slots[node.id] = slots.get(node.id, 0) + last + 1 - first
        up = list(map(self.node_id, self.established()))
        return {
            shown(*node.address): {
                "slots": slots[node.id],
                "connections": up.count(node.id),
                "breaker": self.breaker_for(node.id).as_dict(now),
            }
            for node in known.nodes.values()
        }

    def node_id(self, connection: "Connection") -> str:
        """Return the id of the node that a connection leads to; empty while that is not known."""
        assert isinstance(connection, ClusterWire)
        return connection.node_id

    def moved(self, key: bytes) -> float:
        """Return the monotonic second at which the slot of a key has moved; -inf if it never did."""
        return self.view.moved_at[key_slot(key)]

    def _answers(self, node_id: str) -> bool:
        return bool(node_id) and any(self.node_id(wire) == node_id for wire in self.established())


@cache
def _anchor_slots() -> list[int]:
    return [key_slot(anchor_tag(group)) for group in range(GROUPS)]
