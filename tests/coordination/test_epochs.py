"""Epochs: namespaces, everything and tags are invalid for the whole fleet after one exchange, whatever happens."""

import asyncio
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, CacheUnavailableError
from magnus_cache._engine import codec
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.loading.acquire import _Acquisition
from magnus_cache._engine.redis import scripts
from magnus_cache.errors import CacheArgumentError
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import forget_epochs
from tests.support.loaders import Slow
from tests.support.rights import UNTRACKED
from tests.support.wait import lapse_async, wait_until_async

TRACKING = ("keys", "prefix")

pytestmark = pytest.mark.anyio


async def told(*managers: AsyncCacheManager) -> None:
    """Return when every announcement that was due has been handled: an answer on the same connection proves it."""
    await asyncio.gather(*(manager.get_stats() for manager in managers))


# -- namespaces and everything --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["t", "magnus:t:*", "magnus:*", "*"])
async def test_invariant_1_a_clear_reaches_every_near_cache(url: str, target: str) -> None:
    async with fleet(url, 3) as managers:
        one, *others = managers
        for manager in managers:
            await manager.set_many("t", {f"k{n}": n for n in range(20)})
        await asyncio.gather(*(manager.get_many("t", [f"k{n}" for n in range(20)]) for manager in managers))
        assert await one.clear(target) == 20
        await told(*others)
        for manager in managers:
            assert not near(manager, "t", "k3")
            assert await manager.get_many("t", [f"k{n}" for n in range(20)]) == {}


async def test_invariant_8_a_clear_touches_no_other_namespace(url: str) -> None:
    async with fleet(url) as (one, two):
        for namespace in ("t", "ta", "a", "t.t"):
            await one.set(namespace, "k", namespace)
        assert await two.clear("t") == 1
        await told(one)
        assert [await one.get(namespace, "k") for namespace in ("t", "ta", "a", "t.t")] == [None, "ta", "a", "t.t"]


