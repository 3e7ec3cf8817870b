"""Orphaned connections: closed with commands unanswered, which the server may still execute later.

The server may execute such a command long after the process gave up on it, and store a value again that was deleted
meanwhile. So the next connection to the same server kills the orphaned one there, before it sends anything else.
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
"""Connections remembered; those of an earlier server are forgotten first."""


class OrphanedConnections:
    """The orphaned connections of one process. Thread-safe, bounded.

    :param warn: called with a topic and a message.
    :ivar waiting: the run of the server by client id; may be read without a lock.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self._warn = warn
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child: the connections belong to its parent."""
        self._lock = section()
        self.waiting: dict[int, bytes] = {}

    def leave(self, run: bytes, client: int) -> None:
        """Note an orphaned connection. Call this before its callers learn that it failed.

        :param run: identifies the server and its start; empty if unknown: then the client id means nothing.
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

    def ends(self, run: bytes, sent: set[int]) -> list[tuple[Command, Callback]]:
        """Return the commands that a connection must send first, except those that it has sent already.

        :param sent: the client ids that it has sent; extended.
        """
        due = [client for client, other in self.waiting.items() if other == run and client not in sent]
        sent.update(due)
        return [(commands.kill(client), self._ended(client)) for client in due]

    def _ended(self, client: int) -> Callback:
        """Return the callback for the reply to CLIENT KILL: the connection was killed, or is gone already."""

        def failed(error: BaseException) -> None:
            # After a refusal, a retry is pointless. After another error, the next connection retries.
            if isinstance(error, CacheUnavailableError) and error.refused:
                self.refused(client)

        return Callback(lambda _: self.forget(client), failed)

    def forget(self, client: int) -> None:
        """Note that the server has closed a connection."""
        with self._lock:
            self.waiting = {known: run for known, run in self.waiting.items() if known != client}

    def refused(self, client: int) -> None:
        """Note that the server refuses to kill a connection, and warn."""
        self.forget(client)
        self._warn_of_refusal()

    def _warn_of_refusal(self) -> None:
        self._warn(
            "kill",
            "Redis refuses CLIENT ID or CLIENT KILL, so it may still execute commands of a lost connection, and store "
            "a deleted value again. Grant the user '+client|id' and '+client|kill'",
        )
