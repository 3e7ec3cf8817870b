"""The slot map of a Redis Cluster: which node owns a key. Values and pure functions, no I/O.

A key hashes to one of 16,384 slots (CRC-16 of its name, or of what is between the first braces), and each slot belongs
to one primary. A node is known by its id, because its address may change, and because two nodes may call themselves by
the same address, as behind a NAT. The map comes from CLUSTER SHARDS, or from CLUSTER SLOTS before Redis 7.0.

What servers send in place of an address
----------------------------------------
======================  ==================  =================================================
A node announces        SLOTS, SHARDS       Its host is
======================  ==================  =================================================
its address             the address         that
a host name             the host name       that
no endpoint             nil, ``""``         the host that has answered, with the node's port
a host name not set     ``?``               the address in the node's metadata
======================  ==================  =================================================

Groups
------
Control keys, such as epochs, exist once for each of 64 groups of 256 slots, in the slot of the group's anchor. They
move with their slots. If they belonged to nodes, a value that was invalidated on one node would be valid again on
another node after a migration. All processes of a fleet have to agree on the anchors: they are the smallest numbers
that hash into each group.
"""

from binascii import crc_hqx
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

from redis.crc import key_slot as _slot_of_tag

from magnus_cache._engine.redis.endpoint import MOST_PORT, Address, Remap

__all__ = [
    "GROUPS",
    "SLOTS",
    "ClusterNode",
    "MapChanges",
    "Respondent",
    "SlotMap",
    "SlotMapError",
    "address_id",
    "anchor_tag",
    "changes",
    "from_shards",
    "from_slots",
    "group_of",
    "key_slot",
    "redirected",
]

SLOTS: Final = 16_384
GROUPS: Final = 64

_GROUP_BITS: Final = 8
"""A group has 256 slots."""

_MOST_NODES: Final = 1_024
"""Nodes in a reply; the Redis documentation advises against more than a thousand."""

_MOST_TEXT: Final = 512
"""Characters of an id or host name."""

_UNKNOWN_NAME: Final = "?"
"""What a server sends where it prefers a host name and has none."""


class SlotMapError(ValueError):
    """A reply is no slot map. The message says what is wrong with it."""


class Respondent(NamedTuple):
    """The server that has sent a map or a redirection, as this process reached it."""

    host: str
    tls: bool = False
    """Whether it was reached by TLS; then all nodes are."""
    remap: Remap | None = None


class ClusterNode(NamedTuple):
    """A primary that owns slots."""

    id: str
    host: str
    port: int

    @property
    def address(self) -> Address:
        """Host and port."""
        return self.host, self.port


def address_id(host: str, port: int) -> str:
    """Return what stands for the id of a node that only a redirection has named, until the next map."""
    return f"{host}:{port}"


def key_slot(key: bytes) -> int:
    """Return the slot of a key."""
    # Without a brace, as the names of values are, it takes half as long: each read from Redis begins here.
    return _slot_of_tag(key) if b"{" in key else crc_hqx(key, 0) & (SLOTS - 1)


def group_of(slot: int) -> int:
    """Return the group of a slot."""
    return slot >> _GROUP_BITS


@cache
def _anchors() -> tuple[bytes, ...]:
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < GROUPS:
        tag = b"%d" % number
        found.setdefault(group_of(key_slot(tag)), tag)
        number += 1
    return tuple(found[group] for group in range(GROUPS))


def anchor_tag(group: int) -> bytes:
    """Return the hash tag of a group's control keys: a name that contains it in braces is in the group."""
    return _anchors()[group]


