"""What was measured: samples by column and contender, their medians and spread, and the ratios between contenders.

The machine is noisy, and noise comes in stretches longer than a turn. So contenders take turns in every round, and
two contenders are compared round by round: the ratio of two is the median of the rounds' ratios.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

__all__ = ["OURS", "Table", "quartiles", "rotations"]

OURS: Final = "magnus_cache"
"""The contender that the others are compared with."""


@dataclass(slots=True)
class Table:
    """The samples of one benchmark.

    :ivar unit: of all samples.
    :ivar less_is_better: for durations and sizes; else samples are rates.
    :ivar samples: by column, then by contender, one for each round in the order of rounds.
    :ivar notes: what a reader must know about a contender, or why one is missing.
    :ivar distributions: by contender, pairs of a percentile and its value, where a benchmark has a whole distribution.
    """

    name: str
    title: str
    unit: str
    less_is_better: bool
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    distributions: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, column: str, contender: str, sample: float) -> None:
        """Add one sample."""
        self.samples.setdefault(column, {}).setdefault(contender, []).append(sample)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def contenders(self) -> list[str]:
        """Every contender of any column, in the order of their first samples."""
        return list(dict.fromkeys(name for column in self.samples.values() for name in column))

    def median(self, column: str, contender: str) -> float | None:
        """Return the median of a contender's samples, or None if there is none."""
        samples = self.samples.get(column, {}).get(contender)
        return statistics.median(samples) if samples else None

    def spread(self, column: str, contender: str) -> float | None:
        """Return half the distance between the quartiles as a share of the median; None below two samples."""
        samples = self.samples.get(column, {}).get(contender, [])
        median = self.median(column, contender)
        if len(samples) < 2 or not median:
            return None
        low, high = quartiles(samples)
        return (high - low) / 2 / median

    def ratios(self, column: str, one: str, other: str) -> list[float]:
        """Return round by round how many times as good `one` is as `other`; empty if either is missing."""
        samples = self.samples.get(column, {})
        pairs = zip(samples.get(one, []), samples.get(other, []), strict=False)
        return [(theirs / mine if self.less_is_better else mine / theirs) for mine, theirs in pairs if mine and theirs]

    def advantage(self, column: str, one: str, other: str) -> float | None:
        """Return how many times as good `one` is as `other`: above 1 it is better. None if either is missing."""
        ratios = self.ratios(column, one, other)
        return statistics.median(ratios) if ratios else None

    def best(self, column: str, contenders: Sequence[str]) -> str | None:
        """Return the best by median of some contenders, or None if none of them has samples."""
        medians = {name: median for name in contenders if (median := self.median(column, name)) is not None}
        if not medians:
            return None
        return (min if self.less_is_better else max)(medians, key=lambda name: medians[name])

    def extend(self, other: "Table") -> None:
        """Add the rounds of another run of the same benchmark; of distributions, the last run's count."""
        for column, row in other.samples.items():
            for contender, samples in row.items():
                self.samples.setdefault(column, {}).setdefault(contender, []).extend(samples)
        for text in other.notes:
            self.note(text)
        self.distributions.update(other.distributions)

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            "less_is_better": self.less_is_better,
            "notes": self.notes,
            "columns": {
                column: {
                    name: {"median": self.median(column, name), "spread": self.spread(column, name), "rounds": rounds}
                    for name, rounds in row.items()
                }
                for column, row in self.samples.items()
            },
            "distributions": self.distributions,
        }

    @classmethod
    def from_figures(cls, name: str, figures: Mapping[str, Any]) -> Self:
        """Return the table that `figures` made these of."""
        columns = figures["columns"].items()
        return cls(
            name, figures["title"], figures["unit"], figures["less_is_better"],
            {column: {one: list(found["rounds"]) for one, found in row.items()} for column, row in columns},
            list(figures["notes"]),
            {one: [(at, value) for at, value in points] for one, points in figures.get("distributions", {}).items()},
        )  # fmt: skip


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; of one sample, that sample twice."""
    if len(samples) < 2:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


def rotations(contenders: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield whose turn it is: each contender once a round, beginning with another one every round."""
    for number in range(rounds):
        start = number % len(contenders)
        yield from contenders[start:]
        yield from contenders[:start]
