"""Limits of single namespaces: at most so many of their entries in a local cache, whatever room there is.

A namespace with a limit has a list of its names here, the first to go first. A name that was used since its last turn
gets a second chance, as in `policy.Clock`. A name may stay in the list for a while after its entry has left, but never
the other way round, so the limit is kept: a name at its turn without an entry is just forgotten.

A cache without such a namespace has no list, and asks for none. A hit never does.
"""

from collections import OrderedDict
from typing import Final

__all__ = ["CHANCES", "Limited", "head_of"]

CHANCES: Final = 64
"""Second chances at most for one eviction: where all entries are in use, one of them goes."""


class Limited:
    """The names of one namespace that has a limit.

    :ivar most: entries at most; None while a policy of the namespace without a limit stores values.
    :ivar evictions: entries that were removed to keep the limit.
    """

    __slots__ = ("evictions", "most", "names")

    def __init__(self) -> None:
        self.names: OrderedDict[bytes, None] = OrderedDict()
        self.most: int | None = None
        self.evictions = 0

    def first(self) -> bytes | None:
        """Return the name whose turn it is."""
        # No call between the iterator and its first step: a signal handler may remove names.
        for name in self.names:
            return name
        return None

    def put_off(self, name: bytes) -> None:
        """Make it the last name's turn."""
        self.names[name] = None
        self.names.move_to_end(name)


def head_of(name: bytes) -> bytes:
    """Return what the names of all values of a namespace begin with: ``magnus:prices:`` of ``magnus:prices:AAPL``."""
    return name[: name.find(b":", name.find(b":") + 1) + 1]