class SlotMap:
    """The owners of all slots, as one node knows them. Immutable.

    :ivar ranges: first slot, last slot and owner, in order; without those that no node owns.
    :ivar nodes: the owners by id.
    """

    __slots__ = ("_owners", "nodes", "ranges")

    def __init__(self, ranges: Iterable[tuple[int, int, ClusterNode]] = ()) -> None:
        """:raises SlotMapError: if two ranges overlap, or one id has two addresses."""
        self.ranges = _joined(sorted(ranges))
        self.nodes: dict[str, ClusterNode] = {}
        # A list, because each read from Redis looks here.
        self._owners: list[ClusterNode | None] = [None] * SLOTS
        for first, last, node in self.ranges:
            if self.nodes.setdefault(node.id, node) != node:
                raise SlotMapError(f"node {node.id} has two addresses")
            self._owners[first : last + 1] = [node] * (last + 1 - first)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMap) and self.ranges == other.ranges

    __hash__ = None  # type: ignore[assignment]  # compared, never a key

    def __repr__(self) -> str:
        return f"SlotMap({len(self.nodes)} nodes, {self.covered} of {SLOTS} slots)"

    def owner(self, slot: int) -> ClusterNode | None:
        """Return the node that owns a slot; None if no node does."""
        return self._owners[slot]

    def slots_of(self, node_id: str, group: int) -> list[int]:
        """Return the slots of a group that a node owns."""
        first, last = group << _GROUP_BITS, ((group + 1) << _GROUP_BITS) - 1
        return [
            slot
            for begin, end, node in self.ranges
            if node.id == node_id
            for slot in range(max(begin, first), min(end, last) + 1)
        ]

    @property
    def covered(self) -> int:
        """How many slots have an owner."""
        return sum(last + 1 - first for first, last, _ in self.ranges)

    def missing(self) -> list[tuple[int, int]]:
        """Return the first and last slots of all ranges without an owner."""
        ends = [(-1, -1), *((first, last) for first, last, _ in self.ranges), (SLOTS, SLOTS)]
        return [(before[1] + 1, after[0] - 1) for before, after in pairwise(ends) if before[1] + 1 < after[0]]

    def split_groups(self) -> set[int]:
        """Return the groups in which some slot is not owned by the owner of the anchor's slot."""
        anchors = [self._owners[key_slot(anchor_tag(group))] for group in range(GROUPS)]
        split = {group for first, last in self.missing() for group in range(group_of(first), group_of(last) + 1)}
        for first, last, node in self.ranges:
            split.update(group for group in range(group_of(first), group_of(last) + 1) if anchors[group] != node)
        return split

    def with_owner(self, slot: int, node: ClusterNode) -> "SlotMap":
        """Return a map that differs in one slot, as a redirection has told."""
        kept = ((first, last, owner) for first, last, owner in self.ranges if owner.id != node.id or owner == node)
        pieces = [
            (begin, end, owner)
            for first, last, owner in kept
            for begin, end in ((first, min(last, slot - 1)), (max(first, slot + 1), last))
            if begin <= end
        ]
        return SlotMap([*dict.fromkeys(pieces), (slot, slot, node)])


def _joined(ranges: Sequence[tuple[int, int, ClusterNode]]) -> tuple[tuple[int, int, ClusterNode], ...]:
    """Return ranges in order, with neighbours of one node as one.

    :raises SlotMapError: if two overlap.
    """
    joined: list[tuple[int, int, ClusterNode]] = []
    for first, last, node in ranges:
        if joined and first <= joined[-1][1]:
            raise SlotMapError(f"two nodes own slot {first}")
        if joined and joined[-1][1] == first - 1 and joined[-1][2] == node:
            joined[-1] = (joined[-1][0], last, node)
        else:
            joined.append((first, last, node))
    return tuple(joined)


class MapChanges(NamedTuple):
    """What differs between two maps."""

    slots: tuple[tuple[int, int], ...]
    """The first and last slots of all ranges that have another owner, or an owner at another address."""

    def __bool__(self) -> bool:
        return bool(self.slots)

    def covers(self, slot: int) -> bool:
        """Whether a slot has another owner."""
        return any(first <= slot <= last for first, last in self.slots)

    @property
    def groups(self) -> set[int]:
        """The groups of the changed slots."""
        return {group for first, last in self.slots for group in range(group_of(first), group_of(last) + 1)}

    def covers_name(self, name: bytes) -> bool:
        """Whether the slot of a name has another owner."""
        return self.covers(key_slot(name))


def changes(before: SlotMap, after: SlotMap) -> MapChanges:
    """Return what differs between two maps, in time that grows with their ranges."""
    cuts = {0, SLOTS}
    for first, last, _ in (*before.ranges, *after.ranges):
        cuts |= {first, last + 1}
    changed: list[tuple[int, int]] = []
    for begin, end in pairwise(sorted(cuts)):
        if before.owner(begin) == after.owner(begin):
            continue
        if changed and changed[-1][1] == begin - 1:
            changed[-1] = (changed[-1][0], end - 1)
        else:
            changed.append((begin, end - 1))
    return MapChanges(tuple(changed))


# -- replies --------------------------------------------------------------------------------------------------------


