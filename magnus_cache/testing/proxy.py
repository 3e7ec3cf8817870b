"""A TCP proxy in front of a real server, that breaks connections on demand; what breaks is real, nothing is mocked.

It runs on a thread and an event loop of its own. Its controls are plain methods, callable from any other thread, also
from coroutines: each returns once it holds. What is delivered at all is delivered in order.
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

from magnus_cache.testing.lanes import Lane, LaneRules
from magnus_cache.testing.links import Link, Side
from magnus_cache.testing.pushes import PushFilter, PushMode, PushRules

__all__ = ["Direction", "Proxy", "ProxyCounts"]

Direction: TypeAlias = Literal["to_server", "to_client", "both"]
"""Which way bytes go."""

_PATIENCE: Final = 10.0
_TURNS: Final = 5
"""Of the event loop, until a connection that the system has accepted is known here."""


@dataclass(frozen=True, slots=True)
class ProxyCounts:
    """What went through a proxy since it started, and what waits in it now.

    :ivar connections: accepted so far.
    :ivar open_connections: of these, those that stand now.
    :ivar bytes_to_server: delivered so far.
    :ivar bytes_to_client: delivered so far.
    :ivar bytes_swallowed: lost in black holes so far, both directions.
    :ivar bytes_waiting: held back now by a delay, a freeze or a slow reader, both directions.
    :ivar pushes_forwarded: push frames delivered so far.
    :ivar pushes_dropped: push frames dropped so far.
    :ivar pushes_held: push frames held now.
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
    """Forwards connections to a server until told otherwise; a context manager that starts and stops it.

    Every control raises `RuntimeError` outside the ``with`` block. What a control says holds for the connections that
    stand and for new ones.

    :param target: the server's port.
    :param tls: ends TLS here, so that any server can be reached by ``rediss://``; the way to the server is plain.
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
        """Where it listens: ``redis://127.0.0.1:<port>/0``, or ``rediss://`` with TLS."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._accepted

    @property
    def counts(self) -> ProxyCounts:
        """What went through so far, and what waits now; also after the block."""
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
        """Deliver whatever arrives so many seconds later: a longer way, not a narrower one.

        Delays of pieces that follow each other do not add up. A new delay is also that of what is under way.

        :raises ValueError: for a delay that is negative or no number, and for an unknown direction.
        :raises RuntimeError: if the proxy does not run.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a delay is 0 or more seconds, not {seconds!r}")
        self._change(direction, lambda rules: setattr(rules, "delay", seconds))

    def freeze(self, direction: Direction = "both") -> None:
        """Hold back whatever comes, the ends of connections too, until `thaw`.

        Past 16 MiB in one direction of a connection its sender is held up.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy does not run.
        """
        self._change(direction, lambda rules: setattr(rules, "frozen", True))

    def thaw(self, direction: Direction = "both") -> None:
        """Deliver what `freeze` held back, and go on.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy does not run.
        """
        self._change(direction, lambda rules: setattr(rules, "frozen", False))

    def half_open(self, direction: Direction) -> None:
        """Swallow one direction, also what is under way and the ends of connections; connections stay until `resume`.

        :raises ValueError: for an unknown direction.
        :raises RuntimeError: if the proxy does not run.
        """
        self._change(direction, lambda rules: setattr(rules, "swallowing", True))

    def black_hole(self) -> None:
        """Swallow both directions, as `half_open` does one.

        :raises RuntimeError: if the proxy does not run.
        """
        self.half_open("both")

    def drop_pushes(self, dropping: bool = True) -> None:
        """Swallow RESP3 push frames from the server, such as invalidations, while replies pass; False: no longer.

        Frames that `hold_pushes` held are dropped too, or delivered. A push that has begun counts as one to come.

        :raises RuntimeError: if the proxy does not run.
        """
        self._set_pushes(PushMode.DROP if dropping else PushMode.FORWARD)

    def hold_pushes(self) -> None:
        """Keep RESP3 push frames from the server back while replies pass, until `release_pushes`.

        No real server sends a push after replies that it sent later: for tests of what relies on that.

        :raises RuntimeError: if the proxy does not run.
        """
        self._set_pushes(PushMode.HOLD)

    def release_pushes(self) -> None:
        """Deliver the held push frames, in their order, and whatever comes from now on.

        :raises RuntimeError: if the proxy does not run.
        """
        self._set_pushes(PushMode.FORWARD)

    def cut(self) -> None:
        """Reset every connection that stands, towards both ends; new ones are served.

        :raises RuntimeError: if the proxy does not run.
        """
        self._run(self._cut)

    def refuse(self) -> None:
        """Stop listening: new connections are refused; those that stand go on.

        :raises RuntimeError: if the proxy does not run.
        """
        self._run(self._stop_listening)

    def resume(self) -> None:
        """Listen and forward everything again, without delay; after a black hole of any kind all connections are cut.

        They have to be, as bytes are missing from their streams.

        :raises OSError: if something else took the port while the proxy refused.
        :raises RuntimeError: if the proxy does not run.
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
        # Not `create_server`: if it is closed just after it accepted a connection, that one is never closed.
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
        # A client that fails the handshake: what it sees is what a server would let it see.
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
        # Not at the end of the task: a task that is cancelled early never begins.
        link.attempt.add_done_callback(lambda _: link.connected())

    async def _connect(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: link.server, self.host, self.target)

    # -- life -----------------------------------------------------------------------------------------------

    def _run(self, step: Callable[[], Awaitable[None]]) -> None:
        loop = self._loop
        if loop is None:
            raise RuntimeError("the proxy does not run; use it within its with block")

        async def run() -> None:
            await step()

        asyncio.run_coroutine_threadsafe(run(), loop).result(_PATIENCE)

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("the proxy runs already")
        # Not whatever loop is the fashion in the program under test: what is measured must not depend on it.
        self._loop = asyncio.SelectorEventLoop()
        # A daemon: a test run that is being killed must not hang on it.
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
            # First: a task that is cancelled before it begins never closes what it was given.
            await self._cut()
            # TLS handshakes among them, whose clients may never answer.
            others = [task for task in asyncio.all_tasks() if task is not own]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()
        for _ in range(_TURNS):
            # Transports close in the loop turns that follow.
            await asyncio.sleep(0)

    def _stop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
