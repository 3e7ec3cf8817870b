"""Each fault once, for a moment, under load: no caller sees an error, no read is stale, and all is well again.

`nox -s chaos` does the same for longer, with two hundred callers, and prints what it cost them; `nox -s soak` lets
faults strike at random for minutes.
"""

import asyncio
import gc
import os
from collections import Counter
from typing import Final

import psutil
import pytest

from magnus_cache.embedded import EmbeddedServer, find_valkey
from magnus_cache.testing import no_leaks
from tests.chaos.blackhole import ours
from tests.chaos.faults import FAULTS
from tests.chaos.ledger import Cache, Ledger
from tests.chaos.report import soak
from tests.chaos.world import OP_TIMEOUT, World, world
from tests.support.resting import objects, resting
from tests.support.unnoticed import asyncio_is_quiet, strike_unnoticed
from tests.support.wait import wait_until_async

__all__ = ["asyncio_is_quiet"]

SOAK: Final = bool(os.environ.get("MAGNUS_CACHE_SOAK"))

_GROWTH: Final = 20_000_000
"""Bytes that a process may grow by from one round to the next: the ledger notes every invalidation."""

_MORE: Final = 60
"""Objects of one class that there may be more of after a round, as some keys happen to be known."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FAULTS)
def test_callers_notice_nothing(name: str) -> None:
    """Invariants 1, 5, 7, 10 and 11 at once."""
    strike_unnoticed(name)


@pytest.mark.timeout(60)
def test_a_hundred_calls_into_a_black_hole_wait_for_one_timeout() -> None:
    """Invariant 10. Of three attempts the best: what others do with the machine is nobody's timeout."""
    with EmbeddedServer(find_valkey()) as server:
        assert min(ours(server) for _ in range(3)) < 2 * OP_TIMEOUT


@pytest.mark.timeout(600 if SOAK else 60)
def test_nothing_is_left_after_many_faults() -> None:
    """Memory, objects, tasks, sockets and threads are as after the round before; and nobody has noticed anything."""
    rounds, seconds = (4, 75.0) if SOAK else (2, 3.0)

    async def round_of(here: World) -> tuple[Counter[str], int]:
        seen, struck = await soak(here, seconds, 40, seed=int.from_bytes(os.urandom(4), "big"))
        assert not seen.errors, (seen.errors[:3], struck)
        assert not here.ledger.stale, (here.ledger.stale[:3], struck)
        await wait_until_async(lambda: all(resting(cache.state) for cache in here.caches))
        del seen
        gc.collect()
        found = objects()
        # References of keys are remembered up to a limit of their own.
        found.pop("KeyRef", None)
        # How many keys are in memory at the moment is chance. What no memory holds any more has to be gone.
        entries = sum(found.pop(kind) for kind in list(found) if kind.endswith("Entry"))
        found["entry that no memory holds"] = entries - sum(len(cache.state.memory) for cache in here.caches)
        return found, psutil.Process().memory_info().rss

    async def compared(here: World) -> None:
        known, size = await round_of(here)
        for _ in range(rounds - 1):
            found, now = await round_of(here)
            more = {kind: (known[kind], count) for kind, count in found.items() if count - known[kind] > _MORE}
            assert not more
            assert found["entry that no memory holds"] <= 0
            assert now - size < _GROWTH
            known, size = found, now
        for manager in here.managers:
            policy = (await manager.get_stats())["namespaces"]["policy"]
            assert policy["stale_hits"]
            assert policy["early_refreshes"]

    async def run(here: World) -> None:
        try:
            await compared(here)
        finally:
            # Else what follows in this process would meet their threads.
            for manager in here.managers:
                await manager.aclose()

    with no_leaks(), world() as here:
        asyncio.run(run(here))


# -- that the ledger finds faults ---------------------------------------------------------------------------------


class _Now:
    """A cache's state, as far as the ledger looks at it."""

    reachable = True


def test_the_ledger_accuses_who_serves_what_it_invalidated_itself() -> None:
    ledger, cache = Ledger(1.0), Cache(0, _Now())  # type: ignore[arg-type]
    ledger.ended(cache, "k", ["k", 1, 0.0], 0.0, floor=2)
    assert [stale.rule for stale in ledger.stale] == ["a"]


@pytest.mark.parametrize(("began", "stale"), [(10.5, 0), (11.5, 1)])
def test_the_ledger_accuses_who_serves_what_a_peer_invalidated_more_than_the_bound_ago(
    began: float, stale: int
) -> None:
    ledger, cache = Ledger(1.0), Cache(0, _Now(), apart=-10.0)  # type: ignore[arg-type]
    ledger._publish("k", 5, 10.0)
    ledger.ended(cache, "k", ["k", 4, 0.0], began, floor=0)
    assert len(ledger.stale) == stale
    ledger.ended(cache, "k", ["k", 5, 0.0], began, floor=0)
    assert len(ledger.stale) == stale


@pytest.mark.parametrize(("age", "stale"), [(2.5, 0), (3.5, 1)])
def test_the_ledger_accuses_who_serves_what_has_aged_beyond_its_grace(age: float, stale: int) -> None:
    ledger, cache = Ledger(1.0), Cache(0, _Now(), apart=100.0)  # type: ignore[arg-type]
    ledger.ended(cache, "p", ["p", 0, 100.0 - age], 100.0, floor=0, life=2.0)
    assert [found.rule for found in ledger.stale] == ["d"] * stale


def test_the_ledger_excuses_who_was_without_redis() -> None:
    ledger, cache = Ledger(1.0), Cache(0, _Now(), apart=11.0)  # type: ignore[arg-type]
    ledger._publish("k", 5, 10.0)
    ledger.ended(cache, "k", ["k", 4, 0.0], 11.5, floor=0)
    assert not ledger.stale
