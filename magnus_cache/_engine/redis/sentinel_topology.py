"""The topology of a primary that Sentinel names: for each event loop one connection to it, and a watch."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis.endpoint import shown
from magnus_cache._engine.redis.events import WireLimits, WireListener
from magnus_cache._engine.redis.sentinel_wire import SentinelWire
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.clock import Clock

if TYPE_CHECKING:
    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["SentinelTopology"]


class SentinelTopology(Topology):
    """See the module. Thread-safe; the first use creates a connection."""

    mode = "sentinel"

    def __init__(
        self, deployment: "Deployment", limits: WireLimits, breaker: Breaker, listener: WireListener, clock: Clock,
        check_open: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(deployment.endpoint, limits, breaker, listener, clock, check_open)
        self._deployment = deployment

    def connection_for_large(self, key: bytes) -> "Wire | None":
        """Return the connection for all values: one more for each primary would have to be confirmed by others, too."""
        return self.connection(key)

    def connection_on(self, loop: asyncio.AbstractEventLoop | None) -> "Wire | None":
        """Return None: a thread asks through the background loop, whose connection others confirm."""
        return None

    @property
    def server(self) -> "Endpoint | None":
        """Where the primary is; None while there is no connection to it."""
        for wire in self.established():
            assert isinstance(wire, SentinelWire)
            return self._deployment.at(*wire.address)
        return None

    @property
    def primary(self) -> str | None:
        """The address of the primary, as ``host:port``; None while there is no connection to it."""
        for wire in self.established():
            assert isinstance(wire, SentinelWire)
            return shown(*wire.address)
        return None

    async def endpoints(self) -> "tuple[Endpoint, ...]":
        """Return where the primary is, as the sentinels say now.

        :raises CacheUnavailableError: if they do not.
        """
        wire = self.wire(b"")
        assert isinstance(wire, SentinelWire)
        return (await wire.watch.primary(),)

    def _created(self, endpoint: "Endpoint") -> "Wire":
        return SentinelWire(self._deployment, self._limits, self._breaker, self._listener, self._clock)
