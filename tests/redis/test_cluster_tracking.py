"""A cluster whose nodes can track hardly anything: values and the epochs that judge them come in separate replies."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.coherence.epoch_names import EpochNames
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis.exchange import IGNORED, ReadBatch
from magnus_cache._engine.redis.requests import Read
from magnus_cache.testing import EmbeddedCluster
from tests.coordination.test_announcements import others_reading
from tests.support.fleet_of_managers import fleet, near
from tests.support.groups import url_of
from tests.support.guards import nothing
from tests.support.inside import answer_with, expect_answers, hear, is_quiet, push, state_of
from tests.support.wait import lapse_async, wait_until_async

pytestmark = pytest.mark.anyio

_MOST = 1_000_000


class Wanted(NamedTuple):
    name: bytes
    epoch_names: EpochNames


class Receiver:
    """Notes what it gets."""

    def __init__(self, seen: list[object]) -> None:
        self._seen = seen

    def received(self, _batch: object, part: slice, values: Sequence[bytes | None], *_: object) -> None:
        self._seen += values[part]

    def unanswered(self, *_: object) -> None:
        raise AssertionError("all are answered")


@pytest.fixture
def tight(cluster: EmbeddedCluster) -> Iterator[str]:
    """The URL of a cluster each of whose nodes tracks a single name."""
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "tracking-table-max-keys", 1)
    yield url_of(cluster)
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "tracking-table-max-keys", _MOST)


def has_heard(cache: AsyncCacheManager, other: AsyncCacheManager, key: str) -> bool:
    """Whether a cache knows the epochs of a value that another one knows, or will ask for them.

    A value that is stored before counts as invalid: a process that lags behind is only too careful.
    """
    name = f"magnus:t:{key}".encode()
    epochs, others = state_of(cache).epochs, state_of(other).epochs
    names = epochs.names_for("t", name)
    known, now = state_of(cache).client.current_connection(name).known, state_of(cache).clock()
    return all(
        each not in known.current or known.lent.get(each, now + 1) <= now or epochs.latest(each) >= others.latest(each)
        for each in (names.root, names.control, epochs.tag_name_for("x", name))
    )


async def test_every_operation_works_where_no_node_can_track_anything(tight: str) -> None:
    """What was answered after the request began counts, whatever was announced since."""
    async with fleet(tight, 2) as (one, two), others_reading(tight):
        for number in range(10):
            key = f"k{number}"
            await wait_until_async(lambda key=key: has_heard(one, two, key))
            assert await one.set("t", key, number, tags="x")
            assert await two.get("t", key) == number
            assert await two.touch("t", key, 50)
            assert await two.get_or_set("t", key, lambda: "loaded", tags="x") == number
            assert (await two.explain("t", key)).epoch is not None
            assert await asyncio.to_thread(one.sync.get, "t", key) == number
            await two.invalidate_tags("x")
            await wait_until_async(lambda key=key: not near(one, "t", key) and has_heard(one, two, key))
            assert await one.get_or_set("t", key, lambda: "loaded", tags="x") == "loaded"
            await two.set_many("t", {f"m{place}": number for place in range(100)})
            assert await one.get_many("t", [f"m{place}" for place in range(100)]) == {
                f"m{place}": number for place in range(100)
            }
            await two.clear("t")
            await wait_until_async(lambda key=key: not near(one, "t", key))
            assert await one.get("t", key) is None
        for manager in (one, two):
            assert (await manager.get_stats())["errors"] == {}


@pytest.mark.parametrize("room", [1, 20])
async def test_invariant_3_one_load_whatever_the_nodes_can_track(
    tight: str, cluster: EmbeddedCluster, room: int
) -> None:
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.1)
        return loads

    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "tracking-table-max-keys", room)
    async with fleet(tight, 2) as (one, two), others_reading(tight):
        calls = []
        for number in range(40):
            calls.append(asyncio.create_task((one, two)[number % 2].get_or_set("t", "k", load, tags="x")))
            await lapse_async(0.005)
        assert await asyncio.gather(*calls) == [1] * 40
        assert loads == 1
        assert await one.get("t", "k") == await two.get("t", "k") == 1


async def test_invariant_1_an_announcement_is_handled_after_what_was_answered_before_it(
    cluster: EmbeddedCluster,
) -> None:
    """Of GETs that were sent together as well: an epoch that rose in between would count as read since."""
    async with AsyncCacheManager(redis_url=f"redis+cluster://{cluster.primaries[0].address}") as cache:
        await cache.get("t", "k")
        topology: Any = state_of(cache).topology
        wire = topology.wire(b"magnus:t:k")
        await wait_until_async(lambda: is_quiet(wire))
        seen: list[object] = []

        def received(raw: bytes | None, _connection: object, _sent: float) -> None:
            seen.append(raw)

        batch = ReadBatch(Receiver(seen))
        for number in range(3):
            batch.add(Wanted(b"v%d" % number, EpochNames(Keyspace(), "t")), None, IGNORED)
        hear(wire, seen)
        expect_answers(wire, Read(b"a", received, IGNORED), batch, Read(b"b", received, IGNORED))
        answers: list[Any] = [b"1", b"2", ["x"], b"3", ["y", "z"], b"4", b"5"]
        for answer in answers:
            if isinstance(answer, list):
                await push(wire, [b"invalidate", answer])
            else:
                answer_with(wire, answer)
        assert seen == answers


async def test_what_is_judged_by_epochs_in_doubt_is_served_and_not_kept(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncCacheManager(redis_url=f"redis+cluster://{cluster.primaries[0].address}") as cache:
        await cache.set("t", "k", "value")
        state = state_of(cache)
        state.memory.invalidate(b"magnus:t:k")
        monkeypatch.setattr(state.epochs, "lowest_valid", nothing)  # as if each was announced again at once
        assert await cache.get("t", "k") == "value"
        assert await cache.get_or_set("t", "k", lambda: "loaded") == "value"
        assert not near(cache, "t", "k")


async def test_invariant_7_epochs_of_one_connection_judge_no_value_of_another(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may be another one, which lacks writes."""
    async with AsyncCacheManager(redis_url=f"redis+cluster://{cluster.primaries[0].address}") as cache:
        await cache.set("t", "k", "value")
        state = state_of(cache)
        state.memory.invalidate(b"magnus:t:k")
        wire = state.client.current_connection(b"magnus:t:k")
        answered = state.epoch_sync.answered

        async def and_then_it_is_another_one(*args: Any) -> None:
            await answered(*args)
            wire.known = KnownEpochs(state.epochs.root, wire.known.confirmed)

        monkeypatch.setattr(state.epochs, "lowest_valid", nothing)
        monkeypatch.setattr(state.epoch_sync, "answered", and_then_it_is_another_one)
        assert await cache.get("t", "k") is None
