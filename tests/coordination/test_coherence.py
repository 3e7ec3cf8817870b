"""The near cache against a real server: trust, fills and pushes. What is read here is never silently stale.

Each test states the guard it stands for; take the guard away and it goes red.
"""

import asyncio
from typing import Any

import pytest
import redis

from magnus_cache import Namespace
from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache.testing import virtual_clock
from tests.support.clock_error import CLOCK_ERROR
from tests.support.connections import others
from tests.support.fleet_of_managers import fleet, kept, near
from tests.support.inside import is_idle, pipeline_of, wire_of
from tests.support.rights import UNTRACKED
from tests.support.wait import wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

LATER = 2**52
"""An epoch that no invalidation in these tests reaches."""


async def test_a_peers_write_reaches_the_near_cache(url: str) -> None:
    """Invariant 1: invalidations arrive, and pushes are not dropped by the client."""
    async with fleet(url) as (one, two):
        await one.set("t", "k", "old")
        assert await two.get("t", "k") == "old"
        assert near(two, "t", "k")
        await one.set("t", "k", "new")
        await wait_until_async(lambda: not near(two, "t", "k"))
        assert await two.get("t", "k") == "new"


async def test_an_own_write_stays_tracked(url: str) -> None:
    """The EXISTS after our SET: without it NOLOOP ends the tracking, and a peer's later write is never heard."""
    async with fleet(url) as (one, two):
        assert await one.get("t", "k") is None
        await one.set("t", "k", "ours")
        await kept(one, "t", "k")
        assert near(one, "t", "k")
        await two.set("t", "k", "theirs")
        await wait_until_async(lambda: not near(one, "t", "k"))
        assert await one.get("t", "k") == "theirs"


@pytest.mark.tracking("keys")
async def test_own_writes_are_not_echoed(url: str) -> None:
    """NOLOOP: a value we wrote is served near at once, and goes on to be."""
    async with fleet(url, count=1) as (one,):
        for number in range(50):
            await one.set("t", "k", number)
            assert near(one, "t", "k")
        await one.get_stats()
        assert near(one, "t", "k")


async def test_a_delete_of_a_peer_is_heard(url: str, raw: redis.Redis) -> None:
    async with fleet(url) as (one, two):
        await one.set("t", "k", 1)
        await two.get("t", "k")
        raw.delete("magnus:t:k")
        await wait_until_async(lambda: not near(one, "t", "k") and not near(two, "t", "k"))
        assert await two.get("t", "k") is None


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_a_flush_voids_everything(url: str, raw: redis.Redis, command: str) -> None:
    """Invariant 5: the null push kills the trust."""
    # Such a long bound that no trust lapses by itself.
    async with fleet(url, count=1, max_staleness=60) as (one,):
        await one.set_many("t", {f"k{n}": n for n in range(20)})
        await kept(one, "t", "k7")
        assert near(one, "t", "k7")
        raw.execute_command(command)
        await wait_until_async(lambda: not near(one, "t", "k7"))
        assert await one.get_many("t", [f"k{n}" for n in range(20)]) == {}
        # The connection is sound: what is read after the flush is kept again.
        await one.set("t", "after", 1)
        await kept(one, "t", "after")
        assert near(one, "t", "after")


async def test_a_reply_overtaken_by_a_push_is_not_kept(url: str) -> None:
    """Invariant 1: 2,000 reads race with a peer's writes; afterwards the near cache equals Redis."""
    async with fleet(url) as (reader, writer):
        keys = [f"k{n}" for n in range(40)]
        await writer.set_many("t", dict.fromkeys(keys, 0))

        async def write() -> None:
            for version in range(1, 51):
                await writer.set_many("t", dict.fromkeys(keys, version))

        async def read(key: str) -> None:
            while not writing.done():
                await reader.get("t", key)
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        await asyncio.gather(writing, *(read(key) for key in keys))
        # An answer on the reader's connection proves that every push due before it has been handled.
        await reader.get_stats()
        assert await reader.get_many("t", keys) == dict.fromkeys(keys, 50)


