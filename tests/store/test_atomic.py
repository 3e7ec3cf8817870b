"""`add`, `incr` and `update` beside invalidations, loads, other processes, lost answers and outages."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.codec import encode, envelope
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.key_queues import KeyQueues
from magnus_cache._engine.store import updates
from magnus_cache.errors import (
    CacheArgumentError,
    CacheConflictError,
    CacheMissingError,
    CacheTypeError,
    CacheUnavailableError,
)
from magnus_cache.testing import Proxy
from tests.support.inside import state_of
from tests.support.wait import wait_until_answered, wait_until_async

NAME = b"magnus:t:k"
NUMBERS = Namespace("t", ttl=60)


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[AsyncCacheManager, AsyncCacheManager]]:
    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as other:
        await one.get("t", "nothing")
        await other.get("t", "nothing")
        yield one, other


Pair = tuple[AsyncCacheManager, AsyncCacheManager]

OPERATIONS: dict[str, Callable[[AsyncCacheManager], Any]] = {
    "incr": lambda cache: cache.incr("t", "k", 9),
    "update": lambda cache: cache.update("t", "k", lambda value: value + 9, default=0),
    "add": lambda cache: cache.add("t", "k", 9),
}


# -- other processes --------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
async def test_invariant_1_what_is_written_in_one_step_is_announced(pair: Pair, raw: Any, what: str) -> None:
    """Nothing in the near cache of another process outlives it."""
    one, other = pair
    await one.set("t", "k", 1)
    assert await other.get("t", "k") == 1
    if what == "add":
        await one.invalidate_tags("x")  # so that both know of the latest epochs
        raw.delete(NAME)
        await wait_until_answered(lambda: _is(other, None))
    assert await OPERATIONS[what](one) in (10, True)
    expected = 9 if what == "add" else 10
    await wait_until_answered(lambda: _is(other, expected))
    # Once more: the first answer has begun to track the key again.
    await (one.set("t", "k", 1) if what == "add" else OPERATIONS[what](one))
    await wait_until_answered(lambda: _is(other, 1 if what == "add" else 19))


async def _is(cache: AsyncCacheManager, value: Any) -> bool:
    found: Any = await cache.get("t", "k")
    return bool(found == value)


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
async def test_what_another_process_writes_after_it_is_announced_here(pair: Pair, what: str) -> None:
    """What was written in one step is near afterwards; the server tracks it, although it was our own write."""
    one, other = pair
    await OPERATIONS[what](one)
    before = (await one.get_stats())["namespaces"]["t"]["l1_hits"]
    assert await one.get("t", "k") == 9
    assert (await one.get_stats())["namespaces"]["t"]["l1_hits"] == before + 1
    await other.set("t", "k", 0)
    await wait_until_answered(lambda: _is(one, 0))


@pytest.mark.anyio
async def test_the_number_is_never_that_of_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    await one.incr("t", "k")
    # Whatever it is told, its memory stays behind.
    monkeypatch.setattr(type(state_of(one).announcements), "announced", lambda *_: None, raising=False)
    await other.incr("t", "k")
    assert await one.incr("t", "k") == 3
    assert await one.incr("t", "k", 0) == 3
    assert await one.update("t", "k", lambda value: value + 1) == 4
    assert await one.get("t", "k") == 4


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["incr", "update", "async"])
async def test_nothing_is_lost_among_two_processes_with_many_tasks(pair: Pair, how: str) -> None:
    async def later(value: int) -> int:
        return value + 1

    def one_more(cache: AsyncCacheManager) -> Any:
        if how == "incr":
            return cache.incr("t", "k")
        return cache.update("t", "k", later if how == "async" else lambda value: value + 1, default=0)

    results = await asyncio.gather(*(one_more(cache) for cache in pair for _ in range(50)))
    assert sorted(results) == list(range(1, 101))
    assert await pair[0].incr("t", "k", 0) == 100


@pytest.mark.anyio
async def test_of_two_processes_one_adds(pair: Pair) -> None:
    for number in range(20):
        added = await asyncio.gather(*(cache.add("t", f"k{number}", place) for place, cache in enumerate(pair)))
        assert sorted(added) == [False, True]
        assert await pair[0].get("t", f"k{number}") == added.index(True)


# -- what counts as a value -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
@pytest.mark.parametrize("by", ["namespace", "tag", "everything"])
async def test_invariant_2_what_was_written_before_a_clear_does_not_revive(
    pair: Pair, raw: Any, what: str, by: str
) -> None:
    """Redis may still have the bytes: a late write has brought them back, or they are not reclaimed yet."""
    one, other = pair
    await one.set("t", "k", 1, tags="x")
    before = raw.get(NAME)
    await {"namespace": lambda: other.clear("t"), "tag": lambda: other.invalidate_tags("x"),
           "everything": lambda: other.clear("magnus:*")}[by]()  # fmt: skip
    raw.set(NAME, before, px=60_000)
    assert await OPERATIONS[what](one) in (9, True)
    assert await one.get("t", "k") == 9
    assert await other.get("t", "k") == 9


@pytest.mark.anyio
async def test_a_clear_while_an_increment_is_on_its_way_leaves_nothing_of_the_old_number(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, raw: Any
) -> None:
    """The server counted on what had been cleared: the number is not returned, and the next one begins anew."""
    one, other = pair
    await one.set("t", "k", 7, tags="x")
    before = raw.get(NAME)
    increment = state_of(one).client.increment

    async def late(*args: Any) -> Any:
        monkeypatch.undo()
        await other.invalidate_tags("x")
        await other.clear("t")
        raw.set(NAME, before, px=60_000)
        return await increment(*args)

    monkeypatch.setattr(state_of(one).client, "increment", late)
    assert await one.incr("t", "k") == 1
    assert await one.incr("t", "k") == 2


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
async def test_invariant_7_what_was_invalidated_in_an_outage_is_nothing(
    proxy: Proxy, raw: Any, what: str
) -> None:  # fmt: skip
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        await cache.set("t", "k", 1)
        proxy.refuse()
        proxy.cut()
        await cache.delete("t", "k")
        await wait_until_async(lambda: not cache.redis_available)
        assert raw.exists(NAME)
        proxy.resume()

        async def works() -> bool:
            with contextlib.suppress(CacheUnavailableError):
                return await cache.incr("t", "other") > 0
            return False

        await wait_until_answered(works)
        assert await OPERATIONS[what](cache) in (9, True)


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
@pytest.mark.parametrize("bytes_", [b"", b"x", b"foreign" * 20, "damaged", "list"])
async def test_invariant_9_what_cannot_be_read_is_nothing(
    pair: Pair, raw: Any, what: str, bytes_: Any
) -> None:  # fmt: skip
    if bytes_ == "list":
        raw.lpush(NAME, "x")
    elif bytes_ == "damaged":
        await pair[0].set("t", "k", 1)
        raw.setrange(NAME, len(raw.get(NAME)) - 1, b"\x05")
    else:
        raw.set(NAME, bytes_)
    assert await OPERATIONS[what](pair[0]) in (9, True)
    assert await pair[1].get("t", "k") == 9


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
async def test_a_stale_value_and_a_remembered_error_are_nothing(pair: Pair, raw: Any, what: str) -> None:
    stale = Namespace("t", ttl=60, grace=60, negative={LookupError: 60})
    await pair[0].get(stale, "k")
    for fields in ({"fresh_until": 1}, {"fresh_until": 1 << 60, "negative": True}):
        state = state_of(pair[0])
        packed = envelope.pack(encode(1), version=1, epoch=state.epochs.highest, **fields)  # type: ignore[arg-type]
        raw.set(NAME, packed, px=60_000)
        assert await OPERATIONS[what](pair[0]) in (9, True)


@pytest.mark.anyio
async def test_a_number_with_a_validator_is_counted_too(pair: Pair, raw: Any) -> None:
    await pair[0].set("t", "k", 4, tags="x")
    header = envelope.read_header(raw.get(NAME))
    packed = envelope.pack(
        encode(4), version=1, fresh_until=header.fresh_until, epoch=header.epoch, life=header.life,
        validator="etag", tags=("x",),
    )  # fmt: skip
    raw.set(NAME, packed, px=60_000)
    assert await pair[0].incr("t", "k") == 5
    assert envelope.unpack(raw.get(NAME), 100)[3] == ("x",)
    assert await pair[0].incr("t", "k") == 6


@pytest.mark.anyio
async def test_an_increment_changes_nothing_but_the_number(pair: Pair, raw: Any) -> None:
    await pair[0].set("t", "k", 1, tags=("x", "y"))
    before = envelope.read_header(raw.get(NAME))
    await pair[0].incr("t", "k", 1000)
    stored = raw.get(NAME)
    after = envelope.read_header(stored)
    assert after._replace(checksum=0, version=0, size=0) == before._replace(checksum=0, version=0, size=0)
    assert after.version != before.version
    assert envelope.read_tags(stored, after)[0] == ("x", "y")
    assert 0 < raw.pttl(NAME) <= 300_000


@pytest.mark.anyio
async def test_many_tags_are_not_in_the_way(pair: Pair) -> None:
    tags = [f"a-rather-long-tag-{number}" for number in range(100)]
    await pair[0].set("t", "k", 1, tags=tags)
    assert await pair[0].incr("t", "k") == 2
    await pair[1].invalidate_tags(tags[50])
    assert await pair[0].incr("t", "k") == 1


# -- loads ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("what", OPERATIONS)
@pytest.mark.parametrize("where", ["same", "other", "memory"])
async def test_invariant_2_a_load_that_is_overtaken_is_not_stored(
    pair: Pair, what: str, where: str
) -> None:  # fmt: skip
    async with AsyncCacheManager(redis_enabled=False) as alone:
        loading, writing = (alone, alone) if where == "memory" else (pair[0], pair[0 if where == "same" else 1])
        began, proceed = asyncio.Event(), asyncio.Event()

        async def load() -> int:
            began.set()
            await proceed.wait()
            return 100

        first = asyncio.ensure_future(loading.get_or_set("t", "k", load))
        await began.wait()
        await OPERATIONS[what](writing)
        # A caller that comes after does not join what began before.
        assert await writing.get_or_set("t", "k", lambda: 200) == 9
        proceed.set()
        assert await first == 100
        assert await loading.get("t", "k") == 9


@pytest.mark.anyio
async def test_an_add_that_stores_nothing_disturbs_no_load(pair: Pair) -> None:
    one, other = pair
    await one.set("t", "k", 1)
    began, proceed = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        began.set()
        await proceed.wait()
        return 2

    with one.bypass():
        first = asyncio.ensure_future(one.get_or_set("t", "k", load))
        await began.wait()
    assert await other.add("t", "k", 3) is False
    proceed.set()
    assert await first == 2
    await wait_until_answered(lambda: _is(other, 2))


# -- lost answers -----------------------------------------------------------------------------------------------


async def _answer_lost(proxy: Proxy, work: Any) -> Any:
    """Return a call whose command the server gets and whose answer never arrives, once the connection was cut."""
    proxy.freeze("to_client")
    before = proxy.counts.bytes_waiting
    call = asyncio.ensure_future(work)
    await wait_until_async(lambda: proxy.counts.bytes_waiting > before)
    proxy.cut()
    proxy.thaw("to_client")
    return await call


async def _begun(work: Any, *args: Any) -> Any:
    """Begin a request only when it is awaited: after the answers are held back."""
    return await work(*args)


async def _ready(cache: AsyncCacheManager) -> None:
    """Return once the next write is one request: its epochs and the server's clock are known."""
    await cache.set("t", "k", 0)
    await cache.incr("t", "k", 5)


