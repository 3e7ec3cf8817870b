"""The benchmarks that one command runs, in their order.

To add one, write a function that takes a `Plan` and returns a `Table`, or several, and list it here. Its budgets go to
`benchmarks.budgets`. It asks `Plan.turns` whose turn it is, so that rounds interleave and progress shows.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from benchmarks.cluster import cluster_calls
from benchmarks.coherence import clears, invalidations
from benchmarks.cold_key import cold_key
from benchmarks.costs import entry_memory, import_time, pauses
from benchmarks.first_get import first_get
from benchmarks.guide import guide
from benchmarks.head_of_line import head_of_line
from benchmarks.latency import latencies
from benchmarks.many import many_keys
from benchmarks.memory_hits import async_hits, blocking_hits, call_kinds, large_hits
from benchmarks.misses import misses
from benchmarks.near_hits import near_hits
from benchmarks.plan import Plan
from benchmarks.policies import policies
from benchmarks.redis_hits import async_redis_hits
from benchmarks.stalls import stalls
from benchmarks.tables import Table
from benchmarks.thread_hits import blocking_redis_hits, costs, decorated_redis_hits
from benchmarks.thread_ways import tls_hits, unix_hits

__all__ = ["SUITES", "Suite", "tables_of"]


class Suite(NamedTuple):
    """A benchmark.

    :ivar name: what ``--only`` calls it; also the name of its table, or of the first.
    :ivar run: measures.
    :ivar others: names of further tables.
    """

    name: str
    run: Callable[[Plan], Table | tuple[Table, ...]]
    others: tuple[str, ...] = ()


SUITES: Final = (
    # In a process that is still small: garbage collections get slower with what lives.
    Suite("import", import_time),
    Suite("first-get", first_get),
    Suite("l1-memory", entry_memory),
    Suite("l1-pause", pauses),
    Suite("l1-async", async_hits),
    Suite("l1-sync", blocking_hits),
    Suite("l1-kinds", call_kinds),
    Suite("near", near_hits),
    Suite("l2-async", async_redis_hits),
    Suite("latency", latencies),
    Suite("head-of-line", head_of_line),
    Suite("l2-threads", blocking_redis_hits),
    Suite("l2-threads-decorated", decorated_redis_hits),
    Suite("l2-threads-unix", unix_hits),
    Suite("l2-threads-tls", tls_hits),
    Suite("l2-thread-cpu", costs),
    Suite("miss", misses),
    Suite("many", many_keys, ("many-stalls",)),
    Suite("stalls", stalls),
    Suite("cluster", cluster_calls, ("cluster-failover",)),
    Suite("invalidation", invalidations),
    Suite("clear", clears),
    Suite("cold-key", cold_key),
    Suite("eviction", policies),
    Suite("guide", guide),
    # Last, as it leaves the most behind.
    Suite("l1-large", large_hits),
)


def tables_of(suite: Suite, plan: Plan) -> dict[str, Table]:
    """Run a benchmark and return its tables by name."""
    found = suite.run(plan)
    return {table.name: table for table in ((found,) if isinstance(found, Table) else found)}
