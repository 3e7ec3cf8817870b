"""Guards of the cache that the stress finds when they are switched off: under what, and within how many seconds.

``python -m tests.stress --holes`` shows it: what is found without a guard, and is not found with it, shows that the
stress sees faults of that kind.
"""

from typing import Final, NamedTuple

__all__ = ["HOLES", "Hole"]


class Hole(NamedTuple):
    """A guard that is switched off.

    :ivar mutant: its name in `tests.support.mutants`.
    :ivar kind: what is found then: ``"stale"``, ``"loaded twice"``, ``"lost"``, ``"hung"``, ``"error"`` or ``"left"``.
    :ivar seconds: for which the callers call at most; several times what it took.
    """

    mutant: str
    disturbance: str
    kind: str
    seconds: float


HOLES: Final = (
    Hole("judging what was joined", "quiet", "stale", 120),
    Hole("judging by the start of each call", "quiet", "error", 120),
    Hole("detach on delete", "quiet", "stale", 120),
    Hole("token check of a fill", "quiet", "stale", 120),
    Hole("telling remembered errors from values in an outage", "quiet", "error", 120),
    Hole("a look whether an entry is still the one that was looked at", "tight loops", "stale", 60),
    Hole("asking before a lease is given up", "table overflow", "loaded twice", 120),
    Hole("a deadline of trust", "suspended client", "stale", 240),
    Hole("a look whether a section was interrupted", "signals", "hung", 120),
    Hole("a look whether a section was interrupted", "finalizers", "hung", 120),
    Hole("leaving again after an interrupt", "interrupts", "hung", 120),
    Hole("an end for what a lost thread was to answer", "interrupts", "hung", 240),
)
