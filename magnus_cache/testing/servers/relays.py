"""A network of relays: all servers and clients reach a server through a proxy that knows who connects.

Every server makes its connections from a loopback address of its own, so that the proxy in front of another one can
tell the links apart. It needs no privileges, and Linux, where all of 127.0.0.0/8 is the loopback interface.
"""

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.proxy.lanes import Lane, LaneRules
from magnus_cache.testing.proxy.links import Link
from magnus_cache.testing.servers.networks import Pair, check_delay
from magnus_cache.testing.servers.places import Place, free_place
from magnus_cache.testing.servers.programs import ServerVersion

__all__ = ["RelayNetwork"]

_HOST: Final = "127.0.0.1"
_SOURCES: Final = "127.77.0."
_MOST: Final = 250
_PATIENCE: Final = 10.0
_TURNS: Final = 5
_WITH_SOURCE: Final = (7, 0, 0)

_CLIENTS: Final = 0
"""The number of the clients among the ends of links; servers have 1 and more."""


class RelayNetwork:
    """Relays on a thread of their own; a cut link holds everything back, as a network does that loses packets.

    :raises CacheArgumentError: on systems whose loopback interface has one address only.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise CacheArgumentError("links", "links that can be cut need Linux")
        self._ends: dict[int, int] = {}
        self._rules: dict[tuple[int, int], LaneRules] = {}
        self._links: dict[Link, tuple[int, int]] = {}
        self._listeners: list[socket.socket] = []
        self._loop = asyncio.SelectorEventLoop()
        # A daemon, so that a test run that is being killed does not wait for it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="testing-relays", daemon=True)
        self._thread.start()

    # -- places ---------------------------------------------------------------------------------------------

    def place(self, version: ServerVersion) -> Place:
        """Return a place behind two relays: one for clients and replicas, one for the bus of a cluster."""
        inner, end = free_place(), len(self._ends) + 1
        if end > _MOST:
            raise CacheArgumentError("nodes", f"at most {_MOST} servers can have links; close some")
        port, bus_port = self._open(inner.listens, end), self._open(inner.bus_port, end)
        self._ends[port] = end
        source = f"{_SOURCES}{end}"
        # Redis 6.2 connects from the first address that it binds, and later ones have an option for it.
        options = {"bind": f"{source} {_HOST}"}
        if version.number >= _WITH_SOURCE:
            options["bind-source-addr"] = source
        return Place(_HOST, port, bus_port, inner.listens, options, announced=True, reserved=inner.reserved)

    def _open(self, target: int, end: int) -> int:
        listener = socket.create_server((_HOST, 0))
        listener.setblocking(False)

        async def listen() -> None:
            self._listeners.append(listener)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener, target, end)

        self._run(listen)
        port: int = listener.getsockname()[1]
        return port

    def _end(self, place: Place | None) -> int:
        return _CLIENTS if place is None else self._ends[place.port]

    # -- links ----------------------------------------------------------------------------------------------

    def cut(self, pairs: Sequence[Pair]) -> None:
        """Hold back everything on these links, the ends of connections too, until `heal`."""
        self._change(pairs, lambda rules: setattr(rules, "frozen", True))

    def delay(self, pair: Pair, seconds: float) -> None:
        """Deliver everything on a link this much later, in each direction.

        :raises CacheArgumentError: for a delay that is negative, not a number, or longer than a minute.
        """
        check_delay(seconds)
        self._change([pair], lambda rules: setattr(rules, "delay", seconds))

    def heal(self, places: Collection[Place]) -> None:
        """Deliver everything that was held back, and all that comes, at once."""
        ends = {_CLIENTS, *map(self._end, places)}

        async def step() -> None:
            for (source, target), rules in self._rules.items():
                if {source, target} <= ends:
                    rules.frozen, rules.delay = False, 0.0
            self._pump()

        self._run(step)

    def _change(self, pairs: Sequence[Pair], change: Callable[[LaneRules], None]) -> None:
        ends = [(self._end(one), self._end(other)) for one, other in pairs]

        async def step() -> None:
            for one, other in ends:
                change(self._between(one, other))
                change(self._between(other, one))
            self._pump()

        self._run(step)

    def _between(self, source: int, target: int) -> LaneRules:
        """Return the rules of the connections that one end opens to another. They are the same both ways."""
        return self._rules.setdefault((source, target), LaneRules())

    def _pump(self) -> None:
        for link in tuple(self._links):
            link.pump()

    # -- connections ----------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, target: int, end: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, (address, *_) = listener.accept()
            accepted.setblocking(False)
            source = int(address.removeprefix(_SOURCES)) if address.startswith(_SOURCES) else _CLIENTS
            asyncio.get_running_loop().create_task(self._admit(accepted, target, (source, end)))

    async def _admit(self, accepted: socket.socket, target: int, ends: tuple[int, int]) -> None:
        loop, rules = asyncio.get_running_loop(), self._between(*ends)

        def begin(link: Link) -> None:
            self._links[link] = ends
            link.attempt = loop.create_task(self._connect(link, target))
            # Not at the end of the task, because a task that is cancelled early never begins.
            link.attempt.add_done_callback(lambda _: link.connected())

        def end(link: Link) -> None:
            self._links.pop(link, None)

        link = Link(Lane(loop, rules, None), Lane(loop, rules, None), begin, end)
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(lambda: link.client, accepted)

    async def _connect(self, link: Link, target: int) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: link.server, _HOST, target)

    # -- life -----------------------------------------------------------------------------------------------

    def _run(self, step: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await step()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE)

    def close(self) -> None:
        """Close all connections and listeners, and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._settle)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _settle(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        own = asyncio.current_task()
        while self._links or len(asyncio.all_tasks()) > 1:
            links = tuple(self._links)
            for link in links:
                link.cut()
            for link in links:
                await link.over.wait()
            # They only connect and accept, which ends by itself.
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not own), return_exceptions=True)
        for _ in range(_TURNS):
            # Transports close in the next turns of the loop.
            await asyncio.sleep(0)
