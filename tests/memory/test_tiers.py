"""A cache of two tiers serves what a cache of one would: whatever moves between them, and whatever comes in between."""

import gc
import math
import re
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magnus_cache._engine.coherence.tag_stamps import TagStamp, room
from magnus_cache._engine.coherence.trust import Trust, UnsharedTrust
from magnus_cache._engine.coordination.invalidation import Invalidation
from magnus_cache._engine.memory import records
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.entry import DEAD, Entry, ReferenceEntry, TaggedEntry, pack_facts, pack_windows
from magnus_cache._engine.memory.footprint import footprint
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.records import OBJECT, Bases, basis_of, is_plain, pack, unpack
from magnus_cache._engine.memory.store import LocalCache
from tests.support.effort import examples
from tests.support.inside import bases_of, is_hot, shards_of
from tests.support.interrupts import interrupted
from tests.support.memory import FOREVER, Clock, put

HOT = 3


class Stamps:
    """The stamps of tags, as `Epochs` has them: only entries keep them alive."""

    def __init__(self) -> None:
        self.alive: weakref.WeakValueDictionary[str, TagStamp] = weakref.WeakValueDictionary()

    def of(self, *tags: str) -> list[TagStamp]:
        return [self.alive.setdefault(tag, TagStamp(tag)) for tag in tags]


def small(entries: int = 40, clock: Clock | None = None, hot: int = HOT) -> LocalCache:
    # With the exact LRU, `crowd` demotes whatever was there before.
    return LocalCache(entries, 10**7, clock or Clock(), policy="lru", hot=hot)


def entry(value: object, deadline: float = math.inf, trust: Trust = FOREVER) -> Entry:
    return Entry(value, None, deadline, trust, 10)


def tagged(
    value: object, stamps: list[TagStamp], generation: int, trust: Trust = FOREVER, deadline: float = math.inf
) -> TaggedEntry:
    made = TaggedEntry(value, None, deadline, trust, 10 + room(stamps))
    made.stamps, made.epoch, made.generation = stamps, 77, generation
    return made


def crowd(memory: LocalCache, count: int = 2 * HOT) -> None:
    """Store others, so that what was there before is demoted."""
    for number in range(count):
        put(memory, b"crowd:%d" % number, entry(number))


def value_of(memory: LocalCache, name: bytes) -> object:
    held = memory.hit(name)
    return None if held is None else held.value


# -- records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_tags", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_record_is_the_entry_again(with_tags: bool, encoded: bool) -> None:
    bases, trust, stamps = Bases(), Trust(5.0), [TagStamp("x"), TagStamp("y")]
    for more in (0, pack_windows(1.0, 2.0, negative=True), pack_windows(0.0, 1e9)):
        for as_of in (0, 1, 1_764_300_000_000_000, (1 << 64) - 1):
            facts = pack_facts((1 << 64) - 1, more, as_of)
            payload = b"payload" if encoded else None
            kind, size = (TaggedEntry, 7 + room(stamps)) if with_tags else (Entry, 7)
            made = kind(None if encoded else "payload", payload, 1.25, trust, size, facts)
            made.generation = 12
            if isinstance(made, TaggedEntry):
                made.stamps, made.epoch = stamps, 9_000_000_000_000_000
            again = unpack(pack(made, bases), bases)
            assert type(again) is kind
            assert again.payload == payload
            assert again.value == made.value
            for fact in ("deadline", "version", "as_of", "negative", "fresh_until", "end", "trust", "generation"):
                assert getattr(again, fact) == getattr(made, fact), fact
            if encoded:
                assert (again.size, again.length) == (made.size, 7)
            if isinstance(again, TaggedEntry):
                assert list(again.stamps) == stamps
                assert again.epoch == 9_000_000_000_000_000
    assert len(bases.known) == 1


@pytest.mark.parametrize(
    "value", [None, True, 1, -(2**80), 1.5, "text", "\ud800", b"bytes", (), (1, "a", None, 2.5), ("x",) * 32]
)
def test_plain_values_are_packed_without_their_payload(value: object) -> None:
    bases = Bases()
    again = unpack(pack(entry(value), bases), bases)
    assert again.value == value
    assert type(again.value) is type(value)
    assert again.payload is None


