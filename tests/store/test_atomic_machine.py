"""The atomic operations against a model: two caches on one server, of which one loses it at times, and one on memory.

A random walk of Hypothesis. What an atomic operation returns is exact: it comes from Redis, never from memory. A `get`
of another cache may take an exchange to follow. While a cache is cut off, it is compared with what it knew when it lost
contact, and with what it was told since; when it is back, with the server's values less those that it has outdated.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import CacheTypeError, CacheUnavailableError
from magnus_cache.testing import Proxy, VirtualClock, virtual_clock
from tests.store.test_store import Awaited, Blocking
from tests.support.inside import state_of
from tests.support.wait import wait_until, wait_until_async

NOTHING: Final = "nothing"

LONG: Final = 1e6
SHORT: Final = 60.0
"""Seconds that values live. Time passes in steps of far more than this, and of far less than that."""

STEP: Final = 1_000.0

KEYS: Final = ("a", "b")
SPACE: Final = Namespace("t", ttl=LONG)
FAR: Final = Namespace("t", ttl=LONG, l1=False)

WHO = st.sampled_from((0, 0, 1, 1, 1, 2))
KEY = st.sampled_from(KEYS)
VALUES = st.one_of(
    st.integers(-3, 3), st.just(2**60), st.lists(st.integers(0, 9), max_size=2), st.lists(st.integers(0, 9), max_size=2)
)
LIVES = st.sampled_from((LONG, LONG, SHORT))
TAGS = st.sampled_from(((), ("x",), ("x", "y")))
OFFLINE = st.sampled_from(("raise", "local"))

Offline = Literal["raise", "local"]


class Model:
    """What one place has: the value of each key, its end, and its tags."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.values: dict[str, tuple[Any, float, tuple[str, ...]]] = {}

    def copy(self) -> "Model":
        twin = Model(self.clock)
        twin.values = dict(self.values)
        return twin

    def get(self, key: str) -> Any:
        value, end, _ = self.values.get(key, (NOTHING, 0.0, ()))
        return value if self.clock() < end else NOTHING

    def put(self, key: str, value: Any, life: float, tags: tuple[str, ...] = ()) -> None:
        self.values[key] = value, self.clock() + life, tags

    def change(self, key: str, value: Any, life: float | None) -> None:
        """Store a changed value: with its tags, and its end if there is no other."""
        _, end, tags = self.values[key]
        self.values[key] = value, end if life is None else self.clock() + life, tags

    def remove(self, keys: set[str]) -> None:
        for key in keys:
            self.values.pop(key, None)

    def tagged(self, tag: str) -> set[str]:
        return {key for key, (_, _, tags) in self.values.items() if tag in tags}

    def incr(self, key: str, delta: int, initial: int, life: float) -> int:
        value = self.get(key)
        if value is NOTHING:
            self.put(key, initial + delta, life)
            return initial + delta
        if type(value) is not int:
            raise CacheTypeError("key", "no counter")
        self.change(key, value + delta, None)
        return value + delta

    def update(self, key: str, default: Any, life: float | None) -> Any:
        value = self.get(key)
        changed = _changed(default if value is NOTHING else value)
        if value is NOTHING:
            self.put(key, changed, life or LONG)
        else:
            self.change(key, changed, life)
        return changed


def _changed(value: Any) -> Any:
    return value + 1 if type(value) is int else [*value, len(value)]


