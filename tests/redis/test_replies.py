"""Every number from outside has a type and a range; what does not fit stays in the exchange that brought it."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from magnus_cache import AsyncCacheManager, CacheUnavailableError
from magnus_cache._engine.redis import bulk, replies
from magnus_cache.embedded import EmbeddedServer
from tests.support.nonsense import Nonsense
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

ANSWERS: Final = [
    b":-1\r\n", b":0\r\n", b":7\r\n", b":4611686018427387904\r\n", b"$1\r\n5\r\n", b"$16\r\n8999999999999999\r\n",
    b"$30\r\n" + b"9" * 30 + b"\r\n", b"$3\r\n1e5\r\n", b"_\r\n", b"*0\r\n", b"*1\r\n:5\r\n", b"*2\r\n:5\r\n:-5\r\n",
    b"*2\r\n$1\r\n5\r\n_\r\n", b"*3\r\n_\r\n_\r\n:-3\r\n", b",nan\r\n", b"(" + b"9" * 40 + b"\r\n", b"#t\r\n",
    b"+OK\r\n",
    b"%1\r\n:1\r\n:2\r\n", b"*2\r\n$30\r\n" + b"7" * 30 + b"\r\n$1\r\n0\r\n",
]  # fmt: skip


async def _loaded() -> str:
    return "loaded"


CALLS: Final[list[Callable[[AsyncCacheManager], Awaitable[Any]]]] = [
    lambda cache: cache.get("t", "k"),
    lambda cache: cache.set("t", "k", 1, tags="x"),
    lambda cache: cache.get_or_set("t", "k", _loaded, tags=lambda _: "y"),
    lambda cache: cache.get_or_set("t", "l", _loaded, grace="1h", soft_timeout=1, hard_timeout=5),
    lambda cache: cache.get_many("t", ["a", "b"]),
    lambda cache: cache.set_many("t", {"a": 1}),
    lambda cache: cache.contains("t", "k"),
    lambda cache: cache.ttl("t", "k"),
    lambda cache: cache.touch("t", "k", 60),
    lambda cache: cache.explain("t", "k"),
    lambda cache: cache.delete("t", "k"),
    lambda cache: cache.delete_many("t", ["a", "b"]),
    lambda cache: cache.clear("t"),
    lambda cache: cache.clear("magnus:t:a*"),
    lambda cache: cache.invalidate_tags("x"),
    lambda cache: cache.get_stats(),
]


ASKED: Final = [{b"MGET"}, {b"EVALSHA"}, {b"DEL", b"UNLINK", b"SCAN", b"DBSIZE", b"EVALSHA"}]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("sane", [0, 1, 2])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_invariant_9_no_number_from_redis_raises_or_stays(
    server: EmbeddedServer, answer: bytes, sane: int
) -> None:
    """Whatever it answers to everything, callers are told what they are told when it is away; and then all is well."""
    async with Nonsense(server.port) as relay:
        relay.answer, relay.sane = answer, sane
        # A lease that is said to end in a century is waited for until then.
        async with AsyncCacheManager(redis_url=relay.url, wait_timeout=0.3, op_timeout=0.3) as cache:
            for call in CALLS:
                async with asyncio.timeout(10):
                    result = await call(cache)
                assert not isinstance(result, int) or 0 <= result < 10
            assert relay.asked >= ASKED[sane]
            relay.answer = None
            relay.hang_up()
            await cache.get("t", "k")
            await wait_until_async(lambda: cache.redis_available and not cache._engine.state.outbox.pending)
            async with AsyncCacheManager(redis_url=server.url) as other:
                assert await cache.set("t", "k", 2, tags=("x", "y"))
                assert await other.get("t", "k") == 2
                assert await cache.clear("t") == 1
                await cache.invalidate_tags("x")
                assert await cache.get_or_set("t", "k", _loaded, tags="x") == "loaded"
                assert await other.get("t", "k") == "loaded"
                assert await cache.ttl("t", "k") is not None


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("target", ["t", "magnus:t:a*", "magnus:*"])
async def test_invariant_9_a_scan_without_an_end_has_one(
    server: EmbeddedServer, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be cleared is invalid all the same, as soon as the server makes sense again."""
    monkeypatch.setattr(bulk, "_STEPS", 50)
    async with Nonsense(server.port) as relay, AsyncCacheManager(redis_url=server.url) as other:
        await other.set("t", "ab", "old")
        relay.answer, relay.sane = b"*2\r\n$1\r\n7\r\n*0\r\n", 2
        async with AsyncCacheManager(redis_url=relay.url) as cache:
            async with asyncio.timeout(30):
                assert await cache.clear(target) == 0
            relay.answer = None
            relay.hang_up()
            await cache.get("t", "k")
            await wait_until_async(lambda: cache.redis_available and not cache._engine.state.outbox.pending)
            if target == "magnus:t:a*":
                # Of the others, this server never heard: their epoch was issued by the one that talked nonsense.
                assert await other.get("t", "ab") is None


class Endless(Nonsense):
    """Ends no SCAN.

    :ivar keys: how many keys it claims to have.
    :ivar counts: how often each command was asked.
    """

    keys = 0

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.answer, self.sane = b"+OK\r\n", 3
        self.counts: Counter[bytes] = Counter()

    def _sense(self, words: list[Any]) -> bytes:
        self.counts[words[0]] += 1
        match words[0]:
            case b"SCAN":
                return b"*2\r\n$1\r\n7\r\n*0\r\n"
            case b"DBSIZE":
                return b":%d\r\n" % self.keys
        return super()._sense(words)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("keys", [0, 120, 1 << 62])
async def test_how_many_steps_a_scan_may_take_is_a_matter_of_how_many_keys_there_are(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    monkeypatch.setattr(bulk, "_STEPS", 5)
    monkeypatch.setattr(bulk, "_MOST_KEYS", 500)
    async with Endless(server.port) as relay, AsyncCacheManager(redis_url=relay.url) as cache:
        relay.keys = keys
        async with asyncio.timeout(10):
            assert await cache.clear("t") == 0
        assert relay.counts[b"DBSIZE"] == 1
        assert relay.counts[b"SCAN"] == 5 + min(keys, 500) // 50


ODD: Final[list[Any]] = [None, -1, 1 << 63, True, 1.5, "5", b"5", [5], dt.date.min, ValueError("no")]


@pytest.mark.parametrize("reply", ODD)
def test_what_is_no_count_is_an_error_of_the_exchange(reply: Any) -> None:
    for check in (replies.number, replies.answer, replies.yes, replies.single, replies.step):
        with pytest.raises(CacheUnavailableError) as caught:
            check(reply)
        assert caught.value.reason == "protocol"


def test_what_is_right_is_taken() -> None:
    assert replies.number(0) == 0
    assert replies.answer((1 << 63) - 1) == (1 << 63) - 1
    assert (replies.yes(1), replies.yes(0)) == (True, False)
    assert replies.single([b"x"]) == b"x"
    assert replies.single([None]) is None
    assert replies.step([b"17", [b"a", b"b"]]) == (b"17", [b"a", b"b"])
    for odd in (7, 2):
        with pytest.raises(CacheUnavailableError):
            replies.yes(odd)
    for steps in ([b"-1", []], [b"1" * 21, []], [b"1", [5]], [b"1", None], [1, []], [b"x", []]):
        with pytest.raises(CacheUnavailableError):
            replies.step(steps)
