"""What takes long is done in steps, or where it holds up nobody else; counted in turns of the loop, not in seconds."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheDeadlockError, CacheManager, Namespace, register_type
from magnus_cache._engine import codec
from magnus_cache._engine.codec import values as codec_values
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.clear_log import Clear, ClearLog
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.redis.pipeline import Pipeline, Read
from magnus_cache._engine.runtime import turns as pacing
from magnus_cache._engine.runtime.workers import LoaderThreads
from magnus_cache.errors import CacheDecodeError, CacheEncodeError, CacheUnavailableError
from tests.support.inside import push, wire_of
from tests.support.memory import put
from tests.support.turns import turns
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

MANY_ROWS = 5_000
"""Rows of a value that is encoded in at least 90 steps and decoded in at least 20."""


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "price": Decimal("12.34"), "at": datetime(2025, 1, 1, tzinfo=UTC)} for i in range(count)]


def large() -> dict[str, Any]:
    return {"rows": rows(MANY_ROWS)}


@pytest.fixture
def one_step_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each step take all of our share of its turn, so that turns count steps."""
    monkeypatch.setattr(pacing, "SHARE", -1.0)


# -- the codec ----------------------------------------------------------------------------------------------------


class Shared:
    """What is the same object all over a value."""

    one: ClassVar[Any] = [1, [2]]


VALUES: dict[str, Any] = {
    "rows": rows(3_000),
    "rows in a dict": {"rows": rows(3_000), "more": [1], "and": {"rows": rows(600)}},
    "rows as tuples": tuple((i, "é", None) for i in range(3_000)),
    "numbers": list(range(70_000)),
    "a large dict": {(i, "k"): i for i in range(5_000)},
    "one item": [rows(3_000)],
    "bytearrays": [[bytearray(b"x")] for _ in range(3_000)],
    "lone surrogates": [f"\ud800{i}" for i in range(5_000)],
    "sets": [{1, 2} for _ in range(2_000)],
    "a set": frozenset(range(5_000)),
    "alike": [Shared.one] * 5_000,
    "nested": [[[[i] * 10 for i in range(10)] for _ in range(20)] for _ in range(20)],
    "one large among small": [[1], [2], rows(3_000), [3]] + [[i] for i in range(2_000)],
}


@pytest.mark.parametrize("name", VALUES)
def test_steps_make_the_same_bytes_and_the_same_value(name: str) -> None:
    value = VALUES[name]
    payload = codec.encode(value)
    assert codec.is_heavy(value)
    assert pacing.at_once(codec.encode_steps(value)) == payload
    assert pacing.at_once(codec.decode_steps(payload)) == value
    assert codec.decode(payload) == value


def test_a_large_value_takes_many_steps() -> None:
    value = large()
    payload = codec.encode(value)
    # Of 256 values at most, and of 16 kilobytes.
    assert sum(1 for _ in codec.encode_steps(value)) >= MANY_ROWS * 4 // 256
    assert sum(1 for _ in codec.decode_steps(payload)) >= len(payload) // 16_384
    assert not codec.is_heavy({"id": 1, "tags": ["a", "b"], "more": {"x": (1, 2)}})


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_what_cannot_be_encoded_is_refused_in_steps_as_well(kind: type) -> None:
    inner: Any = 1
    for _ in range(1_500):
        inner = [inner]
    for wrong in (inner, object()):
        value: Any = {"wrong": [*range(3_000), wrong]} if kind is dict else kind([*range(3_000), wrong])
        with pytest.raises(CacheEncodeError) as whole:
            codec.encode(value)
        with pytest.raises(CacheEncodeError) as stepped:
            pacing.at_once(codec.encode_steps(value))
        assert stepped.value.type_name == whole.value.type_name or wrong is inner


def test_steps_nest_no_deeper_than_can_be_decoded() -> None:
    refused = 0
    for depth in range(1_000, 1_040, 4):
        value: Any = 1
        for _ in range(depth - 10):
            value = [value]
        for _ in range(10):
            value = [*range(3_000), value]
        try:
            payload = pacing.at_once(codec.encode_steps(value))
        except CacheEncodeError:
            refused += 1
        else:
            codec.decode(payload)
    assert 0 < refused < 10


def test_a_large_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = list(range(3_000))
    value.append(value)
    with pytest.raises(CacheEncodeError, match="contains itself"):
        pacing.at_once(codec.encode_steps(value))


