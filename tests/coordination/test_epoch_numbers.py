"""Epochs as numbers: they never go down, whatever is left of them, and nonsense neither stays nor spreads."""

import time
from typing import Any, Final

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import LATEST_EPOCH, Epochs, epoch_of
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import scripts
from magnus_cache._engine.redis.commands import Command
from tests.support.fleet_of_managers import fleet

pytestmark = pytest.mark.anyio

NAMES: Final = Epochs(Keyspace("magnus")).names
CONTROL, TAG = b"magnus!epoch:t", b"magnus!tag:x"


def run(raw: redis.Redis, command: Command) -> Any:
    """Return what the server answers to a script."""
    assert command.again is not None
    words = command.again().packed
    with raw.client() as client:
        client.connection.send_packed_command([words])
        return client.connection.read_response()


def bump(raw: redis.Redis, known: int) -> Any:
    return run(raw, scripts.bump(NAMES, (CONTROL, TAG), known))


def learn(raw: redis.Redis, known: int) -> Any:
    # One that is behind what the caller knows is issued anew; what the caller knows counts, too.
    return run(raw, scripts.learn(NAMES, CONTROL, known or int(raw.get(CONTROL) or 0) + 1))


def adopt(raw: redis.Redis, known: int) -> Any:
    return run(raw, scripts.adopt(NAMES, CONTROL, known or int(raw.get(CONTROL) or 0) + 1, 7))


def arrive(raw: redis.Redis, known: int) -> Any:
    raw.rename(CONTROL, NAMES.root) if raw.exists(CONTROL) else None
    return run(raw, scripts.arrive(NAMES, b"somebody", known))


ISSUES: Final = [bump, learn, adopt, arrive]


def hour_ahead() -> int:
    return int((time.time() + 3600) * 1e6)


@pytest.mark.parametrize("left", ["clock", "guard", "key", "other key", "caller"])
@pytest.mark.parametrize("issue", ISSUES)
def test_epochs_never_go_down_whatever_is_left_of_them(raw: redis.Redis, issue: Any, left: str) -> None:
    """The server's clock was an hour ahead, and was set right; then the others were evicted."""
    known, caller = hour_ahead(), 0
    match left:
        case "clock":
            raw.set(NAMES.clock, known)
        case "guard":
            raw.hset(NAMES.guard, "last", str(known))
        case "key":
            raw.set(CONTROL, known)
        case "other key":
            if issue is not bump:
                pytest.skip("one key at a time")
            raw.set(TAG, known)
        case _:
            caller = known
    assert int(issue(raw, caller)) > known


def test_the_guard_knows_the_last_epoch_issued(raw: redis.Redis) -> None:
    for issue in ISSUES:
        assert issue(raw, 0) == raw.hget(NAMES.guard, "last") == raw.get(NAMES.clock)


