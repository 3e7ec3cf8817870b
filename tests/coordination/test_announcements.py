"""An announcement means "ask": names are announced also when the server merely ceases to track them."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, CacheUnavailableError, Namespace
from magnus_cache._engine.coordination.lease import Lease
from magnus_cache._engine.redis.wire import Wire
from magnus_cache._engine.runtime.backoff import LONGEST_PAUSE, Pace, pause
from magnus_cache.testing import Proxy
from tests.support.documents import PAGES
from tests.support.fleet_of_managers import expect_two_loads, fleet, kept, near
from tests.support.inside import (
    all_answered,
    ask_for_epoch,
    hear_of_nothing,
    on_epoch_learned,
    waits_for_a_lease,
    wire_of,
)
from tests.support.loaders import Slow
from tests.support.rights import UNTRACKED
from tests.support.wait import lapse_async, nothing_happens_for_async, wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio

LEASE = b"{magnus:t:k}:lease"
EPOCH = b"magnus!epoch:t"


async def connected(manager: AsyncCacheManager) -> Wire:
    """Return the manager's wire, once it is up."""
    await manager.get_stats()
    return wire_of(manager)


def announce(manager: AsyncCacheManager, *names: bytes) -> None:
    """Have the manager hear of some names, as from a server that ceases to track them."""
    manager._engine.state.events.invalidated(list(names), wire_of(manager))


async def answered(manager: AsyncCacheManager) -> None:
    """Return when what has been announced was followed up: questions leave in the next turn, and are answered first."""
    await manager.get_stats()
    wire = wire_of(manager)
    await wait_until_async(lambda: not wire.known.doubts and not wire.questions._open)
    await manager.get_stats()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions that are about to be asked stay there, as if their answers took long."""
    for ask in ("_ask", "_ask_reads"):
        monkeypatch.setattr(f"magnus_cache._engine.redis.announced.Questions.{ask}", lambda _: None)


@pytest.fixture
def tight(private_server_with: Callable[..., Any]) -> Any:
    """A server that tracks a single name."""
    server = private_server_with()
    with redis.Redis(port=server.port) as client:
        client.config_set("tracking-table-max-keys", 1)
    return server


def refuse_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no question whether a lease stands gets to Redis."""

    def refused(*_: Any) -> None:
        raise CacheUnavailableError("overloaded", "too much at once")

    monkeypatch.setattr(Lease, "verify", refused)


# -- leases -------------------------------------------------------------------------------------------------------


async def test_invariant_3_an_announced_lease_that_stands_is_no_lost_one(url: str, raw: redis.Redis) -> None:
    """Its load is joined, and its value stored."""
    slow = Slow()
    async with fleet(url, 1) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        announce(one, LEASE)
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        await wait_until_async(lambda: one._engine.state.flights.joined)
        slow.finish()
        assert (await call, await late, slow.calls) == (1, 1, 1)
        assert raw.exists("magnus:t:k")


async def test_an_announced_lease_that_is_gone_is_given_up(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        raw.delete(LEASE)
        await wait_until_async(lambda: len(one._engine.state.leases) == 0)
        await expect_two_loads(one, slow, call)
        assert await one.get("t", "k") == 2


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("how", ["task", "thread", "batch"])
async def test_invariant_1_nobody_joins_before_redis_has_said_that_the_lease_stands(
    url: str, raw: redis.Redis, how: str
) -> None:
    """Whoever comes between the announcement and the holder's answer asks, and learns of the delete."""
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        raw.delete(LEASE)
        await wait_until_async(lambda: one._engine.state.leases.doubted(b"magnus:t:k"))
        assert len(one._engine.state.leases) == 1
        match how:
            case "task":
                late: asyncio.Future[Any] = asyncio.create_task(one.get_or_set("t", "k", lambda: "new"))
            case "thread":
                late = asyncio.ensure_future(asyncio.to_thread(one.sync.get_or_set, "t", "k", lambda: "new"))
            case _:
                late = asyncio.create_task(one.get_or_set_many("t", ["k"], lambda keys: dict.fromkeys(keys, "new")))
        assert await asyncio.wait_for(late, 10) == ({"k": "new"} if how == "batch" else "new")
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") == "new"


@pytest.mark.usefixtures("unasked")
async def test_a_load_whose_lease_stands_is_joined_before_its_holder_knows(url: str) -> None:
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        announce(one, LEASE)
        late = [asyncio.create_task(one.get_or_set("t", "k", slow)) for _ in range(20)]
        await wait_until_async(lambda: one._engine.state.flights.joined == 20)
        slow.finish()
        assert (await call, await asyncio.gather(*late), slow.calls) == (1, [1] * 20, 1)


@pytest.mark.usefixtures("unasked")
async def test_who_cannot_be_told_whether_a_lease_stands_does_not_join(url: str, monkeypatch: Any) -> None:
    """Its own ACQ asks as well: it waits for the value of the lease's holder, and makes no second load."""
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        refuse_questions(monkeypatch)
        announce(one, LEASE)
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(one))
        assert one._engine.state.flights.joined == 0
        slow.finish()
        assert (await call, await late, slow.calls) == (1, 1, 1)


