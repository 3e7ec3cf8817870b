"""What the cache costs besides time: memory of an entry, pauses of the garbage collector, the import."""

import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, Plan, settle
from benchmarks.tables import OURS, Table
from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.memory.tiers import HOT

__all__ = ["entry_memory", "import_time", "pauses"]

_IMPORTS: Final = {OURS: "magnus_cache", "redis.asyncio": "redis.asyncio"}
_TTL: Final = 60


# -- memory ---------------------------------------------------------------------------------------------------


def entry_memory(plan: Plan) -> Table:
    """Return the bytes that an entry takes beyond its key and its value."""
    column = f"{plan.entries:,} entries"
    table = Table("l1-memory", "An L1 entry beyond key and value", "bytes", less_is_better=True)
    table.note("Key and value are distinct strings; every store keeps the value itself.")
    table.note(f"Ours keeps {HOT:,} entries as objects and packs the others: with more entries, each takes less.")
    table.add(column, OURS, _our_entry(plan))
    with if_installed(table, "cachetools"):
        import cachetools

        table.add(column, "cachetools TTLCache", _mapping_entry(cachetools.TTLCache(plan.entries, _TTL), plan.entries))
        table.add(column, "cachetools LRUCache", _mapping_entry(cachetools.LRUCache(plan.entries), plan.entries))
    table.add(column, "dict", _mapping_entry({}, plan.entries))
    return table


def _key(number: int) -> str:
    return f"user:{number:08}"


def _value(number: int) -> str:
    return f"value {number:08} {'.' * 80}"


_STRINGS: Final = sys.getsizeof(_key(0)) + sys.getsizeof(_value(0))


def _our_entry(plan: Plan) -> float:
    # No Redis: what is measured is the store.
    namespace = Namespace("entries", ttl=_TTL * 60)
    with CacheManager(
        redis_enabled=False, prefix=PREFIX, l1_max_entries=2 * plan.entries, l1_max_bytes=2_000 * plan.entries
    ) as manager:
        manager.set(namespace, "first", "starts all that starts once")
        name = f"{PREFIX}:{namespace}:{_key(0)}".encode()
        # The key that is kept is Redis' name for the value, as bytes.
        extra = sys.getsizeof(name) + sys.getsizeof(_value(0))

        def fill() -> None:
            manager.set_many(namespace, {_key(number): _value(number) for number in range(plan.entries)})

        taken = _allocated(fill)
        kept = manager.get_stats()["in_memory_keys"]
        assert kept == plan.entries + 1, f"{kept} entries are left of {plan.entries}"
    return taken / plan.entries - extra


def _mapping_entry(mapping: MutableMapping[str, str], entries: int) -> float:
    def fill() -> None:
        for number in range(entries):
            mapping[_key(number)] = _value(number)

    return _allocated(fill) / entries - _STRINGS


def _allocated(fill: Callable[[], object]) -> int:
    """Return the bytes that `fill` allocates and that outlive it."""
    gc.collect()
    tracemalloc.start()
    try:
        fill()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


# -- pauses ---------------------------------------------------------------------------------------------------

_STEP: Final = 10_000


def pauses(plan: Plan) -> Table:
    """Return the milliseconds for which a full garbage collection stops everything, beside a cache full of entries."""
    column = f"{plan.large:,} entries"
    table = Table("l1-pause", "A full garbage collection while the L1 is full", "ms", less_is_better=True)
    table.note("Only what the cache holds is walked: all else is frozen. Keys and values are distinct strings.")
    with _full_manager(plan):
        _time_collections(plan, table, column, OURS)
    with if_installed(table, "cachetools"):
        import cachetools

        timed: cachetools.TTLCache[str, str] = cachetools.TTLCache(plan.large, _TTL)
        _fill_mapping(plan, timed)
        _time_collections(plan, table, column, "cachetools TTLCache")
        del timed
    plain: dict[str, str] = {}
    _fill_mapping(plan, plain)
    _time_collections(plan, table, column, "dict")
    return table


@contextmanager
def _full_manager(plan: Plan) -> Iterator[None]:
    namespace, room = Namespace("pauses", ttl=_TTL * 60), 2 * plan.large
    with CacheManager(redis_enabled=False, prefix=PREFIX, l1_max_entries=room, l1_max_bytes=2_000 * room) as manager:
        manager.set(namespace, "first", "starts all that starts once")
        settle()
        for start in range(0, plan.large, _STEP):
            numbers = range(start, min(start + _STEP, plan.large))
            plan.progress(f"filling {OURS}: {start:,} of {plan.large:,}")
            manager.set_many(namespace, {_key(number): _value(number) for number in numbers})
        yield


def _fill_mapping(plan: Plan, mapping: MutableMapping[str, str]) -> None:
    settle()
    for number in range(plan.large):
        mapping[_key(number)] = _value(number)


def _time_collections(plan: Plan, table: Table, column: str, contender: str) -> None:
    for _ in range(plan.rounds):
        start = time.perf_counter_ns()
        gc.collect()
        table.add(column, contender, (time.perf_counter_ns() - start) / 1e6)


# -- import ---------------------------------------------------------------------------------------------------

_TIME_IMPORT: Final = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_time(plan: Plan) -> Table:
    """Return the milliseconds that the import takes in a fresh interpreter, its own start left out."""
    table = Table("import", "Import in a fresh interpreter", "ms", less_is_better=True)
    for module in _IMPORTS.values():
        _import_seconds(module)  # writes the byte code
    for name in plan.turns(_IMPORTS):
        table.add("ms", name, _import_seconds(_IMPORTS[name]) * 1000)
    return table


def _import_seconds(module: str) -> float:
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", _TIME_IMPORT.format(module)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=root)
    return float(done.stdout)
