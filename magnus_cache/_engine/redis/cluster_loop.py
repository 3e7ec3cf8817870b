"""The connections of one event loop to the nodes of a cluster: which one has a key, and what the nodes tell.

Everything here runs on that loop. What all loops share is the `ClusterView`: the map, and which node was confirmed at
what time.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.redis import cluster_origins as origins
from magnus_cache._engine.redis import cluster_scripts
from magnus_cache._engine.redis.cluster_redirects import Asked, Redirects, Shared
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.diagnosis import TopologyError
from magnus_cache._engine.redis.exchange import Callback, as_it_is
from magnus_cache._engine.redis.slots import ClusterNode, MapChanges, SlotMap, address_id, group_of, key_slot
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.deployment import Deployment

__all__ = ["ClusterLoop"]

_PART: Final = 4
"""Other nodes are asked for their word after 1/`_PART` of the staleness bound."""

_REFRESH: Final = 0.04
"""Seconds between two urgent questions about the map."""

_WORDS: Final = 2
"""Nodes that are asked for their word each time: one of them may be the one that is to be confirmed."""


class ClusterLoop:
    """See the module.

    :ivar wires: by the id of the node.
    :ivar routes: the connection of each slot that was asked for, by the map `routed_by`; such a connection may be down.
    :ivar deployment: how nodes are reached.
    """

    def __init__(self, topology: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self._topology = topology
        self.loop = loop
        self.deployment: Deployment = topology.deployment
        self.wires: dict[str, ClusterWire] = {}
        self.routes: list[ClusterWire | None] = []
        self.routed_by: SlotMap | None = None
        self._seed: ClusterWire | None = None
        self._asked_at = -math.inf
        self._urgent_at = -math.inf
        self._turn = 0
        self._retired: dict[ClusterWire, asyncio.TimerHandle] = {}
        self.redirects = Redirects(self, topology)

    # -- which connection ---------------------------------------------------------------------------------------

    def wire_of(self, key: bytes) -> ClusterWire:
        """Return the connection to the owner of a key, or, while there is none, one to some node."""
        slot, known = key_slot(key), self._topology.view.map
        node = known.owner(slot)
        if node is None:
            return self.seed()
        if self.routed_by is not known:
            self.routes, self.routed_by = [None] * len(self._topology.view.moved_at), known
        wire = self.routes[slot] = self.wire_to(node)
        if not wire.up:
            self._look_for_successor()
        return wire

    def _look_for_successor(self) -> None:
        """Ask the other nodes about the map: nothing is sent to a node that is away, so nothing else does.

        When its connection was lost, they may not have known yet who takes its place.
        """
        self.confirm()

    def wire_to(self, node: ClusterNode) -> ClusterWire:
        """Return the connection to a node, created if needed."""
        wire = self.wires.get(node.id)
        if wire is None and node.id == address_id(*node.address):
            # It has told its id since a redirection named it.
            wire = next((each for each in self.wires.values() if each.address == node.address), None)
        if wire is not None and not wire.over and wire.address == node.address:
            return wire
        if wire is not None:
            wire.stop()
        wire = self._topology.new_wire(self.deployment.at(*node.address), node.id)
        wire.address = node.address
        wire.join(self, node.id)
        self.wires[node.id] = wire
        return wire

    def seed(self) -> ClusterWire:
        """Return a connection to any node: one that is up, or else one that tries all that are known."""
        for wire in self.wires.values():
            if wire.up:
                return wire
        if self._seed is None or self._seed.over:
            places = dict.fromkeys((*self.deployment.seeds, *(node.address for node in self._topology.view.known)))
            seeds = tuple(self.deployment.at(*place) for place in places)
            self._seed = self._topology.new_wire(seeds[0], "")
            self._seed.join(self, seeds=seeds)
        return self._seed

    def primaries(self) -> list[ClusterWire]:
        """Return the connections to all primaries; to some node while they are not known."""
        nodes = self._topology.view.map.nodes.values()
        return [self.wire_to(node) for node in nodes] or [self.seed()]

    def all_wires(self) -> list[ClusterWire]:
        """Return all connections that there are."""
        wires = [*self.wires.values(), *self._retired]
        return wires if self._seed is None or self._seed in wires else [*wires, self._seed]

    # -- what a node tells ----------------------------------------------------------------------------------------

    def introduced(self, wire: ClusterWire, found: SlotMap) -> None:
        """Note what a node has answered in the handshake.

        :raises TopologyError: if it is another node than before, or one of another cluster while nodes of this one
            answer.
        """
        name = next((name for name, each in self.wires.items() if each is wire), None)
        # A redirection names a node by its address alone.
        is_new = name == address_id(*wire.address) and wire.node_id not in self.wires
        if name != wire.node_id and not is_new and wire is not self._seed and wire not in self._retired:
            raise TopologyError("another node answers there than before; the cache looks for the present ones")
        if self._topology.view.is_foreign(found) and any(each.up for each in self.all_wires()):
            raise TopologyError("it belongs to another cluster than the other nodes; name nodes of one cluster only")
        node = found.nodes.get(wire.node_id)
        if wire is self._seed and node is not None and self.wires.get(node.id) is None:
            # The seed is one of the primaries: one connection does for both.
            wire.address, wire.seeds, self._seed = node.address, (), None
            wire.switch_breaker(self._topology.breaker_for(node.id))
            self.wires[node.id] = wire
        if is_new:
            self.wires = {each.node_id if each is wire else key: each for key, each in self.wires.items()}
            wire.switch_breaker(self._topology.breaker_for(wire.node_id))
        self._topology.view.adopt(found, wire.node_id, self._topology.clock())
        if wire is self._seed and self._topology.view.map.nodes:
            # A replica, or a primary that there is a connection to. If all connections were lost, the others may answer
            # now as well, or live elsewhere.
            self._topology.retry_now()
            self._seed = None
            self._retire(wire)
        self._topology.check_seeds()

    # -- whether writes are missing ---------------------------------------------------------------------------------

    def identity_of(self, node_id: str) -> bytes | None:
        """Return the identity of a primary that a connection leads to now; None without one.

        One whose place another has taken may still answer, and does not count.
        """
        if not self.is_primary(node_id):
            return None
        wire = self._wire_up(node_id)
        return None if wire is None else wire.identity

    def _wire_up(self, node_id: str) -> ClusterWire | None:
        return next((wire for wire in self.all_wires() if wire.node_id == node_id and wire.up), None)

    def identity_beside(self, wire: ClusterWire, suffix: bytes, node_id: str) -> bytes | None:
        """Return what `identity_of` does; None unless that primary has itself passed on what another node has now.

        :param wire: the connection to the other node.
        :param suffix: of a group, of which both have, or had, slots.
        """
        return self.identity_of(node_id) if self._has_passed_on(node_id, wire, suffix) else None

    def _has_passed_on(self, node_id: str, owner: ClusterWire, suffix: bytes) -> bool | None:
        """Return what `origins.has_passed_on` does, None without a connection to the noted node."""
        noted, view = self._wire_up(node_id), self._topology.view
        if noted is None:
            return None
        slots = view.map.slots_of(owner.node_id, group_of(key_slot(suffix)))
        since = max((view.moved_at[slot] for slot in slots), default=-math.inf)
        return origins.has_passed_on(slots, since, noted.word, owner.word)

    async def hear(self, suffix: bytes, noted: Iterable[str]) -> None:
        """Return once nodes have told who has which slots of a group, asked since these moved, or in `op_timeout` / 2.

        :param noted: the ids of the group's origins.
        """
        until = self._topology.clock() + self._topology.op_timeout / 2
        pairs = [(node, wire) for node in noted for wire in self.unsure(suffix) if wire.node_id != node]
        while self._topology.clock() < until:
            open_ = [pair for pair in pairs if self.identity_of(pair[0]) and self._has_passed_on(*pair, suffix) is None]
            if not open_:
                return
            asked = dict.fromkeys(each for node, wire in open_ for each in (self._wire_up(node), wire))
            await self._ask_all((each for each in asked if each is not None), until)
            if any(self._has_passed_on(*pair, suffix) is None for pair in open_):
                await asyncio.sleep(_REFRESH / 2)

    async def _ask_all(self, wires: Iterable[ClusterWire], until: float) -> None:
        """Ask nodes about the map, and wait for their answers until a monotonic second."""
        waiters: list[asyncio.Future[None]] = []
        for wire in wires:
            waiter: asyncio.Future[None] = self.loop.create_future()
            with contextlib.suppress(CacheUnavailableError):
                wire.ask_about_cluster(partial(_settle, waiter))
                waiters.append(waiter)
        if waiters:
            await asyncio.wait(waiters, timeout=max(until - self._topology.clock(), 0))

    def joined(self, wire: ClusterWire, suffix: bytes) -> None:
        """Note a node beside a group's other origins.

        None is taken away before the next invalidation of the group: a map that lags behind would take away one that
        has just got slots.
        """
        server = self._topology.server_name + suffix
        command = cluster_scripts.join(server, origins.entry(wire.node_id, wire.identity))
        # If it fails, the next process finds the same.
        with contextlib.suppress(CacheUnavailableError):
            self.wire_of(server).call(command, as_it_is, Callback())

    def unsure(self, suffix: bytes) -> list[ClusterWire]:
        """Return the connections whose servers may lack writes of a group."""
        return [wire for wire in self.all_wires() if wire.is_unknown(suffix)]

    def is_primary(self, node_id: str) -> bool:
        """Whether a node owns slots."""
        return node_id in self._topology.view.map.nodes

    async def successors(
        self, suffix: bytes, noted: dict[str, bytes], doubted: list[ClusterWire]
    ) -> dict[str, bytes] | None:
        """Return the origins of a group with the successors of former primaries in their place.

        None unless each of these primaries tells that its successor has all its writes.

        :param suffix: of the group.
        :param noted: the origins.
        :param doubted: the connections to servers that may lack writes of the group.
        """
        found = dict(noted)
        for node, identity in noted.items():
            others = [wire for wire in doubted if wire.node_id != node]
            if self.identity_of(node) == identity and all(self._has_passed_on(node, each, suffix) for each in others):
                continue
            ends = {b":" + wire.server.former: wire for wire in doubted if wire.server.former}
            successor = next((wire for end, wire in ends.items() if identity.endswith(end)), None)
            former = next(
                (wire for wire in self.all_wires() if wire.node_id == node and wire.up and wire.identity == identity),
                None,
            )
            if successor is None or former is None or not await self._lacks_nothing(successor, former):
                return None
            del found[node]
            found[successor.node_id] = successor.identity
        return found

    async def _lacks_nothing(self, successor: ClusterWire, former: ClusterWire) -> bool:
        """Return whether a former primary tells, in time, that its successor has all its writes."""
        # It takes some milliseconds until it is a replica.
        until = self._topology.clock() + self._topology.op_timeout / 2
        identity, history = former.identity, successor.server.history
        while former.up and former.identity == identity and self._topology.clock() < until:
            try:
                told = origins.lacks_nothing(identity, await former.ask_history(), history)
            except CacheUnavailableError:
                return False
            if told is not None:
                return told and former.up and successor.up and successor.server.history == history
            await asyncio.sleep(_REFRESH / 2)
        return False

    async def meet(self) -> None:
        """Return once a connection leads to each primary, as far as they answer."""
        absent = [wire for wire in self.primaries() if not wire.up]
        if absent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._topology.op_timeout):
                    await asyncio.gather(*(wire.renew() for wire in absent), return_exceptions=True)

    # -- whether others confirm a node ------------------------------------------------------------------------------

    def confirmed_at(self, wire: ClusterWire) -> float:
        """Return the monotonic second at which another node was asked that has confirmed this one."""
        return self._topology.view.vouched.get(wire.node_id, -math.inf)

    def confirm(self, *, urgent: bool = False) -> None:
        """Ask other nodes about the map, unless that is under way or was done just now."""
        now = self._topology.clock()
        if urgent:
            if now < self._urgent_at + _REFRESH:
                return
            self._urgent_at = now
        elif now < self._asked_at + self._topology.max_staleness / _PART:
            return
        self._asked_at = now
        # In the next turn: this is called while a connection sends.
        self.loop.call_soon(self._ask_others)

    def _ask_others(self) -> None:
        nodes = list(self._topology.view.map.nodes.values())
        if not nodes or not self._topology.is_open:
            return
        self._turn += 1
        asked = 0
        for offset in range(len(nodes)):
            wire = self.wire_to(nodes[(self._turn + offset) % len(nodes)])
            try:
                wire.ask_about_cluster()
            except CacheUnavailableError:
                continue
            # One that is not up yet answers late, if ever.
            asked += wire.up
            if asked == _WORDS:
                return

    def told(self, wire: ClusterWire, state: Any, found: SlotMap, sent: float) -> None:
        """Take a node's answer about the state of the cluster and its map.

        A node that has lost the majority does not know what the others decide, so its word counts for nothing.
        """
        if info(state, b"cluster_state") != "ok":
            return
        self._topology.view.adopt(found, wire.node_id, self._topology.clock())
        self._topology.view.confirm(found, wire.node_id, sent)

    def redirected(self, wire: ClusterWire, asked: Asked, error: Exception) -> None:
        """Queue a request again that a node has sent elsewhere; settle it in any case."""
        self.redirects.take(wire, asked, error)

    def end(self, error: CacheUnavailableError) -> None:
        """Fail what waits to be sent again."""
        for timer in self._retired.values():
            timer.cancel()
        self.redirects.end(error)

    def went_away(self) -> None:
        """Ask the others about the map: a replica may take over. Without any, look for them where the settings say."""
        if not self._topology.is_open:
            return
        self.confirm(urgent=True)
        if not any(each.up for each in self.all_wires()):
            with contextlib.suppress(CacheUnavailableError, CacheClosedError):
                self.seed().ask_about_cluster()

    def apply(self, moved: MapChanges) -> None:
        """Distrust what was read of slots that have moved, and send again what waits for one of them."""
        for wire in self.all_wires():
            if wire.up:
                wire.slots_moved(moved)
        for node_id, wire in list(self.wires.items()):
            if node_id not in self._topology.view.map.nodes:
                del self.wires[node_id]
                self._retire(wire)
                wire.replaced()
        self.redirects.resume(moved)

    def _retire(self, wire: ClusterWire) -> None:
        """End a connection that no call begins with any more, once those that have begun with it are over."""
        # A connection that has nothing to do now may be between two requests of a call.
        self._retired[wire] = self.loop.call_later(2 * self._topology.op_timeout, self._end_unused, wire, wire.sends)

    def _end_unused(self, wire: ClusterWire, sends: int) -> None:
        del self._retired[wire]
        if wire.is_idle and wire.sends == sends:
            wire.stop()
        elif not wire.over:
            self._retire(wire)

    def vouch(self, node_id: str, at: float) -> None:
        """Pass on another node's word to the connections that it is about.

        There may be two: one that a redirection has made, which knew the address alone, has requests to end.
        """
        for wire in self.all_wires():
            if wire.node_id == node_id:
                wire.vouched(at)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
