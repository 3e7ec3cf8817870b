"""Where a server listens: a port of its own, and for a cluster also a bus port, which is 10,000 higher."""

import random
import socket
import sys
from dataclasses import dataclass, field
from typing import Final

from magnus_cache.errors import CacheError

__all__ = ["BUS_OFFSET", "Place", "PortsTakenError", "free_place"]

BUS_OFFSET: Final = 10_000
"""Redis 6.2 has no option for the port of the bus."""

_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = range(10_240, 22_768)
"""Below the ports that systems give to outgoing connections, the bus ports too."""
_ATTEMPTS: Final = 200


class PortsTakenError(CacheError, OSError):
    """There is no free pair of ports on this machine."""


@dataclass(eq=False)
class Place:
    """Where one server listens and how it is reached.

    :ivar host: the address at which clients and other servers reach it.
    :ivar port: the port at which clients and other servers reach it.
    :ivar bus_port: the port at which other nodes of a cluster reach it.
    :ivar listens: the port at which the server itself listens; not `port` if something relays.
    :ivar options: the server options that belong to the place.
    :ivar prefix: the beginning of the command that starts the server there.
    :ivar announced: whether the server has to tell others where it is reached.
    :ivar reserved: sockets that hold its ports.
    """

    host: str
    port: int
    bus_port: int
    listens: int
    options: dict[str, str] = field(default_factory=dict[str, str])
    prefix: tuple[str, ...] = ()
    announced: bool = False
    reserved: tuple[socket.socket, ...] = ()

    @property
    def address(self) -> str:
        """The host and the port, as one text."""
        return f"{self.host}:{self.port}"

    def release(self) -> None:
        """Let others use the ports."""
        for each in self.reserved:
            each.close()
        self.reserved = ()


def free_place() -> Place:
    """Return a place on the loopback interface whose two ports are free, and reserved while this program has them.

    :raises PortsTakenError: if there is none.
    """
    for port in random.sample(_PORTS, _ATTEMPTS):
        if reserved := _reserved(port, port + BUS_OFFSET):
            return Place(_LOOPBACK, port, port + BUS_OFFSET, port, {"bind": _LOOPBACK}, reserved=reserved)
    raise PortsTakenError(f"no free ports among {_PORTS.start} to {_PORTS.stop - 1}; stop servers that are left over")


def _reserved(*ports: int) -> tuple[socket.socket, ...]:
    """Return sockets that hold the ports; none if one is in use.

    A socket that is bound and does not listen keeps other programs away, also while the server is down. Linux lets the
    server listen nevertheless, since both allow the address to be reused. The option is set after the bind: with it,
    the bind would succeed beside another reservation. Other systems refuse the server, so the ports are let go.
    """
    held: list[socket.socket] = []
    try:
        for port in ports:
            held.append(socket.socket())
            held[-1].bind((_LOOPBACK, port))
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        for each in held:
            each.close()
        return ()
    if sys.platform != "linux":
        for each in held:
            each.close()
    return tuple(held)
