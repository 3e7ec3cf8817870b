"""Records of the outbox that are settled part by part, as the nodes of a cluster come back one by one."""

from typing import NamedTuple

__all__ = ["Issued", "Parts"]


class Issued(NamedTuple):
    """An epoch that was issued before the record that it is for."""

    controls: frozenset[bytes]
    """The logical names of the epochs that rose to it."""
    epoch: int
    settled: frozenset[int]
    """The groups of slots that have it."""


class Parts(NamedTuple):
    """How far a namespace or a tag is settled."""

    position: int
    """Of the record; a later one of the same name is another."""
    epoch: int
    """The epoch that was issued for it."""
    settled: frozenset[int]
    """The groups of slots that have it."""
