"""Hit ratios of the eviction policies, on traces of names: ``python -m benchmarks.eviction``.

The same local cache as in production, without Redis: the ratio of an exact LRU of the same size, and of the others.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final, get_args

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.policy import PolicyName
from magnus_cache._engine.memory.store import LocalCache

__all__ = ["TRACES", "hit_ratio", "main"]

SIZE: Final = 1_000
"""Entries of the cache; each trace is made for this size."""

_COUNT: Final = 100_000
_FOREVER: Final = Trust(float("inf"))


def hit_ratio(trace: Iterable[int], size: int, policy: PolicyName, hot: int = 1 << 14) -> float:
    """Return the share of hits of a cache that stores each name that it misses.

    :param hot: entries that the cache keeps as objects.
    """
    memory = LocalCache(size, 1 << 40, lambda: 0.0, policy=policy, hot=hot)
    hits = count = 0
    for number in trace:
        name = b"%d" % number
        count += 1
        if memory.hit(name) is not None:
            hits += 1
            continue
        placeholder = memory.reserve(name)
        memory.fill(placeholder, Entry(number, None, 1.0, _FOREVER, 10))
        memory.release(placeholder)
    return hits / count


def zipf(names: int, skew: float, count: int, seed: int) -> list[int]:
    """Return names as popular as their rank to the power of minus `skew`."""
    chance = random.Random(seed)
    sums = list(accumulate(1 / (rank + 1) ** skew for rank in range(names)))
    return [bisect_left(sums, chance.random() * sums[-1]) for _ in range(count)]


def scans(count: int) -> list[int]:
    """Return skewed traffic, which a scan of three times the cache's size interrupts now and then."""
    trace, next_name = [], 10**6
    for step, name in enumerate(zipf(20 * SIZE, 1.0, count, 2)):
        trace.append(name)
        if step % (15 * SIZE) == 15 * SIZE - 1:
            trace.extend(range(next_name, next_name + 3 * SIZE))
            next_name += 3 * SIZE
    return trace


def loop(count: int, share: float) -> list[int]:
    """Return names in a circle.

    :param share: its length, as a multiple of the cache's size.
    """
    return [step % int(SIZE * share) for step in range(count)]


def phases(count: int) -> list[int]:
    """Return traffic that moves on to other names at once, again and again."""
    chance = random.Random(3)
    return [step // (5 * SIZE) * 10**6 + chance.randrange(SIZE * 9 // 10) for step in range(count)]


def drift(count: int) -> list[int]:
    """Return traffic whose names change slowly."""
    return [name + step // 20 for step, name in enumerate(zipf(SIZE * 9 // 10, 0.6, count, 5))]


def web(count: int) -> list[int]:
    """Return skewed traffic that drifts, with a quarter of names that are never asked for again."""
    chance, trace = random.Random(7), []
    for step, name in enumerate(zipf(30 * SIZE, 0.9, count, 6)):
        once = chance.random() < 0.25
        trace.append(10**7 + step if once else (name * 7919 + step // (50 * SIZE) * 13 * (name % 3 == 0)) % (30 * SIZE))
    return trace


def recency(count: int) -> list[int]:
    """Return traffic that an LRU was made for: the more lately a name was asked for, the more likely it is again."""
    chance, stack, trace, fresh = random.Random(8), list(range(3 * SIZE)), [], 3 * SIZE
    for _ in range(count):
        depth = int(chance.expovariate(2.5 / SIZE))
        if depth < len(stack):
            name = stack.pop(len(stack) - 1 - depth)
        else:
            name, fresh = fresh, fresh + 1
        stack.append(name)
        trace.append(name)
        del stack[: max(0, len(stack) - 6 * SIZE)]
    return trace


TRACES: Final[dict[str, Callable[[int], list[int]]]] = {
    "zipf 0.7": lambda count: zipf(20 * SIZE, 0.7, count, 1),
    "zipf 1.0": lambda count: zipf(20 * SIZE, 1.0, count, 1),
    "zipf 1.2": lambda count: zipf(20 * SIZE, 1.2, count, 1),
    "zipf and scans": scans,
    "loop, 1.2 x the cache": lambda count: loop(count, 1.2),
    "loop, 0.9 x the cache": lambda count: loop(count, 0.9),
    "phases": phases,
    "drift": drift,
    "web": web,
    "recency": recency,
}
"""The traces by name, each of a number of calls."""


def main(count: int = _COUNT) -> None:
    """Print a table of hit ratios in percent; in the last column most entries are packed records."""
    policies: tuple[PolicyName, ...] = get_args(PolicyName)
    print(f"{SIZE:,} entries, {count:,} calls a trace; hits in percent")
    print(f"{'':22}", *(f"{policy:>8}" for policy in policies), f"{'car, packed':>12}")
    for name, make in TRACES.items():
        trace = make(count)
        ratios = [hit_ratio(trace, SIZE, policy) for policy in policies]
        packed = hit_ratio(trace, SIZE, "car", SIZE // 10)
        print(f"{name:22}", *(f"{100 * ratio:8.2f}" for ratio in ratios), f"{100 * packed:12.2f}", flush=True)


if __name__ == "__main__":
    main()
