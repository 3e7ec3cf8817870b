"""Keeping the epochs of what is in use: their keys end at last, and what they are about is loaded anew then.

An epoch's key lives for 30 days after its issue, as there may be any number of tags and namespaces. One that is in use
for longer must not end by that. So each process has the life of such keys prolonged, once a day at most, and only the
first of a fleet changes anything: a change is announced to all who know the epoch.
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
"""Seconds between two looks for epochs that may be due."""

_AT_ONCE: Final = 100
"""Epochs prolonged at a time; of more, the others follow a second later."""

_NEXT: Final = 1.0
_MOST: Final = 100_000


class EpochRenewals:
    """Has the epochs prolonged that one process knows to be in use: those of its namespaces, and its entries' tags."""

    def __init__(self, epochs: Epochs, client: "Client", clock: Clock) -> None:
        self._epochs = epochs
        self._client = client
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child."""
        self._due = -math.inf
        self._asked: dict[bytes, float] = {}

    def beat(self, connection: "Connection") -> None:
        """Prolong what is due, if it is time to look; on its loop, some times a second while it is busy."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + _EVERY
        if len(self._asked) >= _MOST:
            self._asked.clear()
        # An epoch is the time of its issue: a young one need not be asked about.
        young = connection.time.at(now) - _DAY * MICROSECONDS
        due = [name for name in self._epochs.in_use() if self._is_due(name, now, young)]
        if len(due) > _AT_ONCE:
            self._due = now + _NEXT
        for name in itertools.islice(due, _AT_ONCE):
            try:
                self._client.prolong(name)
            except CacheError:
                return  # On another day, or through another connection.
            self._asked[name] = now

    def _is_due(self, name: bytes, now: float, young: float) -> bool:
        return 0 < self._epochs.latest(name) < young and now - self._asked.get(name, -math.inf) >= _DAY
