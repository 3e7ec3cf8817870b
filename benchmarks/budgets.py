"""The budgets: what is promised of the cache's speed, as data, and how a run is held against them.

All but sizes, stalls and the cost of one key among many are ratios between two contenders of one run: seconds of one
machine would say nothing of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.first_get import CLIENT, GET
from benchmarks.tables import OURS, Table
from benchmarks.thread_peers import L1_ON

__all__ = ["BUDGETS", "Budget", "Verdict", "judge", "runs_met"]

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
    :ivar ours: which of our contenders is meant.
    """

    what: str
    table: str | None = None
    column: str = ""
    against: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    ours: str = OURS


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


_ASYNC_PEERS: Final = ("aiocache", "cashews", "django-cachex", "redis.asyncio", "valkey-glide")
_PUBLISH: Final = ("PUBLISH, redis.asyncio", "PUBLISH, bare connection")
_MANY: Final = ("get_many", "set_many", "delete_many", "warm_cache", "get_or_set_many")
_LARGE: Final = "1,000,000"
_TRACES: Final = ("zipf 0.7", "zipf 1.0", "zipf 1.2", "zipf and scans", "phases", "drift", "web", "recency")


def _series(
    what: str, table: str, against: tuple[str, ...], demanded: Mapping[str, float], ours: str = OURS
) -> tuple[Budget, ...]:
    return tuple(
        Budget(what.format(column), table, column, against, ratio, ours=ours) for column, ratio in demanded.items()
    )


def _threads(what: str, table: str) -> tuple[Budget, ...]:
    demanded = {"1": 1.2, "16": 3.0, "64": 4.5}
    return (
        *_series(f"blocking L2 hits, {what}, vs dogpile.cache, {{}} threads", table, ("dogpile.cache",), demanded),
        *_series(
            f"the same with L1 on, {what}, {{}} threads", table, ("dogpile.cache",), demanded, L1_ON,
        ),
    )  # fmt: skip


