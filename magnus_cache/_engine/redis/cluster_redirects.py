"""What a node of a cluster sends elsewhere: queued again at the node that has the slot, now or after a pause.

Everything here runs on the loop of the connections.
"""

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from magnus_cache._engine.redis import cluster_scripts
from magnus_cache._engine.redis.cluster_journeys import Journey, RedirectedBatch, RedirectedCall, RedirectedRead
from magnus_cache._engine.redis.cluster_scripts import Steps
from magnus_cache._engine.redis.cluster_unowned import UnownedSlots
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.exchange import Callback, Connection, ReadBatch, as_it_is, pass_error
from magnus_cache._engine.redis.requests import Call, Read
from magnus_cache._engine.redis.slots import (
    ClusterNode,
    MapChanges,
    Respondent,
    SlotMapError,
    address_id,
    key_slot,
    redirected,
)
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.breaker import Breaker
    from magnus_cache._engine.redis.cluster_view import ClusterView
    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["Asked", "Redirects", "Shared"]

_FIRST_PAUSE: Final = 0.005
"""Seconds before a request is repeated that came back for the second time; doubled each time."""

_LONGEST_PAUSE: Final = 0.1

Asked = Read | ReadBatch | Call
"""A request to a node."""


class Shared(Protocol):
    """What all loops share; see `ClusterTopology`."""

    deployment: "Deployment"
    view: "ClusterView"
    clock: "Clock"
    max_staleness: float
    op_timeout: float
    server_name: bytes

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

    def check_seeds(self) -> None:
        """Find out once whether all nodes that the settings name belong to one cluster."""

    def warn(self, topic: str, problem: str) -> None:
        """Warn of something that is wrong with the cluster, which can be used nevertheless."""

    def retry_now(self) -> None:
        """Let connections to all nodes be tried now: one of them answers again."""


class _Nodes(Protocol):
    """The connections of the loop; see `ClusterLoop`."""

    loop: asyncio.AbstractEventLoop

    def wire_to(self, node: ClusterNode) -> ClusterWire:
        """Return the connection to a node, created if needed."""
        ...

    def confirm(self, *, urgent: bool = False) -> None:
        """Ask other nodes about the map, unless that is under way or was done just now."""


