"""What a simulation counts."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Figures"]


@dataclass(slots=True)
class Figures:
    """The counts of one candidate, of a namespace or of all; where a share of the keys was recorded, scaled up.

    :ivar l1_hits: values found in memory.
    :ivar l2_hits: values found in Redis.
    :ivar misses: look-ups that found no usable value.
    :ivar stale: expired values that were served, most of them after a miss.
    :ivar errors: remembered errors that were raised again.
    :ivar loads: calls of loaders, those in the background included; without those that the program asked for.
    :ivar failures: those of them that raised.
    :ivar early: those of them that refreshed a value before it expired.
    :ivar load_seconds: seconds that loaders ran.
    :ivar money: what the loads cost; 0.0 if no cost is known.
    :ivar outdated: hits whose value had changed at the source, an estimate: a change lies between two recorded loads
        that found different values, at each moment with the same probability. What no recorded load has seen, such as
        a value that changed and changed back, is not in it.
    :ivar cut_short: lives that a write, a delete, a clear or a tag ended: what a TTL alone would have served wrongly.
    """

    l1_hits: float = 0
    l2_hits: float = 0
    misses: float = 0
    stale: float = 0
    errors: float = 0
    loads: float = 0
    failures: float = 0
    early: float = 0
    load_seconds: float = 0.0
    money: float = 0.0
    outdated: float = 0
    cut_short: float = 0

    @property
    def hits(self) -> float:
        """Values that were found and fresh."""
        return self.l1_hits + self.l2_hits

    @property
    def accesses(self) -> float:
        """Hits and misses."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """The share of hits, 0 to 1."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def l1_hit_rate(self) -> float:
        """The share of hits in memory, 0 to 1."""
        return self.l1_hits / self.accesses if self.accesses else 0.0

    @property
    def l2_hit_rate(self) -> float:
        """The share of hits in Redis, 0 to 1."""
        return self.l2_hits / self.accesses if self.accesses else 0.0

    @property
    def outdated_rate(self) -> float:
        """The share of hits that were known to be outdated, 0 to 1."""
        return self.outdated / self.hits if self.hits else 0.0

    def scaled(self, scale: float, totals: Iterable[float] | None = None) -> "Figures":
        """Return the counts of all keys, of those of a share of the keys.

        :param scale: one by the share.
        :param totals: how many accesses there were of all keys. What the sample has too many or too few is taken as
            hits in memory: it is due to the hottest keys (SHARDS-adj).
        """
        if scale == 1.0:
            return self
        found = Figures(**{each.name: getattr(self, each.name) * scale for each in fields(self)})
        if totals is not None:
            found.l1_hits = max(0.0, found.l1_hits + sum(totals) - found.accesses)
        return found

    @classmethod
    def sum(cls, some: "Iterable[Figures]") -> "Figures":
        """Return some counts added up."""
        total = cls()
        for figures in some:
            for each in fields(cls):
                setattr(total, each.name, getattr(total, each.name) + getattr(figures, each.name))
        return total

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the rates, for JSON."""
        counts = {each.name: round(getattr(self, each.name), 6) for each in fields(self)}
        rates = ("accesses", "hit_rate", "l1_hit_rate", "l2_hit_rate", "outdated_rate")
        return {**counts, **{name: round(getattr(self, name), 6) for name in rates}}
