"""What one node of a cluster says about all of them, and the slot of a key."""

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from magnus_cache.errors import CacheArgumentError

__all__ = ["SLOTS", "NodeView", "checked_slot", "parse_view", "ranges", "slot_of"]

SLOTS: Final = 16_384


@dataclass(frozen=True, slots=True)
class NodeView:
    """A line of CLUSTER NODES: what the asked node believes about one node.

    :ivar id: its identity.
    :ivar flags: such as ``"master"``, ``"slave"``, ``"myself"``, ``"fail?"``, ``"fail"``, ``"handshake"``.
    :ivar primary_id: the identity of its primary; empty if it is not a replica.
    :ivar linked: whether the bus connects them.
    :ivar slots: the slots that it owns.
    :ivar leaving: open slots that it moves away, by the identity of their target.
    :ivar arriving: open slots that it takes over, by the identity of their source.
    """

    id: str
    flags: frozenset[str]
    primary_id: str
    linked: bool
    slots: frozenset[int]
    leaving: dict[int, str]
    arriving: dict[int, str]

    @property
    def primary(self) -> bool:
        """Whether it is believed to be a primary."""
        return "master" in self.flags

    @property
    def failed(self) -> bool:
        """Whether it is believed, or suspected, to be down."""
        return not self.flags.isdisjoint({"fail", "fail?", "noaddr"})


def parse_view(text: str) -> dict[str, NodeView]:
    """Return the lines of CLUSTER NODES by identity."""
    return {view.id: view for view in map(_parsed, filter(None, text.splitlines()))}


def _parsed(line: str) -> NodeView:
    identity, _, flags, primary, _, _, _, link, *owned = line.split()
    slots: set[int] = set()
    leaving: dict[int, str] = {}
    arriving: dict[int, str] = {}
    for part in owned:
        if "->-" in part:
            slot, _, other = part.strip("[]").partition("->-")
            leaving[int(slot)] = other
        elif "-<-" in part:
            slot, _, other = part.strip("[]").partition("-<-")
            arriving[int(slot)] = other
        else:
            first, _, last = part.partition("-")
            slots |= set(range(int(first), int(last or first) + 1))
    known = frozenset(flags.split(","))
    return NodeView(identity, known, primary.strip("-"), link == "connected", frozenset(slots), leaving, arriving)


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key: of the part in its first braces, if there is one, else of all of it."""
    name = key.encode() if isinstance(key, str) else key
    start = name.find(b"{")
    end = name.find(b"}", start + 1) if start >= 0 else -1
    return binascii.crc_hqx(name[start + 1 : end] if end > start + 1 else name, 0) % SLOTS


def checked_slot(slot: int) -> int:
    """Return the slot.

    :raises CacheArgumentError: if there is no such slot.
    """
    if not (isinstance(slot, int) and 0 <= slot < SLOTS):
        raise CacheArgumentError("slot", f"a slot is a number from 0 to {SLOTS - 1}, not {slot!r}; see slot_of(key)")
    return slot


def ranges(slots: "frozenset[int] | set[int]") -> Iterator[tuple[int, int]]:
    """Yield the first and the last slot of each run of neighbours."""
    start = before = -2
    for slot in sorted(slots):
        if slot != before + 1:
            if start >= 0:
                yield start, before
            start = slot
        before = slot
    if start >= 0:
        yield start, before