@pytest.mark.parametrize("value", ["a" * 1_000 + "\U0001f600", "\xe9" * 1_000, tuple(range(10**6, 10**6 + 32)), b"x"])
@pytest.mark.parametrize("with_tags", [False, True])
def test_a_plain_value_counts_for_as_much_as_before_it_was_packed(value: object, with_tags: bool) -> None:
    size, bases = footprint(value, 0), Bases()
    made = Entry(value, None, math.inf, FOREVER, size)
    if with_tags:
        stamps = [TagStamp("x")]
        made = TaggedEntry(value, None, math.inf, FOREVER, size + room(stamps))
        made.stamps, made.epoch = stamps, 0
    again = unpack(pack(made, bases), bases)
    assert again.value == value
    assert (again.size, again.length) == (made.size, size)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [object(), [1], {"a": 1}, Text("a"), (1, [2]), ((1,),), (1,) * 33, {1}])
def test_what_is_not_plain_stays_an_object(value: object) -> None:
    assert not is_plain(value)
    assert pack(entry(value), Bases()) is OBJECT
    with_payload = entry(value)
    with_payload.encoded = b"payload"
    bases = Bases()
    again = unpack(pack(with_payload, bases), bases)
    assert (again.value, again.payload, again.size) == (None, b"payload", 7)


def test_an_object_of_a_local_namespace_is_never_packed() -> None:
    made = ReferenceEntry("plain", None, 1.0, FOREVER, 5)
    made.stamps, made.epoch = (), 0
    assert pack(made, Bases()) is OBJECT


def test_the_number_of_a_basis_is_never_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BASES", 100)
    bases, used = Bases(), set()
    kept = Trust(1.0)
    number = bases.number(kept, ())
    bases.uses[number] += 1
    for _ in range(1_000):
        other = bases.number(Trust(2.0), ())
        assert not other or other not in used
        used.add(other)
    assert bases.known[number].trust is kept, "while a record has it"
    assert len(bases.known) <= 101
    bases.clear()
    assert bases.number(kept, ()) not in used | {number}


def test_too_many_bases_keep_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BASES", 80)
    memory = small(2_000, hot=10)
    trusts = [Trust(math.inf) for _ in range(500)]
    for number, trust in enumerate(trusts):
        put(memory, b"n:%d" % number, entry(number, trust=trust))
    assert len(bases_of(memory).known) <= 80
    for number, trust in enumerate(trusts):
        assert value_of(memory, b"n:%d" % number) == number
        trust.kill()
        assert value_of(memory, b"n:%d" % number) is None


# -- what must hold in the cold store --------------------------------------------------------------------------


def test_an_entry_comes_back_with_all_that_is_known_of_it() -> None:
    memory, trust = small(), Trust(math.inf)
    first = entry("v", trust=trust)
    put(memory, b"n:1", first)
    crowd(memory)
    assert not is_hot(memory, b"n:1")
    assert first.trust is DEAD, "for those who remember it"
    again = memory.hit(b"n:1")
    assert again is not None
    assert again is not first
    assert (again.value, again.trust) == ("v", trust)
    assert is_hot(memory, b"n:1")
    assert memory.hit(b"n:1") is again
    assert len(memory) == 1 + 2 * HOT


@pytest.mark.parametrize("renewed", [False, True])
def test_a_cleared_record_is_gone(renewed: bool) -> None:
    memory = small()
    put(memory, b"n:1", entry("v"))
    put(memory, b"m:1", entry("w"))
    crowd(memory)
    memory.clear(b"n:")
    if renewed:
        put(memory, b"n:2", entry("new"))
    assert value_of(memory, b"n:1") is None
    assert memory.get_untrusted(b"n:1") is None
    assert memory.get_stale(b"n:1", trusted=False) is None
    assert value_of(memory, b"m:1") == "w"


def test_a_clear_is_not_forgotten_before_the_cold_store_was_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magnus_cache._engine.memory.store._CLEAR_STEPS", 0)
    monkeypatch.setattr("magnus_cache._engine.memory.store._CLEAR_SHARE", 0)
    memory = small(2_000, hot=10)
    for number in range(200):
        put(memory, b"n:%d" % number, entry(number))
    memory.clear(b"n:")
    for number in range(200):
        # A name that moves while the collector goes round is checked as it moves.
        memory.sweep(3)
        assert value_of(memory, b"n:%d" % (number * 7 % 200)) is None
        put(memory, b"m:%d" % number, entry(number))
    while memory.sweep(10):
        pass
    assert all(value_of(memory, b"n:%d" % number) is None for number in range(200))
    assert all(value_of(memory, b"m:%d" % number) == number for number in range(200))


