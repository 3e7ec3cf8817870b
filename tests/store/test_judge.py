"""The judge: its verdicts, by their properties; and that each path through the cache asks it, in the right order."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.policy.namespaces import Namespace as Policy
from magnus_cache._engine.runtime.stats import Counters
from magnus_cache._engine.store.judge import Verdict, judge, judge_offline, settled_verdict, verdict
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.freshness import NO_POLICY, Freshness
from magnus_cache.testing import Proxy, virtual_clock
from magnus_cache.testing.clock import VirtualClock
from tests.support.fleet_of_managers import fleet
from tests.support.inside import keep_written, put_off_replays, wire_of
from tests.support.rights import UNTRACKED
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

EPOCHS = st.integers(0, 12)
"""Few, so that they meet."""
LEFT = st.one_of(st.sampled_from([0.0, -1.0, 1.0, -2.5]), st.floats(-1e6, 1e6))
GRACES = st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.floats(0, 1e6))
SERVED = (Verdict.FRESH, Verdict.STALE)
ORDER = [Verdict.FRESH, Verdict.STALE, Verdict.EXPIRED]
"""What time alone makes of a value."""


class Case(NamedTuple):
    """What a value in Redis is judged by."""

    record: Record
    left: float
    policy: Freshness
    minimum: int | None
    horizon: int
    pending: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    record = Record(None, b"", 0, 1, draw(EPOCHS), negative=draw(st.booleans()))
    policy = Freshness(grace=draw(GRACES), negative=draw(st.sampled_from([(), ((LookupError, 5.0),)])))
    return Case(
        record, draw(LEFT), policy, draw(st.one_of(st.none(), EPOCHS)), draw(st.one_of(st.just(9), EPOCHS)),
        draw(st.sampled_from([False, False, True])),
    )  # fmt: skip


def against(case: Case) -> list[Verdict]:
    """Return all reasons not to serve a value, each by a naive rule of its own."""
    record, left, policy, minimum, horizon, pending = case
    grace = 0.0 if record.negative else policy.grace
    rules = {
        Verdict.PENDING: pending,
        Verdict.UNWANTED: record.negative and policy.negative == (),
        Verdict.EXPIRED: not left > 0 and not left + grace > 0,
        Verdict.UNKNOWN: minimum is None,
        Verdict.OUTDATED: minimum is not None and record.epoch not in range(minimum, 100),
        Verdict.IMPOSSIBLE: record.epoch not in range(horizon + 1),
    }
    return [reason for reason, is_true in rules.items() if is_true]


@given(cases())
def test_the_verdict_is_that_of_the_naive_rules(case: Case) -> None:
    """So the reason that it names is true, and the first of several; and a value is served if there is none."""
    reasons, found = against(case), judge(*case)
    assert found is (reasons[0] if reasons else Verdict.FRESH if case.left > 0 else Verdict.STALE)
    assert found.serves == (not reasons) == (found in SERVED)


@given(cases(), st.floats(0, 1e6))
def test_time_only_makes_it_worse(case: Case, later: float) -> None:
    before, after = judge(*case), judge(*case._replace(left=case.left - later))
    assert before.serves or not after.serves
    if before in ORDER and after in ORDER:
        assert ORDER.index(before) <= ORDER.index(after)


@given(cases())
def test_nothing_is_served_below_its_minimum_or_above_what_is_possible(case: Case) -> None:
    if judge(*case).serves:
        assert case.minimum is not None
        assert case.minimum <= case.record.epoch <= case.horizon


@given(cases(), EPOCHS)
def test_a_higher_minimum_only_makes_it_worse(case: Case, higher: int) -> None:
    raised = case._replace(minimum=max(case.minimum or 0, higher))
    if case.minimum is not None and judge(*raised).serves:
        assert judge(*case).serves


@given(cases())
def test_what_waits_to_be_told_always_wins(case: Case) -> None:
    assert judge(*case._replace(pending=True)) is Verdict.PENDING
    assert judge(*case._replace(pending=False)) is not Verdict.PENDING


@given(cases(), GRACES)
def test_more_grace_never_takes_a_value_away(case: Case, more: float) -> None:
    longer = Freshness(grace=case.policy.grace + more, negative=case.policy.negative)
    if judge(*case).serves:
        assert judge(*case._replace(policy=longer)) is judge(*case)


@given(cases())
def test_a_remembered_error_is_never_stale_and_only_for_those_who_remember(case: Case) -> None:
    found = judge(*case._replace(record=case.record._replace(negative=True)))
    assert found is not Verdict.STALE
    if found.serves:
        assert case.policy.negative


@given(LEFT, GRACES, st.booleans(), st.booleans(), st.one_of(st.just(math.inf), LEFT))
def test_memory_serves_in_an_outage_what_was_good_when_it_began_and_for_as_long_as_is_allowed(
    left: float, grace: float, reachable: bool, heard: bool, allowed: float
) -> None:
    found = judge_offline(left, grace, reachable=reachable, heard=heard, allowed=allowed)
    assert found.serves == (not reachable and heard and allowed > 0 and (left > 0 or left + grace > 0))
    true = {
        Verdict.UNCONFIRMED: reachable,
        Verdict.CUT_OFF: allowed <= 0,
        Verdict.UNHEARD: not heard,
        Verdict.EXPIRED: left <= 0 and left + grace <= 0,
        Verdict.STALE: left <= 0 < left + grace,
        Verdict.FRESH: left > 0,
    }
    assert true[found]
    later = judge_offline(left - 1, grace, reachable=reachable, heard=heard, allowed=allowed - 1)
    assert found.serves or not later.serves


def test_each_verdict_has_words_of_its_own() -> None:
    words = [each.words for each in Verdict]
    assert len(set(words)) == len(words) == 11
    assert [each for each in Verdict if each.serves] == list(SERVED)
    assert {each for each in Verdict if each.is_invalidated} == {
        Verdict.PENDING, Verdict.OUTDATED, Verdict.IMPOSSIBLE,
    }  # fmt: skip


# -- the evidence: epochs, what the connection knows, and the outbox ------------------------------------------------

KEYSPACE = Keyspace("magnus", 200)
SPACE = Policy("t")
NAME = KEYSPACE.value_name(SPACE, "k")
OTHER = KEYSPACE.value_name(SPACE, "other")
TAG_NAMES = {tag: KEYSPACE.control_name("tag", tag) for tag in ("x", "y")}
CONTROLS = (KEYSPACE.control_name("epoch"), KEYSPACE.control_name("epoch", "t"), *TAG_NAMES.values())
TAGS = st.sampled_from([(), ("x",), ("x", "y")])

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("told"), st.sampled_from(CONTROLS), EPOCHS),
        st.tuples(st.just("doubted"), st.sampled_from(CONTROLS), st.just(0)),
        st.tuples(st.just("removed"), st.sampled_from([NAME, OTHER]), st.just(0)),
        st.tuples(st.just("cleared"), st.sampled_from([b"magnus:t:", b"magnus:u:", b"magnus:"]), st.just(0)),
        st.tuples(st.just("tag"), st.sampled_from(CONTROLS[2:]), st.just(0)),
        st.tuples(st.just("replayed"), st.just(b""), st.just(0)),
    ),
    max_size=12,
)


@given(STEPS, TAGS, EPOCHS)
def test_the_evidence_is_that_of_a_naive_model(
    steps: list[tuple[str, bytes, int]], tags: tuple[str, ...], epoch: int
) -> None:
    epochs, known, outbox = Epochs(KEYSPACE), KnownEpochs(), Outbox(b"magnus:")
    latest: dict[bytes, int] = {}
    current: set[bytes] = set()
    waiting: set[bytes] = set()
    for what, name, number in steps:
        if what == "told":
            epochs.seen(name, number)
            known.learned(name, number, 0.0)
            latest[name] = max(latest.get(name, 0), number)
            current.add(name)
        elif what == "doubted":
            known.discard(name)
            current.discard(name)
        elif what == "removed":
            outbox.record([name])
            waiting.add(name)
        elif what == "cleared":
            outbox.record_prefix(name)
            waiting.add(name)
        elif what == "tag":
            outbox.record_tags([name])
            waiting.add(name)
        else:
            outbox.acknowledge(outbox.take())
            waiting.clear()
    ref = KeyRef(SPACE, NAME, Counters(), epochs.epoch_names(SPACE), NO_POLICY)
    state: Any = SimpleNamespace(epochs=epochs, outbox=outbox)
    source: Any = SimpleNamespace(known=known, time=SimpleNamespace(horizon=10))
    record = Record(None, b"", 0, 1, epoch, tags)
    needed = [*CONTROLS[:2], *map(TAG_NAMES.__getitem__, tags)]
    if waiting & {NAME, b"magnus:t:", b"magnus:", *needed[2:]}:
        expected = settled = Verdict.PENDING
    else:
        minimum = max(latest[name] for name in needed) if current.issuperset(needed) else None
        expected = judge(record, 1.0, NO_POLICY, minimum, 10, pending=False)
        minimum = max(latest[name] for name in needed) if latest.keys() >= set(needed) else None
        settled = judge(record, 1.0, NO_POLICY, minimum, 10, pending=False)
    assert verdict(state, ref, record, 1.0, source, math.inf) is expected
    assert settled_verdict(state, ref, record, 1.0, source, math.inf) is settled


# -- each path asks it ------------------------------------------------------------------------------------------------

Way = Callable[[AsyncCacheManager], Awaitable[Any]]


async def by_get_or_set(cache: AsyncCacheManager) -> Any:
    value = await cache.get_or_set("t", "k", lambda: "new", tags="x")
    return None if value == "new" else value


async def by_explain(cache: AsyncCacheManager) -> Any:
    return (await cache.explain("t", "k")).level


async def by_get_many(cache: AsyncCacheManager) -> Any:
    return (await cache.get_many("t", ["k"])).get("k")


WAYS: dict[str, Way] = {
    "get": lambda cache: cache.get("t", "k"),
    "get_many": by_get_many,
    "get_or_set": by_get_or_set,
    "ttl": lambda cache: cache.ttl("t", "k"),
    "explain": by_explain,
}


def replay_within(state: State, monkeypatch: pytest.MonkeyPatch, look: str) -> list[str]:
    """Let another thread end the replay of all that waits right after the first look at the epochs of tag x."""
    original, ended = getattr(Epochs, look), list[str]()

    def looked(self: Epochs, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if (
            not ended
            and found is not None
            and isinstance(arguments[-1], tuple)
            and "x" in arguments[-1]
            and self is state.epochs
        ):
            ended.append(look)
            missed = state.outbox.take()
            for name in missed.tags:
                self.seen(name, self.highest + 1)
                state.outdated(name)
            state.outbox.acknowledge(missed)
        return found

    monkeypatch.setattr(Epochs, look, looked)
    return ended


@pytest.mark.parametrize("look", ["lowest_valid", "lowest_valid_seen"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_replay_that_ends_while_a_value_is_judged(
    url: str, monkeypatch: pytest.MonkeyPatch, way: str, look: str
) -> None:
    """The epoch rises before the outbox is empty: whoever sees it empty must see the epoch."""
    async with fleet(url) as (writer, cache):
        await writer.set("t", "k", "old", tags="x")
        assert await cache.ttl("t", "k") is not None
        state = cache._engine.state
        assert await WAYS[way](cache) is not None
        state.memory.invalidate(b"magnus:t:k")
        state.outbox.record_tags([state.epochs.tag_name("x")])
        replay_within(state, monkeypatch, look)
        assert await WAYS[way](cache) is None


@pytest.mark.parametrize("look", ["lowest_valid", "lowest_valid_seen"])
async def test_a_replay_that_ends_while_an_object_is_judged(
    url: str, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    local = Namespace("models", local=True, ttl=600)
    with virtual_clock() as clock:
        async with fleet(url, 1) as (cache,):
            await cache.set(local, "k", "old", tags="x")
            state = cache._engine.state
            wire = wire_of(state)
            assert wire is not None
            clock.advance(state.settings.max_staleness + 1)
            state.outbox.record_tags([state.epochs.tag_name("x")])
            # It waits longer than a caller does.
            put_off_replays(state, math.inf)
            ended = replay_within(state, monkeypatch, look)
            assert await cache.get(local, "k") is None
            assert ended == [look]
            put_off_replays(state, -math.inf)


TOLD: dict[str, Callable[[Outbox], None]] = {
    "replayed": lambda outbox: outbox.acknowledge(outbox.take()),
    "overwritten": lambda outbox: outbox.overwritten(b"magnus:t:k", outbox.position),
}


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_from_before_redis_was_told_is_not_believed(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, way: str, told: str
) -> None:
    """Another connection tells Redis of a removal while the removed value is on its way through this one."""
    async with fleet(url) as (writer, cache):
        await writer.set("t", "k", "removed", tags="x")
        assert await cache.ttl("t", "k") is not None
        state = cache._engine.state
        state.outbox.record([b"magnus:t:k"])
        # It waits longer than a caller does.
        put_off_replays(state, math.inf)

        def tell() -> None:
            raw.delete("magnus:t:k")
            TOLD[told](state.outbox)

        for name in ("unpack", "read_header"):
            monkeypatch.setattr(envelope, name, _after(tell, getattr(envelope, name)))
        assert await WAYS[way](cache) is None
        assert not state.outbox.pending
        monkeypatch.undo()
        # What was asked for since then is believed.
        await writer.set("t", "k", "stored", tags="x")
        assert await WAYS[way](cache) is not None
        put_off_replays(state, -math.inf)


def _after(tell: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    def answered(*arguments: Any) -> Any:
        tell()
        return original(*arguments)

    return answered


def test_an_overflow_of_told_names_in_the_midst_of_a_look_hides_none() -> None:
    """Another thread drops the names between the two things that a look compares."""
    now = 10.0
    outbox, name = Outbox(b"magnus:", most_names=2, clock=lambda: now), b"magnus:t:key"

    def tell(*names: bytes) -> None:
        for told in names:
            outbox.record([told])
            outbox.acknowledge(outbox.take())

    class Overflowing(dict[bytes, float]):
        def get(self, key: bytes, default: Any = None) -> Any:
            outbox._confirmed = dict(self)
            tell(b"magnus:t:1", b"magnus:t:2", b"magnus:t:3", b"magnus:t:4")
            return outbox._confirmed.get(key, default)

    tell(name)
    now = 11.0
    outbox._confirmed = Overflowing(outbox._confirmed)
    assert outbox.was_covered(name, 9.0)
    assert outbox.was_covered(name, 9.0)


def test_names_that_redis_was_told_of_are_bounded() -> None:
    now = 0.0
    outbox = Outbox(b"magnus:", most_names=3, clock=lambda: now)
    for number in range(20):
        now += 1.0
        outbox.record([b"magnus:t:%d" % number])
        outbox.acknowledge(outbox.take())
        assert len(outbox._confirmed) <= 3
        assert all(outbox.was_covered(b"magnus:t:%d" % told, told + 0.5) for told in range(number + 1))
        assert not outbox.was_covered(b"magnus:t:%d" % number, now)
    outbox.reset()
    assert not outbox.was_covered(b"magnus:t:0", 0.0)


@pytest.mark.parametrize("problem", ["below", "beyond", "unknown"])
async def test_a_value_that_was_overtaken_on_its_way_to_redis_is_not_kept_here(url: str, problem: str) -> None:
    """Its epoch rose, or was announced, between the command and its answer."""
    async with fleet(url, 1) as (cache,):
        await cache.set("t", "k", 1)
        reads, state = cache._engine.reads, cache._engine.state
        wire, ref = wire_of(state), reads.ref("t", "k")
        assert wire is not None
        times, now = (wire.time.at(state.clock()) + 60_000_000, 60.0), state.clock()
        good = Record(1, None, 1, 7, state.epochs.highest)
        for held, kept in ((good, True), (good._replace(epoch=1 << 62 if problem == "beyond" else 1), False)):
            state.memory.invalidate(ref.name)
            if problem == "unknown" and not kept:
                wire.known.forget()
                held = good
            fill = reads.expect(ref)
            assert keep_written(cache, (ref, fill, held, times, state.epochs.moment()), True, wire, now)
            reads.settle(fill)
            assert (state.memory.hit(ref.name) is not None) == kept


@pytest.fixture
def limited(url: str, raw: redis.Redis) -> Iterable[str]:
    """The server without tracking: there a value in memory outlives its trust until it is read again."""
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    yield url.replace("redis://", "redis://limited:pw@")
    raw.acl_deluser("limited")


@pytest.fixture
async def clock() -> AsyncIterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


async def unreadable(_: AsyncCacheManager, raw: redis.Redis) -> None:
    raw.set("magnus:t:k", b"what a newer release writes")


async def expired(writer: AsyncCacheManager, _: redis.Redis) -> None:
    await writer.set(Namespace("t", grace=3600), "k", "new", ttl=1)


async def failing(writer: AsyncCacheManager, _: redis.Redis) -> None:
    await writer.delete("t", "k")
    with pytest.raises(LookupError):
        await writer.get_or_set("t", "k", _fail, negative={LookupError: 3600})


def _fail() -> None:
    raise LookupError("none")


@pytest.mark.parametrize("replace", [unreadable, expired, failing])
async def test_what_was_replaced_by_what_is_of_no_use_is_not_kept_for_an_outage(
    url: str, limited: str, raw: redis.Redis, clock: VirtualClock, replace: Any
) -> None:
    """Redis has said that it has something else: the next outage must not bring the older value back."""
    async with fleet(url, 1) as (writer,), fleet(limited, 1, max_staleness=10.0) as (reader,):
        await writer.set("t", "k", "old", ttl=7200)
        assert await reader.get("t", "k") == "old"
        memory = reader._engine.state.memory
        assert memory.get_stale(b"magnus:t:k", trusted=False) is not None
        await replace(writer, raw)
        clock.advance(11)
        assert await reader.get("t", "k") is None
        assert memory.get_stale(b"magnus:t:k", trusted=False) is None


async def test_a_stale_value_stays_for_callers_with_more_grace(limited: str, clock: VirtualClock) -> None:
    """Redis has the same version: it is only this caller that may not have it."""
    async with fleet(limited, 1, max_staleness=10.0) as (reader,):
        await reader.get_or_set("t", "k", lambda: "value", 5, grace=3600)
        clock.advance(11)
        assert await reader.get("t", "k") is None
        assert reader._engine.state.memory.get_stale(b"magnus:t:k", trusted=False) is not None
        assert await reader.get_or_set("t", "k", _fail, grace=3600) == "value"


async def test_an_error_that_is_remembered_no_more_is_loaded_anew(
    url: str, raw: redis.Redis, clock: VirtualClock
) -> None:
    """Also where Redis still has it: grace is for values."""
    namespace = Namespace("t", ttl=60, grace=600, negative={LookupError: 5})
    async with fleet(url) as (one, two):
        with pytest.raises(LookupError):
            await one.get_or_set(namespace, "k", _fail)
        raw.persist("magnus:t:k")
        clock.advance(6)
        assert await two.get_or_set(namespace, "k", lambda: "there") == "there"


async def test_an_object_of_a_policy_is_not_served_stale_to_callers_without_one(url: str, clock: VirtualClock) -> None:
    local = Namespace("models", local=True, ttl=10)
    async with fleet(url, 1) as (cache,):
        await cache.get_or_set(local, "k", lambda: "first", grace=3600)
        clock.advance(11)
        assert await cache.get(local, "k") is None
        assert await cache.get_many(local, ["k"]) == {}
        assert not await cache.contains(local, "k")
        assert (await cache.explain(local, "k")).level is None
        # It stays for those who have one.
        assert await cache.get_or_set(local, "k", _fail, grace=3600) == "first"
        assert await cache.get_or_set(local, "k", lambda: "second") == "second"


async def test_explain_names_the_reason_that_keeps_a_stale_value_away(url: str, clock: VirtualClock) -> None:
    namespace = Namespace("t", ttl=5, grace=600)
    async with fleet(url) as (one, two):
        await one.get_or_set(namespace, "k", lambda: 1, tags="x")
        clock.advance(6)
        assert "may be served stale" in (await two.explain(namespace, "k")).verdict
        state = two._engine.state
        state.outbox.record_tags([state.epochs.tag_name("x")])
        put_off_replays(state, math.inf)
        told = await two.explain(namespace, "k")
        assert (told.level, told.verdict) == (None, Verdict.PENDING.words)
        put_off_replays(state, -math.inf)
        wire = wire_of(state)
        assert wire is not None
        await state.replayer.bump([state.epochs.tag_name("x")])
        state.outbox.acknowledge(state.outbox.take())
        told = await two.explain(namespace, "k")
        assert (told.level, told.verdict) == (None, Verdict.OUTDATED.words)


async def test_explain_tells_whose_remembered_errors_count(url: str, raw: redis.Redis) -> None:
    async with fleet(url) as (one, two):
        with pytest.raises(LookupError):
            await one.get_or_set("t", "k", _fail, negative={LookupError: 60})
        stored: Any = raw.get("magnus:t:k")
        assert envelope.read_header(stored).flags & envelope.NEGATIVE
        told = await two.explain("t", "k")
        assert (told.level, told.verdict) == (None, Verdict.UNWANTED.words)
        told = await one.explain("t", "k")
        assert told.level is None
        told = await two.explain(Namespace("t", negative={LookupError: 60}), "k")
        assert (told.level, told.verdict) == ("l2", "an error that loading raised, remembered")


async def test_a_value_from_before_an_earlier_outage_is_not_served(proxy: Proxy, clock: VirtualClock) -> None:
    """It may have been changed between the two outages, unheard; nobody asked Redis for it."""
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.5) as cache:
        await cache.set("t", "k", "old", "1h")
        for expected in ("old", None):
            proxy.refuse()
            proxy.cut()
            await wait_until_async(lambda: not cache._engine.state.reachable)
            assert await cache.get("t", "k") == expected
            await wait_until_async(lambda: not cache.redis_available)
            proxy.resume()
            clock.advance(5)
            await wait_until_async(lambda: cache.redis_available)
