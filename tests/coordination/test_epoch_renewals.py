"""The epoch of what is in use does not end, though its key in Redis has an end."""

import time
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.coordination.epoch_renewals import _EVERY, EpochRenewals
from magnus_cache._engine.redis.scripts import _PROLONG, EPOCH_LIFE
from magnus_cache.testing import virtual_clock
from tests.support.fleet_of_managers import kept
from tests.support.inside import all_answered, only_wire_of
from tests.support.wait import wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

DAY = 86_400_000
NAMESPACE, TAG = b"magnus!epoch:t", b"magnus!tag:x"


def age(raw: redis.Redis, name: bytes, days: float, left: int) -> None:
    """Have an epoch that was issued some days ago, and that ends in so many milliseconds."""
    raw.set(name, b"%016d" % int((time.time() - days * 86_400) * 1e6), px=left)


def left(raw: redis.Redis, name: bytes) -> int:
    found: Any = raw.pttl(name)
    return int(found)


async def beat(cache: AsyncCacheManager) -> None:
    """Let the wire's timer run, and return when Redis has answered what it asked."""
    renewals, beats = cache._state.epoch_renewals, 0
    wire = only_wire_of(cache)
    original = renewals.beat

    def counted(wire: Any) -> None:
        nonlocal beats
        original(wire)
        beats += 1

    renewals.beat = counted  # type: ignore[method-assign]
    await cache.get("other", "k")
    await wait_until_async(lambda: beats)
    del renewals.beat
    await all_answered(wire)


@pytest.mark.parametrize("name", [NAMESPACE, TAG])
async def test_what_is_in_use_stays(url: str, raw: redis.Redis, name: bytes) -> None:
    age(raw, name, 25, 5 * DAY)
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1, tags="x")
        await kept(cache, "t", "k")
        await beat(cache)
        assert left(raw, name) > EPOCH_LIFE - DAY
        # And Redis still announces when it changes.
        async with AsyncCacheManager(redis_url=url) as peer:
            await (peer.clear("t") if name == NAMESPACE else peer.invalidate_tags("x"))
            await wait_until_async(lambda: cache._state.memory.hit(b"magnus:t:k") is None)
            assert await cache.get("t", "k") is None


async def test_nothing_else_is_touched(url: str, raw: redis.Redis) -> None:
    """Not what is young, and not what another process has prolonged today: a change is announced to everybody."""
    age(raw, NAMESPACE, 25, EPOCH_LIFE - DAY // 2)
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1, tags="x")
        # Its first epoch is issued, and given an end.
        await cache.get("other", "k")
        young, before = left(raw, TAG), raw.info("commandstats").get("cmdstat_pexpire", {"calls": 0})["calls"]
        await beat(cache)
        assert raw.info("commandstats").get("cmdstat_pexpire", {"calls": 0})["calls"] == before
        assert left(raw, NAMESPACE) <= EPOCH_LIFE - DAY // 2
        assert left(raw, TAG) <= young
        assert left(raw, b"magnus!epoch") == -1


async def test_once_a_day(url: str, raw: redis.Redis) -> None:
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            await cache.set("t", "k", 1)
            clock.advance(86_400 * 2)
            await cache.set("t", "k", 1)
            await beat(cache)
            for hours, renewed in ((12, False), (13, True)):
                raw.pexpire(NAMESPACE, DAY)
                clock.advance(3_600 * hours)
                await cache.get("t", "k")
                await beat(cache)
                assert (left(raw, NAMESPACE) > DAY) is renewed


async def test_many_are_prolonged_some_at_a_time(url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, original = list[int](), EpochRenewals.beat

    def counted(self: EpochRenewals, wire: Any) -> None:
        before = len(self._asked)
        original(self, wire)
        asked.append(len(self._asked) - before)

    # The wire's own beats count as well: on a busy machine some come between those that the test waits for.
    monkeypatch.setattr(EpochRenewals, "beat", counted)
    names = [b"magnus!epoch:n%d" % number for number in range(250)]
    for name in names:
        age(raw, name, 25, 5 * DAY)
    with virtual_clock() as clock:
        async with AsyncCacheManager(redis_url=url) as cache:
            for number in range(250):
                await cache.get(f"n{number}", "k")
            # One of the wire's own beats may have looked when some of them were read: the next look is at all.
            clock.advance(_EVERY)
            # Four beats, and more where a busy machine lets a question fail.
            for _ in range(20):
                await beat(cache)
                clock.advance(2)
                if done := all(left(raw, name) > 5 * DAY for name in names):
                    break
            assert done
    assert 0 < max(asked) <= 100


def test_what_has_ended_is_not_brought_back(raw: redis.Redis) -> None:
    assert raw.eval(_PROLONG.text, 1, NAMESPACE) == 0
    assert not raw.exists(NAMESPACE)
    raw.set(NAMESPACE, b"1")
    assert raw.eval(_PROLONG.text, 1, NAMESPACE) == 1
    assert left(raw, NAMESPACE) == -1
