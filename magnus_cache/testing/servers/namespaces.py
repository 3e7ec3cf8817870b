"""A network of Linux network namespaces: each server has a kernel's network of its own, and links of real packets.

It needs root. Nothing relays, so clients have the speed of the machine. A link is cut by a wrong hardware address for
its other end: packets leave and reach nothing, as on a network that loses them. Namespaces have no names. They last as
long as processes in them, so nothing is left of them even if this program is killed.
"""

import contextlib
import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.control import NodeError
from magnus_cache.testing.servers.networks import Pair
from magnus_cache.testing.servers.places import BUS_OFFSET, Place
from magnus_cache.testing.servers.programs import ServerVersion

__all__ = ["NamespaceNetwork"]

_TOOLS: Final = ("ip", "nsenter", "unshare")
_REMEDY: Final = "use links=True, which needs no privileges"
_FIRST_PORT: Final = 7_000
_MOST: Final = 250
_CLIENTS: Final = 254
"""The last part of the address of the clients; servers have 1 and more."""
_NOWHERE: Final = "02:00:00:00:00:ff"
_ATTEMPTS: Final = 20
_HOLDER: Final = "echo; read -r _"
"""Keeps a namespace: it says that it is there, and its input ends with this program, even if that is killed."""


@dataclass(frozen=True)
class _End:
    """A server's namespace.

    :ivar holder: the process that keeps it.
    :ivar address: of the server.
    :ivar device: the interface for it among those of this program.
    """

    holder: subprocess.Popen[bytes]
    address: str
    device: str


class NamespaceNetwork:
    """Namespaces that a bridge connects, and that clients reach by a link of its own each.

    :raises CacheArgumentError: without root, or without the tools of Linux for this.
    """

    def __init__(self) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing or os.geteuid() != 0:
            needs = f"the commands {', '.join(missing)}" if missing else "root"
            raise CacheArgumentError("links", f"network namespaces need {needs}; {_REMEDY}")
        self._ends: dict[str, _End] = {}
        self._mark = f"mg{secrets.token_hex(3)}"
        self._subnet = ""
        try:
            self._hub = _new_holder()
        except (OSError, NodeError) as error:
            raise CacheArgumentError("links", f"this system allows no network namespace; {_REMEDY}") from error
        _configure(self._hub, "link add hub type bridge", "link set hub up")

    # -- places ---------------------------------------------------------------------------------------------

    def place(self, version: ServerVersion) -> Place:
        """Return a place in a new namespace, with an address of its own."""
        del version
        number = len(self._ends) + 1
        if number > _MOST:
            raise CacheArgumentError("nodes", f"at most {_MOST} servers can have links; close some")
        holder, device = _new_holder(), f"{self._mark}-{number}"
        try:
            _configure(
                None,
                f"link add {device} type veth peer name clients netns {holder.pid}",
                f"link set {device} up",
            )
            address = self._routed(device, number)
            self._connect(holder, number, address)
        except BaseException:
            _end(holder)
            raise
        self._ends[address] = _End(holder, address, device)
        port = _FIRST_PORT + number
        options = {"bind": f"{address} 127.0.0.1"}
        prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        return Place(address, port, port + BUS_OFFSET, port, options, prefix, announced=True)

    def _routed(self, device: str, number: int) -> str:
        """Make a server's address reachable here, and return it. The first server finds a subnet that is not in use."""
        for _ in range(1 if self._subnet else _ATTEMPTS):
            # These addresses are set aside for measurements of networks.
            subnet = self._subnet or f"198.18.{random.randrange(256)}"
            address, clients = f"{subnet}.{number}", f"{subnet}.{_CLIENTS}"
            with contextlib.suppress(NodeError):
                _configure(
                    None,
                    f"addr add {clients}/32 dev {device}",
                    f"route add {address}/32 dev {device} src {clients}",
                )
                self._subnet = subnet
                return address
        raise NodeError("no free subnet among 198.18.0.0/16 for network namespaces")

    def _connect(self, holder: subprocess.Popen[bytes], number: int, address: str) -> None:
        """Give a namespace its address, a link to the bridge, and a route to the clients."""
        _configure(self._hub, f"link add p{number} type veth peer name peers netns {holder.pid}")
        _configure(self._hub, f"link set p{number} master hub", f"link set p{number} up")
        _configure(
            holder,
            "link set lo up", f"addr add {address}/32 dev lo", "link set peers up", "link set clients up",
            f"route add {self._subnet}.0/24 dev peers src {address}",
            f"route add {self._subnet}.{_CLIENTS}/32 dev clients src {address}",
        )  # fmt: skip

    # -- links ----------------------------------------------------------------------------------------------

    def cut(self, pairs: Sequence[Pair]) -> None:
        """Send all packets on these links to nothing, until `heal`."""
        commands: dict[Place | None, list[str]] = {}
        for one, other in pairs:
            for sender, receiver in ((one, other), (other, one)):
                commands.setdefault(sender, []).append(self._misleading(sender, receiver))
        # Those first that have most to say: once a server that is cut off sends nothing, it is cut off.
        for sender, said in sorted(commands.items(), key=lambda item: -len(item[1])):
            _configure(None if sender is None else self._ends[sender.host].holder, *said)

    def _misleading(self, sender: Place | None, receiver: Place | None) -> str:
        if receiver is None:
            target, device = f"{self._subnet}.{_CLIENTS}", "clients"
        else:
            target, device = receiver.host, self._ends[receiver.host].device if sender is None else "peers"
        return f"neigh replace {target} lladdr {_NOWHERE} dev {device} nud permanent"

    def delay(self, pair: Pair, seconds: float) -> None:
        """Say which network has delays.

        :raises CacheArgumentError: always.
        """
        raise CacheArgumentError("links", "links between network namespaces cannot be slow; use links=True")

    def heal(self, places: Collection[Place]) -> None:
        """Let the packets find their ways again."""
        for place in places:
            end = self._ends[place.host]
            # Only entries that are made by hand are permanent.
            _configure(end.holder, "neigh flush nud permanent")
            _configure(None, f"neigh flush dev {end.device} nud permanent")

    # -- life -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the namespaces and all links. Idempotent."""
        for end in self._ends.values():
            with contextlib.suppress(NodeError):
                _configure(None, f"link delete {end.device}")
            _end(end.holder)
        self._ends.clear()
        _end(self._hub)


def _new_holder() -> subprocess.Popen[bytes]:
    """Return a process in a new network namespace."""
    command = ["unshare", "--net", "/bin/sh", "-c", _HOLDER]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert holder.stdout is not None
    if not holder.stdout.readline():
        _end(holder)
        raise NodeError("the system refuses a network namespace")
    return holder


def _end(holder: subprocess.Popen[bytes]) -> None:
    if holder.poll() is None:
        holder.kill()
    holder.communicate()


def _configure(holder: subprocess.Popen[bytes] | None, *commands: str) -> None:
    """Run commands of `ip` in a namespace; None is the one of this program.

    :raises NodeError: if one of them fails.
    """
    enter = [] if holder is None else ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NodeError(f"the network refused a change: {done.stderr.strip()}")
