"""The fields of the header in front of every stored value; `envelope` has their layout."""

from typing import NamedTuple, Required, TypedDict

__all__ = ["Header", "HeaderFields", "Origin"]


class Header(NamedTuple):
    """The header of a payload."""

    checksum: int
    flags: int
    version: int
    """64 bits, unique to this write."""
    fresh_until: int
    """Microseconds of Redis' clock."""
    epoch: int
    """The highest invalidation epoch known before the value was loaded; 0 if none."""
    cost: float
    """Seconds the load took, to single precision."""
    life: float
    """Seconds from when its load or write began to fresh-until, to single precision; 0 if that is not known."""
    size: int
    """Bytes of the body: tags, and the payload, compressed or not."""


class HeaderFields(TypedDict, total=False):
    """What the maker of a value says in its header."""

    version: Required[int]
    """64 bits, see `new_version`."""
    fresh_until: Required[int]
    """Microseconds of Redis' clock."""
    epoch: int
    """The highest invalidation epoch known before the value was loaded; 0 if none."""
    cost: float
    """Seconds the load took."""
    life: float
    """Seconds from when its load or write began to fresh-until; see `header_times`."""
    paid: int
    """Billionths of the money that the load has cost, if that depends on the value; they stand behind the header."""


class Origin(NamedTuple):
    """What values that were written or loaded together have in common."""

    epoch: int
    """The highest epoch that the process had seen before."""
    tags: tuple[str, ...] = ()
    cost: float = 0.0
    """Seconds that their load took."""