@pytest.mark.usefixtures("unasked")
async def test_many_who_cannot_be_told_whether_a_lease_stands_share_one_load(url: str, monkeypatch: Any) -> None:
    """None joins the load from before, and none puts aside the load that another of them has begun."""
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        refuse_questions(monkeypatch)
        announce(one, LEASE)
        late = [asyncio.create_task(one.get_or_set("t", "k", slow)) for _ in range(20)]
        # The first read leaves at once and the others together. So there may be a load for each of the two, as calls do
        # not join one that looked before they began; never one for each call.
        await wait_until_async(lambda: one._engine.state.flights.joined >= 18)
        slow.finish()
        assert (await call, await asyncio.gather(*late), slow.calls) == (1, [1] * 20, 1)


async def test_a_question_that_is_refused_detaches_the_load_and_keeps_its_lease(url: str, monkeypatch: Any) -> None:
    slow = Slow()
    async with fleet(url, 1, lease=60) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        await answered(one)
        refuse_questions(monkeypatch)
        announce(one, LEASE)
        await wait_until_async(lambda: not len(one._engine.state.flights))
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") == 1


@pytest.mark.parametrize("database", [0, 1])
async def test_invariant_3_a_flush_elsewhere_voids_no_lease(url: str, server: Any, database: int) -> None:
    """A flush is announced without its database: everybody asks about the leases they hold."""
    slow = Slow()
    async with fleet(url, 1, lease=60, max_staleness=60) as (one,):
        await one.set("t", "other", 1)
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        with redis.Redis(port=server.port, db=database) as client:
            client.flushdb()
        await wait_until_async(lambda: not near(one, "t", "other"))
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        if database:
            await wait_until_async(lambda: one._engine.state.flights.joined)
        else:
            await slow.begun(2)
        slow.finish()
        slow.finish(2)
        assert (await call, await late) == ((1, 1) if database else (1, 2))
        assert await one.get("t", "k") == (1 if database else 2)


# -- epochs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [EPOCH, b"magnus!epoch", b"magnus!tag:x"])
async def test_an_announced_epoch_that_has_not_risen_outdates_nothing(url: str, name: bytes) -> None:
    slow = Slow()
    async with fleet(url, 1) as (one,):
        await one.set("t", "near", "value", tags="x")
        await kept(one, "t", "near")
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        entry = one._engine.state.memory.hit(b"magnus:t:near")
        announce(one, name)
        assert name not in wire_of(one).known.current
        await answered(one)
        assert name in wire_of(one).known.current
        assert one._engine.state.memory.hit(b"magnus:t:near") is entry is not None
        late = asyncio.create_task(one.get_or_set("t", "k", slow))
        await wait_until_async(lambda: one._engine.state.flights.joined)
        slow.finish()
        assert (await call, await late, slow.calls) == (1, 1, 1)


