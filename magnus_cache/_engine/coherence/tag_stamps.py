"""Tags as the entries know them that have them."""

from collections.abc import Sequence
from typing import Final

__all__ = ["TagStamp", "room"]

_TAG_OVERHEAD: Final = 120
"""Bytes that a tag takes beside its text, for each entry that has it."""


class TagStamp:
    """A tag, as the entries know it that have it.

    :ivar tag: its text.
    :ivar generation: the memory's generation in which it was last invalidated; older entries are gone.
    :ivar room: bytes that it takes for each entry that has it.
    """

    __slots__ = ("__weakref__", "generation", "room", "tag")

    def __init__(self, tag: str, room: int = _TAG_OVERHEAD) -> None:
        self.tag = tag
        self.generation = 0
        self.room = room


def room(marks: Sequence[TagStamp]) -> int:
    """Return the bytes that tags take for each entry that has them."""
    total = 0
    for mark in marks:
        total += mark.room
    return total
