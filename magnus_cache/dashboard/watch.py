"""The figures of a fleet, as a page shows them: looked up now and then, and kept while Redis is away."""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from magnus_cache import CacheManager, CacheStats, FleetProcess, Health, LedgerRow
from magnus_cache._engine.api.spend_report import SpendUse, spend_report
from magnus_cache._engine.runtime.clock import monotonic

__all__ = ["DAYS", "MINUTES", "Outage", "View", "Watch"]

MINUTES: Final = 120
DAYS: Final = 30
_LEDGER: Final = 60.0
"""Seconds between two looks at the ledger, which is one hash a day."""

_SHARE: Final = 4
"""A look takes at most a quarter of the time: the sums of a fleet with many functions are large."""

_OUTAGES: Final = 50


class Outage(NamedTuple):
    """A time in which this process did not reach Redis."""

    reason: str
    seconds: float
    """How long it took, or has taken up to now."""
    ago: float
    """Seconds since it ended; 0 while it lasts."""


class View(NamedTuple):
    """What is known of a fleet."""

    figures: CacheStats | None
    """Those of `get_stats`; None before the first ones."""
    minutes: Sequence[CacheStats]
    processes: Sequence[FleetProcess]
    age: float
    """Seconds since these figures were looked up."""
    health: Health
    problem: str | None
    """Why there are no newer figures; None if these are the newest."""
    outages: Sequence[Outage]
    """Those that were seen while the fleet was watched, the latest first."""
    alone: bool
    """Whether the cache has no Redis, and the figures are those of one process."""
    ledger: Sequence[LedgerRow] = ()
    """What each namespace has cost and saved on each of the last `DAYS` days."""
    currency: str = ""
    """That of the settings, for display."""
    limits: Sequence[SpendUse] = ()
    """Of the namespaces in the ledger, with what is spent of them."""

    @property
    def empty(self) -> bool:
        """Whether no process has published anything."""
        figures = self.figures
        return figures is not None and not (self.processes or figures["namespaces"] or figures["processes"])


class Watch:
    """Looks at a fleet through one of its caches, for any number of pages at a time. Thread-safe.

    :param every: seconds between two looks.
    """

    def __init__(self, cache: CacheManager, every: float) -> None:
        self._cache = cache
        # Pages find a watch by the identity of this: it must not be given to another cache while the watch is there,
        # although the process-wide cache may be closed, and made anew with another one.
        self._state = cache._state
        self._every = every
        self._lock = threading.Lock()
        self._next = self._at = 0.0
        self._health: Health | None = None
        self._figures: CacheStats | None = None
        self._minutes: Sequence[CacheStats] = ()
        self._processes: Sequence[FleetProcess] = ()
        self._ledger: Sequence[LedgerRow] = ()
        self._limits: Sequence[SpendUse] = ()
        self._ledger_at = -_LEDGER
        self._problem: str | None = None
        self._away: tuple[str, float] | None = None
        """Why Redis is away, and since when."""
        self._outages: list[tuple[str, float, float]] = []

    def look(self) -> View:
        """Return the newest figures, and look for newer ones first if that is due."""
        with self._lock:
            now = monotonic()
            if self._health is None or now >= self._next:
                health = self._asked()
                self._next = monotonic() + max(self._every * 0.9, _SHARE * (monotonic() - now))
                now = monotonic()
            else:
                health = self._health
            outages = [Outage(reason, end - start, now - end) for reason, start, end in reversed(self._outages)]
            if self._away is not None:
                outages.insert(0, Outage(self._away[0], now - self._away[1], 0.0))
            return View(
                self._figures, self._minutes, self._processes, now - self._at, health, self._problem, outages,
                self._alone, self._ledger, self._state.settings.currency, self._limits,
            )  # fmt: skip

    def expire(self) -> None:
        """Have the next look ask Redis, as after a clear."""
        with self._lock:
            self._next, self._ledger_at = 0.0, -_LEDGER

    @property
    def _alone(self) -> bool:
        return self._state.endpoint is None

    def _asked(self) -> Health:
        health = self._health = self._cache.ping()
        if self._alone:
            self._figures, self._at = self._cache.get_stats("fleet"), monotonic()
            self._ledger = self._cache.get_ledger(1)
            self._limits = spend_report(self._state, ())
            return health
        is_there = bool(health) or any(health.nodes)
        self._note(None if is_there else str(health.reason))
        if not is_there:
            self._problem = str(health.reason)
            return health
        figures = self._cache.get_stats("fleet")
        minutes = self._cache.get_history(MINUTES)
        # A cache that cannot read the sums of the fleet returns its own figures, which have a breaker.
        if "breaker" in figures or not minutes:
            self._problem = str(health.reason or "the statistics of the fleet cannot be read")
            return health
        self._figures, self._minutes, self._processes = figures, minutes, self._cache.get_processes()
        self._problem, self._at = None, monotonic()
        if self._at - self._ledger_at >= _LEDGER:
            self._ledger, self._ledger_at = self._cache.get_ledger(DAYS), self._at
            self._limits = spend_report(self._state, [row.namespace for row in self._ledger])
        return health

    def _note(self, reason: str | None) -> None:
        now = monotonic()
        if reason is None and self._away is not None:
            self._outages = [*self._outages[1 - _OUTAGES :], (*self._away, now)]
            self._away = None
        elif reason is not None and self._away is None:
            self._away = (reason, now)