async def test_cleared_values_are_invisible_before_they_are_gone(url: str, raw: redis.Redis) -> None:
    """The epoch is what counts: with UNLINK refused, nothing of what was cleared is served, and the clear ends."""
    raw.acl_setuser("keeper", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-unlink"])
    kept = url.replace("redis://", "redis://keeper:pw@")
    try:
        async with fleet(kept) as (one, two):
            await one.set_many("t", {f"k{n}": n for n in range(600)})
            await two.get_many("t", [f"k{n}" for n in range(600)])
            scans = raw.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
            # It ends, and does not try over and over.
            assert await one.clear("t") == 0
            assert raw.info("commandstats")["cmdstat_scan"]["calls"] - scans <= 2
            await told(two)
            assert raw.exists("magnus:t:k7")
            for manager in (one, two):
                assert await manager.get_many("t", [f"k{n}" for n in range(600)]) == {}
            await two.set("t", "k7", "new")
            assert await one.get("t", "k7") == "new"
    finally:
        raw.acl_deluser("keeper")


async def test_a_clear_that_redis_refuses_raises(url: str, raw: redis.Redis) -> None:
    raw.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-evalsha", "-eval"])
    try:
        async with fleet(url.replace("redis://", "redis://reader:pw@"), 1) as (one,):
            with pytest.raises(CacheUnavailableError, match="ACL"):
                await one.clear("t")
            with pytest.raises(CacheUnavailableError, match="ACL"):
                await one.invalidate_tags("a")
    finally:
        raw.acl_deluser("reader")


async def test_what_is_stored_after_a_clear_survives_its_reclaim(url: str, raw: redis.Redis) -> None:
    """Memory is freed by age, not by name: what was stored since the epoch stays."""
    async with fleet(url) as (one, two):
        await one.set("t", "old", 1)
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        epochs = one._engine.state.epochs
        epoch = await one._engine.state.replayer.bump([epochs.epoch_names("t").control])
        await told(two)
        await two.set("t", "new", 2)
        names = [b"magnus:t:old", b"magnus:t:new"]
        assert await wire.execute(scripts.reclaim(names, epoch)) == 1
        assert await one.get_many("t", ["old", "new"]) == {"new": 2}


async def test_a_missing_epoch_is_issued_anew(url: str, raw: redis.Redis) -> None:
    """Evicted, flushed or lost: missing means "everything before now is invalid", never "valid"."""
    async with fleet(url) as (one, two):
        await one.set("t", "k", "old")
        assert await two.get("t", "k") == "old"
        raw.delete("magnus!epoch:t")
        await told(one, two)
        assert await two.get("t", "k") is None
        assert raw.get("magnus!epoch:t")
        await two.set("t", "k", "new")
        assert await one.get("t", "k") == "new"


async def test_redis_behind_our_own_knowledge_is_corrected(url: str, raw: redis.Redis) -> None:
    """A failover that lost the last clear: whoever knows of it issues it again."""
    async with fleet(url) as (one, two):
        await one.set("t", "k", "old")
        stored = raw.get("magnus:t:k")
        before = raw.get("magnus!epoch:t")
        await one.clear("t")
        known = one._engine.state.epochs.latest(b"magnus!epoch:t")
        raw.set("magnus!epoch:t", before)
        raw.set("magnus!clock", before)
        raw.set("magnus:t:k", stored, px=60_000)
        await told(one, two)
        assert await one.get("t", "k") is None
        assert int(raw.get("magnus!epoch:t")) > known
        await told(two)
        assert await two.get("t", "k") is None


async def test_epochs_only_grow_whatever_the_servers_clock_does(url: str, raw: redis.Redis) -> None:
    """A hybrid clock, past whatever was issued and whatever the caller knows."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        wire = one._engine.state.topology.connection(b"")
        assert wire is not None
        future = 4_000_000_000_000_000
        raw.set("magnus!clock", str(future))
        epochs = [await one._engine.state.replayer.bump([b"magnus!epoch:t"]) for _ in range(3)]
        assert epochs == [future + 1, future + 2, future + 3]
        assert (
            await wire.execute(scripts.bump(one._engine.state.epochs.names, [b"magnus!epoch:u"], future + 50))
            == b"4000000000000051"
        )
        assert len(raw.get("magnus!clock")) == 16


async def test_an_epoch_that_is_no_number_is_replaced(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        for junk in ("", "x", "-5", "9" * 400, "9" * 16):
            raw.set("magnus!epoch:t", junk)
            await told(one)
            await one.set("t", "k", 2)
            assert await one.get("t", "k") == 2, junk
        raw.delete("magnus!epoch:t")
        raw.rpush("magnus!epoch:t", "a")
        await told(one)
        await one.set("t", "k", 3)
        assert await one.get("t", "k") == 3


async def test_invariant_2_the_epoch_is_captured_before_the_load(url: str) -> None:
    """Taken at its end, a load that a clear overtook would be stored as valid."""
    slow = Slow()
    async with fleet(url, 3) as (one, two, three):
        await asyncio.gather(one.get("t", "x"), two.get("t", "x"))
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        # The holder does not hear of it, so that it goes on to store its value.
        one._engine.state.leases.invalidated = lambda _: None  # type: ignore[method-assign]
        await two.clear("t")
        await told(one)
        slow.finish()
        assert await call == 1
        assert [await manager.get("t", "k") for manager in (one, two, three)] == [None, None, None]


async def test_a_lagging_process_is_only_too_careful(url: str) -> None:
    async with fleet(url) as (one, two):
        await one.set("a", "k", 1)
        await two.clear("b")
        # `one` has not heard of the namespace b at all, and still stores what is valid there.
        await one.set("b", "k", 2)
        assert await two.get("b", "k") == 2


async def test_without_tracking_a_clear_is_noticed_within_the_bound(url: str, raw: redis.Redis) -> None:
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    try:
        async with (
            fleet(url, 1) as (one,),
            fleet(url.replace("redis://", "redis://limited:pw@"), 1, max_staleness=0.1) as (limited,),
        ):
            await one.set_many("t", {"a": 1, "b": 2}, tags="x")
            assert await limited.get_many("t", ["a", "b"]) == {"a": 1, "b": 2}
            wire = one._engine.state.topology.connection(b"")
            assert wire is not None
            await one._engine.state.replayer.bump([b"magnus!epoch:t"])
            await lapse_async(0.12)
            assert await limited.get_many("t", ["a", "b"]) == {}
    finally:
        raw.acl_deluser("limited")


# -- tags -------------------------------------------------------------------------------------------------------


async def test_a_tag_invalidates_across_namespaces_and_processes(url: str) -> None:
    async with fleet(url, 3) as managers:
        one, two, three = managers
        await one.set("orders", 1, "o1", tags=["user:7", "orders"])
        await two.set("profiles", 7, "p7", tags="user:7")
        await three.set("profiles", 8, "p8", tags="user:8")
        for manager in managers:
            assert await manager.get("orders", 1) == "o1"
            assert await manager.get_many("profiles", [7, 8]) == {7: "p7", 8: "p8"}
        await one.invalidate_tags("user:7")
        await told(*managers)
        for manager in managers:
            assert await manager.get("orders", 1) is None
            assert await manager.get_many("profiles", [7, 8]) == {8: "p8"}
        await two.invalidate_tags("user:8", "orders")
        await told(*managers)
        assert await three.get("profiles", 8) is None


async def test_long_lived_values_do_not_escape_their_tag(url: str) -> None:
    """A tag has no members and no end of its own."""
    async with fleet(url) as (one, two):
        await one.set("t", "long", 1, ttl="1d", tags="x")
        await one.set("t", "short", 2, ttl=0.05, tags="x")
        await wait_until_async(lambda: not near(one, "t", "short"))
        await two.invalidate_tags("x")
        await told(one)
        assert await one.get("t", "long") is None


async def test_a_reader_that_never_met_a_tag_learns_of_it(url: str) -> None:
    async with fleet(url) as (one, two):
        await one.set("t", "k", 1, tags="x")
        await one.invalidate_tags("x")
        assert await two.get("t", "k") is None
        await one.set("t", "k", 2, tags="x")
        assert await two.get("t", "k") == 2
        assert near(two, "t", "k")


@pytest.mark.parametrize("tags", ["x", ("x", "y"), lambda value: [f"value:{value}", "x"]])
async def test_a_load_that_a_tag_invalidation_overtakes_serves_no_later_caller(url: str, tags: Any) -> None:
    """Also where the tags are only known when the load is done."""
    slow = Slow()
    async with fleet(url, 3) as (one, two, three):
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags=tags))
        await slow.begun()
        await two.invalidate_tags("x")
        await told(one)
        joined = asyncio.create_task(one.get_or_set("t", "k", slow, tags=tags))
        elsewhere = asyncio.create_task(three.get_or_set("t", "k", slow, tags=tags))
        await wait_until_async(lambda: one._engine.state.flights.joined == 1)
        slow.finish()
        assert await call == 1
        await slow.begun(2)
        slow.finish(2)
        assert (await joined, await elsewhere) == (2, 2)
        assert [await manager.get("t", "k") for manager in (one, two, three)] == [2, 2, 2]


async def test_tags_that_a_load_makes_cost_no_second_load(url: str) -> None:
    """Each value has a tag that nobody has seen before: one load each, kept near and for the others."""
    calls: list[int] = []
    async with fleet(url) as (one, two):
        for number in range(5):
            for manager in (one, two, one):

                async def load(number: int = number) -> int:
                    calls.append(number)
                    return number

                assert await manager.get_or_set("t", number, load, tags=lambda value: f"number:{value}") == number
        assert calls == list(range(5))
        await two.invalidate_tags("number:3")
        await told(one)
        assert await one.get_many("t", range(5)) == {0: 0, 1: 1, 2: 2, 4: 4}


async def test_a_new_tag_is_not_taken_for_old_when_its_guard_was_lost(url: str, raw: redis.Redis) -> None:
    """Guard and tag evicted after an invalidation that came during the load: nothing proves that the value is valid."""
    slow = Slow()
    async with fleet(url) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags=lambda _: "x"))
        await slow.begun()
        await two.invalidate_tags("x")
        raw.delete("magnus!tag:x", "magnus!guard")
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") is None
        assert await two.get("t", "k") is None


async def test_a_new_tag_whose_epoch_was_lost_is_caught_by_the_guard(url: str, raw: redis.Redis) -> None:
    slow = Slow()
    async with fleet(url) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags=lambda _: "x"))
        await slow.begun()
        await two.invalidate_tags("x")
        raw.delete("magnus!tag:x")
        slow.finish()
        assert await call == 1
        assert await two.get("t", "k") is None


async def test_an_own_tag_invalidation_counts_at_once(url: str) -> None:
    async with fleet(url, 1) as (one,):
        slow = Slow()
        call = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        await slow.begun()
        await one.invalidate_tags("x")
        late = asyncio.create_task(one.get_or_set("t", "k", slow, tags="x"))
        slow.finish()
        slow.finish(2)
        assert (await call, await late) == (1, 2)


async def test_decorated_functions_make_tags_of_their_arguments(url: str) -> None:
    async with fleet(url) as (one, two):
        calls: list[tuple[int, int]] = []

        @one.cached("orders", tags=("user:{user_id}", "year:{year}", "orders"))
        async def orders(user_id: int, year: int = 2025) -> list[int]:
            calls.append((user_id, year))
            return [user_id, year]

        for user in (1, 2):
            for year in (2024, 2025):
                await orders(user, year)
        await two.invalidate_tags("user:1")
        await told(one)
        for user in (1, 2):
            for year in (2024, 2025):
                assert await orders(user, year) == [user, year]
        assert calls[4:] == [(1, 2024), (1, 2025)]
        await two.invalidate_tags("year:2025")
        await told(one)
        await orders(1, 2025)
        await orders(2)
        assert calls[6:] == [(1, 2025), (2, 2025)]


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        (7, "not int"),
        ([7], "a tag is a str"),
        ("", "1 to 200"),
        ("x" * 201, "1 to 200"),
        (b"x", "not bytes"),
        ({"a": 1}, "not dict"),
        ([str(n) for n in range(256)], "at most 255"),
        ("\ud800", "surrogate"),
    ],
)
async def test_tags_that_cannot_be_meant(tags: Any, problem: str) -> None:
    with CacheManager(redis_enabled=False) as cache:
        for call in (
            lambda: cache.set("t", "k", 1, tags=tags),
            lambda: cache.set_many("t", {"k": 1}, tags=tags),
            lambda: cache.get_or_set("t", "k", lambda: 1, tags=tags),
            lambda: cache.cached("t", tags=tags),
        ):
            with pytest.raises(CacheArgumentError, match=problem) as caught:
                call()
            assert caught.value.argument == "tags"
        with pytest.raises(CacheArgumentError):

            @cache.cached("t", tags="user:{nobody}")
            def function(user: int) -> int:
                return user


async def test_tags_of_a_value_that_are_none_fail_the_load() -> None:
    with CacheManager(redis_enabled=False) as cache, pytest.raises(CacheArgumentError, match="tags"):
        cache.get_or_set("t", "k", lambda: 1, tags=lambda value: [value])


async def test_the_epochs_of_tags_and_namespaces_end_at_last(url: str, raw: redis.Redis) -> None:
    """There may be any number of tags and namespaces; a value of one whose epoch is gone is loaded anew."""
    async with fleet(url, 1) as (one,):
        await one.set("t", "a", 1, tags="set")
        await one.get_or_set("t", "b", lambda: 1, tags=lambda _: "made")
        await one.invalidate_tags("invalidated")
        for name in ("magnus!tag:set", "magnus!tag:made", "magnus!tag:invalidated", "magnus!epoch:t"):
            assert 0 < raw.pttl(name) <= scripts.EPOCH_LIFE
        for name in ("magnus!epoch", "magnus!clock", "magnus!guard"):
            assert raw.pttl(name) == -1
        raw.delete("magnus!tag:set")
        await told(one)
        assert await one.get("t", "a") is None


async def test_awkward_tags_stay_apart(url: str, raw: redis.Redis) -> None:
    async with fleet(url) as (one, two):
        tags = ["a b", "a\nb", "{a}", "ä", "a:b", "a%20b", "🎉", "*"]
        for tag in tags:
            await one.set("t", tag, 1, tags=tag)
        for gone, tag in enumerate(tags):
            await two.invalidate_tags(tag)
            await told(one)
            assert await one.get_many("t", tags) == dict.fromkeys(tags[gone + 1 :], 1)


# -- outages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["clear", "clear all", "tags", "glob"])
async def test_invariant_7_what_is_cleared_in_an_outage_never_comes_back(
    proxy: Any, server: Any, raw: redis.Redis, what: str
) -> None:
    async with fleet(server.url, 1) as (peer,), fleet(proxy.url, 1, op_timeout=0.2) as (one,):
        await one.set("t", "k", "old", tags="x")
        await one.set("u", "k", "kept", tags="y")
        await peer.get("t", "k")
        proxy.refuse()
        proxy.cut()
        await wait_until_async(lambda: not one._engine.state.reachable)
        match what:
            case "clear":
                assert await one.clear("t") == 0
            case "clear all":
                await one.clear("magnus:*")
            case "glob":
                await one.clear("t:k*")
            case _:
                await one.invalidate_tags("x")
        assert await one.get("t", "k") is None
        proxy.resume()
        await wait_until_async(lambda: one._engine.state.reachable)
        assert await one.get("t", "k") is None
        await wait_until_async(lambda: not one._engine.state.outbox.pending)
        await told(peer)
        assert await peer.get("t", "k") is None
        assert await one.get("t", "k") is None
        assert await one.get("u", "k") == (None if what == "clear all" else "kept")


# -- the process's knowledge --------------------------------------------------------------------------------------


def test_the_memory_of_epochs_is_bounded() -> None:
    """Invariant 10: every queue has a bound, also that of tags ever seen; what is forgotten is asked for again."""
    epochs = Epochs(Keyspace("magnus"))
    known = KnownEpochs()
    epoch_names = epochs.epoch_names("t")
    for name in (epochs.root, epoch_names.control):
        epochs.seen(name, 5)
        known.current.add(name)
    assert epochs.lowest_valid(known, epoch_names) == 5
    for number in range(110_000):
        name = epochs.tag_name(f"tag{number}")
        epochs.seen(name, 10 + number)
        known.current.add(name)
    assert len(epochs._latest) <= 100_000
    assert epochs.lowest_valid(known, epoch_names) is None
    assert set(epochs.missing(known, epoch_names)) == {epochs.root, epoch_names.control}
    assert epochs.highest == 110_009


def test_what_was_invalidated_long_ago_counts_as_overtaken() -> None:
    epochs = Epochs(Keyspace("magnus"))
    since = epochs.moment()
    for number in range(5_000):
        epochs.invalidated([b"magnus!tag:%d" % number])
    assert epochs.overtaken(["4999"], since)
    assert epochs.overtaken(["0"], since)
    assert epochs.overtaken(["never"], since)
    assert not epochs.overtaken([], since)
    assert not epochs.overtaken(["4999"], epochs.moment())


async def test_a_value_of_an_older_epoch_is_a_miss(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        epoch = int(raw.get("magnus!epoch:t"))
        for given, expected in ((epoch, 7), (epoch - 1, None), (epoch + 1, 7)):
            value = envelope.pack(codec.encode(7), version=1, fresh_until=2**62, epoch=given)
            raw.set("magnus:t:k", value)
            await told(one)
            assert await one.get("t", "k") == expected


async def test_epochs_that_were_forgotten_are_asked_for_again(url: str) -> None:
    async with fleet(url, 1) as (one,):
        await one.set("t", "k", 1)
        state = one._engine.state
        for forget in (lambda: forget_epochs(state), lambda: state.memory.clear(b"")):
            forget()
            state.memory.clear(b"")
            assert await one.get("t", "k") == 1
        forget_epochs(state)
        assert await one.set("t", "k", 2)
        forget_epochs(state)
        state.memory.clear(b"")
        assert await one.get_or_set("t", "k", lambda: 3) == 2
        assert await one.get_or_set("t", "other", lambda: 3) == 3


@pytest.mark.tracking("keys")
async def test_an_epoch_that_comes_with_the_lease_counts_for_the_load(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 3: loaded under an older one, the value would be none to anybody, and be loaded again by all."""
    answered = _Acquisition._on_reply

    def with_an_epoch(self: _Acquisition, *args: Any) -> Any:
        fence = answered(self, *args)
        epochs, control = self._state.epochs, self._request.ref.epoch_names.control
        epochs.seen(control, epochs.highest + 1)
        self._wire.known.current.add(control)
        return fence

    async with AsyncCacheManager(redis_url=url) as cache:
        monkeypatch.setattr(_Acquisition, "_on_reply", with_an_epoch)
        assert await cache.get_or_set("t", "k", lambda: 1) == 1
        stored = raw.get("magnus:t:k")
        assert isinstance(stored, bytes)
        assert envelope.read_header(stored).epoch == cache._engine.state.epochs.highest
