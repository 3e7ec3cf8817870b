"""The handshake of a connection: what a server must answer before its values are trusted."""

from typing import Any, Final, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ClusterDownError, MasterDownError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.coherence.epochs import ControlNames, epoch_of
from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.redis import commands, scripts
from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.connection import answers, former_history, is_orphan, server_identity
from magnus_cache._engine.redis.diagnosis import IS_SENTINEL, TopologyError, unable
from magnus_cache._engine.redis.events import Arrival
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.tracking import Tracking
from magnus_cache.errors import CacheUnavailableError

__all__ = ["UNKNOWN_SERVER", "ServerInfo", "arrive", "check_mode", "history_check", "introduce"]

_ORDERLY: Final = (7, 0)
"""The first version of Redis that announces what a connection has read and changes itself after the reply."""

_ORDERLY_FOR_OTHERS: Final = (7, 2)
"""The first one that does the same with what another connection has read, whose announcements are redirected."""

_DIGITS: Final = 9
"""No version number has this many digits."""

_LAST_CLIENT: Final = (1 << 63) - 1


class ServerInfo(NamedTuple):
    """Facts about a server and a connection to it, from the handshake."""

    tracking: bool
    """Whether it announces changes. Some managed services do not, and some ACLs forbid it."""
    echoes: bool
    """Whether it announces all changes, including those by our own commands."""
    time: Any
    """Its clock, as the reply to TIME."""
    identity: bytes
    """Identifies its history of writes; empty if the server does not report it."""
    stored: bytes | None
    """What it has in the key that was read along: the identity that its data belongs to; None without one."""
    history: bytes
    """The part of the identity that may change during the connection."""
    run: bytes
    """Identifies this start of this server; empty if the server does not report it."""
    client: int
    """The client id of the connection; 0 if the server does not report it."""
    ended: set[int]
    """The client ids of the connections that it was asked to kill."""
    interleaves: bool = True
    """Whether it may send an announcement within a reply, of what another connection has read."""
    former: bytes = b""
    """The history of another server that it has continued as the primary; empty if there is none."""
    broadcasts: bool = False
    """Whether it announces every change of a name of ours, read here or not, those by our own commands included."""

    @property
    def keeps_identity(self) -> bool:
        """Whether its data belongs to its present history, by the identity that was read along."""
        return bool(self.identity) and self.stored == self.identity

    @property
    def announces_removal(self) -> bool:
        """Whether it will announce the removal of the identity that was read along, whatever removes it."""
        return self.echoes or self.broadcasts


UNKNOWN_SERVER: Final = ServerInfo(False, False, None, b"", None, b"", b"", 0, set())
"""Before the first handshake."""


async def introduce(
    connection: AbstractConnection, key: bytes, tracking: Tracking, *, cluster: bool = False
) -> ServerInfo:
    """Switch tracking on, and return facts about the server, all in one round trip.

    :param key: read along, as `ServerInfo.stored`: that of the identity, or any key if no value is to be trusted.
    :param tracking: what the server is to announce.
    :param cluster: whether it is to be a node of a cluster.
    :raises TopologyError: if it is not.
    """
    switches = _switches(tracking)
    *replies, time, server, replication, client, stored = await answers(
        connection,
        *commands.NAME_LIBRARY,
        *switches,
        commands.TIME.packed,
        commands.INFO_SERVER.packed,
        commands.INFO_REPLICATION.packed,
        commands.CLIENT_ID.packed,
        # A server that is loading its data, or has lost its primary, answers all commands but this one. It is the last
        # one: what is announced after its answer is not lost here.
        commands.get_many((key,)),
        # A node of a cluster that is down is asked why.
        unable=_unable_node if cluster else unable,
    )
    check_mode(server, cluster=cluster)
    if isinstance(time, Exception):
        raise time
    if cluster and isinstance(replication, NoPermissionError):
        # Without it, a replica that has taken over could not be told from the primary that it lacks writes of.
        raise replication
    if is_orphan(replication):
        raise MasterDownError("the server is a replica that has lost its primary")
    switched, echoes = replies[len(commands.NAME_LIBRARY) :], False
    tracks = bool(switched) and not isinstance(switched[0], Exception)
    broadcasts = tracks and tracking.mode == "prefix"
    if tracking.mode == "keys":
        echoes = type(switched[-1]) is list and not isinstance(switched[-1][0], Exception)
        echoes = echoes and _version(server) >= _ORDERLY
        if tracks and not echoes:
            # By key, it could only announce with NOLOOP, see `_switches`. By prefix, it announces at the end of a turn.
            announced = commands.announce_all(tracking.prefixes)
            again = await answers(connection, commands.TRACKING_OFF.packed, announced, commands.get_many((key,)))
            _, switched_again, stored = again
            tracks = broadcasts = not isinstance(switched_again, Exception)
    return ServerInfo(
        tracking=tracks,
        echoes=echoes,
        time=time,
        identity=server_identity(server, replication),
        stored=stored[0] if type(stored) is list and stored else None,
        history=server_identity(None, replication),
        run=server_identity(server, None),
        client=client if type(client) is int and 0 < client <= _LAST_CLIENT else 0,
        ended=set(),
        # Announcements by prefix come at the end of a turn of the server.
        former=former_history(replication),
        interleaves=tracking.mode == "keys" and not broadcasts and _version(server) < _ORDERLY_FOR_OTHERS,
        broadcasts=broadcasts,
    )


