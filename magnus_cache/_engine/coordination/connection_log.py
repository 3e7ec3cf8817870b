"""Log lines about the connection to Redis: connected, lost and why, back after how long."""

import logging
from typing import TYPE_CHECKING

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.log import RateLimitedLog, say
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection

    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["ConnectionLog"]


class ConnectionLog:
    """Logs the state of one Redis for all connections of one cache, without repetition.

    :param place: where Redis is, for people.
    :param max_staleness: seconds for which memory keeps values if Redis announces no changes; None if it was not asked
        to announce any.
    """

    def __init__(
        self, place: str, notices: RateLimitedLog, breaker: Breaker, outbox: Outbox, clock: Clock,
        max_staleness: float | None,
    ) -> None:  # fmt: skip
        self._where = f"Redis at {place}"
        self._notices = notices
        self._breaker = breaker
        self._outbox = outbox
        self._clock = clock
        self._max_staleness = max_staleness
        self._connected = False
        self._away: dict[str, float] = {}

    def connected(self, connection: "Connection", node: str | None = None) -> None:
        """Log the first connection, and each later one that ends a logged outage.

        :param node: the address of the node of a cluster that it leads to.
        """
        if self._max_staleness is not None and not connection.tracking:
            self._notices.warn(
                "tracking",
                f"{self._where} refuses CLIENT TRACKING, so it announces no changes; this process keeps values for "
                f"{self._max_staleness:g} s at most. Grant the user '+client|tracking', or use a server that has it",
            )
        if self._notices.resolved("redis"):
            outage = self._breaker.outage
            # At the level of the line that began the outage: otherwise a log at that level shows no end of it.
            say(f"{self._where} is back{self._since(outage.began if outage else None)}{self._missed()}")
        elif not self._connected:
            say(f"connected to {self._where}", logging.INFO)
        self._connected = True
        if node is not None:
            began = self._away.pop(node, None)
            if self._notices.resolved(f"node:{node}"):
                say(f"node {node} is back{self._since(began)}{self._missed()}")

    @property
    def any_away(self) -> bool:
        """Whether a node of a cluster is away, as far as was logged."""
        return bool(self._away)

    def remapped(self, nodes: "Collection[str]") -> None:
        """Log that nodes which are away have no slots any more.

        :param nodes: the addresses of all primaries.
        """
        for node in [node for node in list(self._away) if node not in nodes]:
            began = self._away.pop(node, None)
            if self._notices.resolved(f"node:{node}"):
                say(f"node {node} was away and is replaced{self._since(began)}{self._missed()}")

    def _since(self, began: float | None) -> str:
        return "" if began is None else f" after {self._clock() - began:.1f} s"

    def _missed(self) -> str:
        return "; invalidations made meanwhile are replayed" if self._outbox.pending else ""

    def closed(self) -> None:
        """Warn if invalidations were never replayed to Redis: other processes may read the old values there."""
        if self._connected and self._outbox.pending:
            self._notices.warn(
                "closed",
                f"the cache was closed before {self._where} received what this process invalidated during the outage; "
                "the old values may be read there until they expire. MAGNUS_CACHE_RECOVERY_PATH keeps a record for the "
                "next process",
            )

    def warned(self, topic: str, problem: str) -> None:
        """Warn of servers that can be used although something is wrong with them; once in a while for each topic."""
        self._notices.warn(topic, f"{self._where}: {problem}")

    def disconnected(self, error: CacheUnavailableError, node: str | None = None) -> None:
        """Warn that Redis is unavailable, and why; again when the reason changes.

        :param node: the address of the node of a cluster that is away.
        """
        # If the cluster is down, each node says so.
        if node is not None and error.reason != "clusterdown":
            self._away.setdefault(node, self._clock())
            self._notices.warn(
                f"node:{node}:{error.reason}:{error}",
                f"node {node} away: {error}. Its keys are served from this process's memory, others are not affected; "
                "the cache reconnects by itself",
            )
            return
        # The message is part of the topic: one reason such as "tls" has several remedies, and each is logged once.
        self._notices.warn(
            f"redis:{error.reason}:{error}",
            f"{error}. Continuing with this process's memory; the cache reconnects by itself",
        )
