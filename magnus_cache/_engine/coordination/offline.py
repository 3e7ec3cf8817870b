"""What memory is good for while this process has no contact with Redis, and others may have."""

import math
from typing import TYPE_CHECKING

from magnus_cache._engine.coherence.trust import Trust, UnsharedTrust
from magnus_cache._engine.coordination.generations import OutageGenerations
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.redis.topology import Topology
from magnus_cache._engine.runtime.clock import Clock

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["OfflineBounds"]


class OfflineBounds:
    """The part of a `State` that knows when it last had contact with Redis."""

    settings: "CacheSettings"
    endpoint: "Endpoint | None"
    clock: Clock
    breaker: Breaker
    generations: OutageGenerations
    topology: Topology

    @property
    def reachable(self) -> bool:
        """Whether some connection to Redis stands now, and its loop would notice if it did not."""
        return self.topology.reachable

    def contact(self) -> float:
        """Return the monotonic second at which Redis last confirmed what this process holds.

        Where it never did, that of the first failure; infinity where no Redis is configured.
        """
        if self.endpoint is None:
            return math.inf
        confirmed = self.generations.confirmed(each for each in self.topology.connections() if each.up)
        if confirmed > -math.inf:
            return confirmed
        outage = self.breaker.outage
        return self.clock() if outage is None else outage.began

    def cut_off(self, namespace: Namespace) -> bool:
        """Whether memory may not serve a namespace, as contact with Redis was lost too long ago."""
        offline = namespace.offline
        return offline is not None and not self.reachable and self.clock() >= self.contact() + offline

    def local_trust(self, namespace: Namespace) -> Trust:
        """Return what a namespace's value stands on that could be stored in this process alone.

        While Redis is away there is nobody to contradict it. While Redis is there but refused the write, or only
        this connection was lost, a peer's write would go unnoticed: then the staleness bound is its bound.
        """
        # In this order: if Redis comes back in between, this is the trust that its coming has killed.
        offline = self.generations.offline
        if self.reachable:
            return UnsharedTrust(self.clock() + self.settings.max_staleness, self.generations.current)
        return self.generations.trust_for(offline, namespace)
