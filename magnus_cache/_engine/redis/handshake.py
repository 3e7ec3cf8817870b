"""The handshake of a connection: what a server is asked before anything that it says is believed."""

from typing import Any, Final, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError

from magnus_cache._engine.coherence.epochs import ControlNames, KnownEpochs, epoch_of
from magnus_cache._engine.redis import commands, scripts
from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.connection import answers, is_orphan, server_identity
from magnus_cache._engine.redis.events import Arrival
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache.errors import CacheUnavailableError

__all__ = ["UNKNOWN_SERVER", "ServerInfo", "arrive", "history_check", "introduce"]

_ORDERLY: Final = 7
"""The first Redis that announces what a command has changed after its reply, and not in the midst of it."""


_DIGITS: Final = 9
"""Digits that no version has."""

_LAST_CLIENT: Final = (1 << 63) - 1


class ServerInfo(NamedTuple):
    """What a server has told about itself and the connection."""

    tracking: bool
    """Whether it announces changes. Some managed services lack that, some ACLs forbid it."""
    echoes: bool
    """Whether it announces all changes, also those that our own commands bring about."""
    time: Any
    """Its clock, as the reply to TIME."""
    identity: bytes
    """What tells its history of writes from another's; empty where it is not told."""
    history: bytes
    """The part of it that may change while the connection stands."""
    run: bytes
    """What tells this start of this server from any other; empty where it is not told."""
    client: int
    """The connection's number there; 0 where it is not told."""
    ended: set[int]
    """The numbers of the connections that it was told to end."""


UNKNOWN_SERVER: Final = ServerInfo(False, False, None, b"", b"", b"", 0, set())
"""No server."""


async def introduce(connection: AbstractConnection, probe: bytes) -> ServerInfo:
    """Ask for invalidations on this connection, for the server's time, and whether and since when it serves.

    :param probe: a key that need not exist.
    """
    tracking, *_, switched, time, _, server, replication, client = await answers(
        connection,
        commands.TRACKING.packed,
        # With NOLOOP, it announces neither what it evicts to make room for a command of ours, nor what it ceases to
        # track. In a transaction, as the writes are to be that turn it on for themselves.
        *commands.TRACKING_ALL,
        commands.TIME.packed,
        # All the others are answered by a server, too, that is loading its data, or has lost its primary.
        commands.get_many((probe,)),
        commands.INFO_SERVER.packed,
        commands.INFO_REPLICATION.packed,
        commands.CLIENT_ID.packed,
    )
    if isinstance(time, Exception):
        raise time
    if is_orphan(replication):
        raise MasterDownError("the server is a replica that has lost its primary")
    tracks = not isinstance(tracking, Exception)
    echoes = type(switched) is list and not isinstance(switched[0], Exception) and _orderly(server)
    if tracks and not echoes:
        # Whatever became of the other one, such as by an ACL without MULTI.
        (tracking,) = await answers(connection, commands.TRACKING.packed)
        tracks = not isinstance(tracking, Exception)
    return ServerInfo(
        tracking=tracks,
        echoes=echoes,
        time=time,
        identity=server_identity(server, replication),
        history=server_identity(None, replication),
        run=server_identity(server, None),
        client=client if type(client) is int and 0 < client <= _LAST_CLIENT else 0,
        ended=set(),
    )


def _orderly(server: Any) -> bool:
    """Whether a server announces what a command changes after its reply."""
    major = (info(server, b"redis_version") or "").split(".")[0]
    return major.isdecimal() and len(major) < _DIGITS and int(major) >= _ORDERLY


async def arrive(connection: AbstractConnection, controls: ControlNames, identity: bytes, known: int) -> Arrival:
    """Find out whether everything became invalid with the arrival at a server; see `scripts.arrive`.

    :param identity: what tells its history from any other.
    :param known: the highest epoch that this process has seen.
    """
    command = scripts.arrive(controls, identity, known)
    # In full: the server need not know the script.
    words = command if command.again is None else command.again()
    (reply,) = await answers(connection, words.packed)
    epoch = epoch_of(reply)
    return Arrival(bool(epoch) or reply == b"", epoch)


def history_check(known: KnownEpochs, history: bytes) -> Callback:
    """Return the callback for the check that a server which dropped its data still has the history that was met.

    A primary that becomes a replica drops its data for another's, which may lack the latest writes, and the connection
    stands. Until the answer, nothing read through it can be judged.
    """
    known.suspended = True

    def told(reply: Any) -> None:
        """:raises RedisConnectionError: if its history is another one, or has no source any more."""
        if is_orphan(reply):
            raise RedisConnectionError("the server is a replica that has lost its primary")
        if server_identity(None, reply) != history:
            raise RedisConnectionError("the server has taken over another one's data")
        known.suspended = False

    def failed(error: BaseException) -> None:
        # It may not be asked, as others may not either; unless this is the end of the connection.
        if isinstance(error, CacheUnavailableError) and error.refused:
            known.suspended = False

    return Callback(told, failed)