@pytest.mark.anyio
async def test_an_increment_whose_answer_was_lost_is_not_repeated(proxy: Proxy, pair: Pair) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        with pytest.raises(CacheUnavailableError, match="may have been counted"):
            await _answer_lost(proxy, cache.incr("t", "k"))
        assert await pair[0].incr("t", "k", 0) == 6
        await wait_until_answered(lambda: _is(cache, 6))


@pytest.mark.anyio
async def test_a_count_in_this_process_whose_answer_was_lost_begins_at_redis_number(proxy: Proxy, pair: Pair) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        # It was counted, and may not have been.
        assert await _answer_lost(proxy, cache.incr("t", "k", offline="local")) in (6, 7)
        assert await pair[0].incr("t", "k", 0) == 6


@pytest.mark.anyio
async def test_an_add_whose_answer_was_lost_knows_its_own_value(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        assert await _answer_lost(proxy, cache.add("t", "new", "mine")) is True
        assert await cache.get("t", "new") == "mine"


@pytest.mark.anyio
async def test_an_update_whose_answer_was_lost_is_done_once(
    proxy: Proxy, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        swap, asked = state_of(cache).client.swap, 0

        def swapping(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            return _answer_lost(proxy, _begun(swap, *args)) if asked == 1 else swap(*args)

        monkeypatch.setattr(state_of(cache).client, "swap", swapping)
        assert await cache.update("t", "k", lambda value: value + 1) == 6
        assert asked == 2
        assert await pair[0].incr("t", "k", 0) == 6


@pytest.mark.anyio
async def test_an_update_whose_answer_was_lost_is_not_made_again_on_what_came_after(
    proxy: Proxy, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        swap, asked = state_of(cache).client.swap, 0

        async def swapping(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:
                return await swap(*args)
            try:
                return await _answer_lost(proxy, _begun(swap, *args))
            finally:
                await pair[0].incr("t", "k", 100)

        monkeypatch.setattr(state_of(cache).client, "swap", swapping)
        with pytest.raises(CacheUnavailableError, match="may have been stored"):
            await cache.update("t", "k", lambda value: value + 1)
        assert await pair[0].incr("t", "k", 0) == 106


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["incr", "update"])
async def test_what_is_cancelled_leaves_nothing_near_that_may_be_old(proxy: Proxy, pair: Pair, what: str) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await _ready(cache)
        proxy.freeze("to_client")
        before = proxy.counts.bytes_waiting
        call = asyncio.ensure_future(OPERATIONS[what](cache))
        await wait_until_async(lambda: proxy.counts.bytes_waiting > before)
        call.cancel()
        await asyncio.wait([call])
        proxy.thaw("to_client")
        # The next call of the key begins, whatever the cancelled one had.
        counted = await cache.incr("t", "k")
        assert counted == await pair[0].incr("t", "k", 0) == await cache.get("t", "k")
        assert await cache.update("t", "k", lambda value: value + 1) == counted + 1


# -- outages ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_in_an_outage_counting_raises_or_goes_on_here(proxy: Proxy, pair: Pair) -> None:
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        assert await cache.incr("t", "k", 5) == 5
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "other")
        await wait_until_async(lambda: not cache.redis_available)
        with pytest.raises(CacheUnavailableError, match="nothing was counted"):
            await cache.incr("t", "k")
        # From the number that was known here.
        assert [await cache.incr("t", "k", offline="local") for _ in range(3)] == [6, 7, 8]
        assert await cache.decr("t", "new", initial=10, offline="local") == 9
        assert await cache.get("t", "k") == 8
        await pair[0].incr("t", "k", 100)
        proxy.resume()
        # Redis continues from its own number: what was counted here is not added, and removes nothing.
        await wait_until_answered(lambda: _is(cache, 105))
        assert await cache.incr("t", "k") == 106
        assert await cache.get("t", "new") is None


@pytest.mark.anyio
async def test_in_an_outage_an_update_raises_or_is_done_here(proxy: Proxy, pair: Pair) -> None:
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        await cache.set("t", "k", [1])
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "other")
        await wait_until_async(lambda: not cache.redis_available)
        with pytest.raises(CacheUnavailableError, match="nothing was stored"):
            await cache.update("t", "k", lambda value: [*value, 2])
        assert await cache.update("t", "k", lambda value: [*value, 2], offline="local") == [1, 2]
        assert await cache.update("t", "k", lambda value: [*value, 3], offline="local") == [1, 2, 3]
        assert await cache.get("t", "k") == [1, 2, 3]
        assert await pair[0].get("t", "k") == [1]
        proxy.resume()
        # As after a `set`: the value that Redis has is outdated.
        await wait_until_answered(lambda: _is(pair[0], None))
        assert await cache.get("t", "k") is None


@pytest.mark.anyio
async def test_in_an_outage_memory_decides_what_is_added(proxy: Proxy, pair: Pair) -> None:
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        await cache.set("t", "k", "known")
        await pair[0].set("t", "unknown", "theirs")
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "other")
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.add("t", "k", 1) is False
        assert await cache.add("t", "unknown", "mine") is True
        assert await cache.add("t", "unknown", "mine again") is False
        assert await cache.get("t", "unknown") == "mine"
        proxy.resume()

        async def theirs() -> bool:
            return bool(await cache.get("t", "unknown") == "theirs")

        # Nothing that is there was replaced.
        await wait_until_answered(theirs)


@pytest.mark.anyio
async def test_without_any_place_there_is_an_error() -> None:
    nowhere = Namespace("nowhere", l1=False)
    async with AsyncCacheManager(redis_enabled=False) as cache:
        assert await cache.add(nowhere, "k", 1) is False
        with pytest.raises(CacheUnavailableError, match="l1"):
            await cache.incr(nowhere, "k")
        with pytest.raises(CacheUnavailableError, match="l1"):
            await cache.update(nowhere, "k", lambda _: 1)


@pytest.mark.anyio
async def test_what_redis_refuses_is_an_error_also_where_counting_here_is_allowed(
    private_server_with: Callable[..., Any], raw: Any
) -> None:
    server = private_server_with(maxmemory="1mb", maxmemory_policy="noeviction")
    async with AsyncCacheManager(redis_url=server.url) as cache:
        await cache.get("t", "k")
        with pytest.raises(CacheUnavailableError) as caught:
            for _ in range(3):
                await cache.incr("t", "k", offline="local")
        assert caught.value.refused
        assert await cache.add("t", "k", 1) is False


# -- functions of callers ---------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["redis", "memory"], ids=["server", "memory"])
async def test_a_function_runs_again_on_what_came_in_between(url: str, place: str) -> None:
    async with AsyncCacheManager(redis_url=url, redis_enabled=place == "redis") as cache:
        await cache.set("t", "k", 1)
        seen: list[int] = []

        async def add_one(value: int) -> int:
            seen.append(value)
            if len(seen) == 1:
                await cache.set("t", "k", 50)
            elif len(seen) == 2:
                await cache.incr("t", "k", 50)
            elif len(seen) == 3:
                await cache.delete("t", "k")
            return value + 1

        assert await cache.update("t", "k", add_one, default=0) == 1
        assert seen == [1, 50, 100, 0]
        assert await cache.get("t", "k") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["redis", "memory"], ids=["server", "memory"])
