"""One caller: which operation next, on what, decided by dice; and what is written down about it.

A step is written once for both kinds of callers: what it calls is a method of the blocking or of the async manager, and
what it returns is the result or an awaitable of it.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any, Final, NamedTuple

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.policy.modes import MODE, Mode
from magnus_cache._engine.runtime.switches import Switch
from magnus_cache.errors import CacheBatchError, CacheDeadlockError, CacheTimeoutError, CacheUnavailableError
from tests.stress.keys import ALL, FAMILIES, NUMBERS, Family, Key
from tests.stress.records import CACHES, MEMORY, Kind, Log, now
from tests.support.loaders import SourceError

__all__ = ["OPERATIONS", "Absent", "Cache", "Caller", "Wrong"]

SLOW: Final = 2_000_000_000
"""Nanoseconds from which on a call is written down as slow."""

CROWD: Final = 24
"""Callers of one crowd."""


class Absent(LookupError):
    """The source says that there is no such thing; remembered where the policy says so."""


class Wrong(AssertionError):
    """A result that no schedule explains."""


OPERATIONS: Final[dict[str, float]] = {
    "get": 20, "get_many": 6, "get_or_set": 30, "get_or_set_many": 6, "set": 4, "set_many": 1, "delete": 5,
    "delete_many": 1, "contains": 2, "ttl": 1, "touch": 6, "invalidate_tags": 3, "clear": 0.4, "clear_glob": 0.4,
    "clear_all": 0.05, "cached": 10, "cached_invalidate": 2, "refresh": 1, "cached_many": 4, "method": 3,
    "warm_cache": 0.5, "explain": 0.5, "get_stats": 0.3, "bypass": 0.5, "disabled": 0.3, "own_set": 6, "own_get": 10,
    "crowd": 0.6, "cancel": 2, "steady": 20,
    "tag_then_load": 5, "delete_then_load": 3,
}  # fmt: skip
"""What callers do, and how often. Blocking callers make no crowd and cancel nothing."""

_NAMES: Final = list(OPERATIONS)
_WEIGHTS: Final = [*OPERATIONS.values()]
_GETS: Final = frozenset({"get", "own_get", "get_many"})
"""What returns None where there is nothing."""

_REFUSABLE: Final = frozenset(
    {"clear", "clear_glob", "clear_all", "invalidate_tags", "tag_then_load", "crowd", "cancel"}
)
"""What may raise if Redis is there and refuses."""

_BULK: Final = [(number, Decimal("1.5"), (number, number)) for number in range(6_000)]
"""What makes a value take its time to decode."""


class Cache:
    """One cache of this process, with its two faces and the functions that it decorates.

    :param number: what records call it.
    """

    def __init__(self, number: int, manager: AsyncCacheManager, log: Log) -> None:
        self.number = number
        self.face = manager
        self.sync: CacheManager = manager.sync
        self.state = manager._engine.state
        self.log = log
        self.in_memory = number % CACHES == MEMORY
        self.untold: deque[tuple[list[int], int]] = deque()
        """What was recorded, as Redis could not be told; of which keys, and when it began."""
        self.look: Callable[[], None] = lambda: None
        """Notes whether it is connected."""

        this = self

        def function(name: str) -> Any:
            return load(this.log, number, NUMBERS["stress-called", name])

        async def coroutine_function(name: str) -> Any:
            return await load_async(this.log, number, NUMBERS["stress-called", name])

        def many(names: list[str]) -> dict[str, Any]:
            return load_many(this.log, number, [NUMBERS["stress-called", name] for name in names])

        async def many_async(names: list[str]) -> dict[str, Any]:
            return await load_many_async(this.log, number, [NUMBERS["stress-called", name] for name in names])

        class Service:
            @manager.cached("stress-called", key="{name}", tags=tags_of)
            def blocking(self, name: str) -> Any:
                return function(name)

            @manager.cached("stress-called", key="{name}", tags=tags_of)
            async def awaited(self, name: str) -> Any:
                return await coroutine_function(name)

        decorated = manager.cached("stress-called", key="{name}", tags=tags_of)
        self.function: Any = decorated(function)
        self.coroutine_function: Any = decorated(coroutine_function)
        decorated_many = manager.cached_many("stress-called", key="{names}", tags=tags_of)
        self.many: Any = decorated_many(many)
        self.many_async: Any = decorated_many(many_async)
        self.service = Service()


def tags_of(value: Any) -> tuple[str, ...]:
    """Return the tags of a value of the family that is called; computed from the value."""
    return NUMBERS["stress-called", value[0]].tags


# -- the source ---------------------------------------------------------------------------------------------------


def _value(key: Key, stamp: int) -> list[Any]:
    return [key.name, stamp, _BULK] if key.namespace == "stress-bulky" else [key.name, stamp]


def _delay() -> float:
    drawn = random.random()
    return 0.001 if drawn < 0.7 else random.uniform(0.005, 0.02) if drawn < 0.95 else random.uniform(0.05, 0.15)


def _answer(key: Key, stamp: int) -> list[Any]:
    drawn = random.random()
    if key.namespace == "stress-absent" and drawn < 0.6:
        raise Absent(key.name, stamp)
    if key.namespace == "stress-policy" and drawn < 0.1:
        raise SourceError(key.name, stamp)
    return _value(key, stamp)


def load(log: Log, cache: int, key: Key, delay: float | None = None, *, left: bool = False) -> list[Any]:
    """Be the source, for a thread.

    :param left: whether a caller that is cancelled leaves this running.
    """
    stamp = now()
    try:
        time.sleep(_delay() if delay is None else delay)
        return _answer(key, stamp)
    finally:
        log.note(Kind.LOAD, cache, (key.number,), stamp, now(), left or key.namespace == "stress-policy")


async def load_async(log: Log, cache: int, key: Key, delay: float | None = None) -> list[Any]:
    """Be the source, for a task."""
    stamp = now()
    try:
        await asyncio.sleep(_delay() if delay is None else delay)
        return _answer(key, stamp)
    finally:
        log.note(Kind.LOAD, cache, (key.number,), stamp, now())


def load_many(log: Log, cache: int, keys: list[Key], *, left: bool = False) -> dict[str, Any]:
    """Be the source of many keys."""
    stamp = now()
    try:
        time.sleep(_delay())
        return {key.name: _value(key, stamp) for key in keys}
    finally:
        log.note(Kind.LOAD, cache, [key.number for key in keys], stamp, now(), left)


async def load_many_async(log: Log, cache: int, keys: list[Key]) -> dict[str, Any]:
    stamp = now()
    try:
        await asyncio.sleep(_delay())
        return {key.name: _value(key, stamp) for key in keys}
    finally:
        log.note(Kind.LOAD, cache, [key.number for key in keys], stamp, now())


# -- the callers --------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One call to be made."""

    what: str
    cache: Cache
    run: Callable[[], Any]
    """Returns the result, or an awaitable of it."""
    settle: Callable[[Any, int, int], None]
    """Called with the result, when the call began and when it ended."""
    keys: tuple[Key, ...] = ()
    """What may have changed if there is no result."""
    stamp: int = 0
    """Of the value that is written, if one is."""
    asked: list[int] | None = None
    """When the last of its calls began, where there are several."""


