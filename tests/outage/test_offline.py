"""`Namespace(offline=…)`: how long memory serves after contact with Redis was lost, while others may change values."""

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, Namespace
from magnus_cache._engine.coordination.generations import OfflineTrust
from magnus_cache.testing import Proxy, virtual_clock
from magnus_cache.testing.clock import VirtualClock
from tests.support.inside import only_wire_of
from tests.support.loaders import Gated
from tests.support.wait import end_tasks, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

BOUNDED = Namespace("bounded", ttl="1h", offline=30)
NEVER = Namespace("never", ttl="1h", offline=0)
LOCAL_NEVER = Namespace("local-never", local=True, ttl="1h", offline=0)
HOUR = 3600.0


class Source:
    """Counts how often it is asked."""

    def __init__(self, value: Any = "source") -> None:
        self.value = value
        self.calls = 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def many(self, keys: list[Any]) -> dict[Any, Any]:
        self.calls += 1
        return dict.fromkeys(keys, self.value)


async def cut_off(cache: AsyncCacheManager, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()
    await wait_until_async(lambda: not cache._state.reachable)
    assert await cache.get("t", "unknown") is None
    await wait_until_async(lambda: not cache.redis_available)


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[AsyncCacheManager, VirtualClock]]:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.5) as cache:
            assert await cache.get("t", "unknown") is None
            yield cache, clock


Read = Callable[[AsyncCacheManager, Namespace, Source], Awaitable[Any]]


