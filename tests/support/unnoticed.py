"""Faults that strike for a moment, under load, and that no caller notices."""

import logging
from collections.abc import Iterator

import pytest

from tests.chaos.report import strike

__all__ = ["asyncio_is_quiet", "strike_unnoticed"]


@pytest.fixture(autouse=True)
def asyncio_is_quiet() -> Iterator[None]:
    """asyncio tells of transports that a real peer reset while they were being written to."""
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def strike_unnoticed(name: str) -> None:
    """Let a fault strike; fail if callers saw an error or a stale value, or if the cache is not well again."""
    row = strike(name, seconds=0.7, callers=30, quiet=0.3)
    assert row.errors == 0, row.error_kinds
    assert row.stale == 0, row.examples
    assert row.outbox >= 0, "it was not used again"
    assert row.requests > 100
