"""Scans of all primaries of a cluster, for operations on keys whose names are not known.

A SCAN of one node finds the keys that it has from its beginning to its end. A slot that moves meanwhile may have been
scanned at neither node: its new owner before the keys came, and its old one after they had left. So the owners of all
slots that have moved since a scan began are scanned again, a bounded number of times.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.redis import bulk, cluster_scripts, replies
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["on_all_primaries", "reclaim_on"]

_AGAIN: Final = 4
"""Times that nodes are scanned again, at most: slots may move for hours."""


async def on_all_primaries(
    topology: ClusterTopology, work: "Callable[[Wire], Awaitable[int]]"
) -> "tuple[int, CacheUnavailableError | None]":
    """Do some work on all primaries at the same time, and again on those that slots have moved to meanwhile.

    A node that is away stops no work on another one. If its slots have moved by then, it does not count.

    :return: the sum of all results, and the error of a primary that could not do its work.
    :raises CacheUnavailableError: when no node tells which primaries there are.
    """
    wires: Sequence[Wire] = await topology.primaries()
    total, failed = 0, dict[str, CacheUnavailableError]()
    for _ in range(1 + _AGAIN):
        began = topology.clock()
        outcomes = await asyncio.gather(*map(work, wires), return_exceptions=True)
        for wire, outcome in zip(wires, outcomes, strict=True):
            if isinstance(outcome, int):
                total += outcome
            elif isinstance(outcome, CacheUnavailableError):
                failed[topology.node_id(wire)] = outcome
            else:
                raise outcome
        if not (wires := topology.owners_since(began)):
            break
    present = topology.view.map.nodes
    return total, next((error for node, error in failed.items() if node in present or not present), None)


async def reclaim_on(
    wire: "Wire", pattern: bytes, epoch: int, elsewhere: Callable[[Sequence[bytes]], Awaitable[int]]
) -> int:
    """Remove the values of one node that match a glob and are older than an epoch; return their number.

    :param elsewhere: does the same for names that belong to another node by now, or are on their way there.
    :raises CacheUnavailableError: when the node goes away or refuses; what was removed before stays removed.
    """
    removed = 0
    async for names in bulk.reclaimable(wire, pattern):
        done, left = await wire.execute(cluster_scripts.reclaim(names, epoch), _reclaimed)
        removed += done
        if left:
            removed += await elsewhere(left)
    return removed


def _reclaimed(reply: Any, _connection: object, _sent: float) -> tuple[int, list[bytes]]:
    """Take how many values a script has removed, and the names that it could not look at.

    :raises CacheUnavailableError: for any other reply.
    """
    done, names = reply if type(reply) is list and len(reply) == 2 else (None, None)
    if type(names) is list and {type(name) for name in names} <= {bytes}:
        return replies.number(done, bulk.RECLAIMED), names
    raise CacheUnavailableError("protocol", "Redis gave an invalid answer about values to remove")
