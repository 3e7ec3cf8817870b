"""How servers become a cluster, and how to see that all of its nodes agree."""

from collections.abc import Iterable, Sequence
from typing import Final

from magnus_cache.testing.servers.control import Command, NodeError, wait_for
from magnus_cache.testing.servers.nodes import ServerNode
from magnus_cache.testing.servers.views import SLOTS, NodeView, parse_view

__all__ = ["form", "meet", "replicate", "unsettled", "view_of"]

_PATIENCE: Final = 30.0
_WITH_RANGES: Final = (7, 0, 0)


def view_of(node: ServerNode) -> dict[str, NodeView]:
    """Return what a node says about the nodes of its cluster, by identity.

    :raises NodeError: if it does not answer.
    """
    return parse_view(node.ask("CLUSTER", "NODES"))


def form(primaries: Sequence[ServerNode], replicas: Sequence[ServerNode]) -> None:
    """Make servers a cluster: give the slots out in equal shares, and each primary its replicas in turn.

    :raises NodeError: if they do not become one.
    """
    for index, node in enumerate(primaries):
        first, last = SLOTS * index // len(primaries), SLOTS * (index + 1) // len(primaries) - 1
        node.ask_all([_assignment(node, first, last), ("CLUSTER", "SET-CONFIG-EPOCH", index + 1)])
    nodes = [*primaries, *replicas]
    meet(nodes, nodes)
    for index, node in enumerate(replicas):
        replicate(node, primaries[index % len(primaries)])


def _assignment(node: ServerNode, first: int, last: int) -> Command:
    if node.version.number >= _WITH_RANGES:
        return ("CLUSTER", "ADDSLOTSRANGE", first, last)
    return ("CLUSTER", "ADDSLOTS", *range(first, last + 1))


def meet(new: Sequence[ServerNode], all_nodes: Sequence[ServerNode]) -> None:
    """Introduce new nodes to all nodes, and wait until every node knows each.

    Each pair is introduced, because word of mouth takes seconds.

    :raises NodeError: if they do not get to know each other.
    """
    for index, node in enumerate(all_nodes):
        others = [other for other in all_nodes[:index] if node in new or other in new]
        if others:
            node.ask_all([("CLUSTER", "MEET", o.host, o.place.port, o.place.bus_port) for o in others])
    ids = {node.id for node in all_nodes}
    for node in all_nodes:
        _wait_to_know(node, ids)


def _wait_to_know(node: ServerNode, ids: set[str]) -> None:
    wait_for(lambda: _known(node) >= ids, _PATIENCE, lambda: f"{node} does not know all other nodes")


def _known(node: ServerNode) -> set[str]:
    return {view.id for view in view_of(node).values() if "handshake" not in view.flags}


def replicate(replica: ServerNode, primary: ServerNode) -> None:
    """Make an empty node the replica of a primary.

    :raises NodeError: if it refuses.
    """
    refused = [""]

    def done() -> bool:
        try:
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        except NodeError as error:
            refused[0] = str(error)
            return False
        return True

    wait_for(done, _PATIENCE, lambda: f"{replica} did not become a replica of {primary}: {refused[0]}")


def unsettled(nodes: Iterable[ServerNode]) -> str:
    """Return what one of the nodes still lacks, or an empty text once all agree and every replica is linked."""
    alive = [node for node in nodes if node.answers]
    ids = {node.id for node in nodes}
    first: dict[str, tuple[bool, str, frozenset[int]]] = {}
    for node in alive:
        view = view_of(node)
        if lacking := _lacking(node, view, ids, {each.id for each in alive}):
            return lacking
        roles = {each.id: (each.primary, each.primary_id, each.slots) for each in view.values()}
        if first and roles != first:
            return f"{node} and {alive[0]} do not agree about roles and slots"
        first = roles
    return ""


def _lacking(node: ServerNode, view: dict[str, NodeView], ids: set[str], alive: set[str]) -> str:
    if set(view) != ids:
        return f"{node} knows {len(view)} nodes of {len(ids)}"
    for each in view.values():
        if each.id in alive and (each.failed or "handshake" in each.flags):
            return f"{node} believes that {each.id} is {','.join(sorted(each.flags))}"
        if each.id in alive and not each.linked and "myself" not in each.flags:
            return f"{node} has no connection to {each.id} on the bus"
    if "cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
        return f"cluster_state is not ok on {node}"
    if missing := _unlisted(node, view, alive):
        return f"{node} does not list the replica {missing} in CLUSTER SLOTS yet"
    own = view[node.id]
    if own.primary:
        return ""
    if own.primary_id in alive and node.info("replication").get("master_link_status") != "up":
        return f"{node} is not linked to its primary"
    return ""


def _unlisted(node: ServerNode, view: dict[str, NodeView], alive: set[str]) -> str:
    """Return a replica that a node knows and does not list to clients: it does so once it has heard of its offset."""
    listed: dict[str, set[str]] = {}
    for _, _, *owners in node.ask("CLUSTER", "SLOTS"):
        listed.setdefault(owners[0][2], set()).update(owner[2] for owner in owners)
    for each in view.values():
        if each.primary_id in listed and each.id in alive and each.id not in listed[each.primary_id]:
            return each.id
    return ""
