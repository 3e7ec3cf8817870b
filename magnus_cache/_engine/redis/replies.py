"""What replies may be: the type and range of each number that comes from outside, checked where it is received.

Each is a `Receive`. What does not fit is an error of that one exchange, with the reason ``"protocol"``: it never gets
any further into the process, and callers are told what they are told when Redis is away.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.redis.commands import info
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LONGEST_WAIT", "ServerFacts", "answer", "number", "single", "step", "yes"]

_MOST: Final = (1 << 63) - 1
"""The largest integer of the Redis protocol."""

_CURSOR_DIGITS: Final = 20
"""Digits of 64 bits."""

LONGEST_WAIT: Final = 86_400_000
"""Milliseconds in a day: no lease is longer."""


class ServerFacts(NamedTuple):
    """What a server is; None for what it does not tell."""

    server: str | None
    """``"redis"`` or ``"valkey"``."""
    version: str | None
    mode: str | None
    """``"standalone"``, ``"cluster"`` or ``"sentinel"``."""

    @classmethod
    def read(cls, about: object) -> "ServerFacts":
        """Return what the reply to INFO server says, whatever that is."""
        valkey = info(about, b"valkey_version")
        server = info(about, b"server_name") or ("valkey" if valkey else "redis")
        version = valkey or info(about, b"redis_version")
        mode = info(about, b"server_mode") or info(about, b"redis_mode")
        return cls(server if version else None, version, mode)


def number(reply: Any, most: int = _MOST) -> int:
    """Return a count of something.

    :raises CacheUnavailableError: if it is none, or more than `most`.
    """
    if type(reply) is not int or not 0 <= reply <= most:
        raise _nonsense("a number is due")
    return reply


def answer(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> int:
    """Take the reply to a command that counts.

    :raises CacheUnavailableError: if it is no count.
    """
    return number(reply)


def yes(reply: Any) -> bool:
    """Return whether a script did what it was sent for: 1 if so, else 0.

    :raises CacheUnavailableError: if it is neither.
    """
    return number(reply, 1) == 1


def single(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> bytes | None:
    """Take the reply to a read of one value outside the batches.

    :raises CacheUnavailableError: if it is no list of one.
    """
    if type(reply) is list and len(reply) == 1 and (reply[0] is None or type(reply[0]) is bytes):
        value: bytes | None = reply[0]
        return value
    raise _nonsense("one value is due")


def step(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> tuple[bytes, list[bytes]]:
    """Take one step of a SCAN: the next cursor, and names.

    :raises CacheUnavailableError: if it is something else.
    """
    cursor, names = reply if type(reply) is list and len(reply) == 2 else (None, None)
    if type(cursor) is bytes and cursor.isdigit() and len(cursor) <= _CURSOR_DIGITS and type(names) is list:
        found: list[bytes] = names
        if {type(name) for name in found} <= {bytes}:
            return cursor, found
    raise _nonsense("a cursor and names are due")


def _nonsense(due: str) -> CacheUnavailableError:
    return CacheUnavailableError("protocol", f"Redis gave an answer that makes no sense where {due}")
