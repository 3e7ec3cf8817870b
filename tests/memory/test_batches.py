"""Many names at once in the local cache: the same as one by one, and what is in use stays where it is."""

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache._engine.coherence.tag_stamps import TagStamp, room
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.batches import BatchCache
from magnus_cache._engine.memory.entry import Entry, TaggedEntry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.memory.policy import PolicyName
from tests.support.effort import examples
from tests.support.inside import bases_of, is_hot, shards_of
from tests.support.interrupts import interrupted
from tests.support.memory import FOREVER, Clock, put

HOT = 3


def two_tiers(entries: int = 100, size: int = 10**7, *, policy: PolicyName = "lru") -> BatchCache:
    return BatchCache(entries, size, Clock(), policy=policy, hot=HOT)


def entry(value: object, deadline: float = math.inf, trust: Trust = FOREVER, size: int = 10) -> Entry:
    return Entry(value, None, deadline, trust, size)


def names(count: int, kind: str = "n") -> list[bytes]:
    return [b"%b:%d" % (kind.encode(), number) for number in range(count)]


def fill(memory: BatchCache, wanted: Sequence[bytes], make: Callable[[bytes], Entry] = entry) -> list[bool]:
    """Store an entry for each name, as a batch of values does."""
    placeholders: list[Placeholder] = []
    memory.reserve_many(wanted, placeholders)
    kept = memory.fill_many(placeholders, list(map(make, wanted)))
    memory.release_many(placeholders)
    return kept


def crowded(policy: PolicyName = "lru") -> BatchCache:
    """Return a memory whose hot table is full."""
    memory = two_tiers(policy=policy)
    assert all(fill(memory, names(HOT, "hot")))
    return memory


def is_empty(memory: BatchCache) -> bool:
    while memory.shrink():
        pass
    return (len(memory), memory.bytes, memory.pending) == (0, 0, 0) and not any(bases_of(memory).uses.values())


@pytest.mark.parametrize("policy", ["lru", "car", "clock", "sieve", "s3fifo"])
def test_a_batch_leaves_what_is_in_use_hot(policy: PolicyName) -> None:
    memory = crowded(policy=policy)
    assert all(fill(memory, names(20)))
    assert all(is_hot(memory, name) for name in names(HOT, "hot"))
    assert sum(map(len, shards_of(memory))) == 20
    for name in names(20):
        held = memory.hit(name)
        assert held is not None
        assert held.value == name
    assert len(memory) == HOT + 20
    assert is_empty(memory)


def test_a_batch_fills_the_hot_table_first() -> None:
    memory = two_tiers()
    assert all(fill(memory, names(10)))
    assert sum(is_hot(memory, name) for name in names(10)) == HOT
    assert len(memory) == 10
    assert is_empty(memory)


Choice = tuple[int, str]


@settings(max_examples=examples(200))
@given(
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["plain", "object", "tagged", "large"])), max_size=8),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["plain", "object", "tagged", "large"])), max_size=8),
    st.sets(st.integers(0, 9), max_size=3),
    st.sampled_from([(100, 10**7), (6, 10**7), (100, 1_500)]),
)
def test_many_are_kept_as_one_by_one(
    before: list[Choice], batch: list[Choice], voided: set[int], limits: tuple[int, int]
) -> None:
    stamps = [TagStamp("t")]

    def made(name: bytes, kind: str) -> Entry:
        if kind == "tagged":
            tagged = TaggedEntry(name, None, math.inf, FOREVER, 10 + room(stamps))
            tagged.stamps, tagged.epoch, tagged.generation = stamps, 7, memory.generation
            return tagged
        return entry([name] if kind == "object" else name, size=10_000_000 if kind == "large" else 10)

    seen: list[tuple[list[bool], set[bytes], int]] = []
    for together in (False, True):
        memory = two_tiers(*limits)
        for number, kind in before:
            put(memory, b"n:%d" % number, made(b"n:%d" % number, kind))
        # As calls for many values do, each name once.
        chosen = list({b"n:%d" % number: kind for number, kind in batch}.items())
        placeholders: list[Placeholder] = []
        memory.reserve_many([name for name, _ in chosen], placeholders)
        for number in voided:
            memory.invalidate(b"n:%d" % number)
        entries = [made(name, kind) for name, kind in chosen]
        if together:
            kept = memory.fill_many(placeholders, entries)
        else:
            kept = [memory.fill(*pair) for pair in zip(placeholders, entries, strict=True)]
        memory.release_many(placeholders)
        there = {name for name in names(10) if memory.get_untrusted(name) is not None}
        assert all(b"n:%d" % number not in there for number in voided)
        assert len(memory) <= limits[0]
        assert memory.bytes <= limits[1]
        seen.append((kept, there, memory.fenced))
        if limits == (100, 10**7):
            memory.invalidate_tag(stamps[0])
            last = {b"n:%d" % number: kind for number, kind in before} | dict(chosen)
            assert not any(memory.hit(name) for name, kind in last.items() if kind == "tagged")
        assert is_empty(memory)
    if limits == (100, 10**7):
        # Without evictions, which differ: new entries are then the ones that are used least.
        assert seen[0] == seen[1]
    assert seen[0][2] == seen[1][2]


def test_a_batch_keeps_the_bounds() -> None:
    for memory in (two_tiers(10), two_tiers(1_000, 3_000)):
        for number in range(10):
            fill(memory, names(20, f"n{number}"))
            assert len(memory) <= memory.max_entries
            assert memory.bytes <= memory.max_bytes
        assert memory.evictions > 0
        assert any(map(memory.hit, names(20, "n9")))
        assert is_empty(memory)


