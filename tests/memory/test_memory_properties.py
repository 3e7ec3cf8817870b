"""The near cache where it is hard: overtaken fills, many clears, work per call, finalizers, and stores of any size."""

import math
import os
import re
import threading
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.clear_log import Clear, ClearLog
from magnus_cache._engine.memory.entry import OVERHEAD, Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.memory.tiers import HOT
from tests.support.effort import examples
from tests.support.inside import names_queued, shards_of
from tests.support.memory import FOREVER, Clock, put


def entry(value: object = 1, deadline: float = math.inf, trust: Trust = FOREVER, size: int = 10) -> Entry:
    return Entry(value, None, deadline, trust, size)


def values(store: LocalCache, *names: bytes) -> list[object]:
    held = [store.hit(name) for name in names]
    return [None if one is None else one.value for one in held]


# -- entries ------------------------------------------------------------------------------------------------


def test_an_entry_tells_what_it_was_made_of() -> None:
    made = Entry("v", b"payload", 0.0, FOREVER, 2**40 - 1, 2**64 - 1)
    assert (made.value, made.payload, made.deadline, made.trust) == ("v", b"payload", 0.0, FOREVER)
    assert (made.size, made.version) == (2**40 - 1, 2**64 - 1)
    assert made, "also with a deadline of zero"
    assert "v'" not in repr(made), "invariant 12: no value in a repr"
    assert "payload" not in repr(made)


def test_the_deadline_itself_is_too_late() -> None:
    clock = Clock()
    store = LocalCache(10, 10**6, clock)
    put(store, b"a", entry(deadline=clock.now + 1))
    put(store, b"b", entry(trust=Trust(clock.now + 1)))
    clock.now += 1
    assert values(store, b"a", b"b") == [None, None]
    assert store.expirations == 1, "that of `a`; `b` is suspect only"
    assert store.get_untrusted(b"b") is not None
    put(store, b"c", entry(deadline=clock.now))
    assert store.get_untrusted(b"c") is None
    assert store.expirations == 2


def test_trust_that_is_renewed_revives_what_stands_on_it() -> None:
    clock = Clock()
    store = LocalCache(10, 10**6, clock)
    trust = Trust(clock.now)
    put(store, b"a", entry("v", trust=trust))
    assert values(store, b"a") == [None]
    assert trust.used is False, "nobody was served, so no heartbeat is due"
    trust.deadline = clock.now + 1
    assert values(store, b"a") == ["v"]
    assert trust.used is True


def test_peek_counts_as_use_and_not_as_trust() -> None:
    store = LocalCache(2, 10**6, Clock(), policy="lru")
    trust = Trust(-math.inf)
    for name in (b"a", b"b"):
        put(store, name, entry(trust=trust))
    assert store.get_untrusted(b"a") is not None
    put(store, b"c", entry())
    assert store.get_untrusted(b"a") is not None, "what an outage lives on is not evicted first"
    assert store.get_untrusted(b"b") is None
    assert trust.used is False


# -- bounds -------------------------------------------------------------------------------------------------


def test_what_replaces_an_entry_and_is_too_large_takes_the_old_one_along() -> None:
    store = LocalCache(10, 2_000, Clock())
    put(store, b"a", entry("old"))
    fill = store.reserve(b"a")
    assert store.fill(fill, entry("new", size=2_000)) is False
    assert (values(store, b"a"), len(store), store.bytes, store.pending) == ([None], 0, 0, 0)
    assert store.fenced == 0


def test_replacing_an_entry_counts_its_bytes_once_and_makes_it_the_last_to_go() -> None:
    store = LocalCache(2, 10**6, Clock())
    put(store, b"a", entry())
    put(store, b"b", entry())
    put(store, b"a", entry("new", size=500))
    assert store.bytes == 2 * (OVERHEAD + 1) + 510
    put(store, b"c", entry())
    assert values(store, b"a", b"b", b"c") == ["new", None, 1]


@pytest.mark.parametrize("limits", [(0, 10**6), (10, 0)])
def test_a_store_without_room_stores_nothing(limits: tuple[int, int]) -> None:
    store = LocalCache(*limits, Clock())
    put(store, b"a", entry())
    fill = store.reserve(b"a")
    assert store.fill(fill, entry()) is False
    assert (len(store), store.bytes, store.pending, store.evictions) == (0, 0, 0, 0)


