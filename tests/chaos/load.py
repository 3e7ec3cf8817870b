"""Callers: half of them tasks, half threads, on two caches, over a few hundred keys. They read, load, write and delete.

A quarter of the keys has a policy of freshness, and a source that is now and then slow, or fails.
"""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from magnus_cache import AsyncCacheManager, Namespace
from tests.chaos.ledger import Cache, Ledger
from tests.chaos.world import Scene
from tests.support.loaders import SourceError

__all__ = ["Callers", "Seen"]

KEYS = [f"k{number}" for number in range(200)]
POLICY_KEYS = [f"p{number}" for number in range(200)]
TAGS = 10

TTL, GRACE = 0.4, 1.5
_RULES: dict[str, Any] = {"ttl": TTL, "grace": GRACE, "soft_timeout": 0.05, "early": 20, "retry": 0.2}
POLICY = Namespace("policy", **_RULES)
STRICT: dict[Any, Namespace] = {
    "chaos": Namespace("strict-chaos", offline=0), "written": Namespace("strict-written", offline=0),
    POLICY: Namespace("strict-policy", offline=0, **_RULES),
}  # fmt: skip
"""In place of the others where no read is excused: nothing is served while Redis is away."""

READS = frozenset({"load", "get"})
_KINDS = {"load": 70.0, "get": 20.0, "delete": 6.0, "delete_many": 2.0, "tag": 2.0, "set": 6.0, "clear": 0.1}
"""What callers do, and how often."""

_OF_OTHERS = 0.05
"""The share of the calls that are about the caller's own key."""

LOAD = 0.005
"""Seconds that the source takes."""

SLOW = 0.2
"""Seconds that it takes now and then where there is a policy for that."""

PAUSE = 0.08
"""Seconds on average between two calls of one caller: so that two cores suffice for two hundred."""


@dataclass
class Seen:
    """What callers saw since it was last asked."""

    latencies: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def tags(key: str) -> tuple[str, ...]:
    # What only one caller writes is not to be changed by others.
    return (f"{key[0]}tag{int(key[1:]) % TAGS}",) if key[0] in "kp" else ()


def place_of(key: str, *, strict: bool) -> tuple[bytes, list[bytes]]:
    """Return the name of a key's value, and how the names of the epochs that cover it, and the prefixes, begin."""
    plain = {"k": "chaos", "p": POLICY}.get(key[0], "written")
    namespace = str(STRICT[plain] if strict else plain)
    covers = [f"magnus!tag:{tag}" for tag in tags(key)]
    covers += [f"magnus!epoch:{namespace}", "magnus!epoch{", f"magnus:{namespace}:"]
    return f"magnus:{namespace}:{key}".encode(), [each.encode() for each in covers]


