"""A TCP proxy in front of a real server that breaks connections on demand. The faults are real; nothing is mocked.

It runs on its own thread and event loop. Its controls are plain methods. Call them from any other thread, also from
coroutines; each returns once it is in effect. Bytes that are delivered are delivered in order.
"""

import asyncio
import contextlib
import math
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from magnus_cache.testing.proxy.lanes import Lane, LaneRules
from magnus_cache.testing.proxy.links import Link, Side
from magnus_cache.testing.proxy.pushes import PushFilter, PushMode, PushRules

__all__ = ["Direction", "Proxy", "ProxyCounts"]

Direction: TypeAlias = Literal["to_server", "to_client", "both"]
"""The direction of bytes."""

_PATIENCE: Final = 10.0
_TURNS: Final = 5
"""Turns of the event loop until a connection that the system has accepted is known here."""


@dataclass(frozen=True, slots=True)
class ProxyCounts:
    """Counts of a proxy since it started, and what waits in it now.

    :ivar connections: connections accepted so far.
    :ivar open_connections: connections that are open now.
    :ivar bytes_to_server: bytes delivered so far.
    :ivar bytes_to_client: bytes delivered so far.
    :ivar bytes_swallowed: bytes dropped by black holes so far, both directions.
    :ivar bytes_waiting: bytes held back now by a delay, a freeze or a slow reader, both directions.
    :ivar pushes_forwarded: push frames delivered so far.
    :ivar pushes_dropped: push frames dropped so far.
    :ivar pushes_held: push frames held back now.
    """

    connections: int
    open_connections: int
    bytes_to_server: int
    bytes_to_client: int
    bytes_swallowed: int
    bytes_waiting: int
    pushes_forwarded: int
    pushes_dropped: int
    pushes_held: int