@pytest.mark.parametrize("how", ["clear", "clear all", "tags", "lost"])
async def test_invariant_1_an_epoch_that_rose_outdates_what_it_is_about(url: str, raw: redis.Redis, how: str) -> None:
    # Such a long bound that no trust lapses by itself.
    async with fleet(url, 2, max_staleness=60) as (one, two):
        await one.set("t", "k", "value", tags="x")
        assert await two.get("t", "k") == "value"
        match how:
            case "clear":
                # Not what frees the memory afterwards: that removes the value, which is announced, too.
                await one._engine.state.replayer.bump([EPOCH])
            case "clear all":
                await one._engine.state.replayer.bump([b"magnus!epoch"])
            case "tags":
                await one.invalidate_tags("x")
            case _:
                raw.delete(EPOCH)
        await wait_until_async(lambda: not near(two, "t", "k"))
        assert await two.get("t", "k") is None


async def test_what_another_connection_learns_of_an_epoch_counts_for_all(url: str) -> None:
    """The second to hear of a clear finds its epoch known; what the first has learned is acted upon at once."""
    # So long a trust that it does not lapse meanwhile.
    async with fleet(url, 2, max_staleness=30) as (one, two):
        await one.set("t", "k", "value")
        assert await two.get("t", "k") == "value"
        wire = wire_of(two)
        # Its own connection hears of nothing, as if what is announced were still on its way.
        hear_of_nothing(wire)
        await one._engine.state.replayer.bump([EPOCH])
        assert near(two, "t", "k")
        assert await asyncio.to_thread(two.sync.get, "t", "unknown") is None
        assert not near(two, "t", "k")
        assert wire.up


@pytest.mark.usefixtures("unasked")
async def test_invariant_1_no_answer_extends_trust_past_an_open_question(url: str) -> None:
    """The staleness bound counts from before the announcement until it was followed up."""
    async with fleet(url, 1, max_staleness=30) as (one,):
        await one.set("t", "k", "value")
        await kept(one, "t", "k")
        wire = wire_of(one)
        before, confirmed = wire.trust.deadline, wire.known.confirmed
        announce(one, EPOCH)
        for _ in range(3):
            await wire.renew()
        assert wire.known.confirmed > confirmed
        assert wire.trust.deadline == before
        # Any answer to a read of it will do; and what is announced next counts from there.
        announce(one, b"magnus!epoch")
        first, second = (doubt.confirmed for doubt in wire.known.doubts.values())
        assert first == confirmed < second
        ask_for_epoch(wire, one, EPOCH)
        await all_answered(wire)
        assert wire.trust.deadline == second + 30
        ask_for_epoch(wire, one, b"magnus!epoch")
        await all_answered(wire)
        assert not wire.known.doubts
        await wire.renew()
        assert wire.trust.deadline == wire.known.confirmed + 30


@pytest.mark.usefixtures("unasked")
async def test_invariant_7_what_was_announced_and_not_followed_up_is_no_fallback(proxy: Proxy) -> None:
    """The connection that was to answer is lost: then the worst is assumed."""
    async with fleet(proxy.url, 1) as (one,):
        await one.set("t", "k", "value")
        await one.set("other", "k", "value")
        await kept(one, "t", "k")
        await kept(one, "other", "k")
        announce(one, EPOCH)
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        assert await one.get("t", "k") is None
        assert await one.get("other", "k") == "value"


async def test_an_epoch_that_cannot_be_read_again_counts_as_risen(url: str, monkeypatch: Any) -> None:
    from magnus_cache import CacheUnavailableError

    async with fleet(url, 1) as (one,):
        await one.set("t", "k", "value")

        def refused(*_: Any) -> None:
            raise CacheUnavailableError("overloaded", "too much at once")

        await kept(one, "t", "k")
        monkeypatch.setattr(Wire, "read", refused)
        announce(one, EPOCH)
        await wait_until_async(lambda: not near(one, "t", "k"))
        assert not wire_of(one).known.doubts


