"""What is being measured, on the standard error: a line that changes on a terminal, else a line for each benchmark."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Shows how far a run has come.

    :ivar total: benchmarks of the run.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._done = 0
        self._name = ""
        self._started = time.perf_counter()
        self._shown = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Show one benchmark, and at its end how long it took."""
        began = time.perf_counter()
        self._name = name
        self.show("")
        yield
        self._done += 1
        self._clear()
        took, all_took = time.perf_counter() - began, time.perf_counter() - self._started
        self._stream.write(f"[{self._done}/{self.total}] {name}: {took:.1f} s, {all_took:.0f} s in all\n")
        self._stream.flush()

    def show(self, what: str) -> None:
        """Show what is being measured right now; only a terminal does."""
        if not self._terminal:
            return
        self._clear()
        line = f"[{self._done + 1}/{self.total}] {self._name}: {what}".removesuffix(": ")[:110]
        self._stream.write(line)
        self._stream.flush()
        self._shown = len(line)

    def _clear(self) -> None:
        if self._shown:
            self._stream.write(f"\r{' ' * self._shown}\r")
            self._shown = 0
