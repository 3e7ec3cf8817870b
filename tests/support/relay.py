"""A relay in front of a server, on the test's own event loop, that delivers late, or says things of its own."""

import asyncio
import contextlib
from typing import Self


class Link:
    """One client's connection through the relay.

    :ivar held: what waits to be delivered.
    :ivar reset: whether the client ended it by a reset; None while it stands.
    :ivar heard: bytes that the server has sent.
    :ivar over: whether the server has ended it.
    :ivar ready: whether it stands.
    :ivar muted: whether what the server sends is thrown away.
    """

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._held_back = False
        self.held = b""
        self.reset: bool | None = None
        self.heard = 0
        self.over = False
        self.muted = relay.muted
        self.ready = False

    async def say(self, data: bytes) -> None:
        """Send the client something that the server has not said."""
        # uvloop answers a write to what has just been closed by a RuntimeError.
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._writer.write(data)
            await self._writer.drain()

    def hold(self) -> None:
        """Keep what the client sends from now on, and its end, until `deliver`."""
        self._held_back = True

    def deliver(self) -> None:
        """Let the server have what was held."""
        self._held_back = False
        held, self.held = self.held, b""
        if not self._server.is_closing():
            self._server.write(held)

    def cut(self) -> None:
        """End the connection to the server."""
        self._server.transport.abort()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, self._server = await asyncio.open_connection("127.0.0.1", self._relay.target)
        self._writer = writer
        self.ready = True
        back = asyncio.create_task(self._back(answers, writer))
        try:
            while chunk := await reader.read(1 << 16):
                self.asked(chunk)
                if self._held_back:
                    self.held += chunk
                elif not self._server.is_closing():
                    # To what has just been cut, uvloop answers a write by a RuntimeError.
                    self._server.write(chunk)
            self.reset = False
        except ConnectionError:
            self.reset = True
        try:
            if not self._held_back and not self._server.is_closing():
                self._server.write_eof()
            await back
        finally:
            back.cancel()
            for end in (self._server, writer):
                end.transport.abort()

    def asked(self, chunk: bytes) -> None:
        """Note what the client sends."""

    def passed(self, chunk: bytes) -> bytes:
        """Return what the client gets of what the server has sent."""
        return chunk

    async def _back(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await answers.read(1 << 16):
                self.heard += len(chunk)
                if not writer.is_closing() and not self.muted:
                    writer.write(self.passed(chunk))
        self.over = True
        writer.close()


class Relay:
    """Relays to a server's port while its block lasts.

    :ivar links: the connections so far.
    :ivar refusing: whether new connections are ended at once.
    :ivar muted: whether new connections are muted.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.links: list[Link] = []
        self.refusing = False
        self.muted = False
        self._tasks: set[asyncio.Task[None]] = set()

    def link(self) -> Link:
        """Return what a new client gets."""
        return Link(self)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.links.append(self.link())
        task = asyncio.get_running_loop().create_task(self.links[-1].run(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
