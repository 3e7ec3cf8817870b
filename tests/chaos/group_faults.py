"""The faults of clusters and Sentinel sets. Each has healed when it returns; what it does is real."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, NamedTuple

from magnus_cache._engine.redis.slots import key_slot
from magnus_cache.testing import EmbeddedCluster, ServerNode
from tests.chaos.load import KEYS
from tests.chaos.world import GroupWorld

__all__ = ["GROUP_FAULTS", "GroupFault"]

_Strike = Callable[[GroupWorld, float], None]


class GroupFault(NamedTuple):
    """What happens, and to servers of which kind."""

    of: Literal["cluster", "sentinel"]
    strike: _Strike


GROUP_FAULTS: Final[dict[str, GroupFault]] = {}


def fault(of: Literal["cluster", "sentinel"], name: str) -> Callable[[_Strike], _Strike]:
    def register(strike: _Strike) -> _Strike:
        GROUP_FAULTS[f"{of}: {name}"] = GroupFault(of, strike)
        return strike

    return register


def _first(world: GroupWorld) -> tuple[ServerNode, ServerNode]:
    """Return a primary of a cluster, and its replica."""
    primary = world.cluster.primaries[0]
    return primary, world.cluster.replicas_of(primary)[0]


# -- of both kinds ----------------------------------------------------------------------------------------------------


def _failing(world: GroupWorld) -> tuple[ServerNode, Callable[[], object]]:
    """Return a primary, and what returns once another server has taken its place."""
    if isinstance(world.group, EmbeddedCluster):
        primary, replica = _first(world)
        return primary, partial(world.cluster.wait_for_primary, replica)
    primary = world.sentinels.primary
    return primary, partial(world.sentinels.wait_for_failover, primary)


@fault("cluster", "primary killed")
@fault("sentinel", "primary killed")
def _(world: GroupWorld, seconds: float) -> None:
    primary, wait_for_another = _failing(world)
    world.group.kill(primary)
    wait_for_another()
    time.sleep(seconds)
    world.group.restart(primary)


@fault("cluster", "primary stopped")
@fault("sentinel", "primary stopped")
def _(world: GroupWorld, seconds: float) -> None:
    primary, wait_for_another = _failing(world)
    world.group.pause(primary)
    wait_for_another()
    world.group.resume(primary)
    time.sleep(seconds)


@fault("cluster", "primary cut off")
@fault("sentinel", "primary cut off")
def _(world: GroupWorld, seconds: float) -> None:
    # From the other nodes; its clients still reach it.
    primary, wait_for_another = _failing(world)
    world.group.partition(primary)
    wait_for_another()
    time.sleep(seconds)
    world.group.heal()


# -- a cluster --------------------------------------------------------------------------------------------------------


@fault("cluster", "no answers from a primary")
def _(world: GroupWorld, seconds: float) -> None:
    # To its clients alone: nothing is promoted.
    primary, _ = _first(world)
    world.cluster.cut(primary)
    time.sleep(seconds)
    world.cluster.heal()


@fault("cluster", "planned failover")
def _(world: GroupWorld, seconds: float) -> None:
    _, replica = _first(world)
    world.cluster.promote(replica)
    time.sleep(seconds)


@fault("cluster", "slots migrated")
def _(world: GroupWorld, seconds: float) -> None:
    end = time.monotonic() + seconds
    for slot in _slots(world):
        if time.monotonic() > end:
            break
        world.cluster.migrate([slot], world.cluster.primaries[1])


@fault("cluster", "slots given away")
def _(world: GroupWorld, seconds: float) -> None:
    world.cluster.give_away(_slots(world), world.cluster.primaries[1])
    time.sleep(seconds)


@fault("cluster", "node added and removed")
def _(world: GroupWorld, seconds: float) -> None:
    node = world.cluster.add()
    world.cluster.migrate(_slots(world)[:10], node)
    time.sleep(seconds)
    world.cluster.remove(node)


def _slots(world: GroupWorld) -> list[int]:
    """Return the slots of keys on the first primary."""
    slots = {key_slot(f"magnus:strict-chaos:{key}".encode()) for key in KEYS}
    return sorted(slots & set(world.cluster.slots_of(world.cluster.primaries[0])))


# -- a Sentinel set ---------------------------------------------------------------------------------------------------


@fault("sentinel", "planned failover")
def _(world: GroupWorld, seconds: float) -> None:
    world.sentinels.promote()
    time.sleep(seconds)


@fault("sentinel", "no majority of the sentinels")
def _(world: GroupWorld, seconds: float) -> None:
    two = world.sentinels.sentinels[:2]
    for node in two:
        world.sentinels.kill(node)
    time.sleep(seconds)
    for node in two:
        world.sentinels.restart(node)