def test_a_large_value_evicts_in_bounded_steps() -> None:
    """Invariant 10: what needs the room of ten thousand others gets it by and by."""
    count = 10_000
    room = count * (OVERHEAD + 6)
    store = LocalCache(count, room, Clock())
    for number in range(count):
        put(store, b"%06d" % number, entry(size=0))
    for _ in range(10):
        before = store.evictions
        put(store, b"large", entry(size=room - OVERHEAD - 5))
        assert store.evictions - before <= 4_096
        assert store.bytes <= room
    assert values(store, b"large") == [1]
    assert len(store) == 1


# -- placeholders -------------------------------------------------------------------------------------------


def test_the_first_of_two_holders_fills() -> None:
    store = LocalCache(10, 10**6, Clock())
    one, two = store.reserve(b"a"), store.reserve(b"a")
    assert store.fill(one, entry("first")) is True
    assert store.fill(two, entry("second")) is False
    assert values(store, b"a") == ["first"]
    assert store.fenced == 0, "nothing overtook it"


def test_a_placeholder_that_was_given_up_stays_so() -> None:
    """An old request neither stores nor voids what a newer one has reserved."""
    store = LocalCache(10, 10**6, Clock())
    old = store.reserve(b"a")
    store.release(old)
    new = store.reserve(b"a")
    store.release(old)
    assert store.fill(old, entry("old")) is False
    assert store.fill(new, entry("new")) is True
    store.release(old)
    store.release(new)
    assert values(store, b"a") == ["new"]
    assert store.pending == 0


@pytest.mark.parametrize("scope", [b"n:", re.compile(rb"n:\d+")])
def test_a_clear_voids_the_placeholders_it_covers_and_no_others(scope: bytes | re.Pattern[bytes]) -> None:
    store = LocalCache(10, 10**6, Clock())
    covered, other = store.reserve(b"n:1"), store.reserve(b"m:1")
    store.clear_matching(scope)
    assert store.pending == 1
    assert (store.fill(covered, entry()), store.fill(other, entry())) == (False, True)


def test_a_clear_among_a_crowd_of_placeholders_is_on_the_safe_side() -> None:
    """Invariant 10: too many to look at one by one, so all of them are void."""
    store = LocalCache(10, 10**6, Clock())
    fills = [store.reserve(b"%s:%d" % (space, number)) for number in range(1_000) for space in (b"n", b"m")]
    store.clear(b"n:")
    assert not any(store.fill(fill, entry()) for fill in fills)
    for fill in fills:
        store.release(fill)
    assert store.pending == 0


# -- clears -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [b"n:", b"", re.compile(rb"n:.*")])
def test_a_clear_of_a_small_store_frees_it_at_once(scope: bytes | re.Pattern[bytes]) -> None:
    store = LocalCache(1_000, 10**9, Clock())
    for number in range(20_000):
        put(store, b"n:%d" % number, entry())
    store.clear_matching(scope)
    assert (len(store), store.bytes) == (0, 0)