def test_a_tag_reaches_records_when_nothing_else_has_its_stamp() -> None:
    memory, stamps = small(), Stamps()
    put(memory, b"n:1", tagged("v", stamps.of("tag", "other"), memory.generation))
    put(memory, b"n:2", tagged("w", stamps.of("other"), memory.generation))
    crowd(memory)
    gc.collect()
    stamp = stamps.alive.get("tag")
    assert stamp is not None, "the records keep it"
    memory.invalidate_tag(stamp)
    assert value_of(memory, b"n:1") is None
    again = memory.hit(b"n:2")
    assert isinstance(again, TaggedEntry)
    assert (again.value, [one.tag for one in again.stamps], again.epoch) == ("w", ["other"], 77)
    assert again.stamps[0] is stamps.alive["other"]


def test_a_lost_connection_reaches_records() -> None:
    memory, trusts = small(), [Trust(math.inf, 3), UnsharedTrust(math.inf), Trust(math.inf)]
    for number, trust in enumerate(trusts):
        put(memory, b"n:%d" % number, entry(number, trust=trust))
    crowd(memory)
    trusts[0].kill()
    assert value_of(memory, b"n:0") is None
    suspect = memory.get_untrusted(b"n:0")
    assert suspect is not None, "for the outage"
    assert suspect.trust is trusts[0]
    crowd(memory)
    kept = memory.get_stale(b"n:1", trusted=True)
    assert kept is not None
    assert isinstance(kept.trust, UnsharedTrust)
    assert value_of(memory, b"n:2") == 2


def test_a_record_ends_with_its_deadline_and_is_collected_after_its_end() -> None:
    clock = Clock()
    memory = small(clock=clock)
    stale = Entry("s", None, clock.now + 1, FOREVER, 10, pack_facts(1, pack_windows(0.0, 100.0)))
    put(memory, b"n:stale", stale)
    put(memory, b"n:1", entry("v", clock.now + 1))
    crowd(memory)
    clock.now += 2
    assert value_of(memory, b"n:1") is None
    assert memory.get_stale(b"n:1", trusted=False) is None
    crowd(memory)
    kept = memory.get_stale(b"n:stale", trusted=True)
    assert kept is not None
    assert kept.value == "s"
    crowd(memory)
    clock.now += 200
    memory.sweep()
    memory.sweep()
    assert len(memory) == 2 * HOT


@pytest.mark.parametrize(
    "remove",
    [
        lambda memory: memory.invalidate(b"n:1"),
        lambda memory: memory.drop(memory.reserve(b"n:1")),
        lambda memory: memory.clear(b"n:"),
        lambda memory: memory.clear_matching(re.compile(rb"n:\d")),
        lambda memory: put(memory, b"n:1", Entry("large", None, math.inf, FOREVER, memory.max_bytes)),
        lambda memory: memory.reset(),
        lambda memory: [memory.shrink(2) for _ in range(40)],
    ],
)
@pytest.mark.parametrize("value", ["plain", object()])
def test_whatever_removes_an_entry_removes_a_record(remove: Callable[[LocalCache], Any], value: object) -> None:
    memory = small()
    put(memory, b"n:1", entry(value))
    remembered = memory.hit(b"n:1")
    assert remembered is not None
    crowd(memory)
    assert not is_hot(memory, b"n:1")
    remove(memory)
    assert memory.get_stale(b"n:1", trusted=False) is None
    assert remembered.trust is DEAD
    while memory.shrink():
        pass
    assert (len(memory), memory.bytes) == (0, 0)


def test_a_fill_replaces_a_record() -> None:
    memory = small()
    put(memory, b"n:1", entry("old"))
    crowd(memory)
    fill = memory.reserve(b"n:1")
    assert memory.fill(fill, entry("new"))
    memory.release(fill)
    count = len(memory)
    crowd(memory)
    assert value_of(memory, b"n:1") == "new"
    assert len(memory) == count
    memory.invalidate(b"n:1")
    assert value_of(memory, b"n:1") is None


