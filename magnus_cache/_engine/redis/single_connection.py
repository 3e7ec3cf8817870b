"""One connection for one purpose, beside those of a cache: a question, or to remove what a test has left."""

from typing import TYPE_CHECKING, Final

from magnus_cache._engine.redis import commands, replies
from magnus_cache._engine.redis.connection import answers, opened
from magnus_cache._engine.redis.diagnosis import explain
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.handshake import introduce
from magnus_cache._engine.redis.replies import ServerFacts
from magnus_cache._engine.runtime.clock import monotonic

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["connect_once", "wipe"]

_REPLY_BYTES: Final = 1 << 20
_STEP: Final = 500
"""Keys looked at by one command: some hundred microseconds of the server's time."""


async def connect_once(endpoint: "Endpoint", timeout: float, probe: bytes) -> tuple[float, ServerFacts, bool]:
    """Connect, ask as any connection of the cache does, and disconnect.

    Returns the seconds that one exchange took, what the server is, and whether the server announces changes.

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
    return took, ServerFacts.read(about), met.tracking


async def wipe(endpoint: "Endpoint", timeout: float, prefix: bytes) -> None:
    """Remove every key that a prefix has, whatever it is for; to be called when no cache with it is open any more.

    One that is open would issue anew what it finds missing.

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
                    if names:
                        await answers(connection, commands.remove_keys(names).packed)
                    intake.completed()
    except Exception as error:  # as in `connect_once`
        raise explain(intake.refusal or error, endpoint) from error
