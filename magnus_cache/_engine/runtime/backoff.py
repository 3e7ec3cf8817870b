"""How soon to ask again what was asked a moment ago: at once at first, then after growing pauses."""

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
"""Times that one may ask without any pause."""

_CALM: Final = 1.0
"""Seconds without a question after which the next ones need no pause again."""


def pause(count: int) -> float:
    """Return the seconds until the next question, after `count` in vain: 10 ms, doubled up to 250 ms, less a part.

    The part is a random one, below a half: those who began to wait together do not ask together.
    """
    longest = min(LONGEST_PAUSE, _SHORTEST * 2.0 ** min(count, _DOUBLINGS))
    return longest * (1 - random() / 2)


class Pace:
    """Keeps questions from following each other without end, where each answer causes the next question.

    A server whose tracking table is too small does that: it ceases to track a name, and says so, because it was asked
    for another one.

    :param longest: seconds of the longest pause.
    """

    __slots__ = ("_asked", "_count", "_longest")

    def __init__(self, longest: float = LONGEST_PAUSE) -> None:
        self._longest = longest
        self._asked = -math.inf
        self._count = 0

    def delay(self, now: float) -> float:
        """Return the seconds to wait before the next question, which counts as asked then.

        :param now: seconds of a clock that only grows, the same for all calls.
        """
        if now - self._asked > _CALM:
            self._count = 0
        due = self._asked + min(self._longest, pause(self._count - _AT_ONCE)) if self._count >= _AT_ONCE else now
        self._count += 1
        self._asked = max(now, due)
        return self._asked - now

    def reset(self) -> None:
        """Let the next questions follow at once: the last answer was worth it."""
        self._count = 0