def from_shards(reply: Any, respondent: Respondent) -> SlotMap:
    """Return the map in a reply to CLUSTER SHARDS, in the form of RESP2 or RESP3.

    A shard whose primary is not known, as in the middle of a failover, owns nothing: CLUSTER SLOTS knows more.

    :raises SlotMapError: for anything else.
    """
    ranges: list[tuple[int, int, ClusterNode]] = []
    for shard in _items(reply, SLOTS, "shards"):
        fields = _fields(shard)
        slots = _items(fields.get("slots", ()), 2 * SLOTS, "slots")
        if not slots:
            # A primary that has lost its slots, to its replica or for good.
            continue
        node = _primary(_items(fields.get("nodes", ()), _MOST_NODES, "nodes"), respondent)
        if len(slots) % 2:
            raise SlotMapError("a range of slots has no end")
        if node is not None:
            ranges += [(*_range(first, last), node) for first, last in zip(slots[::2], slots[1::2], strict=True)]
    return _checked(ranges)


def from_slots(reply: Any, respondent: Respondent) -> SlotMap:
    """Return the map in a reply to CLUSTER SLOTS, of Redis 6.2 (without metadata) or later.

    :raises SlotMapError: for anything else.
    """
    ranges: list[tuple[int, int, ClusterNode]] = []
    for entry in _items(reply, SLOTS, "ranges"):
        match entry:
            case [first, last, [endpoint, port, node_id, *more], *_]:
                metadata = _fields(more[0]) if more else {}
                host = _host(endpoint, metadata.get("ip"), respondent)
                ranges.append((*_range(first, last), _node(node_id, host, port, respondent)))
            case [first, last]:
                _range(first, last)  # no node owns it, as far as the server knows
            case _:
                raise SlotMapError("a range of slots has no node")
    return _checked(ranges)


def redirected(node_id: str, host: str, port: int, respondent: Respondent) -> ClusterNode:
    """Return the node that an error reply MOVED or ASK names.

    :param node_id: its id, or what stands for it until the next map.
    :raises SlotMapError: for an impossible address.
    """
    return _node(node_id, _host(host, None, respondent), port, respondent)


def _primary(nodes: Sequence[Any], respondent: Respondent) -> ClusterNode | None:
    primaries = [fields for fields in map(_fields, nodes) if _text(fields.get("role")) == "master"]
    # In a failover, the former primary is listed beside its successor, and nothing tells which of them has the slots.
    # Most often the former one counts as failed. One that comes back, or was not missed yet, does not.
    online = [fields for fields in primaries if fields.get("health") in (b"online", "online")]
    candidates = online or primaries
    if len(candidates) != 1:
        return None
    (fields,) = candidates
    port = fields.get("tls-port") if respondent.tls else fields.get("port")
    if port is None:
        other, remedy = ("plain TCP", "redis") if respondent.tls else ("TLS", "rediss")
        raise SlotMapError(f"its nodes speak {other} alone; use {remedy}+cluster://")
    return _node(fields.get("id"), _host(fields.get("endpoint"), fields.get("ip"), respondent), port, respondent)


def _checked(ranges: Iterable[tuple[int, int, ClusterNode]]) -> SlotMap:
    found = SlotMap(ranges)
    if len(found.nodes) > _MOST_NODES:
        raise SlotMapError(f"it has more than {_MOST_NODES} primaries")
    return found


def _host(endpoint: Any, ip: Any, respondent: Respondent) -> str:
    host = "" if endpoint is None else _text(endpoint)
    if host == _UNKNOWN_NAME:
        host = "" if ip is None else _text(ip)
    return host or respondent.host


def _node(node_id: Any, host: str, port: Any, respondent: Respondent) -> ClusterNode:
    name = _text(node_id)
    if not name:
        raise SlotMapError("a node has no id")
    if type(port) is not int or not 0 < port <= MOST_PORT:
        raise SlotMapError("a node has no port")
    address = (host, port) if respondent.remap is None else respondent.remap((host, port))
    return ClusterNode(name, *address)


def _range(first: Any, last: Any) -> tuple[int, int]:
    if type(first) is not int or type(last) is not int or not 0 <= first <= last < SLOTS:
        raise SlotMapError("a range of slots is impossible")
    return first, last


def _items(reply: Any, most: int, what: str) -> Sequence[Any]:
    if type(reply) not in (list, tuple) or len(reply) > most:
        raise SlotMapError(f"there is no list of {what}")
    items: Sequence[Any] = reply
    return items


def _fields(reply: Any) -> Mapping[str, Any]:
    """Return a map of RESP3, or the flat list that stands for one in RESP2."""
    if type(reply) is dict:
        return {_text(name): value for name, value in reply.items()}
    items = _items(reply, _MOST_NODES, "fields")
    if len(items) % 2:
        raise SlotMapError("a field has no value")
    return dict(_pairs(items))


def _pairs(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for name, value in zip(items[::2], items[1::2], strict=True):
        yield _text(name), value


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or len(value) > _MOST_TEXT or any(map(str.isspace, value)):
        raise SlotMapError("there is no text where one is expected")
    return value
