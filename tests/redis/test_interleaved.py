"""Announcements within replies: what a server before Redis 7.2 makes of them, and that nothing is taken for another."""

from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache import CacheManager
from magnus_cache._engine.redis import lane as lane_module
from magnus_cache._engine.redis.handshake import UNKNOWN_SERVER
from magnus_cache._engine.redis.interleaved import Interleaved, apart
from magnus_cache.embedded import EmbeddedServer
from tests.conftest import binary_of
from tests.support.inside import background_wire, lane_session
from tests.support.lanes import FAR, NEAR, forget, read_by_lane, through_the_lane
from tests.support.rights import debugging
from tests.support.wait import lapse, wait_until

LIFE = 0.5
"""Seconds that a value lives which is to expire soon."""

# -- taken apart ------------------------------------------------------------------------------------------------


def resp(reply: Any) -> bytes:
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(resp, reply))
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


def announced(name: bytes) -> bytes:
    return b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(name), name)


SCALARS = st.integers(0, 99) | st.binary(max_size=3)
ELEMENTS = SCALARS | st.lists(SCALARS, max_size=3)
STREAMS = st.lists(st.lists(st.tuples(st.integers(0, 2), ELEMENTS), min_size=1, max_size=6) | SCALARS, max_size=6)
"""Replies: a value, or elements, each with how many announcements come before it."""


@given(STREAMS)
def test_replies_are_what_they_were_and_announcements_come_first(stream: list[Any]) -> None:
    raw, expected, number = b"", list[Any](), 0
    for reply in stream:
        if not isinstance(reply, list):
            raw += resp(reply)
            expected.append(reply)
            continue
        raw += b"*%d\r\n" % len(reply)
        for count, element in reply:
            for _ in range(count):
                number += 1
                raw += announced(b"%d" % number)
                expected.append(b"%d" % number)
            raw += resp(element)
        expected.append([element for _, element in reply])
    reader, handled = hiredis.Reader(), list[Any]()

    def handle(reply: Any) -> None:
        handled.append(reply[1][0] if type(reply) is hiredis.PushNotification else reply)

    interleaved = Interleaved(handle)  # type: ignore[arg-type]  # nothing is ever left to do
    reader.feed(raw)
    while (reply := reader.gets()) is not False:
        interleaved.handle(reply)
    assert handled == expected


@pytest.mark.parametrize("before", [b"", announced(b"a")])
def test_an_announcement_deeper_within_ends_the_connection(before: bytes) -> None:
    reader = hiredis.Reader()
    reader.feed(b"*2\r\n" + before + b"*2\r\n" + announced(b"b") + b":1\r\n:2\r\n:3\r\n")
    interleaved = Interleaved(lambda _: None)
    with pytest.raises(RedisConnectionError, match="nested"):
        while (reply := reader.gets()) is not False:
            interleaved.handle(reply)


def test_other_servers_cost_nothing() -> None:
    def handle(_: Any) -> None:
        return None

    assert apart(handle, UNKNOWN_SERVER._replace(interleaves=False)) is handle


# -- through a server that does it ------------------------------------------------------------------------------


@pytest.fixture
def old() -> Iterator[EmbeddedServer]:
    """A Redis before 7.2 that removes expired values only when they are asked for."""
    with EmbeddedServer(binary_of("redis"), **debugging(binary_of("redis"))) as server:
        with redis.Redis(port=server.port) as client:
            version = client.info("server")["redis_version"]
            if tuple(map(int, version.split(".")[:2])) >= (7, 2):
                pytest.skip(f"this is Redis {version}")
            client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        yield server


@pytest.fixture
def cache(old: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheManager]:
    monkeypatch.setattr(lane_module, "_WORTH", 0)
    with CacheManager(redis_url=old.url, max_staleness=60) as cache:
        through_the_lane(cache)
        through_the_lane(cache, NEAR)
        yield cache


def test_what_the_lane_reads_is_kept_and_own_transactions_are_understood(cache: CacheManager) -> None:
    trust = background_wire(cache).trust
    keys = [str(number) for number in range(20)]
    for turn in range(5):
        cache.set_many(NEAR, {key: (key, turn) for key in keys})
        for key in keys:
            assert read_by_lane(cache, key) == (key, turn)
            # Announced here, as the lane has read it.
            cache.set(NEAR, key, [key, turn])
            assert cache.get(NEAR, key) == [key, turn]
            assert read_by_lane(cache, key) == [key, turn]
    assert lane_session(cache).announces
    assert cache._state.memory.hit(cache._reads.ref(NEAR, "1").name) is not None
    assert cache._state.breaker.outages == 0
    assert background_wire(cache).trust is trust


def test_changes_by_others_are_announced(cache: CacheManager, old: EmbeddedServer) -> None:
    with CacheManager(redis_url=old.url) as other:
        for turn in range(5):
            other.set_many(NEAR, {"a": turn, "b": turn})
            assert read_by_lane(cache, "a") == turn
            other.set(NEAR, "a", -1)
            wait_until(lambda: cache.get(NEAR, "a") == -1)


def test_values_that_a_read_finds_expired_are_told_from_the_others(cache: CacheManager, old: EmbeddedServer) -> None:
    trust = background_wire(cache).trust
    keys = [str(number) for number in range(30)]
    for key in keys:
        cache.set(NEAR, key, key, ttl=LIFE if int(key) % 3 == 0 else 600)
    for key in keys:
        forget(cache, NEAR, key)
        cache.get(NEAR, key)
    lapse(2 * LIFE)
    with redis.Redis(port=old.port) as client:
        # They are there yet, for those who ask.
        assert client.dbsize() >= len(keys)
    for key in keys:
        forget(cache, NEAR, key)
    assert cache.get_many(NEAR, keys) == {key: key for key in keys if int(key) % 3}
    assert cache.get_many(FAR, keys) == {}
    assert background_wire(cache).trust is trust
    assert cache._state.breaker.outages == 0
