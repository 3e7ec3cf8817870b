"""``python -m benchmarks.lane``: blocking threads that read from Redis, beside what else they could use.

Each get is an exchange, or a part of one that several threads share, decoding included. "L1" reads values that are kept
in memory, over more keys than memory has room for, so that none is found there. CPU time is that of this process for
one get of one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.tables import Table, rotations
from benchmarks.thread_hits import dogpile_region, rate, redis_py
from magnus_cache import CacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer

__all__ = ["lane_hits", "main"]

Get = Callable[[str], Any]

_THREADS: Final = (1, 16, 64)
_KEYS: Final = [f"{PREFIX}:lane:{number}" for number in range(64)]
_FAR: Final = Namespace("lane-far", ttl=3600, l1=False)
_NEAR: Final = Namespace("lane-near", ttl=3600)
_ROOM: Final = 16
"""Entries in memory: fewer than keys, which are read in turn, so that every one has gone when it is asked for again."""


def lane_hits(plan: Plan) -> tuple[Table, Table]:
    """Return thousands of gets a second by number of threads, and microseconds of CPU for one get of one thread."""
    rates = Table("lane", "L2 hits by threads", "k/s", less_is_better=False)
    costs = Table("lane-cpu", "CPU of one get, one thread", "us", less_is_better=True)
    with ExitStack() as stack:
        contenders = stack.enter_context(_contenders(plan))
        for name, get in contenders.items():
            for key in _KEYS * 3:
                checked(get(key), SMALL_DICT, name)
        for threads in _THREADS:
            counts = {name: _calibrated(get, threads, plan.turn) for name, get in contenders.items()}
            settle()
            for name in rotations(list(contenders), plan.rounds):
                rates.add(str(threads), name, rate(contenders[name], threads, counts[name], _KEYS) / 1000)
        for name in rotations(list(contenders), plan.rounds):
            costs.add("cpu", name, _cost(contenders[name]))
    return rates, costs


def _calibrated(get: Get, threads: int, turn: float) -> int:
    each = 2
    for share in (0.0, 0.25, 1.0):
        each = max(2, round(rate(get, threads, each, _KEYS) * turn * share / threads))
    return each


def _cost(get: Get) -> float:
    turns = 4
    began = time.process_time_ns()
    for _ in range(turns):
        for key in _KEYS:
            get(key)
    return (time.process_time_ns() - began) / (turns * len(_KEYS)) / 1000


@contextmanager
def _contenders(plan: Plan) -> Iterator[dict[str, Get]]:
    with ExitStack() as stack:
        manager = stack.enter_context(CacheManager(redis_url=plan.url, prefix=PREFIX, l1_max_entries=_ROOM))
        for namespace in (_FAR, _NEAR):
            manager.set_many(namespace, dict.fromkeys(_KEYS, SMALL_DICT))

        @manager.cached(_FAR)
        def far(key: str) -> dict[str, object]:
            return SMALL_DICT

        @manager.cached(_NEAR)
        def near(key: str) -> dict[str, object]:
            return SMALL_DICT

        yield {
            "get, no L1": partial(manager.get, _FAR),
            "get, L1": partial(manager.get, _NEAR),
            "cached, no L1": far,
            "cached, L1": near,
            "dogpile.cache": stack.enter_context(dogpile_region(plan, _KEYS)),
            "redis-py": stack.enter_context(redis_py(plan, _KEYS)),
        }


def main() -> None:
    """Measure on a server of its own, or the one of ``--server-url``, and print rates, CPU and ratios to dogpile."""
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
        rates, costs = lane_hits(Plan(options.rounds, options.turn, 0, 0, host, port))
    print(f"{'':16}" + "".join(f"{threads:>8} thr {'x dogpile':>10}" for threads in _THREADS) + f"{'us CPU':>10}")
    for name in rates.contenders:
        line = f"{name:16}"
        for threads in _THREADS:
            ratio = rates.advantage(str(threads), name, "dogpile.cache")
            line += f"{statistics.median(rates.samples[str(threads)][name]):>9.1f}k/s {ratio:>9.2f}x"
        print(line + f"{costs.median('cpu', name):>10.1f}")


if __name__ == "__main__":
    main()
