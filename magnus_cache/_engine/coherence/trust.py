"""Trust: why a value in memory may be served without asking Redis.

The idea
--------
Redis announces on a connection each change of a key that this connection has read (CLIENT TRACKING). Announcements
and replies come over one socket, in order. So one answer proves that every change which Redis had handled before has
been announced here, and handled. A `Trust` is this proof, as an object that all entries of one connection share. An
entry is served only before its trust's `deadline`.

How it is renewed
-----------------
The heartbeat of a connection in use asks for the epoch of everything, and the answer moves the deadline to
`max_staleness` seconds after the question was *sent*: counted from the answer, a slow network would add its delay to
the bound. Other answers do not renew it, as they would not notice that SWAPDB has put another database in the place of
this one. An announced epoch stops the renewal until it was read again. An idle connection asks nothing: its trust
lapses, and the next read renews it.

How it ends
-----------
`kill` when the connection is lost: all its entries are suspect at once, however many there are. They are not served
while Redis can be asked, and are the fallback while it is away. `retire` after FLUSHALL, FLUSHDB and SWAPDB: then they
are no fallback either.

The races that this excludes
----------------------------
- A change is announced while the connection is half-open, or after it broke. Nobody hears it. The deadline ends what it
  was about within `max_staleness`, as no answer comes any more.
- The loop is blocked, and an announcement waits in the socket. No answer behind it was handled either, so the deadline
  has not moved.
- The machine sleeps. The clock counts the time asleep, so every deadline has passed when it wakes.
"""

from typing import Final

__all__ = ["LocalTrust", "Trust"]

_RETIRED: Final = -1

_DEAD: Final = float("-inf")


class Trust:
    """What the entries of one connection stand on: proof that no invalidation of them was missed.

    :ivar deadline: monotonic seconds until which they may be served.
    :ivar era: between which outages it stood: in an outage, what the last connections were good for is better than
        nothing, and what stood on earlier ones may have been invalidated unheard.
    :ivar used: whether one was served since the owner last reset this; an unused trust needs no heartbeat.
    """

    __slots__ = ("_before", "deadline", "era", "used")

    def __init__(self, deadline: float, era: int = 0) -> None:
        self.deadline = self._before = deadline
        self.era = era
        self.used = False

    @property
    def lapsed(self) -> float:
        """Monotonic seconds until which it was good: its deadline, or the one that it had before it was killed."""
        deadline = self.deadline
        return self._before if deadline == _DEAD else deadline

    def kill(self) -> None:
        """Make every entry that stands on this suspect, at once."""
        if (deadline := self.deadline) != _DEAD:
            self._before = deadline
        self.deadline = _DEAD

    def retire(self) -> None:
        """Do what `kill` does, for good: what stands on this is no fallback in the next outage either."""
        self.kill()
        self.era = _RETIRED


class LocalTrust(Trust):
    """What values stand on that this process alone has, because Redis could not take them."""

    __slots__ = ()
