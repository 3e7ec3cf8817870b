"""The guide's performance table, with the figures of this run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from magnus_cache.demo.workloads import Workload

__all__ = ["Row", "summary", "table"]


@dataclass(frozen=True, slots=True)
class Row:
    """What one workload took its callers, in milliseconds, and how often it was called."""

    workload: Workload
    before: float
    """Without the cache."""
    first: float
    """The first call with the cache: a miss, which loads."""
    redis: float | None
    """A hit in Redis, by a manager with nothing in its own memory; None without Redis."""
    near: float
    """A hit in this process's memory: the median of many."""
    asked: int
    """Calls with the cache."""
    made: int
    """Calls that reached the source."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.workload.feature,
            f"{self.before:.0f}",
            f"{self.first:.0f}",
            "-" if self.redis is None else f"{self.redis:.2f}",
            f"{self.near:.4f}",
            _improvement(self.before, self.near),
            f"{self.asked - self.made} of {self.asked}",
        )


_HEADER = ("Feature", "Before (ms)", "First", "Redis", "After (ms)", "Improvement", "Calls saved")


_SPARED = ("Calls saved", "First", "Redis", "Improvement")
"""What a narrow terminal does without, the first one first."""


def table(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Return the table's lines: text to the left, figures to the right.

    :param width: columns of the terminal; where it is too narrow, columns of the table are left out.
    """
    cells = [_HEADER, *(row.cells for row in rows)]
    shown = list(range(len(_HEADER)))
    sizes = [max(len(line[column]) for line in cells) for column in shown]
    for title in _SPARED:
        if width is None or sum(sizes[column] + 3 for column in shown) + 1 <= width:
            break
        shown.remove(_HEADER.index(title))
    widths = [sizes[column] for column in shown]
    lines = [_line([line[column] for column in shown], widths) for line in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    return [lines[0], f"|{rule}|", *lines[1:]]


def summary(rows: Sequence[Row]) -> str:
    """Return what the cache saved each kind of source, in one sentence."""
    parts: list[str] = []
    for source, name in (("HTTP", "API calls"), ("SQL", "database queries")):
        of_source = [row for row in rows if row.workload.source == source]
        asked, made = sum(row.asked for row in of_source), sum(row.made for row in of_source)
        parts.append(f"{asked} {name} became {made}")
    return f"With the cache, {' and '.join(parts)}."


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *figures = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def _improvement(before: float, after: float) -> str:
    # Rounded down: nothing gets a hundred percent faster.
    return f"{math.floor((1 - after / before) * 10_000) / 100:.2f}%"
