"""Where keys are: which server has a key, and the connection to it of the event loop that asks.

A key has a slot, slots belong to a group, and a group has its control keys: they stay together, whichever server they
are on. One server has all slots, so there is one group, and one connection for each event loop. Whoever asks by key
need not know that.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from magnus_cache._engine.coherence.epochs import ControlNames
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.loops import loop_error
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Group", "Topology", "import_driver"]

_abandoned: Final[list[object]] = []


class Group(NamedTuple):
    """Keys that are on one server at a time, and the control keys there that their values are judged by."""

    controls: ControlNames


def import_driver() -> None:
    """Import redis-py now, which takes longer than all else, and not with the first call on somebody's event loop."""
    import_module("magnus_cache._engine.redis.wire")


class Topology:
    """The connections of one cache, by event loop and server. Thread-safe; made when they are first asked for.

    :param endpoint: the server; None for none.
    :param check_open: raises `CacheClosedError` once there are to be no further connections.
    """

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

    # -- by key ---------------------------------------------------------------------------------------------

    def group(self, key: bytes) -> Group:
        """Return the group that a key belongs to."""
        return self._group

    def connection(self, key: bytes) -> "Wire | None":
        """Return the running loop's connection to the server of a key, made now if need be; None without a server.

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

    def wire(self, key: bytes) -> "Wire":
        """Return what a key is asked for through, for one who knows that there is a server.

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
        """Return some keys, those together that are on one server, each part with the connection to it.

        :raises CacheUnavailableError: after `aclose`.
        """
        return [(self.wire(self._group.controls.root), keys)]

    def servers(self) -> "list[Wire]":
        """Return the running loop's connections, one to each server that has keys of its own.

        :raises CacheUnavailableError: after `aclose`.
        """
        return [self.wire(self._group.controls.root)]

    # -- all of them ------------------------------------------------------------------------------------------

    def connections(self) -> "list[Wire]":
        """Return those of all loops."""
        return list(self._wires.values())

    def established(self) -> "list[Wire]":
        """Return those that are connected, and whose loops would notice if they were not."""
        return list(filter(_lives, self.connections()))

    @property
    def reachable(self) -> bool:
        """Whether some connection stands, and its loop would notice if it did not."""
        return any(map(_lives, self.connections()))

    @property
    def used(self) -> bool:
        """Whether anything was ever asked."""
        return any(wire.started for wire in self.connections())

    def running(self) -> "list[Wire]":
        """Return those that were used, and whose loops run."""
        wires = self.connections()
        return [wire for wire in wires if wire.started and not wire.over and wire.loop.is_running()]

    # -- their life -------------------------------------------------------------------------------------------

    def _new(self, endpoint: "Endpoint", loop: asyncio.AbstractEventLoop) -> "Wire":
        # Deferred: see `import_driver`.
        from magnus_cache._engine.redis.wire import Wire

        wire = Wire(endpoint, self._limits, self._breaker, self._listener, self._clock)
        with self._lock:
            # Again, under the lock: what is made after the last one was taken would never be closed.
            self._check_open()
            # Loops come and go with `asyncio.run`; a loop that ended without a word takes its trust with it.
            for old_loop, old in list(self._wires.items()):
                if old.closed:
                    self._listener.vanished(old)
                    del self._wires[old_loop]
            self._wires[loop] = wire
        return wire

    def stop(self) -> list[tuple[asyncio.AbstractEventLoop, Future[None]]]:
        """Begin to close all connections; return the loops of those that will tell their end, and what is done then.

        To be called when `check_open` raises: so there are no new ones.
        """
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
        for wire in wires:
            # A loop that ended meanwhile has taken its connection along.
            call_on_loop(wire.loop, wire.stop)
        return [(wire.loop, wire.ended) for wire in wires if wire.started and not wire.closed]

    def reset(self) -> None:
        """Begin anew, in a forked child: its parent's sockets are not its own."""
        # Collected, a connection would warn and try to close a transport of a loop that lives in the parent.
        _abandoned.append(self._wires)
        self._lock = section()
        self._wires = {}


def _lives(wire: "Wire") -> bool:
    return wire.up and not wire.closed and wire.loop.is_running()
