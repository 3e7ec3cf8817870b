"""A TCP proxy in front of a server, that breaks connections on demand: cut, refuse, swallow, delay. Never reorders.

It runs on an event loop and a thread of its own; the controls are plain methods, callable from any test. With a
TLS context it ends TLS, so that every server can be reached by ``rediss://``.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards connections to ``127.0.0.1:target`` until told otherwise."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self._tls = tls
        self._delay = 0.0
        self._swallow = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    def delay(self, seconds: float) -> None:
        """Hold every piece back for so long, in both directions."""
        self._delay = seconds

    def black_hole(self) -> None:
        """Swallow whatever comes, in both directions, with all connections open; new ones too."""
        self._swallow = True

    def cut(self) -> None:
        """Reset every connection that stands; new ones are served."""
        self._run(self._cut)

    def refuse(self) -> None:
        """Stop listening; connections that stand go on."""
        self._run(self._stop_listening)

    def resume(self) -> None:
        """Listen and forward again; connections that were swallowed from are cut, as their streams have a hole."""
        if self._swallow:
            self._swallow = False
            self.cut()
        self._delay = 0.0
        self._run(self._listen)

    def _run(self, step: Callable[[], object]) -> None:
        async def run() -> None:
            result = step()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
        self._writers |= {writer, upstream}
        self._tasks.add(task)
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(self._pump(reader, upstream)),
                    asyncio.create_task(self._pump(upstream_reader, writer)),
                ],
                return_when=asyncio.ALL_COMPLETED,
            )
        finally:
            self._writers -= {writer, upstream}
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if not self._swallow:
                    writer.write(data)
                    await writer.drain()
        writer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop_listening)
        self._run(self._cut)
        self._run(self._settle)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _settle(self) -> None:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            # Also those that were just being made while the others were cut.
            self._cut()
            await asyncio.wait(others, timeout=0.05)
        for _ in range(3):
            # Transports close in the loop turns that follow.
            await asyncio.sleep(0)