class Proxy:
    """Forwards connections to a server, until a control says otherwise. A context manager that starts and stops it.

    Every control raises `RuntimeError` outside the ``with`` block. A control applies to open connections and to new
    ones.

    :param target: the server's port.
    :param tls: terminates TLS here, so that clients can use ``rediss://`` with any server. The connection to the server
        is plain.
    :param host: the server's host; the proxy itself listens on 127.0.0.1.
    :ivar port: where it listens; the same after `refuse` and `resume`.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> None:
        self.target = target
        self.host = host
        self.port = 0
        self._tls = tls
        self._accepted = 0
        self._to_server, self._to_client = LaneRules(), LaneRules()
        self._pushes = PushRules()
        self._links: set[Link] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The URL of the proxy: ``redis://127.0.0.1:<port>/0``, or ``rediss://`` with TLS."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """The number of connections accepted so far."""
        return self._accepted

    @property
    def counts(self) -> ProxyCounts:
        """The counts so far, and what waits now. They can be read after the block too."""
        to_server, to_client, pushes = self._to_server, self._to_client, self._pushes
        return ProxyCounts(
            connections=self._accepted,
            open_connections=len(self._links),
            bytes_to_server=to_server.forwarded,
            bytes_to_client=to_client.forwarded,
            bytes_swallowed=to_server.swallowed + to_client.swallowed,
            bytes_waiting=to_server.waiting + to_client.waiting,
            pushes_forwarded=pushes.forwarded,
            pushes_dropped=pushes.dropped,
            pushes_held=pushes.held,
        )

    # -- controls -------------------------------------------------------------------------------------------

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Deliver everything this many seconds later: it adds latency and leaves the bandwidth alone.

        Delays of consecutive pieces do not add up. A new delay also applies to bytes that already wait.

        :raises ValueError: for a delay that is negative or not a number, and for an unknown direction.
        :raises RuntimeError: if the proxy is not running.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a delay is 0 or more seconds, not {seconds!r}")
        self._change(direction, lambda rules: setattr(rules, "delay", seconds))

    def freeze(self, direction: Direction = "both") -> None:
        """Hold back everything, including the ends of connections, until `thaw`.

        Beyond 16 MiB in one direction of a connection, its sender is held up.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy is not running.
        """
        self._change(direction, lambda rules: setattr(rules, "frozen", True))

    def thaw(self, direction: Direction = "both") -> None:
        """Deliver what `freeze` held back, and continue.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy is not running.
        """
        self._change(direction, lambda rules: setattr(rules, "frozen", False))

    def half_open(self, direction: Direction) -> None:
        """Drop all bytes of one direction, including those that wait and the ends of connections, until `resume`.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy is not running.
        """
        self._change(direction, lambda rules: setattr(rules, "swallowing", True))

    def black_hole(self) -> None:
        """Drop all bytes of both directions, as `half_open` does for one.

        :raises RuntimeError: if the proxy is not running.
        """
        self.half_open("both")

    def drop_pushes(self, dropping: bool = True) -> None:
        """Drop RESP3 push frames from the server, such as invalidations, while replies pass; False ends this.

        Frames held by `hold_pushes` are dropped too, or with False delivered. A push that has begun counts as new.

        :raises RuntimeError: if the proxy is not running.
        """
        self._set_pushes(PushMode.DROP if dropping else PushMode.FORWARD)

    def hold_pushes(self) -> None:
        """Hold back RESP3 push frames from the server while replies pass, until `release_pushes`.

        No real server delays a push until after later replies. Use this to test code that relies on the order.

        :raises RuntimeError: if the proxy is not running.
        """
        self._set_pushes(PushMode.HOLD)

    def release_pushes(self) -> None:
        """Deliver the held push frames in their order, and all later ones.

        :raises RuntimeError: if the proxy is not running.
        """
        self._set_pushes(PushMode.FORWARD)

    def cut(self) -> None:
        """Reset every open connection, towards both ends. New connections work.

        :raises RuntimeError: if the proxy is not running.
        """
        self._run(self._cut)

    def refuse(self) -> None:
        """Stop listening: new connections are refused, and open ones continue.

        :raises RuntimeError: if the proxy is not running.
        """
        self._run(self._stop_listening)

    def resume(self) -> None:
        """Listen and forward everything again, without delay.

        After a black hole all connections are cut, because bytes are missing from their streams.

        :raises OSError: if another program took the port while the proxy refused.
        :raises RuntimeError: if the proxy is not running.
        """
        self._run(self._resume)

    # -- how they are carried out ---------------------------------------------------------------------------

    def _change(self, direction: Direction, change: Callable[[LaneRules], None]) -> None:
        chosen = self._chosen(direction)

        async def step() -> None:
            for rules in chosen:
                change(rules)
            self._pump()

        self._run(step)

    def _chosen(self, direction: Direction) -> Iterable[LaneRules]:
        if direction == "to_server":
            return (self._to_server,)
        if direction == "to_client":
            return (self._to_client,)
        if direction == "both":
            return (self._to_server, self._to_client)
        raise ValueError(f"a direction is 'to_server', 'to_client' or 'both', not {direction!r}")

    def _set_pushes(self, mode: PushMode) -> None:
        async def step() -> None:
            self._pushes.mode = mode
            self._pump()

        self._run(step)

    def _pump(self) -> None:
        for link in tuple(self._links):
            link.pump()

    async def _resume(self) -> None:
        if self._to_server.swallowing or self._to_client.swallowing:
            await self._cut()
        for rules in (self._to_server, self._to_client):
            rules.swallowing = rules.frozen = False
            rules.delay = 0.0
        self._pushes.mode = PushMode.FORWARD
        self._pump()
        await self._listen()

    async def _cut(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        standing = tuple(self._links)
        for link in standing:
            link.cut()
        for link in standing:
            await link.over.wait()

    async def _listen(self) -> None:
        # Not `create_server`: if it is closed just after it accepted a connection, that connection is never closed.
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._admit(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _admit(self, accepted: socket.socket) -> None:
        # A client may fail the handshake; it sees what a server would show it.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(self._new_side, accepted, ssl=self._tls)

    def _new_side(self) -> Side:
        loop = asyncio.get_running_loop()
        to_server = Lane(loop, self._to_server, None)
        to_client = Lane(loop, self._to_client, PushFilter(self._pushes))
        return Link(to_server, to_client, self._begin, self._links.discard).client

    def _begin(self, link: Link) -> None:
        self._accepted += 1
        self._links.add(link)
        link.attempt = asyncio.get_running_loop().create_task(self._connect(link))
        # Not at the end of the task, because a task that is cancelled early never begins.
        link.attempt.add_done_callback(lambda _: link.connected())

    async def _connect(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: link.server, self.host, self.target)

    # -- life -----------------------------------------------------------------------------------------------

    def _run(self, step: Callable[[], Awaitable[None]]) -> None:
        loop = self._loop
        if loop is None:
            raise RuntimeError("the proxy is not running; use it within its with block")

        async def run() -> None:
            await step()

        asyncio.run_coroutine_threadsafe(run(), loop).result(_PATIENCE)

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("the proxy is already running")
        # Not the kind of loop that the program under test uses: measurements must not depend on it.
        self._loop = asyncio.SelectorEventLoop()
        # A daemon, so that a test run that is being killed does not wait for it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="testing-proxy", daemon=True)
        self._thread.start()
        try:
            self._run(self._listen)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._settle)
        finally:
            self._stop()

    async def _settle(self) -> None:
        await self._stop_listening()
        own = asyncio.current_task()
        while self._links or len(asyncio.all_tasks()) > 1:
            # First, because a task that is cancelled before it begins never closes what it was given.
            await self._cut()
            # Among them are TLS handshakes whose clients may never answer.
            others = [task for task in asyncio.all_tasks() if task is not own]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()
        for _ in range(_TURNS):
            # Transports close in the next turns of the loop.
            await asyncio.sleep(0)

    def _stop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
