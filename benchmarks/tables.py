"""What was measured: samples by column and contender, their medians, and the ratios between contenders.

The machine is noisy, and noise comes in stretches longer than a turn. So contenders take turns in every round, and
two contenders are compared round by round: the ratio of two is the median of the rounds' ratios.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["OURS", "Table", "rotations"]

OURS: Final = "magnus_cache"
"""The contender that the others are compared with."""


@dataclass(slots=True)
class Table:
    """The samples of one benchmark.

    :ivar unit: of all samples.
    :ivar less_is_better: for durations and sizes; else samples are rates.
    :ivar samples: by column, then by contender, one for each round in the order of rounds.
    :ivar notes: what a reader must know about a contender, or why one is missing.
    """

    name: str
    title: str
    unit: str
    less_is_better: bool
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, column: str, contender: str, sample: float) -> None:
        """Take down one sample."""
        self.samples.setdefault(column, {}).setdefault(contender, []).append(sample)

    @property
    def contenders(self) -> list[str]:
        """Every contender of any column, in the order of their first samples."""
        return list(dict.fromkeys(name for column in self.samples.values() for name in column))

    def median(self, column: str, contender: str) -> float | None:
        """Return the median of a contender's samples, or None if there is none."""
        samples = self.samples.get(column, {}).get(contender)
        return statistics.median(samples) if samples else None

    def advantage(self, column: str, one: str, other: str) -> float | None:
        """Return how many times as good `one` is as `other`: above 1 it is better. None if either is missing."""
        samples = self.samples.get(column, {})
        if not samples.get(one) or not samples.get(other):
            return None
        pairs = zip(samples[one], samples[other], strict=True)
        return statistics.median(theirs / mine if self.less_is_better else mine / theirs for mine, theirs in pairs)

    def best(self, column: str, contenders: Sequence[str]) -> str | None:
        """Return the best by median of some contenders, or None if none of them has samples."""
        medians = {name: median for name in contenders if (median := self.median(column, name)) is not None}
        if not medians:
            return None
        return (min if self.less_is_better else max)(medians, key=lambda name: medians[name])

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            "less_is_better": self.less_is_better,
            "notes": self.notes,
            "columns": {
                column: {name: {"median": statistics.median(rounds), "rounds": rounds} for name, rounds in row.items()}
                for column, row in self.samples.items()
            },
        }


def rotations(contenders: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield whose turn it is: each contender once a round, beginning with another one every round."""
    for number in range(rounds):
        start = number % len(contenders)
        yield from contenders[start:]
        yield from contenders[:start]
