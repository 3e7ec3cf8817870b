"""How long a near cache of a million entries stops the process: ``python -m benchmarks.pauses [entries]``.

The longest single call of each kind, the longest full collection, and the bytes of an entry beyond its name and value.
"""

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Final

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry, TaggedEntry, pack_facts
from magnus_cache._engine.memory.store import LocalCache

__all__ = ["main"]

_ENTRIES: Final = 1_000_000
_FOREVER: Final = Trust(float("inf"))
_STAMPS: Final = (TagStamp("function", room=0),)
_CALLS: Final = 2_000


def main(count: int = _ENTRIES) -> None:
    """Print the figures."""
    memory = LocalCache(count, 1 << 34)
    names = [b"magnus:bench:%07d" % number for number in range(count)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        _fill(memory, names[number], number)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    took, worst = (after - before) / count - 5, dict[str, float]()
    print(f"{len(memory):,} entries, {took:.0f} bytes an entry beyond its name and value", flush=True)
    gc.collect()
    worst["full collection"] = _longest(lambda _: gc.collect(), 5)
    worst["hit"] = _longest(lambda number: bool(memory.hit(names[number * 7919 % len(names)])), _CALLS * 50)
    worst["fill, others evicted"] = _longest(lambda number: _fill(memory, b"new:%d" % number, number), _CALLS * 10)
    worst["one value of 1 GB"] = _longest(lambda number: _fill(memory, b"big:%d" % number, number, 1 << 30), 3)
    worst["sweep"] = _longest(lambda _: memory.sweep() >= 0, _CALLS)
    worst["clear of a prefix"] = _longest(lambda number: memory.clear(b"magnus:bench:%03d" % number), 200)
    worst["clear of all"] = _longest(lambda _: memory.clear(b""), 1)
    worst["sweep after it"] = _longest(lambda _: memory.sweep() >= 0, _CALLS)
    worst["invalidation"] = _longest(lambda number: memory.invalidate(names[number]), _CALLS * 50)
    worst["shrink"] = _longest(lambda _: memory.shrink(), _CALLS)
    for kind, seconds in worst.items():
        print(f"{kind:22} {1_000 * seconds:8.2f} ms at most")


def _fill(memory: LocalCache, name: bytes, number: int, size: int = 5) -> bool:
    made: Entry = TaggedEntry("value", None, 1e12, _FOREVER, size, pack_facts(2**63 + number, 0, 1_764_300_000_000_000))
    assert isinstance(made, TaggedEntry)
    made.stamps, made.epoch, made.generation = _STAMPS, 10**15, memory.generation
    placeholder = memory.reserve(name)
    stored = memory.fill(placeholder, made)
    memory.release(placeholder)
    return stored


def _longest(call: Callable[[int], object], count: int) -> float:
    """Return the seconds of processor time that the longest of many calls took."""
    longest = 0.0
    for number in range(count):
        start = time.thread_time()
        call(number)
        longest = max(longest, time.thread_time() - start)
    return longest


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else _ENTRIES)
