"""Step: the six workloads without and with the cache, and the guide's table with the figures of this run."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from magnus_cache import AsyncCacheManager, CacheNamespaces
from magnus_cache.demo.callers import Callers, Timed
from magnus_cache.demo.stage import Stage
from magnus_cache.demo.table import Row, summary, table
from magnus_cache.demo.workloads import WORKLOADS
from magnus_cache.demo.world import World

__all__ = ["before_and_after"]

_HITS: Final = 100
"""Calls of each workload that find its value in memory."""

_ONCE_EACH: Final = Counter({workload.name: 1 for workload in WORKLOADS})


async def before_and_after(stage: Stage, callers: Callers) -> None:
    """Run the six workloads for one kind of callers, print the table and check that the cache kept its promises."""
    world, cache, console = stage.world, stage.cache, stage.console
    console.step(f"Six workloads, {callers.kind} callers: without the cache, a first call with it, {_HITS} more.")
    app = callers.cached(cache)
    await cache.clear("magnus:*")

    start = world.calls.snapshot()
    before = await callers.side_by_side(callers.plain)
    without_cache = world.calls.since(start)

    start = world.calls.snapshot()
    first = await callers.side_by_side(app)
    redis = await _second_manager(world, callers)
    near_before = await _near_hits(cache)
    near = [await callers.in_turn(app) for _ in range(_HITS)]
    near_hits = await _near_hits(cache) - near_before
    with_cache = world.calls.since(start)

    rows = _rows(before, first, redis, near, with_cache)
    console.block(table(rows, console.width))
    by_redis = "Redis: a hit by a second, empty manager. " if redis else ""
    console.say(f"All times are in ms. First: a miss, which loads. {by_redis}After: a hit in memory.")
    console.say(f"Before and First ran the six at the same time, each timed by itself; After is a median of {_HITS}.")
    console.say(summary(rows))
    rounds = [first, redis, *near] if redis else [first, *near]
    console.check(_all_equal(before, rounds), "all values equal the uncached ones")
    console.check(
        without_cache == _ONCE_EACH and with_cache == _ONCE_EACH,
        "with the cache, each source was asked once, however often the application asked",
    )
    console.check(all(row.near < row.before for row in rows), "every workload is faster with the cache")
    # Not every one: where a machine stalls for a second, Redis is asked whether the entries still stand.
    asked = _HITS * len(WORKLOADS)
    console.check(near_hits >= 0.9 * asked, f"{near_hits} of {asked} later calls were served from memory")


async def _second_manager(world: World, callers: Callers) -> list[Timed]:
    """Make the six calls through another manager, whose memory is empty: they hit in Redis. Without Redis, none."""
    if world.server is None:
        return []
    async with world.manager() as cache:
        # Connecting happens once in the life of a process, so it is not part of a call.
        face = cache if callers.kind == "async" else cache.sync
        await callers.timed(lambda: face.get(CacheNamespaces.REFERENCE_DATA, "nothing"))
        return await callers.in_turn(callers.cached(cache))


async def _near_hits(cache: AsyncCacheManager) -> int:
    hits: int = (await cache.get_stats())["levels"]["l1"]["count"]
    return hits


def _rows(
    before: Sequence[Timed], first: Sequence[Timed], redis: Sequence[Timed], near: Sequence[Sequence[Timed]],
    made: Counter[str],
) -> list[Row]:  # fmt: skip
    return [
        Row(
            workload,
            before=before[index].milliseconds,
            first=first[index].milliseconds,
            redis=redis[index].milliseconds if redis else None,
            near=statistics.median(hits[index].milliseconds for hits in near),
            asked=1 + len(near) + (1 if redis else 0),
            made=made[workload.name],
        )
        for index, workload in enumerate(WORKLOADS)
    ]


def _all_equal(expected: Sequence[Timed], rounds: Iterable[Sequence[Timed]]) -> bool:
    values = [timed.value for timed in expected]
    return all([timed.value for timed in one_round] == values for one_round in rounds)
