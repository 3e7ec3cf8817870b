"""What the demo prints: steps, remarks, and checks that it counts."""

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TextIO

__all__ = ["WIDTH", "Console"]

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
        """Columns that there are."""
        return self._width

    def title(self, text: str) -> None:
        """Print the first line."""
        self._print(self._styled(text, _BOLD))

    def step(self, explanation: str) -> None:
        """Begin the next step, with one line on what it does."""
        self._steps += 1
        head, *rest = self._wrapped(explanation, f"{self._steps}. ")
        self._print("\n" + self._styled(head, _BOLD))
        for line in rest:
            self._print(self._styled(line, _BOLD))

    def say(self, text: str) -> None:
        """Print a remark on the present step."""
        for line in self._wrapped(text, _INDENT):
            self._print(line)

    def block(self, lines: list[str]) -> None:
        """Print lines as they are, apart from what surrounds them."""
        self._print("")
        for line in lines:
            self._print(line)
        self._print("")

    def check(self, holds: bool, promise: str) -> None:
        """Print whether a promise holds; one that does not fails the demo."""
        self._checks += 1
        if not holds:
            self.failures.append(promise)
        mark = self._styled("ok  ", _GREEN) if holds else self._styled("FAIL", _RED)
        head, *rest = self._wrapped(promise, _INDENT + "     ")
        self._print(f"{_INDENT}{mark} {head.lstrip()}")
        for line in rest:
            self._print(line)

    def verdict(self) -> bool:
        """Print whether all checks held, or which did not, and return it."""
        if not self.failures:
            self._print("\n" + self._styled(f"All {self._checks} checks held.", _GREEN))
            return True
        self._print("\n" + self._styled(f"{len(self.failures)} of {self._checks} checks failed:", _RED))
        for promise in self.failures:
            self.say(promise)
        return False

    @contextmanager
    def logging(self, name: str) -> Generator[None, None, None]:
        """Show what a logger warns of among the remarks, instead of where it would go."""
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

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class _LogLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.say(f"log: {record.levelname}: {record.getMessage()}")
