"""Hits in Redis from threads: a real exchange for every get, decoding included."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import msgpack
import redis
from dogpile.cache import make_region

from benchmarks.plan import PREFIX, SMALL_DICT, Plan, checked, settle
from benchmarks.redis_hits import NO_L1
from benchmarks.tables import OURS, Table, rotations
from magnus_cache import CacheManager

__all__ = ["blocking_redis_hits"]

Get = Callable[[str], Any]

_THREADS: Final = (1, 16, 64)
_KEYS: Final = [f"{PREFIX}:quote:{number}" for number in range(64)]


def blocking_redis_hits(plan: Plan) -> Table:
    """Return thousands of gets a second, by number of threads."""
    table = Table("l2-threads", "L2 hits by threads", "k/s", less_is_better=False)
    with ExitStack() as stack:
        contenders = {
            OURS: stack.enter_context(_ours(plan)),
            "dogpile.cache": stack.enter_context(_dogpile(plan)),
            "redis-py": stack.enter_context(_redis_py(plan)),
        }
        for name, get in contenders.items():
            for key in _KEYS:
                checked(get(key), SMALL_DICT, name)
        for threads in _THREADS:
            _compare(plan, table, contenders, threads)
    return table


def _compare(plan: Plan, table: Table, contenders: dict[str, Get], threads: int) -> None:
    counts = {name: _calibrated(get, threads, plan.turn) for name, get in contenders.items()}
    settle()
    for name in rotations(list(contenders), plan.rounds):
        table.add(str(threads), name, _rate(contenders[name], threads, counts[name]) / 1000)


def _calibrated(get: Get, threads: int, turn: float) -> int:
    """Return how many gets of each thread fill a turn. The first look only opens connections."""
    each = 2
    for share in (0.0, 0.25, 1.0):
        each = max(2, round(_rate(get, threads, each) * turn * share / threads))
    return each


def _rate(get: Get, threads: int, each: int) -> float:
    """Return gets a second while `threads` threads make `each` of them, one after the other.

    :raises BaseException: what the first failing thread raised.
    """
    start, ends, errors = threading.Barrier(threads + 1), list[float](), list[BaseException]()

    def reads(number: int) -> None:
        start.wait()
        try:
            for turn in range(each):
                get(_KEYS[(number + turn) % len(_KEYS)])
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


# -- the contenders -------------------------------------------------------------------------------------------


@contextmanager
def _ours(plan: Plan) -> Iterator[Get]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        manager.set_many(NO_L1, dict.fromkeys(_KEYS, SMALL_DICT))
        yield partial(manager.get, NO_L1)


@contextmanager
def _dogpile(plan: Plan) -> Iterator[Get]:
    arguments = {"url": plan.url, "redis_expiration_time": 3600}
    region = make_region(key_mangler=lambda key: f"{PREFIX}-dogpile:{key}")
    region.configure("dogpile.cache.redis", expiration_time=3600, arguments=arguments)
    region.set_multi(dict.fromkeys(_KEYS, SMALL_DICT))
    yield region.get
    region.backend.reader_client.close()


@contextmanager
def _redis_py(plan: Plan) -> Iterator[Get]:
    with redis.Redis.from_url(plan.url) as client:
        client.mset(dict.fromkeys(_KEYS, msgpack.packb(SMALL_DICT)))
        yield lambda key: msgpack.unpackb(client.get(key))
