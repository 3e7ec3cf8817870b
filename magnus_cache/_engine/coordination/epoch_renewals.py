"""Renewal of the epoch keys in use, so that they do not expire.

An epoch's key expires 30 days after its issue, because the number of tags and namespaces has no bound. All values that
an expired epoch covers are loaded again, so an epoch in use must not expire. Each process renews its epochs once a day
at most. Redis changes a key only for the first process of a day, because each change is announced to every process that
knows the epoch.
"""

import itertools
import math
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.coherence.epochs import Epochs
from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["EpochRenewals"]

_DAY: Final = 86_400.0
_EVERY: Final = 600.0
"""Seconds between two checks for due epochs."""

_AT_ONCE: Final = 100
"""Epochs renewed at a time; the others follow after `_NEXT` seconds."""

_NEXT: Final = 1.0
_MOST: Final = 100_000


class EpochRenewals:
    """Renews the epochs that one process uses: those of its namespaces and of its entries' tags."""

    def __init__(self, epochs: Epochs, client: "Client", clock: Clock) -> None:
        self._epochs = epochs
        self._client = client
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start empty, as in a forked child."""
        self._due = -math.inf
        self._asked: dict[bytes, float] = {}

    def beat(self, connection: "Connection") -> None:
        """Renew due epochs; called several times a second on the loop of a busy connection."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + _EVERY
        if len(self._asked) >= _MOST:
            self._asked.clear()
        # An epoch is the time of its issue, so a young one needs no renewal.
        young = connection.time.at(now) - _DAY * MICROSECONDS
        due = [name for name in self._epochs.in_use() if self._is_due(name, now, young)]
        if len(due) > _AT_ONCE:
            self._due = now + _NEXT
        for name in itertools.islice(due, _AT_ONCE):
            try:
                self._client.prolong(name)
            except CacheError:
                return  # The next check tries again, perhaps through another connection.
            self._asked[name] = now

    def _is_due(self, name: bytes, now: float, young: float) -> bool:
        return 0 < self._epochs.latest(name) < young and now - self._asked.get(name, -math.inf) >= _DAY
