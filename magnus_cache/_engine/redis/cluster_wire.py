"""The connection of one event loop to one node of a cluster.

It is a `ConfirmedWire` that knows which node it leads to, answers for that node only while another one confirms it, and
passes on what belongs elsewhere; see `cluster_pipeline`. A cluster has one database, so its heartbeat needs no marker.

Whether a node may have lost writes
-----------------------------------
A replica that was put in the place of its primary, or a node that was started anew, may lack the latest writes: deleted
values may be back, and so may old epochs. The key `magnus!server` of each group notes the servers whose writes the
group's data consists of, see `cluster_origins`. A connection reads it together with the root epoch of the group, before
the first value is judged by that epoch; from the node with the group's anchor, if the group is split. If all that are
noted are there, all is well. Else the root epoch counts as missing. Once there is a connection to each primary, the
noted ones are looked at again. If one is missing even then, a new root epoch is issued, which invalidates the whole
group, and only then the group notes the present servers. So the first process that meets a new server pays with a cold
group, and the others find it noted.

The races that this excludes
----------------------------
- A delete, an overwrite or a bump was acknowledged by a primary and lost with it. Whatever came back with the replica
  is older than the new root epoch of the group.
- Two processes meet the server at the same time: one script stores the epoch and the identity, and the second process
  finds both. Otherwise it would invalidate what was loaded after the first one.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.asyncio.connection import AbstractConnection

from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.node_trust import NodeTrust
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis import cluster_origins as origins
from magnus_cache._engine.redis import cluster_questions, commands
from magnus_cache._engine.redis.cluster_answers import NodeAnswers
from magnus_cache._engine.redis.cluster_handshake import introduce_node
from magnus_cache._engine.redis.cluster_journeys import RedirectedRead
from magnus_cache._engine.redis.cluster_origins import Standing, Word
from magnus_cache._engine.redis.cluster_pipeline import ClusterPipeline, unable_node
from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.confirmed_pipeline import Question
from magnus_cache._engine.redis.connection import server_identity
from magnus_cache._engine.redis.diagnosis import none_of
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.exchange import Callback, Connection, ReadBatch, Receive, Waiter, as_it_is
from magnus_cache._engine.redis.heartbeat import Heartbeat, take_time
from magnus_cache._engine.redis.requests import Call, Read
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.redis.slots import (
    SLOTS,
    MapChanges,
    Respondent,
    SlotMap,
    SlotMapError,
    anchor_tag,
    from_shards,
    from_slots,
)
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["ClusterWire", "Neighbours"]

_MAPS: Final = {
    True: (cluster_questions.CLUSTER_SHARDS, from_shards), False: (cluster_questions.CLUSTER_SLOTS, from_slots),
}  # fmt: skip
"""How a node is asked about the map, and how the answer is read, by whether it knows CLUSTER SHARDS."""


class Neighbours(Protocol):
    """The connections of one loop to all nodes, as one of them sees them.

    :ivar deployment: how the nodes are reached.
    """

    deployment: "Deployment"

    def introduced(self, wire: "ClusterWire", found: SlotMap) -> None:
        """Note what a node has answered in the handshake: its id, and its map."""

    def redirected(self, wire: "ClusterWire", asked: Read | ReadBatch | Call, error: Exception) -> None:
        """Queue a request again that a node has sent elsewhere."""

    def identity_beside(self, wire: "ClusterWire", suffix: bytes, node_id: str) -> bytes | None:
        """Return the identity of a primary that a connection leads to now; None if another has taken its place."""
        ...

    def is_primary(self, node_id: str) -> bool:
        """Whether a node owns slots."""
        ...

    def joined(self, wire: "ClusterWire", suffix: bytes) -> None:
        """Note a node beside a group's other origins."""

    def confirmed_at(self, wire: "ClusterWire") -> float:
        """Return the monotonic second at which another node was asked that has confirmed this one."""
        ...

    def confirm(self, *, urgent: bool = False) -> None:
        """Ask other nodes about the map, unless that is under way or was done just now."""

    def went_away(self) -> None:
        """Note that a connection was lost: its node's replica may take over."""

    def told(self, wire: "ClusterWire", state: Any, found: SlotMap, sent: float) -> None:
        """Take a node's answer about the state of the cluster and its map."""