def test_an_entry_that_was_demoted_is_not_replaced() -> None:
    memory = small()
    old = entry("old")
    put(memory, b"n:1", old)
    crowd(memory)
    assert not memory.replace(b"n:1", old, entry("new"))
    held = memory.hit(b"n:1")
    assert held is not None
    assert memory.replace(b"n:1", held, entry("new"))
    assert value_of(memory, b"n:1") == "new"


def test_what_was_not_used_for_the_longest_time_is_evicted() -> None:
    memory = small(1_000, hot=100)
    for number in range(1_000):
        put(memory, b"n:%d" % number, entry(number))
    for number in range(300):
        assert value_of(memory, b"n:%d" % number) == number
    for number in range(600):
        put(memory, b"later:%d" % number, entry(number))
    assert len(memory) == 1_000
    assert sum(memory.get_stale(b"n:%d" % number, trusted=False) is not None for number in range(300)) >= 290
    assert sum(memory.get_stale(b"n:%d" % number, trusted=False) is not None for number in range(300, 800)) <= 10


def test_an_object_in_use_through_those_who_hold_it_is_not_evicted() -> None:
    """As cached functions do: they mark the entry that they hold while it is trusted, and ask for it once it is not."""
    memory, value = small(40), object()
    put(memory, b"n:1", entry(value))
    held = memory.hit(b"n:1")
    assert held is not None
    for number in range(200):
        put(memory, b"later:%d" % number, entry(number))
        if held.trust is DEAD:
            held = memory.hit(b"n:1")
            assert held is not None, number
        held.seen = True
        assert held.value is value
    assert memory.hit(b"n:1") is held


def test_an_object_that_comes_again_is_the_last_to_be_evicted() -> None:
    memory = small(20)
    for number in range(20):
        put(memory, b"n:%d" % number, entry([number]))
    # The first one goes, and the next ones are looked up with it.
    put(memory, b"new:0", entry([0]))
    for number in (1, 10, 11, 12):
        assert value_of(memory, b"n:%d" % number) == [number]
    assert not is_hot(memory, b"n:1")
    for number in range(1, 5):
        put(memory, b"new:%d" % number, entry([number]))
    assert value_of(memory, b"n:1") == [1]
    assert value_of(memory, b"n:2") is None


