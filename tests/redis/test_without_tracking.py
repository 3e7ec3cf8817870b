"""Where Redis announces no change, refused or not asked to, the staleness bound holds all the same, and once."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import virtual_clock
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import all_answered
from tests.support.rights import UNTRACKED

TRACKING = ("keys", "prefix", "off")

pytestmark = pytest.mark.anyio

BOUND = 10.0
"""Long enough for a busy machine; the clock is the test's."""


@pytest.fixture
def limited(url: str, raw: redis.Redis) -> Iterator[str]:
    raw.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
    yield url.replace("redis://", "redis://limited:pw@")
    raw.acl_deluser("limited")


async def invalidate(writer: AsyncCacheManager, how: str) -> None:
    """Invalidate by epochs alone: what is removed besides would be missed in Redis."""
    state = writer._engine.state
    wire = state.topology.connection(b"")
    assert wire is not None
    name = {"tag": b"magnus!tag:x", "namespace": b"magnus!epoch:t", "everything": b"magnus!epoch"}[how]
    await state.replayer.bump((name,))


@pytest.mark.parametrize("how", ["tag", "namespace", "everything"])
@pytest.mark.parametrize("read", [0.0, 0.4, 0.6, 0.95])
async def test_invariant_1_epochs_and_values_do_not_add_up(url: str, limited: str, how: str, read: float) -> None:
    """The epochs are read; then comes the invalidation; then a value is read, at some part of the bound."""
    with virtual_clock() as clock:
        async with (
            fleet(url, 1, max_staleness=BOUND) as (writer,),
            fleet(limited, 1, max_staleness=BOUND) as (reader,),
        ):
            await writer.set_many("t", {"a": "old", "b": "old"}, tags="x")
            assert await reader.get("t", "a") == "old"
            await invalidate(writer, how)
            clock.advance(read * BOUND)
            assert await reader.get("t", "b") in {None, "old"}
            clock.advance((1 - read) * BOUND)
            assert not near(reader, "t", "a")
            assert not near(reader, "t", "b")
            assert await reader.get_many("t", ["a", "b"]) == {}
            assert await reader.ttl("t", "b") is None


async def test_a_value_is_kept_for_half_of_the_bound_at_least(url: str, limited: str) -> None:
    """However old the epochs are when it is read."""
    with virtual_clock() as clock:
        async with fleet(limited, 1, max_staleness=BOUND) as (reader,):
            await reader.set("t", "k", 1)
            for _ in range(7):
                clock.advance(0.13 * BOUND)
                await reader.set("t", "k", 1)
                clock.advance(0.45 * BOUND)
                assert near(reader, "t", "k")


async def test_what_was_asked_before_counts_for_nothing(url: str, limited: str) -> None:
    """An epoch that was asked for before the others lapsed, and is told late."""
    with virtual_clock() as clock:
        async with fleet(limited, 1, max_staleness=BOUND) as (reader,):
            await reader.set("t", "k", 1)
            epochs, wire = reader._engine.reads.epoch_sync, reader._engine.state.topology.connection(b"")
            assert wire is not None
            epoch_names = reader._engine.state.epochs.epoch_names("t")
            asked = clock()
            clock.advance(BOUND)
            epochs.prepare(wire, epoch_names)
            epoch = reader._engine.state.epochs.latest(epoch_names.control)
            wire.known.learned(epoch_names.control, epoch, asked)
            assert epoch_names.control not in wire.known.current
            await all_answered(wire)
            assert epoch_names.control in wire.known.current


async def test_invariant_1_what_a_full_server_invalidates_is_invalid_on_all_loops(
    private_server_with: Callable[..., EmbeddedServer],
) -> None:
    """Without memory for a new epoch, the old one is removed: no loop of the process judges by it any longer."""
    server = private_server_with()
    with redis.Redis(port=server.port, protocol=2) as admin, virtual_clock():
        admin.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=UNTRACKED)
        limited = server.url.replace("redis://", "redis://limited:pw@")
        async with fleet(limited, 1, max_staleness=BOUND) as (cache,):
            await cache.set("t", "k", "old", tags="x")
            assert await cache.get("t", "k") == "old"
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", 1)

            async def elsewhere() -> Any:
                await cache.invalidate_tags("x")
                return await cache.get("t", "k")

            assert await asyncio.to_thread(asyncio.run, elsewhere()) is None
            assert await cache.get("t", "k") is None
            admin.config_set("maxmemory", 0)
            assert await cache.get("t", "k") is None