BUDGETS: Final[tuple[Budget, ...]] = (
    *_series(
        "async L2 hits vs aiocache, concurrency {}",
        "l2-async", ("aiocache",), {"1": 1.0, "10": 4.0, "100": 13.0, "1000": 20.0},
    ),
    *_series("async L2 hits vs valkey-glide, concurrency {}", "l2-async", ("valkey-glide",), {"100": 5.0, "1000": 6.0}),
    *_series(
        "async L2 hits vs the fastest peer, concurrency {}",
        "l2-async", _ASYNC_PEERS, dict.fromkeys(("1", "10", "100", "1000"), 1.0),
    ),
    *_series(
        "share of the raw protocol's throughput, concurrency {}",
        "l2-async", ("raw + msgpack",), {"10": 0.6, "100": 0.6, "1000": 0.6},
    ),
    *_threads("get", "l2-threads"),
    *_threads("decorated", "l2-threads-decorated"),
    *_threads("get over a UNIX socket", "l2-threads-unix"),
    *_threads("get over TLS", "l2-threads-tls"),
    *_series(
        "async L1 hit vs async-lru, {}", "l1-async", ("async-lru",),
        {"str": 2.0, "int": 2.0, "1,000 keys": 2.0, "method": 1.5, "key_func": 1.5},
    ),
    Budget("async L1 hit vs async-lru, a million entries", "l1-large", f"async, {_LARGE}, zipf", ("async-lru",), 2.0),
    *_series(
        "sync L1 hit vs cachetools.cached, {}", "l1-sync", ("cachetools",),
        {"str": 2.5, "int": 2.5, "1,000 keys": 2.5, "method": 1.5, "key_func": 1.5},
    ),
    *_series(
        "L1 hit vs async-lru, {}", "l1-kinds", ("async-lru",),
        dict.fromkeys(("async two arguments", "async keyword", "async template"), 1.5),
    ),
    *_series(
        "L1 hit vs cachetools, {}", "l1-kinds", ("cachetools",),
        dict.fromkeys(("sync two arguments", "sync keyword", "sync template"), 1.5),
    ),
    Budget("sync L1 hit vs cachetools, a million entries", "l1-large", f"sync, {_LARGE}, zipf", ("cachetools",), 2.5),
    *_series("async L1 hit vs aiocache memory, {}", "l1-async", ("aiocache",), {"str": 25.0, "1,000 keys": 25.0}),
    *_series("async L1 hit vs cashews memory, {}", "l1-async", ("cashews",), {"str": 50.0, "1,000 keys": 50.0}),
    *(Budget(f"{call}: microseconds of CPU time a key", "many", call, at_most=8.0) for call in _MANY),
    *(Budget(f"{call}: milliseconds that the loop is held up", "many-stalls", call, at_most=5.0) for call in _MANY),
    *(
        Budget(f"milliseconds for which a large {call} holds up the loop", "stalls", call, at_most=5.0)
        for call in ("set", "get, memory", "get, Redis", "set_many", "get_many, memory", "get_many, Redis")
    ),
    *(
        Budget(f"a key of a cluster, {column}: share of the raw protocol", "cluster", column, ("raw + msgpack",), 0.66)
        for column in ("get, 100", "get, 1000", "get_many")
    ),
    Budget("bytes of an L1 entry beyond key and value", "l1-memory", "100,000 entries", at_most=150.0),
    Budget("longest pause with a million L1 entries, milliseconds", "l1-pause", f"{_LARGE} entries", at_most=5.0),
    # Times are compared as ratios, theirs to ours: at most 1.2 times the time is a ratio of at least 1/1.2.
    *_series(
        "first get at most 1.2x the time of redis.asyncio's, {}",
        "first-get", ("redis.asyncio",), dict.fromkeys((GET, CLIENT), 1 / 1.2),
    ),
    Budget("import at most a quarter of the time of redis.asyncio's", "import", "ms", ("redis.asyncio",), 4.0),
    *_series(
        "invalidation vs a PUBLISH, {} at most 1.5x the time",
        "invalidation", _PUBLISH, dict.fromkeys(("set p50", "delete p50"), 1 / 1.5),
    ),
    *_series(
        "invalidation vs a PUBLISH, {} at most 2x the time",
        "invalidation", _PUBLISH, dict.fromkeys(("set p99", "delete p99"), 1 / 2),
    ),
    # A trace of which an exact LRU keeps nothing has no ratio to it.
    *_series(
        "hits of the default policy vs an exact LRU, {}", "eviction", ("policy lru",),
        dict.fromkeys(_TRACES, 0.99),
    ),
    Budget("loads for 8 processes x 100 tasks on one cold key", "cold-key", "loads", at_most=1.0),
)  # fmt: skip


def judge(tables: Mapping[str, Table], budgets: tuple[Budget, ...] = BUDGETS) -> list[Verdict]:
    """Hold what was measured against the budgets."""
    return [_judged(budget, tables) for budget in budgets]


def runs_met(runs: Sequence[Sequence[Verdict]]) -> list[tuple[int, int]]:
    """Return for each budget how many runs met it, and how many measured it."""
    return [
        (sum(one.outcome == "met" for one in verdicts), sum(one.measured is not None for one in verdicts))
        for verdicts in zip(*runs, strict=True)
    ]


def _judged(budget: Budget, tables: Mapping[str, Table]) -> Verdict:
    if budget.table is None:
        return Verdict(budget, "not measured yet")
    table = tables.get(budget.table)
    if table is None:
        return Verdict(budget, "not measured")
    if budget.at_most is not None:
        figure = table.median(budget.column, budget.ours)
        return _verdict(budget, figure, figure is not None and figure <= budget.at_most, None)
    peer = table.best(budget.column, budget.against)
    ratio = None if peer is None else table.advantage(budget.column, budget.ours, peer)
    return _verdict(budget, ratio, ratio is not None and ratio >= (budget.at_least or 0.0), peer)


def _verdict(budget: Budget, measured: float | None, kept: bool, against: str | None) -> Verdict:
    if measured is None:
        return Verdict(budget, "not measured")
    return Verdict(budget, "met" if kept else "NOT met", measured, against)
