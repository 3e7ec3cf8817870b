"""Hits in Redis from threads: a real exchange for every get, decoding included."""

import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from benchmarks.plan import SMALL_DICT, Plan, checked, settle
from benchmarks.tables import Table
from benchmarks.thread_peers import L1_ON, THREAD_KEYS, BlockingGet, decorated, getters

__all__ = ["ThreadReader", "blocking_redis_hits", "costs", "decorated_redis_hits", "hits_of_get"]

_THREADS: Final = (1, 16, 64)
_GETS: Final = 512
"""Gets of one thread whose CPU time is measured at a time."""

_EACH_OF_MANY: Final = 64
"""Gets of each of many threads, likewise."""

_NOTE: Final = f"'{L1_ON}': with a near cache that has room for a few of the keys, so that it has none of those read."


def blocking_redis_hits(plan: Plan) -> Table:
    """Return thousands of gets a second, by number of threads."""
    table = Table("l2-threads", "L2 hits of get by threads", "k/s", less_is_better=False)
    hits_of_get(plan, table)
    return table


def hits_of_get(plan: Plan, table: Table) -> None:
    """Measure gets by number of threads."""
    table.note(_NOTE)
    with ExitStack() as stack:
        _measure(plan, table, getters(plan, table, stack))


def decorated_redis_hits(plan: Plan) -> Table:
    """Return thousands of hits a second of a decorated function, by number of threads."""
    title = "L2 hits of a decorated function by threads"
    table = Table("l2-threads-decorated", title, "k/s", less_is_better=False, notes=[_NOTE])
    with ExitStack() as stack:
        _measure(plan, table, decorated(plan, table, stack))
    return table


def costs(plan: Plan) -> Table:
    """Return microseconds of CPU for one get: of one thread, and of one among many.

    Unlike rates, they hold on a busy machine as well.
    """
    table = Table("l2-thread-cpu", "CPU of one get by one thread, and by many", "us", less_is_better=True)
    with ExitStack() as stack:
        contenders = getters(plan, table, stack)
        for get in contenders.values():
            _cost(get)
        for name in plan.turns(contenders, "cpu"):
            table.add("cpu", name, _cost(contenders[name]))
        readers = {name: ThreadReader(get) for name, get in contenders.items()}
        for threads in _THREADS[1:]:
            for name in plan.turns(contenders, f"cpu, {threads} threads"):
                table.add(f"{threads} threads", name, readers[name].cost(threads, _EACH_OF_MANY))
    return table


def _cost(get: BlockingGet) -> float:
    began = time.process_time_ns()
    for key in THREAD_KEYS[:_GETS]:
        get(key)
    return (time.process_time_ns() - began) / _GETS / 1000


def _measure(plan: Plan, table: Table, contenders: Mapping[str, BlockingGet]) -> None:
    for name, get in contenders.items():
        for key in THREAD_KEYS:
            checked(get(key), SMALL_DICT, name)
    readers = {name: ThreadReader(get) for name, get in contenders.items()}
    for threads in _THREADS:
        counts = {name: reader.calibrated(threads, plan.turn) for name, reader in readers.items()}
        settle()
        for name in plan.turns(contenders, f"{threads} threads"):
            table.add(str(threads), name, readers[name].rate(threads, counts[name]) / 1000)


class ThreadReader:
    """Reads all keys in turn, turn after turn: a key that comes again has long left a small near cache."""

    def __init__(self, get: BlockingGet) -> None:
        self._get = get
        self._next = 0

    def calibrated(self, threads: int, turn: float) -> int:
        """Return how many gets of each thread fill a turn. The first look only opens connections."""
        each = 2
        for share in (0.0, 0.25, 1.0):
            each = max(2, round(self.rate(threads, each) * turn * share / threads))
        return each

    def cost(self, threads: int, each: int) -> float:
        """Return microseconds of CPU for one get while `threads` threads make `each` of them."""
        began = time.process_time_ns()
        self.rate(threads, each)
        return (time.process_time_ns() - began) / (threads * each) / 1000

    def rate(self, threads: int, each: int) -> float:
        """Return gets a second while `threads` threads make `each` of them, one after the other.

        :raises BaseException: what the first failing thread raised.
        """
        start, ends, errors = threading.Barrier(threads + 1), list[float](), list[BaseException]()
        start_at, self._next = self._next, self._next + each

        def reads(number: int) -> None:
            # Far from each other: no thread reads what another has just read.
            first = start_at + number * len(THREAD_KEYS) // threads
            start.wait()
            try:
                for turn in range(each):
                    self._get(THREAD_KEYS[(first + turn) % len(THREAD_KEYS)])
            except BaseException as error:
                errors.append(error)
            ends.append(time.perf_counter())

        crew = [threading.Thread(target=reads, args=(number,)) for number in range(threads)]
        for thread in crew:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in crew:
            thread.join()
        if errors:
            raise errors[0]
        return threads * each / (max(ends) - began)
