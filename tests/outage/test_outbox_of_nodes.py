"""What a node of a cluster has missed is told to it when it is back; the other nodes are told at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.coordination import node_replay
from magnus_cache._engine.outage.outbox import Outbox, Pending
from magnus_cache._engine.redis.partly_issued import PartlyIssuedError
from magnus_cache.errors import CacheUnavailableError
from magnus_cache.testing import EmbeddedCluster, ServerNode
from tests.outage.test_nodes_away import is_away, is_back, keys_on, three, two_caches
from tests.support.groups import anyio_backend, cache_of
from tests.support.inside import commands_owed, state_of
from tests.support.wait import wait_until_answered, wait_until_async

__all__ = ["anyio_backend", "three"]

pytestmark = pytest.mark.anyio

CLOCK = "magnus!clock"


def beside_the_clock(cluster: EmbeddedCluster) -> ServerNode:
    """Return a primary that does not have the clock of epochs."""
    return next(node for node in cluster.primaries if node != cluster.owner(CLOCK))


def waiting(cache: AsyncCacheManager) -> Pending:
    return state_of(cache).outbox.take()


async def settled(cache: AsyncCacheManager) -> None:
    await wait_until_async(lambda: not state_of(cache).outbox.pending, 20)


async def test_a_name_is_settled_by_its_own_node(three: EmbeddedCluster) -> None:
    gone, stays, _ = three.primaries
    here, there = keys_on(three, gone, 3), keys_on(three, stays, 3)
    async with two_caches(three) as (one, other):
        await other.set_many("t", dict.fromkeys([*here, *there], "old"))
        assert len(await one.get_many("t", [*here, *there])) == 6
        await asyncio.to_thread(three.pause, gone)
        await is_away(one, keys_on(three, gone, 4)[3])
        await one.delete_many("t", [*here, *there])
        assert await one.get_many("t", [*here, *there]) == {}
        # What is on the other node is gone there, and used again.
        await wait_until_async(lambda: set(waiting(one).names) == {f"magnus:t:{key}".encode() for key in here})
        assert await one.get_or_set("t", there[0], lambda: "new") == "new"
        assert await other.get("t", there[0]) == "new"
        # The other process has what it has read before, until the node says that it is gone.
        await asyncio.to_thread(three.resume, gone)
        await settled(one)
        await wait_until_answered(lambda: _has_none(other, here))
        assert await other.get("t", there[0]) == "new"


async def _has_none(cache: AsyncCacheManager, keys: list[str]) -> bool:
    return not await cache.get_many("t", keys)


@pytest.mark.parametrize("by", ["clear", "tag"])
async def test_invariant_5_a_clear_with_one_primary_down(three: EmbeddedCluster, by: str) -> None:
    """It is done here and at all other nodes at once, and at that one on its return."""
    gone = beside_the_clock(three)
    stays = next(node for node in three.primaries if node != gone)
    here, [*there, last] = keys_on(three, gone, 3), keys_on(three, stays, 4)
    async with two_caches(three) as (one, other):
        await other.set_many("t", dict.fromkeys([*here, *there], "old"), tags=["tag"])
        assert len(await one.get_many("t", [*here, *there])) == 6
        await asyncio.to_thread(three.pause, gone)
        await is_away(one, keys_on(three, gone, 4)[3])
        await (one.clear("t") if by == "clear" else one.invalidate_tags("tag"))
        assert await one.get_many("t", [*here, *there]) == {}
        await wait_until_answered(lambda: _has_none(other, there))
        # A value that is loaded from now on is stored, and stays valid.
        for key in there:
            assert await one.get_or_set("t", key, lambda: "new", tags=["tag"]) == "new"
        names = {key: f"magnus:t:{key}" for key in there}
        assert [stays.ask("EXISTS", name) for name in names.values()] == [1] * 3
        assert await other.get_many("t", there) == dict.fromkeys(there, "new")
        assert await one.get_many("t", there) == dict.fromkeys(there, "new")
        await other.set("t", last, "new", tags=["tag"])
        assert await one.get("t", last) == "new"
        record = waiting(one)
        assert len(record.prefixes if by == "clear" else record.tags) == 1
        await asyncio.to_thread(three.resume, gone)
        await settled(one)
        await wait_until_answered(lambda: _has_none(other, here))
        assert await one.get_many("t", [*here, *there]) == dict.fromkeys(there, "new")
        assert await other.get_many("t", there) == dict.fromkeys(there, "new")


async def test_invariant_5_a_clear_while_no_epoch_can_be_issued(three: EmbeddedCluster) -> None:
    """The clock is away: the namespace counts as invalid here until it is back, and everywhere from then on."""
    gone = three.owner(CLOCK)
    stays = next(node for node in three.primaries if node != gone)
    here, there = keys_on(three, gone, 3), keys_on(three, stays, 3)
    async with two_caches(three) as (one, other):
        await other.set_many("t", dict.fromkeys([*here, *there], "old"))
        await one.set("u", "kept", "kept")
        assert len(await one.get_many("t", [*here, *there])) == 6
        await asyncio.to_thread(three.pause, gone)
        await is_away(one, keys_on(three, gone, 4)[3])
        assert await one.clear("t") == 0
        assert await one.get_many("t", [*here, *there]) == {}
        assert await one.get_or_set("t", there[0], lambda: "new") == "new"
        await asyncio.to_thread(three.resume, gone)
        await is_back(one, here[0])
        await settled(one)
        await wait_until_answered(lambda: _has_none(other, [*here, *there]))
        assert await one.get("u", "kept") == "kept"


async def _load(cache: AsyncCacheManager, key: str, made: Callable[[], str]) -> object:
    return await cache.get_or_set("t", key, made, tags=["tag"])


async def _load_many(cache: AsyncCacheManager, key: str, made: Callable[[], str]) -> object:
    return await cache.get_or_set_many("t", [key], lambda missing: dict.fromkeys(missing, made()), tags=["tag"])


async def _set(cache: AsyncCacheManager, key: str, made: Callable[[], str]) -> object:
    return await cache.set("t", key, made(), tags=["tag"])


async def _set_many(cache: AsyncCacheManager, key: str, made: Callable[[], str]) -> object:
    return await cache.set_many("t", {key: made()}, tags=["tag"])


@pytest.mark.parametrize("store", [_load, _load_many, _set, _set_many])
async def test_invariant_2_a_tag_is_invalidated_while_no_epoch_can_be_issued_and_a_value_is_stored(
    three: EmbeddedCluster, store: Callable[..., Awaitable[object]]
) -> None:
    """The clock's node is away, another one stores the value: its answer comes after the invalidation."""
    gone = three.owner(CLOCK)
    stays = next(node for node in three.primaries if node != gone)
    (key,) = keys_on(three, stays, 1)
    async with cache_of(three, op_timeout=5.0) as cache:
        # So that all epochs are known.
        assert await _load(cache, key, lambda: "first") == "first"
        await cache.delete("t", key)
        three.kill(gone)
        await is_away(cache, keys_on(three, gone, 1)[0])
        wire = state_of(cache).topology.wire(f"magnus:t:{key}".encode())

        def made() -> str:
            # Nothing is asked of it from here on but to store the value.
            three.pause(stays)
            return "old"

        storing = asyncio.ensure_future(store(cache, key, made))
        try:
            await wait_until_async(lambda: bool({"FILL", "SET"}.intersection(commands_owed(wire))))
            await cache.invalidate_tags("tag")
            assert not storing.done()
        finally:
            three.resume(stays)
        await storing
        assert await _load(cache, key, lambda: "new") == "new"


