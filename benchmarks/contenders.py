"""Which contenders take part: those that are installed. The tables say which are not."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.tables import Table

__all__ = ["DEFAULT_LOOP", "LoopFactory", "if_installed", "loops"]

LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None

DEFAULT_LOOP: Final = ""
"""The name of asyncio's own event loop; columns of other loops have their name."""


@contextmanager
def if_installed(table: Table, name: str) -> Iterator[None]:
    """Run a block that imports a peer and adds it to the contenders; note it in the table if it is not installed."""
    try:
        yield
    except ImportError:
        table.note(f"{name} is not installed on this Python: left out.")


def loops(table: Table) -> dict[str, LoopFactory]:
    """Return the event loops to measure with, by name: asyncio's, and uvloop's where it is installed."""
    found: dict[str, LoopFactory] = {DEFAULT_LOOP: None}
    with if_installed(table, "uvloop"):
        import uvloop

        found["uvloop"] = uvloop.new_event_loop
    return found
