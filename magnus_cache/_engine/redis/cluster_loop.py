"""The connections of one event loop to the nodes of a cluster: which one has a key, and what a node sends elsewhere.

Everything here runs on that loop. What all loops share is the `ClusterView`: the map, and which node was confirmed at
what time.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import AskError, MovedError, ResponseError

from magnus_cache._engine.redis import cluster_scripts
from magnus_cache._engine.redis.cluster_journeys import Journey, RedirectedBatch, RedirectedCall, RedirectedRead
from magnus_cache._engine.redis.cluster_scripts import Steps
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.commands import Command, info, pack
from magnus_cache._engine.redis.exchange import Callback, Connection, ReadBatch, as_it_is
from magnus_cache._engine.redis.requests import Call, Read
from magnus_cache._engine.redis.slots import ClusterNode, Respondent, SlotMap, SlotMapError, key_slot, redirected
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.breaker import Breaker
    from magnus_cache._engine.redis.cluster_view import ClusterView
    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["ClusterLoop", "Shared"]

_FIRST_PAUSE: Final = 0.005
"""Seconds before a request is repeated that came back for the second time; doubled each time."""

_LONGEST_PAUSE: Final = 0.1

_PART: Final = 4
"""Other nodes are asked for their word after 1/`_PART` of the staleness bound."""

_REFRESH: Final = 0.04
"""Seconds between two urgent questions about the map."""

_WORDS: Final = 2
"""Nodes that are asked for their word each time: one of them may be the one that is to be confirmed."""


_Asked = Read | ReadBatch | Call


class Shared(Protocol):
    """What all loops share; see `ClusterTopology`."""

    deployment: "Deployment"
    view: "ClusterView"
    clock: "Clock"
    max_staleness: float
    op_timeout: float

    @property
    def is_open(self) -> bool:
        """Whether connections may still be created."""
        ...

    def new_wire(self, endpoint: "Endpoint", node_id: str) -> ClusterWire:
        """Return a new connection of the running loop."""
        ...

    def breaker_for(self, node_id: str) -> "Breaker":
        """Return the breaker of a node."""
        ...

    def is_control(self, name: bytes) -> bool:
        """Whether a name is that of a control key."""
        ...


class ClusterLoop:
    """See the module.

    :ivar wires: by the id of the node.
    :ivar routes: the connection of each slot that was asked for, by the map `routed_by`; such a connection may be over.
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
        self._introduced_at = math.inf
        self._urgent_at = -math.inf
        self._turn = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._postponed: dict[asyncio.TimerHandle, _Asked] = {}

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
        return wire

    def wire_to(self, node: ClusterNode) -> ClusterWire:
        """Return the connection to a node, created if needed."""
        wire = self.wires.get(node.id)
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
        wires = list(self.wires.values())
        return wires if self._seed is None or self._seed in wires else [*wires, self._seed]

    # -- what a node tells ----------------------------------------------------------------------------------------

    def introduced(self, wire: ClusterWire, found: SlotMap) -> None:
        """Note what a node has answered in the handshake."""
        node = found.nodes.get(wire.node_id)
        if wire is self._seed and node is not None and self.wires.get(node.id) is None:
            # The seed is one of the primaries: one connection does for both.
            wire.address, wire.seeds, self._seed = node.address, (), None
            wire.switch_breaker(self._topology.breaker_for(node.id))
            self.wires[node.id] = wire
        elif wire is self._seed:
            self._introduced_at = self._topology.clock()
        self._topology.view.adopt(found, wire.node_id, self._topology.clock())

    def identities(self) -> set[bytes]:
        """Return the identities of all nodes that a connection leads to now."""
        return {wire.identity for wire in self.wires.values() if wire.up and wire.identity}

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
        self._end_seed()
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

    def told(self, wire: ClusterWire, state: Any, reply: Any, sent: float) -> None:
        """Take a node's answer about the state of the cluster and its map.

        A node that has lost the majority does not know what the others decide, so its word counts for nothing.
        """
        if info(state, b"cluster_state") != "ok":
            return
        try:
            found = wire.map_in(reply)
        except SlotMapError:
            return
        self._topology.view.adopt(found, wire.node_id, self._topology.clock())
        self._topology.view.confirm(found, wire.node_id, sent)

    def went_away(self, wire: ClusterWire) -> None:
        """Ask the others about the map: a replica may take over."""
        if self._topology.is_open:
            self.confirm(urgent=True)

    def apply(self, affected: set[str]) -> None:
        """Distrust what was read from some nodes, as slots of theirs have moved; end connections to those without."""
        for node_id, wire in list(self.wires.items()):
            if node_id in affected and wire.up:
                wire.suspect()
            if node_id not in self._topology.view.map.nodes and wire.is_idle:
                del self.wires[node_id]
                wire.stop()
        self._end_seed()

    def _end_seed(self) -> None:
        """End the connection to a replica that has told the map, once all calls are over that began before."""
        since = self._topology.clock() - self._introduced_at
        if self._seed is not None and self._seed.is_idle and since > self._topology.op_timeout:
            self._seed.stop()
            self._seed = None

    def vouch(self, node_id: str, at: float) -> None:
        """Pass on another node's word to the connection that it is about."""
        wire = self.wires.get(node_id)
        if wire is not None:
            wire.vouched(at)

    # -- what a node sends elsewhere ------------------------------------------------------------------------------

    def redirected(self, wire: ClusterWire, asked: _Asked, error: Exception) -> None:
        """Queue a request again that a node has sent elsewhere; settle it in any case."""
        now = self._topology.clock()
        journey = getattr(asked, "journey", None) or Journey(now)
        journey.hops += 1
        if not isinstance(asked, RedirectedRead | RedirectedCall | RedirectedBatch):
            asked = self._begin(asked, journey, wire)
        if now > journey.began + self._topology.op_timeout or not self._topology.is_open:
            self._fail(asked, _unsettled(error))
            return
        if isinstance(asked, Call) and isinstance(asked.command, Steps) and not isinstance(error, MovedError):
            self._one_by_one(asked, asked.command.parts, journey, self._node_of(wire))
            return
        node: ClusterNode | None = None
        if isinstance(error, AskError):
            try:
                node = self._node_at(error, wire)
            except SlotMapError:
                self._fail(asked, _unsettled(error))
                return
        if isinstance(error, MovedError) and node is not None:
            self._topology.view.moved(error.slot_id, node, now)
            self.confirm(urgent=True)
        elif node is not None:
            self._ask(asked, self.wire_to(node), wire)
            return
        else:
            # TRYAGAIN, or a slot without an owner.
            self.confirm(urgent=True)
        pause = 0.0
        if node is None or journey.hops > 1:
            pause = min(_FIRST_PAUSE * math.exp2(journey.hops - 1), _LONGEST_PAUSE)
        if pause:
            self._later(pause, asked, node or self._node_of(wire))
        else:
            self._send(asked, node or self._node_of(wire))

    def _begin(self, asked: _Asked, journey: Journey, wire: ClusterWire) -> _Asked:
        if isinstance(asked, Read):
            found = RedirectedRead(asked, journey)
            if self._topology.is_control(asked.name):
                found.receive = partial(self._lent, asked, wire)
            return found
        return RedirectedBatch(asked, journey) if isinstance(asked, ReadBatch) else RedirectedCall(asked, journey)

    def _lent(self, asked: Read, wire: ClusterWire, raw: Any, _connection: Connection, sent: float) -> Any:
        """Take the answer to a control key for the connection that the values come through which it judges.

        The group is split: its anchor is on another node. That one announces changes on another connection, not in
        order with the values. So such an epoch counts for half of the staleness bound, and values judged by it end
        with it.
        """
        result = asked.receive(raw, wire, sent)
        wire.known.lent[asked.name] = sent + self._topology.max_staleness / 2
        return result

    def _node_of(self, wire: ClusterWire) -> ClusterNode:
        node = self._topology.view.map.nodes.get(wire.node_id)
        return node or ClusterNode(wire.node_id, *wire.address)

    def _node_at(self, error: AskError, wire: ClusterWire) -> ClusterNode:
        """Return the node that an error names.

        :raises SlotMapError: for an impossible address.
        """
        here = Respondent(wire.host, remap=self.deployment.remap)
        place = redirected("unknown", error.host, error.port, here)
        for node in self._topology.view.known:
            if node.address == place.address:
                return node
        return place._replace(id=f"{place.host}:{place.port}")

    def _later(self, pause: float, asked: _Asked, node: ClusterNode) -> None:
        def due() -> None:
            self._timers.discard(timer)
            self._postponed.pop(timer, None)
            self._send(asked, self._by_slot(asked, node))

        timer = self.loop.call_later(pause, due)
        self._timers.add(timer)
        self._postponed[timer] = asked

    def _one_by_one(self, asked: Call, parts: Sequence[Command], journey: Journey, node: ClusterNode) -> None:
        """Send the parts of a command one after the other: their keys may be on two nodes while the slot is moved.

        Together they would be refused; and sent together to the target, they would create a key there that the source
        still has.
        """
        first, *others = parts
        if not others:
            self._send(RedirectedCall(Call(first, asked.receive, asked.waiter), journey), node)
            return

        def answered(_reply: object) -> None:
            self._one_by_one(asked, others, journey, self._topology.view.map.nodes.get(node.id, node))

        def failed(error: BaseException) -> None:
            if not asked.waiter.done():
                asked.waiter.set_exception(error)

        self._send(RedirectedCall(Call(first, as_it_is, Callback(answered, failed)), journey), node)

    def _by_slot(self, asked: _Asked, node: ClusterNode) -> ClusterNode:
        """Return the owner of what is asked for, as known by now; of a command, the node that was named."""
        name = asked.name if isinstance(asked, Read) else asked.wanted[0].name if isinstance(asked, ReadBatch) else None
        owner = None if name is None else self._topology.view.map.owner(key_slot(name))
        return owner or node

    def _send(self, asked: _Asked, node: ClusterNode) -> None:
        try:
            self.wire_to(node).enqueue(asked)
        except CacheUnavailableError as error:
            self._fail(asked, error)

    def _ask(self, asked: _Asked, target: ClusterWire, source: ClusterWire) -> None:
        """Ask the node that a slot is being moved to. What it answers is not kept: it announces nothing about it."""
        call: Call | None = None
        if isinstance(asked, Call):
            command = cluster_scripts.asking(asked.command)
            call = None if command is None else RedirectedCall(Call(command, asked.receive, asked.waiter), _of(asked))
        elif isinstance(asked, Read):
            call = Call(_asking_get(asked.name), asked.receive, asked.waiter)
        else:
            batch, receiver = asked, asked.receiver
            wanted, waiter = batch.wanted[0], batch.waiters[0]
            receiver.unanswered(batch, slice(0, 1))
            batch.places[0] = None

            def received(reply: Any, _connection: Connection, sent: float) -> None:
                # Judged by the epochs of the slot's owner.
                one = ReadBatch(receiver)
                one.add(wanted, None, waiter)
                receiver.received(one, slice(0, 1), [reply if type(reply) is bytes else None], source, sent)

            def failed(error: BaseException) -> None:
                if not waiter.done():
                    waiter.set_exception(error)

            call = Call(_asking_get(wanted.name), received, Callback(None, failed))
        if call is None:
            self._fail(asked, _unsettled(ResponseError("ASK")))
            return
        try:
            target.enqueue(call)
        except CacheUnavailableError as error:
            self._fail(asked, error)

    def _fail(self, asked: _Asked, error: CacheUnavailableError) -> None:
        waiters = asked.waiters if isinstance(asked, ReadBatch) else [asked.waiter]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error.again())
        if isinstance(asked, ReadBatch):
            asked.receiver.unanswered(asked, slice(0, len(asked)))

    def end(self, error: CacheUnavailableError) -> None:
        """Fail what waits to be sent again."""
        postponed, self._postponed = self._postponed, {}
        for timer, asked in postponed.items():
            timer.cancel()
            self._fail(asked, error)


def _of(asked: Call) -> Journey:
    journey = asked.journey if isinstance(asked, RedirectedCall) else None
    assert journey is not None
    return journey


def _asking_get(name: bytes) -> Command:
    return Command("GET", pack(b"ASKING") + pack(b"GET", name), 2)


def _unsettled(error: Exception) -> CacheUnavailableError:
    return CacheUnavailableError(
        "clusterdown", f"the cluster does not settle who owns a slot ({str(error).split(' ', 1)[0]}); the cache waits"
    )
