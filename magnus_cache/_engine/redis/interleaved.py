"""Announcements within replies, as Redis before 7.2 sends them.

The lane has Redis announce what it reads to the connection of the background loop (``CLIENT TRACKING ON REDIRECT``).
If a command on this very connection changes such a value, Redis before 7.2 announces that at once: between two elements
of the reply to a transaction, or to an MGET that has found a value expired. A parser takes the announcement for one of
the elements. So it returns the array too early, and the last elements follow as if they were replies of their own.

An array that contains announcements therefore lacks as many elements, and gets them from what follows. The
announcements are handled before the reply: what they are about was changed before the reply was complete.
"""

from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.redis.connection import push_of
from magnus_cache._engine.redis.handshake import ServerInfo
from magnus_cache._engine.redis.incoming import Handler, Rest

__all__ = ["Interleaved", "apart"]

_PLAIN: Final = {bytes, int, type(None)}
"""Types of elements that are no announcement and contain none: those of most replies."""


class Interleaved:
    """Takes announcements out of the replies of one connection.

    :param handle: handles each reply, and each announcement.
    """

    __slots__ = ("_elements", "_handle", "_missing")

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._elements: list[Any] = []
        self._missing = 0

    def handle(self, reply: Any) -> Rest:
        """Handle what the parser returned; a `Handler`.

        :raises RedisConnectionError: for an announcement where its place cannot be told.
        """
        if push_of(reply) is not None:
            return self._handle(reply)
        if self._missing:
            _check_nested(reply)
            self._elements.append(reply)
            self._missing -= 1
            if self._missing:
                return None
            reply, self._elements = self._elements, []
        elif type(reply) is list and not set(map(type, reply)) <= _PLAIN:
            announcements = [element for element in reply if push_of(element) is not None]
            for element in reply:
                _check_nested(element)
            if announcements:
                self._elements = [element for element in reply if push_of(element) is None]
                self._missing = len(announcements)
                for announcement in announcements:
                    if self._handle(announcement) is not None:
                        raise RedisConnectionError("Protocol error: a long announcement within a reply")
                return None
        return self._handle(reply)


def _check_nested(element: Any) -> None:
    """:raises RedisConnectionError: if an array within the reply contains an announcement."""
    if type(element) is list and any(push_of(part) is not None for part in element):
        raise RedisConnectionError("Protocol error: an announcement within a nested reply")


def apart(handle: Handler, server: ServerInfo) -> Handler:
    """Return a handler that gets replies and announcements apart, from the beginning of a connection."""
    return Interleaved(handle).handle if server.interleaves else handle