@pytest.mark.parametrize("removal", ["invalidate", "clear"])
@pytest.mark.parametrize("value", ["plain", object()])
@pytest.mark.parametrize("is_full", [False, True])
def test_what_is_invalidated_in_the_midst_of_a_batch_stays_so(removal: str, value: object, is_full: bool) -> None:
    for place in range(1, 10_000):
        memory = crowded() if is_full else two_tiers()
        placeholders: list[Placeholder] = []
        memory.reserve_many(names(2), placeholders)
        entries = [entry(value), entry(value)]
        with interrupted(place, lambda memory=memory: getattr(memory, removal)(b"n:1")) as interruption:  # type: ignore[misc]
            memory.fill_many(placeholders, entries)
        memory.release_many(placeholders)
        if not interruption.done:
            break
        assert memory.get_untrusted(b"n:1") is None, interruption.where
        assert is_empty(memory), interruption.where
    assert place > 10


# -- reads ------------------------------------------------------------------------------------------------


def test_records_that_a_batch_reads_stay_records_but_for_some() -> None:
    memory = crowded()
    fill(memory, names(64))
    found = memory.hits([*names(64), b"none", *names(HOT, "hot")])
    assert [None if held is None else held.value for held in found] == [*names(64), None, *names(HOT, "hot")]
    assert sum(map(len, shards_of(memory))) == 64
    # One in eight has become hot, and the least recently used ones have left.
    assert sum(is_hot(memory, name) for name in names(64)) == HOT


def test_a_batch_reads_what_is_hot_before_records_take_its_place() -> None:
    memory = two_tiers()
    # The least recently used ones: what becomes hot would make them leave.
    fill(memory, [*names(HOT, "hot"), *names(64)])
    hot = [memory.hit(name) for name in names(HOT, "hot")]
    found = memory.hits([*names(64), *names(HOT, "hot")])
    assert all(one is other for one, other in zip(found[64:], hot, strict=True))
    assert [held.value for held in found[:64] if held is not None] == names(64)


def test_whether_a_batch_has_anything_in_memory() -> None:
    trust = Trust(-math.inf)
    for memory in (two_tiers(), BatchCache(2, 10**7, Clock(), policy="lru", hot=HOT)):
        assert memory.has_any([]) is False
        assert memory.has_any(names(4)) is False
        fill(memory, names(2), lambda name: entry(name, trust=trust))
        assert memory.has_any(names(4)) is True
        assert memory.has_any(names(4, "other")) is False
    crowd = crowded()
    fill(crowd, names(2))
    assert not any(is_hot(crowd, name) for name in names(2))
    assert crowd.has_any([b"other", b"n:1"]) is True


def test_a_batch_drops_what_nothing_has_changed() -> None:
    for memory in (two_tiers(), crowded()):
        fill(memory, names(4))
        placeholders: list[Placeholder] = []
        memory.reserve_many(names(6), placeholders)
        memory.invalidate(b"n:1")
        new: list[Placeholder] = []
        memory.reserve_many([b"n:1"], new)
        memory.fill_many(new, [entry("newer")])
        memory.drop_many(placeholders)
        assert [name for name in names(6) if memory.get_untrusted(name) is not None] == [b"n:1"]
        memory.release_many([*placeholders, *new])
        assert memory.pending == 0


def test_a_batch_reads_no_record_that_must_not_be_served() -> None:
    trust, stamp = Trust(math.inf), TagStamp("t")
    clock = Clock()
    memory = BatchCache(100, 10**7, clock, policy="lru", hot=HOT)
    fill(memory, names(HOT, "hot"))

    def tagged(name: bytes) -> Entry:
        made = TaggedEntry(name, None, math.inf, FOREVER, 10 + room([stamp]))
        made.stamps, made.epoch, made.generation = [stamp], 7, memory.generation
        return made

    fill(memory, names(4, "ended"), lambda name: entry(name, deadline=clock() + 1))
    fill(memory, names(4, "lost"), lambda name: entry(name, trust=trust))
    fill(memory, names(4, "cleared"))
    fill(memory, names(4, "tagged"), tagged)
    fill(memory, names(4, "well"))
    clock.now += 2
    trust.deadline = -math.inf
    memory.clear(b"cleared:")
    memory.invalidate_tag(stamp)
    wanted = [name for kind in ("ended", "lost", "cleared", "tagged") for name in names(4, kind)]
    assert memory.hits(wanted) == [None] * 16
    assert [held is not None for held in memory.hits(names(4, "well"))] == [True] * 4
    assert trust.used is False
    assert FOREVER.used


def test_a_batch_counts_what_is_there() -> None:
    clock = Clock()
    memory = BatchCache(100, 10**7, clock, policy="lru", hot=HOT)
    fill(memory, names(HOT, "hot"))
    fill(memory, names(4), lambda name: entry(name, trust=Trust(-math.inf)))
    fill(memory, names(4, "ended"), lambda name: entry(name, deadline=clock() + 1))
    fill(memory, names(4, "cleared"))
    clock.now += 2
    memory.clear(b"cleared:")
    kinds = ("hot", "n", "ended", "cleared", "none")
    # Trusted or not, and none of them becomes hot for it.
    assert memory.count(name for kind in kinds for name in names(4, kind)) == HOT + 4
    assert all(is_hot(memory, name) for name in names(HOT, "hot"))
