"""The origins of a group's data: the servers whose writes it consists of, by node. Values and pure functions, no I/O.

A server that was started anew, or put in the place of another one, may lack the latest writes. So each group notes, in
one key beside its epochs, the identity of each server that has, or had, slots of it: ``node=identity`` for each node,
with spaces between. What a connection brings of the group is believed only if all of these servers are there as noted.
A planned failover loses nothing. The former primary can tell so, see `lacks_nothing`: then its successor is noted.

The races that this excludes
----------------------------
- A group is split over two nodes, and the one without the group's anchor is replaced by a replica. The epochs, at the
  other node, are all there, and say nothing about the writes that the replica lacks.
- A replica was put in the place of a primary that still answers, as one does that is cut off from the others. It is
  there as noted, and the replica looks like a node that slots were moved to. So the noted servers have to be primaries
  now, and a node that has continued the history of one of them does not count as one that slots were moved to.
- A slot moves on from such a replica before any process has met it there. Its new owner has an identity that is known.
  The one from which the writes came is gone, and still noted.
- The same, and a third node tells of the slot's new owner before it tells of the replica. So the former primary owns
  the rest of its slots by the map of this process, and looks like one that has passed on a slot. Whether it has, both
  nodes tell themselves, when they are asked after the slot has moved; see `has_passed_on`.
- The map changes while the servers of a group are vetted, as with the first connection to a replica, which brings its
  map. A server that was in doubt stays in doubt, or the first contact that is under way would find no doubt left.
"""

from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Final, NamedTuple

from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.connection import former_history
from magnus_cache._engine.redis.slots import SlotMap

__all__ = ["Standing", "Word", "after", "entry", "has_passed_on", "lacks_nothing", "packed", "read", "standing"]

_MOST: Final = 1_024
"""Origins of one group, which has 256 slots at a time."""


class Standing(Enum):
    """What the origins of a group say of one node's data."""

    KNOWN = auto()
    """No write is missing."""
    NEW = auto()
    """The node is not noted, and all that are noted are there: slots have moved to it, with all that they have."""
    UNKNOWN = auto()
    """Writes may be missing."""


def read(stored: object) -> dict[str, bytes]:
    """Return the identities by node; an empty dictionary for anything that is no note of origins."""
    if type(stored) is not bytes or len(stored) > _MOST * 256:
        return {}
    found: dict[str, bytes] = {}
    for part in stored.split(b" "):
        node, mark, identity = part.partition(b"=")
        if not (node.isascii() and node and mark and identity) or (name := node.decode()) in found:
            return {}
        found[name] = identity
    return found


def entry(node: str, identity: bytes) -> bytes:
    """Return the note of one node."""
    return b"%b=%b" % (node.encode("ascii", "replace"), identity)


def packed(origins: dict[str, bytes]) -> bytes:
    """Return the note of all nodes."""
    return b" ".join(entry(node, identity) for node, identity in origins.items())


def standing(
    origins: dict[str, bytes], node: str, identity: bytes, present: Callable[[str], bytes | None], former: bytes = b"",
) -> Standing:  # fmt: skip
    """Return what the origins of a group say of the data of a node with this identity.

    :param present: returns the identity of another primary that a connection leads to now; None without one.
    :param former: the history that the node has continued in another one's place; empty without one.
    """
    if not origins:
        return Standing.UNKNOWN
    for other, noted in origins.items():
        if noted != (identity if other == node else present(other)):
            return Standing.UNKNOWN
        if former and other != node and noted.endswith(b":" + former):
            return Standing.UNKNOWN
    return Standing.KNOWN if node in origins else Standing.NEW


class Word(NamedTuple):
    """The map as one node has told it."""

    node: str
    """The node's id."""
    map: SlotMap
    sent: float
    """The monotonic second when it was asked."""


def has_passed_on(slots: Collection[int], since: float, noted: Word, owner: Word) -> bool | None:
    """Return whether a noted primary has itself passed on what another node owns; None while they cannot tell yet.

    A primary that was cut off, and whose replica has passed its slots on, still claims them. Once it hears of the
    others again, the new owner has heard of the replica, and does not name the former primary any more.

    :param slots: the slots of a group that the owner has by the map of this process.
    :param since: the monotonic second at which this process learned that the last of them has moved.
    """
    if noted.sent < since or owner.sent < since:
        return None
    if noted.node not in owner.map.nodes or noted.node not in noted.map.nodes:
        return False
    # One that has passed on a slot may hear of its new owner some milliseconds later than this process.
    owners = [noted.map.owner(slot) for slot in slots]
    return True if all(found is not None and found.id != noted.node for found in owners) else None


def lacks_nothing(identity: bytes, replication: object, successor: bytes) -> bool | None:
    """Return whether the successor of a primary has all its writes, as that one tells; None while it cannot tell yet.

    As a replica, it has asked its successor to continue its own history where it has ended. A server does so only if
    it has that history up to this very write; else it sends all its data anew, and nothing is left of the history.

    :param identity: as noted of the former primary; the connection to it has lasted since.
    :param replication: its answer to INFO replication.
    :param successor: identifies the present history of the successor.
    """
    if info(replication, b"role") != "slave" or info(replication, b"master_link_status") != "up":
        return None
    if info(replication, b"master_replid") != successor.decode("ascii", "replace"):
        return None
    former = former_history(replication)
    return bool(former) and identity.endswith(b":" + former)


def after(
    origins: dict[str, bytes], invalidated: dict[str, bytes], present: Callable[[str], bytes | None],
    is_primary: Callable[[str], bool],
) -> dict[str, bytes]:  # fmt: skip
    """Return the origins of a group once all that it had was invalidated.

    A primary that this process cannot reach stays noted: others may reach it, and rely on the note.

    :param invalidated: the identities of the nodes whose data was in doubt.
    """
    kept = {
        node: identity
        for node, identity in origins.items()
        if is_primary(node) and present(node) in (identity, None) and node not in invalidated
    }
    return kept | invalidated