async def by_get(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    value = await cache.get(namespace, "k")
    return source() if value is None else value


async def by_get_many(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    found = await cache.get_many(namespace, ["k"])
    return found["k"] if found else source()


async def by_contains(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return "memory" if await cache.contains(namespace, "k") else source()


async def by_ttl(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return source() if await cache.ttl(namespace, "k") is None else "memory"


async def by_touch(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return "memory" if await cache.touch(namespace, "k", "1h") else source()


async def by_get_or_set(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return await cache.get_or_set(namespace, "k", source)


async def by_policy(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return await cache.get_or_set(namespace, "k", source, grace="1h", soft_timeout=5)


async def by_get_or_set_many(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return (await cache.get_or_set_many(namespace, ["k"], source.many))["k"]


async def by_cached(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    async def load() -> Any:
        return source()

    return await cache.cached(namespace, key="k")(load)()


async def by_cached_many(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    async def load(keys: list[str]) -> dict[str, Any]:
        return source.many(keys)

    return (await cache.cached_many(namespace, key="{keys}")(load)(["k"]))["k"]


async def in_a_thread(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return await asyncio.to_thread(cache.sync.get_or_set, namespace, "k", source)


async def in_a_thread_by_policy(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return await asyncio.to_thread(cache.sync.get_or_set, namespace, "k", source, grace="1h")


async def in_a_thread_by_get(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    value = await asyncio.to_thread(cache.sync.get, namespace, "k")
    return source() if value is None else value


async def in_a_thread_by_cached(cache: AsyncCacheManager, namespace: Namespace, source: Source) -> Any:
    return await asyncio.to_thread(cache.sync.cached(namespace, key="k")(lambda: source()))


WAYS = [
    by_get, by_get_many, by_contains, by_ttl, by_touch, by_get_or_set, by_policy, by_get_or_set_many, by_cached,
    by_cached_many, in_a_thread, in_a_thread_by_policy, in_a_thread_by_get, in_a_thread_by_cached,
]  # fmt: skip
every_way = pytest.mark.parametrize("read", WAYS, ids=lambda way: way.__name__)


@every_way
async def test_memory_serves_what_was_read_before_for_so_long_and_then_the_source_is_asked(
    proxy: Proxy, read: Read
) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set(BOUNDED, "k", "memory")
        source = Source()
        await cut_off(cache, proxy)
        clock.advance(25)
        assert await read(cache, BOUNDED, source) == "memory"
        clock.advance(10)
        assert [await read(cache, BOUNDED, source) for _ in range(3)] == ["source"] * 3
        assert source.calls == 3


@every_way
async def test_memory_serves_what_was_stored_meanwhile_no_longer(proxy: Proxy, read: Read) -> None:
    async with connected(proxy) as (cache, clock):
        source = Source()
        await cut_off(cache, proxy)
        clock.advance(25)
        assert await cache.set(BOUNDED, "k", "memory") is True
        assert await read(cache, BOUNDED, source) == "memory"
        clock.advance(10)
        assert [await read(cache, BOUNDED, source) for _ in range(3)] == ["source"] * 3
        assert await cache.set(BOUNDED, "k", "memory") is False
        assert await read(cache, BOUNDED, source) == "source"


@every_way
async def test_zero_asks_the_source_at_once(proxy: Proxy, read: Read) -> None:
    async with connected(proxy) as (cache, _):
        await cache.set(NEVER, "k", "memory")
        assert await read(cache, NEVER, Source()) == "memory"
        await cut_off(cache, proxy)
        source = Source()
        assert [await read(cache, NEVER, source) for _ in range(3)] == ["source"] * 3
        assert source.calls == 3
        assert await cache.set(NEVER, "k", "memory") is False
        assert await read(cache, NEVER, source) == "source"


@every_way
async def test_without_it_memory_serves_until_the_end_of_the_value(proxy: Proxy, read: Read) -> None:
    namespace = Namespace("unbounded", ttl="2h")
    async with connected(proxy) as (cache, clock):
        await cache.set(namespace, "k", "memory")
        await cut_off(cache, proxy)
        clock.advance(HOUR)
        assert await read(cache, namespace, Source()) == "memory"


@every_way
async def test_a_cache_without_redis_is_never_cut_off(read: Read) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_enabled=False) as cache:
            assert await cache.set(NEVER, "k", "memory") is True
            clock.advance(60)
            assert await read(cache, NEVER, Source()) == "memory"


@every_way
async def test_a_process_that_never_had_contact_counts_from_its_first_attempt(proxy: Proxy, read: Read) -> None:
    proxy.refuse()
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.5) as cache:
            clock.advance(HOUR)
            assert await cache.set(BOUNDED, "k", "memory") is True
            assert await cache.set(NEVER, "k", "memory") is False
            clock.advance(25)
            assert await read(cache, BOUNDED, Source()) == "memory"
            clock.advance(10)
            assert await read(cache, BOUNDED, Source()) == "source"
            assert await read(cache, NEVER, Source()) == "source"


async def test_it_is_counted_from_the_last_confirmation_and_not_from_the_failure(proxy: Proxy) -> None:
    """Into a black hole, announcements are lost long before anybody notices."""
    async with connected(proxy) as (cache, clock):
        await cache.set(BOUNDED, "k", "memory")
        confirmed = clock()
        proxy.black_hole()
        clock.advance(20)
        # Now it is noticed: 20 s have gone by.
        assert await cache.get(BOUNDED, "k") == "memory"
        assert not cache.redis_available
        clock.advance(confirmed + 29 - clock())
        assert await cache.get(BOUNDED, "k") == "memory"
        clock.advance(2)
        assert await cache.get(BOUNDED, "k") is None


async def test_what_a_lost_connection_brought_counts_from_its_own_loss(proxy: Proxy) -> None:
    """Another connection of the process has stood for longer, but it was not told of this value's changes."""
    async with connected(proxy) as (cache, clock):
        await cache.set(BOUNDED, "k", "memory")
        state = cache._state
        ours = only_wire_of(state)
        ours.trust.kill()
        clock.advance(20)
        # The background loop's, which is confirmed only now.
        await asyncio.to_thread(cache.sync.set, BOUNDED, "other", "memory")
        await cut_off(cache, proxy)
        assert clock() < state.generations.served_until(ours.trust, 30, b"")
        clock.advance(15)
        assert await cache.get(BOUNDED, "k") is None
        assert await cache.get(BOUNDED, "other") == "memory"


async def test_redis_is_asked_and_believed_once_it_is_back(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set(BOUNDED, "k", "memory")
        await cut_off(cache, proxy)
        clock.advance(40)
        assert await cache.get(BOUNDED, "k") is None
        proxy.resume()
        clock.advance(5)
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get(BOUNDED, "k") == "memory"


async def test_what_was_stored_meanwhile_is_worthless_once_redis_is_back(proxy: Proxy) -> None:
    namespaces = [Namespace(f"n{offline}", ttl="1h", offline=offline) for offline in (60, 90)]
    async with connected(proxy) as (cache, clock):
        await cut_off(cache, proxy)
        for namespace in namespaces:
            assert await cache.set(namespace, "k", "memory")
            assert await cache.get(namespace, "k") == "memory"
        proxy.resume()
        clock.advance(5)
        await wait_until_async(lambda: cache.redis_available)
        for namespace in namespaces:
            assert await cache.get(namespace, "k") is None


async def test_a_trust_of_the_outage_dies_however_late_it_is_made() -> None:
    whole = OfflineTrust(float("inf"))
    before = whole.until(5.0)
    assert whole.until(5.0) is before
    whole.kill()
    assert before.deadline == whole.until(7.0).deadline == float("-inf")
    many = OfflineTrust(float("inf"))
    deadlines = [many.until(float(number)).deadline for number in range(10_000)]
    assert deadlines[0] == 0.0
    assert deadlines[-1] == float("-inf")
    assert len(many._bounded) < 1_000


# -- policies ---------------------------------------------------------------------------------------------------


async def test_nothing_stale_is_served_past_it_either(proxy: Proxy) -> None:
    namespace = Namespace("stale", ttl=5, grace="1h", offline=30, retry="1ms")
    async with connected(proxy) as (cache, clock):
        await cache.get_or_set(namespace, "k", Source("old"))
        await cut_off(cache, proxy)
        clock.advance(20)
        failing = Source(OSError("the source is down"))
        assert await cache.get_or_set(namespace, "k", failing) == "old"
        assert await asyncio.to_thread(cache.sync.get_or_set, namespace, "k", failing) == "old"
        clock.advance(20)
        with pytest.raises(OSError, match="the source is down"):
            await cache.get_or_set(namespace, "k", failing)
        with pytest.raises(OSError, match="the source is down"):
            await asyncio.to_thread(cache.sync.get_or_set, namespace, "k", failing)
        with pytest.raises(OSError, match="the source is down"):
            await cache.get_or_set_many(namespace, ["k"], failing)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_remembered_errors_are_not_served_past_it(proxy: Proxy, when: str) -> None:
    namespace = Namespace("errors", ttl="1h", negative={LookupError: "1h"}, offline=30)
    async with connected(proxy) as (cache, clock):
        source = Source(LookupError("unknown"))
        if when == "meanwhile":
            await cut_off(cache, proxy)
        with pytest.raises(LookupError):
            await cache.get_or_set(namespace, "k", source)
        if when == "before":
            await cut_off(cache, proxy)
        with pytest.raises(LookupError):
            await cache.get_or_set(namespace, "k", source)
        assert source.calls == 1
        clock.advance(40)
        source.value = "found"
        assert await cache.get_or_set(namespace, "k", source) == "found"
        assert await asyncio.to_thread(cache.sync.get_or_set, namespace, "k", source) == "found"
        assert source.calls == 3


async def test_an_early_refresh_serves_nothing_past_it(proxy: Proxy) -> None:
    namespace = Namespace("early", ttl="1h", early=1.0, offline=30)
    async with connected(proxy) as (cache, clock):
        await cache.get_or_set(namespace, "k", Source("old"))
        await cut_off(cache, proxy)
        assert await cache.get_or_set(namespace, "k", Source("new")) == "old"
        clock.advance(40)
        assert await cache.get_or_set(namespace, "k", Source("new")) == "new"


# -- one load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", [NEVER, LOCAL_NEVER])
@pytest.mark.parametrize("begun", ["before", "meanwhile"])
async def test_callers_at_a_time_share_a_load_and_later_ones_do_not_join_it(
    proxy: Proxy, begun: str, namespace: Namespace
) -> None:
    """What was read from the source too long ago may have been changed since, and nobody would say so."""
    async with connected(proxy) as (cache, clock):
        slow = Gated()
        if begun == "meanwhile":
            await cut_off(cache, proxy)
        first = [asyncio.create_task(cache.get_or_set(namespace, "k", slow)) for _ in range(5)]
        await wait_until_async(lambda: slow.calls == 1 and cache._state.flights.joined == 4)
        if begun == "before":
            await cut_off(cache, proxy)
        clock.advance(cache._state.settings.max_staleness + 1)
        later = asyncio.create_task(cache.get_or_set(namespace, "k", slow))
        await wait_until_async(lambda: slow.calls == 2)
        slow.open.set()
        assert await asyncio.gather(*first) == [1] * 5
        assert await later == 2
        assert await cache.get_or_set(namespace, "k", slow) == 3


async def test_within_it_callers_join_a_load_however_long_it_takes(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        await cut_off(cache, proxy)
        slow = Gated()
        first = asyncio.create_task(cache.get_or_set(BOUNDED, "k", slow))
        await wait_until_async(lambda: slow.calls == 1)
        clock.advance(20)
        second = asyncio.create_task(cache.get_or_set(BOUNDED, "k", slow))
        await wait_until_async(lambda: cache._state.flights.joined == 1)
        slow.open.set()
        assert await asyncio.gather(first, second) == [1, 1]


# -- what people see --------------------------------------------------------------------------------------------


async def test_explain_says_for_how_long_and_why_not(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set(BOUNDED, "k", "memory", tags="x")
        assert "offline" not in (await cache.explain(BOUNDED, "k")).verdict
        await cut_off(cache, proxy)
        clock.advance(20)
        served = await cache.explain(BOUNDED, "k")
        assert served.level == "l1"
        assert served.tags == ("x",)
        assert "in this process; Redis is away (" in served.verdict
        assert "memory may serve it for" in served.verdict
        clock.advance(20)
        refused = await cache.explain(BOUNDED, "k")
        assert refused.level is None
        assert "in this process, but not served" in refused.verdict
        assert "contact was lost 40 s ago, and namespace 'bounded' has offline=30" in refused.verdict
        assert (await cache.explain(BOUNDED, "other")).verdict.startswith("not there; Redis is away (")
        clock.advance(HOUR)
        assert (await cache.explain(BOUNDED, "k")).verdict.startswith("not there; Redis is away (")


async def test_explain_tells_what_an_earlier_outage_made_suspect(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set("t", "k", "memory", "1h")
        for _ in range(2):
            await cut_off(cache, proxy)
            told = await cache.explain("t", "k")
            proxy.resume()
            clock.advance(5)
            await wait_until_async(lambda: cache.redis_available)
        assert "may have been changed unheard" in told.verdict
        assert told.level is None


def test_the_argument() -> None:
    assert Namespace("n").offline is None
    assert Namespace("n", offline="1m").offline == 60
    assert Namespace("n", offline=0).offline == 0
    namespace = Namespace("n", offline=1.5)
    assert repr(namespace) == "Namespace('n', offline=1.5)"
    assert pickle.loads(pickle.dumps(namespace)).offline == copy.deepcopy(namespace).offline == 1.5
    assert namespace.policy["offline"] == 1.5
    with pytest.raises(CacheArgumentError, match="offline"):
        Namespace("n", offline=-1)
    with pytest.raises(CacheArgumentError, match="offline"):
        Namespace("n", offline="soon")
    with pytest.raises(CacheArgumentError, match="offline"):
        Namespace("n", offline=[])  # type: ignore[arg-type]


def test_a_loop_that_ended_without_a_word_counts_until_it_was_last_confirmed(proxy: Proxy) -> None:
    with virtual_clock() as clock, CacheManager(redis_url=proxy.url, op_timeout=0.5) as cache:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(cache.aio.set(BOUNDED, "k", "memory"))
        confirmed = clock()
        state = cache._state
        clock.advance(10)
        proxy.refuse()
        proxy.cut()
        end_tasks(loop)
        loop.close()
        cache.get("t", "unknown")
        wait_until(lambda: not cache.redis_available)
        assert state.contact(b"") == pytest.approx(confirmed, abs=1)
        assert cache.get(BOUNDED, "k") == "memory"
        clock.advance(25)
        assert cache.get(BOUNDED, "k") is None


async def test_a_flush_does_not_hide_when_the_last_contact_was(proxy: Proxy, raw: redis.Redis) -> None:
    async with connected(proxy) as (cache, clock):
        state = cache._state
        wire = only_wire_of(state)
        before = wire.trust
        raw.flushall()
        await wait_until_async(lambda: wire.trust is not before)
        confirmed = clock()
        proxy.black_hole()
        clock.advance(20)
        assert await cache.get("t", "unknown") is None
        assert not cache.redis_available
        assert state.contact(b"") == pytest.approx(confirmed, abs=2)


async def test_what_was_read_after_a_flush_is_suspect_once_its_connection_was_replaced(
    proxy: Proxy, raw: redis.Redis
) -> None:
    async with connected(proxy) as (cache, _):
        wire = only_wire_of(cache)
        before = wire.trust
        await asyncio.to_thread(cache.sync.get, "t", "unknown")
        raw.flushall()
        await wait_until_async(lambda: wire.trust is not before)
        await cache.set("t", "k", "memory", "1h")
        trust, number = wire.trust, wire.server.client
        raw.client_kill_filter(_id=str(number))
        await wait_until_async(lambda: wire.up and wire.server.client != number)
        assert wire.trust is not trust
        await cut_off(cache, proxy)
        assert await cache.get("t", "k") is None


# -- objects by reference ---------------------------------------------------------------------------------------

LOCAL = Namespace("local-bounded", local=True, ttl="1h", offline=30)


@every_way
async def test_local_objects_are_served_for_so_long_and_then_the_source_is_asked(proxy: Proxy, read: Read) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set(LOCAL, "k", "memory")
        await cache.set(LOCAL_NEVER, "k", "memory")
        await cut_off(cache, proxy)
        clock.advance(25)
        assert await read(cache, LOCAL, Source()) == "memory"
        assert await read(cache, LOCAL_NEVER, Source()) == "source"
        clock.advance(10)
        source = Source()
        assert [await read(cache, LOCAL, source) for _ in range(3)] == ["source"] * 3
        assert source.calls == 3
        assert await cache.set(LOCAL, "k", "memory") is False


@every_way
async def test_local_objects_that_were_stored_meanwhile_are_served_no_longer(proxy: Proxy, read: Read) -> None:
    async with connected(proxy) as (cache, clock):
        await cut_off(cache, proxy)
        clock.advance(25)
        assert await cache.set(LOCAL, "k", "memory") is True
        assert await read(cache, LOCAL, Source()) == "memory"
        clock.advance(10)
        assert await read(cache, LOCAL, Source()) == "source"


async def test_no_stale_local_object_is_served_past_it(proxy: Proxy) -> None:
    namespace = Namespace("local-stale", local=True, ttl=5, grace="1h", offline=30, retry="1ms")
    async with connected(proxy) as (cache, clock):
        await cache.get_or_set(namespace, "k", Source("old"))
        await cut_off(cache, proxy)
        clock.advance(20)
        failing = Source(OSError("the source is down"))
        assert await cache.get_or_set(namespace, "k", failing) == "old"
        clock.advance(20)
        with pytest.raises(OSError, match="the source is down"):
            await cache.get_or_set(namespace, "k", failing)


async def test_callers_join_a_load_of_a_local_object_that_began_before_within_it(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        slow = Gated()
        first = asyncio.create_task(cache.get_or_set(LOCAL, "k", slow))
        await wait_until_async(lambda: slow.calls == 1)
        await cut_off(cache, proxy)
        clock.advance(20)
        second = asyncio.create_task(cache.get_or_set(LOCAL, "k", slow))
        await wait_until_async(lambda: cache._state.flights.joined == 1)
        slow.open.set()
        assert await asyncio.gather(first, second) == [1, 1]


async def test_explain_says_so_of_local_objects(proxy: Proxy) -> None:
    async with connected(proxy) as (cache, clock):
        await cache.set(LOCAL, "k", "memory", tags="x")
        await cut_off(cache, proxy)
        clock.advance(20)
        served = await cache.explain(LOCAL, "k")
        assert (served.level, served.tags) == ("l1", ("x",))
        assert "its namespace is local, and Redis is away, and memory may serve it for" in served.verdict
        clock.advance(20)
        refused = await cache.explain(LOCAL, "k")
        assert (refused.level, refused.tags) == (None, ("x",))
        assert "in this process, but not served" in refused.verdict
        assert "has offline=30" in refused.verdict
        assert "its namespace is local" in (await cache.explain(LOCAL, "other")).verdict
