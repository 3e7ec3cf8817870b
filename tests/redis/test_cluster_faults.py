"""What happens to a cluster while it is used: callers get no error, and nothing older than the bound."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.redis.slots import key_slot
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import EmbeddedCluster, StalenessChecker
from tests.support.inside import state_of
from tests.support.wait import nothing_happens_for

pytestmark = pytest.mark.anyio

KEYS: Final = [f"k{number}" for number in range(60)]
BOUND: Final = 1.0

# While the cluster is away, each call asks the source: then no read is excused.
STRICT: Final = Namespace("t", offline=0)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One kind of loop: what is tested takes seconds, and does not depend on it."""
    kind: str = request.param
    return kind


class Traffic:
    """Writers and readers on caches of their own; the readers are judged by what the writers were told is done."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        url = "redis+cluster://" + ",".join(node.address for node in cluster.nodes)
        self.writer = AsyncCacheManager(redis_url=url)
        self.readers = [AsyncCacheManager(redis_url=url) for _ in range(2)]
        self.checker = StalenessChecker(BOUND)
        self.source = dict.fromkeys(KEYS, 0)
        self._untold: list[tuple[str, int]] = []
        self._over = False

    async def _changes(self) -> None:
        while not self._over:
            key = random.choice(KEYS)
            self.source[key] += 1
            version = self.source[key]
            if random.random() < 0.5:
                await self.writer.set(STRICT, key, version)
            else:
                await self.writer.delete(STRICT, key)
            self._done((key, version))
            await asyncio.sleep(0.002)

    async def _clears(self) -> None:
        while not self._over:
            await asyncio.sleep(0.5)
            for key in KEYS:
                self.source[key] += 1
            done = list(self.source.items())
            await self.writer.clear(STRICT)
            self._done(*done)

    def _done(self, *versions: tuple[str, int]) -> None:
        """Count changes as published once Redis was told of them."""
        self._untold += versions
        if not state_of(self.writer).outbox.pending:
            told, self._untold = self._untold, []
            for key, version in told:
                self.checker.published(key, version)

    async def _reads(self, cache: AsyncCacheManager) -> None:
        while not self._over:
            key = random.choice(KEYS)

            async def load(key: str = key) -> int:
                return self.source[key]

            began = monotonic()
            self.checker.read(key, await cache.get_or_set(STRICT, key, load), began)
            await asyncio.sleep(0)

    async def during(self, fault: Awaitable[object]) -> None:
        """Keep on while something happens to the cluster, and for a while after it."""
        async with self.writer, self.readers[0], self.readers[1], asyncio.TaskGroup() as group:
            for work in (self._changes(), self._clears(), *map(self._reads, self.readers)):
                group.create_task(work)
            await asyncio.sleep(0.5)
            await fault
            await asyncio.sleep(2 * BOUND)
            self._over = True
        assert self.checker.check().reads > 100
        assert not state_of(self.writer).outbox.pending


def _first_slots(cluster: EmbeddedCluster) -> list[int]:
    """Return the slots of keys on the first primary."""
    slots = {key_slot(f"magnus:t:{key}".encode()) for key in KEYS}
    return sorted(slots & set(cluster.slots_of(cluster.primaries[0])))


def _migrate(cluster: EmbeddedCluster) -> None:
    for _ in range(2):
        for slot in _first_slots(cluster):
            cluster.migrate([slot], cluster.primaries[1])


def _migrate_atomically(cluster: EmbeddedCluster) -> None:
    for _ in range(4):
        source, target, *_others = cluster.primaries
        cluster.migrate(sorted(cluster.slots_of(source))[:500], target, atomic=True)


def _give_away(cluster: EmbeddedCluster) -> None:
    cluster.give_away(_first_slots(cluster), cluster.primaries[1])


def _promote(cluster: EmbeddedCluster) -> None:
    cluster.promote(cluster.replicas_of(cluster.primaries[0])[0])


def _kill(cluster: EmbeddedCluster) -> None:
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    cluster.kill(primary)
    cluster.wait_for_primary(replica)


def _stop(cluster: EmbeddedCluster) -> None:
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    cluster.pause(primary)
    cluster.wait_for_primary(replica)
    cluster.resume(primary)


def _cut_off(cluster: EmbeddedCluster) -> None:
    """From all other nodes, while its clients still reach it."""
    primary = cluster.primaries[0]
    replica = cluster.replicas_of(primary)[0]
    cluster.partition(primary)
    cluster.wait_for_primary(replica)
    nothing_happens_for(3 * BOUND)
    cluster.heal()


def _delay_the_clock(cluster: EmbeddedCluster) -> None:
    cluster.delay(cluster.owner("magnus!clock"), 0.01)
    nothing_happens_for(2)


def _add_and_remove(cluster: EmbeddedCluster) -> None:
    node = cluster.add()
    cluster.migrate(sorted(cluster.slots_of(cluster.primaries[0]))[:300], node)
    cluster.remove(node)


_FAULTS: Final[list[tuple[Callable[[EmbeddedCluster], None], str, dict[str, str]]]] = [
    (_migrate, "valkey", {}),
    (_migrate, "redis", {}),
    (_migrate_atomically, "valkey", {}),
    (_give_away, "valkey", {}),
    (_give_away, "redis", {}),
    (_promote, "valkey", {}),
    (_promote, "redis", {}),
    (_kill, "valkey", {}),
    (_kill, "redis", {}),
    (_stop, "valkey", {}),
    (_cut_off, "valkey", {}),
    (_cut_off, "valkey", {"cluster_allow_reads_when_down": "yes"}),
    (_delay_the_clock, "valkey", {}),
    (_add_and_remove, "valkey", {}),
]


@pytest.mark.parametrize(
    ("fault", "kind", "options"),
    [
        pytest.param(fault, kind, options, id=f"{fault.__name__.strip('_')}-{kind}{'-reads' if options else ''}")
        for fault, kind, options in _FAULTS
    ],
)
async def test_invariant_1_nothing_old_is_served_whatever_happens_to_the_cluster(
    private_cluster_with: Callable[..., EmbeddedCluster],
    fault: Callable[[EmbeddedCluster], None],
    kind: str,
    options: dict[str, str],
) -> None:
    linked = fault in {_cut_off, _delay_the_clock}
    cluster = private_cluster_with(3, 3, kind=kind, node_timeout=1.0, links=linked, **options)
    await Traffic(cluster).during(asyncio.to_thread(fault, cluster))