def test_damaged_large_payloads_are_told_apart() -> None:
    payload = codec.encode(large())
    for bytes_, reason in (
        (payload[:-1], "truncated"),
        (payload + b"\x00", "trailing"),
        (b"\x91" * 2_000 + payload, "too_deep"),
        (payload[:1] + b"\xc1" + payload[1:], "malformed"),
    ):
        assert len(bytes_) >= codec.LARGE
        with pytest.raises(CacheDecodeError) as error:
            codec.decode(bytes_)
        assert error.value.reason == reason


def test_what_changes_while_it_is_encoded_gives_a_value_all_the_same() -> None:
    value = {"rows": rows(3_000)}
    steps = codec.encode_steps(value)
    for _ in range(3):
        next(steps)
    value["rows"].clear()
    value["more"] = []
    decoded = codec.decode(pacing.at_once(steps))
    assert list(decoded) == ["rows"]
    assert len(decoded["rows"]) == 3_000


def test_the_memory_that_a_large_value_takes_is_counted_in_steps() -> None:
    """A value of 16 megabytes may take 256: text in other scripts has to be looked at token by token."""
    payload = codec.encode(["é" * 15] * 130_000)
    limit = len(payload)
    steps = 0
    for _ in codec.size_steps(payload, limit):
        steps += 1
    assert steps >= len(payload) // (1 << 18)
    with pytest.raises(CacheDecodeError, match="too_costly|takes more than"):
        pacing.at_once(codec.size_steps(codec.encode([{}] * 5_000_000), 1_000_000))


# -- coroutines ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def cache(url: str, one_step_a_turn: None) -> Any:
    async with AsyncCacheManager(redis_url=url, l1_max_bytes=2**30) as cache:
        await cache.get("t", "connected")
        yield cache


@pytest.fixture
async def far(url: str, one_step_a_turn: None) -> Any:
    async with AsyncCacheManager(redis_url=url, l1_max_entries=0) as far:
        await far.get("t", "connected")
        yield far


async def test_large_values_leave_turns_to_others(cache: AsyncCacheManager, far: AsyncCacheManager) -> None:
    value, decoded = large(), 10
    assert await turns(cache.set("t", "big", value)) >= MANY_ROWS * 4 // 256
    assert await turns(cache.get("t", "big")) >= decoded
    assert await turns(far.get("t", "big")) >= decoded
    assert await turns(cache.get_or_set("t", "big", dict)) >= decoded
    assert await turns(far.get_or_set("t", "big", dict)) >= decoded
    assert await cache.get("t", "big") == value

    @cache.cached("t", key="big")
    async def load() -> Any:
        return None

    assert await turns(load()) >= decoded

    async def loader() -> Any:
        return value

    assert await turns(cache.get_or_set("t", "loaded", loader)) >= MANY_ROWS * 4 // 256
    stale = Namespace("stale", ttl=60, grace=60)
    await cache.set(stale, "big", value)
    assert await turns(cache.get_or_set(stale, "big", dict)) >= decoded


