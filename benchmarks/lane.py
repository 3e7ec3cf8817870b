"""``python -m benchmarks.lane``: blocking threads that read from Redis, beside what else they could use.

The two tables of the full suite, on their own, and the CPU time of this process for one get of one thread.
"""

import argparse
import time
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit

from benchmarks.plan import Plan
from benchmarks.tables import Table
from benchmarks.thread_hits import blocking_redis_hits, decorated_redis_hits
from benchmarks.thread_peers import THREAD_KEYS, BlockingGet, getters
from magnus_cache.embedded import EmbeddedServer

__all__ = ["costs", "main"]

_PEER: Final = "dogpile.cache"
_GETS: Final = 512


def costs(plan: Plan) -> Table:
    """Return microseconds of CPU for one get of one thread."""
    table = Table("l2-thread-cpu", "CPU of one get by one thread", "us", less_is_better=True)
    with ExitStack() as stack:
        contenders = getters(plan, table, stack)
        for get in contenders.values():
            _cost(get)
        for name in plan.turns(contenders, "cpu"):
            table.add("cpu", name, _cost(contenders[name]))
    return table


def _cost(get: BlockingGet) -> float:
    began = time.process_time_ns()
    for key in THREAD_KEYS[:_GETS]:
        get(key)
    return (time.process_time_ns() - began) / _GETS / 1000


def main() -> None:
    """Measure on a server of its own, or the one of ``--server-url``; print medians, and ratios to dogpile.cache."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lane", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.2, help="seconds of a turn, about")
    parser.add_argument("--server-url", help="use this server, redis://host:port, instead of starting one")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.server_url:
            parts = urlsplit(options.server_url)
            host, port = parts.hostname or "127.0.0.1", parts.port or 6379
        else:
            host, port = "127.0.0.1", stack.enter_context(EmbeddedServer()).port
        plan = Plan(options.rounds, options.turn, 0, 0, host, port)
        for table in (blocking_redis_hits(plan), decorated_redis_hits(plan), costs(plan)):
            _show(table)


def _show(table: Table) -> None:
    print(f"\n{table.title}, {table.unit} (times as good as {_PEER})")
    for name in table.contenders:
        cells = [f"{table.median(column, name) or 0:8.1f} ({table.advantage(column, name, _PEER) or 0:.2f}x)"
                 for column in table.samples]  # fmt: skip
        print(f"{name:24}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'':24}" + "".join(f"{column:>20}" for column in table.samples))


if __name__ == "__main__":
    main()
