"""An entry that has left the local cache is dead for everyone who still holds it, whatever removed it."""

import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import DEAD, OVERHEAD, Entry, TaggedEntry
from magnus_cache._engine.memory.policy import PolicyName
from magnus_cache._engine.memory.store import LocalCache
from tests.support.memory import Clock, put

NAME = b"n:k"
STAMP = TagStamp("tag")


@pytest.fixture(autouse=True)
def new_stamp() -> None:
    STAMP.generation = 0


def entry(clock: Clock, value: object = "old", size: int = 10, life: float = 10.0) -> Entry:
    made = TaggedEntry(value, None, clock.now + life, Trust(float("inf")), size)
    made.stamps, made.epoch, made.generation = (STAMP,), 0, 0
    return made


def serves(memory: LocalCache, clock: Clock, held: Entry) -> bool:
    """Do what a decorated function does with an entry that it remembers."""
    return clock.now < held and held.generation is memory.generation and clock.now < held.trust.deadline


def evict(memory: LocalCache, clock: Clock, held: Entry) -> None:
    held.seen = False
    for number in range(2 * memory.max_entries):
        put(memory, b"other:%d" % number, entry(clock))


def evict_for_a_large_value(memory: LocalCache, clock: Clock, _held: Entry) -> None:
    put(memory, b"other", entry(clock, size=memory.max_bytes - OVERHEAD - 5))


def expire_and_read(memory: LocalCache, clock: Clock, _held: Entry) -> None:
    clock.now += 20
    assert memory.hit(NAME) is None


def expire_and_collect(memory: LocalCache, clock: Clock, _held: Entry) -> None:
    clock.now += 20
    memory.sweep()


def fill(memory: LocalCache, clock: Clock, _held: Entry) -> None:
    placeholder = memory.reserve(NAME)
    assert memory.fill(placeholder, entry(clock, "new"))
    memory.release(placeholder)


def fill_with_what_has_no_room(memory: LocalCache, clock: Clock, _held: Entry) -> None:
    placeholder = memory.reserve(NAME)
    assert not memory.fill(placeholder, entry(clock, "new", size=memory.max_bytes))
    memory.release(placeholder)


def drop(memory: LocalCache, _clock: Clock, _held: Entry) -> None:
    placeholder = memory.reserve(NAME)
    memory.drop(placeholder)
    memory.release(placeholder)


def replace(memory: LocalCache, clock: Clock, held: Entry) -> None:
    assert memory.replace(NAME, held, entry(clock, "new"))


def shrink(memory: LocalCache, _clock: Clock, _held: Entry) -> None:
    while memory.shrink(1):
        pass


WAYS: dict[str, Callable[[LocalCache, Clock, Entry], Any]] = {
    "evict": evict,
    "evict for a large value": evict_for_a_large_value,
    "expire and read": expire_and_read,
    "expire and collect": expire_and_collect,
    "invalidate": lambda memory, _clock, _held: memory.invalidate(NAME),
    "clear": lambda memory, _clock, _held: memory.clear(b"n:"),
    "clear by a pattern": lambda memory, _clock, _held: memory.clear_matching(re.compile(rb"n:.*")),
    "invalidate a tag": lambda memory, _clock, _held: memory.invalidate_tag(STAMP),
    "fill": fill,
    "fill with what has no room": fill_with_what_has_no_room,
    "drop": drop,
    "replace": replace,
    "shrink": shrink,
    "reset": lambda memory, _clock, _held: memory.reset(),
}


@pytest.mark.parametrize("entries", [10, 20_000])
@pytest.mark.parametrize("policy", ["car", "lru", "clock", "sieve", "s3fifo"])
@pytest.mark.parametrize("way", WAYS)
def test_an_entry_that_has_left_is_not_served_by_those_who_hold_it(way: str, policy: PolicyName, entries: int) -> None:
    clock = Clock()
    memory = LocalCache(entries, 10**8, clock, policy=policy, hot=20)
    put(memory, NAME, entry(clock))
    held = memory.hit(NAME)
    assert held is not None
    assert serves(memory, clock, held)
    WAYS[way](memory, clock, held)
    assert not serves(memory, clock, held)
    there = memory.hit(NAME)
    assert there is not held
    # After a clear, or by the collector, it leaves later; until then its generation tells.
    assert held.trust is DEAD
    assert there is None or there.value == "new"


def test_storing_an_entry_again_does_not_kill_it() -> None:
    clock = Clock()
    memory = LocalCache(10, 10**6, clock)
    made = entry(clock)
    put(memory, NAME, made)
    put(memory, NAME, made)
    assert memory.hit(NAME) is made


def test_what_was_used_since_its_last_turn_has_a_second_chance() -> None:
    """A mark is all that a hit notes, so that it needs no lock and no look-up."""
    clock = Clock()
    memory = LocalCache(3, 10**6, clock, policy="clock")
    for name in (b"a", b"b", b"c"):
        put(memory, name, entry(clock))
    remembered = memory.hit(b"a")
    assert remembered is not None
    assert remembered.seen
    put(memory, b"d", entry(clock))
    assert [memory.get_stale(name, trusted=False) is not None for name in (b"a", b"b", b"c", b"d")] == [
        True, False, True, True,
    ]  # fmt: skip
    assert [one.seen for one in (remembered,)] == [False], "its mark was used up"
    remembered.seen = True
    for name in (b"e", b"f"):
        put(memory, name, entry(clock))
    assert memory.get_stale(b"a", trusted=False) is remembered


def test_a_reader_that_is_overtaken_by_a_replacement_gets_the_successor() -> None:
    clock, replaced = Clock(), True

    def ticking() -> float:
        nonlocal replaced
        if not replaced:
            replaced = True
            put(memory, NAME, entry(clock, "new"))
        return clock.now

    memory = LocalCache(10, 10**6, ticking)
    put(memory, NAME, entry(clock))
    replaced = False
    got = memory.hit(NAME)
    assert got is not None
    assert got.value == "new"


def test_no_thread_serves_an_entry_after_its_removal() -> None:
    """Readers remember entries and ask no table; each removal is known to all when its call has returned."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    memory, names = LocalCache(40, 10**9), [b"n:%d" % number for number in range(60)]
    least: dict[bytes, int] = dict.fromkeys(names, 0)
    over, wrong = threading.Event(), []

    def read() -> None:
        remembered: dict[bytes, Entry] = {}
        while not over.is_set():
            for name in names:
                valid = least[name]
                held = remembered.get(name)
                if held is not None:
                    value = held.value
                    if held.generation is memory.generation and held.trust.deadline > 0:
                        held.seen = True
                        if value < valid:
                            wrong.append((name, value, valid))
                        continue
                held = memory.hit(name)
                if held is not None:
                    remembered[name] = held
                    if held.value < valid:
                        wrong.append((name, held.value, valid))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    trust = Trust(float("inf"))
    try:
        for step in range(1, 4_000):
            name = names[step * 7 % len(names)]
            placeholder = memory.reserve(name)
            if step % 5 == 0:
                memory.invalidate(name)
                least[name] = step
            elif step % 97 == 0:
                memory.clear(b"n:")
                least.update(dict.fromkeys(names, step))
            else:
                memory.fill(placeholder, Entry(step, None, float("inf"), trust, 10))
                least[name] = step
            memory.release(placeholder)
    finally:
        over.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
    assert wrong == []
