"""What is spent of the limits of a fleet, for the command line and the dashboard."""

from collections.abc import Iterable
from typing import NamedTuple

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.stats import NANOS
from magnus_cache.errors import CacheUnavailableError

__all__ = ["SpendUse", "spend_report"]


class SpendUse(NamedTuple):
    """A limit of spending, and what the fleet has spent of it in the present period, in the unit of `cost`."""

    namespace: str
    period: str
    limit: float
    spent: float

    @property
    def percent(self) -> float:
        """What is spent of the limit; above 100 if loads under way have passed it."""
        return 100.0 * self.spent / self.limit


def spend_report(state: State, namespaces: Iterable[str]) -> list[SpendUse]:
    """Return the limits of some namespaces, of those that have one; none while Redis is away."""
    try:
        found = state.portal.call(state.spending.limits, set(namespaces))
    except CacheUnavailableError:
        return []
    return [SpendUse(each.namespace, each.period, each.limit / NANOS, each.spent / NANOS) for each in found]