@pytest.mark.usefixtures("unasked")
async def test_invariant_1_nobody_joins_before_an_announced_epoch_is_read_again(url: str) -> None:
    slow = Slow()
    async with fleet(url, 2) as (one, two):
        await two.get("t", "x")
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        reads = one._engine.reads
        read, wire = reads.read, wire_of(one)

        async def overtaken(*args: Any, **more: Any) -> Any:
            # A clear completes, and is announced, between the sending of a read and its answer.
            found = await read(*args, **more)
            await two._engine.state.replayer.bump([EPOCH])
            await wait_until_async(lambda: EPOCH in wire.known.doubts)
            return found

        reads.read = overtaken  # type: ignore[method-assign]
        late = asyncio.create_task(one.get_or_set("t", "k", lambda: "new"))
        assert await asyncio.wait_for(late, 10) == "new"
        slow.finish()
        assert await call == 1


@pytest.mark.usefixtures("unasked")
async def test_invariant_1_who_came_after_an_announced_tag_is_not_given_an_older_load(url: str) -> None:
    """That it rose is learned later; it counts from when it was announced."""
    slow = Slow()
    async with fleet(url, 2) as (one, two):
        await two.get("t", "x")
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await slow.begun()
        await two.invalidate_tags("x")
        # By prefix, its first epoch was announced as well. So this alone does not say that the second was.
        await wait_until_async(lambda: b"magnus!tag:x" in wire_of(one).known.doubts)
        await one.get_stats()
        late = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await wait_until_async(lambda: one._engine.state.flights.joined)
        slow.finish()
        slow.finish(2)
        assert (await call, await late) == (1, 2)


async def test_an_announced_root_leaves_the_other_epochs_known_and_heard(url: str) -> None:
    """It tells databases apart: only if it is another one, the others may be, too."""
    async with fleet(url, 2, max_staleness=60) as (one, two):
        await one.set("t", "k", "value")
        await kept(one, "t", "k")
        await answered(one)
        known = wire_of(one).known
        announce(one, b"magnus!epoch")
        assert EPOCH in known.current
        await answered(one)
        assert {EPOCH, b"magnus!epoch"} <= known.current
        assert near(one, "t", "k")
        await connected(two)
        await two._engine.state.replayer.bump([EPOCH])
        await wait_until_async(lambda: not near(one, "t", "k"))
        await one.set("t", "k", "value")
        await kept(one, "t", "k")
        await answered(one)
        known.learned(b"magnus!epoch", known.marker_epoch + 1, wire_of(one).clock())
        assert EPOCH not in known.current
        # What is near stands on it all the same, until it is announced and read again.
        await two._engine.state.replayer.bump([EPOCH])
        await wait_until_async(lambda: not near(one, "t", "k"))