async def test_each_who_joined_a_large_load_decodes_in_steps(
    cache: AsyncCacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def loader() -> Any:
        await gate.wait()
        return large()

    def in_one_step(payload: bytes) -> Any:
        raise AssertionError("a large value was decoded in one step")

    calls = [asyncio.ensure_future(cache.get_or_set("t", "joined", loader)) for _ in range(3)]
    await wait_until_async(lambda: cache._state.flights.joined == 2)
    monkeypatch.setattr(codec, "decode", in_one_step)
    gate.set()
    values = await asyncio.gather(*calls)
    assert values == [large()] * 3
    assert len({id(value) for value in values}) == 3


async def test_calls_for_many_values_count_bytes(cache: AsyncCacheManager, far: AsyncCacheManager) -> None:
    keys = list(range(100))
    values = {key: rows(50) for key in keys}
    # More than half a megabyte: sixteen steps of 32 kilobytes; some of them share a turn when they are written.
    assert await turns(cache.set_many("t", values)) >= 8
    assert await turns(cache.get_many("t", keys)) >= 8
    assert await turns(far.get_many("t", keys)) >= 8
    assert await turns(cache.get_or_set_many("t", keys, lambda missing: {})) >= 8
    assert await turns(far.get_or_set_many("t", keys, lambda missing: {})) >= 8
    assert await cache.get_many("t", keys) == values
    many = list(range(2_000))
    assert await turns(cache.set_many("small", dict.fromkeys(many, 1))) >= 30
    assert await turns(cache.get_many("small", many)) >= 30
    assert await turns(cache.delete_many("small", many)) >= 30


async def test_writes_of_one_call_begin_some_at_a_time(
    cache: AsyncCacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, begun, most = cache._engine.writes, 0, 0
    original = writes.write

    async def write(*args: Any) -> bool:
        nonlocal begun
        begun += 1
        return await original(*args)

    monkeypatch.setattr(writes, "write", write)
    # Compressed values are not written together.
    task = asyncio.ensure_future(cache.set_many(Namespace("alone", compress=True), dict.fromkeys(range(500), 1)))
    while not task.done():
        before = begun
        await asyncio.sleep(0)
        most = max(most, begun - before)
    await task
    assert begun == 500
    assert most <= 70


async def test_steps_of_several_calls_share_their_time(cache: AsyncCacheManager) -> None:
    """With ten calls at a time there is still one step in a turn, or nearly so."""
    await cache.set("t", "big", large())
    alone = await turns(cache.get("t", "big"))
    together = await turns(asyncio.gather(*(cache.get("t", "big") for _ in range(10))))
    assert together >= 3 * alone


# -- the wire -----------------------------------------------------------------------------------------------------


class Answer:
    """A waiter that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def done(self) -> bool:
        return bool(self.told)

    def set_result(self, result: Any, /) -> None:
        self.told.append(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.told.append(exception)


def asked(pipeline: Pipeline, count: int, expected: float) -> list[Answer]:
    answers = [Answer() for _ in range(count)]
    for number, answer in enumerate(answers):
        pipeline.add(Read(b"%d" % number, lambda value, *_: value, answer, expected))
    return answers


def half_answered() -> tuple[Pipeline, list[Answer]]:
    """Return four reads whose large replies came at once, so that half of them wait to be handed out."""
    pipeline = Pipeline(lambda *_: None)
    answers = asked(pipeline, 4, 1_000)
    pipeline.compose(0.0)
    source: Any = None
    pipeline.answered([b"x" * 400_000] * 4, source)
    return pipeline, answers


def test_a_reply_of_large_values_is_handed_out_in_steps() -> None:
    pipeline, answers = half_answered()
    assert [answer.done() for answer in answers] == [True, True, False, False]
    assert pipeline.unfinished
    pipeline.hand_out()
    while pipeline.unfinished:
        pipeline.hand_out()
    assert all(answer.told == [b"x" * 400_000] for answer in answers)
    assert pipeline.pending == 0


def test_a_connection_lost_between_two_steps_fails_the_rest() -> None:
    pipeline, answers = half_answered()
    pipeline.fail_sent(CacheUnavailableError("lost", "gone"))
    assert [type(answer.told[0]) for answer in answers] == [bytes, bytes, CacheUnavailableError, CacheUnavailableError]
    assert not pipeline.unfinished
    assert pipeline.pending == 0


def test_a_reply_is_asked_to_carry_two_megabytes() -> None:
    pipeline = Pipeline(lambda *_: None)
    asked(pipeline, 100, 500_000)
    assert pipeline.compose(0.0)
    assert len(pipeline.oldest.asked) == 4  # type: ignore[union-attr,arg-type]  # reads
    pipeline = Pipeline(lambda *_: None)
    asked(pipeline, 300, 0)
    pipeline.compose(0.0)
    assert len(pipeline.oldest.asked) <= 64  # type: ignore[union-attr,arg-type]  # likewise
    pipeline = Pipeline(lambda *_: None)
    asked(pipeline, 300, 100)
    pipeline.compose(0.0)
    assert len(pipeline.oldest.asked) == 256  # type: ignore[union-attr,arg-type]  # likewise


async def test_sizes_are_remembered_for_the_next_call(far: AsyncCacheManager, raw: redis.Redis) -> None:
    await far.set_many("t", dict.fromkeys(range(20), b"x" * 500000))
    raw.config_resetstat()
    assert len(await far.get_many("t", range(20))) == 20
    assert raw.info("commandstats")["cmdstat_mget"]["calls"] >= 5  # type: ignore[index]  # no coroutine


async def test_a_long_push_is_handled_in_steps(cache: AsyncCacheManager) -> None:
    await cache.set_many("t", dict.fromkeys(range(2_000), 1))
    state = cache._state
    names = [state.keyspace.value_name("t", key) for key in range(2_000)]
    wire = wire_of(state)
    assert len(state.memory) >= 2_000
    assert await turns(push(wire, [b"invalidate", names])) >= 2_000 // 256 - 2
    assert not any(state.memory.get_untrusted(name) for name in names)


# -- a large memory -----------------------------------------------------------------------------------------------


def filled(namespaces: int, each: int) -> LocalCache:
    memory, trust = LocalCache(10**6, 10**9), Trust(float("inf"))
    for number in range(namespaces):
        for key in range(each):
            put(memory, b"m:n%d:%d" % (number, key), Entry(1, None, float("inf"), trust, 8))
    return memory


def test_clears_of_namespaces_are_one_look_up() -> None:
    memory = filled(200, 100)
    for number in range(150):
        memory.clear(b"m:n%d:" % number)
    assert memory._clears.comparisons == 0
    assert all(memory.get_untrusted(b"m:n%d:5" % number) is None for number in range(150))
    assert all(memory.get_untrusted(b"m:n%d:5" % number) is not None for number in range(150, 200))
    # The collector may be half-way round when the last clear comes, and forgets a clear after a full round.
    for _ in range(2):
        memory.sweep(10**6)
    assert len(memory) == 50 * 100
    assert len(memory._clears) == 0


def test_more_clears_of_namespaces_than_are_kept_apart_clear_everything() -> None:
    floors = ClearLog()
    for number in range(1_024):
        floors.add(Clear(b"m:n%d:" % number, number + 1, done=10**9))
    assert not floors.cleared(b"m:other:1", 0)
    floors.add(Clear(b"m:n0:", 1_025, done=10**9))
    assert not floors.cleared(b"m:other:1", 0)
    floors.add(Clear(b"m:last:", 1_026, done=10**9))
    assert floors.cleared(b"m:other:1", 0)
    assert floors.cleared(b"m:n5:1", 5)
    assert not floors.cleared(b"m:last:1", 1_026)


def test_clears_by_pattern_shorten_the_steps_of_each_other() -> None:
    import re

    memory = filled(1, 20_000)
    gone: list[int] = []
    for number in range(60):
        before = memory.steps
        memory.clear_matching(re.compile(b"m:n0:.*x%d" % number))
        gone.append((memory.steps - before) * (1 + number))
    assert max(gone) <= 4 * 2_048 + 60
    assert memory.get_untrusted(b"m:n0:5") is not None


async def test_a_large_memory_is_given_up_in_steps(url: str, one_step_a_turn: None) -> None:
    cache = AsyncCacheManager(redis_url=url, l1_max_entries=50_000)
    await cache.get("t", 1)
    memory = cache._state.memory
    for number in range(20_000):
        put(memory, b"m:n:%d" % number, Entry(1, None, float("inf"), Trust(float("inf")), 8))
    closing, sizes = asyncio.ensure_future(cache.aclose()), set[int]()
    while not closing.done():
        sizes.add(len(memory))
        await asyncio.sleep(0)
    # Not how many turns it takes: most of them wait for the end of connections.
    assert len(sizes) >= 10
    assert len(memory) == memory.bytes == 0


# -- threads ------------------------------------------------------------------------------------------------------


class Traced:
    """A value that tells in which threads it is encoded and decoded."""

    threads: ClassVar[set[str]] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced)

    __hash__ = None  # type: ignore[assignment]  # as is usual for what is compared by value


def traced_encode(value: Traced) -> int:
    Traced.threads.add(threading.current_thread().name)
    return 1


def traced_decode(data: Any) -> Traced:
    Traced.threads.add(threading.current_thread().name)
    return Traced()


register_type(Traced, encode=traced_encode, decode=traced_decode)


def test_blocking_calls_code_in_their_own_thread(url: str) -> None:
    Traced.threads.clear()
    with (
        CacheManager(redis_url=url, l1_max_entries=100) as cache,
        CacheManager(redis_url=url, l1_max_entries=0) as far,
    ):
        cache.set_many("t", {key: Traced() for key in range(5)})
        for asker in (cache, far):
            assert len(asker.get_many("t", range(5))) == 5
            assert asker.get("t", 1) == Traced()
            assert len(asker.get_or_set_many("t", range(8), lambda keys: {key: Traced() for key in keys})) == 8
            assert asker.get_or_set("t", f"new{asker is far}", Traced) == Traced()

        async def load(keys: list[Any]) -> dict[Any, Any]:
            return {key: Traced() for key in keys}

        async def load_one() -> Traced:
            return Traced()

        assert len(far.get_or_set_many("t", ["a", "b"], load)) == 2
        assert far.get_or_set("t", "c", load_one) == Traced()
        assert cache.get("t", "a") == cache.get("t", "c") == Traced()
    assert Traced.threads == {threading.current_thread().name}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize("how", ["plain", "lambda", "policy", "many", "warm"])
def test_a_coroutine_that_blocks_holds_up_no_other_threads_get(how: str, url: str, gate: threading.Event) -> None:
    began = threading.Event()

    async def blocks(*_: Any) -> Any:
        began.set()
        gate.wait(30)  # what should not be done
        return {"slow": 1}

    with CacheManager(redis_url=url, l1_max_entries=0) as cache:
        cache.set("t", "k", 1)
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda: cache.get_or_set("t", "slow", blocks),
            "lambda": lambda: cache.get_or_set("t", "slow", lambda: blocks()),
            "policy": lambda: cache.get_or_set("t", "slow", blocks, hard_timeout=30),
            "many": lambda: cache.get_or_set_many("t", ["slow"], blocks),
            "warm": lambda: cache.warm_cache("t", blocks, ["slow"]),
        }
        thread = threading.Thread(target=calls[how])
        thread.start()
        try:
            assert began.wait(10)
            # Would raise after ten seconds.
            state = cache._state
            assert state.portal.call(cache.aio.get, "t", "k", timeout=10) == 1
            assert cache.get("t", "k") == 1
        finally:
            gate.set()
            thread.join()


def test_a_blocking_call_within_a_coroutine_of_a_blocking_caller_is_refused(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        for ask in (
            lambda: cache.get("t", "k"),
            lambda: cache.get_many("t", ["k"]),
            lambda: cache.get_or_set_many("t", ["k"], dict.fromkeys),
            lambda: cache.get_or_set("t", "k", lambda: 1),
        ):

            async def load(ask: Callable[[], object] = ask) -> object:
                return ask()

            with pytest.raises(CacheDeadlockError):
                cache.get_or_set("t", "outer", load)


def test_a_coroutine_of_a_blocking_caller_may_await_the_cache(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        async def inner() -> int:
            return 1

        async def outer() -> int:
            return 1 + await cache.aio.get_or_set("t", "inner", inner)

        assert cache.get_or_set("t", "outer", outer) == 2
        assert cache.get_or_set("t", "policy", outer, hard_timeout=30) == 2
        assert cache.get("t", "inner") == 1


def test_what_ends_a_program_ends_no_loop_of_the_cache() -> None:
    with CacheManager(redis_enabled=False) as cache:

        async def leave() -> None:
            raise SystemExit(3)

        async def number() -> int:
            return 7

        with pytest.raises(SystemExit):
            cache.get_or_set("t", "k", leave, hard_timeout=30)
        assert cache.get_or_set("t", "k", number, hard_timeout=30) == 7


def test_a_coroutine_that_nobody_waits_for_is_cancelled(gate: threading.Event) -> None:
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    cache = CacheManager(redis_enabled=False)
    began = threading.Event()

    async def watched() -> None:
        began.set()
        await endless()

    def ask() -> None:
        with pytest.raises(Exception, match="closed"):
            cache.get_or_set("t", "k", watched, hard_timeout=30)

    thread = threading.Thread(target=ask)
    thread.start()
    assert began.wait(10)
    cache.close()
    thread.join(10)
    assert not thread.is_alive()
    assert ended.wait(10)


async def test_workers_run_coroutines_where_they_are_told_to() -> None:
    ran: list[object] = []

    async def run(loader: Callable[[], Awaitable[Any]]) -> Any:
        ran.append(loader)
        return await loader()

    async def number() -> int:
        return 5

    workers = LoaderThreads(run=run)
    assert await workers.call(number, "t") == 5
    assert await workers.call(lambda: number(), "t") == 5
    assert len(ran) == 2


def test_a_large_value_is_decoded_in_steps_by_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the sake of other threads, which get the GIL in between."""
    used: list[int] = []
    original = codec_values.decode_steps

    def steps(payload: Any, limit: int | None = None) -> Any:
        used.append(len(payload))
        return original(payload, limit)

    monkeypatch.setattr(codec_values, "decode_steps", steps)
    payload = codec.encode(large())
    assert codec.decode(payload) == large()
    assert used == [len(payload)]
