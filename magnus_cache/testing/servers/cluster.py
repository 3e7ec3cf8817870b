"""A real Redis Cluster of server processes on this machine, for tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, TypeAlias

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers import forming, migration
from magnus_cache.testing.servers.control import NodeError, wait_for
from magnus_cache.testing.servers.group import PATIENCE, ServerGroup
from magnus_cache.testing.servers.migration import SlotMigration
from magnus_cache.testing.servers.networks import Links
from magnus_cache.testing.servers.nodes import ServerNode
from magnus_cache.testing.servers.programs import ServerTls, choose_program
from magnus_cache.testing.servers.views import NodeView, checked_slot, slot_of

__all__ = ["EmbeddedCluster", "Promotion"]

Promotion: TypeAlias = Literal["planned", "force", "takeover"]
"""How a replica becomes the primary: with the old primary's help, without it, or without any vote."""

_FORMING_TIMEOUT: Final = 1.0


class EmbeddedCluster(ServerGroup):
    """A real Redis Cluster; a context manager that starts it and stops it, as ``with`` and as ``async with``.

    By default, it has 3 primaries with a replica each. The operations are plain methods that return once they are in
    effect. They block: in a coroutine, use ``await asyncio.to_thread(cluster.promote, replica)`` where the event loop
    must continue meanwhile. An operation takes a node as a `ServerNode` or as its port.

    :param primaries: each owns an equal share of the slots. A failover needs the votes of most of them: use 3 or more.
    :param replicas: in all; each primary has as many as the others.
    :param binary: the server to run; by default the embedded Valkey, or else one on the PATH. If
        there is none, `ServerNotFoundError` says how to install one.
    :param node_timeout: seconds until a node that does not answer counts as down (``cluster-node-timeout``).
    :param tls: files for TLS, which the embedded Valkey does not have: the default is then a server on the PATH.
    :param links: True lets `partition`, `cut` and `delay` change the links between servers, and to clients: everything
        then goes through relays. ``"namespaces"`` does without relays, and without `delay`; it needs
        root.
    :param options: server options for every node, such as ``cluster_require_full_coverage="no"``.
    :raises CacheArgumentError: for numbers of nodes that make no cluster.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 3,
        *,
        binary: Path | None = None,
        node_timeout: float = 2.0,
        tls: ServerTls | None = None,
        links: Links = False,
        **options: str,
    ) -> None:
        _check_numbers(primaries, replicas, node_timeout)
        super().__init__(choose_program(binary, tls), options, tls=tls, links=links)
        self._primaries = primaries
        self._replicas = replicas
        self._node_timeout = node_timeout

    # -- what there is --------------------------------------------------------------------------------------

    @property
    def primaries(self) -> tuple[ServerNode, ...]:
        """The nodes that are primaries now, as the first node that answers sees them."""
        view = self.view()
        return tuple(node for node in self._nodes if node.id in view and view[node.id].primary)

    @property
    def replicas(self) -> tuple[ServerNode, ...]:
        """The nodes that are replicas now, as the first node that answers sees them."""
        view = self.view()
        return tuple(node for node in self._nodes if node.id in view and not view[node.id].primary)

    @property
    def url(self) -> str:
        """The URL of one node that is running."""
        return self._answering().url

    def replicas_of(self, primary: ServerNode | int) -> tuple[ServerNode, ...]:
        """Return the replicas that a node has now.

        :raises CacheArgumentError: for a node that is not of this cluster.
        """
        identity, view = self.node(primary).id, self.view()
        return tuple(node for node in self._nodes if node.id in view and view[node.id].primary_id == identity)

    def slots_of(self, node: ServerNode | int) -> frozenset[int]:
        """Return the slots that a node owns now.

        :raises CacheArgumentError: for a node that is not of this cluster.
        """
        return self.view()[self.node(node).id].slots

    def owner(self, slot: int | str | bytes) -> ServerNode:
        """Return the node that owns a slot, or the slot of a key, now.

        :raises CacheArgumentError: for a number that is not a slot.
        :raises NodeError: if no node owns it.
        """
        number = checked_slot(slot) if isinstance(slot, int) else slot_of(slot)
        view = self.view()
        for node in self._nodes:
            if node.id in view and number in view[node.id].slots:
                return node
        raise NodeError(f"no node owns slot {number}")

    def key_on(self, node: ServerNode | int, number: int = 0, prefix: str = "key:") -> str:
        """Return a key whose slot a node owns now; another one for each number.

        :raises CacheArgumentError: for a node that is not of this cluster, or owns no slots.
        """
        slots = self.slots_of(node)
        if not slots:
            raise CacheArgumentError("node", f"{self.node(node)} owns no slots, so no key is on it")
        left = number
        for index in range(1 << 30):
            if slot_of(f"{prefix}{index}") in slots:
                if not left:
                    return f"{prefix}{index}"
                left -= 1
        raise AssertionError("each slot has many keys")

    def view(self, by: ServerNode | int | None = None) -> dict[str, NodeView]:
        """Return what a node says about all nodes, by identity; by default the first node that answers.

        :raises CacheArgumentError: for a node that is not of this cluster.
        :raises NodeError: if it does not answer.
        """
        return forming.view_of(self._answering() if by is None else self.node(by))

    def _answering(self) -> ServerNode:
        for node in self._nodes:
            if node.answers:
                return node
        raise NodeError("no node of the cluster runs; use `with EmbeddedCluster() as cluster`, or restart a node")

    # -- roles ----------------------------------------------------------------------------------------------

    def promote(self, replica: ServerNode | int, how: Promotion = "planned") -> None:
        """Make a replica the primary of its slots (CLUSTER FAILOVER), and return once all running nodes know.

        :raises CacheArgumentError: for a node that is not of this cluster, or not a replica.
        :raises NodeError: if it does not succeed.
        """
        node = self.node(replica)
        if self.view(node)[node.id].primary:
            raise CacheArgumentError("replica", f"{node} is a primary already; promote one of `cluster.replicas`")
        node.ask("CLUSTER", "FAILOVER", *([] if how == "planned" else [how.upper()]))
        self._wait_for_primary(node, PATIENCE, all_but=0)

    def wait_for_primary(self, node: ServerNode | int, patience: float = PATIENCE) -> None:
        """Return once a node is a primary with slots, in its own eyes and in those of most running nodes.

        :raises CacheArgumentError: for a node that is not of this cluster.
        :raises NodeError: if that takes longer than `patience` seconds.
        """
        self._wait_for_primary(self.node(node), patience, all_but=(len(self._nodes) - 1) // 2)

    def _wait_for_primary(self, node: ServerNode, patience: float, *, all_but: int) -> None:
        def known() -> bool:
            asked = {each: forming.view_of(each)[node.id] for each in self._nodes if each.answers}
            wrong = [each for each, view in asked.items() if not (view.primary and view.slots)]
            return node in asked and node not in wrong and len(wrong) <= all_but

        wait_for(known, patience, lambda: f"{node} did not become a primary")

    # -- members --------------------------------------------------------------------------------------------

    def add(self, replica_of: ServerNode | int | None = None) -> ServerNode:
        """Start one more node and return it, once all running nodes know it.

        :param replica_of: its primary; None makes it a primary without slots.
        :raises CacheArgumentError: for a node that is not of this cluster, or not a primary.
        :raises NodeError: if it does not become a node of the cluster.
        """
        primary = None if replica_of is None else self.node(replica_of)
        if primary is not None and not self.view()[primary.id].primary:
            raise CacheArgumentError("replica_of", f"{primary} is a replica; name one of `cluster.primaries`")
        node = self._new_node()
        try:
            forming.meet([node], [each for each in self._nodes if each.answers])
            if primary is not None:
                forming.replicate(node, primary)
            self.settle()
            node.configure(cluster_node_timeout=_milliseconds(self._node_timeout))
        except BaseException:
            self._nodes.remove(node)
            node.close()
            raise
        return node

    def remove(self, node: ServerNode | int) -> None:
        """Take a node out of the cluster and stop it. Its slots and its replicas go to the other primaries before.

        :raises CacheArgumentError: for a node that is not of this cluster, or the only one with slots.
        :raises NodeError: if it has slots and does not run, or the others do not settle.
        """
        leaving = self.node(node)
        view = self.view()
        heirs = [each for each in self.primaries if each is not leaving and view[each.id].slots and each.answers]
        if view[leaving.id].slots:
            if not heirs:
                raise CacheArgumentError("node", f"{leaving} is the only node with slots; close the cluster instead")
            self._hand_over(leaving, sorted(view[leaving.id].slots), heirs)
        for index, replica in enumerate(self.replicas_of(leaving)):
            forming.replicate(replica, heirs[index % len(heirs)])
        for each in self._nodes:
            if each is not leaving and each.answers:
                each.try_all([("CLUSTER", "FORGET", leaving.id)])
        self._nodes.remove(leaving)
        leaving.close()
        self.settle()

    def _hand_over(self, leaving: ServerNode, slots: list[int], heirs: list[ServerNode]) -> None:
        # Valkey takes milliseconds for each slot of a classic migration, since it tells the replicas first.
        for index, heir in enumerate(heirs):
            part = slots[len(slots) * index // len(heirs) : len(slots) * (index + 1) // len(heirs)]
            if part:
                self._transfer(part, leaving, heir, atomic=self.version.migrates_atomically)

    # -- slots ----------------------------------------------------------------------------------------------

    def migration(self, slots: int | Iterable[int], target: ServerNode | int) -> SlotMigration:
        """Return a classic migration of slots of one node to another, whose steps the test takes.

        :raises CacheArgumentError: for slots that are not all of one owner, or that the target owns already.
        """
        chosen, source, to = self._move(slots, target)
        return SlotMigration(chosen, source, to, self.primaries)

    def migrate(self, slots: int | Iterable[int], target: ServerNode | int, *, atomic: bool = False) -> None:
        """Move slots and their keys to another primary, and return once all running nodes know.

        :param atomic: with ``CLUSTER MIGRATESLOTS`` of Valkey 9, instead of SETSLOT and MIGRATE.
        :raises CacheArgumentError: for slots that are not all of one owner, or that the target owns already.
        :raises NodeError: if it does not succeed.
        """
        chosen, source, to = self._move(slots, target)
        self._transfer(chosen, source, to, atomic=atomic)

    def _transfer(self, slots: list[int], source: ServerNode, target: ServerNode, *, atomic: bool) -> None:
        if atomic:
            migration.migrate_atomically(slots, source, target)
        else:
            SlotMigration(slots, source, target, self.primaries).complete()
        self._wait_for_owner(slots, target)

    def give_away(self, slots: int | Iterable[int], target: ServerNode | int) -> None:
        """Let another primary own slots whose keys stay behind, as a careless ``SETSLOT NODE`` does.

        The keys are lost. Returns once all running nodes know.

        :raises CacheArgumentError: for slots that are not all of one owner, or that the target owns already.
        :raises NodeError: if it does not succeed.
        """
        chosen, source, to = self._move(slots, target)
        migration.give_away(chosen, source, to)
        self._wait_for_owner(chosen, to)

    def _move(self, slots: int | Iterable[int], target: ServerNode | int) -> tuple[list[int], ServerNode, ServerNode]:
        to = self.node(target)
        chosen = sorted({checked_slot(slot) for slot in ([slots] if isinstance(slots, int) else slots)})
        if not chosen:
            raise CacheArgumentError("slots", "there is no slot to move; name one or more")
        view = self.view()
        if not view[to.id].primary:
            raise CacheArgumentError("target", f"{to} is a replica, which owns no slots; name one of `primaries`")
        source = self.owner(chosen[0])
        if source is to:
            raise CacheArgumentError("target", f"{to} owns slot {chosen[0]} already")
        if strange := set(chosen) - view[source.id].slots:
            raise CacheArgumentError("slots", f"{source} does not own slot {min(strange)}; move each owner's by itself")
        return chosen, source, to

    def _wait_for_owner(self, slots: list[int], owner: ServerNode) -> None:
        wanted = frozenset(slots)

        def known() -> bool:
            return all(forming.view_of(node)[owner.id].slots >= wanted for node in self._nodes if node.answers)

        wait_for(known, PATIENCE, lambda: f"not all nodes know that {owner} owns slot {slots[0]} now")

    # -- the whole ------------------------------------------------------------------------------------------

    def _missing(self) -> str:
        return forming.unsettled(self._nodes)

    def flush(self) -> None:
        """Delete all keys on all primaries.

        :raises NodeError: if one of them does not answer.
        """
        for node in self.primaries:
            node.ask("FLUSHALL")

    def _tidy(self) -> None:
        for node in self._nodes:
            own = forming.view_of(node)[node.id]
            if still := [*own.leaving, *own.arriving]:
                node.try_all([("CLUSTER", "SETSLOT", slot, "STABLE") for slot in still])

    def _begin(self) -> None:
        for _ in range(self._primaries + self._replicas):
            self._new_node()
        forming.form(self._nodes[: self._primaries], self._nodes[self._primaries :])
        self.settle()
        for node in self._nodes:
            node.configure(cluster_node_timeout=_milliseconds(self._node_timeout))

    def _new_node(self) -> ServerNode:
        # Nodes tell each other their news in half this time.
        at_first = _milliseconds(min(self._node_timeout, _FORMING_TIMEOUT))
        own = {"cluster_enabled": "yes", "cluster_config_file": "nodes.conf", "cluster_node_timeout": at_first}
        return self._add(ServerNode(self._plan(**own))).start()


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _check_numbers(primaries: int, replicas: int, node_timeout: float) -> None:
    if primaries < 1:
        raise CacheArgumentError("primaries", f"a cluster has 1 primary or more, not {primaries}; 3 can fail over")
    if replicas < 0 or replicas % primaries:
        some = f"0, {primaries} or {2 * primaries}"
        raise CacheArgumentError(
            "replicas", f"{replicas} cannot be shared equally by {primaries} primaries; use {some}"
        )
    if not 0.1 <= node_timeout <= 600:
        raise CacheArgumentError("node_timeout", f"use 0.1 to 600 seconds, not {node_timeout!r}")