async def test_invariant_1_a_clear_counts_after_the_server_lost_its_clock(url: str, raw: redis.Redis) -> None:
    """Processes that live for the time of one call: nobody knows more than the server does."""
    raw.set(NAMES.clock, hour_ahead())
    async with fleet(url, 1) as (writer,):
        await writer.clear("t")
        await writer.set("t", "k", "old")
        await writer.set("t", "tagged", "old", tags="x")
    raw.delete(NAMES.clock)
    # Not removed, that the epochs have to tell.
    raw.acl_setuser("keeper", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-unlink"])
    try:
        async with fleet(url.replace("redis://", "redis://keeper:pw@"), 1) as (admin,):
            await admin.clear("t")
            await admin.invalidate_tags("x")
        assert raw.exists("magnus:t:k")
        async with fleet(url, 1) as (fresh,):
            assert await fresh.get_many("t", ["k", "tagged"]) == {}
    finally:
        raw.acl_deluser("keeper")


@pytest.mark.parametrize("nonsense", [LATEST_EPOCH - 1, LATEST_EPOCH, 9_007_199_254_740_993, 5_500_000_000_000_000])
@pytest.mark.parametrize("issue", ISSUES)
@pytest.mark.parametrize("where", ["clock", "guard", "key"])
def test_nonsense_does_not_lead_epochs_up_to_their_end(raw: redis.Redis, issue: Any, nonsense: int, where: str) -> None:
    """What is issued is an epoch to everybody, goes up, and nothing is stuck."""
    if where == "guard":
        raw.hset(NAMES.guard, "last", str(nonsense))
    else:
        raw.set(NAMES.clock if where == "clock" else CONTROL, nonsense)
        if where == "key" and issue is arrive:
            raw.rename(CONTROL, NAMES.root)
    now = int(time.time() * 1e6)
    issued = [epoch_of(run(raw, scripts.bump(NAMES, (CONTROL, TAG), 0))) for _ in range(3)]
    assert issued == sorted(set(issued))
    assert all(now - 10**9 < epoch < now + 10**9 for epoch in issued)


def test_a_clock_beyond_the_last_epoch_issues_none(raw: redis.Redis) -> None:
    """It is set right some day; until then the server says so, and changes nothing."""
    text = scripts._BUMP.text.replace("time[1] * 1000000", "(time[1] + 8000000000) * 1000000")
    late = scripts.Script("BUMP", text)
    command = late.command((NAMES.clock, NAMES.guard, CONTROL), 0, b"-")
    with pytest.raises(redis.ResponseError, match="EPOCHS"):
        run(raw, command)
    assert raw.keys() == []


async def test_what_another_server_told_is_forgotten(url: str, raw: redis.Redis) -> None:
    """A process that was told nonsense by one server, and meets one that is in order: it is served again."""
    for name in (b"magnus!epoch", CONTROL, TAG):
        async with fleet(url) as (poisoned, other):
            await other.set("t", "k", 1, tags="x")
            poisoned._engine.state.epochs.seen(name, LATEST_EPOCH - 5)
            assert await poisoned.set("t", "k", 2, tags="x")
            assert await other.get("t", "k") == 2
            await poisoned.invalidate_tags("x")
            await poisoned.clear("t")
            assert await other.get("t", "k") is None
            assert await poisoned.get_or_set("t", "k", lambda: 3, tags="x") == 3
            assert await other.get("t", "k") == 3
            assert poisoned._engine.state.epochs.highest < LATEST_EPOCH - 10**15
            assert int(raw.get(NAMES.clock)) < LATEST_EPOCH - 10**15


async def test_nonsense_in_a_key_is_replaced_and_not_believed(url: str, raw: redis.Redis) -> None:
    async with fleet(url) as (one, two):
        for name in ("magnus!epoch", "magnus!epoch:t", "magnus!tag:x"):
            await one.set("t", "k", 1, tags="x")
            raw.set(name, LATEST_EPOCH - 5)
            for manager in (one, two):
                await manager.get_stats()
                await manager.set("t", "k", 2, tags="x")
                assert await manager.get("t", "k") == 2
                assert manager._engine.state.epochs.highest < LATEST_EPOCH - 10**15
            assert int(raw.get(name)) < LATEST_EPOCH - 10**15


@pytest.mark.parametrize("stamp", [(1 << 64) - 1, LATEST_EPOCH, 1 << 60])
async def test_a_value_that_claims_an_impossible_epoch_is_not_valid_for_ever(
    url: str, raw: redis.Redis, stamp: int
) -> None:
    """No clear would ever reach it."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        until = int((time.time() + 60) * 1e6)
        value = envelope.pack(codec.encode("odd"), version=1, fresh_until=until, epoch=stamp, life=60)
        raw.set("magnus:t:odd", value)
        assert await one.get("t", "odd") is None
        assert await one.ttl("t", "odd") is None
        assert "invalidated" in str(await one.explain("t", "odd"))
        if stamp > LATEST_EPOCH:
            await one.clear("t")
            assert not raw.exists("magnus:t:odd")


async def test_what_is_no_epoch_is_none(url: str) -> None:
    odd: list[object] = [None, 5, 1 << 70, -1, b"", b"-5", b"1" * 17, b"9" * 16, "5", [b"5"], 1.5, b"1.5", b" 5"]
    assert [epoch_of(text) for text in odd] == [0] * len(odd)
    assert epoch_of(b"0000000000000005") == 5
    assert epoch_of(b"11", 10) == 0
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get("t", "k")