class Redirects:
    """See the module."""

    def __init__(self, nodes: _Nodes, topology: Shared) -> None:
        self._nodes = nodes
        self._topology = topology
        self._unowned = UnownedSlots(topology.view, topology.op_timeout, topology.warn)
        self._postponed: dict[asyncio.TimerHandle, tuple[Asked, ClusterNode]] = {}

    def take(self, wire: ClusterWire, asked: Asked, error: Exception) -> None:
        """Queue a request again that a node has sent elsewhere; settle it in any case."""
        now = self._topology.clock()
        journey = getattr(asked, "journey", None) or Journey(now)
        journey.hops += 1
        if not isinstance(asked, RedirectedRead | RedirectedCall | RedirectedBatch):
            asked = self._begin(asked, journey, wire)
        if self._unowned.gives_up(journey, error, now) or not self._topology.is_open:
            self._fail(asked, self._unowned.error(error))
            return
        if isinstance(asked, Call) and isinstance(asked.command, Steps) and not isinstance(error, MovedError):
            self._one_by_one(asked, asked.command, [], journey, self._node_of(wire))
            return
        node: ClusterNode | None = None
        if isinstance(error, AskError):
            try:
                node = self._node_at(error, wire)
            except SlotMapError:
                self._fail(asked, self._unowned.error(error))
                return
        if isinstance(error, MovedError) and node is not None:
            self._topology.view.moved(error.slot_id, node, now)
            self._nodes.confirm(urgent=True)
        elif node is not None:
            self._ask(asked, self._nodes.wire_to(node), wire)
            return
        else:
            # TRYAGAIN, or a slot without an owner.
            if isinstance(error, ClusterDownError) and (name := _name_of(asked)) is not None:
                self._topology.view.abandoned(key_slot(name), now)
            self._nodes.confirm(urgent=True)
        pause = 0.0
        if node is None or journey.hops > 1:
            pause = min(_FIRST_PAUSE * math.exp2(journey.hops - 1), _LONGEST_PAUSE)
        if pause:
            self._later(pause, asked, node or self._node_of(wire))
        else:
            self._send(asked, node or self._node_of(wire))

    def _begin(self, asked: Asked, journey: Journey, wire: ClusterWire) -> Asked:
        if isinstance(asked, Read):
            found = RedirectedRead(asked, journey)
            if self._topology.is_control(asked.name):
                found.receive, found.reader = partial(self._lent, asked, wire), wire
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
        here = Respondent(wire.host, remap=self._topology.deployment.remap)
        place = redirected("unknown", error.host, error.port, here)
        for node in self._topology.view.known:
            if node.address == place.address:
                return node
        if error.host in {"", "?"}:
            # The node that has answered was perhaps reached by another name than the one in the map.
            there = [node for node in self._topology.view.map.nodes.values() if node.port == place.port]
            if len(there) == 1:
                return there[0]
        return place._replace(id=address_id(*place.address))

    def _later(self, pause: float, asked: Asked, node: ClusterNode) -> None:
        def due() -> None:
            self._postponed.pop(timer, None)
            self._send(asked, self._by_slot(asked, node))

        timer = self._nodes.loop.call_later(pause, due)
        self._postponed[timer] = asked, node

    def resume(self, moved: MapChanges) -> None:
        """Send again, without further delay, what waits for slots that have moved by now."""
        for timer, (asked, node) in list(self._postponed.items()):
            name = _name_of(asked)
            # Of a command, the slot is not known here.
            if name is None or moved.covers_name(name):
                timer.cancel()
                del self._postponed[timer]
                self._send(asked, self._by_slot(asked, node))

    def _one_by_one(
        self, asked: Call, steps: Steps, replies: list[Any], journey: Journey, node: ClusterNode
    ) -> None:  # fmt: skip
        """Send the parts of a command one after the other: their keys may be on two nodes while the slot is moved.

        Together they would be refused; and sent together to the target, they would create a key there that the source
        still has.

        :param replies: those to the parts that were sent before.
        """
        part = steps.parts[len(replies)]
        if len(replies) == len(steps.parts) - 1:

            def received(reply: Any, connection: Connection, sent: float) -> Any:
                return asked.receive(steps.combined([*replies, reply]), connection, sent)

            self._send(RedirectedCall(Call(part, received, asked.waiter), journey), node)
            return

        def answered(reply: object) -> None:
            owner = self._topology.view.map.nodes.get(node.id, node)
            self._one_by_one(asked, steps, [*replies, reply], journey, owner)

        waiter = Callback(answered, partial(pass_error, asked.waiter))
        self._send(RedirectedCall(Call(part, as_it_is, waiter), journey), node)

    def _by_slot(self, asked: Asked, node: ClusterNode) -> ClusterNode:
        """Return the owner of what is asked for, as known by now; of a command, the node that was named."""
        name = _name_of(asked)
        owner = None if name is None else self._topology.view.map.owner(key_slot(name))
        return owner or node

    def _send(self, asked: Asked, node: ClusterNode) -> None:
        try:
            self._nodes.wire_to(node).enqueue(asked)
        except CacheUnavailableError as error:
            self._fail(asked, error)

    def _ask(self, asked: Asked, target: ClusterWire, source: ClusterWire) -> None:
        """Ask the node that a slot is being moved to. What it answers is not kept: it announces nothing about it."""
        call: Call | None = None
        if isinstance(asked, Call):
            command = cluster_scripts.asking(asked.command)
            call = None if command is None else RedirectedCall(Call(command, asked.receive, asked.waiter), _of(asked))
        elif isinstance(asked, Read):
            receive = asked.receive
            if not self._topology.is_control(asked.name):
                receive = partial(self._not_kept, asked, source)
            call = Call(cluster_scripts.asking_get(asked.name), receive, asked.waiter)
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

            ended = Callback(None, partial(pass_error, waiter))
            call = Call(cluster_scripts.asking_get(wanted.name), received, ended)
        if call is None:
            self._fail(asked, self._unowned.error(ResponseError("ASK")))
            return
        try:
            target.enqueue(call)
        except CacheUnavailableError as error:
            self._fail(asked, error)

    def _not_kept(self, asked: Read, source: ClusterWire, raw: Any, _connection: Connection, sent: float) -> Any:
        """Take a value from the node that its slot is being moved to, judged by the epochs of the slot's owner."""
        self._topology.view.answered_elsewhere(key_slot(asked.name), self._topology.clock())
        return asked.receive(raw, source, sent)

    def _fail(self, asked: Asked, error: CacheUnavailableError) -> None:
        waiters = asked.waiters if isinstance(asked, ReadBatch) else [asked.waiter]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error.again())
        if isinstance(asked, ReadBatch):
            asked.receiver.unanswered(asked, slice(0, len(asked)))

    def end(self, error: CacheUnavailableError) -> None:
        """Fail what waits to be sent again."""
        postponed, self._postponed = self._postponed, {}
        for timer, (asked, _) in postponed.items():
            timer.cancel()
            self._fail(asked, error)


def _name_of(asked: Asked) -> bytes | None:
    """Return the name of what is to be read; None for a command."""
    return asked.name if isinstance(asked, Read) else asked.wanted[0].name if isinstance(asked, ReadBatch) else None


def _of(asked: Call) -> Journey:
    journey = asked.journey if isinstance(asked, RedirectedCall) else None
    assert journey is not None
    return journey
