"""``python -m benchmarks``: measure, print the tables and the budgets, write the JSON."""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis

from benchmarks.budgets import judge
from benchmarks.coherence import clears, invalidations
from benchmarks.costs import entry_memory, import_time, misses
from benchmarks.memory_hits import async_hits, blocking_hits
from benchmarks.plan import PREFIX, Plan
from benchmarks.redis_hits import async_redis_hits
from benchmarks.report import budget_text, facts, figures, table_text
from benchmarks.stalls import stalls
from benchmarks.tables import Table
from benchmarks.thread_hits import blocking_redis_hits
from magnus_cache.embedded import EmbeddedServer

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS: Final[dict[str, Callable[[Plan], Table]]] = {
    # In a process that is still small: garbage collections get slower with what lives.
    "import": import_time,
    "l1-memory": entry_memory,
    "l1-async": async_hits,
    "l1-sync": blocking_hits,
    "l2-async": async_redis_hits,
    "l2-threads": blocking_redis_hits,
    "miss": misses,
    "invalidation": invalidations,
    "clear": clears,
    "stalls": stalls,
}
"""The benchmarks by name, in the order in which they run."""

_FULL: Final = (9, 0.3, 100_000, 1_000_000)
_QUICK: Final = (3, 0.1, 100_000, 100_000)
"""Rounds, seconds of a turn, entries in memory, values to be cleared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for; return 0, whatever the budgets say: noise is no failure."""
    options = _parser().parse_args(arguments)
    if options.pin is not None:
        # Before the server starts: it inherits the core.
        os.sched_setaffinity(0, {options.pin})
    with _server(options.server_url) as (host, port):
        rounds, turn, entries, cleared = _QUICK if options.quick else _FULL
        plan = Plan(
            options.rounds or rounds, options.turn or turn, options.entries or entries, options.cleared or cleared,
            host, port,
        )  # fmt: skip
        tables = _run(plan, options.only or list(BENCHMARKS))
        machine = facts(_server_version(plan))
        _clean_up(plan)
    verdicts = judge(tables)
    print(budget_text(verdicts))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures(tables, verdicts, machine), indent=1) + "\n", encoding="utf-8")
    print(f"\n{', '.join(f'{name}: {value}' for name, value in machine.items())}\nwritten to {options.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: an impression within 40 s")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one; may be given repeatedly")
    parser.add_argument("--json", type=Path, default=Path(".reports/bench.json"), help="where to write (%(default)s)")
    parser.add_argument("--server-url", help="use this server, redis://host:port, instead of starting one")
    parser.add_argument("--pin", type=int, metavar="CORE", help="run everything, the server too, on one core")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender")
    parser.add_argument("--turn", type=float, metavar="SECONDS", help="length of a contender's turn")
    parser.add_argument("--entries", type=int, metavar="N", help="entries in memory when their size is measured")
    parser.add_argument("--cleared", type=int, metavar="N", help="values in the namespace whose clear is measured")
    return parser


def _run(plan: Plan, names: Sequence[str]) -> dict[str, Table]:
    tables = {}
    for name in names:
        start = time.perf_counter()
        try:
            tables[name] = BENCHMARKS[name](plan)
        finally:
            gc.unfreeze()  # what `settle` froze may be garbage by now
        print(table_text(tables[name]), end="\n\n", flush=True)
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return tables


@contextmanager
def _server(url: str | None) -> Iterator[tuple[str, int]]:
    if url is not None:
        parts = urlsplit(url)
        yield parts.hostname or "127.0.0.1", parts.port or 6379
        return
    with EmbeddedServer() as server:
        yield "127.0.0.1", server.port


def _server_version(plan: Plan) -> str:
    with redis.Redis.from_url(plan.url) as client:
        info = client.info("server")
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"


def _clean_up(plan: Plan) -> None:
    """Remove what was written, from a server that is not ours."""
    with redis.Redis.from_url(plan.url) as client:
        for name in client.scan_iter(f"{PREFIX}*", count=1000):
            client.unlink(name)


if __name__ == "__main__":
    sys.exit(main())
