"""Which hits are audited: a share of them, drawn at random without a random number for each."""

import math
from random import random
from typing import Any, Final

from magnus_cache._engine.runtime.numbers import number
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["Sampler", "checked_audit", "sampler_of"]

_LEAST: Final = 2.0**-64
_NEVER: Final = 1 << 62


def checked_audit(audit: Any) -> float:
    """Return the share of hits to audit.

    :raises CacheArgumentError: naming `audit`, if it is none.
    """
    share = number(audit)
    if share is None:
        raise CacheTypeError("audit", f"a share of the hits is needed, such as 0.01, not {type(audit).__name__}")
    if not 0 <= share <= 1:
        raise CacheArgumentError("audit", f"a share of the hits is needed, 0 to 1, got {audit}")
    return float(share)


class Sampler:
    """Counts down to the next hit that is audited.

    The number of hits in between is geometrically distributed, so each hit is drawn with the same probability, whatever
    was drawn before. Threads that count at once may lose a step, which only delays the next.

    :ivar share: of the hits, 0 to 1.
    :ivar left: hits before the next one that is drawn; each hit takes one, and the one that finds none is drawn.
    """

    __slots__ = ("_log", "left", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._log = math.log1p(-share) if share < 1 else -math.inf
        self.left = _NEVER
        if share > 0:
            self.draw()

    def draw(self) -> None:
        """Draw how many hits there are before the next one that is audited."""
        self.left = int(min(math.log(max(random(), _LEAST)) / self._log, _NEVER))

    def drawn(self) -> bool:
        """Count a hit that was not counted yet, and return whether it is drawn."""
        if self.left > 0:
            self.left -= 1
            return False
        self.draw()
        return True


def sampler_of(namespace: float, own: float | None) -> Sampler | None:
    """Return what draws the hits of a function that are audited; None if none is.

    :param namespace: the share of its namespace.
    :param own: its own share; None for that of the namespace.
    """
    share = namespace if own is None else own
    return Sampler(share) if share else None
