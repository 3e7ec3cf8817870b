"""A hit in memory, by the kind of call and the size of the cache: ``python -m benchmarks.hits``.

Each row compares one kind of call with the same call through the library that people would use for it: async-lru with a
time to live for coroutine functions, cachetools with a time to live and a lock for functions. Contenders take turns in
rounds within one process, by the CPU time of the thread; the ratio of a row is the median of the rounds' ratios.

Two sizes: a cache of a thousand entries, and one of a million, full, with every entry remembered as a hit would leave
it. In the large one, calls are drawn as they are in practice, some keys a thousand times as often as others (zipf), and
once evenly over all of it, where the processor has none of it in its caches.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import async_lru
import cachetools

from benchmarks.plan import SMALL_DICT
from magnus_cache import CacheManager, Namespace

__all__ = ["Row", "measure", "text"]

_TTL: Final = 36_000
_SMALL: Final = 1_000
_LARGE: Final = 1_000_000
_CALLS: Final = 10_000
"""Calls of a turn."""

_IN_LARGE: Final = ("async function", "sync function")


class _Wanted(NamedTuple):
    """What to measure."""

    sizes: Sequence[int]
    kinds: Sequence[str]
    values: Sequence[str]


class Call(NamedTuple):
    """One kind of call of ours, and of its peer; both take a key."""

    ours: Callable[[str], Any]
    peer: Callable[[str], Any]
    peer_name: str


@dataclass(slots=True)
class Row:
    """What was measured of one kind of call.

    :ivar ours: nanoseconds of a call, one for each round.
    :ivar peer: those of the peer.
    """

    kind: str
    value: str
    entries: int
    drawn: str
    peer_name: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer it is: the median of the rounds' ratios."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.ours, self.peer, strict=True))

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "kind": self.kind, "value": self.value, "entries": self.entries, "drawn": self.drawn,
            "peer": self.peer_name, "ns": statistics.median(self.ours), "peer_ns": statistics.median(self.peer),
            "ratio": self.ratio, "rounds": {"ours": self.ours, "peer": self.peer},
        }  # fmt: skip


# -- the contenders -----------------------------------------------------------------------------------------------


def _value_of(kind: str) -> Callable[[str], Any]:
    return (lambda key: "value " + key) if kind == "str" else (lambda key: {**SMALL_DICT, "ticker": key})


class _Ours:
    """Functions and methods decorated by this library, as users would write them."""

    def __init__(self, manager: CacheManager, make: Callable[[str], Any], entries: int) -> None:
        # What these functions close over is left out, as a function of a module closes over nothing: the namespaces
        # tell them apart.
        def cached(kind: str, function: Any, **options: Any) -> Any:
            left_out = () if "key_func" in options else ("make",)
            return manager.cached(Namespace(f"{kind}-{entries}", ttl=_TTL), exclude=left_out, **options)(function)

        async def quote(key: str) -> Any:
            return make(key)

        async def quotes(key: str, days: int = 5) -> Any:
            return make(key)

        def price(key: str) -> Any:
            return make(key)

        def prices(key: str, days: int = 5) -> Any:
            return make(key)

        self.a_function, self.a_two, self.a_keyword = cached("af", quote), cached("a2", quotes), cached("ak", quotes)
        self.a_key_func = cached("akf", quote, key_func=lambda key: key)
        self.a_template = cached("at", quote, key="{key}")
        self.s_function, self.s_two, self.s_keyword = cached("sf", price), cached("s2", prices), cached("sk", prices)
        self.s_key_func = cached("skf", price, key_func=lambda key: key)
        self.s_template = cached("st", price, key="{key}")
        _Service.make = staticmethod(make)

        class Service(_Service):
            @manager.cached(Namespace(f"am-{entries}", ttl=_TTL))
            async def quote(self, key: str) -> Any:
                return _Service.make(key)

            @manager.cached(Namespace(f"sm-{entries}", ttl=_TTL))
            def price(self, key: str) -> Any:
                return _Service.make(key)

        self.service: Any = Service()


class _Service:
    """Constructed without arguments, as clients and repositories are."""

    make: Any


def _calls(manager: CacheManager, kind: str, entries: int, wanted: Sequence[str]) -> Iterator[tuple[str, Call]]:
    """Yield the kinds of calls, each with contenders that are made when it is its turn."""
    make = _value_of(kind)
    ours = _Ours(manager, make, entries)
    lru: Any = async_lru.alru_cache(maxsize=entries, ttl=_TTL)
    reads = Namespace(f"get-{entries}", ttl=_TTL)

    def ttl_cache() -> Any:
        return cachetools.cached(cachetools.TTLCache(entries, _TTL), lock=threading.Lock())

    async def peer(key: str) -> Any:
        return make(key)

    async def peer_two(key: str, days: int = 5) -> Any:
        return make(key)

    def plain(key: str) -> Any:
        return make(key)

    def plain_two(key: str, days: int = 5) -> Any:
        return make(key)

    class Peer:
        @async_lru.alru_cache(maxsize=entries, ttl=_TTL)
        async def quote(self, key: str) -> Any:
            return make(key)

        @cachetools.cached(cachetools.TTLCache(entries, _TTL), lock=threading.Lock())
        def price(self, key: str) -> Any:
            return make(key)

    other, service = Peer(), ours.service
    async_lru_name, cachetools_name = "async-lru", "cachetools"

    def kinds() -> dict[str, Callable[[], Call]]:
        return {
            "async function": lambda: Call(ours.a_function, lru(peer), async_lru_name),
            "async two arguments": lambda: _two(ours.a_two, lru(peer_two), async_lru_name),
            "async keyword": lambda: _keyword(ours.a_keyword, lru(peer_two), async_lru_name),
            "async method": lambda: Call(lambda key: service.quote(key), lambda key: other.quote(key), async_lru_name),
            "async key_func": lambda: Call(ours.a_key_func, lru(peer), async_lru_name),
            "async template": lambda: Call(ours.a_template, lru(peer), async_lru_name),
            "async get": lambda: _get(manager.aio.get, reads, lru(peer), async_lru_name),
            "sync function": lambda: Call(ours.s_function, ttl_cache()(plain), cachetools_name),
            "sync two arguments": lambda: _two(ours.s_two, ttl_cache()(plain_two), cachetools_name),
            "sync keyword": lambda: _keyword(ours.s_keyword, ttl_cache()(plain_two), cachetools_name),
            "sync method": lambda: Call(lambda key: service.price(key), lambda key: other.price(key), cachetools_name),
            "sync key_func": lambda: Call(
                ours.s_key_func,
                cachetools.cached(cachetools.TTLCache(entries, _TTL), key=lambda key: key, lock=threading.Lock())(
                    plain
                ),
                cachetools_name,
            ),
            "sync template": lambda: Call(ours.s_template, ttl_cache()(plain), cachetools_name),
            "sync get": lambda: _get(manager.get, reads, ttl_cache()(plain), cachetools_name),
        }

    for name, call in kinds().items():
        if not wanted or name in wanted:
            yield name, call()


# As a program calls them: through one more function, the same for both.


def _two(ours: Any, peer: Any, peer_name: str) -> Call:
    return Call(lambda key: ours(key, 5), lambda key: peer(key, 5), peer_name)


def _keyword(ours: Any, peer: Any, peer_name: str) -> Call:
    return Call(lambda key: ours(key=key, days=6), lambda key: peer(key=key, days=6), peer_name)


def _get(get: Any, namespace: Namespace, peer: Any, peer_name: str) -> Call:
    return Call(lambda key: get(namespace, key), peer, peer_name)


# -- measuring ----------------------------------------------------------------------------------------------------


async def _turn_async(call: Callable[[str], Awaitable[Any]], keys: Sequence[str]) -> float:
    start = time.thread_time_ns()
    for key in keys:
        await call(key)
    return (time.thread_time_ns() - start) / len(keys)


def _turn(call: Callable[[str], Any], keys: Sequence[str]) -> float:
    start = time.thread_time_ns()
    for key in keys:
        call(key)
    return (time.thread_time_ns() - start) / len(keys)


def _draws(entries: int, rounds: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield how keys are drawn, and the keys of each round: equal to those that are cached, and other objects."""
    chance = random.Random(17)
    if entries <= _SMALL:
        keys = list(range(entries)) * (_CALLS // entries)
        yield "each in turn", [[f"user:{number}" for number in keys] for _ in range(rounds)]
        return
    weights = list(accumulate(1 / rank for rank in range(1, entries + 1)))
    places = list(range(entries))
    chance.shuffle(places)
    yield (
        "zipf",
        [[f"user:{number}" for number in chance.choices(places, cum_weights=weights, k=_CALLS)] for _ in range(rounds)],
    )
    yield "even", [[f"user:{chance.randrange(entries)}" for _ in range(_CALLS)] for _ in range(rounds)]


async def _fill(call: Call, name: str, entries: int, manager: CacheManager, make: Callable[[str], Any]) -> None:
    """Load each value, and have each hit found once more, so that it is remembered."""
    if name.endswith(" get"):
        for number in range(entries):
            manager.set(Namespace(f"get-{entries}", ttl=_TTL), f"user:{number}", make(f"user:{number}"))
    for turn in range(4):
        for number in range(entries):
            key = f"user:{number}"
            if name.startswith("async"):
                await call.ours(key)
                if not turn:
                    await call.peer(key)
            else:
                call.ours(key)
                if not turn:
                    call.peer(key)


async def _measure(rows: list[Row], rounds: int, wanted: "_Wanted") -> None:
    for entries in wanted.sizes:
        # By default, few kinds in a large cache: to fill it takes a minute each.
        kinds = wanted.kinds or (() if entries <= _SMALL else _IN_LARGE)
        for value in wanted.values:
            make, room = _value_of(value), entries if entries > _SMALL else 20 * _SMALL
            with CacheManager(
                redis_enabled=False, prefix="hits", l1_max_entries=room, l1_max_bytes=4 * 2**30
            ) as manager:  # fmt: skip
                for name, call in _calls(manager, value, entries, kinds):
                    await _fill(call, name, entries, manager, make)
                    gc.collect()
                    gc.freeze()
                    for drawn, keys in _draws(entries, rounds):
                        row = Row(name, value, entries, drawn, call.peer_name)
                        await _rounds(row, call, keys)
                        rows.append(row)
                        print(text(row), flush=True)
                    gc.unfreeze()
                    manager.clear("hits:*")


async def _rounds(row: Row, call: Call, keys: list[list[str]]) -> None:
    for number, drawn in enumerate(keys):
        contenders = [(call.ours, row.ours), (call.peer, row.peer)]
        for contender, samples in contenders if number % 2 else reversed(contenders):
            if row.kind.startswith("async"):
                samples.append(await _turn_async(contender, drawn))
            else:
                samples.append(_turn(contender, drawn))


def measure(
    *, rounds: int = 9, sizes: Sequence[int] = (_SMALL, _LARGE), kinds: Sequence[str] = (),
    values: Sequence[str] = ("str", "dict"),
) -> list[Row]:  # fmt: skip
    """Measure some kinds of calls, and return their rows; each is printed once it is there.

    :param kinds: the kinds of calls; by default all in a small cache, and functions of one argument in a large one.
    """
    rows: list[Row] = []
    asyncio.run(_measure(rows, rounds, _Wanted(sizes, kinds, values)))
    return rows


def text(row: Row) -> str:
    """Return a row as a line of text."""
    return (
        f"{row.kind:20} {row.value:4} {row.entries:>9,} {row.drawn:12} "
        f"{statistics.median(row.ours):6.0f} ns  {row.peer_name} {statistics.median(row.peer):6.0f} ns  "
        f"{row.ratio:5.2f}x"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each contender (%(default)s)")
    parser.add_argument("--size", type=int, action="append", metavar="N", help="entries; may be given repeatedly")
    parser.add_argument("--only", action="append", metavar="KIND", help='one kind of call, such as "async function"')
    parser.add_argument("--value", action="append", choices=["str", "dict"], help="kinds of values; both by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    rows = measure(
        rounds=options.rounds, sizes=options.size or (_SMALL, _LARGE), kinds=options.only or (),
        values=options.value or ("str", "dict"),
    )  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps([row.figures() for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
