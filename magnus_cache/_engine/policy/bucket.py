"""The tokens of a bucket that this process has taken: what is its share without Redis, and what it reports to Redis."""

import math
from collections import deque
from typing import Final

from magnus_cache._engine.policy.budgets import Rate

__all__ = ["OwnTokens", "returns_after", "share_of"]

_SPREAD: Final = 0.05
_MOST_SPREAD: Final = 0.25


def returns_after(window: float) -> float:
    """Return the seconds after which a token comes back: the window, and a little more.

    A request reaches its source some time after its token was taken, and one time more than another. Without this, the
    last request of a window could come late, the next ones early, and the source count them together.
    """
    return window + min(window * _SPREAD, _MOST_SPREAD)


def share_of(rate: Rate, processes: int) -> Rate:
    """Return the share of one of some processes: a whole number of loads, in a longer window if there are too few."""
    if processes <= rate.loads:
        return Rate(rate.loads // max(1, processes), rate.window)
    return Rate(1, rate.window * processes / rate.loads)


class OwnTokens:
    """When this process has taken tokens. Not thread-safe."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def taken(self, now: float, window: float) -> int:
        """Return how many were taken within the window that ends now, and are not back."""
        times = self._times
        while times and times[0] + window <= now:
            times.popleft()
        return len(times)

    def take(self, now: float, tokens: int) -> None:
        """Note that some were taken."""
        self._times.extend([now] * tokens)

    def give_back(self, tokens: int) -> None:
        """Note that the last ones were not used."""
        for _ in range(min(tokens, len(self._times))):
            self._times.pop()

    def due(self, now: float, rate: Rate, tokens: int) -> float:
        """Return the seconds until some tokens can be taken at a rate; 0 if they can be taken now.

        :param tokens: of a load and of all that come before it. The script `TAKE` counts the same way.
        """
        window = returns_after(rate.window)
        taken = self.taken(now, window)
        place = taken + tokens - rate.loads - 1
        if place < 0:
            return 0.0
        # How many of the loads before it have to begin first, and be a window old themselves.
        rounds = max(0, math.ceil((place - taken + 1) / rate.loads))
        turn = place - rounds * rate.loads
        return max(0.0, (self._times[turn] + window - now if turn >= 0 else 0.0) + window * rounds)