def test_bytes_stay_within_their_bound() -> None:
    memory = LocalCache(10_000, 100_000, Clock(), hot=50)
    for number in range(3_000):
        put(memory, b"n:%d" % number, entry("x" * (number % 500)))
        assert memory.bytes <= 100_000
        value_of(memory, b"n:%d" % (number // 2))
        assert memory.bytes <= 100_000
    assert memory.evictions > 1_000


def test_values_that_are_larger_when_they_come_back_stay_within_the_bound() -> None:
    memory = LocalCache(10_000, 100_000, Clock(), policy="lru", hot=20)
    names = [b"n:%d" % number for number in range(20)]
    for number, name in enumerate(names):
        value = f"{number}" + "a" * 2_000 + "\U0001f600"
        put(memory, name, Entry(value, None, math.inf, FOREVER, footprint(value, 0)))
        crowd(memory, 20)
    for name in 2 * names:
        memory.hit(name)
        values = [held.value for other in names if is_hot(memory, other) and (held := memory.hit(other)) is not None]
        assert sum(map(sys.getsizeof, values)) <= memory.bytes <= 100_000
    assert memory.evictions > 0


def test_a_handler_in_the_midst_of_a_section_finds_no_record() -> None:
    """It must not move anything there; a hot entry it gets."""
    memory = small()
    put(memory, b"n:1", entry("v"))
    crowd(memory)
    put(memory, b"n:2", entry("w"))
    with memory._lock:
        assert value_of(memory, b"n:1") is None
        assert value_of(memory, b"n:2") == "w"
    assert value_of(memory, b"n:1") == "v"


@pytest.mark.parametrize("value", ["plain", object()])
@pytest.mark.parametrize("step", ["promote", "demote"])
@pytest.mark.parametrize("removal", ["invalidate", "clear"])
def test_what_was_invalidated_in_the_midst_of_a_move_stays_so(step: str, removal: str, value: object) -> None:
    for place in range(1, 10_000):
        memory = small()
        put(memory, b"n:1", entry(value))
        if step == "promote":
            crowd(memory)
        else:
            crowd(memory, HOT - 1)

        with interrupted(place, lambda memory=memory: getattr(memory, removal)(b"n:1")) as interruption:  # type: ignore[misc]
            if step == "promote":
                memory.hit(b"n:1")
            else:
                put(memory, b"m:1", entry("new"))
        if not interruption.done:
            break
        assert memory.get_untrusted(b"n:1") is None, interruption.where
        while memory.shrink():
            pass
        assert (len(memory), memory.bytes) == (0, 0), interruption.where
        assert not any(bases_of(memory).uses.values()), interruption.where
    assert place > 10


# -- what it is for -------------------------------------------------------------------------------------------


def test_the_collector_does_not_walk_records() -> None:
    memory = LocalCache(60_000, 10**9)
    before = len(gc.get_objects())
    for number in range(60_000):
        put(memory, b"n:%d" % number, entry(f"text {number}"))
    shards = shards_of(memory)
    assert sum(map(len, shards)) > 40_000
    if sys.version_info < (3, 14):
        assert not any(map(gc.is_tracked, shards))
    # The hot ones, and little else.
    assert len(gc.get_objects()) - before < 18_000


def test_a_record_takes_at_most_150_bytes_beyond_its_name_and_value() -> None:
    count = 100_000
    names = [b"magnus:t:%06d" % number for number in range(count)]
    memory = LocalCache(count, 10**9)
    stamps = (TagStamp("function", room=0),)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, name in enumerate(names):
        made = TaggedEntry(
            "value", None, 2_000.0 + number / 1_000, FOREVER, 5, pack_facts(2**63 + number, 0, 1_764_300_000_000_000)
        )
        made.stamps, made.epoch, made.generation = stamps, 10**15, 1
        put(memory, name, made)
        del made
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before - 5 * count) / count <= 150


# -- threads ----------------------------------------------------------------------------------------------------


def test_threads_never_get_what_was_invalidated_before() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    memory = LocalCache(200, 10**9, hot=8)
    names = [b"n%d:%d" % (number % 2, number) for number in range(40)]
    valid: dict[bytes, int] = dict.fromkeys(names, 0)
    over, wrong = threading.Event(), []

    def read(seed: int) -> None:
        step = seed
        while not over.is_set():
            step += 1
            name = names[step * 7 % len(names)]
            least = valid[name]
            held = memory.hit(name) if step % 3 else memory.get_untrusted(name)
            if held is not None and held.value < least:
                wrong.append((name, held.value, least))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    try:
        for step in range(1, 6_000):
            name = names[step * 11 % len(names)]
            placeholder = memory.reserve(name)
            if step % 6 == 0:
                memory.invalidate(name)
                valid[name] = step
            elif step % 101 == 0:
                memory.clear(b"n%d:" % (step % 2))
                for other in names:
                    if other.startswith(b"n%d:" % (step % 2)):
                        valid[other] = step
            else:
                memory.fill(placeholder, entry(step))
                valid[name] = step
            memory.release(placeholder)
    finally:
        over.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
    assert wrong == []
    memory.clear()
    while memory.sweep(10_000):
        pass
    while memory.shrink():
        pass
    assert (len(memory), memory.bytes) == (0, 0)
    assert not any(bases_of(memory).uses.values())


def test_a_hit_finds_what_another_thread_has_just_packed() -> None:
    memory: LocalCache

    class Packing(Clock):
        due = False

        def __call__(self) -> float:
            # Between the look into the table and the one at the entry.
            if self.due:
                self.due = False
                packing = threading.Thread(target=crowd, args=(memory,))
                packing.start()
                packing.join()
            return self.now

    clock = Packing()
    memory = small(clock=clock)
    put(memory, b"n:1", entry("v"))
    clock.due = True
    assert value_of(memory, b"n:1") == "v"
    assert not clock.due


def test_a_reset_waits_for_a_promotion(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = small()
    put(memory, b"n:1", entry("v"))
    crowd(memory)
    resetting = threading.Thread(target=memory.reset)

    def unpack_during_reset(record: bytes, bases: Bases) -> Entry:
        resetting.start()
        # Without a lock it ends within this time, and the basis is gone.
        resetting.join(0.2)
        return unpack(record, bases)

    monkeypatch.setattr("magnus_cache._engine.memory.cold.unpack", unpack_during_reset)
    memory.hit(b"n:1")
    resetting.join()
    assert (len(memory), memory.bytes) == (0, 0)
    assert not any(bases_of(memory).uses.values())


# -- a model ----------------------------------------------------------------------------------------------------

ALL = [space + b":%d" % number for space in (b"a", b"b") for number in range(6)]
NAMES = st.sampled_from(ALL)
SCOPES = st.sampled_from([b"a:", b"b:", b"a:1", b"", re.compile(rb"[ab]:[12]"), re.compile(rb".:3")])
TAGS = ("one", "two")


class TwoTiers(RuleBasedStateMachine):
    """Room for all names, and three of them hot: what is served is exactly what is live, wherever it is."""

    @initialize(policy=st.sampled_from(["car", "lru", "clock", "sieve", "s3fifo"]))
    def start(self, policy: Any) -> None:
        self.clock = Clock()
        self.memory = LocalCache(20, 10**6, self.clock, policy=policy, hot=HOT)
        self.stamps = Stamps()
        self.model: dict[bytes, tuple[object, float, float, Trust, tuple[str, ...]]] = {}
        self.remembered: dict[bytes, Entry] = {}
        self.trusts = [Trust(math.inf), Trust(math.inf)]
        self.number = 0

    @rule(name=NAMES, data=st.data())
    def fill(self, name: bytes, data: st.DataObject) -> None:
        self.number += 1
        life = data.draw(st.sampled_from([1.0, 5.0, 50.0]))
        stale = data.draw(st.sampled_from([0.0, 20.0]))
        trust = data.draw(st.sampled_from(self.trusts))
        tags = data.draw(st.sampled_from([(), ("one",), ("two",), TAGS]))
        kind = data.draw(st.sampled_from(["plain", "payload", "object"]))
        value: Any = {"plain": self.number, "payload": None, "object": [self.number]}[kind]
        payload = b"%d" % self.number if kind == "payload" else None
        facts, deadline = pack_facts(self.number, pack_windows(0.0, stale)), self.clock.now + life
        made: Entry
        if tags:
            stamps = self.stamps.of(*tags)
            made = TaggedEntry(value, payload, deadline, trust, 5 + room(stamps), facts)
            made.stamps, made.epoch, made.generation = stamps, 0, self.memory.generation
            del stamps
        else:
            made = Entry(value, payload, deadline, trust, 5, facts)
        placeholder = self.memory.reserve(name)
        assert self.memory.fill(placeholder, made)
        self.memory.release(placeholder)
        self.model[name] = self.number, deadline, deadline + stale, trust, tags

    @rule(name=NAMES)
    def invalidate(self, name: bytes) -> None:
        self.memory.invalidate(name)
        self.model.pop(name, None)

    @rule(scope=SCOPES, small=st.booleans())
    def clear(self, scope: bytes | re.Pattern[bytes], small: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if not small:
                patch.setattr("magnus_cache._engine.memory.store._CLEAR_STEPS", 1)
                patch.setattr("magnus_cache._engine.memory.store._CLEAR_SHARE", 1)
            self.memory.clear_matching(scope)
        for name in list(self.model):
            if name.startswith(scope) if isinstance(scope, bytes) else scope.fullmatch(name):
                del self.model[name]

    @rule(tag=st.sampled_from(TAGS))
    def invalidate_a_tag(self, tag: str) -> None:
        stamp = self.stamps.alive.get(tag)
        if stamp is not None:
            self.memory.invalidate_tag(stamp)
        del stamp
        for name in [name for name, known in self.model.items() if tag in known[4]]:
            del self.model[name]

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1))
    def lose_a_connection(self, which: int) -> None:
        self.trusts[which].kill()
        self.trusts[which] = Trust(math.inf)

    @rule(limit=st.integers(1, 30))
    def sweep(self, limit: int) -> None:
        self.memory.sweep(limit)

    @rule(name=NAMES, how=st.sampled_from(["hit", "untrusted", "stale", "stale, trusted"]))
    def read(self, name: bytes, how: str) -> None:
        known, now = self.model.get(name), self.clock.now
        live = known is not None and now < (known[2] if how.startswith("stale") else known[1])
        if known is not None and how in ("hit", "stale, trusted"):
            live = live and now < known[3].deadline
        held = {
            "hit": lambda: self.memory.hit(name),
            "untrusted": lambda: self.memory.get_untrusted(name),
            "stale": lambda: self.memory.get_stale(name, trusted=False),
            "stale, trusted": lambda: self.memory.get_stale(name, trusted=True),
        }[how]()
        assert (held is not None) is live
        if held is not None and known is not None:
            assert held.version == known[0]
            assert held.trust is known[3]
            assert held.payload == b"%d" % held.version or held.value in (held.version, [held.version])
            if how == "hit":
                self.remembered[name] = held

    @rule(name=NAMES)
    def serve_what_is_remembered(self, name: bytes) -> None:
        held, known, now = self.remembered.get(name), self.model.get(name), self.clock.now
        if held is None:
            return
        if now < held and held.generation is self.memory.generation and now < held.trust.deadline:
            held.seen = True
            assert known is not None
            assert held.version == known[0]
            assert now < known[3].deadline

    @rule(name=NAMES)
    def replace(self, name: bytes) -> None:
        held = self.memory.get_untrusted(name)
        known = self.model.get(name)
        if held is not None and known is not None:
            assert self.memory.replace(name, held, held.until(held.deadline, self.trusts[0]))
            self.model[name] = (*known[:3], self.trusts[0], known[4])

    @invariant()
    def accounts_balance(self) -> None:
        if not hasattr(self, "memory"):
            return
        names = [name for name in ALL if is_hot(self.memory, name)]
        cold = [name for shard in shards_of(self.memory) for name in shard]
        assert len(names) <= HOT
        assert not set(names) & set(cold)
        assert len(self.memory) == len(names) + len(cold)
        assert self.memory.evictions == 0
        used: dict[int, int] = {}
        for shard in shards_of(self.memory):
            for record in shard.values():
                if record:
                    used[basis_of(record)] = used.get(basis_of(record), 0) + 1
        assert used == {number: uses for number, uses in bases_of(self.memory).uses.items() if uses}

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        while self.memory.shrink(3):
            pass
        assert (len(self.memory), self.memory.bytes) == (0, 0)
        assert all(held.trust is DEAD for held in self.remembered.values())


TestTwoTiers = TwoTiers.TestCase
TestTwoTiers.settings = settings(max_examples=examples(80), stateful_step_count=60, deadline=None)


def test_a_batch_of_invalidations_reaches_records() -> None:
    memory = BatchCache(40, 10**7, Clock(), policy="lru", hot=HOT)
    put(memory, b"n:1", entry("old"))
    crowd(memory)
    memory.invalidate_many([b"n:1", b"n:2"])
    assert value_of(memory, b"n:1") is None


def test_placeholders_know_nothing_of_tiers() -> None:
    memory = small()
    put(memory, b"n:1", entry("old"))
    crowd(memory)
    fill: Placeholder = memory.reserve(b"n:1")
    assert value_of(memory, b"n:1") == "old"
    memory.invalidate(b"n:1")
    assert not memory.fill(fill, entry("late"))
    memory.release(fill)
    assert value_of(memory, b"n:1") is None


@pytest.mark.parametrize("value", ["plain", [object()]])
def test_a_look_at_the_trust_of_a_record_leaves_it_where_it_is(value: object) -> None:
    """A replay looks at hundreds of thousands of names, of which it drops nearly all."""
    memory, unshared = small(), UnsharedTrust(math.inf)
    put(memory, b"own", entry(value, trust=unshared))
    put(memory, b"read", entry(value))
    crowd(memory)
    assert not is_hot(memory, b"own")
    assert memory.trust_of(b"own") is unshared
    assert memory.trust_of(b"read") is FOREVER
    assert memory.trust_of(b"none") is None
    assert not is_hot(memory, b"own")
    assert not is_hot(memory, b"read")
    assert memory.hit(b"own") is not None
    assert memory.trust_of(b"own") is unshared


def test_what_only_this_process_has_outlives_a_replay_in_its_tier() -> None:
    memory = BatchCache(40, 10**7, Clock(), policy="lru", hot=HOT)
    local: Any = Invalidation()
    local.memory = memory
    put(memory, b"own", entry("own", trust=UnsharedTrust(math.inf)))
    put(memory, b"read", entry("read"))
    crowd(memory)
    local.forget_read([b"own", b"read"])
    assert not is_hot(memory, b"own")
    assert memory.trust_of(b"read") is None
    assert memory.hit(b"own") is not None
