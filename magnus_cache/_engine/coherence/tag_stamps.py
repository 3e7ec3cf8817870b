"""Stamps: tags as shared by the entries that have them."""

from collections.abc import Sequence
from typing import Final

__all__ = ["TagStamp", "room"]

_TAG_OVERHEAD: Final = 120
"""Bytes that a tag counts for in each of its entries, whatever its text."""


class TagStamp:
    """A tag with its last invalidation, shared by all entries that have it.

    :ivar tag: its text.
    :ivar generation: the memory's generation in which it was last invalidated; older entries are invalid.
    :ivar room: bytes that it counts for in each entry that has it.
    """

    __slots__ = ("__weakref__", "generation", "room", "tag")

    def __init__(self, tag: str, room: int = _TAG_OVERHEAD) -> None:
        self.tag = tag
        self.generation = 0
        self.room = room


def room(stamps: Sequence[TagStamp]) -> int:
    """Return the bytes that tags count for in an entry that has them."""
    total = 0
    for stamp in stamps:
        total += stamp.room
    return total
