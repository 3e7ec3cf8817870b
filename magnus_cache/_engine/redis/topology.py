"""The topology: which server has a key, and the running event loop's connection to it.

A key has a slot, slots belong to a group, and each group has its own control keys on the same server. A single server
has all slots, so there is one group, and one connection for each event loop, beside those for large values
(`large_wire`). Callers ask by key, and do not depend on that.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.coherence.epochs import ControlNames
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.server_time import RedisTime, host_time
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.loops import loop_error
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coherence.epoch_names import EpochNames
    from magnus_cache._engine.coherence.trust import Trust
    from magnus_cache._engine.redis.endpoint import Endpoint, Remap
    from magnus_cache._engine.redis.exchange import Connection
    from magnus_cache._engine.redis.large_wire import LargeWire, LargeWires
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Group", "Topology", "import_driver"]

_abandoned: Final[list[object]] = []


class Group(NamedTuple):
    """Keys that are on one server at a time, with the control keys that judge their values."""

    controls: ControlNames


def import_driver() -> None:
    """Import redis-py now, because that is slow, and not in the first call on an event loop."""
    import_module("magnus_cache._engine.redis.large_wire")
    import_module("magnus_cache._engine.redis.lane_connection")


class Topology:
    """The connections of one cache, by event loop and server. Thread-safe; the first use creates a connection.

    :param endpoint: the server, or None.
    :param check_open: raises `CacheClosedError` when no connection may be created any more.
    """

    is_cluster = False
    """Whether keys are on several servers."""

    spread = 1
    """Over how many servers the values of one call are spread, as far as that matters."""

    mode: str | None = None
    """How the server is found, for people; None where the server tells that itself."""

    remap: "Remap | None" = None
    """Returns the address at which this process reaches a node, given the one that it announces."""

    trust_by_key: "Callable[[bytes, EpochNames, Connection, float], Trust] | None" = None
    """Returns what a value stands on that a connection has brought; None where that is the connection's own trust."""

    def __init__(
        self,
        endpoint: "Endpoint | None",
        limits: WireLimits,
        breaker: Breaker,
        listener: WireListener,
        clock: Clock,
        check_open: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._breaker = breaker
        self._listener = listener
        self._clock = clock
        self._check_open = check_open
        self._group = Group(limits.controls)
        self._lock = section()
        self._wires: dict[asyncio.AbstractEventLoop, Wire] = {}
        self._large: dict[asyncio.AbstractEventLoop, LargeWires] = {}
        self._time: RedisTime | None = None

    # -- by key ---------------------------------------------------------------------------------------------

    def group(self, key: bytes) -> Group:
        """Return the group that a key belongs to."""
        return self._group

    def connection(self, key: bytes) -> "Wire | None":
        """Return the running loop's connection to the server of a key, created if needed; None without a server.

        :raises CacheClosedError: after `aclose`.
        :raises CacheLoopError: without a running event loop of asyncio.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise loop_error() from None
        wire = self._wires.get(loop)
        if wire is not None and not wire.over:
            return wire
        self._check_open()
        return None if self._endpoint is None else self._new(self._endpoint, loop)

    def connection_for_large(self, key: bytes) -> "Wire | None":
        """Return a connection of the running loop's for large values; until one stands, what `connection` returns."""
        wire = self.connection(key)
        if wire is None or not wire.up:
            return wire
        large = self._large.get(wire.loop) or self._new_large(wire.loop)
        return large.idlest(self._clock()) or wire

    def connection_on(self, loop: "asyncio.AbstractEventLoop | None") -> "Wire | None":
        """Return the connection of another loop, if it has one, for a thread that is about to ask its server itself."""
        return None if loop is None else self._wires.get(loop)

    def wire(self, key: bytes) -> "Wire":
        """Return the running loop's connection to the server of a key, which must be configured.

        :raises CacheUnavailableError: after `aclose`.
        :raises CacheLoopError: without a running event loop of asyncio.
        """
        try:
            wire = self.connection(key)
        except CacheClosedError:
            raise CacheUnavailableError("closed", "the connection to Redis was closed") from None
        assert wire is not None
        return wire

    def by_server(self, keys: Iterable[bytes]) -> "list[tuple[Wire, Iterable[bytes]]]":
        """Return some keys grouped by server, each group with the connection to its server.

        :raises CacheUnavailableError: after `aclose`.
        """
        return [(self.wire(self._group.controls.root), keys)]

    def servers(self) -> "list[Wire]":
        """Return the running loop's connections, one to each primary.

        :raises CacheUnavailableError: after `aclose`.
        """
        return [self.wire(self._group.controls.root)]

    async def primaries(self) -> "list[Wire]":
        """Return the running loop's connections to all primaries, once they are known.

        :raises CacheUnavailableError: after `aclose`, and when none can tell them.
        """
        return self.servers()

    @property
    def primary(self) -> str | None:
        """The address of the primary that was found; None where the settings name the server."""
        return None

    def known_servers(self) -> "tuple[Endpoint, ...]":
        """Return where the primaries are, as far as that is known."""
        return () if self._endpoint is None else (self._endpoint,)

    async def endpoints(self) -> "tuple[Endpoint, ...]":
        """Return where a server can be asked, if there is any.

        :raises CacheUnavailableError: if that cannot be told.
        """
        assert self._endpoint is not None
        return (self._endpoint,)

    # -- all of them ------------------------------------------------------------------------------------------

    def connections(self) -> "list[Wire]":
        """Return the connections of all loops."""
        return [*self._all(), *(wire for large in list(self._large.values()) for wire in large.all)]

    def _all(self) -> "list[Wire]":
        """Return the connections for all purposes: those for large values say nothing about whether Redis is away."""
        return list(self._wires.values())

    def established(self) -> "list[Wire]":
        """Return the connections that are up, and whose loops run and would notice the loss."""
        return list(filter(_lives, self._all()))

    @property
    def reachable(self) -> bool:
        """Whether some connection is up, and its loop runs and would notice the loss."""
        return any(map(_lives, self._all()))

    def reaches(self, key: bytes) -> bool:
        """Return whether some connection to the server of a key is up, see `reachable`."""
        return self.reachable

    def is_only(self, connection: "Connection") -> bool:
        """Return whether no other connection leads to the same server and is up, see `reachable`."""
        return not any(wire is not connection for wire in self.established())

    def slot_of(self, key: bytes) -> int | None:
        """Return the slot of a key; None without a cluster."""
        return None

    def node_of(self, key: bytes) -> str | None:
        """Return the address of the node that has a key; None without a cluster."""
        return None

    def node_led_to(self, connection: "Connection") -> str | None:
        """Return the address of the node that a connection leads to; None without a cluster."""
        return None

    def primaries_known(self) -> dict[str, bytes]:
        """Return for each node, by its address, a key that it has; nothing without a cluster."""
        return {}

    def figures(self, now: float) -> dict[str, dict[str, Any]]:
        """Return the figures of each node by its address; nothing without a cluster."""
        return {}

    def time_of(self, key: bytes) -> RedisTime:
        """Return the clock of the server that has a key, as it was last known; from any thread, without I/O.

        Until a server has told its time, the clock of this host.
        """
        known = [wire.time for wire in self._leading_to(key) if wire.time.known]
        if known:
            self._time = max(known, key=attrgetter("sampled"))
        elif self._time is None:
            self._time = host_time(self._clock)
        return self._time

    def _leading_to(self, key: bytes) -> "list[Wire]":
        """Return the connections of all loops to the server of a key."""
        return self.connections()

    def breaker_of(self, key: bytes) -> Breaker:
        """Return the breaker of the server of a key."""
        return self._breaker

    @property
    def used(self) -> bool:
        """Whether any connection was ever used."""
        return any(wire.started for wire in self._all())

    def running(self) -> "list[Wire]":
        """Return the connections that were used, and whose loops run."""
        wires = self._all()
        return [wire for wire in wires if wire.started and not wire.over and wire.loop.is_running()]

    # -- their life -------------------------------------------------------------------------------------------

    def _new(self, endpoint: "Endpoint", loop: asyncio.AbstractEventLoop) -> "Wire":
        wire = self._created(endpoint)
        with self._lock:
            # Again, under the lock: a connection created after `stop` would never be closed.
            self._check_open()
            # Each `asyncio.run` has a new loop. What was read on a loop that ended unnoticed is not trusted any more.
            for old_loop, old in list(self._wires.items()):
                if old.closed:
                    for each in (old, *(large.all if (large := self._large.pop(old_loop, None)) else ())):
                        self._listener.vanished(each)
                    del self._wires[old_loop]
            self._wires[loop] = wire
        return wire

    def _new_large(self, loop: asyncio.AbstractEventLoop) -> "LargeWires":
        # Deferred: see `import_driver`.
        from magnus_cache._engine.redis.large_wire import LargeWires

        with self._lock:
            self._check_open()
            large = self._large[loop] = LargeWires(self._created_large)
        return large

    def _created_large(self, wires: "list[LargeWire]") -> "LargeWire":
        from magnus_cache._engine.redis.large_wire import LargeWire

        assert self._endpoint is not None
        wire = LargeWire(self._endpoint, self._limits, self._breaker, self._listener, self._clock)
        with self._lock:
            # As in `_new`.
            self._check_open()
            wires.append(wire)
        return wire

    def _created(self, endpoint: "Endpoint") -> "Wire":
        # Deferred: see `import_driver`.
        from magnus_cache._engine.redis.wire import Wire

        return Wire(endpoint, self._limits, self._breaker, self._listener, self._clock)

    def stop(self) -> list[tuple[asyncio.AbstractEventLoop, Future[None]]]:
        """Begin to close all connections; return the loop of each, and a future of its end.

        Call this after `check_open` has started to raise, so that no new connection is created.
        """
        with self._lock:
            wires = self.connections()
            self._wires, self._large = {}, {}
        for wire in wires:
            # A loop that ended meanwhile has closed its connection.
            call_on_loop(wire.loop, wire.stop)
        return [(wire.loop, wire.ended) for wire in wires if wire.started and not wire.closed]

    def reset(self) -> None:
        """Start empty in a forked child: the sockets belong to its parent."""
        # Kept: if it were collected, a connection would warn, and close a transport of the parent's loop.
        self._keep((self._wires, self._large))
        self._lock = section()
        self._wires, self._large = {}, {}

    @staticmethod
    def _keep(wires: object) -> None:
        _abandoned.append(wires)


def _lives(wire: "Wire") -> bool:
    return wire.up and not wire.closed and wire.loop.is_running()