async def test_settled_takes_an_answer_that_an_announcement_has_followed(url: str) -> None:
    """Before a write, or a claim: what was answered after the call began is recent enough."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        state, wire = one._engine.state, wire_of(one)
        on_epoch_learned(state, lambda name: state.events.invalidated([name], wire))
        state.events.invalidated([EPOCH], wire)
        epoch_names = state.epochs.epoch_names("t")
        lowest_valid = await asyncio.wait_for(state.epoch_sync.settled(wire, epoch_names), 10)
        assert lowest_valid == max(state.epochs.latest(EPOCH), state.epochs.latest(state.epochs.root))
        assert state.epochs.lowest_valid(wire.known, epoch_names) is None
        assert await one.set("t", "k", 2)


# -- servers with too little room ---------------------------------------------------------------------------------


@asynccontextmanager
async def others_reading(url: str) -> AsyncIterator[None]:
    """Somebody else reads, all the time, more than the server can track."""
    async with AsyncCacheManager(redis_url=url) as other:

        async def read() -> None:
            number = 0
            while True:
                await other.get_many("bulk", [(number + more) % 500 for more in range(10)])
                number += 10
                await asyncio.sleep(0)

        reading = asyncio.create_task(read())
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.wait([reading])


@pytest.mark.parametrize("room", [1, 20, 100])
async def test_invariant_3_one_load_whatever_the_server_can_track(tight: Any, room: int) -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.4)
        return loads

    with redis.Redis(port=tight.port) as client:
        client.config_set("tracking-table-max-keys", room)
    async with fleet(tight.url, 2) as (one, two), others_reading(tight.url):
        calls = []
        for number in range(40):
            calls.append(asyncio.create_task((one, two)[number % 2].get_or_set("t", "k", load, tags="x")))
            await lapse_async(0.005)
        assert await asyncio.gather(*calls) == [1] * 40
        assert loads == 1
        assert await one.get("t", "k") == await two.get("t", "k") == 1


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_value_that_is_requested_with_its_epochs_comes_in_one_reply_with_them(
    url: str, raw: redis.Redis, size: int
) -> None:
    """However large values are, and even if nothing else waits: in between, the epochs might be announced again."""
    far = Namespace("far", l1=False)
    # So long that no heartbeat comes in between.
    async with fleet(url, 1, max_staleness=60) as (one,):
        await one.set(far, "k", bytes(size), tags="x")
        for _ in range(3):
            assert await one.get(far, "k") is not None
        reads = one._engine.reads
        before = raw.info("commandstats")
        entry = await reads.read(reads.ref(far, "k"), ("x",), again=True)
        after = raw.info("commandstats")
    assert entry is not None
    assert entry.size > size
    calls = [
        after.get(name, {"calls": 0})["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in ("cmdstat_mget", "cmdstat_get")
    ]
    assert calls == [1, 0]


async def test_every_operation_works_where_nothing_can_be_tracked(tight: Any) -> None:
    """Epochs and values are judged by one reply; what has been answered counts."""
    async with fleet(tight.url, 2) as (one, two), others_reading(tight.url):
        for number in range(20):
            assert await one.set("t", "k", number, tags="x")
            assert await two.get("t", "k") == number
            assert await two.touch("t", "k", 50)
            assert await two.get_or_set("t", "k", lambda: "loaded", tags="x") == number
            assert (await two.explain("t", "k")).epoch is not None
            assert await asyncio.to_thread(one.sync.get, "t", "k") == number
            await two.invalidate_tags("x")
            await wait_until_async(lambda: not near(one, "t", "k"))
            assert await one.get_or_set("t", "k", lambda: "loaded", tags="x") == "loaded"
            await one.set_many("t", {f"k{key}": number for key in range(300)})
            assert await two.get_many("t", [f"k{key}" for key in range(300)]) == {
                f"k{key}": number for key in range(300)
            }
            await two.clear("t")
            await wait_until_async(lambda: not near(one, "t", "k"))
            assert await one.get("t", "k") is None
        for manager in (one, two):
            assert (await manager.get_stats())["errors"] == {}


async def test_invariant_10_announcements_of_what_was_asked_are_no_circle(tight: Any) -> None:
    """A server that tracks one name announces each because of the next: questions come in growing intervals."""
    slow = Slow()
    async with fleet(tight.url, 2, lease=60, max_staleness=60) as (one, two):
        for number in range(50):
            await one.set("t", number, number, tags=f"tag{number}")
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        waiting = asyncio.create_task(two.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(two))

        def commands() -> int:
            with redis.Redis(port=tight.port) as client:
                return int(client.info("stats")["total_commands_processed"])

        # What begins is over by then; of what goes on, there is little.
        await lapse_async(0.5)
        before = commands()
        await nothing_happens_for_async(1.0)
        # In a tight circle it would be thousands.
        assert commands() - before < 500
        slow.finish()
        assert (await call, await waiting, slow.calls) == (1, 1, 1)


def test_a_pace_lets_the_first_questions_pass_and_slows_down_the_next() -> None:
    pace = Pace()
    assert [pace.delay(100.0) for _ in range(3)] == [0.0] * 3
    asked = 100.0
    for number in range(20):
        delay = pace.delay(asked)
        assert 0.005 * min(2**number, 25) <= delay <= LONGEST_PAUSE
        asked += delay
    pace.reset()
    assert pace.delay(asked) == 0.0
    for _ in range(5):
        pace.delay(asked)
    assert pace.delay(asked + 10) == 0.0
    assert all(0 < pause(count) <= LONGEST_PAUSE for count in (0, 1, 10, 10_000))


def test_a_pace_counts_from_the_last_question() -> None:
    pace = Pace(0.05)
    for _ in range(10):
        pace.delay(100.0)
    due = 100.0 + pace.delay(100.0)
    assert pace.delay(due) <= 0.05
    assert pace.delay(due + 0.3) == 0.0


# -- servers that announce nothing, or let nobody in -----------------------------------------------------------------


@pytest.fixture
def untracked(url: str, raw: redis.Redis) -> Iterator[str]:
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    yield url.replace("redis://", "redis://limited:pw@")
    raw.acl_deluser("limited")


async def test_without_tracking_a_waiter_looks_again_by_itself(untracked: str, raw: redis.Redis) -> None:
    """Nothing wakes it: it looks in growing intervals, and does not wait for the end of the lease."""
    slow = Slow()
    async with fleet(untracked, 2, lease=60.0) as (one, two):
        await asyncio.gather(one.get("t", "x"), two.get("t", "x"))
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        waiting = asyncio.create_task(two.get_or_set("t", "k", slow))
        await wait_until_async(lambda: waits_for_a_lease(two))

        def asked() -> int:
            return int(raw.info("commandstats")["cmdstat_evalsha"]["calls"])

        await lapse_async(0.5)
        before = asked()
        await nothing_happens_for_async(1.0)
        assert asked() - before < 20
        slow.finish()
        assert (await call, await asyncio.wait_for(waiting, 10), slow.calls) == (1, 1, 1)


GRANTS = re.compile(r"ACL SETUSER app on >password (.*)")


@pytest.mark.parametrize("database", [0, 3])
async def test_the_grants_of_the_page_are_enough_in_every_database(
    server: Any, raw: redis.Redis, database: int
) -> None:
    found = GRANTS.search(PAGES["deployment"].text)
    assert found is not None
    raw.execute_command("ACL", "SETUSER", "app", "reset", "on", ">password", *found[1].split())
    url = f"redis://app:password@127.0.0.1:{server.port}/{database}"
    slow = Slow()
    try:
        async with fleet(url, 2, lease=0.3) as (one, two):
            call = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
            await slow.begun()
            waiting = asyncio.create_task(two.get_or_set("t", "k", slow, tags="x"))
            await wait_until_async(lambda: waits_for_a_lease(two))
            announce(one, f"{{magnus:t:k}}:lease{'@3' if database else ''}".encode())
            # Long enough for a renewal of the lease.
            await lapse_async(0.2)
            slow.finish()
            assert (await call, await waiting, slow.calls) == (1, 1, 1)
            assert await two.touch("t", "k", 50)
            await one.invalidate_tags("x")
            await one.clear("t")
            await one.clear("t:k*")
            await one.set("t", "k", 1)
            assert await one.delete("t", "k")
            for manager in (one, two):
                stats = await manager.get_stats()
                assert stats["redis_available"]
                assert stats["errors"] == {}
    finally:
        raw.acl_deluser("app")


def test_a_server_that_lets_nobody_in_under_load_is_no_error_and_no_storm(private_server_with: Any) -> None:
    """With `maxclients` reached, callers of all loops and threads go on by themselves, and connect now and then."""
    server = private_server_with()
    near_by = Namespace("near_by", ttl=60)
    with redis.Redis(port=server.port) as client, CacheManager(redis_url=server.url) as cache:
        assert cache.set(near_by, "k", 1)
        client.config_set("maxclients", len(client.client_list()))
        rejected = int(client.info("stats")["rejected_connections"])
        over, found = threading.Event(), list[object]()

        def thread() -> None:
            while not over.is_set():
                found.append(cache.get_or_set(near_by, "k", lambda: 1))

        async def main() -> None:
            # Each loop wants a connection of its own, which it does not get.
            for number in range(200):
                found.append(await cache.aio.get_or_set(near_by, f"k{number % 5}", lambda: 1))
                await asyncio.sleep(0.005)

        threads = [threading.Thread(target=thread) for _ in range(2)]
        threads += [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads[2:]:
            each.join()
        over.set()
        for each in threads:
            each.join()
        assert set(found) == {1}
        assert int(client.info("stats")["rejected_connections"]) - rejected < 200
        client.config_set("maxclients", 100)
        assert cache.set(near_by, "k", 2)
        assert cache.get(near_by, "k") == 2
