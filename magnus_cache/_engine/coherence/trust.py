"""Trust: what entries of the near cache stand on, and how it ends."""

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
