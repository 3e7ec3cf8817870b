"""One proxied connection: the client's connection, the one to the server, and a lane in each direction."""

import asyncio
from collections.abc import Callable

from magnus_cache.testing.proxy.lanes import Lane, reset

__all__ = ["Link", "Side"]


class Side(asyncio.Protocol):
    """One end of a link: it puts what it receives into one lane, and sends what comes from the other."""

    def __init__(self, outgoing: Lane, incoming: Lane, made: Callable[[], None], changed: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._outgoing = outgoing
        self._incoming = incoming
        self._made = made
        self._changed = changed
        self._end_seen = False
        self._keeps_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect the lanes."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = self._outgoing.source = self._incoming.sink = transport
        # asyncio's TLS closes at the end of the stream whatever `eof_received` returns, and warns.
        self._keeps_open = transport.can_write_eof()
        self._made()
        self._incoming.pump()

    def data_received(self, data: bytes) -> None:
        """Forward bytes."""
        self._outgoing.arrived(data)

    def eof_received(self) -> bool:
        """Forward the end of the stream. Bytes of the other direction may still be delivered."""
        self._end_seen = True
        self._outgoing.arrived_end()
        return self._keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        """Forward how the connection ended."""
        self.lost = True
        self._incoming.choke(False)
        if exc is not None:
            self._outgoing.arrived_reset()
        elif not self._end_seen:
            self._outgoing.arrived_end()
        self._changed()

    def pause_writing(self) -> None:
        """Hold the peer up, because this end is slow."""
        self._incoming.choke(True)

    def resume_writing(self) -> None:
        """Let the peer continue."""
        self._incoming.choke(False)

    @property
    def gone(self) -> bool:
        """Whether this side has no connection: not yet, or not any more."""
        return self.lost or self.transport is None


class Link:
    """A client's connection and the connection to the server for it.

    `on_begin` is called when the client is connected. `on_end` is called once both connections are closed, and `over`
    is set. While the proxy tries to reach the server, `attempt` is the task that does so.
    """

    def __init__(
        self, to_server: Lane, to_client: Lane, on_begin: "Callable[[Link], None]", on_end: "Callable[[Link], None]"
    ) -> None:
        self.client = Side(to_server, to_client, lambda: on_begin(self), self._changed)
        self.server = Side(to_client, to_server, self._changed, self._changed)
        self._lanes = (to_server, to_client)
        self._on_end = on_end
        for lane in self._lanes:
            lane.on_end = self._changed
        self.attempt: asyncio.Task[None] | None = None
        self.over = asyncio.Event()

    def connected(self) -> None:
        """Note that the attempt to reach the server has ended. If it failed, reset the client's connection."""
        self.attempt = None
        if self.server.transport is None:
            self.cut()
        self._changed()

    def pump(self) -> None:
        """Deliver what the present rules allow."""
        for lane in self._lanes:
            lane.pump()
        self._changed()

    def cut(self) -> None:
        """Reset both connections and drop what was waiting."""
        if self.attempt is not None:
            self.attempt.cancel()
        for lane in self._lanes:
            lane.clear()
        for side in (self.client, self.server):
            if not side.lost:
                reset(side.transport)

    def _changed(self) -> None:
        if all(lane.ended for lane in self._lanes):
            for side in (self.client, self.server):
                if side.transport is not None:
                    side.transport.close()
        if self.client.gone and self.server.gone and self.attempt is None and not self.over.is_set():
            self.over.set()
            for lane in self._lanes:
                lane.clear()
            self._on_end(self)
