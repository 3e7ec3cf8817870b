"""Trust: why a value in memory may be served without asking Redis.

The idea
--------
Redis announces on a connection each change of a key that this connection has read (CLIENT TRACKING). Announcements
and replies come over one socket, in order. So one answer proves that every change which Redis had handled before has
been announced here, and handled. A `Trust` is this proof, an object that all entries of one connection share. An
entry is served only before its trust's `deadline`.

How it is renewed
-----------------
The heartbeat of a connection in use asks for the epoch of everything, and the answer moves the deadline to
`max_staleness` seconds after the request was *sent*: counted from the answer, a slow network would add its delay to
the bound. Other answers do not renew it, because they would not notice that SWAPDB has replaced this database by
another. An announced epoch stops the renewal until it was read again. An idle connection sends nothing: its trust
lapses, and the next read asks for a heartbeat, which renews it.

How it ends
-----------
`kill` when the connection is lost: all its entries become suspect at once, however many there are. They are not served
while Redis is available, and are the fallback while it is away. `retire` after FLUSHALL, FLUSHDB and SWAPDB: then they
are not served as a fallback either.

The races that this excludes
----------------------------
- A change is announced while the connection is half-open, or after it broke. The announcement is lost. The deadline
  ends the entry within `max_staleness`, because no further answer arrives.
- The loop is blocked, and an announcement waits in the socket. No later answer was handled either, so the deadline
  has not moved.
- The machine sleeps. The clock counts the time asleep, so every deadline has passed when it wakes.
"""

from collections.abc import Iterable
from typing import Final

__all__ = ["Trust", "UnsharedTrust"]

_RETIRED: Final = -1

_DEAD: Final = float("-inf")


class Trust:
    """The proof that no invalidation of a connection's entries was missed; all of them share it.

    :ivar deadline: monotonic seconds until which they may be served.
    :ivar generation: the outage generation (see `OutageGenerations`) in which the connection was up. During an outage,
        entries of the latest generation are served, which is better than nothing. Entries of earlier generations are
        not: an invalidation of them may have been missed. On a cluster, the monotonic second when the trust began.
    :ivar used: whether an entry was served since the owner last reset this; an unused trust needs no heartbeat.
    """

    __slots__ = ("_before", "_followers", "deadline", "generation", "used")

    def __init__(self, deadline: float, generation: float = 0) -> None:
        self.deadline = self._before = deadline
        self.generation = generation
        self.used = False
        self._followers: tuple[Trust, ...] = ()

    @property
    def lapsed(self) -> float:
        """Monotonic seconds until which it was valid: its deadline, or the deadline before `kill`."""
        deadline = self.deadline
        return self._before if deadline == _DEAD else deadline

    def kill(self) -> None:
        """Make every entry that depends on this suspect, at once."""
        if (deadline := self.deadline) != _DEAD:
            self._before = deadline
        self.deadline = _DEAD
        for follower in self._followers:
            follower.kill()

    def retire(self) -> None:
        """Kill this for good: its entries are not served as a fallback in the next outage either."""
        self.kill()
        self.generation = _RETIRED
        for follower in self._followers:
            follower.retire()

    def of(self, slot: int) -> "Trust":
        """Return what the entries of a slot stand on: this, but for a node of a cluster, see `NodeTrust`."""
        return self

    def has(self, trust: "Trust") -> bool:
        """Return whether another trust is this one, or a part of it that has not ended."""
        return trust is self

    def suspect(self, ranges: Iterable[tuple[int, int]], now: float) -> None:
        """Make the entries of some slots suspect, given the first and last ones of ranges; here, all entries."""
        self.kill()

    def follow(self, leader: "Trust") -> None:
        """End with another trust at the latest: announcements for this one's entries come on that one's connection."""
        leader._followers = (*(other for other in leader._followers if other.deadline != _DEAD), self)
        # In this order: if that ends in between, either it finds this one, or this finds that it has.
        if leader.deadline == _DEAD:
            self.kill()


class UnsharedTrust(Trust):
    """The trust of values that only this process has, because Redis could not store them."""

    __slots__ = ()
