"""The six workloads of the guide before and after the cache: ``python -m magnus_cache demo`` in figures."""

import asyncio
import io
import statistics
from collections.abc import Sequence
from typing import Final

from benchmarks.plan import Plan, checked
from benchmarks.tables import OURS, Table
from magnus_cache.demo.console import Console
from magnus_cache.demo.environment import open_environment
from magnus_cache.demo.workloads import WORKLOADS, Timed, both_kinds

__all__ = ["BEFORE", "FIRST", "guide"]

BEFORE: Final = "(no cache)"
FIRST: Final = f"{OURS}, first call"

_HITS: Final = 100
_LONG_TURN: Final = 0.01
"""Plans with shorter turns are tests of the benchmarks; for them, the sources are as fast as they can be."""


def guide(plan: Plan) -> Table:
    """Return the milliseconds of each of the guide's workloads without the cache, at first, and from then on."""
    table = Table("guide", "The guide's workloads before and after the cache", "ms", less_is_better=True)
    table.note(
        "The sources are made up and take as long as the guide says. Async callers; ours: the median of 100 hits."
    )
    speed = 1.0 if plan.turn >= _LONG_TURN else 50.0
    with open_environment(Console(io.StringIO()), speed=speed, with_server=True) as environment:

        async def measure() -> None:
            _, callers = both_kinds(environment.plain)
            for number in range(max(1, plan.rounds // 3)):
                plan.progress(f"round {number + 1}")
                async with environment.manager() as cache:
                    await cache.clear("magnus:*")
                    app = callers.cached(cache)
                    before = await callers.side_by_side(callers.plain)
                    first = await callers.side_by_side(app)
                    hits = [await callers.in_turn(app) for _ in range(_HITS)]
                    _add(table, before, first, hits)

        asyncio.run(measure())
    return table


def _add(table: Table, before: Sequence[Timed], first: Sequence[Timed], hits: Sequence[Sequence[Timed]]) -> None:
    for number, workload in enumerate(WORKLOADS):
        checked(hits[-1][number].value, before[number].value, OURS)
        table.add(workload.feature, OURS, statistics.median(hit[number].milliseconds for hit in hits))
        table.add(workload.feature, FIRST, first[number].milliseconds)
        table.add(workload.feature, BEFORE, before[number].milliseconds)
