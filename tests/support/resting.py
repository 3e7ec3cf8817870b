"""Whether a cache rests, and what of the package there is in this process."""

import gc
from collections import Counter

from magnus_cache._engine.coordination.state import State

__all__ = ["objects", "resting"]


def resting(state: State) -> bool:
    """Return whether nothing is under way: what callers waited for has ended, and so has all that runs without them."""
    under_way = len(state.flights) + state.flights.background + len(state.leases) + state.memory.pending
    return not under_way and not state.outbox.pending


def objects() -> Counter[str]:
    """Return how many objects there are of each class of the package."""
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("magnus_cache."))
