"""Checks of replies: the type and range of each number from a server, when it is received.

A reply of another form is an error of that exchange, with the reason ``"protocol"``. It gets no further into the
process, and callers fall back as if Redis were away.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.redis.commands import info
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LONGEST_WAIT", "ServerFacts", "answer", "nonsense", "number", "single", "step", "yes"]

_MOST: Final = (1 << 63) - 1
"""The largest integer of the Redis protocol."""

_CURSOR_DIGITS: Final = 20
"""Digits of 64 bits."""

LONGEST_WAIT: Final = 86_400_000
"""Milliseconds of a day: no lease is longer."""


class ServerFacts(NamedTuple):
    """Facts about a server; None for each that it does not report."""

    server: str | None
    """``"redis"`` or ``"valkey"``."""
    version: str | None
    mode: str | None
    """``"standalone"``, ``"cluster"`` or ``"sentinel"``."""

    @classmethod
    def read(cls, about: object) -> "ServerFacts":
        """Return the facts from a reply to INFO server; any reply is allowed."""
        valkey = info(about, b"valkey_version")
        server = info(about, b"server_name") or ("valkey" if valkey else "redis")
        version = valkey or info(about, b"redis_version")
        mode = info(about, b"server_mode") or info(about, b"redis_mode")
        return cls(server if version else None, version, mode)


def number(reply: Any, most: int = _MOST) -> int:
    """Return a reply that must be a count.

    :raises CacheUnavailableError: if it is not a count, or more than `most`.
    """
    if type(reply) is not int or not 0 <= reply <= most:
        raise nonsense("a number is expected")
    return reply


def answer(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> int:
    """Return the reply to a command that counts; a `Receive`.

    :raises CacheUnavailableError: if it is not a count.
    """
    return number(reply)


def yes(reply: Any) -> bool:
    """Return whether a script did its work: True for 1, False for 0.

    :raises CacheUnavailableError: for any other reply.
    """
    return number(reply, 1) == 1


def single(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> bytes | None:
    """Return the value of a read without a batch; a `Receive`.

    :raises CacheUnavailableError: if it is not a list of one value.
    """
    if type(reply) is list and len(reply) == 1 and (reply[0] is None or type(reply[0]) is bytes):
        value: bytes | None = reply[0]
        return value
    raise nonsense("one value is expected")


def step(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> tuple[bytes, list[bytes]]:
    """Return the next cursor and the names of one step of a SCAN; a `Receive`.

    :raises CacheUnavailableError: for any other reply.
    """
    cursor, names = reply if type(reply) is list and len(reply) == 2 else (None, None)
    if type(cursor) is bytes and cursor.isdigit() and len(cursor) <= _CURSOR_DIGITS and type(names) is list:
        found: list[bytes] = names
        if {type(name) for name in found} <= {bytes}:
            return cursor, found
    raise nonsense("a cursor and names are expected")


def nonsense(expected: str) -> CacheUnavailableError:
    """Return the error of an answer that has another form than the expected one."""
    return CacheUnavailableError("protocol", f"Redis gave an invalid answer where {expected}")
