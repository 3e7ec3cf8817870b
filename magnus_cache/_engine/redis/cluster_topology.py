"""The topology of a Redis Cluster: the connections of all event loops to its nodes; see `.docs/cluster.md`.

Each loop has one connection to each primary, whatever the number of concurrent calls, and a `ClusterLoop` that knows
which one a key goes through. What all of them share is the `ClusterView`.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, cast

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis.cluster_loop import ClusterLoop
from magnus_cache._engine.redis.cluster_nodes import ClusterNodes
from magnus_cache._engine.redis.cluster_seeds import mixed, strangers
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.deployment import Deployment
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.slots import MapChanges, key_slot
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop, connection_task
from magnus_cache._engine.runtime.loops import loop_error
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["ClusterTopology"]


_SPREAD: Final = 3
"""Servers for which one step of the event loop prepares full batches: it takes a millisecond or two."""


class _NodeBreaker(Breaker):
    """The breaker of one node. The cluster's own is closed while any node answers."""

    __slots__ = ("_any_up", "_whole")

    def __init__(self, whole: Breaker, trial: float, any_up: Callable[[], bool]) -> None:
        super().__init__(trial)
        self._whole = whole
        self._any_up = any_up

    def succeeded(self, now: float) -> None:
        super().succeeded(now)
        self._whole.succeeded(now)

    def failed(self, now: float, reason: str = "") -> float:
        if not self._any_up():
            self._whole.failed(now, reason)
        return super().failed(now, reason)


