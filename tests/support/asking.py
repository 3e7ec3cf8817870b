"""Ask a server over its port, as any client does, to see what has really been done there."""

from typing import Any

import redis

from magnus_cache.testing import EmbeddedCluster, ServerNode, slot_of

__all__ = ["filled_slot", "role_of", "said_by", "scripts_run"]


def said_by(node: ServerNode, *command: str | int, **options: Any) -> Any:
    """Return the reply as it came; an error reply is raised."""
    kind = redis.SSLConnection if any(name.startswith("ssl") for name in options) else redis.Connection
    connection = kind(host=node.host, port=node.port, protocol=2, decode_responses=True, **options)
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def role_of(node: ServerNode) -> str:
    """Return the role of a server: ``"master"`` or ``"slave"``."""
    return str(said_by(node, "ROLE")[0])


def scripts_run(raw: "redis.Redis") -> int:
    """Return how many scripts a server has run."""
    stats: Any = raw.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ("eval", "evalsha"))


def filled_slot(cluster: EmbeddedCluster, source: ServerNode, count: int) -> tuple[int, list[str]]:
    """Store keys in one slot of a node; return the slot and the keys, which are their own values."""
    tag = cluster.key_on(source)
    keys = [f"{{{tag}}}{number}" for number in range(count)]
    source.ask_all([("SET", key, key) for key in keys])
    return slot_of(tag), keys