def _unable_node(error: Exception) -> object:
    is_down = isinstance(error, ClusterDownError) and not isinstance(error, MasterDownError)
    return None if is_down else unable(error)


def _switches(tracking: Tracking) -> tuple[bytes, ...]:
    """Return what switches the announcements on."""
    if tracking.mode == "off":
        return ()
    if tracking.mode == "prefix":
        return (commands.announce_all(tracking.prefixes),)
    # With NOLOOP, a server announces neither keys that it evicts for our commands, nor keys that it stops tracking. So
    # it is switched off again, in a transaction, because writes that switch NOLOOP on for themselves are in one, too.
    return (commands.TRACKING.packed, *commands.TRACKING_ALL)


def check_mode(server: Any, *, cluster: bool) -> None:
    """Check that a server is what the settings say, by its reply to INFO server, if it tells.

    :raises TopologyError: if it is not.
    """
    mode = info(server, b"server_mode") or info(server, b"redis_mode")
    if mode == "sentinel":
        raise TopologyError(IS_SENTINEL)
    if mode == "cluster" and not cluster:
        raise TopologyError(
            "it is a node of a Redis Cluster, and the settings say a single server; set REDIS_CLUSTER=true, or use a "
            "redis+cluster:// URL"
        )
    if mode == "standalone" and cluster:
        raise TopologyError(
            "it is a single server, and the settings say a cluster; use a redis:// URL, or unset REDIS_CLUSTER"
        )


def _version(server: Any) -> tuple[int, int]:
    """Return the version of Redis that a server says it is compatible with; zeros if it does not say."""
    major, minor, *_ = [*(info(server, b"redis_version") or "").split("."), "0", "0"]
    if not (major.isdecimal() and minor.isdecimal() and len(major) + len(minor) < _DIGITS):
        return 0, 0
    return int(major), int(minor)


async def arrive(connection: AbstractConnection, controls: ControlNames, server: ServerInfo, known: int) -> Arrival:
    """Return whether a new server may have lost writes, and the epoch that invalidates everything if so.

    A server whose data belongs to its present history, as `introduce` has read it, is not asked again: the script would
    compare the same two, and most processes meet such a server.

    :param known: the highest epoch that this process has seen.
    """
    if server.keeps_identity:
        return Arrival(answered=True, epoch=0)
    command = scripts.arrive(controls, server.identity, known)
    # As full text: the server may not know the script.
    words = command if command.again is None else command.again()
    (reply,) = await answers(connection, words.packed)
    epoch = epoch_of(reply)
    return Arrival(bool(epoch) or reply == b"", epoch)


def history_check(known: KnownEpochs, history: bytes) -> Callback:
    """Suspend judging by these epochs, and return the callback for the answer that ends this.

    A primary that becomes a replica replaces its data by another's, which may lack the latest writes, and the
    connection stays up. So after a flush, no value is judged before the server has confirmed its history.
    """
    known.suspended = True

    def received(reply: Any) -> None:
        """:raises RedisConnectionError: if the history is another one, or the server has lost its primary."""
        if is_orphan(reply):
            raise RedisConnectionError("the server is a replica that has lost its primary")
        if server_identity(None, reply) != history:
            raise RedisConnectionError("the server has taken over another one's data")
        known.suspended = False

    def failed(error: BaseException) -> None:
        # An ACL that forbids INFO forbade it in the handshake as well. Other errors end the connection.
        if isinstance(error, CacheUnavailableError) and error.refused:
            known.suspended = False

    return Callback(received, failed)
