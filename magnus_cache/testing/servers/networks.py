"""The network between the servers of a group, which a test may cut or slow down link by link."""

import math
from collections.abc import Collection, Sequence
from typing import Literal, Protocol, TypeAlias

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.places import Place, free_place
from magnus_cache.testing.servers.programs import ServerVersion

__all__ = ["Links", "Network", "Pair", "PlainNetwork", "check_delay"]


Links: TypeAlias = bool | Literal["namespaces"]
"""Whether links can be changed: by relays, or by network namespaces, which need root and cannot delay anything."""

Pair: TypeAlias = tuple[Place | None, Place | None]
"""The two ends of a link. Servers are named by their places; None stands for the clients, which are one end."""


class Network(Protocol):
    """Gives servers their places, and cuts or slows the links between them, in both directions."""

    def place(self, version: ServerVersion) -> Place:
        """Return a place for one more server."""
        ...

    def cut(self, pairs: Sequence[Pair]) -> None:
        """Let nothing through on these links, until `heal`."""
        ...

    def delay(self, pair: Pair, seconds: float) -> None:
        """Deliver everything on a link this much later, in each direction."""
        ...

    def heal(self, places: Collection[Place]) -> None:
        """Deliver everything between these places, and between them and the clients, at once again."""
        ...

    def close(self) -> None:
        """Remove the network. Idempotent."""
        ...


class PlainNetwork:
    """The loopback interface, which cannot be cut."""

    def place(self, version: ServerVersion) -> Place:
        """Return a place with free ports."""
        del version
        return free_place()

    def cut(self, pairs: Sequence[Pair]) -> None:
        """Say how to get a network that can be cut.

        :raises CacheArgumentError: always.
        """
        raise CacheArgumentError("links", "the links of these servers cannot be changed; start them with links=True")

    def delay(self, pair: Pair, seconds: float) -> None:
        """Say how to get a network that can be slowed down.

        :raises CacheArgumentError: always.
        """
        self.cut([pair])

    def heal(self, places: Collection[Place]) -> None:
        """Do nothing: all links work."""

    def close(self) -> None:
        """Do nothing."""


def check_delay(seconds: float) -> None:
    """Check a delay.

    :raises CacheArgumentError: if it is negative, not a number, or longer than a minute.
    """
    if not 0 <= seconds <= 60 or math.isnan(seconds):
        raise CacheArgumentError("seconds", f"a delay is 0 to 60 seconds, not {seconds!r}")
