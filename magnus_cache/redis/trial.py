"""One connection for one question: whether Redis answers now, whatever the cache's own connection has learned."""

from typing import TYPE_CHECKING, Any

from magnus_cache.clock import monotonic
from magnus_cache.redis import commands
from magnus_cache.redis.connection import answers, opened
from magnus_cache.redis.diagnosis import explain
from magnus_cache.redis.handshake import introduce
from magnus_cache.redis.intake import Intake

if TYPE_CHECKING:
    from magnus_cache.endpoints import Endpoint

__all__ = ["connect_once"]

_REPLY_BYTES = 1 << 20


async def connect_once(endpoint: "Endpoint", timeout: float, probe: bytes) -> tuple[float, Any, bool]:
    """Connect, ask as any connection of the cache does, and disconnect.

    Returns the seconds that one exchange took, the reply to INFO server, and whether the server announces changes.

    :param timeout: seconds for the connection and for each answer.
    :param probe: a key that need not exist.
    :raises CacheUnavailableError: when Redis does not answer, or cannot serve.
    """
    intake = Intake(timeout, monotonic, lambda: 1, lambda: _REPLY_BYTES)
    try:
        async with opened(endpoint, timeout, intake, lambda: True) as connection:
            met = await introduce(connection, probe)
            intake.completed()
            began = monotonic()
            (reply,) = await answers(connection, commands.get_many((probe,)))
            took = monotonic() - began
            if isinstance(reply, Exception):
                raise reply
            (about,) = await answers(connection, commands.INFO_SERVER.packed)
    # As wherever a connection is held: what redis-py, the socket and TLS raise has no common root.
    except Exception as error:  # as said
        raise explain(intake.refusal or error, endpoint) from error
    return took, about, met.tracking
