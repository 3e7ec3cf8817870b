"""Bounds on what memory serves while this process has no contact with Redis, and other processes may have."""

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
    """The part of a `State` that knows its last contact with Redis."""

    settings: "CacheSettings"
    endpoint: "Endpoint | None"
    clock: Clock
    breaker: Breaker
    generations: OutageGenerations
    topology: Topology

    @property
    def reachable(self) -> bool:
        """Whether some connection to Redis is up, and its loop runs and would notice the loss."""
        return self.topology.reachable

    def reaches(self, name: bytes) -> bool:
        """Return whether the server of a value can be asked, see `reachable`; on a cluster, it depends on the value."""
        return self.topology.reaches(name)

    def contact(self, name: bytes) -> float:
        """Return the monotonic second at which the server of a value last confirmed the entries of this process.

        Without any confirmation, the second of the first failure; without a configured Redis, infinity.
        """
        if self.endpoint is None:
            return math.inf
        confirmed = self.generations.confirmed(name, [each for each in self.topology.connections() if each.up])
        if confirmed > -math.inf:
            return confirmed
        outage = self.topology.breaker_of(name).outage
        return self.clock() if outage is None else outage.began

    def cut_off(self, namespace: Namespace, name: bytes) -> bool:
        """Return whether contact was lost so long ago that memory may not serve a value of the namespace."""
        offline = namespace.offline
        return offline is not None and not self.reaches(name) and self.clock() >= self.contact(name) + offline

    def local_trust(self, namespace: Namespace, name: bytes) -> Trust:
        """Return the trust of a value that only this process could store.

        While Redis is away, the trust lasts until Redis is back, or as long as the namespace's `offline` allows. While
        Redis is up but refused the write, or only this connection was lost, the write of another process would go
        unnoticed: then the staleness bound applies.
        """
        # In this order: if Redis returns in between, that has killed the trust read here.
        offline = self.generations.offline_of(name)
        if self.reaches(name):
            return UnsharedTrust(self.clock() + self.settings.max_staleness, self.generations.now(name))
        return self.generations.trust_for(offline, namespace, name)
