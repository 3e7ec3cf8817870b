"""The connections that a server has."""

from typing import Any

import redis

__all__ = ["others"]


def others(raw: redis.Redis) -> list[dict[str, Any]]:
    """Return what a server tells of its connections, but for the one that asks."""
    own = raw.client_id()
    # Not by their protocol: before Redis 7.0, servers do not tell that.
    return [client for client in raw.client_list() if int(client["id"]) != own]
