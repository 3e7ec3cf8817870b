"""Servers that belong together: their life, what can happen to each, and the links between them."""

import asyncio
import atexit
import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from magnus_cache.embedded import ServerNotFoundError
from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.control import NodeError, wait_for
from magnus_cache.testing.servers.namespaces import NamespaceNetwork
from magnus_cache.testing.servers.networks import Links, Network, PlainNetwork
from magnus_cache.testing.servers.nodes import Plan, ServerNode, dashed
from magnus_cache.testing.servers.places import Place
from magnus_cache.testing.servers.programs import ServerTls, ServerVersion, no_tls
from magnus_cache.testing.servers.relays import RelayNetwork

_Node = TypeVar("_Node", bound=ServerNode)

__all__ = ["PATIENCE", "ServerGroup"]

PATIENCE: Final = 30.0
"""Seconds that servers may take to agree, on a busy machine."""


class ServerGroup(ABC):
    """What `EmbeddedCluster` and `EmbeddedSentinels` have in common.

    An operation takes a node as a `ServerNode` or as its port.

    :ivar version: the kind and the version of the servers.
    """

    def __init__(self, binary: Path, options: dict[str, str], *, tls: ServerTls | None, links: Links) -> None:
        self._binary = binary
        self.version = ServerVersion.of(binary)
        self._options = options
        self._tls = tls
        if links not in {False, True, "namespaces"}:
            raise CacheArgumentError("links", f'use True, False or "namespaces", not {links!r}')
        self._links = links
        self._network: Network = PlainNetwork()
        self._nodes: list[ServerNode] = []
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def nodes(self) -> tuple[ServerNode, ...]:
        """All servers, those that are down included."""
        return tuple(self._nodes)

    def node(self, which: ServerNode | int) -> ServerNode:
        """Return a server of this group, also by its port.

        :raises CacheArgumentError: if there is none.
        """
        for node in self._nodes:
            if node is which or node.port == which:
                return node
        known = ", ".join(node.address for node in self._nodes) or "none, as they are not started"
        raise CacheArgumentError("node", f"{which!r} is not one of these servers; there are: {known}")

    # -- what happens to a server ---------------------------------------------------------------------------

    def kill(self, node: ServerNode | int) -> None:
        """Kill a server, like a crash (SIGKILL).

        :raises CacheArgumentError: for an unknown node.
        """
        self.node(node).kill()

    def restart(self, node: ServerNode | int) -> None:
        """Start a server again, at its address and with its identity. A running one is stopped in order before.

        :raises CacheArgumentError: for an unknown node.
        :raises RuntimeError: if it does not start, with the last lines of its log.
        """
        self.node(node).restart()

    def pause(self, node: ServerNode | int) -> None:
        """Freeze a server (SIGSTOP): it keeps its connections and answers nothing.

        :raises CacheArgumentError: for an unknown node.
        :raises NodeError: if it does not run.
        """
        self.node(node).pause()

    def resume(self, node: ServerNode | int) -> None:
        """Let a server continue after `pause` (SIGCONT).

        :raises CacheArgumentError: for an unknown node.
        :raises NodeError: if it does not run.
        """
        self.node(node).resume()

    # -- links ----------------------------------------------------------------------------------------------

    def partition(self, *nodes: ServerNode | int, clients: bool = False) -> None:
        """Cut the links between these servers and all others, until `heal`. Links among them still work.

        Nothing is refused and no connection ends: bytes just do not arrive, as on a network that loses packets.

        :param clients: cut their links to clients too. By default, clients still reach every server.
        :raises CacheArgumentError: for an unknown node, and without ``links=True``.
        """
        apart = [self.node(node) for node in nodes]
        if not apart:
            raise CacheArgumentError("nodes", "name the servers that are to be separated from the others")
        others = [node.place for node in self._nodes if node not in apart]
        ends: list[Place | None] = [*others, None] if clients else [*others]
        self._network.cut([(node.place, other) for node in apart for other in ends])

    def cut(self, one: ServerNode | int, other: ServerNode | int | None = None) -> None:
        """Cut the link between two servers, or by default between a server and its clients, until `heal`.

        :raises CacheArgumentError: for an unknown node, and without ``links=True``.
        """
        self._network.cut([(self.node(one).place, self._place_of(other))])

    def delay(self, one: ServerNode | int, seconds: float, other: ServerNode | int | None = None) -> None:
        """Deliver everything between two servers, or by default between a server and its clients, later.

        :param seconds: for each direction; 0 ends the delay.
        :raises CacheArgumentError: for an unknown node, a delay out of range, and without ``links=True``.
        """
        self._network.delay((self.node(one).place, self._place_of(other)), seconds)

    def heal(self) -> None:
        """Let everything through again, without delay. Bytes that were held back arrive now."""
        self._network.heal([node.place for node in self._nodes])

    def _place_of(self, node: ServerNode | int | None) -> Place | None:
        return None if node is None else self.node(node).place

    # -- the whole ------------------------------------------------------------------------------------------

    @abstractmethod
    def _missing(self) -> str:
        """Return what is not as it has to be, or an empty text."""

    def settle(self, patience: float = PATIENCE) -> None:
        """Return once all running servers agree about roles, and every running replica is linked to its primary.

        :raises NodeError: if that takes longer than `patience` seconds, with what is missing.
        """
        missing = [""]

        def settled() -> bool:
            try:
                missing[0] = self._missing()
            except NodeError as error:
                missing[0] = str(error)
            return not missing[0]

        wait_for(settled, patience, lambda: f"the servers did not settle: {missing[0]}")

    @abstractmethod
    def flush(self) -> None:
        """Delete all keys.

        :raises NodeError: if a primary does not answer.
        """

    def restore(self) -> None:
        """Bring everything back for the next test: all links work, all servers run and agree, and no key is left.

        Roles and slots stay where they are.

        :raises NodeError: if the servers do not settle.
        """
        self.heal()
        for node in self._nodes:
            if node.paused:
                self._wake(node)
            node.start()
        self._tidy()
        self.settle()
        self.flush()

    def _wake(self, node: ServerNode) -> None:
        node.resume()

    @abstractmethod
    def _tidy(self) -> None:
        """End what a test began and did not finish."""

    # -- life -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Start the servers and make them what they are to be."""

    def _plan(self, **options: str) -> Plan:
        """Return a plan for a server with these options and those of the group."""
        both = {dashed(name): value for name, value in (options | self._options).items()}
        return Plan(self._binary, self.version, lambda: self._network.place(self.version), self._tls, both)

    def _add(self, node: _Node) -> _Node:
        self._nodes.append(node)
        return node

    def start(self) -> Self:
        """Start the servers, and wait until they work together. A second start does nothing.

        :raises RuntimeError: if a server does not start, with the last lines of its log.
        :raises NodeError: if they do not come to work together.
        :raises ServerNotFoundError: if the server was built without TLS, and is to use it.
        """
        if self._nodes:
            return self
        try:
            if self._links:
                self._network = NamespaceNetwork() if self._links == "namespaces" else RelayNetwork()
            self._begin()
        except BaseException as error:
            self.close()
            if self._tls is not None and isinstance(error, RuntimeError) and "tls" in str(error).lower():
                raise ServerNotFoundError(no_tls(self._binary)) from error
            raise
        return self

    def close(self) -> None:
        """Stop all servers, remove their data and free their ports. Idempotent; a forked child does nothing."""
        if os.getpid() != self._owner:
            return
        for node in self._nodes:
            # All first: those that are left would only work for nothing.
            with contextlib.suppress(ProcessLookupError):
                node.kill()
        for node in self._nodes:
            node.close()
        self._nodes.clear()
        self._network.close()
        self._network = PlainNetwork()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
