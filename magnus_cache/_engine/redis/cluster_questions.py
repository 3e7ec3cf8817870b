"""The commands that ask a node about its cluster."""

from typing import Final

from magnus_cache._engine.redis.commands import Command, pack

__all__ = ["CLUSTER_INFO", "CLUSTER_SHARDS", "CLUSTER_SLOTS", "MY_ID"]

CLUSTER_INFO: Final = Command("CLUSTER INFO", pack(b"CLUSTER", b"INFO"))
CLUSTER_SHARDS: Final = Command("CLUSTER SHARDS", pack(b"CLUSTER", b"SHARDS"))
CLUSTER_SLOTS: Final = Command("CLUSTER SLOTS", pack(b"CLUSTER", b"SLOTS"))
MY_ID: Final = Command("CLUSTER MYID", pack(b"CLUSTER", b"MYID"))
