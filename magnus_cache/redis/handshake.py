"""The handshake of a connection: what a server is asked before anything that it says is believed."""

from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection

from magnus_cache.redis import commands
from magnus_cache.redis.connection import answers, server_identity

__all__ = ["Introduction", "introduce"]


class Introduction(NamedTuple):
    """What a server has told about itself and the connection."""

    tracking: bool
    """Whether it announces changes. Some managed services lack that, some ACLs forbid it."""
    time: Any
    """Its clock, as the reply to TIME."""
    identity: bytes
    """What tells its history of writes from another's; empty where it is not told."""
    run: bytes
    """What tells this start of this server from any other; empty where it is not told."""
    client: int
    """The connection's number there; 0 where it is not told."""


async def introduce(connection: AbstractConnection, probe: bytes) -> Introduction:
    """Ask for invalidations on this connection, for the server's time, and whether and since when it serves.

    :param probe: a key that need not exist.
    """
    tracking, time, _, server, replication, client = await answers(
        connection,
        commands.TRACKING.packed,
        commands.TIME.packed,
        # All the others are answered by a server, too, that is loading its data, or has lost its primary.
        commands.get_many((probe,)),
        commands.INFO_SERVER.packed,
        commands.INFO_REPLICATION.packed,
        commands.CLIENT_ID.packed,
    )
    if isinstance(time, Exception):
        raise time
    return Introduction(
        tracking=not isinstance(tracking, Exception),
        time=time,
        identity=server_identity(server, replication),
        run=server_identity(server, None),
        client=client if isinstance(client, int) else 0,
    )
