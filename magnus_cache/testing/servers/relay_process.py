"""The process that relays connections between servers and clients, and holds them up, as its input says.

It is a process of its own so that relayed bytes never wait for the program under test, and so that connections between
servers are none of that program's. Each line of input is an order, each line of output its answer, both in JSON. The
process ends with its input, and so with the program, even if that is killed.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from typing import Any, Final

from magnus_cache.testing.proxy.lanes import Lane, LaneRules
from magnus_cache.testing.proxy.links import Link

__all__ = ["CLIENTS", "HOST", "SOURCES", "Relays", "main"]

HOST: Final = "127.0.0.1"

SOURCES: Final = "127.77.0."
"""Servers connect from addresses that begin like this and end with their number."""

CLIENTS: Final = 0
"""The number of all clients among the ends of links; servers have 1 and more."""

_CHUNK: Final = 1 << 16


class Relays:
    """Relays in front of servers. They tell the links apart by the address from which a server connects."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rules: dict[tuple[int, int], LaneRules] = {}
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- orders ---------------------------------------------------------------------------------------------

    def open(self, target: int, end: int) -> int:
        """Return the port of a new relay to a server's port."""
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept, listener, target, end)
        port: int = listener.getsockname()[1]
        return port

    def cut(self, pairs: list[tuple[int, int]]) -> None:
        """Hold back everything on these links."""
        for one, other in pairs:
            self._between(one, other).frozen = self._between(other, one).frozen = True
        self._pump()

    def delay(self, one: int, other: int, seconds: float) -> None:
        """Deliver everything on a link later."""
        self._between(one, other).delay = self._between(other, one).delay = seconds
        self._pump()

    def heal(self, ends: list[int]) -> None:
        """Deliver everything between these ends at once."""
        for pair, rules in self._rules.items():
            if set(pair) <= set(ends):
                rules.frozen, rules.delay = False, 0.0
        self._pump()

    # -- connections ----------------------------------------------------------------------------------------

    def _between(self, source: int, target: int) -> LaneRules:
        """Return the rules of the connections that one end opens to another. They are the same both ways."""
        return self._rules.setdefault((source, target), LaneRules())

    def _pump(self) -> None:
        for link in tuple(self._links):
            link.pump()

    def _accept(self, listener: socket.socket, target: int, end: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, (address, *_) = listener.accept()
            accepted.setblocking(False)
            source = int(address.removeprefix(SOURCES)) if address.startswith(SOURCES) else CLIENTS
            task = self._loop.create_task(self._admit(accepted, target, self._between(source, end)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, accepted: socket.socket, target: int, rules: LaneRules) -> None:
        def begin(link: Link) -> None:
            self._links.add(link)
            link.attempt = self._loop.create_task(self._connect(link, target))
            # Not at the end of the task, because a task that is cancelled early never begins.
            link.attempt.add_done_callback(lambda _: link.connected())

        link = Link(Lane(self._loop, rules, None), Lane(self._loop, rules, None), begin, self._links.discard)
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(lambda: link.client, accepted)

    async def _connect(self, link: Link, target: int) -> None:
        with contextlib.suppress(OSError):
            await self._loop.create_connection(lambda: link.server, HOST, target)


class _Orders:
    """The lines of input, carried out as they come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._relays = Relays(loop)
        self._unread = b""

    def read(self) -> None:
        data = os.read(sys.stdin.fileno(), _CHUNK)
        if not data:
            self._loop.stop()
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            name, arguments = json.loads(line)
            answer: Any = getattr(self._relays, name)(*arguments)
            print(json.dumps(answer), flush=True)  # noqa: T201  # the answer to the order


def main() -> None:
    """Carry out orders until the input ends."""
    # Not the kind of loop that the program under test uses.
    loop = asyncio.SelectorEventLoop()
    loop.add_reader(sys.stdin.fileno(), _Orders(loop).read)
    loop.run_forever()
    # Connections end with the process, whatever they still have.
    os._exit(0)
