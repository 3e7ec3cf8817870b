"""Values that threads read through the lane and keep in memory: they must never outlive what Redis has."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager
from magnus_cache._engine.redis import lane as lane_module
from magnus_cache._engine.redis.lane_tickets import LongWay
from magnus_cache.embedded import EmbeddedServer
from tests.support.inside import background_wire, lane_connection, lane_reads, lane_session
from tests.support.lanes import FAR, NEAR, forget, lane_answers, read_by_lane, served_by_lane, through_the_lane
from tests.support.wait import wait_until

SOAK = "MAGNUS_CACHE_SOAK" in os.environ
SPAN = 60.0 if SOAK else 3.0
"""Seconds of the stress."""
PATIENCE = 10.0
BOUND = 1.0
"""Seconds that a value may be served after a change that was not announced."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "_WORTH", 0)


@pytest.fixture
def opened(private_server: EmbeddedServer) -> Iterator[Callable[..., CacheManager]]:
    """Opens caches on a server that announces in order, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(CacheManager(redis_url=private_server.url, **options))


@pytest.fixture
def client(private_server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=private_server.port, protocol=2) as client:
        yield client


@pytest.fixture
def reader(opened: Callable[..., CacheManager]) -> CacheManager:
    """A cache whose trust does not lapse while a test runs: what goes, goes by an announcement."""
    cache = opened(max_staleness=600)
    through_the_lane(cache, NEAR)
    return cache


@pytest.fixture
def writer(opened: Callable[..., CacheManager]) -> CacheManager:
    return opened()


def is_kept(cache: CacheManager, key: str) -> bool:
    return cache._state.memory.hit(cache._reads.ref(NEAR, key).name) is not None


def after_the_answer(monkeypatch: pytest.MonkeyPatch, cache: CacheManager, then: Callable[[], object]) -> None:
    """Do something once, when an answer has come through the lane and before anything is made of it."""
    kind = type(lane_connection(cache))
    ask, left = kind.ask, [then]

    def asked(self: Any, *request: Any) -> Any:
        answer = ask(self, *request)
        if left:
            left.pop()()
        return answer

    monkeypatch.setattr(kind, "ask", asked)


# -- announcements ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["set", "delete", "clear", "tags"])
def test_a_change_by_another_process_is_announced(reader: CacheManager, writer: CacheManager, how: str) -> None:
    @reader.cached(NEAR)
    def one() -> int:
        return 1

    writer.set(NEAR, "k", 1, tags=("t",) if how == "tags" else ())
    if how == "tags":
        # The background loop reads the epoch of a tag that is new to it.
        forget(reader, NEAR, "k")
        assert reader.get(NEAR, "k") == 1
    assert read_by_lane(reader, "k") == 1
    assert is_kept(reader, "k")
    changes: dict[str, Callable[[], object]] = {
        "set": lambda: writer.set(NEAR, "k", 2),
        "delete": lambda: writer.delete(NEAR, "k"),
        "clear": lambda: writer.clear(NEAR),
        "tags": lambda: writer.invalidate_tags("t"),
    }
    changes[how]()
    wait_until(lambda: reader.get(NEAR, "k") == (2 if how == "set" else None))


def test_a_function_is_invalidated_in_all_processes(reader: CacheManager, writer: CacheManager) -> None:
    version = 1

    def load(key: str) -> tuple[str, int]:
        return key, version

    mine, theirs = reader.cached(NEAR, version=1)(load), writer.cached(NEAR, version=1)(load)
    for _ in range(4):
        assert mine("k") == ("k", 1)
        forget_call(reader, mine, "k")
    with lane_answers(reader) as answers:
        assert mine("k") == ("k", 1)
    assert served_by_lane(answers)
    version = 2
    theirs.clear()
    wait_until(lambda: mine("k") == ("k", 2))


def forget_call(cache: CacheManager, function: Any, *args: Any) -> None:
    cache._state.memory.invalidate(cache._state.keyspace.value_name(NEAR, function.cache_key(*args)))


def test_everything_is_gone_after_flushall(reader: CacheManager, writer: CacheManager, client: redis.Redis) -> None:
    writer.set(NEAR, "k", 1)
    assert read_by_lane(reader, "k") == 1
    client.flushall()
    wait_until(lambda: reader.get(NEAR, "k") is None)


def test_own_writes_are_seen(reader: CacheManager) -> None:
    for number in range(30):
        reader.set(NEAR, "k", number)
        assert reader.get(NEAR, "k") == number
        assert read_by_lane(reader, "k") == number
        reader.delete(NEAR, "k")
        assert reader.get(NEAR, "k") is None


# -- between the answer and its place in memory -----------------------------------------------------------------


def test_what_is_changed_before_it_is_kept_is_not_kept(
    reader: CacheManager, writer: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is reserved before it is asked for: the announcement, which comes first, voids it."""
    writer.set(NEAR, "k", 1)
    forget(reader, NEAR, "k")
    memory = reader._state.memory
    name = reader._reads.ref(NEAR, "k").name
    invalidated: list[bytes] = []

    def change() -> None:
        invalidate = memory.invalidate
        monkeypatch.setattr(
            type(memory), "invalidate", lambda self, other: (invalidate(other), invalidated.append(other))
        )
        writer.set(NEAR, "k", 2)
        wait_until(lambda: name in invalidated)

    after_the_answer(monkeypatch, reader, change)
    assert reader.get(NEAR, "k") == 1
    assert not is_kept(reader, "k")
    assert reader.get(NEAR, "k") == 2


