"""Pauses between repeated requests: none at first, then growing ones."""

import math
from random import random
from typing import Final

__all__ = ["LONGEST_PAUSE", "Pace", "pause"]

LONGEST_PAUSE: Final = 0.25
"""Seconds of the longest pause."""

_SHORTEST: Final = 0.01
"""Seconds of the first pause."""

_DOUBLINGS: Final = 5

_AT_ONCE: Final = 3
"""Requests without any pause."""

_CALM: Final = 1.0
"""Seconds without a request after which the next ones need no pause again."""


def pause(count: int) -> float:
    """Return the seconds until the next request, after `count` in vain: 10 ms, doubled up to 250 ms, less a part.

    The part is random, below a half, so that processes which began to wait together do not send together.
    """
    longest = min(LONGEST_PAUSE, _SHORTEST * 2.0 ** min(count, _DOUBLINGS))
    return longest * (1 - random() / 2)


class Pace:
    """Slows down a loop of requests in which each answer causes the next request.

    A server whose tracking table is too small causes this: it evicts a name from the table, and announces it, because
    of a request for another name.

    :param longest: seconds of the longest pause.
    """

    __slots__ = ("_asked", "_count", "_longest")

    def __init__(self, longest: float = LONGEST_PAUSE) -> None:
        self._longest = longest
        self._asked = -math.inf
        self._count = 0

    def delay(self, now: float) -> float:
        """Return the seconds to wait before the next request, which counts as sent then.

        :param now: seconds of a clock that only grows, the same for all calls.
        """
        if now - self._asked > _CALM:
            self._count = 0
        due = self._asked + min(self._longest, pause(self._count - _AT_ONCE)) if self._count >= _AT_ONCE else now
        self._count += 1
        self._asked = max(now, due)
        return self._asked - now

    def reset(self) -> None:
        """Let the next requests follow at once, because the last answer made progress."""
        self._count = 0
