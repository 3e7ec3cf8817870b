"""Databases of one server that share a prefix: what happens in one is no news in the other."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.coherence.epochs import ControlNames, Epochs
from magnus_cache._engine.keys.names import Keyspace, lease_name, value_name
from magnus_cache._engine.outage.outbox import Outbox
from tests.support.fleet_of_managers import fleet, near
from tests.support.loaders import Slow
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
def third(url: str) -> str:
    """The URL of database 3 of the same server."""
    return url.rsplit("/", 1)[0] + "/3"


@pytest.fixture
def raw_third(server: Any) -> Iterator[redis.Redis]:
    """A plain client of database 3."""
    with redis.Redis(port=server.port, db=3, protocol=2) as client:
        yield client


def test_leases_and_control_keys_carry_the_number_of_their_database() -> None:
    space, epochs = Keyspace("magnus", 3), Epochs(Keyspace("magnus", 3))
    assert lease_name(b"magnus:t:k", 3) == b"{magnus:t:k}:lease@3"
    names = ControlNames(space)
    assert [names.clock, names.guard, names.server, names.root] == [
        b"magnus!clock@3", b"magnus!guard@3", b"magnus!server@3", b"magnus!epoch@3",
    ]  # fmt: skip
    assert epochs.epoch_names("t").control == b"magnus!epoch@3:t"
    assert epochs.tag_name("a b") == b"magnus!tag@3:a%20b"
    assert names.bucket(epochs.tag_name("x")).isdigit()
    assert not names.bucket(b"magnus!tag:x").isdigit()
    assert epochs.prefix_of(b"magnus!epoch@3") == epochs.prefix_of(b"magnus!epoch@3:forgotten") == b"magnus:"


@pytest.mark.parametrize("database", [0, 3, 17])
def test_a_lease_tells_its_value(database: int) -> None:
    for key in ("k", "a@3", "x:lease", "}", "lease@3", ("a", "}:lease@3")):
        name = Keyspace("magnus").value_name("t", key)
        assert value_name(lease_name(name, database)) == name


def test_names_of_database_0_are_those_of_before() -> None:
    assert lease_name(b"magnus:t:k", 0) == lease_name(b"magnus:t:k") == b"{magnus:t:k}:lease"
    names = ControlNames(Keyspace("magnus", 0))
    assert [names.clock, names.root] == [b"magnus!clock", b"magnus!epoch"]
    assert Keyspace("magnus", 3).value_name("t", "k") == Keyspace("magnus").value_name("t", "k")


def test_a_journal_takes_the_tags_of_its_own_database() -> None:
    outbox = Outbox(b"magnus:", tags=Epochs(Keyspace("magnus", 3)).names.tags)
    assert outbox.fits("tags", b"magnus!tag@3:x")
    assert not outbox.fits("tags", b"magnus!tag:x")


async def test_all_names_in_redis_are_those_of_the_database(third: str, raw: redis.Redis, raw_third: Any) -> None:
    slow = Slow()
    async with fleet(third, 1) as (cache,):
        call = asyncio.create_task(cache.get_or_set("t", "k", slow, tags=("x",)))
        await slow.begun()
        assert raw_third.exists("{magnus:t:k}:lease@3")
        explained = await cache.explain("t", "k")
        assert explained.lease_holder is not None
        slow.finish()
        await call
        await cache.clear("t")
        await cache.invalidate_tags("x")
        await cache.set("t", "k", 1)
        names = set(raw_third.scan_iter("*"))
        assert names == {
            b"magnus!clock@3", b"magnus!guard@3", b"magnus!server@3", b"magnus!epoch@3", b"magnus!epoch@3:t",
            b"magnus!tag@3:x", b"magnus:t:k",
        }  # fmt: skip
        assert raw.dbsize() == 0


@pytest.mark.parametrize("how", ["delete", "set", "clear", "clear all", "clear glob", "refresh"])
async def test_invariant_2_a_load_of_any_database_that_is_overtaken_is_stored_nowhere(third: str, how: str) -> None:
    """Every command that voids a lease knows the lease's name in its own database."""
    slow = Slow()
    async with fleet(third, 2) as (one, two):
        await asyncio.gather(one.get("t", "k"), two.get("t", "k"))

        @two.cached("t", key="k")
        async def cached() -> str:
            return "newer"

        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        match how:
            case "delete":
                await two.delete("t", "k")
            case "set":
                await two.set("t", "k", "newer")
            case "clear":
                await two.clear("t")
            case "clear all":
                await two.clear("magnus:*")
            case "clear glob":
                await two.clear("t:k*")
            case _:
                await cached.refresh()
        slow.finish()
        assert await call == 1
        expected = "newer" if how in ("set", "refresh") else None
        assert [await manager.get("t", "k") for manager in (two, one)] == [expected] * 2


async def test_a_lease_of_any_database_is_renewed_and_given_back(third: str, raw_third: Any) -> None:
    slow = Slow()
    async with fleet(third, 1, lease=0.3) as (one,):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        token = raw_third.get("{magnus:t:k}:lease@3")
        await wait_until_async(lambda: raw_third.info("commandstats").get("cmdstat_pexpire", {"calls": 0})["calls"] > 2)
        assert raw_third.get("{magnus:t:k}:lease@3") == token
        call.cancel()
        await asyncio.wait([call])
        await wait_until_async(lambda: not raw_third.exists("{magnus:t:k}:lease@3"))


@pytest.mark.parametrize("overlap", [False, True])
async def test_invariant_3_the_loads_of_another_database_are_its_own(url: str, third: str, overlap: bool) -> None:
    """One load a database, however many load the same key in the other; and each database has its own value."""
    loads = {"here": 0, "there": 0}
    async with AsyncCacheManager(redis_url=url) as here, AsyncCacheManager(redis_url=third) as there:
        await asyncio.gather(here.get("t", "x"), there.get("t", "x"))

        async def crowd(cache: AsyncCacheManager, who: str) -> list[str]:
            async def load() -> str:
                loads[who] += 1
                await asyncio.sleep(0.1)
                return who

            calls = []
            for _ in range(20):
                calls.append(asyncio.create_task(cache.get_or_set("t", "k", load)))
                await asyncio.sleep(0.01)
            return await asyncio.gather(*calls)

        jobs = [crowd(here, "here"), *([crowd(there, "there")] if overlap else [])]
        found = await asyncio.gather(*jobs)
        assert found == [["here"] * 20, *([["there"] * 20] if overlap else [])]
        assert loads == {"here": 1, "there": int(overlap)}
        assert await here.get("t", "k") == "here"
        assert await there.get("t", "k") == ("there" if overlap else None)


async def test_a_clear_of_another_database_leaves_what_is_near(url: str, third: str) -> None:
    """Neither its epochs, nor its tags, nor its clock bear the names of ours."""
    async with fleet(url, 1) as (here,), fleet(third, 1) as (there,):
        await here.set("t", "k", "value", tags="x")
        await there.set("t", "other", 1, tags="x")
        await there.clear("t")
        await there.clear("magnus:*")
        await there.invalidate_tags("x")
        await here.get_stats()
        assert near(here, "t", "k")
        assert await here.get("t", "k") == "value"
