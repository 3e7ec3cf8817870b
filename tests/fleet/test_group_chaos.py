"""Each fault of clusters and Sentinel sets once, for a moment, under load; `nox -s chaos` does the same for longer."""

import pytest

from tests.chaos.group_faults import GROUP_FAULTS
from tests.support.unnoticed import asyncio_is_quiet, strike_unnoticed

__all__ = ["asyncio_is_quiet"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", GROUP_FAULTS)
def test_callers_notice_nothing(name: str) -> None:
    """Invariants 1, 7, 10 and 11 at once."""
    strike_unnoticed(name)
