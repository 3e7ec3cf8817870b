"""Recorded accesses: random traffic of caches on a virtual clock, and what is in the files."""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.runtime.access_format import FRAME, SUFFIX
from magnus_cache.testing.clock import VirtualClock

__all__ = ["KEYS", "Traffic", "blocks_in", "files_in", "record_traffic"]

KEYS: Final = 40


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def blocks_in(file: Path) -> list[dict[str, Any]]:
    """Return the whole blocks of a file."""
    raw, at, blocks = file.read_bytes(), 0, list[dict[str, Any]]()
    while at + FRAME.size <= len(raw):
        _, length, _ = FRAME.unpack_from(raw, at)
        at += FRAME.size
        if at + length > len(raw):
            break
        blocks.append(msgpack.unpackb(zlib.decompress(raw[at : at + length])))
        at += length
    return blocks


@dataclass
class Traffic:
    """Random calls of one cached function: how many, of which kinds, and what may happen between them.

    :ivar failing: the share of loads that raise.
    :ivar steps: what time passes at once, in seconds.
    :ivar acts: whether the program also sets, deletes, clears and refreshes.
    """

    seed: int
    calls: int = 400
    failing: float = 0.0
    steps: Sequence[float] = (0.31, 0.97, 2.13)
    acts: bool = True
    policy: Mapping[str, Any] = field(default_factory=dict)


def record_traffic(
    folder: Path, clock: VirtualClock, traffic: Traffic, caches: Sequence[CacheManager]
) -> dict[str, int]:
    """Record random traffic of some caches, which take turns; close them, and return their counts."""
    rnd = random.Random(traffic.seed)
    policy: dict[str, Any] = {"ttl": 7.5, **traffic.policy}
    namespace = Namespace("t", **policy)
    fails = [False]

    def load(key: int) -> str:
        if fails[0]:
            raise LookupError(key)
        return str(key)

    for cache in caches:
        cache.record_accesses(folder)
    functions = [cache.cached(namespace, key="{key}", tags="of {key}")(load) for cache in caches]
    for _ in range(traffic.calls):
        place, key, dice = rnd.randrange(len(caches)), int(rnd.paretovariate(0.6)) % KEYS, rnd.random()
        fails[0] = rnd.random() < traffic.failing
        if dice < 0.06:
            clock.advance(rnd.choice(traffic.steps))
        elif traffic.acts and dice < 0.14:
            fails[0] = False
            acts: list[Callable[[], object]] = [
                lambda cache=caches[place], key=key: cache.delete(namespace, str(key)),
                lambda f=functions[place], key=key: f.invalidate(key),
                lambda cache=caches[place], key=key: cache.set(namespace, str(key), "set"),
                lambda cache=caches[place]: cache.clear(namespace),
                lambda cache=caches[place], key=key: cache.invalidate_tags(f"of {key}"),
                lambda f=functions[place], key=key: f.refresh(key),
            ]
            rnd.choice(acts)()
        else:
            try:
                functions[place](key)
            except LookupError:
                pass
    counts = [cache.get_stats()["namespaces"]["t"] for cache in caches]
    for cache in caches:
        cache.close()
    names = ("l1_hits", "l2_hits", "miss_count", "stale_hits", "negative_hits", "loads")
    return {name: sum(int(each[name]) for each in counts) for name in names}
