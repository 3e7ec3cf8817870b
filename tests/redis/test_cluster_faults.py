"""What happens to a cluster while it is used: callers get no error, and nothing older than the bound."""

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from magnus_cache._engine.redis.slots import key_slot
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import EmbeddedCluster, ServerVersion
from tests.conftest import binary_of, kind_here
from tests.support.groups import anyio_backend, url_of
from tests.support.traffic import BOUND, KEYS, Traffic
from tests.support.wait import nothing_happens_for

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


def _first_slots(cluster: EmbeddedCluster) -> list[int]:
    """Return the slots of keys on the first primary."""
    slots = {key_slot(f"magnus:t:{key}".encode()) for key in KEYS}
    return sorted(slots & set(cluster.slots_of(cluster.primaries[0])))


def _migrate(cluster: EmbeddedCluster) -> None:
    for _ in range(2):
        for slot in _first_slots(cluster):
            cluster.migrate([slot], cluster.primaries[1])


def _migrate_by_half(cluster: EmbeddedCluster) -> None:
    """Some keys of each slot stay at the source for a while, the others are at the target."""
    migration = cluster.migration(_first_slots(cluster), cluster.primaries[1])
    migration.begin()
    migration.move_keys(len(KEYS) // 8)
    nothing_happens_for(4 * BOUND)
    migration.complete()


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
    began = monotonic()
    cluster.partition(primary)
    cluster.wait_for_primary(replica)
    nothing_happens_for(max(3 * BOUND, began + 7 - monotonic()))
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
    (_migrate_by_half, "valkey", {}),
    (_migrate_by_half, "redis", {}),
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
    (_add_and_remove, "redis", {}),
]


@pytest.mark.parametrize(
    ("fault", "kind", "options"),
    {
        name: pytest.param(fault, kind_here(kind), options, id=name)
        for fault, kind, options in _FAULTS
        for name in [f"{fault.__name__.strip('_')}-{kind_here(kind)}{'-reads' if options else ''}"]
    }.values(),
)
async def test_invariant_1_nothing_old_is_served_whatever_happens_to_the_cluster(
    private_cluster_with: Callable[..., EmbeddedCluster],
    fault: Callable[[EmbeddedCluster], None],
    kind: str,
    options: dict[str, str],
) -> None:
    version = ServerVersion.of(binary_of(kind))
    if fault is _migrate_atomically and not version.migrates_atomically:
        pytest.skip(f"{version} has no atomic migrations")
    linked = fault in {_cut_off, _delay_the_clock}
    cluster = private_cluster_with(3, 3, kind=kind, node_timeout=1.0, links=linked, **options)
    await Traffic(url_of(cluster)).during(asyncio.to_thread(fault, cluster))
