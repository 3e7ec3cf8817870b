"""Each fault of clusters and Sentinel sets once, for a moment, under load; `nox -s chaos` does the same for longer."""

import logging

import pytest

from tests.chaos.group_faults import GROUP_FAULTS
from tests.chaos.report import strike


@pytest.fixture(autouse=True)
def _quiet() -> None:
    # asyncio tells of transports that a real peer reset while they were being written to.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", GROUP_FAULTS)
def test_callers_notice_nothing(name: str) -> None:
    """Invariants 1, 7, 10 and 11 at once."""
    row = strike(name, seconds=0.7, callers=30, quiet=0.3)
    assert row.errors == 0, row.error_kinds
    assert row.stale == 0, row.examples
    assert row.outbox >= 0, "it was not used again"
    assert row.requests > 100
