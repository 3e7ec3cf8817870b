"""A network of relays: all servers and clients reach a server through a proxy that knows who connects.

Every server makes its connections from a loopback address of its own, so that the proxy in front of another one can
tell the links apart. It needs no privileges, and Linux, where all of 127.0.0.0/8 is the loopback interface.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.control import NodeError
from magnus_cache.testing.servers.networks import Pair, check_delay
from magnus_cache.testing.servers.places import Place, free_place
from magnus_cache.testing.servers.programs import ServerVersion
from magnus_cache.testing.servers.relay_process import CLIENTS, HOST, SOURCES

__all__ = ["RelayNetwork"]

_MOST: Final = 250
_PATIENCE: Final = 10.0
_WITH_SOURCE: Final = (7, 0, 0)
_PROGRAM: Final = """\
import sys
sys.path.insert(0, sys.argv[1])
from magnus_cache.testing.servers.relay_process import main
main()
"""


class RelayNetwork:
    """Relays in a process of their own. A cut link holds everything back, as a network does that loses packets.

    :raises CacheArgumentError: on systems whose loopback interface has one address only.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise CacheArgumentError("links", "links that can be cut need Linux")
        self._ends: dict[int, int] = {}
        self._lock = threading.Lock()
        # Where this program has the package from, the new one may not look.
        command = [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[3])]
        # In its own session: Ctrl-C at the terminal is for the program, which then ends the relays in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def place(self, version: ServerVersion) -> Place:
        """Return a place behind two relays: one for clients and replicas, one for the bus of a cluster."""
        inner, end = free_place(), len(self._ends) + 1
        if end > _MOST:
            raise CacheArgumentError("nodes", f"at most {_MOST} servers can have links; close some")
        port = self._order("open", inner.listens, end)
        bus_port = self._order("open", inner.bus_port, end)
        self._ends[port] = end
        source = f"{SOURCES}{end}"
        # Redis 6.2 connects from the first address that it binds, and later ones have an option for it.
        options = {"bind": f"{source} {HOST}"}
        if version.number >= _WITH_SOURCE:
            options["bind-source-addr"] = source
        return Place(HOST, port, bus_port, inner.listens, options, announced=True, reserved=inner.reserved)

    def _end(self, place: Place | None) -> int:
        return CLIENTS if place is None else self._ends[place.port]

    def cut(self, pairs: Sequence[Pair]) -> None:
        """Hold back everything on these links, the ends of connections too, until `heal`."""
        self._order("cut", [(self._end(one), self._end(other)) for one, other in pairs])

    def delay(self, pair: Pair, seconds: float) -> None:
        """Deliver everything on a link this much later, in each direction.

        :raises CacheArgumentError: for a delay that is negative, not a number, or longer than a minute.
        """
        check_delay(seconds)
        self._order("delay", *map(self._end, pair), seconds)

    def heal(self, places: Collection[Place]) -> None:
        """Deliver everything that was held back, and all that comes, at once."""
        self._order("heal", [CLIENTS, *map(self._end, places)])

    def _order(self, name: str, *arguments: object) -> Any:
        """Return the answer of the relays, which comes once the order is in effect."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            orders.write(json.dumps([name, arguments]).encode() + b"\n")
            orders.flush()
            if answer := answers.readline():
                return json.loads(answer)
        raise NodeError(f"the relays do not run any more, so no link could be changed ({name})")

    def close(self) -> None:
        """End the relays, and all connections through them. Idempotent."""
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_PATIENCE)
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
