"""The check of the nodes that the settings name: whether all of them belong to one cluster.

The first one that answers decides which cluster is used. If another one belongs to another cluster, two processes with
the same settings may use two clusters, and neither hears of what the other one invalidates.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.redis import cluster_questions
from magnus_cache._engine.redis.cluster_handshake import map_of
from magnus_cache._engine.redis.connection import answers, opened
from magnus_cache._engine.redis.endpoint import shown
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.slots import Respondent

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Address
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["mixed", "strangers"]

_MOST: Final = 16
"""Nodes that are asked: settings name a few."""

_REPLY_BYTES: Final = 1 << 20


async def strangers(
    deployment: "Deployment", ids: "Collection[str]", timeout: float, clock: "Clock"
) -> "list[Address]":
    """Return the nodes named by the settings that belong to another cluster; those that do not answer are left out.

    :param ids: of the primaries of the cluster in use.
    :param timeout: seconds for each node; all are asked at the same time.
    """
    seeds = deployment.seeds[:_MOST]
    found = await asyncio.gather(*(_primaries(deployment, seed, timeout, clock) for seed in seeds))
    return [seed for seed, others in zip(seeds, found, strict=True) if others and others.isdisjoint(ids)]


def mixed(strange: "Sequence[Address]") -> str:
    """Return what is wrong with settings that name nodes of several clusters, and the remedy."""
    named = ", ".join(shown(*seed) for seed in strange)
    return (
        f"not all of these nodes belong to one cluster ({named} does not belong to the one in use). Name nodes of one "
        "cluster only: otherwise processes may use different ones, and read old values"
    )


async def _primaries(deployment: "Deployment", seed: "Address", timeout: float, clock: "Clock") -> set[str]:
    """Return the ids of the primaries that a node knows; none if it does not tell."""
    endpoint = deployment.at(*seed)
    here = Respondent(endpoint.host, tls=endpoint.scheme == "tls", remap=deployment.remap)
    try:
        async with asyncio.timeout(timeout):
            intake = Intake(timeout, clock, lambda: 1, lambda: _REPLY_BYTES)
            async with opened(endpoint, timeout, intake, lambda: True) as connection:
                (shards,) = await answers(connection, cluster_questions.CLUSTER_SHARDS.packed)
                found, _ = await map_of(connection, shards, here)
    # The errors of redis-py, sockets and TLS have no common base class below Exception. A node that is needed is
    # connected to as well, and what is wrong with it is told then.
    except Exception:  # noqa: BLE001  # as said
        return set()
    return set(found.nodes)
