"""When to try Redis again: the decisions of a circuit breaker, without any I/O.

One breaker stands for one Redis and is shared by every connection of the process to it, so that what one of
them learned the hard way costs the others nothing.
"""

import math
import random
from typing import Final

__all__ = ["Breaker"]

_FIRST: Final = 0.2
_LONGEST: Final = 3.0


class Breaker:
    """Closed while Redis answers; open from a failure until the next success.

    While it is open, one connection attempt is due at `retry_at`; each failed one doubles the pause (0.2 s to 3 s),
    shortened at random by up to a half so that a fleet does not come back in step.
    """

    __slots__ = ("_failures", "_known", "_retry_at")

    def __init__(self) -> None:
        self._failures = 0
        self._known = False
        self._retry_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the last exchange with Redis succeeded; False before the first."""
        return self._known and not self._failures

    @property
    def open(self) -> bool:
        """Whether the last exchange with Redis failed; False before the first."""
        return self._failures > 0

    @property
    def retry_at(self) -> float:
        """Monotonic seconds of the next attempt; in the past when one is due."""
        return self._retry_at

    def failed(self, now: float) -> float:
        """Note a failure and return the pause until the next attempt, in seconds."""
        # A second connection that reports the same outage must not push the attempt further away.
        if self._failures and now < self._retry_at:
            return self._retry_at - now
        pause = min(_LONGEST, _FIRST * math.exp2(min(self._failures, 10))) * random.uniform(0.5, 1.0)
        self._failures += 1
        self._retry_at = now + pause
        return pause

    def succeeded(self) -> None:
        """Note that Redis answered."""
        self._known, self._failures, self._retry_at = True, 0, 0.0

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._known, self._failures, self._retry_at = False, 0, 0.0
