"""One fault after the other, and a row about each."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.group_faults import GROUP_FAULTS
from tests.chaos.ledger import Stale
from tests.chaos.load import Callers, Seen
from tests.chaos.world import Scene, World, group_world, world

__all__ = ["Row", "soak", "strike", "table", "written"]

_PATIENCE = 20.0


@dataclass
class Row:
    """What a fault did to callers. Seconds, unless it says otherwise."""

    fault: str
    requests: int
    errors: int
    error_kinds: list[str]
    p99: float
    worst: float
    quiet_p99: float
    stale: int
    loads: int
    outbox: float
    """From the end of the fault until both caches use Redis, have told it all, and hit near again; -1 for never."""
    examples: list[dict[str, Any]]


def strike(name: str, seconds: float = 2.0, callers: int = 200, kind: str = "valkey", quiet: float = 1.0) -> Row:
    """Let a fault strike for some seconds, and return what callers saw of it."""
    if name in GROUP_FAULTS:
        of, strikes = GROUP_FAULTS[name]
        with group_world(of, kind) as there:
            return asyncio.run(_strike(there, name, lambda: strikes(there, seconds), callers, quiet))
    with world(kind) as here:
        return asyncio.run(_strike(here, name, lambda: FAULTS[name](here, seconds), callers, quiet))


async def _strike(here: Scene, name: str, fault: Callable[[], None], count: int, quiet: float) -> Row:
    with here.ledger.trail.watching():
        return await _struck(here, name, fault, count, quiet)


async def _struck(here: Scene, name: str, fault: Callable[[], None], count: int, quiet: float) -> Row:
    callers = Callers(here, count)
    calling = asyncio.create_task(callers.run())
    looking = asyncio.create_task(_look(here))
    try:
        # The first callers find nothing, and connect; that is no part of the quiet.
        await asyncio.sleep(quiet)
        callers.take()
        await asyncio.sleep(quiet)
        calm = callers.take()
        loads = here.ledger.loads
        await asyncio.to_thread(fault)
        healed = time.monotonic()
        outbox = -1.0
        while time.monotonic() - healed < _PATIENCE:
            if await _well(here):
                outbox = time.monotonic() - healed
                break
            await asyncio.sleep(0.01)
        # What came back wrong would be served now.
        await asyncio.sleep(here.ledger.bound + quiet)
        seen = callers.take()
        return _row(name, calm, seen, here.ledger.loads - loads, here.ledger.stale, outbox)
    finally:
        callers.stop()
        await asyncio.gather(calling, return_exceptions=True)
        looking.cancel()
        for manager in here.managers:
            await manager.aclose()


async def soak(here: World, seconds: float, count: int, seed: int) -> tuple[Seen, list[str]]:
    """Let faults strike at random for so long, and return what callers saw, and which faults it were."""
    dice, callers, struck = random.Random(seed), Callers(here, count), list[str]()
    # The primary dies for good in one of them.
    names = [name for name in FAULTS if name != "replica promoted"]
    calling = asyncio.create_task(callers.run())
    looking = asyncio.create_task(_look(here))
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = dice.choice(names)
            struck.append(name)
            await asyncio.to_thread(FAULTS[name], here, dice.uniform(0.1, 1.5))
            # Often the next one comes before all is well.
            await asyncio.sleep(dice.expovariate(1.0))
        healed = time.monotonic()
        while not await _well(here):
            assert time.monotonic() - healed < _PATIENCE, f"not well again after {struck[-3:]}"
            await asyncio.sleep(0.01)
        await asyncio.sleep(here.ledger.bound + 0.5)
    finally:
        callers.stop()
        await asyncio.gather(calling, return_exceptions=True)
        looking.cancel()
    return callers.take(), struck


async def _look(here: Scene) -> None:
    while True:
        here.ledger.look(here.caches)
        await asyncio.sleep(0.002)


async def _well(here: Scene) -> bool:
    """Whether both caches use Redis, have told it everything, and are near again what they were."""
    for cache, manager in zip(here.caches, here.managers, strict=True):
        if not manager.redis_available or cache.state.outbox.pending or not cache.state.reachable:
            return False
        if not await manager.set("well", "probe", 1) or await manager.get("well", "probe") != 1:
            return False
        if cache.state.memory.hit(cache.state.keyspace.value_name("well", "probe")) is None:
            return False
    return True


def _row(name: str, calm: Seen, seen: Seen, loads: int, stale: list[Stale], outbox: float) -> Row:
    kinds = sorted({f"{type(error).__name__}: {error}"[:200] for error in seen.errors + calm.errors})
    return Row(
        name, len(seen.latencies), len(seen.errors) + len(calm.errors), kinds[:5], _share(seen.latencies, 0.99),
        max(seen.latencies, default=0.0), _share(calm.latencies, 0.99), len(stale), loads, outbox,
        [asdict(example) for example in stale[:5]],
    )  # fmt: skip


def _share(latencies: list[float], share: float) -> float:
    ordered = sorted(latencies)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'fault':30} {'requests':>8} {'errors':>6} {'p99 ms':>8} {'worst ms':>9} {'quiet p99':>9} {'stale':>6} "
        f"{'loads':>6} {'recovery s':>10}"
    ]
    lines += [
        f"{row.fault:30} {row.requests:8} {row.errors:6} {row.p99 * 1e3:8.1f} {row.worst * 1e3:9.1f} "
        f"{row.quiet_p99 * 1e3:9.1f} {row.stale:6} {row.loads:6} {row.outbox:10.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def written(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