async def test_a_value_that_changes_all_the_time_is_a_clear_error(
    url: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "ATTEMPTS", 5)
    monkeypatch.setattr(updates, "PATIENCE", 0.0)
    async with AsyncCacheManager(redis_url=url, redis_enabled=place == "redis") as cache:
        calls = 0

        async def overtaken(value: int) -> int:
            nonlocal calls
            calls += 1
            await cache.incr("t", "k")
            return value

        with pytest.raises(CacheConflictError, match="in each of 5 attempts") as caught:
            await cache.update("t", "k", overtaken, default=0)
        assert (caught.value.operation, caught.value.namespace, caught.value.attempts) == ("update", "t", 5)
        assert calls == 5
        assert await cache.get("t", "k") == 5


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["redis", "memory"], ids=["server", "memory"])
async def test_a_function_that_hangs_holds_up_nothing(url: str, place: str) -> None:
    """Not even another update of the same key."""
    async with AsyncCacheManager(redis_url=url, redis_enabled=place == "redis") as cache:
        began, proceed = asyncio.Event(), asyncio.Event()

        async def hang(value: int) -> int:
            began.set()
            await proceed.wait()
            return value + 1

        first = asyncio.ensure_future(cache.update("t", "k", hang, default=0))
        await began.wait()
        assert await cache.update("t", "k", lambda value: value + 10, default=0) == 10
        assert await cache.incr("t", "k") == 11
        assert await cache.get_or_set("t", "k", lambda: 0) == 11
        blocking = threading.Thread(target=lambda: cache.sync.update("t", "k", lambda value: value + 1))
        blocking.start()
        await wait_until_async(lambda: not blocking.is_alive())
        proceed.set()
        assert await first == 13
        # The thread has its result before its turn has ended.
        await wait_until_async(lambda: len(cache._engine.writes.queues) == 0)