async def test_invariant_7_a_round_that_fails_is_repeated_although_no_node_was_away(
    three: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_replay, "_LATER", 0.05)
    async with cache_of(three) as cache:
        state = state_of(cache)
        assert await _load(cache, "k", lambda: "old") == "old"
        issued, failures = state.client.issued, [CacheUnavailableError("lost", "the connection was replaced")] * 2

        async def replaced(known: int) -> Any:
            if failures:
                raise failures.pop()
            return await issued(known)

        monkeypatch.setattr(state.client, "issued", replaced)
        state.record_missed(lambda outbox: outbox.record_tags([state.epochs.tag_name("tag")]))
        await settled(cache)
        assert not failures
        assert await _load(cache, "k", lambda: "new") == "new"


# -- the outbox by itself -------------------------------------------------------------------------------------------


def outbox(**options: Any) -> Outbox:
    return Outbox(b"m:", part_of=lambda name: int(name[-1:]), **options)


def test_a_part_that_is_settled_is_not_covered() -> None:
    box = outbox()
    box.record_prefix(b"m:t:")
    box.record_tags([b"m!tag:x"])
    missed = box.take()
    box.issued(missed, 7)
    position = missed.prefixes[b"m:t:"]
    parts = box.parts_of("prefixes", b"m:t:", position)
    assert parts is not None
    assert parts.epoch == 7
    box.settled("prefixes", b"m:t:", parts, 1)
    assert not box.covers(b"m:t:key1")
    assert box.covers(b"m:t:key2")
    assert box.covers(b"m:u:key1", [b"m!tag:x"])
    assert not box.covers(b"m:u:key1")
    # Another clear is another record: nothing of it is settled.
    box.record_prefix(b"m:t:")
    assert box.covers(b"m:t:key1")
    box.settled("prefixes", b"m:t:", parts, 2)
    assert box.covers(b"m:t:key2")
    box.acknowledge(missed)
    assert box.covers(b"m:t:key1")
    assert not box.covers(b"m:u:key1", [b"m!tag:x"])


def test_a_record_knows_what_was_settled_before_it() -> None:
    box = outbox()
    error = PartlyIssuedError(CacheUnavailableError("down", "away"), [b"m!tag:x", b"other"], 9, [1, 2])
    box.record_tags([b"m!tag:x", b"m!tag:y"], error.issued)
    assert not box.covers(b"m:t:key1", [b"m!tag:x"])
    assert box.covers(b"m:t:key3", [b"m!tag:x"])
    assert box.covers(b"m:t:key1", [b"m!tag:y"])
    box.record_prefix(b"m:t:key", error.issued)
    # Not the whole namespace was cleared, which the record stands for.
    assert box.covers(b"m:t:key1")
    assert type(error.again()) is CacheUnavailableError


def test_only_what_was_recorded_after_a_position_is_taken() -> None:
    box = outbox()
    position = box.record([b"m:t:key1", b"m:t:key2"])
    box.record([b"m:t:key2"])
    box.record_prefix(b"m:u:")
    assert set(box.take(position).names) == {b"m:t:key2"}
    assert set(box.take(position).prefixes) == {b"m:u:"}
    assert set(box.take().names) == {b"m:t:key1", b"m:t:key2"}
