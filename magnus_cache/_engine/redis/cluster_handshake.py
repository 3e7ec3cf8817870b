"""The handshake with a node of a cluster: who it is, and how it sees the slots."""

from typing import Any, Final, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ClusterDownError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.redis import cluster_questions
from magnus_cache._engine.redis.commands import info, pack
from magnus_cache._engine.redis.connection import answers
from magnus_cache._engine.redis.diagnosis import TopologyError
from magnus_cache._engine.redis.handshake import ServerInfo, check_mode, introduce
from magnus_cache._engine.redis.slots import SLOTS, Respondent, SlotMap, SlotMapError, from_shards, from_slots
from magnus_cache._engine.redis.tracking import Tracking

__all__ = ["NodeInfo", "introduce_node", "map_of", "unowned"]

_ID_BYTES: Final = 64
_SHOWN: Final = 3
"""Ranges of slots that a message names."""

_ASKING: Final = pack(b"ASKING")


class NodeInfo(NamedTuple):
    """What a node of a cluster has answered."""

    server: ServerInfo
    id: str
    map: SlotMap
    has_shards: bool
    """Whether CLUSTER SHARDS has told the map; else CLUSTER SLOTS is asked."""


async def introduce_node(connection: AbstractConnection, key: bytes, tracking: Tracking, here: Respondent) -> NodeInfo:
    """Do what `introduce` does, and return what the node says of itself and of the slots.

    Everything that a cluster needs is asked for here, so that a right that the user lacks is missed now, and not when
    slots move.

    :raises TopologyError: if the server is no node of a cluster, or slots without an owner take the cluster down.
    :raises ClusterDownError: if the cluster is down for another reason.
    :raises NoPermissionError: if the user may not ask what a cluster needs.
    """
    server = await introduce(connection, key, tracking, cluster=True)
    # ASKING is about the next command, which does not mind.
    asking, who, state, shards = await answers(
        connection, _ASKING, cluster_questions.MY_ID.packed, cluster_questions.CLUSTER_INFO.packed,
        cluster_questions.CLUSTER_SHARDS.packed,
    )  # fmt: skip
    if isinstance(who, Exception):
        # A server that does not tell its mode.
        check_mode(b"redis_mode:standalone" if "cluster support disabled" in str(who) else None, cluster=True)
    for reply in (who, asking, state):
        if isinstance(reply, NoPermissionError):
            raise reply
    found, has_shards = await map_of(connection, shards, here)
    if not found.covered or info(state, b"cluster_state") == "fail":
        raise _down(found)
    node_id = who.decode("ascii", "replace") if type(who) is bytes and 0 < len(who) <= _ID_BYTES else ""
    if not node_id:
        raise RedisConnectionError("Protocol error: what came is no answer to CLUSTER MYID")
    return NodeInfo(server, node_id, found, has_shards)


async def map_of(connection: AbstractConnection, shards: Any, here: Respondent) -> tuple[SlotMap, bool]:
    """Return the map, from CLUSTER SLOTS where CLUSTER SHARDS is not known, not permitted, or does not tell all.

    The second item is whether CLUSTER SHARDS told it.

    :raises TopologyError: if it cannot be used.
    """
    try:
        found = None if isinstance(shards, Exception) else from_shards(shards, here)
        if found is not None and found.covered == SLOTS:
            return found, True
        (slots,) = await answers(connection, cluster_questions.CLUSTER_SLOTS.packed)
        if not isinstance(slots, Exception):
            return from_slots(slots, here), False
        if found is not None:
            return found, True
        # The rights that are documented name the other one.
        raise shards if isinstance(shards, NoPermissionError) else slots
    except SlotMapError as error:
        raise TopologyError(f"its slot map cannot be used: {error}") from error


def _down(found: SlotMap) -> Exception:
    """Return the error for a cluster that is down, as far as its slots tell why."""
    missing = found.missing()
    if missing:
        return TopologyError(unowned(missing), "clusterdown")
    return ClusterDownError("The cluster is down")


def unowned(missing: list[tuple[int, int]]) -> str:
    """Return what is wrong with slots that no node owns, and the remedy.

    :param missing: first and last slot of each range.
    """
    named = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in missing[:_SHOWN])
    more = ", ..." if len(missing) > _SHOWN else ""
    if len(missing) == 1 and missing[0][0] == missing[0][1]:
        return f"slot {named} of the cluster has no owner; assign it to a primary (redis-cli --cluster fix)"
    return f"slots {named}{more} of the cluster have no owner; assign them to primaries (redis-cli --cluster fix)"
