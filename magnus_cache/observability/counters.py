"""The counters that Prometheus and OpenTelemetry show: one table for both."""

from typing import Any, Final, NamedTuple

from magnus_cache._engine.runtime.stats import NANOS

__all__ = ["OF_NAMESPACES", "OF_PROCESSES", "Counted"]

_MICROS: Final = 1_000_000


class Counted(NamedTuple):
    """A counter that is exported.

    :ivar figure: its name in `Counters`, or in the counts of a process.
    :ivar name: the name of the series, without what both begin with.
    :ivar unit: what is counted, for OpenTelemetry.
    :ivar text: the description.
    :ivar parts: how many counts make one of what is shown.
    :ivar apart: whether OpenTelemetry has it in an instrument of its own: a look-up and a load have a ``result`` there.
    """

    figure: str
    name: str
    unit: str
    text: str
    parts: int = 1
    apart: bool = False

    def of(self, counters: Any) -> float:
        """Return what is shown of the counters of a namespace or function."""
        found: int = getattr(counters, self.figure)
        return found if self.parts == 1 else found / self.parts


OF_NAMESPACES: Final = (
    Counted("misses", "misses", "{lookup}", "Look-ups that found no value.", apart=True),
    Counted("loads", "loads", "{load}", "Loads that returned.", apart=True),
    Counted("load_errors", "load_errors", "{load}", "Loads that raised.", apart=True),
    Counted("stores", "stores", "{value}", "Values that were stored, in Redis or in a process alone."),
    Counted("stale_hits", "stale_hits", "{lookup}", "Expired values that were served."),
    Counted("early_refreshes", "early_refreshes", "{load}", "Loads that were started before a value expired."),
    Counted("negative_hits", "negative_hits", "{lookup}", "Remembered errors that were raised again."),
    Counted("timeouts", "timeouts", "{caller}", "Callers that stopped waiting for a load."),
    Counted("overloads", "overloads", "{load}",
            "Loads that were not started, because too many ran in the background."),
    Counted("held_back", "held_back_loads", "{load}",
            "Loads that waited for the budget of their source or were refused by it."),
    Counted("pauses", "pauses", "{load}", "Loads that paused their source with RetryLater."),
    Counted("refused", "refused_writes", "{value}", "Writes that Redis refused."),
    Counted("seal_failures", "seal_failures", "{value}",
            "Values of sealed namespaces that could not be opened, or were not sealed."),
    Counted("unreadable", "unreadable_values", "{value}",
            "Stored values that could not be read, and counted as misses."),
    Counted("unstorable", "unstorable_values", "{value}", "Results that were returned but could not be stored."),
    Counted("errors", "failed_exchanges", "{exchange}", "Exchanges with Redis that failed.", apart=True),
    Counted("load_micros", "load_seconds", "s", "What the loads that returned took, in seconds.", _MICROS, apart=True),
    Counted("spent_nanos", "spent", "1", "Money that the loads have cost, in the unit of cost=.", NANOS),
    Counted("saved_nanos", "saved", "1", "Money that hits have saved, in the unit of cost=.", NANOS),
)  # fmt: skip
"""The counters of a namespace and of a function."""

OF_PROCESSES: Final = (
    Counted("evictions", "evictions", "{value}", "Entries that made room in memory for others."),
    Counted("expirations", "expirations", "{value}", "Entries that left memory because their time was over."),
    Counted("fenced_fills", "fenced_fills", "{value}",
            "Values that were overtaken while they were read or loaded, and not kept."),
    Counted("flights_joined", "joined_loads", "{caller}",
            "Callers that waited for a load that another caller had started."),
)  # fmt: skip
"""The counters of a process."""
