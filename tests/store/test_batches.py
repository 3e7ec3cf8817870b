"""Batches of reads: judged as single values are, handed out as a whole, and none of them depends on the others."""

import asyncio
import math
import zlib
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.redis.exchange import ReadBatch
from magnus_cache._engine.redis.pipeline import Call, Pipeline, Read
from magnus_cache._engine.redis.server_time import RedisTime
from magnus_cache._engine.store.batches import PAYLOAD, ValueBatches
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.inside import pipeline_of, put_off_replays, value_batches, wire_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("far", ttl=600, l1=False)
SMALL = Namespace("small", ttl=600, l1=False, max_value_bytes=40)

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
"""What the server's clock reads when the test's clock reads 1000."""


class Answer:
    """A waiter that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def done(self) -> bool:
        return bool(self.got)

    def set_result(self, result: Any, /) -> None:
        self.got.append(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.got.append(exception)


class Value(NamedTuple):
    """A value as Redis has it, and who asks for it."""

    key: int
    tagged: bool
    tags: tuple[str, ...]
    epoch: int
    end: int
    life: float
    size: int
    negative: bool
    validator: str | None
    compress: bool
    damage: int | None
    missing: bool
    longer: bool


ODDITIES = st.one_of(
    st.tuples(st.just("tags"), st.sampled_from([(), ("f",), ("x",), ("f", "x"), ("fx",), ("g",)])),
    st.tuples(st.just("epoch"), st.sampled_from([0, 4, 5, 6, 7, 2**64 - 1])),
    # Around the present, where rounding decides, and far from it.
    st.tuples(st.just("end"), st.one_of(st.sampled_from([-SECOND, SECOND]), st.integers(-20, 20))),
    st.tuples(st.just("life"), st.sampled_from([0.0, 1e-30, 0.0005, math.inf, math.nan, 1e12])),
    st.tuples(st.just("size"), st.sampled_from([1, 41, 200, 2047, 2048, 3000])),
    st.tuples(st.just("negative"), st.just(True)),
    st.tuples(st.just("validator"), st.just("etag")),
    st.tuples(st.just("compress"), st.just(True)),
    st.tuples(st.just("damage"), st.one_of(st.integers(0, 39), st.integers(0, 300))),
    st.tuples(st.just("missing"), st.just(True)),
    st.tuples(st.just("longer"), st.just(True)),
)
"""In what a value may differ from one that is plain and valid."""

PLAIN = Value(0, False, (), 5, 100 * SECOND, 60.0, 30, False, None, False, None, False, False)


def different(key: int, tagged: bool, oddities: list[tuple[str, Any]]) -> Value:
    base = {"key": key, "tagged": tagged, "tags": ("f",) if tagged else ()}
    return PLAIN._replace(**(base | dict(oddities)))


VALUES = st.builds(
    different, st.integers(0, 3), st.booleans(),
    st.one_of(st.lists(ODDITIES, min_size=1, max_size=1), st.lists(ODDITIES, max_size=2)),
)  # fmt: skip
NAMES = ("root", "far", "small", "f", "x")
EPOCHS = st.one_of(
    st.just({}), st.just({}), st.dictionaries(st.sampled_from(NAMES), st.sampled_from([None, 4, 6, 7]), max_size=2)
).map(lambda changes: dict.fromkeys(NAMES, 5) | changes)
"""The latest epochs; None for one that is not known."""


def stored(value: Value) -> bytes | None:
    if value.missing:
        return None
    raw = bytearray(
        envelope.pack(
            b"\xc4" + b"v" * value.size, tags=value.tags, validator=value.validator, negative=value.negative,
            compress=value.compress, version=1, fresh_until=START + value.end, epoch=value.epoch, life=value.life,
        )
    )  # fmt: skip
    if value.longer:
        # With a checksum that is right, as only a writer of another kind makes it.
        raw += b"more"
        raw[3:7] = zlib.crc32(raw[envelope.SUMMED_FROM :]).to_bytes(4, "big")
    if value.damage is not None:
        raw[value.damage % len(raw)] ^= 0x55
    return bytes(raw)


def seen(outcome: Any) -> Any:
    """Return what a caller can tell of an outcome."""
    if isinstance(outcome, Entry):
        return ("entry", outcome.payload, outcome.negative)
    if isinstance(outcome, bytes):
        return ("entry", outcome, False)
    return type(outcome) if isinstance(outcome, Exception) else outcome


@given(
    st.lists(VALUES, min_size=10, max_size=24), EPOCHS, st.integers(0, 19), st.sampled_from([300.0] * 8 + [0.0, 9e3])
)
def test_a_batch_is_judged_as_its_values_are_one_by_one(
    values: list[Value], latest: dict[str, int | None], suspended: int, expected: float
) -> None:
    with virtual_clock() as clock:
        manager = AsyncCacheManager(redis_enabled=False)
        state, reads = manager._engine.state, manager._engine.reads
        known, time = KnownEpochs(), RedisTime()
        now = clock()
        time.sample(now - 0.000_01, now, START)
        names = {
            "root": state.epochs.root,
            **{each: state.epochs.epoch_names(each).control for each in ("far", "small")},
            **{tag: state.epochs.tag_name(tag) for tag in ("f", "x")},
        }
        for name, epoch in latest.items():
            if epoch is not None:
                state.epochs.seen(names[name], epoch)
                known.learned(names[name], epoch, now)
        known.suspended = suspended == 1
        connection: Any = SimpleNamespace(
            known=known, time=time, tracking=True, trust=Trust(math.inf), clock=state.clock, max_staleness=5.0
        )
        refs: list[KeyRef] = []
        for value in values:
            policy = FAR if value.key % 2 else SMALL
            ref = reads.address_of(policy, str(value.key), state.stats.of(policy), tag="f" if value.tagged else "")
            ref.epoch_names.value_bytes = expected
            refs.append(ref)
        raws = [stored(value) for value in values]
        batch = ReadBatch(value_batches(reads))
        for ref in refs:
            batch.wanted.append(ref)
            batch.places.append(PAYLOAD)
            batch.waiters.append(Answer())
        value_batches(reads).received(batch, slice(0, len(batch)), raws, connection, now)
        for ref, raw, answer in zip(refs, raws, batch.waiters, strict=True):
            try:
                alone: Any = reads.received(ref, None, raw, connection, now)
            except CacheUnavailableError as error:
                alone = error
            assert isinstance(answer, Answer)
            assert [seen(outcome) for outcome in answer.got] == [seen(alone)]
            payload = None if raw is None else value_batches(reads).payload(ref, raw, connection, now)
            assert payload is None or seen(payload) == seen(alone)


@given(
    st.floats(0, 1e7), st.floats(0, 1e6), st.integers(0, 4_000_000_000 * SECOND), st.floats(0, 10),
    st.integers(-50, 50),
)  # fmt: skip
def test_what_may_be_past_is_never_taken_for_what_is_to_come(
    sent: float, later: float, server: int, took: float, near: int
) -> None:
    time = RedisTime()
    time.sample(sent, sent + took, server)
    now = sent + took + later
    past = time.past(now)
    for end in (int(past) + near, int(past) + near * SECOND):
        if end > past:
            assert time.local(end) > now


def test_plain_values_are_accepted_without_the_readable_way() -> None:
    """Or all the rest would be for nothing."""
    with virtual_clock() as clock:
        manager = AsyncCacheManager(redis_enabled=False)
        state = manager._engine.state

        class Reads:
            def received(self, *_: Any) -> Any:
                raise AssertionError("not the fast way")

            def limit(self, _: KeyRef) -> int:
                return 1_000

        known, time, now = KnownEpochs(), RedisTime(), clock()
        time.sample(now, now, START)
        for name in (state.epochs.root, state.epochs.epoch_names("far").control, state.epochs.tag_name("f")):
            state.epochs.seen(name, 5)
            known.learned(name, 5, now)
        batches = ValueBatches(state, Reads())
        batch, raws = ReadBatch(batches), list[bytes | None]()
        for tags in ((), ("f",)):
            ref = manager._engine.reads.address_of(FAR, "k", state.stats.of(FAR), tag="f")
            ref.epoch_names.value_bytes = 100
            batch.wanted.append(ref)
            batch.places.append(PAYLOAD)
            batch.waiters.append(Answer())
            raws.append(
                envelope.pack(b"\x01", tags=tags, version=1, fresh_until=START + 9 * SECOND, epoch=5, life=60.0)
            )
        connection: Any = SimpleNamespace(known=known, time=time)
        batches.received(batch, slice(0, 2), raws, connection, now)
        assert [waiter.got for waiter in batch.waiters] == [[b"\x01"], [b"\x01"]]  # type: ignore[attr-defined]
        alone = [batches.payload(ref, raw, connection, now) for ref, raw in zip(batch.wanted, raws, strict=True) if raw]
        assert alone == [b"\x01", b"\x01"]
        # What waits to be told to Redis may be about them.
        state.outbox.record([b"another"])
        assert batches.payload(batch.wanted[0], raws[0] or b"", connection, now) is None


def test_an_answer_from_before_redis_was_told_is_looked_at_closely() -> None:
    with virtual_clock() as clock:
        manager = AsyncCacheManager(redis_enabled=False)
        state = manager._engine.state
        known, time, asked = KnownEpochs(), RedisTime(), clock()
        time.sample(asked, asked, START)
        for name in (state.epochs.root, state.epochs.epoch_names("far").control):
            state.epochs.seen(name, 5)
            known.learned(name, 5, asked)
        ref = manager._engine.reads.address_of(FAR, "k", state.stats.of(FAR))
        ref.epoch_names.value_bytes = 100
        raw = envelope.pack(b"\x01", version=1, fresh_until=START + 9 * SECOND, epoch=5, life=60.0)
        connection: Any = SimpleNamespace(known=known, time=time)
        batches = value_batches(manager._engine.reads)
        assert batches.payload(ref, raw, connection, asked) == b"\x01"
        clock.advance(1)
        state.outbox.overwritten(ref.name, state.outbox.record([ref.name]))
        assert batches.payload(ref, raw, connection, asked) is None
        assert batches.payload(ref, raw, connection, clock()) == b"\x01"


# -- through a connection -----------------------------------------------------------------------------------------


async def test_many_reads_are_few_exchanges_and_each_gets_its_own(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set_many(FAR, {number: [number] for number in range(600)})
        await cache.get(FAR, 0)
        raw.config_resetstat()
        assert await asyncio.gather(*(cache.get(FAR, number % 600) for number in range(900))) == [
            [number % 600] for number in range(900)
        ]
        calls = raw.info("commandstats")["cmdstat_mget"]["calls"]  # type: ignore[index]  # no coroutine
        assert 4 <= calls <= 12


@pytest.mark.parametrize("l1", [False, True])
async def test_one_who_leaves_a_batch_takes_nobody_along(url: str, l1: bool) -> None:
    namespace = Namespace("left", ttl=600, l1=l1)
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set_many(namespace, dict.fromkeys("abc", 1))
        state = cache._engine.state
        state.memory.clear(b"magnus:")
        await cache.get(namespace, "d")
        calls = {key: asyncio.create_task(cache.get(namespace, key)) for key in "abc"}
        await asyncio.sleep(0)
        assert pipeline_of(wire_of(cache)).pending == 3
        calls["b"].cancel()
        assert [await calls[key] for key in "ac"] == [1, 1]
        with pytest.raises(asyncio.CancelledError):
            await calls["b"]
        assert state.memory.pending == 0
        # Its answer came all the same, and is kept for the next one.
        assert (state.memory.hit(b"magnus:left:b") is not None) == l1


@pytest.mark.parametrize("l1", [False, True])
async def test_a_lost_connection_fails_each_read_of_its_batches_and_keeps_no_place(proxy: Proxy, l1: bool) -> None:
    namespace = Namespace("lost", ttl=600, l1=l1)
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await cache.set_many(namespace, {key: key for key in range(40)})
        state = cache._engine.state
        state.memory.clear(b"magnus:")
        await cache.get(namespace, "other")
        proxy.freeze()
        calls = [asyncio.create_task(cache.get(namespace, key)) for key in range(40)]
        wire = wire_of(cache)
        await wait_until_async(lambda: pipeline_of(wire).pending >= 40 and not pipeline_of(wire).queue)
        proxy.cut()
        proxy.thaw()
        # Each is asked for once more, through the next connection.
        assert await asyncio.gather(*calls) == list(range(40))
        assert state.memory.pending == 0
        assert pipeline_of(wire).pending == 0


@pytest.mark.parametrize("l1", [False, True])
async def test_a_batch_whose_connection_does_not_come_back_keeps_no_place(proxy: Proxy, l1: bool) -> None:
    """No second attempt takes the places that the first one had."""
    namespace = Namespace("lost", ttl=600, l1=l1)
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=5) as cache:
        await cache.get(namespace, "other")
        proxy.freeze()
        calls = [asyncio.create_task(cache.get(namespace, key)) for key in range(40)]
        wire = wire_of(cache)
        await wait_until_async(lambda: pipeline_of(wire).pending >= 40 and not pipeline_of(wire).queue)
        proxy.refuse()
        proxy.cut()
        assert await asyncio.gather(*calls) == [None] * 40
        assert cache._engine.state.memory.pending == 0
        proxy.resume()
        proxy.thaw()


async def test_a_fault_in_the_handling_of_a_batch_is_told_to_its_readers_alone(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set(FAR, "a", 1)
        await cache.get(FAR, "a")
        wire, reads = wire_of(cache), cache._engine.reads

        class Faulty:
            gave_back = 0

            def received(self, *_: Any) -> None:
                raise ZeroDivisionError

            def unanswered(self, batch: ReadBatch, part: slice) -> None:
                self.gave_back += part.stop - part.start

        faulty, trust = Faulty(), wire.trust
        waiter: asyncio.Future[Any] = wire.loop.create_future()
        wire.read_value(faulty, reads.ref(FAR, "a"), None, waiter)
        other = asyncio.create_task(cache.get(FAR, "a"))
        with pytest.raises(CacheUnavailableError, match="makes no sense"):
            await waiter
        assert await other == 1
        assert faulty.gave_back == 1
        assert wire.trust is trust, "the connection stands"
        assert pipeline_of(wire).pending == 0


async def test_what_redis_must_be_told_first_holds_up_a_read_of_a_batch(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.2) as cache:
        await cache.set_many(FAR, {"a": 1, "b": 2})
        assert [await cache.get(FAR, key) for key in "ab"] == [1, 2]
        state = cache._engine.state
        state.outbox.record([b"magnus:far:a"])
        put_off_replays(state, 60)
        assert await asyncio.gather(cache.get(FAR, "a"), cache.get(FAR, "b")) == [None, 2]


async def test_a_clear_is_seen_by_the_next_batch(url: str) -> None:
    async with AsyncCacheManager(redis_url=url) as one, AsyncCacheManager(redis_url=url) as two:
        for _ in range(3):
            await one.set_many(FAR, dict.fromkeys(range(20), 1))
            assert await asyncio.gather(*(two.get(FAR, key) for key in range(20))) == [1] * 20
            await one.clear("far")
            await two.get_stats()
            assert await asyncio.gather(*(two.get(FAR, key) for key in range(20))) == [None] * 20


# -- large values -------------------------------------------------------------------------------------------------


class Sized:
    """The names of epochs, as far as a pipeline looks at them."""

    def __init__(self, size: float) -> None:
        self.value_bytes = size


class Large(NamedTuple):
    """What is wanted of a pipeline without a connection."""

    name: bytes
    epoch_names: Any


def queued(pipeline: Pipeline, sizes: list[int]) -> list[Answer]:
    """Queue reads of values that are expected to have so many bytes."""
    answers = [Answer() for _ in sizes]
    for number, (size, answer) in enumerate(zip(sizes, answers, strict=True)):
        batch = pipeline.growing or pipeline.begin_batch(Echo())
        batch.add(Large(b"%d" % number, Sized(float(size))), None, answer)
        pipeline.pending += 1
    return answers


class Echo:
    """Gives each waiter its value."""

    def received(self, batch: ReadBatch, part: slice, values: Any, *_: Any) -> None:
        for waiter, value in zip(batch.waiters[part], values[part], strict=True):
            waiter.set_result(value)

    def unanswered(self, batch: ReadBatch, part: slice) -> None:
        pass


CONNECTION: Any = None


def asked(pipeline: Pipeline) -> list[list[bytes]]:
    """Return the names that the requests in flight are for."""
    return [[wanted.name for part in sent.asked for wanted in part.wanted] for sent in pipeline.owed]  # type: ignore[union-attr]


def test_small_values_overtake_large_ones_of_which_one_reply_is_on_its_way() -> None:
    pipeline = Pipeline(lambda *_: None)
    large = [1_000_000, 16_000_000, 900_000, 900_000, 900_000]
    answers = queued(pipeline, [*large, 100])
    pipeline.compose(0.0)
    assert asked(pipeline) == [[b"5"], [b"0"]]
    queued(pipeline, [100, 2_000_000])
    pipeline.compose(0.0)
    assert asked(pipeline) == [[b"5"], [b"0"], [b"0"]], "the small one, as if nothing large was wanted"
    for expected in ([b"1"], [b"2", b"3"], [b"4"], [b"1"]):
        while pipeline.owed:
            pipeline.answered([b"v"] * pipeline.owed[0].count, CONNECTION)
        assert pipeline.is_ready
        pipeline.compose(0.0)
        assert asked(pipeline)[-1] == expected
    pipeline.answered([b"v"], CONNECTION)
    assert all(answer.got == [b"v"] for answer in answers)
    assert not pipeline.is_ready
    assert pipeline.pending == 0


def test_a_large_value_stays_with_the_epochs_that_are_requested_for_it() -> None:
    pipeline = Pipeline(lambda *_: None)
    pipeline.add(Read(b"epoch", lambda raw, *_: raw, Answer()))
    queued(pipeline, [1_000_000])
    pipeline.compose(0.0)
    assert [sent.count for sent in pipeline.owed] == [2]


def test_large_values_that_wait_are_told_of_the_end() -> None:
    pipeline = Pipeline(lambda *_: None)
    answers = queued(pipeline, [1_000_000] * 9)
    pipeline.compose(0.0)
    pipeline.fail_sent(CacheUnavailableError("lost", "gone"))
    assert [answer.done() for answer in answers] == [True] * 2 + [False] * 7
    assert pipeline.is_ready
    pipeline.fail_queued(CacheUnavailableError("closed", "gone"))
    assert all(isinstance(answer.got[0], CacheUnavailableError) for answer in answers)
    assert pipeline.pending == 0


def test_an_interrupt_within_a_batch_leaves_no_reader_without_an_answer() -> None:
    pipeline = Pipeline(lambda *_: None)
    answers = queued(pipeline, [100] * 3)

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    answers[1].set_result = interrupted  # type: ignore[method-assign]
    pipeline.compose(0.0)
    with pytest.raises(KeyboardInterrupt):
        pipeline.answered([b"value"] * 3, CONNECTION)
    # As the end of the connection does, which such an interrupt brings about.
    pipeline.fail_sent(CacheUnavailableError("lost", "gone"))
    assert answers[0].got == [b"value"]
    assert all(isinstance(answer.got[0], CacheUnavailableError) for answer in answers[1:])


@example([60_000] * 100, False)
@given(st.lists(st.sampled_from([1, 200, 3_000, 60_000, 70_000, 900_000]), min_size=1, max_size=300), st.booleans())
def test_what_fits_at_a_glance_is_requested_as_by_adding_up(sizes: list[int], first: bool) -> None:
    """Each value is requested once, a reply is expected to carry two megabytes, and none is reordered in its kind."""
    pipeline = Pipeline(lambda *_: None)
    if first:
        pipeline.add(Read(b"epoch", lambda value, *_: value, Answer(), 16))
    queued(pipeline, sizes)
    requested: list[int] = []
    while pipeline.is_ready:
        pipeline.compose(0.0)
        for sent in pipeline.owed:
            assert not isinstance(sent.asked, Call)
            names = [wanted.name for part in sent.asked if isinstance(part, ReadBatch) for wanted in part.wanted]
            together = [sizes[int(name)] for name in names]
            assert len(together) <= 256
            assert sum(together[1:]) <= 2_000_000
            requested += map(int, names)
        # What is owed of large values holds up further ones.
        for sent in list(pipeline.owed):
            pipeline.answered([b""] * sent.count, CONNECTION)
    assert sorted(requested) == list(range(len(sizes)))


async def test_large_and_small_values_come_together(url: str) -> None:
    large = Namespace("large", ttl=600, l1=False)
    async with AsyncCacheManager(redis_url=url, op_timeout=10) as cache:
        await cache.set_many(large, {number: b"x" * (200_000 + number) for number in range(30)})
        await cache.set_many(FAR, {number: number for number in range(30)})
        for _ in range(2):
            found = await asyncio.gather(
                *(cache.get(large, number) for number in range(30)), *(cache.get(FAR, number) for number in range(30))
            )
            assert [len(value) for value in found[:30]] == [200_000 + number for number in range(30)]
            assert found[30:] == list(range(30))
        many = await cache.get_many(large, range(30))
        assert [len(many[number]) for number in range(30)] == [200_000 + number for number in range(30)]
        assert pipeline_of(wire_of(cache)).pending == 0


# -- references ---------------------------------------------------------------------------------------------------


async def test_a_remembered_reference_has_the_policy_that_its_namespace_has_now(url: str) -> None:
    from magnus_cache import register_namespace

    async with AsyncCacheManager(redis_url=url) as cache:
        reads = cache._engine.reads
        # Also if this test has registered it before.
        register_namespace(Namespace("remembered"), replace=True)
        plain = reads.ref("remembered", "k")
        assert reads.ref("remembered", "k") is plain
        own = Namespace("remembered", ttl=7)
        assert reads.ref(own, "k").namespace is own
        assert reads.ref(Namespace("remembered", ttl=8), "k").namespace.ttl == 8
        assert reads.ref("remembered", "k").namespace.ttl is None
        registered = register_namespace(Namespace("remembered", ttl=9), replace=True)
        assert reads.ref("remembered", "k").namespace is registered


async def test_remembered_references_are_bounded_and_of_exact_types(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from magnus_cache._engine.store import key_refs

    class Text(str):
        __slots__ = ()

    monkeypatch.setattr(key_refs, "_MOST", 10)
    async with AsyncCacheManager(redis_url=url) as cache:
        reads = cache._engine.reads
        names = {reads.ref("t", f"k{number % 25}").name for number in range(100)}
        assert len(names) == 25
        assert reads.ref("t", "1").name != reads.ref("t", 1).name
        first = reads.ref("t", Text("k"))
        assert reads.ref("t", Text("k")) is not first
        with pytest.raises(TypeError):
            reads.ref([], "k")  # type: ignore[arg-type]  # that is the point


async def test_references_that_are_replaced_do_not_count_as_remembered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a namespace is named by its object here, and by its name there."""
    from magnus_cache._engine.store import key_refs

    monkeypatch.setattr(key_refs, "_MOST", 10)
    async with AsyncCacheManager(redis_url=url) as cache:
        ref = cache._engine.reads.ref
        named = Namespace("replaced", ttl=7)
        kept = ref("kept", "k")
        for _ in range(50):
            ref("replaced", "k")
            ref(named, "k")
        assert ref("kept", "k") is kept


async def test_a_read_that_keeps_nothing_asks_again_for_an_epoch_whose_time_is_over(url: str) -> None:
    """On a cluster, another node may have answered it; then it counts for a part of the staleness bound only."""
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set(FAR, "k", "v")
        assert await cache.get(FAR, "k") == "v"
        known = wire_of(cache).known
        (lent,) = [name for name in known.current if name.endswith(b":far")]
        known.lent[lent] = -math.inf
        assert await cache.get(FAR, "k") == "v"
        assert not known.lent