class ClusterTopology(ClusterNodes):
    """See the module. Thread-safe; the first use creates a connection.

    :ivar view: what is known of the cluster.
    :ivar deployment: how nodes are reached.
    """

    is_cluster = True

    def __init__(
        self, deployment: Deployment, limits: WireLimits, breaker: Breaker, listener: WireListener, clock: Clock,
        check_open: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(deployment.endpoint, limits, breaker, listener, clock, check_open)
        self.deployment, self.remap = deployment, deployment.remap
        self.clock = clock
        self.max_staleness, self.op_timeout = limits.max_staleness, limits.op_timeout
        self.server_name = limits.controls.server
        self._prefix = limits.controls.root.partition(b"!")[0] + b"!"
        self._loops: dict[asyncio.AbstractEventLoop, ClusterLoop] = {}
        self._breakers: dict[str, Breaker] = {}
        self._seeds_checked = False
        self._checks: dict[asyncio.Task[None], asyncio.AbstractEventLoop] = {}
        self.trust_by_key = self._trust_of
        self.view = ClusterView(self._answers, self._map_changed, self._confirmed)

    # -- by key ---------------------------------------------------------------------------------------------

    def connection(self, key: bytes) -> "ClusterWire | None":
        """Return the running loop's connection to the server of a key, created if needed.

        :raises CacheClosedError: after `aclose`.
        :raises CacheLoopError: without a running event loop of asyncio.
        """
        # What `ClusterLoop.wire_of` has found before: each read from Redis begins here.
        try:
            here = self._loops.get(asyncio.get_running_loop())
        except RuntimeError:
            raise loop_error() from None
        if here is not None and here.routed_by is self.view.map:
            wire = here.routes[key_slot(key)]
            if wire is not None and wire.up:
                return wire
        return self.here().wire_of(key)

    def here(self) -> ClusterLoop:
        """Return the connections of the running loop.

        :raises CacheClosedError: after `aclose`.
        :raises CacheLoopError: without a running event loop of asyncio.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise loop_error() from None
        found = self._loops.get(loop)
        if found is None:
            self._check_open()
            found = self._new_loop(loop)
        return found

    def nodes_here(self) -> ClusterLoop:
        """Return what `here` does.

        :raises CacheUnavailableError: after `aclose`.
        """
        try:
            return self.here()
        except CacheClosedError:
            raise CacheUnavailableError("closed", "the connection to Redis was closed") from None

    def connection_for_large(self, key: bytes) -> "ClusterWire | None":
        """Return the connection for all values: one more for each primary would have to be confirmed by others, too."""
        return self.connection(key)

    def connection_on(self, loop: asyncio.AbstractEventLoop | None) -> "Wire | None":
        """Return None: a thread asks through the background loop, which knows the node of each key."""
        return None

    def by_server(self, keys: Iterable[bytes]) -> "list[tuple[Wire, Iterable[bytes]]]":
        """Return some keys grouped by server, each group with the connection to its server.

        :raises CacheUnavailableError: after `aclose`.
        """
        groups: dict[Wire, list[bytes]] = {}
        for key in keys:
            groups.setdefault(self.wire(key), []).append(key)
        return list(groups.items())

    def known_servers(self) -> "tuple[Endpoint, ...]":
        """Return where the primaries are, as far as that is known."""
        return tuple(self.deployment.at(*node.address) for node in self.view.map.nodes.values())

    def servers(self) -> "list[Wire]":
        """Return the running loop's connections, one to each primary.

        :raises CacheUnavailableError: after `aclose`.
        """
        return list(self.nodes_here().primaries())

    def _trust_of(self, name: bytes, epoch_names: "EpochNames", connection: "Connection", sent: float) -> Trust:
        """Return what a value stands on that a connection has brought.

        :param name: the value's.
        :param sent: the monotonic second when its request left.
        """
        slot, whole = key_slot(name), connection.trust
        # In this order, see `NodeTrust`.
        trust = whole.of(slot)
        if self.view.is_doubtful(slot, sent):
            # The owner that has answered announces nothing about the slot any more.
            return Trust(-math.inf, whole.generation)
        until = math.inf
        if lent := connection.known.lent:
            names = (epoch_names.root, epoch_names.control, *epoch_names.names)
            until = min((lent[each] for each in names if each in lent), default=math.inf)
        if until == math.inf and connection.tracking:
            return trust
        until = min(until, sent + self.max_staleness, connection.known.deadline)
        return Trust(min(until, connection.known.vouched + self.max_staleness), whole.generation)

    @property
    def spread(self) -> int:  # type: ignore[override]  # it follows the map
        """Over how many servers the values of one call are spread, up to a few."""
        return min(len(self.view.map.nodes), _SPREAD) or 1

    async def endpoints(self) -> "tuple[Endpoint, ...]":
        """Return the nodes that the settings name."""
        return self.deployment.endpoints

    def _leading_to(self, key: bytes) -> "list[Wire]":
        """Return the connections of all loops to the owner of a key: each node has a clock of its own."""
        owner = self.view.map.owner(key_slot(key))
        return [wire for wire in self._all() if owner is None or cast("ClusterWire", wire).node_id == owner.id]

    # -- all of them ------------------------------------------------------------------------------------------

    def _all(self) -> "list[Wire]":
        """Return the connections of all loops."""
        return [wire for loop in list(self._loops.values()) for wire in loop.all_wires()]

    @property
    def is_open(self) -> bool:
        """Whether connections may still be created."""
        try:
            self._check_open()
        except CacheClosedError:
            return False
        return True

    # -- what the loops share -----------------------------------------------------------------------------------

    def new_wire(self, endpoint: "Endpoint", node_id: str) -> ClusterWire:
        """Return a new connection of the running loop.

        :param node_id: of the node; empty for a seed.
        :raises CacheClosedError: after `aclose`.
        """
        self._check_open()
        return ClusterWire(endpoint, self._limits, self.breaker_for(node_id), self._listener, self._clock)

    def breaker_for(self, node_id: str) -> Breaker:
        """Return the breaker of a node, which all loops share; the empty id is that of the seeds."""
        breaker = self._breakers.get(node_id)
        if breaker is None:
            # Two threads may come here at a time: both get the first one's.
            breaker = self._breakers.setdefault(
                node_id,
                _NodeBreaker(self._breaker, 2 * self.op_timeout, lambda: self.reachable),
            )
        return breaker

    def is_control(self, name: bytes) -> bool:
        """Whether a name is that of a control key."""
        return name.startswith(self._prefix)

    def _new_loop(self, loop: asyncio.AbstractEventLoop) -> ClusterLoop:
        found = ClusterLoop(self, loop)
        with self._lock:
            self._check_open()
            for old_loop, old in list(self._loops.items()):
                if old_loop.is_closed():
                    for wire in old.all_wires():
                        self._listener.vanished(wire)
                    del self._loops[old_loop]
            self._loops[loop] = found
        return found

    def check_seeds(self) -> None:
        """Find out once whether all nodes that the settings name belong to one cluster."""
        if self._seeds_checked or len(self.deployment.seeds) < 2:
            return
        self._seeds_checked = True
        loop = asyncio.get_running_loop()
        task = connection_task(loop, self._warn_of_strangers(), "magnus-cache-seeds")
        self._checks[task] = loop
        task.add_done_callback(lambda _: self._checks.pop(task, None))

    async def _warn_of_strangers(self) -> None:
        found = await strangers(self.deployment, self.view.map.nodes, self.op_timeout, self.clock)
        if found:
            self.warn("mixed", mixed(found))

    def warn(self, topic: str, problem: str) -> None:
        """Warn of something that is wrong with the cluster, which can be used nevertheless."""
        self._listener.warned(topic, problem)

    def retry_now(self) -> None:
        """Let connections to all nodes be tried now: one of them answers again."""
        for breaker in list(self._breakers.values()):
            breaker.retry_now()

    def _map_changed(self, moved: MapChanges) -> None:
        self._listener.remapped()
        for each in list(self._loops.values()):
            if each.loop is not _running():
                # Its loop may be busy: what it has read of these slots ends now.
                for wire in each.all_wires():
                    wire.trust.suspect(moved.slots, self.clock())
                call_on_loop(each.loop, each.apply, moved)
            else:
                each.apply(moved)

    def _confirmed(self, node_id: str, at: float) -> None:
        for each in list(self._loops.values()):
            if each.loop is _running():
                each.vouch(node_id, at)
            else:
                call_on_loop(each.loop, each.vouch, node_id, at)

    # -- their life -------------------------------------------------------------------------------------------

    def stop(self) -> list[tuple[asyncio.AbstractEventLoop, Future[None]]]:
        """Begin to close all connections; return the loop of each, and a future of its end."""
        with self._lock:
            loops, self._loops = list(self._loops.values()), {}
        error = CacheUnavailableError("closed", "the connection to Redis was closed")
        wires = [wire for each in loops for wire in each.all_wires()]
        for task, loop in list(self._checks.items()):
            call_on_loop(loop, task.cancel)
        for each in loops:
            call_on_loop(each.loop, each.end, error)
        for wire in wires:
            call_on_loop(wire.loop, wire.stop)
        return [(wire.loop, wire.ended) for wire in wires if wire.started and not wire.closed]

    def reset(self) -> None:
        """Start empty in a forked child: the sockets belong to its parent."""
        super().reset()
        self._keep(self._loops)
        self._loops, self._breakers, self._seeds_checked = {}, {}, False
        self.view.reset()
        self._lock = section()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
