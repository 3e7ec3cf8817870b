"""Leases: one load per key in the fleet, and no load that was overtaken is stored. Real servers, several managers."""

import asyncio
import threading
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination.leases import new_token
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis import commands, scripts
from magnus_cache.testing import Proxy
from tests.support.fleet_of_managers import fleet, kept, near
from tests.support.inside import held_leases, renew_now, waits_for_a_lease
from tests.support.loaders import Slow
from tests.support.wait import nothing_happens_for_async, wait_until, wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

NAME = b"magnus:t:k"
LEASE = lease_name(NAME)


async def test_invariant_3_one_load_for_the_fleet(url: str) -> None:
    """Five managers, twenty callers each, on one cold key: one load, and everybody has its value."""
    slow = Slow()
    async with fleet(url, 5) as managers:
        calls = [asyncio.create_task(manager.get_or_set("t", "k", slow)) for manager in managers for _ in range(20)]
        await slow.begun()
        slow.finish()
        assert await asyncio.gather(*calls) == [1] * 100
        # A push that comes in two pieces may keep it from being near at once, never for longer.
        assert [await manager.get("t", "k") for manager in managers] == [1] * 5
        assert all(near(manager, "t", "k") for manager in managers)
        assert slow.calls == 1


async def test_the_lease_is_the_one_of_the_design(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    async with fleet(url, 1, lease=2.0) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        assert raw.get("{magnus:t:k}:lease")
        assert 0 < raw.pttl("{magnus:t:k}:lease") <= 2000
        slow.finish()
        await call
        assert not raw.exists("{magnus:t:k}:lease")
        assert list(raw.scan_iter("magnus:*")) == [NAME]


async def test_a_waiter_is_woken_by_the_value_and_does_not_poll(url: str, raw: redis.Redis) -> None:
    """While a load goes on, those who wait for it send nothing."""
    slow = Slow()
    async with fleet(url, 2, lease=30.0, max_staleness=30.0) as (one, two):
        await asyncio.gather(one.get("t", "x"), two.get("t", "x"))
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        waiting = asyncio.create_task(two.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(two))
        await two.get("t", "other")
        before = raw.info("commandstats")
        await nothing_happens_for_async(0.3)
        after = raw.info("commandstats")
        sent = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
        assert sum(count for name, count in sent.items() if name != "cmdstat_info") <= 4, sent
        slow.finish()
        assert (await call, await waiting, slow.calls) == (1, 1, 1)


@pytest.mark.parametrize("how", ["delete", "set", "clear", "clear all", "clear glob", "set_many", "delete_many"])
@pytest.mark.parametrize("who", ["peer", "same"])
async def test_invariant_2_a_load_that_is_overtaken_is_stored_nowhere(
    url: str, raw: redis.Redis, how: str, who: str
) -> None:
    """Invariants 1 and 2: who was waiting gets the load's value, who comes later does not."""
    slow = Slow()
    async with fleet(url, 3) as (one, two, three):
        await asyncio.gather(*(manager.get("t", "k") for manager in (one, two, three)))
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        peer = two if who == "peer" else one
        match how:
            case "delete":
                await peer.delete("t", "k")
            case "delete_many":
                await peer.delete_many("t", ["k", "l"])
            case "set":
                await peer.set("t", "k", "newer")
            case "set_many":
                await peer.set_many("t", {"k": "newer"})
            case "clear":
                await peer.clear("t")
            case "clear all":
                await peer.clear("magnus:*")
            case _:
                await peer.clear("t:k*")
        if who == "peer":
            # The bound is the push; an answer on the same connection proves that it has come.
            await one.get_stats()
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        if "set" not in how:
            await slow.begun(2)
        slow.finish()
        assert await call == 1
        for manager in (one, two, three):
            assert not near(manager, "t", "k") or await manager.get("t", "k") == "newer"
            assert await manager.get("t", "k") == ("newer" if "set" in how else None)
        slow.finish(2)
        assert await late == ("newer" if "set" in how else 2)
        await one.get_stats()
        expected = "newer" if "set" in how else 2
        assert [await manager.get("t", "k") for manager in (one, two, three)] == [expected] * 3


async def test_a_refresh_voids_older_loads(url: str) -> None:
    slow = Slow()
    async with fleet(url, 2) as (one, two):
        calls = 0

        @two.cached("t", key="k")
        async def cached() -> str:
            nonlocal calls
            calls += 1
            return "refreshed"

        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        assert await cached.refresh() == "refreshed"
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") == await two.get("t", "k") == "refreshed"


async def test_invariant_3_a_dead_holder_is_replaced_within_a_lease(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    raw.set(LEASE, "somebody:1:dead", px=400)
    async with fleet(url, 2) as (one, two):
        calls = [asyncio.create_task(manager.get_or_set("t", "k", slow)) for manager in (one, two)]
        await slow.begun()
        slow.finish()
        assert await asyncio.gather(*calls) == [1, 1]


async def test_a_lease_without_an_end_is_nobodys(url: str, raw: redis.Redis) -> None:
    raw.set(LEASE, "left by something else")
    async with fleet(url, 1) as (one,):
        assert await one.get_or_set("t", "k", lambda: 1) == 1
        assert raw.get(NAME)


async def test_a_lease_is_renewed_for_as_long_as_the_load_takes(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    async with fleet(url, 2, lease=0.3) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        token = raw.get(LEASE)
        waiting = asyncio.create_task(two.get_or_set("t", "k", slow))
        deadline = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < deadline:
            assert raw.get(LEASE) == token
            await nothing_happens_for_async(0.02)
        slow.finish()
        assert (await call, await waiting, slow.calls) == (1, 1, 1)


async def test_a_failed_load_hands_over_at_once(url: str, raw: redis.Redis) -> None:
    """N waiters get one exception of one call, and other processes need not wait for the lease's end."""
    calls = 0

    async def fails() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        raise LookupError("no such ticker")

    async with fleet(url, 2, lease=30.0) as (one, two):
        results = await asyncio.gather(*(one.get_or_set("t", "k", fails) for _ in range(50)), return_exceptions=True)
        assert {type(result) for result in results} == {LookupError}
        assert calls == 1
        async with asyncio.timeout(5):
            assert await two.get_or_set("t", "k", lambda: "fine") == "fine"


async def test_invariant_4_cancelling_the_last_caller_ends_the_lease(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    async with fleet(url, 1, lease=30.0) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        call.cancel()
        await asyncio.wait([call])
        await wait_until_async(lambda: not raw.exists(LEASE))
        assert len(one._engine.state.leases) == 0


async def test_a_load_cancelled_while_its_lease_is_granted_gives_it_back(url: str, raw: redis.Redis) -> None:
    """For every await ask: what if we are cancelled here? The lease may be ours without our knowing."""
    async with fleet(url, 1, lease=30.0) as (one,):
        await one.get("t", "k")
        for turns in range(6):
            call = asyncio.create_task(one.get_or_set("t", "k", Slow()))
            # Granted at the server, while the answer is still on its way, or has just come.
            while not raw.exists(LEASE):
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            await one.get_stats()
            await wait_until_async(lambda: not raw.exists(LEASE))
            assert len(one._engine.state.leases) == 0
            wire = one._engine.state.topology.connection(b"")
            assert wire is not None
            assert wire.leases_held == 0


async def test_who_follows_a_cancelled_load_does_not_wait_for_its_lease(url: str, raw: redis.Redis) -> None:
    """Redis announces to us nothing of what we do ourselves, not even that a lease of ours has ended."""
    async with fleet(url, 1, lease=30.0) as (one,):
        await one.get("t", "x")
        for turns in range(8):
            key = f"k{turns}"
            call = asyncio.create_task(one.get_or_set("t", key, Slow()))
            while not raw.exists(lease_name(f"magnus:t:{key}".encode())):
                await asyncio.sleep(0)
            for _ in range(turns // 2):
                await asyncio.sleep(0)
            call.cancel()
            for _ in range(turns % 2):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                assert await one.get_or_set("t", key, lambda: "next") == "next"


async def test_who_waits_too_long_loads_for_itself_and_stores_nothing(url: str, raw: redis.Redis) -> None:
    """Invariant 10: every wait has a bound."""
    raw.set(LEASE, "somebody:1:slow", px=60_000)
    async with fleet(url, 1, wait_timeout=0.2) as (one,):
        assert await one.get_or_set("t", "k", lambda: "mine") == "mine"
        assert raw.get(NAME) is None
        assert raw.get(LEASE) == b"somebody:1:slow"
        assert not near(one, "t", "k")


async def test_what_was_loaded_without_a_lease_is_not_kept_although_redis_went_away(
    url: str, raw: redis.Redis, proxy: Proxy
) -> None:
    """Invariant 2: while Redis was there, somebody may have invalidated it, and nobody told who has no lease."""
    raw.set(LEASE, "somebody:1:slow", px=60_000)
    slow = Slow()
    async with fleet(proxy.url, 1, wait_timeout=0.2) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        raw.set(NAME, b"a newer one")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") is None


async def test_what_is_not_to_be_kept_frees_the_key(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2, lease=30.0) as (one, two):

        @one.cached("t", key="k", skip_if=lambda value: value is None)
        async def nothing() -> None:
            return None

        assert await nothing() is None
        async with asyncio.timeout(5):
            assert await two.get_or_set("t", "k", lambda: 1) == 1


async def test_a_foreign_value_in_the_way_is_replaced(url: str, raw: redis.Redis) -> None:
    """Invariant 9: ACQ rejects exactly the bytes that were judged unusable, empty ones and other types included."""
    async with fleet(url, 1) as (one,):
        for junk in (b"", b"x", b"\x80pickle" * 20):
            raw.set(NAME, junk)
            await one.get_stats()
            assert await one.get_or_set("t", "k", lambda: "loaded") == "loaded"
            await kept(one, "t", "k")
            assert near(one, "t", "k")
        raw.delete(NAME)
        raw.rpush(NAME, 1)
        await one.get_stats()
        assert await one.get_or_set("t", "k", lambda: "loaded") == "loaded"
        assert raw.type(NAME) == b"string"


async def test_scripts_that_the_server_forgot_are_sent_again(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (one,):
        for number in range(3):
            raw.script_flush()
            assert await one.get_or_set("t", f"k{number}", lambda: 1) == 1
            raw.script_flush()
            assert await one.touch("t", f"k{number}", 50)
            raw.script_flush()
            assert await one.clear("t") == 1


async def test_threads_and_tasks_share_one_load(url: str) -> None:
    """Blocking callers of one manager and coroutines of another: one load."""
    calls: list[str] = []

    def load() -> int:
        calls.append(threading.current_thread().name)
        threading.Event().wait(0.1)
        return 7

    with CacheManager(redis_url=url) as blocking:
        async with fleet(url, 1) as (one,):
            jobs = [asyncio.to_thread(blocking.get_or_set, "t", "k", load) for _ in range(8)]
            assert await asyncio.gather(*jobs, *(one.get_or_set("t", "k", load) for _ in range(8))) == [7] * 16
            assert len(calls) == 1


async def test_nobody_joins_a_load_whose_lease_could_be_void_unheard(url: str) -> None:
    """Invariant 1: past the trust of the connection that would announce a delete, a caller loads anew."""
    slow = Slow()
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        (lease,) = held_leases(one).values()
        # By prefix, what is announced of our own lease is asked about.
        await one.get_stats()
        await wait_until_async(lambda: not lease.doubted)
        # As that of a connection that was lost: nobody renews it.
        lease.trust = Trust(0.0)
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(one))
        slow.finish()
        # The lease itself still stood, so the late caller has the value from Redis, not from the flight.
        assert (await call, await late, slow.calls) == (1, 1, 1)
        assert one._engine.state.flights.joined == 0


async def test_a_busy_holder_keeps_its_trust_alive(url: str) -> None:
    slow = Slow()
    # So long a lease that no renewal comes in between.
    async with fleet(url, 1, max_staleness=0.15, lease=300) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        now = asyncio.get_running_loop().time
        deadline = now() + 0.6
        await wait_until_async(lambda: wire.trust.deadline > deadline)
        slow.finish()
        await call


def test_a_token_is_never_used_twice() -> None:
    """Unique to each acquisition, not to a client or thread."""
    tokens = {new_token() for _ in range(10_000)}
    assert len(tokens) == 10_000


async def test_a_lease_that_was_taken_over_is_found_out(url: str, raw: redis.Redis) -> None:
    """A renewal that finds another token ends the claim, whatever became of the announcement."""
    slow = Slow()
    async with fleet(url, 1, lease=0.3) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        one._engine.state.leases.announced = lambda *_: None  # type: ignore[method-assign]
        raw.set(LEASE, "somebody:2:new", px=30_000)
        await wait_until_async(lambda: len(one._engine.state.leases) == 0)
        slow.finish()
        assert await call == 1
        assert raw.get(NAME) is None
        assert raw.get(LEASE) == b"somebody:2:new"


async def test_the_holder_hears_of_a_delete_after_a_renewal(url: str, raw: redis.Redis) -> None:
    """Our own PEXPIRE under NOLOOP ends the tracking; the script reads the lease again for that."""
    slow = Slow()
    # So long a lease that the next renewal, which would find it gone, does not come in between.
    async with fleet(url, 2, lease=300, max_staleness=300) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        (lease,) = held_leases(one).values()
        renew_now(lease)
        await one.get_stats()
        assert raw.info("commandstats")["cmdstat_pexpire"]["calls"] > 0
        await two.delete("t", "k")
        await wait_until_async(lambda: len(one._engine.state.leases) == 0)
        slow.finish()
        await call


async def test_a_flush_voids_what_is_being_loaded(url: str, raw: redis.Redis) -> None:
    """Who waited for its lease takes over at once, and nobody joins it."""
    slow = Slow()
    async with fleet(url, 2, lease=60, max_staleness=60) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        waiting = asyncio.create_task(two.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(two))
        await two.get_stats()
        raw.flushall()
        await slow.begun(2)
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        slow.finish()
        assert await call == 1
        slow.finish(2)
        assert (await waiting, await late) == (2, 2)
        assert await one.get("t", "k") == 2


# -- the scripts by themselves ----------------------------------------------------------------------------------


async def test_acquire_and_fill_by_hand(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 2) as (one, two):
        await asyncio.gather(one.get("t", "x"), two.get("t", "x"))
        a, b = one._engine.state.topology.connection(b""), two._engine.state.topology.connection(b"")
        assert a is not None
        assert b is not None
        assert await a.execute(scripts.acquire(NAME, b"", b"A", 1000)) == scripts.LEASED
        left = await b.execute(scripts.acquire(NAME, b"", b"B", 1000))
        assert 0 < left <= 1001
        # A write voids the lease; a fill with it is refused, and with a later one of the same name too.
        await b.execute(commands.store(NAME, b"written", 60_000))
        assert await a.execute(scripts.fill(NAME, b"A", b"loaded", 60_000)) == 0
        assert await a.execute(scripts.acquire(NAME, b"", b"A2", 1000)) == b"written"
        assert await a.execute(scripts.acquire(NAME, b"writ", b"A2", 1000)) == scripts.LEASED
        assert await a.execute(scripts.release(NAME, b"A")) == 0
        assert await a.execute(scripts.renew(NAME, b"A2", 5000)) == 1
        assert raw.pttl(LEASE) > 1000
        assert await a.execute(scripts.fill(NAME, b"A2", b"loaded", 60_000)) == 1
        assert raw.get(NAME) == b"loaded"
        assert await b.execute(commands.remove([NAME])) == 1
        # Taken by force, whoever holds it.
        assert await a.execute(scripts.acquire(NAME, b"", b"A3", 1000)) == scripts.LEASED
        assert (
            await b.execute(scripts.acquire(NAME, b"", b"B3", 1000, attempt=scripts.LeaseAttempt.FORCED))
            == scripts.LEASED
        )
        assert await a.execute(scripts.fill(NAME, b"A3", b"old", 60_000)) == 0


def test_a_script_that_is_interrupted_leaves_no_lease_for_ever(url: str, raw: redis.Redis) -> None:
    """A thread interrupted between the grant and the load: the renewal finds the flight over and gives up."""
    with CacheManager(redis_url=url, lease=0.3) as cache:
        acquirer = cache._engine.loads.acquirer
        acquire = acquirer.acquire

        async def interrupted(*args: Any, **kwargs: Any) -> Any:
            await acquire(*args, **kwargs)
            raise KeyboardInterrupt

        acquirer.acquire = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set("t", "k", lambda: 1)
        acquirer.acquire = acquire  # type: ignore[method-assign]
        wait_until(lambda: not raw.exists(LEASE))
        assert cache.get_or_set("t", "k", lambda: 2) == 2


async def test_a_manager_of_memory_alone_needs_no_leases() -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        slow = Slow()
        calls = [asyncio.create_task(cache.get_or_set("t", "k", slow)) for _ in range(10)]
        await slow.begun()
        await cache.delete("t", "k")
        late = asyncio.create_task(cache.get_or_set("t", "k", slow))
        await slow.begun(2)
        slow.finish()
        slow.finish(2)
        assert await asyncio.gather(*calls) == [1] * 10
        assert await late == 2
        assert await cache.get("t", "k") == 2


async def test_what_could_not_be_given_back_in_an_outage_is_on_the_return(
    server: Any, raw: redis.Redis, proxy: Proxy
) -> None:
    """Nobody waits out the lease of a load that failed, or could not store its value, while Redis was away."""
    slow = Slow()
    async with fleet(proxy.url, 1, lease=30.0) as (one,), fleet(server.url, 1, lease=30.0) as (other,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        slow.finish()
        assert await call == 1
        assert raw.exists(LEASE)
        proxy.resume()
        async with asyncio.timeout(5):
            assert await other.get_or_set("t", "k", lambda: "other") == "other"