class Caller:
    """Makes steps, one after the other.

    :param own: the key that nobody else writes.
    """

    def __init__(self, caches: list[Cache], own: Key, seed: int, *, in_tasks: bool) -> None:
        self._caches = caches
        self._own = own
        self._dice = random.Random(seed)
        self._in_tasks = in_tasks
        self._tight = False
        self.calls = 0
        self.worst = 0
        self.errors: Counter[str] = Counter()
        self.busy: tuple[str, int] | None = None
        """What is being called, and since when."""

    # -- one call ---------------------------------------------------------------------------------------------

    def blocking(self) -> None:
        """Make one call, in this thread."""
        step = self.choose()
        with self._under_way(step) as began:
            try:
                result: Any = step.run()
            except Exception as error:
                result = error
            self.settle(step, result, began, now())

    async def awaited(self) -> None:
        """Make one call, in this task."""
        step = self.choose()
        with self._under_way(step) as began:
            try:
                result: Any = await (self._cancelled(step) if step.what == "cancel" else step.run())
            except Exception as error:
                result = error
            self.settle(step, result, began, now())

    @contextmanager
    def _under_way(self, step: Step) -> Iterator[int]:
        """Note what is being called, and that its outcome is unknown if the call is cut short; yield when it began."""
        began = now()
        self.busy = step.what, began
        try:
            yield began
        except BaseException:
            self._unknown(step, began)
            raise
        finally:
            self.busy = None

    async def _cancelled(self, step: Step) -> Any:
        """Cancel a call after a moment; what it did then, nobody knows."""
        task = asyncio.ensure_future(step.run())
        await asyncio.wait([task], timeout=self._dice.expovariate(1 / 0.004))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
        return None

    def _unknown(self, step: Step, began: int) -> None:
        numbers = [key.number for key in step.keys]
        step.cache.log.note(Kind.MAYBE, step.cache.number, numbers, step.stamp or began, now())

    def settle(self, step: Step, result: Any, began: int, ended: int) -> None:
        """Write down what came of a call."""
        self.calls += 1
        self.worst = max(self.worst, ended - began)
        what = _NAMES.index(step.what)
        if ended - began > SLOW:
            step.cache.log.note(
                Kind.SLOW, step.cache.number, (step.keys[0].number if step.keys else 0,), began, ended, 0, what
            )
        try:
            if isinstance(result, CacheBatchError):
                for error in result.errors.values():
                    self._failed(step, error, began, ended)
                result = result.results
            elif isinstance(result, Exception):
                self._unknown(step, began)
                self._failed(step, result, began, ended)
                return
            step.settle(result, began, ended)
        except Wrong as wrong:
            self.errors[f"{step.what}: {wrong}"] += 1

    def _failed(self, step: Step, error: Exception, began: int, ended: int) -> None:
        if isinstance(error, Absent | SourceError) and len(error.args) == 2:
            name, stamp = error.args
            key = next((key for key in step.keys if key.name == name), None)
            if key is None:
                raise Wrong(f"the error of {name!r} was raised for {[key.name for key in step.keys]}")
            self._read(step.cache, key, stamp, step.asked[0] if step.asked else began, ended, step.what)
        elif isinstance(error, CacheTimeoutError):
            pass  # where the policy has a hard timeout
        elif isinstance(error, CacheUnavailableError) and step.what in _REFUSABLE:
            pass  # Redis refused, and says so
        else:
            raise Wrong(f"{type(error).__name__}: {error}"[:300])

    # -- what is written down -----------------------------------------------------------------------------------

    def _read(self, cache: Cache, key: Key, stamp: int, began: int, ended: int, what: str) -> None:
        cache.log.note(Kind.READ, cache.number, (key.number,), began, ended, stamp, _NAMES.index(what))

    def _got(self, cache: Cache, key: Key, value: Any, began: int, ended: int, what: str) -> None:
        """Write a read down; a value is looked at first."""
        if value is None and what in _GETS:
            self._read(cache, key, 0, began, ended, what)
            return
        if not isinstance(value, list) or value[0] != key.name or not isinstance(value[1], int):
            raise Wrong(f"{key.name} got {str(value)[:100]}")
        self._read(cache, key, value[1], began, ended, what)

    def _gone(self, cache: Cache, keys: tuple[Key, ...], began: int, ended: int, kind: Kind = Kind.GONE) -> None:
        told = cache.in_memory or not cache.state.outbox.pending
        numbers = [key.number for key in keys]
        cache.log.note(kind, cache.number, numbers, began, ended, told)
        if not told:
            cache.untold.append((numbers, began))

    # -- which call ---------------------------------------------------------------------------------------------

    def choose(self) -> Step:
        """Return the next step."""
        if self._tight:
            return self._choose_tight()
        what = self._dice.choices(_NAMES, _WEIGHTS)[0]
        while not self._in_tasks and what in {"crowd", "cancel"}:
            what = self._dice.choices(_NAMES, _WEIGHTS)[0]
        cache = self._dice.choices(self._caches, [7, 1.5, 2][: len(self._caches)])[0]
        step: Step = getattr(self, f"_{what}")(cache)
        return step

    def _face(self, cache: Cache) -> Any:
        return cache.face if self._in_tasks else cache.sync

    def _family(self, *names: str) -> Family:
        return FAMILIES[self._dice.choice(names)]

    def _key(self, family: Family) -> Key:
        # Some keys are much asked for.
        return family.keys[min(int(self._dice.expovariate(4 / len(family.keys))), len(family.keys) - 1)]

    def _some(self, family: Family) -> tuple[Key, ...]:
        return tuple(self._dice.sample(family.keys, min(len(family.keys), self._dice.randint(2, 8))))

    def _loader(self, cache: Cache, key: Key, delay: float | None = None) -> Callable[[], Any]:
        log, number = cache.log, cache.number
        if self._dice.random() < (0.8 if self._in_tasks else 0.2):
            return lambda: load_async(log, number, key, delay)
        in_tasks = self._in_tasks

        def loader() -> Any:
            return load(log, number, key, delay, left=in_tasks)

        return loader

    def _batch_loader(self, cache: Cache, family: Family) -> Callable[[list[str]], Any]:
        log, number, left = cache.log, cache.number, self._in_tasks
        known = {key.name: key for key in family.keys}
        if self._dice.random() < 0.5:

            async def loader(names: list[str]) -> dict[str, Any]:
                return await load_many_async(log, number, [known[name] for name in names])

            return loader
        return lambda names: load_many(log, number, [known[name] for name in names], left=left)

    # -- reads --------------------------------------------------------------------------------------------------

    def _one(self, what: str, cache: Cache, key: Key, run: Callable[[], Any]) -> Step:
        return Step(what, cache, run, lambda value, b, e: self._got(cache, key, value, b, e, what), (key,))

    def _get(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "plain", "policy", "absent", "called", "own"))
        return self._one("get", cache, key, lambda: self._face(cache).get(key.namespace, key.name))

    def _own_get(self, cache: Cache) -> Step:
        own = self._own
        return self._one("own_get", cache, own, lambda: self._face(cache).get(own.namespace, own.name))

    def _get_many(self, cache: Cache) -> Step:
        keys = self._some(self._family("plain", "called", "own"))

        def settle(found: dict[str, Any], began: int, ended: int) -> None:
            for key in keys:
                self._got(cache, key, found.get(key.name), began, ended, "get_many")

        names = [key.name for key in keys]
        return Step("get_many", cache, lambda: self._face(cache).get_many(keys[0].namespace, names), settle, keys)

    def _get_or_set(self, cache: Cache) -> Step:
        family = FAMILIES[self._dice.choices(["plain", "policy", "absent", "bulky"], [10, 4, 4, 2])[0]]
        key = self._key(family)
        loader, more = self._loader(cache, key), {}
        if family is FAMILIES["policy"] and self._dice.random() < 0.2:
            more = {"hard_timeout": 0.1}
        return self._one(
            "get_or_set", cache, key,
            lambda: self._face(cache).get_or_set(
                key.namespace, key.name, loader, ttl=family.ttl, tags=key.tags, **more
            ),
        )  # fmt: skip

    def _tag_then_load(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "policy", "absent", "bulky"))
        return self._then_load(
            "tag_then_load", cache, key, _tagged(key.tags), lambda: self._face(cache).invalidate_tags(*key.tags)
        )

    def _delete_then_load(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "policy", "absent", "bulky"))
        return self._then_load(
            "delete_then_load", cache, key, (key,), lambda: self._face(cache).delete(key.namespace, key.name)
        )

    def _then_load(self, what: str, cache: Cache, key: Key, keys: tuple[Key, ...], remove: Callable[[], Any]) -> Step:
        """Invalidate a value and ask for it at once: no load that was under way is any good."""
        loader, began = self._loader(cache, key), [0]
        ttl = None if key.namespace == "stress-policy" else 60

        def ask() -> Any:
            self._gone(cache, keys, began[0], now())
            began[0] = now()
            return self._face(cache).get_or_set(key.namespace, key.name, loader, ttl=ttl, tags=key.tags)

        async def awaited() -> Any:
            began[0] = now()
            await remove()
            return await ask()

        def blocking() -> Any:
            began[0] = now()
            remove()
            return ask()

        def settle(value: Any, _: int, ended: int) -> None:
            self._got(cache, key, value, began[0], ended, what)

        return Step(what, cache, awaited if self._in_tasks else blocking, settle, keys, asked=began)

    def _steady(self, cache: Cache) -> Step:
        key = self._key(FAMILIES["steady"])
        # The load takes its time, so that others come meanwhile.
        loader = self._loader(cache, key, self._dice.uniform(0.02, 0.08))
        return self._one(
            "steady", cache, key,
            lambda: self._face(cache).get_or_set(key.namespace, key.name, loader, ttl=0.2, tags=key.tags),
        )  # fmt: skip

    def _get_or_set_many(self, cache: Cache) -> Step:
        family = FAMILIES["plain"]
        # All of one tag: a batch has the same tags for each.
        tag = self._dice.choice(family.keys).tags
        keys = tuple(key for key in family.keys if key.tags == tag)
        loader, names = self._batch_loader(cache, family), [key.name for key in keys]

        def settle(found: dict[str, Any], began: int, ended: int) -> None:
            if list(found) != names:
                raise Wrong(f"{names} got {list(found)}")
            for key in keys:
                self._got(cache, key, found[key.name], began, ended, "get_or_set_many")

        return Step(
            "get_or_set_many", cache,
            lambda: self._face(cache).get_or_set_many(family.namespace, names, loader, ttl=60, tags=tag), settle, keys,
        )  # fmt: skip

    def _cached(self, cache: Cache) -> Step:
        key = self._key(FAMILIES["called"])
        function = cache.coroutine_function if self._in_tasks else cache.function
        return self._one("cached", cache, key, lambda: function(key.name))

    def _method(self, cache: Cache) -> Step:
        key = self._key(FAMILIES["called"])
        method = cache.service.awaited if self._in_tasks else cache.service.blocking
        return self._one("method", cache, key, lambda: method(key.name))

    def _cached_many(self, cache: Cache) -> Step:
        keys = self._some(FAMILIES["called"])
        function = cache.many_async if self._in_tasks else cache.many

        def settle(found: dict[str, Any], began: int, ended: int) -> None:
            for key in keys:
                self._got(cache, key, found[key.name], began, ended, "cached_many")

        return Step("cached_many", cache, lambda: function([key.name for key in keys]), settle, keys)

    def _fresh(self, what: str, cache: Cache, key: Key, run: Callable[[], Any]) -> Step:
        def settle(value: Any, began: int, ended: int) -> None:
            cache.log.note(Kind.FRESH, cache.number, (key.number,), began, ended)
            self._got(cache, key, value, began, ended, what)
            if value[1] < began:
                raise Wrong(f"{key.name} was loaded {(began - value[1]) / 1e9:.6f} s before the call")

        return Step(what, cache, run, settle, (key,))

    def _refresh(self, cache: Cache) -> Step:
        key = self._key(FAMILIES["called"])
        function = cache.coroutine_function if self._in_tasks else cache.function
        return self._fresh("refresh", cache, key, lambda: function.refresh(key.name))

    def _bypass(self, cache: Cache) -> Step:
        return self._switched(cache, Mode.BYPASS)

    def _disabled(self, cache: Cache) -> Step:
        return self._switched(cache, Mode.DISABLED)

    def _switched(self, cache: Cache, mode: Mode) -> Step:
        key = self._key(FAMILIES["plain"])
        loader = self._loader(cache, key)
        # For this one call: `disabled()` would be for all of them.
        switch = partial(Switch, MODE, mode, cache.state.special)

        async def awaited() -> Any:
            with switch():
                return await cache.face.get_or_set(key.namespace, key.name, loader, ttl=60, tags=key.tags)

        def blocking() -> Any:
            with switch():
                return cache.sync.get_or_set(key.namespace, key.name, loader, ttl=60, tags=key.tags)

        return self._fresh(mode.value, cache, key, awaited if self._in_tasks else blocking)

    def _crowd(self, cache: Cache) -> Step:
        """Ask many times at once, while others invalidate: nobody has to wait for a load of his own."""
        key, loads = self._key(self._family("plain", "bulky")), [0]
        log, number = cache.log, cache.number
        # Each decodes a value of its own.
        count = 4 if key.namespace == "stress-bulky" else CROWD

        async def loader() -> Any:
            loads[0] += 1
            return await load_async(log, number, key, 0.02)

        async def one() -> None:
            began = now()
            value = await cache.face.get_or_set(key.namespace, key.name, loader, ttl=60, tags=key.tags)
            self._got(cache, key, value, began, now(), "crowd")

        async def run() -> None:
            crowd = asyncio.gather(*(one() for _ in range(count)))
            # More often than the value loads; not for ever, lest the others wait for it.
            for _ in range(100):
                await asyncio.wait([crowd], timeout=0.012)
                if crowd.done():
                    break
                began = now()
                await cache.face.invalidate_tags(*key.tags)
                self._gone(cache, _tagged(key.tags), began, now())
            await crowd

        def settle(_: None, began: int, ended: int) -> None:
            if count == CROWD and loads[0] > CROWD / 2:
                raise Wrong(f"{CROWD} callers at once made {loads[0]} loads")

        return Step("crowd", cache, run, settle, _tagged(key.tags))

    # -- writes -------------------------------------------------------------------------------------------------

    def _set(self, cache: Cache) -> Step:
        return self._writes("set", cache, self._key(self._family("plain", "policy", "absent", "called")))

    def _own_set(self, cache: Cache) -> Step:
        return self._writes("own_set", cache, self._own)

    def _writes(self, what: str, cache: Cache, key: Key) -> Step:
        stamp, ttl = now(), 60 if key.namespace != "stress-policy" else None

        def settle(stored: bool, began: int, ended: int) -> None:
            self._gone(cache, (key,), stamp, ended, Kind.WROTE if stored else Kind.MAYBE)

        return Step(
            what, cache,
            lambda: self._face(cache).set(key.namespace, key.name, _value(key, stamp), ttl=ttl, tags=key.tags),
            settle, (key,), stamp,
        )  # fmt: skip

    def _set_many(self, cache: Cache) -> Step:
        family = FAMILIES["plain"]
        tag = self._dice.choice(family.keys).tags
        keys = tuple(key for key in family.keys if key.tags == tag)
        stamp = now()
        values = {key.name: _value(key, stamp) for key in keys}

        def settle(_: None, began: int, ended: int) -> None:
            # Which of them are stored is not told.
            self._gone(cache, keys, stamp, ended, Kind.MAYBE)

        return Step(
            "set_many", cache, lambda: self._face(cache).set_many(family.namespace, values, ttl=60, tags=tag),
            settle, keys, stamp,
        )  # fmt: skip

    # -- invalidations ------------------------------------------------------------------------------------------

    def _invalidates(self, what: str, cache: Cache, keys: tuple[Key, ...], run: Callable[[], Any]) -> Step:
        return Step(what, cache, run, lambda _, b, e: self._gone(cache, keys, b, e), keys)

    def _delete(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "plain", "policy", "absent", "called", "bulky"))
        return self._invalidates("delete", cache, (key,), lambda: self._face(cache).delete(key.namespace, key.name))

    def _delete_many(self, cache: Cache) -> Step:
        keys = self._some(self._family("plain", "policy", "absent", "called"))
        names = [key.name for key in keys]
        return self._invalidates(
            "delete_many", cache, keys, lambda: self._face(cache).delete_many(keys[0].namespace, names)
        )

    def _cached_invalidate(self, cache: Cache) -> Step:
        key = self._key(FAMILIES["called"])
        function = cache.coroutine_function if self._in_tasks else cache.function
        return self._invalidates("cached_invalidate", cache, (key,), lambda: function.invalidate(key.name))

    def _invalidate_tags(self, cache: Cache) -> Step:
        tags = self._key(self._family("plain", "policy", "absent", "called", "bulky", "bulky")).tags
        return self._invalidates(
            "invalidate_tags", cache, _tagged(tags), lambda: self._face(cache).invalidate_tags(*tags)
        )

    def _clear(self, cache: Cache) -> Step:
        family = self._family("plain", "policy", "absent", "called", "bulky")
        return self._invalidates("clear", cache, family.keys, lambda: self._face(cache).clear(family.namespace))

    def _clear_glob(self, cache: Cache) -> Step:
        digit = str(self._dice.randrange(1, 3))
        keys = tuple(key for key in FAMILIES["plain"].keys if key.name.startswith(f"k{digit}"))
        return self._invalidates("clear_glob", cache, keys, lambda: self._face(cache).clear(f"magnus:stress:k{digit}*"))

    def _clear_all(self, cache: Cache) -> Step:
        return self._invalidates("clear_all", cache, tuple(ALL), lambda: self._face(cache).clear("magnus:*"))

    # -- the rest -----------------------------------------------------------------------------------------------

    def _unjudged(self, what: str, cache: Cache, run: Callable[[], Any], keys: tuple[Key, ...] = ()) -> Step:
        return Step(what, cache, run, lambda result, began, ended: None, keys)

    def _contains(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "absent"))
        return self._unjudged("contains", cache, lambda: self._face(cache).contains(key.namespace, key.name))

    def _touch(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "absent", "called"))
        return self._unjudged("touch", cache, lambda: self._face(cache).touch(key.namespace, key.name, 60), (key,))

    def _ttl(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "absent"))

        def settle(left: float | None, began: int, ended: int) -> None:
            if left is not None and left > 61:
                raise Wrong(f"{key.name} has {left} s left of 60")

        return Step("ttl", cache, lambda: self._face(cache).ttl(key.namespace, key.name), settle)

    def _explain(self, cache: Cache) -> Step:
        key = self._key(self._family("plain", "absent"))
        return self._unjudged("explain", cache, lambda: self._face(cache).explain(key.namespace, key.name))

    def _get_stats(self, cache: Cache) -> Step:
        return self._unjudged("get_stats", cache, lambda: self._face(cache).get_stats())

    def _warm_cache(self, cache: Cache) -> Step:
        keys = self._some(FAMILIES["own"])
        # Nobody else loads these; their values have no tags.
        log, number = cache.log, cache.number
        known = {key.name: key for key in keys}

        def settle(report: Any, began: int, ended: int) -> None:
            log.note(Kind.FRESH, number, [key.number for key in keys], began, ended)
            if report.failed:
                raise Wrong(f"warming failed: {report.failed}")

        async def loader(name: str) -> Any:
            return await load_async(log, number, known[name])

        return Step(
            "warm_cache", cache, lambda: self._face(cache).warm_cache("stress-own", loader, list(known), ttl=60),
            settle, keys,
        )  # fmt: skip

    def _cancel(self, cache: Cache) -> Step:
        """Return a step that is cancelled after a moment, whatever it is."""
        step = self.choose()
        while step.what in {"cancel", "crowd"}:
            step = self.choose()

        def settle(_: None, began: int, ended: int) -> None:
            self._unknown(step, began)

        return Step("cancel", step.cache, step.run, settle, step.keys, step.stamp)

    # -- in tight loops -----------------------------------------------------------------------------------------

    def tight(self) -> None:
        """Have the next calls be about a few keys in memory alone: tasks prolong them, threads change them."""
        self._tight = True
        self._caches = [cache for cache in self._caches if cache.in_memory]

    def _choose_tight(self) -> Step:
        cache, key = self._caches[0], self._dice.choice(FAMILIES["tight"].keys)
        face = self._face(cache)
        if self._in_tasks:
            return self._unjudged("touch", cache, lambda: face.touch(key.namespace, key.name, 60), (key,))
        match self._dice.choice(["set", "delete", "get", "get", "get"]):
            case "set":
                return self._writes("set", cache, key)
            case "delete":
                return self._invalidates("delete", cache, (key,), lambda: face.delete(key.namespace, key.name))
            case _:
                return self._one("get", cache, key, lambda: face.get(key.namespace, key.name))

    # -- from where nobody expects it ----------------------------------------------------------------------------

    def unexpected(self) -> None:
        """Call the cache from a signal handler or a finalizer: whatever comes of it may come later, or be refused."""
        cache = self._dice.choice(self._caches)
        key = self._key(FAMILIES["plain"])
        began = now()
        try:
            drawn = self._dice.random()
            if drawn < 0.5:
                cache.sync.delete(key.namespace, key.name)
            elif drawn < 0.8:
                cache.sync.set(key.namespace, key.name, _value(key, began), ttl=60, tags=key.tags)
            else:
                cache.sync.get(key.namespace, key.name)
            self.calls += 1
        except CacheDeadlockError:
            self.calls += 1
        except Exception as error:
            self.errors[f"unexpected: {type(error).__name__}: {error}"[:300]] += 1
        finally:
            cache.log.note(Kind.MAYBE, cache.number, (key.number,), began, now())


def _tagged(tags: tuple[str, ...]) -> tuple[Key, ...]:
    return tuple(key for key in ALL if key.tags == tags)
