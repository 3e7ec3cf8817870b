"""The parts of a cache that are others on a Redis Cluster. Imported when one is used, as they need redis-py."""

from typing import TYPE_CHECKING

from magnus_cache._engine.coherence.group_epochs import GroupEpochs
from magnus_cache._engine.redis.cluster_client import ClusterClient
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.slots import GROUPS, anchor_tag, group_of, key_slot

if TYPE_CHECKING:
    from magnus_cache._engine.keys.names import Keyspace

__all__ = ["ClusterClient", "ClusterTopology", "GroupEpochs", "cluster_epochs", "group_of_name"]


def cluster_epochs(keyspace: "Keyspace") -> GroupEpochs:
    """Return the epochs of a cache on a cluster."""
    return GroupEpochs(keyspace, group_of_name, map(anchor_tag, range(GROUPS)))


def group_of_name(name: bytes) -> int:
    """Return the group of slots that a key belongs to."""
    return group_of(key_slot(name))
