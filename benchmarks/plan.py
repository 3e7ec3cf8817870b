"""How long to measure, against which server, and what values."""

import gc
from dataclasses import dataclass
from typing import Final

__all__ = ["PREFIX", "SMALL_DICT", "Plan", "checked", "settle"]

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


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    :ivar rounds: how often every contender has its turn.
    :ivar turn: seconds that a turn takes, about.
    :ivar entries: entries in the near cache when its memory is measured.
    :ivar cleared: values in the namespace whose clear is measured.
    :ivar host: of the server.
    :ivar port: of the server.
    """

    rounds: int
    turn: float
    entries: int
    cleared: int
    host: str
    port: int

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"redis://{self.host}:{self.port}/0"


def settle() -> None:
    """Collect garbage, and keep what lives out of later collections, whose cost would go to whoever has its turn."""
    gc.collect()
    gc.freeze()


def checked(value: object, expected: object, contender: str) -> None:
    """Make sure that a contender does what it is timed for.

    :raises AssertionError: if it answers wrongly.
    """
    if value != expected:
        raise AssertionError(f"{contender} answered {value!r}, not {expected!r}")