class Callers:
    """Two hundred callers, until they are told to stop."""

    def __init__(self, world: Scene, count: int = 200) -> None:
        self._world = world
        self._count = count
        self._over = threading.Event()
        self._seen = Seen()
        world.ledger.place_of = partial(place_of, strict=world.ledger.strict)
        for cache in world.caches:
            world.ledger.trail.name(cache.number, cache.state)

    def take(self) -> Seen:
        """Return what was seen so far, and begin anew."""
        seen, self._seen = self._seen, Seen()
        return seen

    async def run(self) -> None:
        """Let them call until `stop`."""
        threads = ThreadPoolExecutor(self._count // 2, thread_name_prefix="chaos")
        loop = asyncio.get_running_loop()
        try:
            blocking = [loop.run_in_executor(threads, self._thread, number) for number in range(self._count // 2)]
            await asyncio.gather(*(self._task(number) for number in range(self._count - self._count // 2)), *blocking)
        finally:
            self._over.set()
            threads.shutdown()

    def stop(self) -> None:
        self._over.set()

    def _call(self, which: int, dice: random.Random, own: str) -> "_Call":
        return _Call(self._world.ledger, self._world.caches[which], self._world.managers[which], dice, own)

    async def _task(self, number: int) -> None:
        dice, own = random.Random(number), f"own-task-{number}"
        while not self._over.is_set():
            which = dice.randrange(2)
            call = self._call(which, dice, own)
            began = time.monotonic()
            try:
                await call.awaited()
            except Exception as error:  # whatever it is, a caller has seen it
                self._seen.errors.append(error)
            self._seen.latencies.append(time.monotonic() - began)
            await asyncio.sleep(dice.expovariate(1 / PAUSE))

    def _thread(self, number: int) -> None:
        dice, own = random.Random(1000 + number), f"own-thread-{number}"
        while not self._over.is_set():
            which = dice.randrange(2)
            call = self._call(which, dice, own)
            began = time.monotonic()
            try:
                call.blocking()
            except Exception as error:  # likewise
                self._seen.errors.append(error)
            self._seen.latencies.append(time.monotonic() - began)
            self._over.wait(dice.expovariate(1 / PAUSE))


class _Call:
    """One call: which, on what, decided by dice.

    :param own: a key that this caller alone overwrites: of two that did at a time, either may be the last.
    """

    def __init__(self, ledger: Ledger, cache: Cache, manager: AsyncCacheManager, dice: random.Random, own: str) -> None:
        self._ledger = ledger
        self._cache = cache
        self._manager = manager
        self._kind = dice.choices([*_KINDS], [*_KINDS.values()])[0]
        self._namespace: str = dice.choices(["chaos", POLICY], [3, 1])[0]
        # Some keys are much asked for.
        number = min(int(dice.expovariate(1 / 40)), len(KEYS) - 1)
        self._key = (POLICY_KEYS if self._namespace is POLICY else KEYS)[number]
        if self._kind == "set" or dice.random() < _OF_OTHERS:
            self._namespace, self._key = "written", own
            if self._kind == "tag":
                self._kind = "set"
        # Decided here: what goes on when its caller has gone must not share its dice.
        self._fate = dice.choices(["good", "slow", "failing"], [90, 5, 5])[0] if self._namespace is POLICY else "good"
        self._takes = SLOW if self._fate == "slow" else LOAD

    def _loaded(self) -> list[Any]:
        value = self._ledger.load(self._key)
        if self._fate == "failing":
            raise SourceError
        return value

    @property
    def _place(self) -> Any:
        return STRICT[self._namespace] if self._ledger.strict else self._namespace

    @property
    def _options(self) -> dict[str, Any]:
        return {} if self._namespace is POLICY else {"ttl": 60}

    async def awaited(self) -> None:
        async def load() -> list[Any]:
            value = self._loaded()
            await asyncio.sleep(self._takes)
            return value

        manager, namespace, key = self._manager, self._place, self._key
        if self._kind in READS:
            floor, began = self._ledger.begins(self._cache, key), time.monotonic()
            try:
                if self._kind == "load":
                    value = await manager.get_or_set(namespace, key, load, tags=tags(key), **self._options)
                else:
                    value = await manager.get(namespace, key)
            except SourceError:
                return
            self._judge(value, began, floor)
            return
        keys = self._touched()
        versions = self._ledger.change(keys)
        if self._kind == "set":
            await manager.set(namespace, key, self._ledger.written(key, versions))
        elif self._kind == "clear":
            await manager.clear(namespace)
        elif self._kind == "tag":
            await manager.invalidate_tags(*tags(key))
        elif self._kind == "delete":
            await manager.delete(namespace, key)
        else:
            await manager.delete_many(namespace, keys)
        self._ledger.told(self._cache, versions)

    def blocking(self) -> None:
        def load() -> list[Any]:
            value = self._loaded()
            time.sleep(self._takes)
            return value

        manager, namespace, key = self._manager.sync, self._place, self._key
        if self._kind in READS:
            floor, began = self._ledger.begins(self._cache, key), time.monotonic()
            try:
                if self._kind == "load":
                    value = manager.get_or_set(namespace, key, load, tags=tags(key), **self._options)
                else:
                    value = manager.get(namespace, key)
            except SourceError:
                return
            self._judge(value, began, floor)
            return
        keys = self._touched()
        versions = self._ledger.change(keys)
        if self._kind == "set":
            manager.set(namespace, key, self._ledger.written(key, versions))
        elif self._kind == "clear":
            manager.clear(namespace)
        elif self._kind == "tag":
            manager.invalidate_tags(*tags(key))
        elif self._kind == "delete":
            manager.delete(namespace, key)
        else:
            manager.delete_many(namespace, keys)
        self._ledger.told(self._cache, versions)

    def _judge(self, value: Any, began: float, floor: int) -> None:
        if value is not None:
            life = TTL + GRACE if self._namespace is POLICY else None
            self._ledger.ended(self._cache, self._key, value, began, floor, life)

    def _touched(self) -> list[str]:
        if self._namespace == "written" or self._kind == "delete":
            return [self._key]
        keys = POLICY_KEYS if self._namespace is POLICY else KEYS
        if self._kind == "clear":
            return keys
        if self._kind == "tag":
            return [key for key in keys if tags(key) == tags(self._key)]
        first = keys.index(self._key)
        return keys[first : first + 5]
