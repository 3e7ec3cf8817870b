"""Eras: the times between two outages of Redis, and which values may be fallen back on in the next one.

In an outage, a value that was good when it began is better than none. But one that a connection before the last had
brought may have been invalidated since, unheard: if nobody asked for it in between, nobody was told. It is suspect
while Redis can be asked, and nothing at all when it cannot.
"""

import math
import weakref
from typing import TYPE_CHECKING

from magnus_cache.entries import LocalTrust, Trust

if TYPE_CHECKING:
    from magnus_cache.redis.wire import Wire

__all__ = ["Eras"]


class Eras:
    """The eras of one cache.

    :ivar now: how many outages have ended; what stands on a trust of another era is no fallback.
    :ivar offline: what entries written while Redis is away stand on; worthless once it is back.
    """

    __slots__ = ("_trusts", "now", "offline")

    def __init__(self) -> None:
        self.now = 0
        self.offline = LocalTrust(math.inf)
        self._trusts: weakref.WeakKeyDictionary[Wire, Trust] = weakref.WeakKeyDictionary()

    def connected(self, wire: "Wire", *, first: bool) -> None:
        """Note that a wire stands, on a trust of its own.

        :param first: whether no other does: an outage has ended.
        """
        before, self._trusts[wire] = self._trusts.get(wire), wire.trust
        if before is not None and before is not wire.trust:
            before.retire()
        self.now += first
        wire.trust.era = self.now
        self.offline.kill()
        self.offline = LocalTrust(math.inf, self.now)

    def reset(self) -> None:
        """Begin anew, in a forked child."""
        self.offline = LocalTrust(math.inf, self.now)
        self._trusts = weakref.WeakKeyDictionary()