def test_a_blocking_update_calls_its_function_in_the_callers_thread(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        threads: list[threading.Thread] = []

        def note(value: int) -> int:
            threads.append(threading.current_thread())
            return value + 1

        assert cache.update("t", "k", note, default=0) == 1
        assert threads == [threading.current_thread()]


def test_an_interrupted_blocking_update_leaves_its_turn() -> None:
    with CacheManager(redis_enabled=False) as cache:

        def interrupt(_: Any) -> int:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.update("t", "k", interrupt)
        assert cache.update("t", "k", lambda value: value, default=1) == 1


@pytest.mark.anyio
async def test_the_value_of_a_function_is_its_own(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        kept: list[Any] = []

        def note(value: list[int]) -> list[int]:
            value.append(2)
            kept.append(value)
            return value

        await cache.set("t", "k", [1])
        result = await cache.update("t", "k", note)
        result.append(3)
        kept[0].append(4)
        assert await cache.get("t", "k") == [1, 2]


@pytest.mark.anyio
async def test_large_values_are_updated_in_steps(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        large = {str(number): number for number in range(50_000)}
        await cache.set("t", "k", large)
        assert await cache.update("t", "k", lambda value: value | {"more": 1}) == large | {"more": 1}
        assert await cache.get("t", "k") == large | {"more": 1}
        with pytest.raises(CacheTypeError):
            await cache.incr("t", "k")


# -- turns ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_turns_follow_each_other() -> None:
    queues, order = KeyQueues(60), list[int]()

    async def take(number: int) -> None:
        turn = await queues.turn(b"k")
        order.append(number)
        await asyncio.sleep(0)
        assert order[-1] == number
        turn.end()
        turn.end()

    tasks = [asyncio.ensure_future(take(number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[5].cancel()
    await asyncio.wait(tasks)
    assert order == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert len(queues) == 0


@pytest.mark.anyio
async def test_a_turn_that_takes_too_long_passes_on() -> None:
    queues = KeyQueues(0.01)
    slow = await queues.turn(b"k")
    began = monotonic()
    second, third = await asyncio.gather(queues.turn(b"k"), queues.turn(b"k"))
    assert monotonic() - began >= 0.01
    slow.end()
    other = await queues.turn(b"other")
    for turn in (second, third, other):
        turn.end()
    assert len(queues) == 0


# -- counters that have to be there -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_counter_that_is_missing_is_not_created_if_the_caller_says_so(pair: Pair, raw: Any) -> None:
    one, other = pair
    with pytest.raises(CacheMissingError, match="'t'"):
        await one.incr("t", "k", create=False)
    assert raw.get(NAME) is None
    await other.set("t", "k", 1)
    assert await one.incr("t", "k", 4, create=False) == 5
    assert await one.decr("t", "k", create=False) == 4
    # What was invalidated is missing, also where the server still has it.
    await other.clear("t")
    with pytest.raises(CacheMissingError):
        await one.decr("t", "k", create=False)
    await other.set("t", "k", 2**60)
    assert await one.incr("t", "k", create=False) == 2**60 + 1
    with pytest.raises(CacheTypeError, match="create"):
        await one.incr("t", "k", create=1)  # type: ignore[arg-type]
    with pytest.raises(CacheArgumentError, match="initial"):
        await one.incr("t", "k", initial=1, create=False)


@pytest.mark.anyio
async def test_a_missing_counter_is_missing_in_an_outage_too(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        await cache.set("t", "k", 1)
        assert await cache.get("t", "k") == 1
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "nothing")
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.incr("t", "k", create=False, offline="local") == 2
        with pytest.raises(CacheMissingError):
            await cache.incr("t", "other", create=False, offline="local")


def test_a_missing_counter_without_redis() -> None:
    with CacheManager(redis_enabled=False) as cache:
        with pytest.raises(CacheMissingError):
            cache.incr("t", "k", create=False)
        with cache.disabled(), pytest.raises(CacheMissingError):
            cache.incr("t", "k", create=False)
        cache.set("t", "k", 3)
        assert cache.incr("t", "k", create=False) == 4