class _ClusterHeartbeat(Heartbeat):
    """Asks for the time, twice: in a cluster there is no second database to be swapped for this one.

    The second answer stands for that of the marker, and takes no right besides.
    """

    def __init__(self, clock: Clock, max_staleness: float, marker: bytes, exchanged: Callable[[], object]) -> None:
        super().__init__(clock, max_staleness, marker, exchanged)
        self._marker = commands.TIME

    def rest(self) -> None:
        """Ask nothing unasked: no answer of a replica counts, and each would be waited for in vain."""
        self.due = math.inf

    def _took_replication(self, reply: Any, connection: Connection, _sent: float) -> None:
        if self.due == math.inf:
            return  # It was asked before others told that the node was replaced, and is needed for its last word.
        history = server_identity(None, reply)
        if info(reply, b"role") == "slave" or (history and not connection.identity.endswith(history)):
            self._fail("the node has become a replica, or has taken over another one's data")

    def _marked(self, reply: Any, connection: Connection, sent: float) -> None:
        connection.known.confirmed = sent
        connection.trust.deadline = connection.known.trusted_from + self._max_staleness


class ClusterWire(NodeAnswers):
    """See the module.

    :ivar node_id: the node's id, once it has told it.
    :ivar address: at which the map has the node.
    :ivar seeds: the endpoints that it tries, if it may lead to any node.
    :ivar sends: how often something was sent.
    :ivar word: the map that the node itself has told last.
    """

    _pipeline_type, _heartbeat_type, _unable = ClusterPipeline, _ClusterHeartbeat, staticmethod(unable_node)

    def __init__(
        self, endpoint: "Endpoint", limits: WireLimits, breaker: Breaker, observer: WireListener, clock: Clock,
    ) -> None:  # fmt: skip
        super().__init__(endpoint, limits, breaker, observer, clock)
        self.trust: Trust = NodeTrust(-math.inf)
        self.node_id, self.address = "", (endpoint.host, endpoint.port)
        self.seeds: tuple[Endpoint, ...] = ()
        self.sends = 0
        self.word = Word(self.node_id, SlotMap(), -math.inf)
        self._neighbours: Neighbours
        self._shards = self._has_slots = True
        self._vetted, self._unknown = set[bytes](), set[bytes]()

    def join(self, neighbours: Neighbours, node_id: str = "", seeds: "tuple[Endpoint, ...]" = ()) -> None:
        """Become one of a loop's connections; call this once, before it is used.

        :param node_id: the node that it is expected to lead to; empty for a seed.
        :param seeds: the endpoints that it tries one after the other, if it may lead to any of them.
        """
        self._neighbours, self.node_id, self.seeds = neighbours, node_id, seeds
        self._pipeline.redirect = partial(neighbours.redirected, self)

    def switch_breaker(self, breaker: Breaker) -> None:
        """Share the breaker of its node from now on: whoever named the node, it answers."""
        before, self._breaker = self._breaker, breaker
        before.succeeded(self.clock())

    # -- the handshake ----------------------------------------------------------------------------------------

    async def _connection(self) -> CacheUnavailableError:
        if not self.seeds:
            return await super()._connection()
        failures: list[CacheUnavailableError] = []
        for endpoint in self.seeds:
            self._endpoint = endpoint
            error = await super()._connection()
            if self._stood:
                # The one that has worked comes first.
                self.seeds = (endpoint, *(each for each in self.seeds if each is not endpoint))
                return error
            failures.append(error)
        return none_of(self._neighbours.deployment.display, failures)

    async def _introduce(self, connection: AbstractConnection) -> None:
        sent = self.clock()
        met = await introduce_node(connection, self.probe, self._limits.tracking, self._respondent)
        server = met.server
        self.tracking = server.tracking
        self.time = RedisTime()
        take_time(server.time, self, sent, self.clock)
        self._heartbeat.begin(sent, replication=bool(server.history))
        self.node_id, self.server, self.word = met.id, server, Word(met.id, met.map, sent)
        self._shards, self._has_slots = met.has_shards, True
        self._vetted, self._unknown = set(), set()
        if met.id not in met.map.nodes and isinstance(self._heartbeat, _ClusterHeartbeat):
            self._heartbeat.rest()
        self._neighbours.introduced(self, met.map)
        self.known = KnownEpochs(self._limits.controls.root, sent)
        self.known.vouched, self.known.since = self._neighbours.confirmed_at(self), sent
        self.trust = NodeTrust(self.known.trusted_from + self.max_staleness)
        if not self.tracking:
            self.known.deadline = sent + self.max_staleness

    @property
    def _respondent(self) -> Respondent:
        tls = self._endpoint.scheme == "tls"
        return Respondent(self._endpoint.host, tls=tls, remap=self._neighbours.deployment.remap)

    # -- another node's word ------------------------------------------------------------------------------------

    def ask_about_cluster(self, done: Callable[[], object] = bool) -> None:
        """Ask for the state of the cluster and the map, before all else that is queued.

        :param done: called once the node has answered, or cannot.
        :raises CacheUnavailableError: at once, when the node is known to be away.
        """
        self._admit()
        state: list[Any] = []
        command, parse = _MAPS[self._shards]

        def took_state(reply: Any, _connection: Connection, _sent: float) -> None:
            state.append(reply)

        def took_map(reply: Any, _connection: Connection, sent: float) -> None:
            try:
                found = parse(reply, self._respondent)
            except SlotMapError:
                return
            self.word = Word(self.node_id, found, sent)
            if found.covered < SLOTS and self._has_slots:
                self._shards = False
            self._neighbours.told(self, state[0] if state else None, found, sent)

        def refused(_error: BaseException) -> None:
            # It confirms nothing. The rights that are documented name one of the two.
            if command is cluster_questions.CLUSTER_SLOTS and self.server is server:
                self._shards, self._has_slots = True, False
            done()

        server = self.server
        self._pipeline.add_first(Question(command, took_map, Callback(lambda _: done(), refused)))
        self._pipeline.add_first(Question(cluster_questions.CLUSTER_INFO, took_state, Callback()))
        self._sender.kick()

    def ask_history(self) -> asyncio.Future[Any]:
        """Return the future of the node's answer to INFO replication, whatever others say of it.

        :raises CacheUnavailableError: at once, when the node is known to be away.
        """
        self._admit()
        waiter: asyncio.Future[Any] = self.loop.create_future()
        self._pipeline.add_first(Question(commands.INFO_REPLICATION, as_it_is, waiter))
        self._sender.kick()
        return waiter

    def replaced(self) -> None:
        """Note that the node owns no slots any more: no word comes for what is held back."""
        if isinstance(self._heartbeat, _ClusterHeartbeat):
            # It would end the connection, as the node has become a replica; see `ClusterLoop.successors`.
            self._heartbeat.rest()
        super().replaced()

    def slots_moved(self, moved: MapChanges) -> None:
        """Trust nothing in some slots that was read through this connection until now: they have moved.

        The epochs of their groups are read again, and so are the groups' origins. Requests for them that are on their
        way were sent before the slots moved, and do not count.
        """
        self.trust.suspect(moved.slots, self.clock())
        suffixes = tuple(b"{%b}" % anchor_tag(group) for group in moved.groups)
        known = self.known
        known.since = self.clock()
        for name in [name for name in (*known.current, *known.lent) if name.endswith(suffixes)]:
            known.discard(name)
            known.lent.pop(name, None)
        # What is unknown stays so: a first contact that is under way would take it for settled. See `_arrived`.
        self._vetted.difference_update(suffixes)
        self._observer.moved(moved.covers_name, self)

    def enqueue(self, asked: Read | ReadBatch | Call) -> None:
        """Queue a request that another node was asked before.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        if isinstance(asked, ReadBatch):
            self.read_batch(asked)
        else:
            self._enqueue(*(self._vetting(asked) if isinstance(asked, Read) else (asked,)))

    @property
    def host(self) -> str:
        """The host that it leads to."""
        return self._endpoint.host

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked of it."""
        return not self._pipeline.pending

    # -- lost writes ----------------------------------------------------------------------------------------------

    def read(self, name: bytes, receive: Receive[bytes | None], waiter: Waiter, expected: float = 0) -> None:
        """Queue the read of one value, see `Connection.read`.

        :raises CacheUnavailableError: at once, when the node is known to be away or the queue is full.
        """
        self._admit()
        for asked in self._vetting(Read(name, receive, waiter, expected)):
            self._pipeline.add(asked)
        self._sender.schedule()  # as in `Wire`

    def _vetting(self, asked: Read) -> tuple[Read | Call, ...]:
        """Return a read; if it is for the root epoch of an unvetted group, after the question for the group's origins.

        A group that is split is vetted for the connection that brings the values as well.
        """
        root = self._limits.controls.root
        suffix = asked.name[len(root) :]
        if not suffix.startswith(b"{") or not asked.name.startswith(root):
            return (asked,)
        reader = asked.reader if isinstance(asked, RedirectedRead) and asked.reader is not None else self
        wires = [wire for wire in dict.fromkeys((self, reader)) if suffix not in wire._vetted]
        if not wires:
            return (asked,)
        receive = asked.receive

        def took(stored: Any, _connection: Connection, _sent: float) -> None:
            for wire in wires:
                wire.vet(suffix, stored)

        def received(raw: bytes | None, connection: Connection, sent: float) -> Any:
            unvetted = [wire for wire in wires if suffix not in wire._vetted]
            for wire in unvetted:
                wire._unknown.add(suffix)
            return receive(None if unvetted else raw, connection, sent)

        asked.receive = received
        command = commands.get(self._limits.controls.server + suffix)
        # A node that does not have the group refuses, and passes the read on to the one that does, which is asked too.
        return Question(command, took, Callback()), asked

    def vet(self, suffix: bytes, stored: Any) -> None:
        """Decide, by the origins of a group, whether this server may lack writes of it."""
        if not self.identity:
            self.vetted(suffix)
            return
        if not self._neighbours.is_primary(self.node_id):
            # A replica brings no values, and is no origin; or the map has not caught up with what it has become.
            self._unknown.add(suffix)
            return
        present = partial(self._neighbours.identity_beside, self, suffix)
        found = origins.standing(origins.read(stored), self.node_id, self.identity, present, self.server.former)
        if found is Standing.UNKNOWN:
            self._unknown.add(suffix)
        else:
            self.vetted(suffix)
            if found is Standing.NEW:
                self._neighbours.joined(self, suffix)

    def is_unknown(self, suffix: bytes) -> bool:
        """Whether this server may lack writes of a group: its root epoch is to be issued anew."""
        return suffix in self._unknown

    def is_vetted(self, suffix: bytes) -> bool:
        """Whether this server lacks nothing of a group, or all it may lack is invalid, by the present map."""
        return suffix in self._vetted

    def doubt(self, suffix: bytes) -> None:
        """Note that this server may lack writes of a group, unless it is vetted."""
        if suffix not in self._vetted:
            self._unknown.add(suffix)

    def vetted(self, suffix: bytes) -> None:
        """Note that this server lacks nothing of a group, or that all it may lack is invalid."""
        self._unknown.discard(suffix)
        self._vetted.add(suffix)

    # -- as `ConfirmedWire` does them ------------------------------------------------------------------------

    def _pack(self) -> list[bytes | memoryview]:
        self.sends += 1
        return super()._pack()

    def _ask_for_word(self, *, urgent: bool = False) -> None:
        self._neighbours.confirm(urgent=urgent)

    def _history_question(self) -> commands.Command:
        # Without a read: the key may be on another node.
        return commands.INFO_REPLICATION

    def _flushed(self) -> None:
        self._vetted.clear()
        since = self.known.since
        super()._flushed()
        self.known.since = since

    def _lost(self, error: CacheUnavailableError) -> None:
        super()._lost(error)
        # Also after an attempt to connect: it may be long until a replica takes over.
        self._neighbours.went_away()