def test_what_came_before_the_wire_was_lost_is_not_kept(
    reader: CacheManager, writer: CacheManager, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands on the trust from before it was asked for: a new connection of the wire hears nothing of it."""
    writer.set(NEAR, "k", 1)
    forget(reader, NEAR, "k")
    wire = background_wire(reader)

    def lose() -> None:
        trust = wire.trust
        client.client_kill_filter(_id=str(wire.server.client))
        wait_until(lambda: wire.up and wire.trust is not trust)

    after_the_answer(monkeypatch, reader, lose)
    assert reader.get(NEAR, "k") == 1
    assert not is_kept(reader, "k")
    writer.set(NEAR, "k", 2)
    assert reader.get(NEAR, "k") == 2


def test_a_flush_before_it_is_kept_leaves_nothing(
    reader: CacheManager, writer: CacheManager, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.set(NEAR, "k", 1)
    forget(reader, NEAR, "k")
    wire = background_wire(reader)

    def flush() -> None:
        trust = wire.trust
        client.flushall()
        wait_until(lambda: wire.trust is not trust)

    after_the_answer(monkeypatch, reader, flush)
    assert reader.get(NEAR, "k") == 1
    assert not is_kept(reader, "k")


def test_what_memory_has_from_an_earlier_connection_is_read_by_the_thread(
    reader: CacheManager, writer: CacheManager, client: redis.Redis
) -> None:
    writer.set(NEAR, "k", 1)
    assert read_by_lane(reader, "k") == 1
    client.client_kill_filter(_id=str(background_wire(reader).server.client))
    wait_until(lambda: not is_kept(reader, "k"))
    through_the_lane(reader, NEAR)
    assert reader._reads.entry_here(reader._reads.ref(NEAR, "k")) is not None
    with lane_answers(reader) as answers:
        assert reader.get(NEAR, "k") == 1
    assert served_by_lane(answers)
    assert is_kept(reader, "k")
    writer.set(NEAR, "k", 2)
    wait_until(lambda: reader.get(NEAR, "k") == 2)


# -- connections that end ---------------------------------------------------------------------------------------


def test_after_the_wire_was_lost_announcements_go_to_its_new_connection(
    reader: CacheManager, writer: CacheManager, client: redis.Redis
) -> None:
    writer.set(NEAR, "k", 1)
    assert read_by_lane(reader, "k") == 1
    before, wire = lane_session(reader), background_wire(reader)
    client.client_kill_filter(_id=str(before.server.client))
    wait_until(lambda: not is_kept(reader, "k") and wire.up)
    through_the_lane(reader, NEAR)
    assert lane_session(reader) is not before
    assert read_by_lane(reader, "k") == 1
    writer.set(NEAR, "k", 2)
    wait_until(lambda: reader.get(NEAR, "k") == 2)


def test_what_a_lost_lane_has_read_is_trusted_no_longer_than_the_bound(
    opened: Callable[..., CacheManager], writer: CacheManager, client: redis.Redis
) -> None:
    """Redis forgets what a connection has read when that ends, and nobody is told of the next change."""
    reader = opened(max_staleness=BOUND)
    through_the_lane(reader, NEAR)
    writer.set(NEAR, "k", 1)
    assert read_by_lane(reader, "k") == 1
    mine = {background_wire(reader).server.client, background_wire(writer).server.client}
    victims = [one["id"] for one in client.client_list() if one.get("resp") == "3" and int(one["id"]) not in mine]
    assert len(victims) == 1
    client.client_kill_filter(_id=victims[0])
    writer.set(NEAR, "k", 2)
    changed = time.monotonic()
    # Hits keep the wire asking, so that its own trust goes on.
    wait_until(lambda: reader.get(NEAR, "k") == 2 or background_wire(reader).renew is None)
    assert time.monotonic() - changed < 3 * BOUND


def test_a_lane_in_use_keeps_what_it_has_read_trusted(opened: Callable[..., CacheManager]) -> None:
    reader = opened(max_staleness=0.3)
    through_the_lane(reader, NEAR)
    through_the_lane(reader)
    reader.set(NEAR, "k", 1)
    wait_until(lambda: lane_served(reader, "k"))
    since = time.monotonic()

    def is_kept_for_long() -> bool:
        nonlocal since
        # A busy machine may let it lapse: then it is read anew.
        if not is_kept(reader, "k"):
            wait_until(lambda: lane_served(reader, "k"))
            since = time.monotonic()
        assert reader.get(FAR, "warm") == 1
        return time.monotonic() - since > 4 * 0.3

    wait_until(is_kept_for_long, 4 * PATIENCE)


def lane_served(cache: CacheManager, key: str) -> bool:
    forget(cache, NEAR, key)
    with lane_answers(cache) as answers:
        cache.get(NEAR, key)
    return served_by_lane(answers)


# -- many at once -----------------------------------------------------------------------------------------------


def test_no_thread_ever_goes_back(opened: Callable[..., CacheManager]) -> None:
    """Another cache counts up; each thread sees numbers that only grow, whichever way they come."""
    reader, writer = opened(), opened()
    through_the_lane(reader, NEAR)
    through_the_lane(reader)
    keys = [str(number) for number in range(4)]
    for key in keys:
        writer.set(NEAR, key, 0)
    over, faults = threading.Event(), list[tuple[str, int, int]]()

    def reads(number: int) -> None:
        key, last = keys[number % len(keys)], 0
        while not over.is_set():
            value = reader.get(NEAR, key)
            if value < last:
                faults.append((key, last, value))
            last = value
            forget(reader, NEAR, keys[(number + 1) % len(keys)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=reads, args=(number,)) for number in range(8)]
    count, deadline = 0, time.monotonic() + SPAN
    try:
        for thread in threads:
            thread.start()
        while time.monotonic() < deadline:
            count += 1
            for key in keys:
                writer.set(NEAR, key, count)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not faults
    for key in keys:
        wait_until(lambda key=key: reader.get(NEAR, key) == count)  # type: ignore[misc]


def test_an_older_answer_of_another_thread_is_not_found_afterwards(
    reader: CacheManager, writer: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The announcement may be on its way to the wire yet, when a thread has the new value already."""
    writer.set(NEAR, "k", 1)
    forget(reader, NEAR, "k")
    state, release, held_up = reader._state, threading.Event(), threading.Event()
    ref = reader._reads.ref(NEAR, "k")

    def block() -> None:
        held_up.set()
        release.wait(PATIENCE)

    state.portal.submit(block)
    assert held_up.wait(PATIENCE)
    # A thread that reads at the same time, and is answered later: both have the same place.
    place = state.memory.reserve(ref.name)
    try:
        after_the_answer(monkeypatch, reader, lambda: writer.set(NEAR, "k", 2))
        assert reader.get(NEAR, "k") == 1
        assert is_kept(reader, "k")
        entry = lane_reads(reader).read(ref, place)
        assert not isinstance(entry, LongWay)
        assert reader._reads.opened(ref, entry) == 2
        assert not is_kept(reader, "k")
        with lane_answers(reader) as answers:
            assert reader.get(NEAR, "k") == 2
        assert served_by_lane(answers)
        state.memory.release(place)
    finally:
        release.set()