def cleared_in_steps(count: int) -> tuple[int, int]:
    """Fill a store with so many entries, and clear most of them; return the steps of the clear, and most of a sweep."""
    store = LocalCache(count, 10**10, Clock())
    kept = [b"m:%d" % number for number in range(100)]
    shared = [entry() for _ in kept]
    for name, made in zip(kept, shared, strict=True):
        put(store, name, made)
    for number in range(count - len(kept)):
        put(store, b"n:%d" % number, entry())
    before = store.steps
    store.clear(b"n:")
    cleared = store.steps - before
    assert len(store) > count - 4_096
    assert values(store, b"n:0", b"n:%d" % (count // 2), b"n:%d" % (count - 101)) == [None] * 3
    steps = []
    while len(store) > len(kept):
        before = store.steps
        removed = store.sweep(10_000)
        steps.append(store.steps - before)
        assert removed or store.steps < 3 * count
    assert values(store, *kept) == [1] * len(kept)
    store.sweep(1_000)
    assert len(store._clears) == 0, "no floor outlives the entries under it for more than a round"
    return cleared, max(steps)


def test_many_entries_are_cleared_in_bounded_steps() -> None:
    """Invariant 10: one call looks at a fixed number of entries, of however many, and none of the others is served."""
    few, many = cleared_in_steps(20_000), cleared_in_steps(200_000)
    assert few[0] <= 2_048
    assert few[1] <= 10_000
    assert many == few


def test_many_clears_are_remembered_or_overdone_but_never_forgotten() -> None:
    store = LocalCache(100_000, 10**9, Clock())
    for number in range(20_000):
        put(store, b"%d:%d" % (number % 300, number), entry())
    for number in range(200):
        store.clear_matching(re.compile(rb"%d:.*" % number))
        assert len(store._clears) <= 64
        assert values(store, b"%d:%d" % (number, number + 19_500)) == [None]
    assert not any(
        store.get_untrusted(b"%d:%d" % (number % 300, number)) for number in range(20_000) if number % 300 < 200
    )
    put(store, b"7:new", entry("new"))
    assert values(store, b"7:new") == ["new"]


def test_too_many_floors_become_one_under_everything() -> None:
    floors = ClearLog()
    for number in range(64):
        floors.add(Clear(b"%02d:" % number, number + 1, done=100))
    assert not floors.cleared(b"x:1", 0)
    assert (floors.cleared(b"07:1", 7), floors.cleared(b"07:1", 8)) == (True, False)
    floors.add(Clear(b"64:", 65, done=100))
    assert len(floors) == 1
    assert all(floors.cleared(name, 64) for name in (b"07:1", b"64:1", b"x:1"))
    assert not floors.cleared(b"x:1", 65)
    floors.prune(99)
    assert len(floors) == 1
    floors.prune(100)
    assert len(floors) == 0


def test_a_floor_replaces_narrower_ones_only() -> None:
    floors = ClearLog()
    floors.add(Clear(b"n:", 1, done=10))
    floors.add(Clear(b"n:user", 2, done=10))
    assert (floors.cleared(b"n:other", 0), floors.cleared(b"n:user1", 1)) == (True, True)
    assert len(floors) == 2
    floors.add(Clear(b"n:", 3, done=10))
    assert len(floors) == 1
    floors.add(Clear(re.compile(rb"n:\d"), 4, done=10))
    assert (floors.cleared(b"n:1", 3), floors.cleared(b"n:12", 3)) == (True, False), "a pattern matches in full"


def test_clearing_the_same_again_costs_no_memory() -> None:
    store = LocalCache(100_000, 10**9, Clock())
    for number in range(50_000):
        put(store, b"n:%d" % number, entry())
    for number in range(300):
        put(store, b"x:%d" % number, entry())
        store.clear(b"x:")
        assert len(store._clears) <= 1
    assert values(store, b"n:49999") == [1]


def test_an_entry_that_survived_a_clear_is_checked_once() -> None:
    asked: list[bytes] = []
    store = LocalCache(100_000, 10**9, Clock())
    for number in range(10_000):
        put(store, b"n:%d" % number, entry())
    store.clear(b"m:")
    put(store, b"m:1", entry("new"))
    assert values(store, b"m:1") == ["new"], "what comes after a clear has nothing to do with it"
    cleared = store._clears.cleared

    class Watched:
        def cleared(self, name: bytes, generation: int) -> bool:
            asked.append(name)
            return cleared(name, generation)

    store._clears = cast("ClearLog", Watched())
    assert values(store, *[b"n:9999"] * 5) == [1] * 5
    assert asked == [b"n:9999"]


# -- collection ---------------------------------------------------------------------------------------------


def test_what_nobody_asks_for_is_collected_by_the_writes_that_follow() -> None:
    """No timer, no loop; an expired entry does not wait for its name to be asked for."""
    clock = Clock()
    store = LocalCache(100_000, 10**9, clock)
    for number in range(10_000):
        put(store, b"old:%d" % number, entry(deadline=clock.now + 1))
    clock.now += 2
    for number in range(1_500):
        put(store, b"new:%d" % (number % 100), entry())
    assert len(store) == 100
    assert store.expirations == 10_000


@pytest.mark.parametrize("name", ["one", "again", "churn", "mixed"])
def test_the_queue_of_names_stays_in_proportion(name: str) -> None:
    """Names removed and stored again, or evicted, leave something behind; it does not pile up."""
    store = LocalCache(500, 10**9, Clock())
    for number in range(20_000):
        match name:
            case "one":
                put(store, b"k", entry())
                store.invalidate(b"k")
            case "again":
                store.invalidate(b"%d" % (number % 300))
                put(store, b"%d" % (number % 300), entry())
            case "churn":
                put(store, b"%d" % number, entry())
            case _:
                put(store, b"%d" % (number % 700), entry())
                store.invalidate(b"%d" % (number * 7 % 700))
                if number % 100 == 0:
                    store.clear(b"%d" % (number % 10))
        assert names_queued(store) <= 2 * len(store) + 128
    if name == "churn":
        assert len(store) == 500


def test_a_record_of_an_old_entry_does_not_touch_the_newer_one() -> None:
    """One name twice in the queue, the first record from an entry that would be dead by now."""
    clock = Clock()
    store = LocalCache(10, 10**6, clock)
    put(store, b"k", entry("old", deadline=clock.now + 1))
    store.invalidate(b"k")
    put(store, b"k", entry("new", deadline=clock.now + 100))
    clock.now += 50
    for _ in range(5):
        assert store.sweep(10) == 0
    assert values(store, b"k") == ["new"]
    clock.now += 50
    assert store.sweep(10) == 1, "it has kept a record of its own"


def test_a_reader_that_is_late_does_not_remove_the_newer_entry() -> None:
    """The entry it found is dead, but by now another thread has stored a new one."""
    newer = entry("new")

    def clock() -> float:
        if store._table.get(b"k") is not newer:
            store._table[b"k"] = newer
        return 1_000.0

    store = LocalCache(10, 10**6, clock)
    for read in (store.hit, store.get_untrusted):
        store._table[b"k"] = entry("old", deadline=999.0)
        assert read(b"k") is None
        assert read(b"k") is newer


def test_a_finalizer_may_call_the_store() -> None:
    """The thread that collects holds the lock; a value's finalizer neither waits for it nor upsets the count."""
    clock = Clock()
    store = LocalCache(64, 10**9, clock)
    calls = 0

    class Meddler:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            nonlocal calls
            calls += 1
            store.invalidate(b"%d" % ((self.number + 1) % 64))
            put(store, b"%d" % ((self.number + 2) % 64), entry(deadline=clock.now + 1))
            if self.number % 50 == 0:
                store.clear(b"%d" % (self.number % 10))
            if self.number % 333 == 0:
                store.clear()

    for number in range(2_000):
        put(store, b"%d" % (number % 100), entry(Meddler(number), deadline=clock.now + 3))
        clock.now += 0.1
    for _ in range(100):
        clock.now += 100
        store.sweep(1_000)
    assert calls == 2_000
    assert len(store) <= 1, "what the last finalizer has put there"
    store.clear()
    assert len(store) == 0
    assert (store.bytes, store.pending) == (0, 0)


def test_a_finalizer_may_empty_the_store() -> None:
    clock = Clock()
    store = LocalCache(100, 10**9, clock)

    class Clearing:
        def __del__(self) -> None:
            store.clear()

    for number in range(20):
        put(store, b"%d" % number, entry(Clearing(), deadline=clock.now + 1))
    clock.now += 2
    store.sweep(20)
    assert (len(store), store.bytes) == (0, 0)


def test_reset_does_not_wait_for_a_lock_that_nobody_will_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child the lock's holder does not exist. What was bound before works on."""
    store = LocalCache(10, 10**6, Clock())
    hit = store.hit
    put(store, b"a", entry())
    fill = store.reserve(b"b")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    try:
        resetting = threading.Thread(target=store.reset, daemon=True)
        with monkeypatch.context() as child:
            # A child has another number than its parent, and so another lock.
            child.setattr(os, "getpid", lambda: -1)
            resetting.start()
            resetting.join(10)
        assert not resetting.is_alive()
        assert (len(store), store.bytes, store.pending) == (0, 0, 0)
        assert store.fill(fill, entry("old")) is False
        put(store, b"a", entry("new"))
        made = hit(b"a")
        assert made is not None
        assert made.value == "new"
    finally:
        done.set()
        holder.join()


def test_a_hit_survives_an_eviction_in_between() -> None:
    """No lock on a hit: the entry is found, then evicted by another thread, then made the most recent one."""

    def clock() -> float:
        store._table.clear()
        return 1_000.0

    store = LocalCache(10, 10**6, clock)
    for read in (store.hit, store.get_untrusted):
        store._table[b"a"] = made = entry("v")
        made.generation = store.generation
        assert read(b"a") is made
        assert len(store) == 0


# -- large stores -------------------------------------------------------------------------------------------


def test_a_large_store_is_in_two_tiers_and_keeps_its_bounds() -> None:
    store = LocalCache(40_000, 10**9, Clock())
    for number in range(100_000):
        put(store, b"%d" % number, entry())
        if number >= 100:
            assert store.hit(b"%d" % (number % 100)) is not None, "what is used goes on being there"
    assert len(store) == 40_000
    assert sum(map(len, shards_of(store))) == 40_000 - HOT
    assert store.evictions == 60_000
    recent = sum(store.get_untrusted(b"%d" % number) is not None for number in range(62_000, 100_000))
    assert recent >= 0.99 * 38_000
    assert sum(store.get_untrusted(b"%d" % number) is not None for number in range(100, 58_000)) <= 0.01 * 40_000


def test_no_part_grows_large() -> None:
    """Invariant 10: CPython rebuilds a hash table as a whole, so none may have many entries."""
    store = LocalCache(200_000, 10**10, Clock())
    for number in range(250_000):
        put(store, b"%d" % number, entry())
    assert max(map(len, shards_of(store))) <= 5_460


def test_a_few_huge_values_in_a_large_store_do_not_push_out_the_newest() -> None:
    store = LocalCache(1_000_000, 10_000, Clock())
    for number in range(1_000):
        put(store, b"%d" % number, entry(number, size=4_000))
        assert values(store, b"%d" % number) == [number]
        assert store.bytes <= 10_000


# -- a model ------------------------------------------------------------------------------------------------

ALL = [b"a:1", b"a:2", b"a:3", b"b:1", b"b:2"]
NAMES = st.sampled_from(ALL)
SCOPES = st.sampled_from([b"a:", b"b:", b"a:1", b"", re.compile(rb"[ab]:[12]"), re.compile(rb".:3")])


class Collected(RuleBasedStateMachine):
    """A store with room for all, where dead entries go whenever they do: what it serves is exactly what is live."""

    @initialize(stripes=st.booleans())
    def start(self, stripes: bool) -> None:
        self.clock = Clock()
        self.store = LocalCache(50_000 if stripes else 1_000, 10**9, self.clock)
        self.model: dict[bytes, Entry] = {}
        self.current: dict[bytes, Placeholder] = {}
        self.held: list[Placeholder] = []
        self.trusts = [Trust(math.inf), Trust(math.inf)]

    def made(self, data: st.DataObject) -> Entry:
        life = data.draw(st.sampled_from([0.0, 1.0, 5.0, 50.0]))
        return entry(object(), self.clock.now + life, data.draw(st.sampled_from(self.trusts)), size=life > 1)

    @rule(name=NAMES, data=st.data())
    def put(self, name: bytes, data: st.DataObject) -> None:
        self.model[name] = made = self.made(data)
        put(self.store, name, made)
        self.current.pop(name, None)

    @rule(name=NAMES)
    def reserve(self, name: bytes) -> None:
        fill = self.store.reserve(name)
        assert self.current.setdefault(name, fill) is fill
        self.held.append(fill)

    @rule(data=st.data(), stored=st.booleans())
    def answer(self, data: st.DataObject, stored: bool) -> None:
        if not self.held:
            return
        fill = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if stored:
            made = self.made(data)
            expected = self.current.get(fill.name) is fill
            filled = self.store.fill(fill, made)
            # One that is dead on arrival may be collected in the same call.
            assert filled is expected or (expected and made.deadline <= self.clock.now)
            if expected:
                self.model[fill.name] = made
                del self.current[fill.name]
        self.store.release(fill)
        if not any(other is fill for other in self.held) and self.current.get(fill.name) is fill:
            del self.current[fill.name]

    @rule(name=NAMES)
    def invalidate(self, name: bytes) -> None:
        self.store.invalidate(name)
        self.model.pop(name, None)
        self.current.pop(name, None)

    @rule(scope=SCOPES)
    def clear(self, scope: bytes | re.Pattern[bytes]) -> None:
        # Without the steps that a clear goes itself, as in a store too large for them.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("magnus_cache._engine.memory.store._CLEAR_STEPS", 1)
            self.store.clear_matching(scope)
        for part in (self.model, self.current):
            for name in list(part):
                if name.startswith(scope) if isinstance(scope, bytes) else scope.fullmatch(name):
                    del part[name]

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1))
    def lose_a_connection(self, which: int) -> None:
        self.trusts[which].kill()
        self.trusts[which] = Trust(math.inf)

    @rule(limit=st.integers(1, 5))
    def sweep(self, limit: int) -> None:
        self.store.sweep(limit)

    @rule(names=st.lists(NAMES, min_size=1, max_size=5, unique=True))
    def read(self, names: list[bytes]) -> None:
        for name in names:
            made = self.model.get(name)
            if made is not None and made.deadline <= self.clock.now:
                made = None
            suspect = made is not None and made.trust.deadline <= self.clock.now
            assert self.store.hit(name) is (None if suspect else made)
            assert self.store.get_untrusted(name) is made

    @invariant()
    def accounts_balance(self) -> None:
        if not hasattr(self, "store"):
            return
        present = [made for name in ALL if (made := self.store._table.get(name)) is not None]
        assert len(self.store) == len(present)
        assert self.store.bytes == sum(made.size + 3 + OVERHEAD for made in present)
        assert self.store.pending == len(self.current)
        assert self.store.evictions == 0

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for fill in self.held:
            self.store.release(fill)
        assert self.store.pending == 0, "no placeholder leaks"
        self.clock.now += 1_000
        while len(self.store):
            assert self.store.sweep(1_000), "every entry is in the queue"
        assert self.store.bytes == 0


TestCollected = Collected.TestCase
TestCollected.settings = settings(max_examples=examples(100), stateful_step_count=60, deadline=None)
