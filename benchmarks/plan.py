"""How long to measure, against which server, and what values."""

import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.tables import rotations

__all__ = ["PREFIX", "SMALL_DICT", "Plan", "checked", "settle", "silent"]

PREFIX: Final = "magnus-bench"
"""What the name of every key written to Redis begins with."""

SMALL_DICT: Final[dict[str, object]] = {
    "ticker": "AAPL",
    "name": "Apple Inc.",
    "exchange": "NASDAQ",
    "sector": "Technology",
    "currency": "USD",
    "price": 187.25,
    "volume": 51_234_567,
    "day_range": [185.5, 189.75],
    "open": True,
    "updated": "2025-03-21T15:59:59Z",
}
"""A value as services cache them: about 200 bytes in JSON, 160 in msgpack. JSON can carry it exactly."""


def silent(_: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    :ivar rounds: how often every contender has its turn.
    :ivar turn: seconds that a turn takes, about.
    :ivar entries: entries in the near cache when its memory is measured.
    :ivar cleared: values in the namespace whose clear is measured.
    :ivar host: of the server.
    :ivar port: of the server.
    :ivar large: entries in the cache when hits in a large one are measured.
    :ivar many: keys of one call of `get_many` and its like.
    :ivar progress: is told what is being measured.
    :ivar address: the server's URL, if it is not reached over TCP by host and port.
    """

    rounds: int
    turn: float
    entries: int
    cleared: int
    host: str
    port: int
    large: int = 1_000_000
    many: int = 10_000
    progress: Callable[[str], None] = silent
    address: str = ""

    @property
    def url(self) -> str:
        """The server's URL."""
        return self.address or f"redis://{self.host}:{self.port}/0"

    def turns(self, contenders: Collection[str], what: str = "", rounds: int | None = None) -> Iterator[str]:
        """Yield whose turn it is, as `rotations` does, and report the progress.

        :param what: the column being measured.
        :param rounds: how many, if not as many as the plan has.
        """
        rounds = rounds or self.rounds
        for number, name in enumerate(rotations(list(contenders), rounds)):
            self.progress(f"{what}, round {number // len(contenders) + 1} of {rounds}: {name}".removeprefix(", "))
            yield name


def settle() -> None:
    """Collect garbage, and keep what lives out of later collections: their cost would fall on one contender's turn."""
    gc.collect()
    gc.freeze()


def checked(value: object, expected: object, contender: str) -> None:
    """Make sure that a contender does what it is timed for.

    :raises AssertionError: if it answers wrongly.
    """
    if value != expected:
        raise AssertionError(f"{contender} answered {value!r}, not {expected!r}")
