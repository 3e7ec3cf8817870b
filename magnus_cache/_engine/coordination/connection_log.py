"""What the log says of the connection to Redis: that it stands, that it is lost and why, and that it is back."""

import logging
from typing import TYPE_CHECKING

from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.log import RateLimitedLog, say
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["ConnectionLog"]


class ConnectionLog:
    """The lines about one Redis, for all connections of one cache.

    :param max_staleness: seconds that values are kept in memory where Redis announces no changes.
    """

    def __init__(
        self, endpoint: "Endpoint | None", notices: RateLimitedLog, breaker: Breaker, outbox: Outbox, clock: Clock,
        max_staleness: float,
    ) -> None:  # fmt: skip
        self._where = f"Redis at {endpoint.display}" if endpoint else ""
        self._notices = notices
        self._breaker = breaker
        self._outbox = outbox
        self._clock = clock
        self._max_staleness = max_staleness
        self._connected = False

    def connected(self, connection: "Connection") -> None:
        """Say so the first time; later only after it was said that Redis is away."""
        if not connection.tracking:
            self._notices.warn(
                "tracking",
                f"{self._where} refuses CLIENT TRACKING, so it announces no changes made elsewhere; values are kept in "
                f"this process for {self._max_staleness:g} s at most. Grant the user '+client|tracking', or use a "
                "server that has it",
            )
        if self._notices.resolved("redis"):
            outage = self._breaker.outage
            away = f" after {self._clock() - outage.began:.1f} s" if outage else ""
            missed = "; it is told what was invalidated meanwhile" if self._outbox.pending else ""
            # As loud as the line that it was away: else a log at that level shows an outage without an end.
            say(f"{self._where} is back{away}{missed}")
        elif not self._connected:
            say(f"connected to {self._where}", logging.INFO)
        self._connected = True

    def closed(self) -> None:
        """Say so if what was invalidated is not told to Redis any more: others may read the old values there."""
        if self._connected and self._outbox.pending:
            self._notices.warn(
                "closed",
                f"the cache was closed before {self._where} could be told what this process invalidated while it was "
                "away; the old values may be read there until they expire. MAGNUS_CACHE_RECOVERY_PATH keeps a record "
                "for the next process",
            )

    def disconnected(self, error: CacheUnavailableError) -> None:
        """Say that Redis is away, and why; again when the reason changes."""
        # By its words, too: one reason, such as "tls", has several remedies, and after the first one needs the second.
        self._notices.warn(
            f"redis:{error.reason}:{error}",
            f"{error}. Going on with this process's memory; Redis is tried again by itself",
        )
