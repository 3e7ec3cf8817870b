"""What a source has, what caches were told, and whether a read got what it must not.

Four things hold at any time:

(a) what a process has invalidated itself, it is never served again, whether or not Redis could be told;
(b) what a peer has invalidated, and Redis was told of, no connected process is served beyond the staleness bound;
(c) what was invalidated in an outage is told on the return, and from then on (b) holds for it as well;
(d) nobody is served what has aged beyond its time to live and its grace, with Redis or without.

A process that cannot reach Redis serves what it has: only (a) holds for it, until it is back and a bound has passed.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from magnus_cache._engine.coordination.state import State
from tests.chaos.trail import Trail

__all__ = ["Cache", "Ledger", "Stale"]


_LATE = 1.0
"""Seconds from the beginning of a load, which its age is counted from here, to the storing of its value."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A read that got what it must not."""

    rule: str
    key: str
    got: int
    floor: int
    cache: int
    seconds: float
    """Since the invalidation."""
    trail: list[str]
    """What happened to the value before."""


@dataclass
class Cache:
    """What is known of one process's cache, as the rules need it."""

    number: int
    state: State
    floors: dict[str, int] = field(default_factory=dict)
    """The oldest version that (a) allows."""
    untold: list[tuple[str, int]] = field(default_factory=list)
    """Invalidations that Redis could not be told of."""
    apart: float = 0.0
    """When it last was without Redis."""


class Ledger:
    """The source and the judge. Thread-safe. Versions grow, one count for all keys.

    :param bound: seconds.
    :param strict: whether (b) holds while Redis is away, too: caches that serve nothing then, see `Namespace.offline`.
    :ivar trail: what happens to the values.
    :ivar place_of: returns the name of a key's value, and how the names of the epochs begin that cover it.
    """

    def __init__(self, bound: float, *, strict: bool = False) -> None:
        self.bound = bound
        self.strict = strict
        self.trail = Trail()
        self.place_of: Callable[[str], tuple[bytes, list[bytes]]] = lambda key: (key.encode(), [])
        self.loads = 0
        self.stale: list[Stale] = []
        self._lock = threading.Lock()
        self._versions: dict[str, int] = {}
        self._last = 0
        self._told: dict[str, tuple[list[float], list[int]]] = {}

    def load(self, key: str) -> list[Any]:
        """Return what the source has now."""
        with self._lock:
            self.loads += 1
            return [key, self._versions.get(key, 0), time.monotonic()]

    def written(self, key: str, versions: dict[str, int]) -> list[Any]:
        """Return the value that makes a change known by overwriting."""
        return [key, versions[key], time.monotonic()]

    def change(self, keys: list[str]) -> dict[str, int]:
        """Change the source; the caches are to be told next."""
        with self._lock:
            for key in keys:
                self._last += 1
                self._versions[key] = self._last
            return {key: self._versions[key] for key in keys}

    def told(self, cache: Cache, versions: dict[str, int]) -> None:
        """Note that a cache has been told, and returned."""
        now = time.monotonic()
        told = "told Redis" if not cache.state.outbox.pending else "told, and Redis was not"
        for key, version in versions.items():
            self.trail.note(self.place_of(key)[0], cache.number, f"version {version} of the source: {told}")
        with self._lock:
            for key, version in versions.items():
                cache.floors[key] = max(cache.floors.get(key, 0), version)
                if cache.state.outbox.pending:
                    cache.untold.append((key, version))
                else:
                    self._publish(key, version, now)

    def look(self, caches: list[Cache]) -> None:
        """Note who is apart from Redis, and what it was told at last. To be called all the time."""
        now = time.monotonic()
        for cache in caches:
            if not cache.state.reachable:
                cache.apart = now
            if cache.untold and not cache.state.outbox.pending:
                with self._lock:
                    for key, version in cache.untold:
                        self._publish(key, version, now)
                    cache.untold.clear()

    def _publish(self, key: str, version: int, now: float) -> None:
        moments, versions = self._told.setdefault(key, ([], []))
        moments.append(now)
        versions.append(version)

    def begins(self, cache: Cache, key: str) -> int:
        """Return the oldest version that a read may get by (a) which begins now."""
        with self._lock:
            return cache.floors.get(key, 0)

    def ended(self, cache: Cache, key: str, value: Any, began: float, floor: int, life: float | None = None) -> None:
        """Judge what a read got.

        :param life: seconds that a value may be served for after it was loaded.
        """
        assert value[0] == key, f"{key} got the value of {value[0]}"
        got: int = value[1]
        self.trail.note(self.place_of(key)[0], cache.number, f"a read that began at {began:.4f} got {got}")
        if got < floor:
            self._accuse("a", key, got, floor, cache, 0.0)
        if life is not None and (age := began - value[2]) > life + _LATE:
            self._accuse("d", key, got, got, cache, age - life)
        # Without Redis now, or a moment ago: what it serves may be what it had.
        if not self.strict and (not cache.state.reachable or began - cache.apart <= self.bound):
            return
        with self._lock:
            moments, versions = self._told.get(key, ([], []))
            due = bisect_left(moments, began - self.bound)
            newest = max(versions[:due], default=0)
            if got < newest:
                first = next(index for index, top in enumerate(accumulate(versions, max)) if top > got)
                self._accuse("b", key, got, newest, cache, began - moments[first])

    def _accuse(self, rule: str, key: str, got: int, floor: int, cache: Cache, seconds: float) -> None:
        self.stale.append(Stale(rule, key, got, floor, cache.number, seconds, self.trail.of(*self.place_of(key))))
