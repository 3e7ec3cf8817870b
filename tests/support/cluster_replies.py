"""Replies to CLUSTER SLOTS and SHARDS: recorded from real servers, and made for any map.

Each was recorded from two or three primaries, most with a replica each, over RESP2 and RESP3, in these states:

- formed; moved: slots 100 and 101 have moved, slot 5000 is half migrated; killed: the third primary has just died;
  failed-over: its replica has taken over;
- hostname, hostname-unset, unknown-endpoint: settings of cluster-preferred-endpoint-type; nat: nodes announce
  an address and a port of their own; ipv6; tls, and tls-and-plain: nodes with a TLS port alone, and with both.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from magnus_cache._engine.redis.slots import ClusterNode

__all__ = ["REPLIES", "Recorded", "shards_reply", "slots_reply"]


class Recorded(NamedTuple):
    """A reply, and what it means."""

    command: str
    """``"SLOTS"`` or ``"SHARDS"``."""
    host: str
    """The host at which the server was asked."""
    tls: bool
    ranges: list[tuple[int, int, str, int]]
    """First slot, last slot, host and port."""
    reply: Any


def _as_received(reply: Any) -> Any:
    if isinstance(reply, str):
        return reply.encode()
    if isinstance(reply, list):
        return list(map(_as_received, reply))
    if isinstance(reply, dict):
        return {_as_received(name): _as_received(value) for name, value in reply.items()}
    return reply


def _loaded() -> dict[str, Recorded]:
    found = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return {
        name: Recorded(
            each["command"], each["host"], each["tls"], list(map(tuple, each["ranges"])), _as_received(each["reply"])
        )
        for name, each in found.items()
    }


REPLIES = _loaded()
"""By server, state, protocol and command, as in ``valkey9 moved RESP3 SHARDS``."""


def slots_reply(ranges: Iterable[tuple[int, int, ClusterNode]], *, resp3: bool) -> Any:
    """Return what CLUSTER SLOTS would answer: each range with its primary and a replica."""
    empty: Any = {} if resp3 else []
    return [
        [first, last, [node.host.encode(), node.port, node.id.encode(), empty], [b"replica", 1, b"r", empty]]
        for first, last, node in ranges
    ]


def shards_reply(ranges: Iterable[tuple[int, int, ClusterNode]], *, resp3: bool) -> Any:
    """Return what CLUSTER SHARDS would answer: each primary with its slots and a replica; and one without slots."""
    slots: dict[ClusterNode, list[int]] = {ClusterNode("empty", "h", 1): []}
    for first, last, node in ranges:
        slots.setdefault(node, []).extend((first, last))
    shards: list[Any] = []
    for node, owned in slots.items():
        members = [
            {
                b"id": name.encode(), b"port": node.port, b"ip": node.host.encode(), b"endpoint": node.host.encode(),
                b"role": role, b"replication-offset": 7, b"health": b"online",
            }
            for name, role in ((f"replica-of-{node.id}", b"replica"), (node.id, b"master"))
        ]  # fmt: skip
        flat = [[part for pair in member.items() for part in pair] for member in members]
        shards.append({b"slots": owned, b"nodes": members} if resp3 else [b"slots", owned, b"nodes", flat])
    return shards