class Atomic(RuleBasedStateMachine):
    """Cache 0 is async, on the server itself; cache 1 is blocking, through a proxy; cache 2 has memory only."""

    def __init__(self, server: EmbeddedServer, proxy: Proxy, counts: "Counter[str]", space: Namespace) -> None:
        super().__init__()
        self.proxy, self.counts, self.space = proxy, counts, space
        self.time = virtual_clock()
        clock = self.time.__enter__()
        self.clock = clock
        self.runner = asyncio.Runner()
        options: dict[str, Any] = {"op_timeout": 5.0, "max_staleness": 1e9}
        self.first = AsyncCacheManager(redis_url=server.url, **options)
        self.second = CacheManager(redis_url=proxy.url, **options)
        self.third = CacheManager(redis_enabled=False)
        self.caches: list[Any] = [Awaited(self.first, self.runner), Blocking(self.second), Blocking(self.third)]
        self.caches[0].clear("magnus:*")
        self.server, self.alone = Model(clock), Model(clock)
        self.cut: Model | None = None
        """What cache 1 has while it is cut off."""
        self.outdated: list[Callable[[Model], set[str]]] = []
        """What cache 1 tells Redis when it is back: the keys to remove."""

    def model(self, who: int) -> Model:
        if who == 2:
            return self.alone
        return self.server if who == 0 or self.cut is None else self.cut

    def is_cut(self, who: int) -> bool:
        return who == 1 and self.cut is not None

    def outdates(self, who: int, keys: Callable[[Model], set[str]]) -> None:
        """Note what a cache has changed that Redis may not hear of yet."""
        if self.is_cut(who):
            self.outdated.append(keys)

    def space_of(self, who: int) -> Namespace:
        """Return the namespace; without memory where there is a server."""
        return SPACE if who == 2 else self.space

    # -- reads ------------------------------------------------------------------------------------------------

    @rule(who=WHO, key=KEY)
    def gets(self, who: int, key: str) -> None:
        self.counts["gets"] += 1
        cache, expected = self.caches[who], self.model(who).get(key)
        if self.is_cut(who) or who == 2:
            assert cache.get(self.space_of(who), key, NOTHING) == expected
            return
        wait_until(lambda: bool(cache.get(self.space, key, NOTHING) == expected))
        self.counts["values"] += expected is not NOTHING

    # -- plain changes ----------------------------------------------------------------------------------------

    @rule(who=WHO, key=KEY, value=VALUES, life=LIVES, tags=TAGS)
    def sets(self, who: int, key: str, value: Any, life: float, tags: tuple[str, ...]) -> None:
        if who != 2 and not self.is_cut(who):
            # A `set` that does not know of a clear yet is a miss to others. What is written in one step is not.
            self.caches[who].get_stats()
        self.caches[who].set(self.space_of(who), key, value, life, tags)
        self.model(who).put(key, value, life, tags)
        self.outdates(who, lambda _: {key})

    @rule(who=WHO, key=KEY)
    def deletes(self, who: int, key: str) -> None:
        self.caches[who].delete(self.space_of(who), key)
        self.model(who).remove({key})
        self.outdates(who, lambda _: {key})

    @rule(who=WHO)
    def clears(self, who: int) -> None:
        self.caches[who].clear("t")
        self.model(who).remove(set(KEYS))
        self.outdates(who, lambda _: set(KEYS))

    @rule(who=WHO, tag=st.sampled_from(("x", "y")))
    def invalidates(self, who: int, tag: str) -> None:
        self.caches[who].invalidate_tags(tag)
        model = self.model(who)
        model.remove(model.tagged(tag))
        self.outdates(who, lambda server: server.tagged(tag))

    @rule()
    def time_passes(self) -> None:
        if self.cut is None:
            self.clock.advance(STEP)

    # -- changes in one step ----------------------------------------------------------------------------------

    @rule(who=WHO, key=KEY, value=VALUES, life=LIVES, tags=TAGS)
    def adds(self, who: int, key: str, value: Any, life: float, tags: tuple[str, ...]) -> None:
        model = self.model(who)
        missing = model.get(key) is NOTHING
        assert self.caches[who].add(self.space_of(who), key, value, life, tags) is missing
        if missing:
            model.put(key, value, life, tags)
        self.counts["added"] += missing
        self.counts["not added"] += not missing

    @rule(who=WHO, key=KEY, delta=st.integers(-5, 5), initial=st.integers(0, 2), life=LIVES, offline=OFFLINE)
    def counts_(self, who: int, key: str, delta: int, initial: int, life: float, offline: Offline) -> None:
        cache, model, space = self.caches[who], self.model(who), self.space_of(who)

        def call() -> int:
            if delta < 0:
                return int(cache.decr(space, key, -delta, initial=initial, ttl=life, offline=offline))
            return int(cache.incr(space, key, delta, initial=initial, ttl=life, offline=offline))

        if self.is_cut(who) and offline == "raise":
            with pytest.raises(CacheUnavailableError):
                call()
            self.counts["refused"] += 1
            return
        try:
            expected = model.incr(key, delta, initial, life)
        except CacheTypeError:
            with pytest.raises(CacheTypeError):
                call()
            self.counts["no counter"] += 1
            return
        assert call() == expected
        self.counts["counted here" if self.is_cut(who) else "counted"] += 1

    @rule(
        who=WHO, key=KEY, default=st.one_of(st.just(0), st.just([])), life=st.one_of(st.none(), LIVES), offline=OFFLINE
    )
    def updates(self, who: int, key: str, default: Any, life: float | None, offline: Offline) -> None:
        cache, model, space = self.caches[who], self.model(who), self.space_of(who)

        def call() -> Any:
            return cache.update(space, key, _changed, default=default, ttl=life, offline=offline)

        if self.is_cut(who) and offline == "raise":
            with pytest.raises(CacheUnavailableError):
                call()
            self.counts["refused"] += 1
            return
        assert call() == model.update(key, default, life)
        self.outdates(who, lambda _: {key})
        self.counts["updated here" if self.is_cut(who) else "updated"] += 1

    # -- outages ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.space is SPACE and self.cut is None)
    @rule()
    def an_outage_begins(self) -> None:
        for key in KEYS:
            self.gets(1, key)  # so that its memory has what Redis has
        self.proxy.refuse()
        self.proxy.cut()
        wait_until(lambda: not state_of(self.second).reaches(b""))
        self.cut = self.server.copy()
        self.counts["outages"] += 1

    @precondition(lambda self: self.cut is not None)
    @rule(now=st.sampled_from((False, False, False, False, True)))
    def the_outage_ends(self, now: bool) -> None:
        if not now:
            return  # it lasts for some steps
        self.proxy.resume()

        def is_back() -> bool:
            return "redis_used_memory" in dict(self.second.get_stats()) and not state_of(self.second).outbox.pending

        wait_until(is_back)
        for keys in self.outdated:
            self.server.remove(keys(self.server))
        self.cut, self.outdated = None, []

    def teardown(self) -> None:
        try:
            if self.cut is not None:
                self.the_outage_ends(now=True)
            for who in range(3):
                for key in KEYS:
                    self.gets(who, key)
        finally:
            self.proxy.resume()
            self.runner.run(self.first.aclose())
            self.runner.close()
            self.second.close()
            self.third.close()
            self.time.__exit__(None, None, None)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("space", [SPACE, FAR], ids=["near", "far"])
