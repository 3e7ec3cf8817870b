"""What happens to servers that Sentinel watches while they are used: callers get no error, and nothing too old."""

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from magnus_cache.testing import EmbeddedSentinels
from tests.conftest import kind_here
from tests.support.groups import anyio_backend, url_of
from tests.support.traffic import BOUND, Traffic
from tests.support.wait import nothing_happens_for

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


def _promote(sentinels: EmbeddedSentinels) -> None:
    """The former primary stays one for many more seconds, and answers."""
    sentinels.promote()
    nothing_happens_for(2 * BOUND)


def _promote_back(sentinels: EmbeddedSentinels) -> None:
    """A primary that was one before is named again."""
    first = sentinels.primary
    sentinels.promote()
    sentinels.settle()
    sentinels.promote(first)


def _kill(sentinels: EmbeddedSentinels) -> None:
    primary = sentinels.primary
    sentinels.kill(primary)
    sentinels.wait_for_failover(primary)


def _stop(sentinels: EmbeddedSentinels) -> None:
    """It goes on as the primary when it is continued, and answers what was asked before."""
    primary = sentinels.primary
    sentinels.pause(primary)
    sentinels.wait_for_failover(primary)
    sentinels.resume(primary)
    nothing_happens_for(2 * BOUND)


def _cut_off(sentinels: EmbeddedSentinels) -> None:
    """From all other nodes, while its clients still reach it."""
    primary = sentinels.primary
    sentinels.partition(primary)
    sentinels.wait_for_failover(primary)
    nothing_happens_for(2 * BOUND)
    sentinels.heal()


_FAULTS: Final[list[tuple[Callable[[EmbeddedSentinels], None], str]]] = [
    (_promote, "valkey"), (_promote, "redis"), (_promote_back, "valkey"), (_kill, "valkey"), (_kill, "redis"),
    (_stop, "valkey"), (_stop, "redis"), (_cut_off, "valkey"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "kind"),
    {
        name: pytest.param(fault, kind_here(kind), id=name)
        for fault, kind in _FAULTS
        for name in [f"{fault.__name__.strip('_')}-{kind_here(kind)}"]
    }.values(),
)
async def test_invariant_1_nothing_old_is_served_whatever_happens_to_the_primary(
    private_sentinels_with: Callable[..., EmbeddedSentinels],
    fault: Callable[[EmbeddedSentinels], None],
    kind: str,
) -> None:
    sentinels = private_sentinels_with(kind=kind, links=fault is _cut_off)
    await Traffic(url_of(sentinels)).during(asyncio.to_thread(fault, sentinels))