async def test_a_reply_overtaken_by_an_own_write_on_another_loop_is_not_kept(url: str) -> None:
    """The placeholder is shared by all wires: a write of this process through any of them voids it."""
    async with fleet(url, count=1) as (one,):
        state, reads = one._engine.state, one._engine.reads
        ref = reads.ref("t", "k")
        await one.set("t", "k", "old")
        state.memory.invalidate(ref.name)
        wire = state.topology.connection(b"")
        assert wire is not None
        waiter, fill = reads.request(wire, ref, None)
        # Our request leaves; then the blocking face writes, on a wire of its own, and keeps this loop from reading the
        # answer, which has the old value.
        while not pipeline_of(wire).owed:
            await asyncio.sleep(0)
        one.sync.set("t", "k", "new")
        await waiter
        assert not near(one, "t", "k") or await one.get("t", "k") == "new"
        reads.settle(fill)
        assert await one.get("t", "k") == "new"


async def test_trust_lapses_without_an_answer_and_comes_back_with_one(url: str) -> None:
    """Invariant 5: past `max_staleness` an entry is served only after a new answer on its connection."""
    async with fleet(url, count=1, max_staleness=0.2) as (one,):
        await one.set("t", "k", {"a": 1})
        await kept(one, "t", "k")
        assert await one.get("t", "k") == {"a": 1}
        state = one._engine.state
        wire = state.topology.connection(b"")
        assert wire is not None
        wire.trust.deadline = 0.0
        assert not near(one, "t", "k")
        version = state.memory.get_untrusted(b"magnus:t:k")
        assert await one.get("t", "k") == {"a": 1}
        # Renewed by a heartbeat, not read again.
        assert state.memory.hit(b"magnus:t:k") is version


async def test_an_idle_process_does_not_ping_and_a_busy_one_does(url: str, raw: redis.Redis) -> None:
    async with fleet(url, count=1, max_staleness=0.15) as (one,):
        await one.set("t", "k", 1)
        await kept(one, "t", "k")

        def times() -> int:
            return int(raw.info("commandstats").get("cmdstat_time", {"calls": 0})["calls"])

        state = one._engine.state
        busy = times()
        hits = 0

        def beaten() -> bool:
            nonlocal hits
            hits += near(one, "t", "k")
            return times() >= busy + 3

        await wait_until_async(beaten)
        assert hits
        # Nobody asks any more: one last beat at most, then silence and a lapsed trust.
        wire = wire_of(state)
        await wait_until_async(lambda: is_idle(wire))
        idle = times()
        await wait_until_async(lambda: not near(one, "t", "k"))
        assert times() <= idle + 1


async def test_without_tracking_the_bound_holds(url: str, raw: redis.Redis) -> None:
    """Where the server refuses tracking, an entry lives at most `max_staleness` in the near cache."""
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    limited = url.replace("redis://", "redis://limited:pw@")
    async with fleet(limited, count=1, max_staleness=0.1) as (one,):
        await one.set("t", "k", "old")
        assert near(one, "t", "k")
        raw.delete("magnus:t:k")
        assert await one.get("t", "k") in ("old", None)
        await wait_until_async(lambda: not near(one, "t", "k"))
        assert await one.get("t", "k") is None
    raw.acl_deluser("limited")


async def test_near_never_outlives_redis(url: str, raw: redis.Redis) -> None:
    """Invariant 6: an entry's end is the stored value's end, told in Redis' time."""
    with virtual_clock() as clock:
        async with fleet(url) as (one, two):
            await one.set("t", "k", 1, ttl=60)
            clock.advance(30)
            assert await two.get("t", "k") == 1
            entry = two._engine.state.memory.get_untrusted(b"magnus:t:k")
            assert entry is not None
            left = raw.pttl("magnus:t:k") / 1000 - clock.ahead
            assert entry.deadline - two._engine.state.clock() <= left + CLOCK_ERROR


async def test_a_namespaces_near_life_may_be_shorter(url: str) -> None:
    brief = Namespace("brief", ttl=60, l1_ttl=0.05)
    async with fleet(url, count=1) as (one,):
        await one.set(brief, "k", 1)
        await kept(one, brief, "k")
        assert near(one, brief, "k")
        await wait_until_async(lambda: not near(one, brief, "k"))
        assert await one.get(brief, "k") == 1


async def test_a_namespace_may_stay_out_of_the_near_cache(url: str) -> None:
    far = Namespace("far", ttl=60, l1=False)
    async with fleet(url, count=1) as (one,):
        await one.set(far, "k", 1)
        assert await one.get(far, "k") == 1
        assert not near(one, far, "k")