def test_what_is_written_in_one_step_is_what_a_model_says(
    server: EmbeddedServer, proxy: Proxy, space: Namespace
) -> None:
    counts: Counter[str] = Counter()
    profile = settings(
        max_examples=8, stateful_step_count=30, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(lambda: Atomic(server, proxy, counts, space), settings=profile)
    print(dict(counts))
    # It would prove nothing if all were missing.
    assert {"values", "added", "not added", "counted", "updated"} <= set(counts)
    if space is SPACE:
        assert counts["outages"]
        assert counts["refused"] + counts["counted here"] + counts["updated here"]


WRITES: Final[dict[str, Callable[[AsyncCacheManager], Any]]] = {
    "add": lambda cache: cache.add("t", "k", 1),
    "incr": lambda cache: cache.incr("t", "k"),
    "update": lambda cache: cache.update("t", "k", _changed, default=0),
}


@pytest.mark.anyio
@pytest.mark.parametrize("how", WRITES)
async def test_what_is_written_after_a_clear_elsewhere_is_there_for_all(url: str, proxy: Proxy, how: str) -> None:
    """The news of a clear is on its way to a cache that writes. Others must not count what it stores as cleared."""
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as one, AsyncCacheManager(redis_url=url) as other:
        for cache in (one, other):
            # From here on, a write is one exchange: the script is there, and the epochs are known.
            await WRITES[how](cache)
            await cache.clear("t")
        await one.get("t", "k")
        proxy.freeze("to_client")
        await other.clear("t")
        await wait_until_async(lambda: proxy.counts.bytes_waiting > 0)
        sent = proxy.counts.bytes_to_server
        task = asyncio.ensure_future(WRITES[how](one))
        await wait_until_async(lambda: proxy.counts.bytes_to_server > sent)
        proxy.thaw("to_client")
        assert await task == 1
        assert await WRITES[how](other) == (False if how == "add" else 2)


def test_a_counter_ends_by_the_clock_of_the_cache(url: str) -> None:
    """Tests advance the clock of the caches, and not that of the server."""
    with CacheManager(redis_url=url) as cache, virtual_clock() as clock:
        assert [cache.incr("t", "k", ttl=60), cache.incr("t", "k", ttl=60)] == [1, 2]
        clock.advance(61)
        assert [cache.incr("t", "k", ttl=60), cache.get("t", "k")] == [1, 1]
        assert cache.incr("t", "tiny", ttl=0.2) == 1
