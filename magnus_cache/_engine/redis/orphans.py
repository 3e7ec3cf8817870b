"""Connections that were given up with commands unanswered, which the server may still be about to read.

What was sent over one of them may come to be carried out long after the process has given up on it: a value that was
deleted meanwhile would be stored again. A later connection to the same server ends it there, before it says anything
else.
"""

from collections.abc import Callable
from typing import Final

from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.runtime.critical import section
from magnus_cache.errors import CacheUnavailableError

__all__ = ["OrphanedConnections"]

_MOST: Final = 256
"""Connections remembered; those that a server no longer has are forgotten first."""


class OrphanedConnections:
    """The abandoned connections of one process. Thread-safe, bounded.

    :param warn: called with a topic and a message.
    :ivar waiting: the clients by their number at the server, each with that server's run; costs no lock to look at.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self._warn = warn
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child, whose parent's connections are not its own."""
        self._lock = section()
        self.waiting: dict[int, bytes] = {}

    def leave(self, run: bytes, client: int) -> None:
        """Note that a connection was given up; to be called before anybody learns that it was.

        :param run: tells the server and its start; empty if that is not known, and numbers of another server's clients
            mean nothing.
        """
        if not run:
            return
        if not client:
            self._warn_of_refusal()
            return
        with self._lock:
            waiting = {**self.waiting, client: run}
            while len(waiting) > _MOST:
                waiting.pop(next((known for known, other in waiting.items() if other != run), next(iter(waiting))))
            self.waiting = waiting

    def ends(self, run: bytes, told: set[int]) -> list[tuple[Command, Callback]]:
        """Return what a connection is to say first, besides what it has said already.

        :param told: the clients that it has named; extended.
        """
        due = [client for client, other in self.waiting.items() if other == run and client not in told]
        told.update(due)
        return [(commands.kill(client), self._ended(client)) for client in due]

    def _ended(self, client: int) -> Callback:
        """Return the callback for the reply to CLIENT KILL: the connection was ended, or the server has none such."""

        def failed(error: BaseException) -> None:
            # If it will not, it need not be told again; else another connection is to tell it.
            if isinstance(error, CacheUnavailableError) and error.refused:
                self.refused(client)

        return Callback(lambda _: self.forget(client), failed)

    def forget(self, client: int) -> None:
        """Note that a connection has ended at the server."""
        with self._lock:
            self.waiting = {known: run for known, run in self.waiting.items() if known != client}

    def refused(self, client: int) -> None:
        """Note that the server will not end it."""
        self.forget(client)
        self._warn_of_refusal()

    def _warn_of_refusal(self) -> None:
        self._warn(
            "kill",
            "Redis refuses CLIENT ID or CLIENT KILL, so what was sent over a connection that was lost may still come "
            "to be carried out, and a value that was deleted be stored again. Grant the user '+client|id' and "
            "'+client|kill'",
        )