async def test_what_others_wrote_under_our_names_is_a_miss(url: str, raw: redis.Redis) -> None:
    """Invariant 9: foreign bytes, other Redis types and damaged values are misses, counted, never errors."""
    async with fleet(url, count=1) as (one,):
        await one.set("t", "damaged", "v")
        stored = raw.get("magnus:t:damaged")
        one._engine.state.memory.invalidate(b"magnus:t:damaged")
        raw.set("magnus:t:damaged", stored[:-1] + b"\x00")
        raw.set("magnus:t:foreign", b"\x80\x04pickle?")
        raw.set("magnus:t:short", b"")
        raw.rpush("magnus:t:list", "a")
        raw.set("magnus:t:wrong", envelope.pack(b"\xc1", version=1, fresh_until=2**62, epoch=LATER))
        for key in ("damaged", "foreign", "short", "list", "wrong"):
            assert await one.get("t", key, "miss") == "miss"
            assert await one.get_or_set("t", key, lambda: "loaded") == "loaded"
            assert await one.get("t", key) == "loaded"
        stats = await one.get_stats()
        assert stats["namespaces"]["t"]["unreadable"] >= 4


async def test_a_value_beyond_the_limit_is_not_even_decompressed(url: str, raw: redis.Redis) -> None:
    """Invariant 9: a decompression bomb is a miss."""
    tight = Namespace("tight", ttl=60, max_value_bytes=1_000)
    bomb = envelope.pack(codec.encode("x" * 50_000_000), version=1, fresh_until=2**62, epoch=LATER, compress=True)
    raw.set("magnus:tight:k", bomb)
    async with fleet(url, count=1) as (one,):
        assert await one.get(tight, "k", "miss") == "miss"


async def test_values_are_listed_apart_from_control_keys(url: str, raw: redis.Redis) -> None:
    async with fleet(url, count=1) as (one,):
        await one.set("options_chains", "AAPL_2025-03-21", [1])
        assert list(raw.scan_iter("magnus:*")) == [b"magnus:options_chains:AAPL_2025-03-21"]


async def test_a_thousand_concurrent_callers_share_one_connection(url: str, raw: redis.Redis) -> None:
    """No pool to run dry; everything of a loop goes through one connection, in batches."""
    async with fleet(url, count=1) as (one,):
        far = Namespace("far", ttl=60, l1=False)
        await one.set_many(far, {f"k{n}": n for n in range(1_000)})
        before = raw.info("commandstats")["cmdstat_mget"]["calls"] if "cmdstat_mget" in raw.info("commandstats") else 0
        found = await asyncio.gather(*(one.get(far, f"k{n}") for n in range(1_000)))
        assert found == list(range(1_000))
        assert raw.info("commandstats")["cmdstat_mget"]["calls"] - before <= 8
        ours = others(raw)
        assert len(ours) == 1


async def test_a_read_queued_before_an_own_write_does_not_store_the_old_value(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is touched again right before its SET is queued: Redis does not announce our own writes to us."""
    packed = Namespace("packed", ttl=60, compress=True)
    async with fleet(url, count=1) as (one,):
        reads = one._engine.reads
        await one.set(packed, "k", "old" * 20_000)
        ref = reads.ref(packed, "k")
        one._engine.state.memory.invalidate(ref.name)
        queued: list[Any] = []

        async def compress_while_somebody_reads(pack: Any, **_: Any) -> bytes:
            raw: bytes = pack()
            wire = one._engine.state.topology.connection(b"")
            assert wire is not None
            queued.append(reads.request(wire, ref, None))
            return raw

        monkeypatch.setattr("magnus_cache._engine.store.writes.to_thread.run_sync", compress_while_somebody_reads)
        await one.set(packed, "k", "new" * 20_000)
        for waiter, fill in queued:
            await waiter
            reads.settle(fill)
        assert len(queued) == 1
        assert await one.get(packed, "k") == "new" * 20_000


async def test_a_value_past_its_end_is_a_miss_though_redis_still_has_it(url: str, raw: redis.Redis) -> None:
    """Invariant 6: the end stands in the envelope, in Redis' time; that Redis deletes the key late does not matter."""
    seconds, microseconds = raw.time()
    now = seconds * 1_000_000 + microseconds
    raw.set("magnus:t:over", envelope.pack(codec.encode("old"), version=1, fresh_until=now - 1, epoch=LATER))
    raw.set("magnus:t:alive", envelope.pack(codec.encode("new"), version=2, fresh_until=now + 60_000_000, epoch=LATER))
    async with fleet(url, count=1) as (one,):
        assert await one.get_many("t", ["over", "alive"]) == {"alive": "new"}
        assert await one.ttl("t", "over") is None
        assert 59 < (await one.ttl("t", "alive") or 0) <= 60
