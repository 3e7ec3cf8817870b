"""What the demo prints: steps, remarks, checks that it counts, and the guide's performance table."""

import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TextIO

from magnus_cache.demo.workloads import Workload

__all__ = ["WIDTH", "Console", "Row", "summary", "table"]

WIDTH: Final = 100
"""Columns that no line of text exceeds; on a narrower terminal, the terminal's."""

_NARROWEST: Final = 40

_INDENT: Final = " " * 4
_BOLD, _GREEN, _RED = "1", "32", "31"


class Console:
    """Prints plain text, with a little colour on a terminal, and remembers which checks failed.

    :ivar failures: the promises that did not hold.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._coloured = self._stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((WIDTH, 0)).columns if self._stream.isatty() else WIDTH
        self._width = max(_NARROWEST, min(WIDTH, columns))
        self._steps = self._checks = 0
        self.failures: list[str] = []

    @property
    def width(self) -> int:
        """The columns of the terminal, 100 at most."""
        return self._width

    def title(self, text: str) -> None:
        """Print the first line."""
        self._print(self._styled(text, _BOLD))

    def step(self, explanation: str) -> None:
        """Begin the next step, with one line on what it does."""
        self._steps += 1
        lines = self._wrapped(explanation, f"{self._steps}. ")
        self._print("", *(self._styled(line, _BOLD) for line in lines))

    def say(self, text: str) -> None:
        """Print a remark on the present step."""
        self._print(*self._wrapped(text, _INDENT))

    def block(self, lines: list[str]) -> None:
        """Print lines as they are, apart from what surrounds them."""
        self._print("", *lines, "")

    def check(self, holds: bool, promise: str) -> None:
        """Print whether a promise holds. A promise that does not hold fails the demo."""
        self._checks += 1
        if not holds:
            self.failures.append(promise)
        outcome = self._styled("ok  ", _GREEN) if holds else self._styled("FAIL", _RED)
        head, *rest = self._wrapped(promise, _INDENT + "     ")
        self._print(f"{_INDENT}{outcome} {head.lstrip()}", *rest)

    def verdict(self) -> bool:
        """Print the failed checks, if any; return whether all checks held."""
        if not self.failures:
            self._print("", self._styled(f"All {self._checks} checks held.", _GREEN))
            return True
        self._print("", self._styled(f"{len(self.failures)} of {self._checks} checks failed:", _RED))
        for promise in self.failures:
            self.say(promise)
        return False

    @contextmanager
    def logging(self, name: str) -> Generator[None, None, None]:
        """Print the warnings of a logger among the remarks, and nowhere else."""
        logger = logging.getLogger(name)
        handler = _LogLines(self)
        propagate, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate

    def _wrapped(self, text: str, indent: str) -> list[str]:
        lines = textwrap.wrap(
            text, self._width, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
        )
        return lines or [indent]

    def _styled(self, text: str, style: str) -> str:
        return f"\033[{style}m{text}\033[0m" if self._coloured else text

    def _print(self, *lines: str) -> None:
        # In one write: the cache's threads log at the same time as the steps print.
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()


class _LogLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.say(f"log: {record.levelname}: {record.getMessage()}")


# -- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """The times of one workload in milliseconds, and the numbers of its calls."""

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
"""Columns that are left out on a narrow terminal, in this order."""


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
    """Return a sentence on the calls that the cache saved each kind of source."""
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
    # Rounded down, because no call gets 100% faster.
    return f"{math.floor((1 - after / before) * 10_000) / 100:.2f}%"
