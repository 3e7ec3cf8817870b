"""Connections for one purpose, apart from those of a cache: a health check, or the cleanup after a test."""

from typing import TYPE_CHECKING, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, NoPermissionError

from magnus_cache._engine.redis import commands, replies
from magnus_cache._engine.redis.connection import answers, opened
from magnus_cache._engine.redis.diagnosis import explain
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.handshake import ServerInfo, introduce
from magnus_cache._engine.redis.replies import ServerFacts
from magnus_cache._engine.redis.tracking import Tracking, TrackingMode, mode_of
from magnus_cache._engine.runtime.clock import monotonic

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint, Remap

__all__ = ["connect_once", "wipe"]

_REPLY_BYTES: Final = 1 << 20
_STEP: Final = 500
"""Keys that one command scans: some hundred microseconds of the server's time."""


async def connect_once(
    endpoint: "Endpoint",
    timeout: float,
    probe: bytes,
    tracking: Tracking,
    *,
    mode: str | None = None,
    remap: "Remap | None" = None,
) -> tuple[float, ServerFacts, TrackingMode]:
    """Connect, and return the seconds of one round trip, facts about the server, and how it announces changes.

    The handshake and the read are those of any connection of the cache.

    :param timeout: seconds for the connection and for each answer.
    :param probe: any key; it need not exist.
    :param tracking: what the server is to announce.
    :param mode: what the server is to be, if that matters: a node of a ``"cluster"``, or known to ``"sentinel"``.
    :param remap: see `Respondent`.
    :raises CacheUnavailableError: when Redis does not answer, or cannot serve.
    """
    intake, cluster = Intake(timeout, monotonic, lambda: 1, lambda: _REPLY_BYTES), mode == "cluster"
    try:
        async with opened(endpoint, timeout, intake, lambda: True) as connection:
            if cluster:
                met = await _introduce_node(connection, probe, tracking, endpoint, remap)
            else:
                met = await introduce(connection, probe, tracking)
            intake.completed()
            began = monotonic()
            (reply,) = await answers(connection, commands.get_many((probe,)))
            took = monotonic() - began
            # In a cluster, the key may be on another node: that is an answer, too.
            if isinstance(reply, Exception) and not (cluster and isinstance(reply, AskError | ClusterDownError)):
                raise reply
            (about,) = await answers(connection, commands.INFO_SERVER.packed)
            if mode == "sentinel" and isinstance(about, NoPermissionError):
                raise about
    # The errors of redis-py, sockets and TLS have no common base class below Exception.
    except Exception as error:  # as said
        raise explain(intake.refusal or error, endpoint) from error
    return took, ServerFacts.read(about), mode_of(met.tracking, met.broadcasts)


async def _introduce_node(
    connection: AbstractConnection, probe: bytes, tracking: Tracking, endpoint: "Endpoint", remap: "Remap | None"
) -> ServerInfo:
    # Deferred: a single server needs nothing of it.
    from magnus_cache._engine.redis.cluster_handshake import introduce_node
    from magnus_cache._engine.redis.slots import Respondent

    here = Respondent(endpoint.host, tls=endpoint.scheme == "tls", remap=remap)
    return (await introduce_node(connection, probe, tracking, here)).server


async def wipe(endpoint: "Endpoint", timeout: float, prefix: bytes) -> None:
    """Remove all keys of a prefix from one server, of any kind. Call this when no cache with the prefix is open.

    An open cache would issue the removed epochs again.

    :param timeout: seconds for the connection.
    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    intake = Intake(timeout, monotonic, lambda: _STEP, lambda: _REPLY_BYTES)
    try:
        async with opened(endpoint, timeout, intake, lambda: True) as connection:
            for pattern in (prefix + b"[:!]*", b"{" + prefix + b"[:!]*"):
                cursor: bytes | None = None
                while cursor != b"0":
                    (reply,) = await answers(connection, commands.scan(cursor or b"0", pattern, _STEP).packed)
                    if isinstance(reply, Exception):
                        raise reply
                    cursor, names = replies.step(reply)
                    # Each by itself: a node of a cluster refuses one command for keys of several slots.
                    removals = [commands.remove_keys((name,)).packed for name in names]
                    for removed in await answers(connection, *removals):
                        if isinstance(removed, Exception):
                            raise removed
                    intake.completed()
    except Exception as error:  # as in `connect_once`
        raise explain(intake.refusal or error, endpoint) from error
