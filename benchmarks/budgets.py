"""The budgets: what is promised of the cache's speed, as data, and how a run is held against them.

All but the sizes are ratios between two contenders of one run; seconds of one machine would say nothing of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.tables import OURS, Table

__all__ = ["BUDGETS", "Budget", "Verdict", "judge"]

Outcome = Literal["met", "NOT met", "not measured", "not measured yet"]


@dataclass(frozen=True, slots=True)
class Budget:
    """One promise.

    :ivar what: the promise in words.
    :ivar table: name of the table that shows it; None while no benchmark does.
    :ivar column: which of its columns.
    :ivar against: the contenders to be compared with; the best of them counts. Empty for a figure of our own.
    :ivar at_least: the ratio demanded, ours in terms of theirs: above 1 we are to be better.
    :ivar at_most: for a figure of our own, the most allowed, in the table's unit.
    """

    what: str
    table: str | None = None
    column: str = ""
    against: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget and what a run says of it.

    :ivar measured: the ratio, or the figure; None if the run did not measure it.
    :ivar against: the contender that it was measured against.
    """

    budget: Budget
    outcome: Outcome
    measured: float | None = None
    against: str | None = None


_ASYNC_PEERS: Final = ("aiocache", "cashews")
_PUBLISH: Final = ("PUBLISH, redis.asyncio", "PUBLISH, bare connection")


def _series(what: str, table: str, against: tuple[str, ...], demanded: Mapping[str, float]) -> tuple[Budget, ...]:
    return tuple(Budget(what.format(column), table, column, against, ratio) for column, ratio in demanded.items())


BUDGETS: Final[tuple[Budget, ...]] = (
    *_series(
        "async L2 hits vs the fastest async peer, concurrency {}",
        "l2-async", _ASYNC_PEERS, {"1": 1.0, "10": 4.0, "100": 13.0, "1000": 20.0},
    ),
    *_series("async L2 hits vs valkey-glide, concurrency {}", "l2-async", ("valkey-glide",), {"100": 5.0, "1000": 6.0}),
    *_series(
        "share of the raw protocol's throughput, concurrency {}",
        "l2-async", ("raw + msgpack",), {"10": 0.75, "100": 0.75, "1000": 0.75},
    ),
    *_series(
        "blocking L2 hits vs dogpile.cache, {} threads",
        "l2-threads", ("dogpile.cache",), {"1": 1.0, "16": 3.0, "64": 4.5},
    ),
    *_series("async L1 hit vs async-lru, {}", "l1-async", ("async-lru",), {"str": 1.5, "int": 1.5}),
    *_series("sync L1 hit vs cachetools.cached, {}", "l1-sync", ("cachetools",), {"str": 1.5, "int": 1.5}),
    *_series("async L1 hit vs aiocache memory, {}", "l1-async", ("aiocache",), {"str": 25.0}),
    *_series("async L1 hit vs cashews memory, {}", "l1-async", ("cashews",), {"str": 50.0}),
    Budget("bytes of an L1 entry beyond key and value", "l1-memory", "bytes", at_most=250.0),
    # At most 1.5 times the time: the other's time is at least 1/1.5 of ours.
    Budget("import vs redis.asyncio, under 1.5x the time", "import", "ms", ("redis.asyncio",), 1 / 1.5),
    # Likewise.
    *_series(
        "invalidation vs a PUBLISH, {} under 1.5x the time",
        "invalidation", _PUBLISH, dict.fromkeys(("set p50", "delete p50"), 1 / 1.5),
    ),
    *_series(
        "invalidation vs a PUBLISH, {} under 2x the time",
        "invalidation", _PUBLISH, dict.fromkeys(("set p99", "delete p99"), 1 / 2),
    ),
    *(
        Budget(f"the loop held up by a large {call}", "stalls", call, at_most=10.0)
        for call in ("set", "get, memory", "get, Redis", "set_many", "get_many, memory", "get_many, Redis")
    ),
    Budget("loads for 8 processes x 100 tasks on one cold key: exactly 1"),
)  # fmt: skip


def judge(tables: Mapping[str, Table], budgets: tuple[Budget, ...] = BUDGETS) -> list[Verdict]:
    """Hold what was measured against the budgets."""
    return [_judged(budget, tables) for budget in budgets]


def _judged(budget: Budget, tables: Mapping[str, Table]) -> Verdict:
    if budget.table is None:
        return Verdict(budget, "not measured yet")
    table = tables.get(budget.table)
    if table is None:
        return Verdict(budget, "not measured")
    if budget.at_most is not None:
        figure = table.median(budget.column, OURS)
        return _verdict(budget, figure, figure is not None and figure <= budget.at_most, None)
    peer = table.best(budget.column, budget.against)
    ratio = None if peer is None else table.advantage(budget.column, OURS, peer)
    return _verdict(budget, ratio, ratio is not None and ratio >= (budget.at_least or 0.0), peer)


def _verdict(budget: Budget, measured: float | None, kept: bool, against: str | None) -> Verdict:
    if measured is None:
        return Verdict(budget, "not measured")
    return Verdict(budget, "met" if kept else "NOT met", measured, against)
