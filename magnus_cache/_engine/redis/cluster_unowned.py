"""Requests that a cluster sends elsewhere for too long, as for a slot that no node owns."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from redis.exceptions import ClusterDownError

from magnus_cache._engine.redis.cluster_handshake import unowned
from magnus_cache._engine.redis.slots import SLOTS
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.cluster_journeys import Journey
    from magnus_cache._engine.redis.cluster_view import ClusterView

__all__ = ["UnownedSlots"]

_PAUSE: Final = 1.0
"""Seconds after which a request for a slot without an owner is repeated again, instead of failed at once."""


class UnownedSlots:
    """Decides for one loop when a request is given up that a node has sent elsewhere.

    :param timeout: seconds that a request is repeated for.
    :param warn: called with a topic and a problem, for the log.
    """

    def __init__(self, view: "ClusterView", timeout: float, warn: Callable[[str, str], object]) -> None:
        self._view = view
        self._timeout = timeout
        self._warn = warn
        self._until = -math.inf

    def gives_up(self, journey: "Journey", error: Exception, now: float) -> bool:
        """Return whether a request is not to be repeated.

        Repeated for the whole timeout, each call on a slot without an owner would take as long. So after one of them,
        the others fail at once for a while.
        """
        is_unowned = isinstance(error, ClusterDownError) and self._view.map.covered < SLOTS
        if is_unowned and now < self._until:
            return True
        late = now > journey.began + self._timeout
        if late and is_unowned:
            self._until = now + _PAUSE
            self._warn("unowned", f"{unowned(self._view.map.missing())}. Values of theirs are loaded by each process")
        return late

    def error(self, error: Exception) -> CacheUnavailableError:
        """Return the error for those who wait for the answer."""
        missing = self._view.map.missing()
        if isinstance(error, ClusterDownError) and missing:
            return CacheUnavailableError("clusterdown", unowned(missing))
        word = str(error).split(" ", 1)[0]
        problem = f"the cluster does not settle who owns a slot ({word}); the cache waits"
        return CacheUnavailableError("clusterdown", problem)
