"""The near cache by itself: its bounds, its deadlines, its placeholders, and a model it must agree with."""

import re
import threading
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from magnus_cache._engine.coherence.tag_stamps import TagStamp, room
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import OVERHEAD, Entry, TaggedEntry, pack_facts, pack_windows
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.store import LocalCache
from tests.support.effort import examples
from tests.support.memory import FOREVER, Clock, put


def entry(
    value: object = 1, life: float = 100.0, trust: Trust = FOREVER, size: int = 10, now: float = 1_000.0
) -> Entry:
    return Entry(value, None, now + life, trust, size)


def memory(entries: int = 100, size: int = 10**9, clock: Clock | None = None) -> LocalCache:
    return LocalCache(entries, size, clock or Clock())


def test_the_least_recently_used_goes_first() -> None:
    store = memory(entries=3)
    for name in (b"a", b"b", b"c"):
        put(store, name, entry())
    assert store.hit(b"a") is not None
    put(store, b"d", entry())
    assert [store.hit(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert store.evictions == 1


def test_bytes_are_bounded_too() -> None:
    room = 3 * (OVERHEAD + 1 + 1_000)
    store = memory(size=room)
    for name in (b"a", b"b", b"c", b"d"):
        put(store, name, entry(size=1_000))
    assert len(store) == 3
    assert store.bytes == room
    put(store, b"e", entry(size=room))
    assert store.hit(b"e") is None, "what is larger than all the room is not stored"
    assert len(store) == 3, "and does not push out the others"


def test_an_entry_ends_with_its_deadline_its_trust_or_a_clear() -> None:
    clock = Clock()
    store = memory(clock=clock)
    trust = Trust(1_050.0)
    put(store, b"n:a", entry(life=10))
    put(store, b"n:b", entry(trust=trust))
    put(store, b"n:c", entry())
    put(store, b"m:d", entry())
    clock.now = 1_010.0
    assert store.hit(b"n:a") is None
    assert store.get_untrusted(b"n:a") is None
    assert store.hit(b"n:b") is not None
    assert trust.used
    trust.kill()
    assert store.hit(b"n:b") is None
    assert store.get_untrusted(b"n:b") is not None, "suspect, but still here for an outage"
    store.clear(b"n:")
    assert store.get_untrusted(b"n:b") is store.hit(b"n:c") is None
    assert store.hit(b"m:d") is not None
    put(store, b"n:c", entry())
    assert store.hit(b"n:c") is not None, "a clear covers what was there, not what comes after"


def test_an_empty_prefix_clears_everything() -> None:
    store = memory()
    for name in (b"cache:n:a", b"cache:m:b", b"other"):
        put(store, name, entry())
    store.clear()
    assert [store.get_untrusted(name) for name in (b"cache:n:a", b"cache:m:b", b"other")] == [None] * 3


def test_a_pattern_clears_what_it_matches() -> None:
    store = memory()
    for name in (b"n:user1", b"n:user2", b"n:other"):
        put(store, name, entry())
    store.clear_matching(re.compile(rb"n:user.*"))
    assert [store.hit(name) is not None for name in (b"n:user1", b"n:user2", b"n:other")] == [False, False, True]


@pytest.mark.parametrize("how", ["invalidate", "put", "clear", "clear_matching"])
def test_a_touched_placeholder_stores_nothing(how: str) -> None:
    """Invariant 1: identity, not time, says whether anything happened since the request was sent."""
    store = memory()
    fill = store.reserve(b"n:k")
    match how:
        case "invalidate":
            store.invalidate(b"n:k")
        case "put":
            put(store, b"n:k", entry("newer"))
        case "clear":
            store.clear(b"n:")
        case _:
            store.clear_matching(re.compile(rb"n:.*"))
    later = store.reserve(b"n:k")
    assert store.fill(fill, entry("old")) is False
    assert store.fenced == 1
    assert store.fill(later, entry("new")) is True
    store.release(fill)
    store.release(later)
    held = store.hit(b"n:k")
    assert held is not None
    assert held.value == "new"
    assert store.pending == 0


def test_placeholders_are_shared_and_given_back() -> None:
    store = memory()
    one, two = store.reserve(b"k"), store.reserve(b"k")
    assert one is two
    store.release(one)
    assert store.pending == 1
    assert store.fill(two, entry()) is True
    store.release(two)
    assert store.pending == 0
    assert store.fill(two, entry("again")) is False


def test_expiry_of_a_large_store_is_done_in_small_steps() -> None:
    """Invariant 10: work per call is bounded, however much has expired at once."""
    clock = Clock()
    store = memory(entries=200_000, clock=clock)
    for number in range(100_000):
        put(store, b"n:%d" % number, entry(life=10))
    clock.now += 20
    most = 0
    for number in range(5_000):
        before = store.steps
        put(store, b"later:%d" % number, entry(life=1_000, now=clock.now))
        most = max(most, store.steps - before)
    assert 0 < most <= 512
    assert store.expirations > 0
    before = store.steps
    store.clear(b"n:")
    assert store.steps - before <= 8_192
    while store.sweep(1_000):
        pass
    assert store.hit(b"n:99999") is None


def test_deadlines_are_data_and_never_remove_a_newer_entry() -> None:
    """No timer fires late, and what is left of an old entry does not touch its successor."""
    clock = Clock()
    store = memory(entries=200, clock=clock)
    for round_ in range(50):
        put(store, b"k", entry(round_, life=5, now=clock.now))
        clock.now += 4
    put(store, b"k", entry("newest", life=1_000, now=clock.now))
    clock.now += 100
    for number in range(100):
        put(store, b"other%d" % number, entry(now=clock.now))
    store.sweep(10_000)
    held = store.hit(b"k")
    assert held is not None
    assert held.value == "newest"


def test_memory_an_entry_takes_beyond_its_name_and_value() -> None:
    """The budget of 250 bytes; counted, not timed."""
    count = 50_000
    names = [b"magnus:t:%06d" % number for number in range(count)]
    value = "value"
    store = memory(entries=count)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, name in enumerate(names):
        put(store, name, Entry(value, None, 2_000.0 + number / 1_000, FOREVER, 10, 2**63 + number))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / count <= 250


def test_threads_leave_a_sound_store() -> None:
    store = LocalCache(500, 500_000)
    over = threading.Event()
    errors: list[BaseException] = []

    def hammer(seed: int) -> None:
        try:
            for step in range(4_000):
                name = b"n%d:%d" % (step % 3, (seed * 7 + step) % 900)
                fill = store.reserve(name)
                if step % 7 == 0:
                    store.invalidate(name)
                store.fill(fill, Entry(step, None, float("inf"), FOREVER, step % 2_000))
                store.release(fill)
                store.hit(name)
                if step % 500 == 0:
                    store.clear(b"n%d:" % (step % 3))
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.pending == 0
    assert len(store) <= 500
    assert 0 <= store.bytes <= 500_000
    store.clear(b"")
    while store.sweep(10_000):
        pass
    assert (len(store), store.bytes) == (0, 0)


NAMES = st.sampled_from([b"a:1", b"a:2", b"b:1", b"b:2", b"b:3"])


class AgainstAModel(RuleBasedStateMachine):
    """The store beside an ordered dict that does the same naively."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = LocalCache(4, 10**9, self.clock, policy="lru")
        self.model: OrderedDict[bytes, tuple[int, float, Trust]] = OrderedDict()
        self.current: dict[bytes, Placeholder] = {}
        self.fills: list[Placeholder] = []
        self.trust = Trust(float("inf"))
        self.count = 0

    def made(self, life: float) -> Entry:
        self.count += 1
        return Entry(self.count, None, self.clock.now + life, self.trust, 10)

    def keep(self, name: bytes, made: Entry) -> None:
        self.model.pop(name, None)
        self.model[name] = (made.value, made.deadline, made.trust)
        # Dead entries may be collected before the limit is reached, so only the live ones are compared below.
        while len(self.model) > 4:
            self.model.popitem(last=False)

    @rule(name=NAMES, life=st.sampled_from([1.0, 5.0, 50.0]))
    def put(self, name: bytes, life: float) -> None:
        self.drop_dead()
        made = self.made(life)
        self.store.sweep(100)
        put(self.store, name, made)
        self.current.pop(name, None)
        self.keep(name, made)

    @rule(name=NAMES)
    def reserve(self, name: bytes) -> None:
        fill = self.store.reserve(name)
        assert self.current.setdefault(name, fill) is fill
        self.fills.append(fill)

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), life=st.sampled_from([1.0, 5.0, 50.0]))
    def fill(self, data: st.DataObject, life: float) -> None:
        fill = data.draw(st.sampled_from(self.fills))
        self.drop_dead()
        self.store.sweep(100)
        made = self.made(life)
        if self.current.get(fill.name) is fill:
            assert self.store.fill(fill, made) is True
            del self.current[fill.name]
            self.keep(fill.name, made)
        else:
            assert self.store.fill(fill, made) is False

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        fill = data.draw(st.sampled_from(self.fills))
        self.fills.remove(fill)
        self.store.release(fill)
        if not any(other is fill for other in self.fills) and self.current.get(fill.name) is fill:
            del self.current[fill.name]

    @rule(name=NAMES)
    def invalidate(self, name: bytes) -> None:
        self.store.invalidate(name)
        self.model.pop(name, None)
        self.current.pop(name, None)

    @rule(prefix=st.sampled_from([b"a:", b"b:", b""]))
    def clear(self, prefix: bytes) -> None:
        self.store.clear(prefix)
        for held in (self.model, self.current):
            for name in [name for name in held if name.startswith(prefix)]:
                del held[name]

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def lose_the_connection(self) -> None:
        self.trust.kill()
        self.trust = Trust(float("inf"))

    @rule(name=NAMES)
    def hit(self, name: bytes) -> None:
        held = self.store.hit(name)
        expected = self.model.get(name)
        live = expected is not None and expected[1] > self.clock.now and expected[2].deadline > self.clock.now
        assert (None if held is None else held.value) == (expected[0] if live and expected else None)
        if live:
            self.model.move_to_end(name)

    def drop_dead(self) -> None:
        for name in [name for name, (_, deadline, _) in self.model.items() if deadline <= self.clock.now]:
            del self.model[name]

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.store) <= 4
        assert self.store.bytes == len(self.store) * (OVERHEAD + 3 + 10)
        assert self.store.pending == len(self.current)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=examples(60), stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("as_of", [0, 1, 1_764_300_000_000_000, (1 << 64) - 1])
def test_an_entry_knows_when_its_load_began(as_of: int) -> None:
    more = pack_windows(1.0, 2.0, negative=True)
    entry = Entry([1], b"payload", 5.0, Trust(9.0), 7, pack_facts((1 << 64) - 1, more, as_of))
    stamps = [TagStamp("x")]
    facts = pack_facts((1 << 64) - 1, more, as_of)
    tagged = TaggedEntry([1], b"payload", 5.0, Trust(9.0), 7 + room(stamps), facts)
    tagged.stamps, tagged.epoch, tagged.generation = stamps, 0, 3
    decoded = (tagged.decoded([1], 127, shared=False), tagged.decoded([1], 127, shared=True))
    for one in (entry, tagged, entry.until(6.0, Trust(9.0)), tagged.until(6.0, Trust(9.0)), *decoded):
        assert one.as_of == as_of
        assert one.version == (1 << 64) - 1
        assert one.negative
        assert one.length == 7
        assert one.end - one.deadline == pytest.approx(3)
